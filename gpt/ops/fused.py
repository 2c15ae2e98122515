"""The formulas of `explicit.py` by the fastest kernels: PyTorch's own, or ours where it measures faster.

The names, arguments, shapes and results are those of `explicit.py`, whose docstrings explain them.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.ops.explicit import IGNORE, causal_mask

# Logits held at once by linear_cross_entropy, whatever the batch: 2^24 numbers, 64 MB in float32.
CHUNK_LOGITS = 2**24


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """See `explicit.softmax`."""
    return F.softmax(x, dim)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """See `explicit.layer_norm`."""
    return F.layer_norm(x, scale.shape, scale, shift, eps)


def gelu(x: Tensor) -> Tensor:
    """See `explicit.gelu`."""
    return F.gelu(x, approximate="tanh")


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


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """See `explicit.cross_entropy`."""
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction=reduction)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """See `explicit.linear_cross_entropy`. Never holds more than CHUNK_LOGITS logits (unless each loss needs its own
    gradient: reduction "none")."""
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad and reduction == "none":
        return cross_entropy(F.linear(hidden, weight), targets, reduction)
    if needs_grad:
        total = _LinearCrossEntropySum.apply(hidden, weight, targets)
    else:
        losses = torch.cat([cross_entropy(logits, t, "none") for _, t, logits in _chunks(hidden, weight, targets)])
        if reduction == "none":
            return losses
        total = losses.sum()
    return total / (targets != IGNORE).sum() if reduction == "mean" else total


def _chunks(hidden: Tensor, weight: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The rows of a chunk, its targets (C,) and its logits (C, V), in the weight's precision even under autocast."""
    n_rows = max(1, CHUNK_LOGITS // len(weight))
    for start in range(0, len(targets), n_rows):
        rows = slice(start, start + n_rows)
        yield rows, targets[rows], F.linear(hidden[rows], weight).to(weight.dtype)


class _LinearCrossEntropySum(torch.autograd.Function):
    """The summed loss chunk by chunk, its gradient made in the forward pass while a chunk's logits are at hand.

    d(-log p_target) / d logits = softmax(logits) - onehot(target), from which the gradients with respect to `hidden`
    and `weight` follow by one matrix product each; backward has only to scale them. The logits of the whole batch,
    and their gradient, are never written down: for GPT-2's vocabulary they are the largest tensors of a step.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        grad_hidden = torch.empty_like(hidden)  # (N, D)
        grad_weight = torch.zeros_like(weight)  # (V, D)
        total = torch.zeros((), device=hidden.device, dtype=weight.dtype)
        for rows, target, logits in _chunks(hidden, weight, targets):
            total += cross_entropy(logits, target, "sum")
            counted = (target != IGNORE)[:, None].to(logits.dtype)  # (C, 1)
            grad_logits = torch.softmax(logits, dim=-1)  # (C, V)
            grad_logits.scatter_add_(1, target.clamp(min=0)[:, None], -torch.ones_like(counted))
            grad_logits *= counted
            grad_hidden[rows] = (grad_logits @ weight).to(hidden.dtype)
            grad_weight += grad_logits.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_output, grad_weight * grad_output, None
