"""Next-token prediction: the loss of a GPT."""

import torch
from torch import Tensor

from gpt.config import TrainConfig
from gpt.loss import Evaluation, evaluate
from gpt.objectives.objective import Objective
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.token_files import PreparedData


class NextToken(Objective):
    """-sum ln p(x_{t+1} | x_1 .. x_t). Radford et al. 2018, equation 1."""

    reads_any_text = True

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of targets), two scalars, for inputs and targets (B, T)."""
        loss = self.model(inputs, targets, reduction="sum", label_smoothing=self.smoothing)
        return loss, (targets != IGNORE_INDEX).sum()

    def has_ngrams(self, data: PreparedData) -> bool:
        """See `Objective.has_ngrams`."""
        return True

    def has_entropy_floor(self, config: TrainConfig) -> bool:
        """Return whether evaluation reads all documents whole: then their entropy bounds the loss from below."""
        return config.data.packing == "document" and not config.eval_batches

    def evaluate(
        self,
        config: TrainConfig,
        data: PreparedData,
        device: torch.device | str = "cpu",
        ctx: DistContext = SINGLE_PROCESS,
    ) -> Evaluation:
        """Return the loss on the validation split, per token and per byte, without label smoothing."""
        return evaluate(
            self.model,
            data.val.tokens,
            config.model.context_length,
            config.batch_size,
            config.eval_batches,
            eot_id=data.tokenizer.eot_id if config.data.packing == "document" else None,
            bytes_per_token=data.bytes_per_token,
            device=device,
            ctx=ctx,
        )
