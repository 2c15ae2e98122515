"""A model with int8 weights for generation on a CPU: it reads a quarter of the bytes per token at almost the same loss.

Each weight is rounded to an integer from -127 to 127 times a scale, one per output of a layer. Each token's input of a
layer is divided by its largest number and rounded to 256 steps (128 on a CPU without VNNI), so that the product is one
of integers. Jacob et al. 2018, arXiv:1712.05877; "vector-wise" in Dettmers et al. 2022, arXiv:2208.07339.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.model import GPTModel
from gpt.ops import fused
from gpt.system.device import shapes_only


class Int8Linear(nn.Module):
    """x · weight^T + bias, (..., in) -> (..., out), as a product of integers; made from a float32 layer.

    Raises FloatingPointError if a weight is not finite.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()  # (out, in)
        if not weight.isfinite().all():
            raise FloatingPointError("the model's weights are not finite: training has diverged")
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (out,)
        integers = (weight / scale[:, None]).round().to(torch.int8)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # quantized tensors are deprecated; prepacking has no substitute
            zero = torch.zeros_like(scale, dtype=torch.long)
            quantized = torch._make_per_channel_quantized_tensor(integers, scale.double(), zero, 0)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.register_buffer("offset", None if linear.bias is None else linear.bias.detach(), persistent=False)
        # without VNNI a CPU adds pairs of products in 16 bits, which overflow unless x has only 7
        has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
        self.reduce_range = not has_vnni

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == self.in_features:  # a single token's scale is that of the call
            product = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        else:
            size = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)  # (..., 1)
            product = torch.ops.quantized.linear_dynamic(x / size, self.packed, self.reduce_range) * size
        return product if self.offset is None else product + self.offset


class Int8GPTModel(GPTModel):
    """A copy of a GPTModel whose linear layers have int8 weights. Embeddings and norms are shared with the model.

    The rounding of a token's numbers depends slightly on the other tokens, whose minimum and maximum set the zero.
    ValueError for a model that is not a plain float32 GPTModel on a CPU, if PyTorch has no int8 product here, and from
    `train`: rounded weights have no gradient.
    """

    def __init__(self, model: GPTModel):
        weight = model.tok_emb.weight
        if type(model) is not GPTModel:
            raise ValueError(f"int8 weights need a GPTModel, not {type(model).__name__}")
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise ValueError(f"int8 weights need a float32 model on device cpu, not {weight.dtype} on {weight.device}")
        if obstacle := int8_obstacle():
            raise ValueError(obstacle)
        with shapes_only():  # modules without memory
            super().__init__(model.config)
        if extra := sorted(model.state_dict().keys() - self.state_dict().keys()):
            raise ValueError(f"int8 weights need a model without an adapter, but this one has {extra[0]}: use float32")
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                self.set_submodule(name, Int8Linear(module))
        own = self.state_dict()
        self.load_state_dict({name: w for name, w in model.state_dict().items() if name in own}, assign=True)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Int8GPTModel":
        """Raise ValueError unless `mode` is False."""
        if mode:
            raise ValueError("int8 weights have no gradient: train the float32 model they were made from")
        return super().train(mode)

    def loss_from_hidden(
        self, hidden: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> Tensor:
        """See `GPTModel.loss_from_hidden`."""
        n_rows = fused.chunk_rows(self.config.vocab_size)
        chunks = zip(hidden.split(n_rows), targets.split(n_rows), strict=True)
        losses = [self.ops.cross_entropy(self.out_head(h), t, "none", label_smoothing) for h, t in chunks]
        losses = torch.cat(losses)  # (N,)
        if reduction == "none":
            return losses
        return losses.sum() / (targets != fused.IGNORE_INDEX).sum() if reduction == "mean" else losses.sum()


def int8_obstacle() -> str | None:
    """Return why this build of PyTorch cannot multiply in int8 on this machine, or None. Tries a small product."""
    layer = nn.utils.skip_init(nn.Linear, 64, 32, bias=False)  # without drawing random numbers
    x = torch.linspace(-1, 1, 3 * 64).view(3, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 32 * 64).view(32, 64))
        exact = F.linear(x, layer.weight)
    try:
        error = ((Int8Linear(layer)(x) - exact).norm() / exact.norm()).item()
        reason = f"the result is off by {error:.1%}"
        if error < 0.02:
            return None
    except (RuntimeError, AttributeError) as failure:
        reason = str(failure).splitlines()[0]
    return f"PyTorch {torch.__version__} has no int8 product on this machine ({reason}): use float32 weights"


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights in memory, including packed ones; a tied weight counts once."""
    unpacked = sum(p.numel() * p.element_size() for p in model.parameters())
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    return unpacked + sum(m.out_features * (m.in_features + 12) for m in layers)  # a scale and a bias for each output
