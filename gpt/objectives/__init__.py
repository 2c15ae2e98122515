"""Training objectives: losses on the GPT backbone. The Trainer knows only their base class, `Objective`.

A new objective takes a file here, a line in OBJECTIVES, and its name and settings in `gpt.config.ObjectiveConfig`.
"""

from gpt.objectives.distill import Distill
from gpt.objectives.dpo import DPO
from gpt.objectives.infilling import Infilling
from gpt.objectives.masked import Masked
from gpt.objectives.next_token import NextToken
from gpt.objectives.objective import Objective
from gpt.objectives.reverse import Reverse
from gpt.objectives.sft import SFT

OBJECTIVES: dict[str, type[Objective]] = {
    "next_token": NextToken,
    "reverse": Reverse,
    "masked": Masked,
    "infilling": Infilling,
    "sft": SFT,
    "dpo": DPO,
    "distill": Distill,
}
