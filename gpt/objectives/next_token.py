"""Next-token prediction: at each position, the token that comes next."""

from torch import Tensor, nn

from gpt.model import GPTModel
from gpt.ops.explicit import IGNORE


class NextToken(nn.Module):
    """-sum log p(x_{t+1} | x_1 .. x_t), the loss of a GPT. Radford et al. 2018, equation 1."""

    def __init__(self, model: GPTModel):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss summed in nats, targets counted), two scalars, for inputs and targets (B, T)."""
        return self.model(inputs, targets, reduction="sum"), (targets != IGNORE).sum()
