"""Model FLOPs utilisation: the share of the devices' peak FLOP/s that training reaches, where both are known.

Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B: tokens per second, times the FLOPs that the model needs per
token, over the peak. What is computed twice (`recompute`) or for padding does not count.
"""

from functools import lru_cache

import numpy as np
import torch

from gpt.objectives import OBJECTIVES, NextToken
from gpt.objectives.reverse import Reverse
from gpt.planning.flops import flops_per_token
from gpt.planning.hardware import peak_flops
from gpt.trainer import Trainer


@lru_cache(maxsize=1)
def seconds_per_token(trainer: Trainer) -> float | None:
    """Return the seconds that a trained token takes at the peak of all devices together: MFU = this x tokens/s.

    None where the peak is not on a data sheet (a CPU; float32), and where tokens/s do not determine the FLOPs: other
    objectives read tokens that they do not count, or run a second model; frozen weights have no gradient.
    """
    config, objective = trainer.config, trainer.objective
    peak = None
    if trainer.device.type == "cuda" and trainer.dtype != torch.float32:
        peak = peak_flops(torch.cuda.get_device_name(trainer.device))
    reads_what_it_counts = OBJECTIVES[config.objective.name] in (NextToken, Reverse)
    if not peak or not reads_what_it_counts or any(not p.requires_grad for p in objective.parameters()):
        return None
    lengths = objective.example_lengths(config, trainer.data, trainer.data.train).astype(np.float64)
    # attention takes FLOPs by the square of an example's length: the mean over tokens, not over examples
    length = float((lengths**2).sum() / lengths.sum()) if len(lengths) else 0
    return sum(flops_per_token(config.model, length)) / (peak * trainer.ctx.world_size)
