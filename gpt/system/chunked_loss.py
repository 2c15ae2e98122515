"""The cross-entropy of a large vocabulary, summed chunk by chunk: the logits of a whole batch never exist.

gpt/ops/fused.py uses it; `gpt.ops.reference.linear_cross_entropy` is the formula.

Shape letters: N rows (one per token), C rows of a chunk, D emb_dim, V vocab_size.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt.system import kernels

MAX_LOGITS = 2**23  # held at once on a CPU: 32 MB in float32, the size of a large CPU's cache


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


def sum_dtype(weight: Tensor) -> torch.dtype:
    """Return the precision of sums and losses: at least float32, whatever the weights are."""
    return torch.promote_types(weight.dtype, torch.float32)


class LinearCrossEntropySum(torch.autograd.Function):
    """The summed loss, chunk by chunk. The forward pass computes each chunk's gradient too, while its logits exist.

    One matrix product each turns the gradient of the logits into those of `hidden` and `weight`, which backward only
    scales. The logits of the whole batch never exist; with GPT-2's vocabulary they would be a step's largest tensor.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float, ignore_index: int
    ) -> Tensor:
        device, full = weight.device.type, sum_dtype(weight)
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        half = low != full  # products in a lower precision: each factor is converted once
        grad_hidden = torch.empty_like(hidden)  # (N, D)
        # (V, D); none for a frozen head
        grad_weight = torch.zeros_like(weight, dtype=full) if ctx.needs_input_grad[1] else None
        w, total = weight.to(low), torch.zeros((), device=hidden.device, dtype=full)
        with torch.autocast(device, enabled=False):
            for h, t, grad_h in logit_chunks(len(weight), hidden, targets, grad_hidden, half=half):
                h, counted = h.to(low), (t != ignore_index)[:, None]  # (C, D), (C, 1)
                can_choose = kernels.can_choose(h, w)
                logits = kernels.linear(h, w) if can_choose else F.linear(h, w)
                loss, grad_logits = _loss_and_gradient(logits, t, counted, label_smoothing, full)
                total += loss
                grad_logits = grad_logits.to(low)
                product = kernels.choose("grad", grad_logits, w) if can_choose else torch.matmul
                grad_h.copy_(product(grad_logits, w)).mul_(counted)
                h = h * counted  # an ignored row adds nothing: cheaper than setting its V gradients to 0
                if grad_weight is not None and half:
                    grad_weight += grad_logits.T @ h
                elif grad_weight is not None:
                    grad_weight.addmm_(grad_logits.T, h)
                del logits, grad_logits  # before the next chunk's logits are computed
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        gradients = ctx.saved_tensors
        # skip the scaling by 1 where reading the number is free: not on a GPU, and not in a compiled graph
        if grad_output.device.type != "cpu" or torch.compiler.is_compiling() or grad_output != 1:
            gradients = [None if gradient is None else gradient * grad_output for gradient in gradients]
        return *gradients, None, None, None


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, counted: Tensor, label_smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of logits (C, V) and its gradient with respect to them, (C, V), in `dtype`.

    d(-log p_target) / d logits = softmax(logits) - onehot(target), or minus the smoothed label. Rows that are not
    `counted`, (C, 1), add nothing to the sum; their gradients have no meaning.
    """
    counted, targets = counted.to(dtype), targets.clamp(min=0)[:, None]  # (C, 1) each
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=dtype)  # (C, V)
    loss = -(log_probabilities.gather(1, targets) * (1 - label_smoothing) * counted).sum()
    if label_smoothing:
        loss -= label_smoothing * (log_probabilities.mean(dim=-1, keepdim=True) * counted).sum()
    gradient = log_probabilities.exp_()  # in place: this is the largest tensor
    if label_smoothing:
        gradient -= label_smoothing / logits.size(-1)
    return loss, gradient.scatter_add_(1, targets, torch.full_like(counted, label_smoothing - 1))
