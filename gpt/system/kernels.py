"""Which library multiplies float32 matrices on this CPU: measured where the program runs, then remembered.

PyTorch's CPU build holds two, MKL (or OpenBLAS) and oneDNN. Which one is faster depends on the CPU and on the shape, by
up to a factor of two in either direction (docs/speed-log.md). The first product of each shape is timed with each of
them, some milliseconds in all, and the answer is kept in a file per machine, so that all processes agree and a run
rounds the same way today and tomorrow. A checkpoint stores the answers its run has used, and `--resume` restores them.

GPT_KERNELS=pytorch in the environment skips all this and takes PyTorch's own products, GPT_KERNELS=onednn oneDNN's.

`rms_norm` is a kernel of our own, made of PyTorch's.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import filelock
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt.system.device import cache_path
from gpt.system.files import write_text

# Numbers in a weight. Below it, calling oneDNN and computing gradients in Python cost as much as they save.
MIN_NUMEL = 2**17
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Another library's product must take less than this share of the time of PyTorch's own: the choice is no coin toss.
MARGIN = 0.92
ROUNDS = 5
COLD_BYTES = 2**26  # of copies of a weight: more than a cache holds, since decoding reads weights from memory

Product = Callable[..., Tensor]


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weight^T + bias by oneDNN, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def matrix_vector(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weight^T + bias for one row, (..., 1, D_in) -> (..., 1, D_out), as a matrix times a vector."""
    row = x.reshape(-1)
    result = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
    return result.view(*x.shape[:-1], len(weight))


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weight^T + bias for one row, (..., D_in) -> (..., D_out), in compiled code.

    There it is one loop, which reads a weight of any type at the memory's speed: faster than the libraries' products of
    one row (docs/speed-log.md). Elsewhere it would store all D_out · D_in products.
    """
    product = (weight.to(x.dtype) * x.flatten()).sum(-1)  # (D_out,)
    return (product if bias is None else product + bias).view(*x.shape[:-1], -1)


# What computes x · weight^T + bias for one row and for many, and a gradient (N, D_out) · weight; PyTorch's own first.
CANDIDATES: dict[str, dict[str, Product]] = {
    "row": {"pytorch": F.linear, "onednn": onednn, "mv": matrix_vector},
    "rows": {"pytorch": F.linear, "onednn": onednn},
    "grad": {"pytorch": torch.matmul, "onednn": lambda grad, weight: onednn(grad, weight.T)},
}

choices: dict[str, str] = {}  # product and shape -> candidate, as far as this process has used them
_products: dict[tuple, Product] = {}  # the same by what a call knows, for speed


def can_choose(x: Tensor, weight: Tensor) -> bool:
    """Return whether there is a choice: a large float32 product on a CPU, outside autocast."""
    return (
        weight.numel() >= MIN_NUMEL
        and HAS_ONEDNN
        and x.is_cpu
        and x.dtype is weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def choose(kind: str, x: Tensor, weight: Tensor) -> Product:
    """Return the fastest product of a kind in CANDIDATES for x (..., D) and a weight. "rows" of one is "row".

    Numbers of rows share a choice up to the next power of 4, all above 1,024 the last one. Compiled code chooses when
    it runs: by itself it would take PyTorch's.
    """
    if torch.compiler.is_compiling():
        return partial(torch.ops.gpt.product, kind)
    n_rows = x.numel() // x.size(-1)
    n_rows = min(1024, 4 ** (((n_rows - 1).bit_length() + 1) // 2))  # the next power of 4
    key = (kind, n_rows, weight.shape, weight.is_contiguous())
    if key not in _products:
        kind = "row" if kind == "rows" and n_rows == 1 else kind
        name = f"{kind} {n_rows}x{weight.size(0)}x{weight.size(1)}" + " transposed" * (not key[-1])
        _products[key] = CANDIDATES[kind][_choice(name, kind, n_rows, weight)]
    return _products[key]


@torch.library.custom_op("gpt::product", mutates_args=())
def _product(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the chosen product of a kind, as an operation that torch.compile does not look into."""
    product = choose(kind, x, weight)
    return product(x, weight) if bias is None else product(x, weight, bias)


