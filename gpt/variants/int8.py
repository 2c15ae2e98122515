"""A model with int8 weights, for decoding on a CPU: a quarter of the bytes to read for each token, and nearly the loss.

A weight is rounded to a whole number, -127 to 127, times a scale that each output of a layer has for itself; what the
layer reads is rounded to 256 steps between its least and greatest number, afresh in each call, so that the product is
one of whole numbers. Jacob et al. 2018, arXiv:1712.05877; as "vector-wise" Dettmers et al. 2022, arXiv:2208.07339.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.model import GPTModel
from gpt.ops import fused


class Int8Linear(nn.Module):
    """x · weight^T + bias, (..., I) -> (..., O), by a product of whole numbers; made from a float32 layer.

    FloatingPointError where a weight is not finite.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()  # (O, I)
        if not weight.isfinite().all():
            raise FloatingPointError("the model's weights are not finite: they have diverged")
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (O,)
        whole = (weight / scale[:, None]).round().to(torch.int8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that quantized tensors will go one day: packing has no other
            zero = torch.zeros_like(scale, dtype=torch.long)
            quantized = torch._make_per_channel_quantized_tensor(whole, scale.double(), zero, 0)
        bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.quantized.linear_prepack(quantized, bias)
        # before VNNI a CPU adds two products in 16 bits, which hold them only where x has 7
        has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
        self.reduce_range = not has_vnni

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)


class Int8GPTModel(GPTModel):
    """A copy of a GPTModel whose linear layers have int8 weights; embeddings and norms it shares with the model.

    The scale of what a layer reads is one for all rows of a batch, so that a row's logits move a little with what
    stands beside it. ValueError for a backbone, device, precision or build of PyTorch that has no int8 product, and
    from `train`: rounded weights have no gradient.
    """

    def __init__(self, model: GPTModel):
        weight = model.tok_emb.weight
        if type(model) is not GPTModel:
            raise ValueError(f"int8 weights are made from a GPTModel, not from {type(model).__name__}")
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise ValueError(f"int8 weights are made of float32 on device cpu, not {weight.dtype} on {weight.device}")
        if obstacle := int8_obstacle():
            raise ValueError(obstacle)
        with torch.device("meta"):  # modules without memory
            super().__init__(model.config)
        if added := sorted(model.state_dict().keys() - self.state_dict().keys()):
            raise ValueError(
                f"int8 weights are made from a plain GPTModel, and this one has {added[0]} besides: use weights float32"
            )
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                self.set_submodule(name, Int8Linear(module))
        own = self.state_dict()
        self.load_state_dict({name: w for name, w in model.state_dict().items() if name in own}, assign=True)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Int8GPTModel":
        """ValueError unless `mode` is False: see the class."""
        if mode:
            raise ValueError("int8 weights are rounded and have no gradient: train the model that they were made from")
        return super().train(mode)

    def losses(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
        """See `GPTModel.losses`."""
        n_rows = fused.chunk_rows(self.config.vocab_size)
        chunks = zip(hidden.split(n_rows), targets.split(n_rows), strict=True)
        losses = (self.ops.cross_entropy(self.out_head(h), t, "none", label_smoothing) for h, t in chunks)
        losses = torch.cat(list(losses))  # (N,)
        if reduction == "none":
            return losses
        return losses.sum() / (targets != fused.IGNORE_INDEX).sum() if reduction == "mean" else losses.sum()


def int8_obstacle() -> str | None:
    """Why this build of PyTorch has no int8 product on this machine, in words, or None. It is tried out."""
    layer = nn.utils.skip_init(nn.Linear, 64, 32, bias=False)
    x = torch.linspace(-1, 1, 3 * 64).view(3, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 32 * 64).view(32, 64))
        exact = F.linear(x, layer.weight)
    try:
        off = ((Int8Linear(layer)(x) - exact).norm() / exact.norm()).item()
        reason = "" if off < 0.02 else f"its result is off by {off:.1%}"
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
    engines = ", ".join(torch.backends.quantized.supported_engines) or "none"
    if not reason:
        return None
    return (
        f"this build of PyTorch ({torch.__version__}, engines for int8: {engines}) has no int8 product on this machine "
        f"({reason}): use weights float32"
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights in memory, packed ones included; a tied weight counts once."""
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    return held + sum(m.out_features * (m.in_features + 12) for m in layers)  # with a scale and a bias for each output
