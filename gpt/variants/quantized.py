"""A model with weights of fewer bits for generation on a CPU: each token reads every weight, so fewer bytes take less.

bfloat16 keeps the first 16 of a float32's bits: 8 of the exponent, 7 of the mantissa.

int8 rounds each weight to an integer from -127 to 127 times a scale, one per output of a layer. Each token's input of a
layer is divided by its largest number and rounded to 256 steps (128 on a CPU without VNNI), so that the product is one
of integers. Jacob et al. 2018, arXiv:1712.05877; "vector-wise" in Dettmers et al. 2022, arXiv:2208.07339. Compiled code
(gpt/variants/compiled.py) multiplies the integers by the input as it is, and rounds nothing more.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.model import GPTModel
from gpt.ops import fused
from gpt.system import kernels
from gpt.system.chunked_loss import logit_chunks
from gpt.system.device import has_fast_bfloat16, shapes_only


class QuantizedLinear(nn.Module):
    """x · weight^T + bias, (..., in) -> (..., out), for float32 numbers x; made from a float32 layer.

    Raises FloatingPointError if a weight is not finite.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if not linear.weight.isfinite().all():
            raise FloatingPointError("the model's weights are not finite: training has diverged")
        self.register_buffer("offset", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def product(self, x: Tensor) -> Tensor:
        """Return x · weight^T."""
        raise NotImplementedError

    def row_product(self, x: Tensor) -> Tensor:
        """Return x · weight^T for one row, in compiled code."""
        raise NotImplementedError

    def prepare_compiled(self) -> None:
        """Make what `row_product` needs."""

    def forget_compiled(self) -> None:
        """Free it."""

    def forward(self, x: Tensor) -> Tensor:
        is_row = torch.compiler.is_compiling() and x.numel() == self.in_features
        product = self.row_product(x) if is_row else self.product(x)
        return product if self.offset is None else product + self.offset


class BFloat16Linear(QuantizedLinear):
    """A layer with a bfloat16 weight.

    x is rounded too where the CPU multiplies bfloat16 in hardware, and elsewhere for a single row. Compiled code never
    rounds it.
    """

    bytes_per_weight, bytes_per_output = 2, 4  # the bias

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.register_buffer("weight", linear.weight.detach().bfloat16(), persistent=False)
        self.in_hardware = has_fast_bfloat16()

    def product(self, x: Tensor) -> Tensor:
        """See `QuantizedLinear`. A single row waits for memory, whether its product is emulated or not."""
        if self.in_hardware or x.numel() == self.in_features:
            return F.linear(x.bfloat16(), self.weight).float()
        return F.linear(x, self.weight.float())

    def row_product(self, x: Tensor) -> Tensor:
        """See `QuantizedLinear`."""
        return kernels.row_product(x, self.weight)


class Int8Linear(QuantizedLinear):
    """A layer with int8 weights, by PyTorch's product of integers."""

    bytes_per_weight, bytes_per_output = 1, 12  # a scale, a bias, and what PyTorch keeps

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        weight = linear.weight.detach()  # (out, in)
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (out,)
        integers = (weight / scale[:, None]).round().to(torch.int8)
        with warnings.catch_warnings():
            # quantized tensors are deprecated; prepacking has no substitute
            warnings.simplefilter("ignore", UserWarning)
            zero = torch.zeros_like(scale, dtype=torch.long)
            quantized = torch._make_per_channel_quantized_tensor(integers, scale.double(), zero, 0)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        # without VNNI a CPU adds pairs of products in 16 bits, which overflow unless x has only 7
        has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
        self.reduce_range = not has_vnni

    def product(self, x: Tensor) -> Tensor:
        """See `QuantizedLinear`."""
        if x.numel() == self.in_features:  # a single token's scale is that of the call
            return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        size = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)  # (..., 1)
        return torch.ops.quantized.linear_dynamic(x / size, self.packed, self.reduce_range) * size

    def prepare_compiled(self) -> None:
        """Keep the integers and their scales in addition to the packed ones, which compiled code cannot read."""
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        self.register_buffer("integers", weight.int_repr(), persistent=False)  # (out, in)
        self.register_buffer("scale", weight.q_per_channel_scales().float(), persistent=False)  # (out,)

    def forget_compiled(self) -> None:
        """See `QuantizedLinear`."""
        self.integers = self.scale = None

    def row_product(self, x: Tensor) -> Tensor:
        """See `QuantizedLinear`."""
        return kernels.row_product(x, self.integers) * self.scale


LAYERS = {"bfloat16": BFloat16Linear, "int8": Int8Linear}


class QuantizedGPTModel(GPTModel):
    """A copy of a GPTModel whose linear layers have weights of LAYERS. Embeddings and norms are shared with the model.

    In int8, the rounding of a token's numbers depends slightly on the other tokens, whose minimum and maximum set the
    zero. ValueError for a model that is not a plain float32 GPTModel on a CPU, if PyTorch has no int8 product here, and
    from `train`: rounded weights have no gradient.
    """

    def __init__(self, model: GPTModel, weights: str):
        weight = model.tok_emb.weight
        if type(model) is not GPTModel:
            raise ValueError(f"{weights} weights need a GPTModel, not {type(model).__name__}")
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise ValueError(
                f"{weights} weights need a float32 model on device cpu, not {weight.dtype} on {weight.device}"
            )
        if weights == "int8" and (obstacle := int8_obstacle()):
            raise ValueError(obstacle)
        with shapes_only():  # modules without memory
            super().__init__(model.config)
        if extra := sorted(model.state_dict().keys() - self.state_dict().keys()):
            raise ValueError(
                f"{weights} weights need a model without an adapter, but this one has {extra[0]}: use float32"
            )
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                self.set_submodule(name, LAYERS[weights](module))
        own = self.state_dict()
        self.load_state_dict({name: w for name, w in model.state_dict().items() if name in own}, assign=True)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "QuantizedGPTModel":
        """Raise ValueError unless `mode` is False."""
        if mode:
            raise ValueError("rounded weights have no gradient: train the float32 model they were made from")
        return super().train(mode)

    def loss_from_hidden(
        self, hidden: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> Tensor:
        """See `GPTModel.loss_from_hidden`."""
        chunks = logit_chunks(self.config.vocab_size, hidden, targets)
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
    """Return the bytes of a model's weights in memory, including rounded ones; a tied weight counts once."""
    unpacked = sum(p.numel() * p.element_size() for p in model.parameters())
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    return unpacked + sum(m.out_features * (m.in_features * m.bytes_per_weight + m.bytes_per_output) for m in layers)
