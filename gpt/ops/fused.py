"""The formulas of `reference.py` on the fastest kernels: PyTorch's own, or ours where ours measure faster.

Names, arguments, shapes and results are those of `reference.py`, whose docstrings explain them.

Notebooks: 04_attention, 06_loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.ops.reference import IGNORE_INDEX, attention_mask
from gpt.system import kernels
from gpt.system.chunked_loss import LinearCrossEntropySum, logit_chunks, sum_dtype


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """See `reference.softmax`."""
    return F.softmax(x, dim)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """See `reference.layer_norm`."""
    return F.layer_norm(x, scale.shape, scale, shift, eps)


def gelu(x: Tensor, exact: bool = False) -> Tensor:
    """See `reference.gelu`."""
    return F.gelu(x, approximate="none" if exact else "tanh")


def rms_norm(x: Tensor, scale: Tensor, eps: float = 1e-5) -> Tensor:
    """See `reference.rms_norm`. On a CPU PyTorch's own is a longer chain of operations, and so is its gradient."""
    x = x.to(scale.dtype)  # under autocast a head's queries have a lower precision
    own = x.is_cpu and x.dtype is not torch.bfloat16 and not torch.compiler.is_compiling()
    return kernels.rms_norm(x, scale, eps) if own else F.rms_norm(x, scale.shape, scale, eps)


def relu2(x: Tensor) -> Tensor:
    """See `reference.relu2`."""
    return F.relu(x).square()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    return F.silu(gate) * up


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """See `reference.rotate`. Rolling by K/2 swaps the halves."""
    return torch.addcmul(x * cosine.to(x.dtype), x.roll(x.size(-1) // 2, dims=-1), sine.to(x.dtype))


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str = "causal", drop_rate: float = 0, window: int = 0
) -> Tensor:
    """See `reference.attention`. PyTorch's kernel never stores the (T, S) weights: Dao et al. 2022, FlashAttention,
    arXiv:2205.14135. With dropout on a CPU it stores them, and draws the numbers that nn.Dropout draws."""
    n_queries, n_keys, n_groups = query.size(-2), key.size(-2), key.size(1)
    if window and n_keys > window:
        if n_queries == 1:  # the last position, which sees the last `window` keys
            key, value = key[..., -window:, :], value[..., -window:, :]
            mask = mask if isinstance(mask, str) else mask[..., -window:]
        else:
            mask = attention_mask(mask, n_queries, n_keys, window, query.device)
    is_causal = False
    if isinstance(mask, str):
        if mask == "full" or n_queries == 1:
            mask = None
        elif n_queries == n_keys:  # PyTorch would align fewer queries with the first keys
            mask, is_causal = None, True
        else:
            mask = attention_mask(mask, n_queries, n_keys, device=query.device)
    if n_queries == 1 and mask is None:  # a group's queries as the rows of one: no key is copied
        rows = query.reshape(len(query), n_groups, -1, query.size(-1))  # (B, G, H/G, K)
        if len(query) >= 32 and query.is_cpu and not drop_rate:  # two products are faster than PyTorch's kernel
            return ((rows @ key.mT * query.size(-1) ** -0.5).softmax(-1) @ value).reshape(query.shape)
        return F.scaled_dot_product_attention(rows, key, value, None, drop_rate).reshape(query.shape)
    is_grouped = n_groups != query.size(1)
    return F.scaled_dot_product_attention(query, key, value, mask, drop_rate, is_causal, enable_gqa=is_grouped)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `reference.linear`. In float32 on a CPU by the library that is fastest here; see `kernels.linear`. One row in
    compiled code: see `kernels.row_product`."""
    if torch.compiler.is_compiling() and x.is_cpu and x.numel() == x.size(-1):
        return kernels.row_product(x, weight, bias)
    return kernels.linear(x, weight, bias) if kernels.can_choose(x, weight) else F.linear(x, weight, bias)


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """See `reference.cross_entropy`."""
    return F.cross_entropy(
        logits, targets, ignore_index=IGNORE_INDEX, reduction=reduction, label_smoothing=label_smoothing
    )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """See `reference.linear_cross_entropy`. Holds a chunk of the logits, or all where each loss needs its own
    gradient (reduction "none")."""
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad and reduction == "none":
        return cross_entropy(linear(hidden, weight).to(sum_dtype(weight)), targets, reduction, label_smoothing)
    if needs_grad:
        total = LinearCrossEntropySum.apply(hidden, weight, targets, label_smoothing, IGNORE_INDEX)
    else:
        losses = [
            cross_entropy(linear(h, weight).to(sum_dtype(weight)), t, "none", label_smoothing)
            for h, t in logit_chunks(len(weight), hidden, targets)
        ]
        losses = torch.cat(losses)  # (N,)
        if reduction == "none":
            return losses
        total = losses.sum()
    return total / (targets != IGNORE_INDEX).sum() if reduction == "mean" else total
