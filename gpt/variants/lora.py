"""Low-rank updates of a frozen model's matrices: LoRA. Hu et al. 2022, arXiv:2106.09685."""

import torch
from torch import Tensor, nn

from gpt import ops
from gpt.config import AdapterConfig
from gpt.model import GPTModel, Linear


class LoRALinear(Linear):
    """x · W^T + bias + alpha/rank · (x · A^T) · B^T, (..., in) -> (..., out): a layer whose own W and bias stay, and an
    update of W, B · A with A `lora_A` (rank, in) and B `lora_B` (out, rank). Hu et al. 2022, arXiv:2106.09685.

    W and bias are those of the layer that it is made of, under the same names. B is 0 at first, so that it starts as
    that layer; A is normal with the variance 1/in, so that x · A^T is of the size of x.
    """

    def __init__(self, linear: Linear, rank: int, alpha: float):
        with torch.device("meta"):  # without memory and without draws: both weights are replaced
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None, linear.implementation)
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.randn_like(self.weight[:rank]) * self.in_features**-0.5)
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))

    @property
    def matrix(self) -> Tensor:
        """W + alpha/rank · B · A, (out, in)."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        linear = ops.implementation(self.implementation).linear
        reduced = linear(x, self.lora_A)  # (..., rank)
        return super().forward(x) + self.scale * linear(reduced, self.lora_B)

    def merged(self) -> Linear:
        """A plain layer that computes the same; the bias is shared."""
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, self.bias is not None, self.implementation)
        plain.weight, plain.bias = nn.Parameter(self.matrix.detach()), self.bias
        return plain.train(self.training)


def add_lora(model: GPTModel, config: AdapterConfig) -> None:
    """An update for each layer that goes by one of config.targets."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    known = sorted({name.split(".", 2)[-1] for name in layers})  # without trf_blocks and its number
    for target in (target.strip() for target in config.targets.split(",")):
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not target or not found:
            raise ValueError(f"adapter.targets: no layer is called {target!r}; there are: {', '.join(known)}")
        for name in found:
            layer = layers[name]
            if layer.weight is model.tok_emb.weight:
                raise ValueError(
                    f"adapter.targets: {name} shares its weight with tok_emb (model.tie_embeddings), whose own use an "
                    f"update would leave out: name other layers"
                )
            if config.rank > min(layer.weight.shape):
                raise ValueError(
                    f"adapter.rank {config.rank} is more than the {min(layer.weight.shape)} that {name} has itself: "
                    f"lower it"
                )
            model.set_submodule(name, LoRALinear(layer, config.rank, config.alpha))


def merge(model: GPTModel) -> dict[str, LoRALinear]:
    """Replace each layer that has an update by a plain one of the weight W + alpha/rank · B · A, in place: the model is
    an ordinary one again, and all of it may be trained. The layers, by name, for `unmerge`."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    for name, layer in layers.items():
        model.set_submodule(name, layer.merged())
    if layers:
        model.requires_grad_(True)
    return layers


def unmerge(model: GPTModel, layers: dict[str, LoRALinear]) -> None:
    """Undo `merge`, which has returned `layers`: the very same weights and updates, and the model frozen but for
    these."""
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
