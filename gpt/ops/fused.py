"""The formulas of `explicit.py` by the fastest kernels: PyTorch's own, or ours where it measures faster.

The names, arguments, shapes and results are those of `explicit.py`, whose docstrings explain them.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt.ops.reference import IGNORE_INDEX, causal_mask

# Logits held at once by linear_cross_entropy, whatever the batch: 2^23 numbers, 32 MB in float32, a large CPU's cache.
MAX_LOGITS = 2**23

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
RECOMPUTE_MIN_NUMEL = 2**20  # numbers in an activation, from which on it is rather made again than kept
ONEDNN_MIN_NUMEL = (
    2**17
)  # numbers in a weight, below which a call of oneDNN, and a gradient through Python, cost what they gain


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """See `explicit.softmax`."""
    return F.softmax(x, dim)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `explicit.linear`. In float32 on a CPU by oneDNN, whose product is faster than MKL's: by a fifth on a batch,
    twice as fast on the single row of decoding. A second derivative, which that lacks, is an error."""
    if weight.numel() < ONEDNN_MIN_NUMEL or not _has_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def _has_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's oneDNN multiplies these matrices, in the precision that is asked for.

    Asked once for each product of a token that is decoded, so it has to be quick.
    """
    return (
        not torch.compiler.is_compiling()  # the compiler makes its own choice
        and ONEDNN
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.is_cpu
        and weight.is_cpu
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """x · weight^T + bias by oneDNN, with AVX-512 its gradient to x too; to the weight it is MKL's, which is no
    slower there (docs/speed-log.md)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad, rows = (t.reshape(-1, t.size(-1)) for t in (grad, x))  # (N, D_out), (N, D_in)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _times(grad, weight).view_as(x) if needs_x else None,
            grad.T @ rows if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _times(grad: Tensor, weight: Tensor) -> Tensor:
    """grad · weight, (N, D_out) · (D_out, D_in)."""
    wide = _has_onednn(grad, weight) and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return _product(grad, weight.T) if wide else grad @ weight


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """See `explicit.layer_norm`."""
    return F.layer_norm(x, scale.shape, scale, shift, eps)


def gelu(x: Tensor) -> Tensor:
    """See `explicit.gelu`."""
    return F.gelu(x, approximate="tanh")


@contextlib.contextmanager
def recompute(layer: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[Tensor]:
    """layer(x), for what is computed in this context. Where it is large, autograd keeps x alone, from which it makes
    layer(x) once more: a layer without randomness and without a matrix product costs less time than its result memory.
    Chen et al. 2016, arXiv:1604.06174.
    """
    y = layer(x)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or y.numel() < RECOMPUTE_MIN_NUMEL:
        yield y
        return
    address = y.data_ptr()

    def pack(kept: Tensor) -> Tensor | torch.Size:
        return kept.shape if kept.data_ptr() == address else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else layer(x).view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield y


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str = "causal", drop_rate: float = 0) -> Tensor:
    """See `explicit.attention`. PyTorch's kernel never writes down the (T, S) weights: Dao et al. 2022, FlashAttention,
    arXiv:2205.14135."""
    is_causal = False
    if isinstance(mask, str):
        n_queries, n_keys = query.size(-2), key.size(-2)
        is_causal = mask == "causal" and n_queries == n_keys
        # PyTorch's own causal mask lets query 0 see key 0 alone; behind a cache the queries are the last ones
        shifted = mask == "causal" and 1 < n_queries < n_keys
        mask = causal_mask(n_queries, n_keys, query.device) if shifted else None
    return F.scaled_dot_product_attention(query, key, value, mask, drop_rate, is_causal)


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """See `explicit.cross_entropy`."""
    return F.cross_entropy(
        logits, targets, ignore_index=IGNORE_INDEX, reduction=reduction, label_smoothing=label_smoothing
    )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """See `explicit.linear_cross_entropy`. Never holds more than CHUNK_LOGITS logits (unless each loss needs its own
    gradient: reduction "none")."""
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad and reduction == "none":
        return cross_entropy(linear(hidden, weight), targets, reduction, label_smoothing)
    if needs_grad:
        total = _LinearCrossEntropySum.apply(hidden, weight, targets, label_smoothing)
    else:
        chunks = _chunks(hidden, weight, targets)
        losses = torch.cat([cross_entropy(logits, t, "none", label_smoothing) for _, t, logits in chunks])
        if reduction == "none":
            return losses
        total = losses.sum()
    return total / (targets != IGNORE_INDEX).sum() if reduction == "mean" else total


def _chunks(hidden: Tensor, weight: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The rows of a chunk, its targets (C,) and its logits (C, V), in the weight's precision even under autocast."""
    n_rows = chunk_rows(len(weight))
    for start in range(0, len(targets), n_rows):
        rows = slice(start, start + n_rows)
        yield rows, targets[rows], linear(hidden[rows], weight).to(weight.dtype)


def chunk_rows(vocab_size: int) -> int:
    """How many rows of logits are held at once: whole blocks of 64, which kernels work on, where it can be."""
    n_rows = max(1, MAX_LOGITS // vocab_size)
    return n_rows - n_rows % 64 if n_rows > 64 else n_rows


def _loss_and_gradient(logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of logits (C, V), and its gradient with respect to them, (C, V)."""
    counted = (targets != IGNORE_INDEX)[:, None].to(logits.dtype)  # (C, 1)
    targets = targets.clamp(min=0)[:, None]  # (C, 1)
    log_probabilities = torch.log_softmax(logits, dim=-1)  # (C, V)
    label = torch.full_like(counted, 1 - label_smoothing)  # (C, 1), its probability but for the share all have
    loss = -(log_probabilities.gather(1, targets) * label * counted).sum()
    if label_smoothing:
        loss = loss - label_smoothing * (log_probabilities.mean(dim=-1, keepdim=True) * counted).sum()
    gradient = log_probabilities.exp_()  # in place: memory is what large vocabularies are short of
    if label_smoothing:
        gradient -= label_smoothing / logits.size(-1)
    return loss, gradient.scatter_add_(1, targets, -label).mul_(counted)


class _LinearCrossEntropySum(torch.autograd.Function):
    """The summed loss chunk by chunk, its gradient made in the forward pass while a chunk's logits are at hand.

    d(-log p_target) / d logits = softmax(logits) - onehot(target), or less the smoothed label, from which the gradients
    with respect to `hidden` and `weight` follow by one matrix product each; backward has only to scale them. The logits
    of the whole batch, and their gradient, are never written down: for GPT-2's vocabulary they are the largest tensors
    of a step.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        grad_hidden = torch.empty_like(hidden)  # (N, D)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # (V, D); a frozen head has none
        total = torch.zeros((), device=hidden.device, dtype=weight.dtype)
        for rows, target, logits in _chunks(hidden, weight, targets):
            loss, grad_logits = _loss_and_gradient(logits, target, label_smoothing)
            total += loss
            del logits
            grad_hidden[rows] = _times(grad_logits, weight)
            if grad_weight is None:
                pass
            elif torch.is_autocast_enabled(weight.device.type):
                grad_weight += grad_logits.T @ hidden[rows]  # in the lower precision
            else:
                grad_weight.addmm_(grad_logits.T, hidden[rows])
            del grad_logits  # before the next chunk's logits are made
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        # other devices would have to be waited for, and a branch on data would cut a compiled graph in two
        if grad_output.device.type == "cpu" and not torch.compiler.is_compiling() and grad_output == 1:
            return grad_hidden, grad_weight, None, None
        scaled = (None if gradient is None else gradient * grad_output for gradient in (grad_hidden, grad_weight))
        return *scaled, None, None
