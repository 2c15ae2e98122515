"""LoRA: low-rank updates of a frozen model's weights. Hu et al. 2022, arXiv:2106.09685."""

import torch
from torch import Tensor, nn

from gpt.config import AdapterConfig
from gpt.layers import Linear
from gpt.model import GPTModel
from gpt.system.device import shapes_only


class LoRALinear(Linear):
    """A frozen linear layer plus a trained low-rank update of its weight W, (..., in) -> (..., out).

    x · W^T + bias + alpha/rank · (x · A^T) · B^T, with A `lora_A` (rank, in) and B `lora_B` (out, rank). W and bias
    keep their names. B starts at 0, so the layer starts unchanged. A is normal with variance 1/in, which gives x · A^T
    the variance of x.
    """

    def __init__(self, linear: Linear, rank: int, alpha: float):
        with shapes_only():  # no memory and no random numbers: both parameters are replaced
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None, linear.role)
        self.implementation = linear.implementation
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.randn_like(self.weight[:rank]) * self.in_features**-0.5)
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))

    @property
    def effective_weight(self) -> Tensor:
        """W + alpha/rank · B · A, (out, in)."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.ops.linear(x, self.lora_A)  # (..., rank)
        return super().forward(x) + self.scale * self.ops.linear(reduced, self.lora_B)

    def merged(self) -> Linear:
        """Return a plain layer that computes the same function; it shares the bias."""
        with shapes_only():
            plain = Linear(self.in_features, self.out_features, self.bias is not None, self.role)
        plain.implementation = self.implementation
        plain.weight, plain.bias = nn.Parameter(self.effective_weight.detach()), self.bias
        return plain.train(self.training)


def add_lora(model: GPTModel, config: AdapterConfig) -> None:
    """Replace each layer whose name ends with one of config.targets by a LoRALinear, in place."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    known = sorted({name.split(".", 2)[-1] for name in layers})  # without "trf_blocks.N."
    for target in (target.strip() for target in config.targets.split(",")):
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not target or not found:
            raise ValueError(f"adapter.targets: no layer is called {target!r}; choose from {', '.join(known)}")
        for name in found:
            layer = layers[name]
            if layer.weight is model.tok_emb.weight:
                raise ValueError(
                    f"adapter.targets: {name} shares its weight with tok_emb (model.tie_embeddings), which an update "
                    f"would not change: choose other layers"
                )
            if config.rank > min(layer.weight.shape):
                raise ValueError(f"adapter.rank {config.rank} exceeds the rank {min(layer.weight.shape)} of {name}")
            model.set_submodule(name, LoRALinear(layer, config.rank, config.alpha))


def merge(model: GPTModel) -> dict[str, LoRALinear]:
    """Replace each LoRALinear by a plain layer of weight W + alpha/rank · B · A, in place, and unfreeze the model.

    Returns the replaced layers by name, for `unmerge`.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    for name, layer in layers.items():
        model.set_submodule(name, layer.merged())
    if layers:
        model.requires_grad_(True)
    return layers


def unmerge(model: GPTModel, layers: dict[str, LoRALinear]) -> None:
    """Undo `merge`, which returned `layers`: restore exactly those layers, and freeze the model except for updates."""
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