@_product.register_fake
def _(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(1 if kind == "grad" else 0))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weight^T + bias by the fastest product, where `can_choose`. Its gradient is chosen in the same way.

    Where that is not PyTorch's own, it has no second derivative.
    """
    product = choose("rows", x, weight)
    if not torch.is_grad_enabled():
        return product(x, weight, bias)
    grad_product = choose("grad", x, weight)
    if product is F.linear and grad_product is torch.matmul:
        return F.linear(x, weight, bias)
    return _ChosenLinear.apply(x, weight, bias, product, grad_product)


class _ChosenLinear(torch.autograd.Function):
    """`linear` by two given products, with a gradient.

    The weight's gradient is PyTorch's: no other has been faster (docs/speed-log.md).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, product: Product, grad_product: Product) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.grad_product = grad_product
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad, rows = grad.reshape(-1, grad.size(-1)), x.reshape(-1, x.size(-1))  # (N, D_out), (N, D_in)
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        return (
            ctx.grad_product(grad, weight).view_as(x) if needs_x else None,
            grad.T @ rows if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            None,
            None,
        )


def restore(saved: dict[str, str]) -> None:
    """Take the choices that a checkpoint stored, in this process."""
    choices.update(saved)
    _products.clear()


def _choice(name: str, kind: str, n_rows: int, weight: Tensor) -> str:
    """Return the choice by name: this process's, the file's, or a new measurement's."""
    forced = os.environ.get("GPT_KERNELS", "auto")
    if forced in CANDIDATES[kind]:
        choices[name] = forced
    if name not in choices:
        with contextlib.suppress(OSError):  # a folder that cannot be written: measured anew by each process
            path = cache_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{path}.lock"):  # the second process waits for the first one's answer
                known = _read(path)
                if known.get(name) in CANDIDATES[kind]:
                    choices[name] = known[name]
                else:
                    choices[name] = _fastest(kind, n_rows, weight)
                    text = json.dumps({**known, name: choices[name]}, indent=1, sort_keys=True)
                    write_text(path, text + "\n")
        if name not in choices:
            choices[name] = _fastest(kind, n_rows, weight)
    return choices[name]


def _read(path: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):  # missing or damaged: measure again
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


@torch.no_grad()
def _fastest(kind: str, n_rows: int, weight: Tensor) -> str:
    """Time the candidates in turn on numbers of this shape; return the name of the fastest."""
    width = weight.size(0 if kind == "grad" else 1)
    x = torch.linspace(-1, 1, n_rows * width).view(n_rows, width)
    n_copies = COLD_BYTES // (4 * weight.numel()) if kind == "row" else 0
    weights = [weight, *(weight.clone() for _ in range(n_copies))]
    times: dict[str, float] = {}
    for n in range(ROUNDS + 1):
        for name, product in CANDIDATES[kind].items():
            start = time.perf_counter()
            for each in weights:
                product(x, each)
            seconds = time.perf_counter() - start
            if n:  # the first is a warm-up
                times[name] = min(seconds, times.get(name, seconds))
    best = min(times, key=times.get)
    return best if times[best] < MARGIN * times["pytorch"] else "pytorch"


def cache_file() -> Path:
    """Return the path of this machine's choices, in the user's cache folder."""
    return cache_path("kernels").with_suffix(".json")


# --- RMSNorm ----------------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return x (..., D) divided by its root mean square and multiplied by the scale (D,), in few passes over memory."""
    return _RMSNorm.apply(x, scale, eps) if torch.is_grad_enabled() else (x * _rms_factor(x, eps)).mul_(scale)


def _rms_factor(x: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(mean(x^2) + eps) for each vector of x, (..., 1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """RMSNorm, whose gradient is that of LayerNorm with a mean of 0, but for a mean that LayerNorm's subtracts."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        factor = _rms_factor(x, eps)
        ctx.save_for_backward(x, scale, factor)
        return (x * factor).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, scale, factor = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_scale, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, scale.shape, torch.zeros_like(factor), factor, scale, None, [True, True, False]
        )
        subtracted = (grad @ scale).unsqueeze(-1).div_(len(scale))  # (..., 1)
        return grad_x.addcmul_(subtracted, factor), grad_scale, None
