"""The formulas of `reference.py` on the fastest kernels: PyTorch's own, or ours where ours measure faster.

Names, arguments, shapes and results are those of `reference.py`, whose docstrings explain them.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt.ops.reference import IGNORE_INDEX, attention_mask
from gpt.system import kernels

# Logits that linear_cross_entropy holds at once: 2^23 numbers, 32 MB in float32, the size of a large CPU's cache.
MAX_LOGITS = 2**23


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
    own = x.is_cpu and not torch.compiler.is_compiling()
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
    """See `reference.linear_cross_entropy`. Holds `chunk_rows` rows of logits, or all where each loss needs its own
    gradient (reduction "none")."""
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad and reduction == "none":
        return cross_entropy(linear(hidden, weight), targets, reduction, label_smoothing)
    if needs_grad:
        total = _LinearCrossEntropySum.apply(hidden, weight, targets, label_smoothing)
    else:
        losses = [
            cross_entropy(linear(h, weight).to(_full(weight)), t, "none", label_smoothing)
            for h, t in logit_chunks(len(weight), hidden, targets)
        ]
        losses = torch.cat(losses)  # (N,)
        if reduction == "none":
            return losses
        total = losses.sum()
    return total / (targets != IGNORE_INDEX).sum() if reduction == "mean" else total


def chunk_rows(n_rows: int, vocab_size: int, device: str = "cpu", half: bool = False) -> int:
    """Return how many of n_rows rows of logits to hold at once on a kind of device.

    On a CPU MAX_LOGITS numbers at most, in blocks of 64 rows if more than one; four times as many in a training step in
    half precision, where adding each chunk's part of the head's gradient takes a copy of it in float32. A GPU reads and
    writes that gradient for each chunk, so it gets few: each as large as an activation 4,096 to 8,191 wide. Their
    number does not depend on n_rows, so that code compiled for one length serves others, on a CPU too.
    """
    if device != "cpu" or torch.compiler.is_compiling():
        return max(1, -(-n_rows // max(1, vocab_size // 4096)))
    rows = max(1, MAX_LOGITS * (4 if half else 1) // vocab_size)
    return rows - rows % 64 if rows > 64 else rows


def logit_chunks(vocab_size: int, *tensors: Tensor, half: bool = False) -> Iterable[tuple[Tensor, ...]]:
    """Split each tensor (N, ...) into chunks of `chunk_rows` rows, and return those chunks side by side."""
    rows = chunk_rows(len(tensors[0]), vocab_size, tensors[0].device.type, half)
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _full(weight: Tensor) -> torch.dtype:
    """Return the precision of sums and losses: at least float32, whatever the weights are."""
    return torch.promote_types(weight.dtype, torch.float32)


class _LinearCrossEntropySum(torch.autograd.Function):
    """The summed loss, chunk by chunk. The forward pass computes each chunk's gradient too, while its logits exist.

    One matrix product each turns the gradient of the logits into those of `hidden` and `weight`, which backward only
    scales. The logits of the whole batch never exist; with GPT-2's vocabulary they would be a step's largest tensor.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        device, full = weight.device.type, _full(weight)
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        half = low != full  # products in a lower precision: each factor is converted once
        grad_hidden = torch.empty_like(hidden)  # (N, D)
        # (V, D); none for a frozen head
        grad_weight = torch.zeros_like(weight, dtype=full) if ctx.needs_input_grad[1] else None
        w, total = weight.to(low), torch.zeros((), device=hidden.device, dtype=full)
        with torch.autocast(device, enabled=False):
            for h, t, grad_h in logit_chunks(len(weight), hidden, targets, grad_hidden, half=half):
                h, counted = h.to(low), (t != IGNORE_INDEX)[:, None]  # (C, D), (C, 1)
                loss, grad_logits = _loss_and_gradient(linear(h, w), t, label_smoothing, full)
                total += loss
                grad_logits = grad_logits.to(low)
                can_choose = kernels.can_choose(grad_logits, w)
                product = kernels.choose("grad", grad_logits, w) if can_choose else torch.matmul
                grad_h.copy_(product(grad_logits, w)).mul_(counted)
                h = h * counted  # an ignored row adds nothing: cheaper than setting its V gradients to 0
                if grad_weight is not None and half:
                    grad_weight += grad_logits.T @ h
                elif grad_weight is not None:
                    grad_weight.addmm_(grad_logits.T, h)
                del grad_logits  # before the next chunk's logits are computed
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        gradients = ctx.saved_tensors
        # skip the scaling by 1 where reading the number is free: not on a GPU, and not in a compiled graph
        if grad_output.device.type != "cpu" or torch.compiler.is_compiling() or grad_output != 1:
            gradients = [None if gradient is None else gradient * grad_output for gradient in gradients]
        return *gradients, None, None


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, label_smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of logits (C, V) and its gradient with respect to them, (C, V), in `dtype`.

    d(-log p_target) / d logits = softmax(logits) - onehot(target), or minus the smoothed label. Rows of ignored targets
    add nothing to the sum; their gradients have no meaning.
    """
    counted = (targets != IGNORE_INDEX)[:, None].to(dtype)  # (C, 1)
    targets = targets.clamp(min=0)[:, None]  # (C, 1)
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=dtype)  # (C, V)
    loss = -(log_probabilities.gather(1, targets) * (1 - label_smoothing) * counted).sum()
    if label_smoothing:
        loss -= label_smoothing * (log_probabilities.mean(dim=-1, keepdim=True) * counted).sum()
    gradient = log_probabilities.exp_()  # in place: this is the largest tensor
    if label_smoothing:
        gradient -= label_smoothing / logits.size(-1)
    return loss, gradient.scatter_add_(1, targets, torch.full_like(counted, label_smoothing - 1))
