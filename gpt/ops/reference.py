"""The formulas of a GPT as they stand on the blackboard. Slow, and nothing hidden.

Shape letters: B batch, T tokens in the window, S tokens attended to (S = T without a cache), H heads, K head_dim,
D emb_dim, N tokens of a batch in a row (N = B·T), V vocab_size.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

IGNORE_INDEX = -100  # a target with this value counts nowhere


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Probabilities exp(x_i) / sum_j exp(x_j) along `dim`; the shape of x.

    The maximum is subtracted first: it cancels in the fraction and keeps exp from overflowing.
    """
    exponentials = torch.exp(x - x.amax(dim, keepdim=True))
    return exponentials / exponentials.sum(dim, keepdim=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weight^T + bias, (..., D_in) -> (..., D_out), for a weight (D_out, D_in) and a bias (D_out,)."""
    product = x @ weight.T
    return product if bias is None else product + bias.to(product.dtype)  # autocast lowers products alone


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Each vector of x (..., D) brought to mean 0 and variance 1, then scaled and shifted; the shape of x.

    (x - mean) / sqrt(variance + eps) · scale + shift, with the biased variance. Ba et al. 2016, arXiv:1607.06450.
    """
    mean = x.mean(dim=-1, keepdim=True)  # (..., 1)
    variance = x.var(dim=-1, keepdim=True, unbiased=False)  # (..., 1)
    return scale * (x - mean) / torch.sqrt(variance + eps) + shift


def gelu(x: Tensor) -> Tensor:
    """x · Phi(x), Phi the normal distribution function, in GPT-2's tanh approximation; the shape of x.

    0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@contextlib.contextmanager
def recompute(layer: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[Tensor]:
    """layer(x), for what is computed in this context; `fused` makes it a second time in the backward pass, where it
    takes too much memory to be kept."""
    yield layer(x)


def dropout(x: Tensor, p: float) -> Tensor:
    """Each element of x set to 0 with probability p, the others divided by 1 - p so that the expectation stays."""
    if p == 0:
        return x
    return x * torch.bernoulli(torch.full_like(x, 1 - p)) / (1 - p)


def causal_mask(n_queries: int, n_keys: int, device: torch.device | None = None) -> Tensor:
    """Which key each query may see, (T, S), True where it may: its own and all earlier ones.

    The queries are the last T of the S positions, as they are when earlier keys come from a cache.
    """
    offset = n_keys - n_queries
    query = torch.arange(n_queries, device=device)[:, None] + offset  # (T, 1)
    return torch.arange(n_keys, device=device)[None, :] <= query  # (T, S)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | str = "causal") -> Tensor:
    """How much each query takes from each key, (B, H, T, S), each row summing to 1, for queries (B, H, T, K) and
    keys (B, H, S, K).

    softmax(Q K^T / sqrt(K)) over the keys that `mask` allows: "causal", "full", or a boolean tensor that broadcasts
    to (B, H, T, S), True where attention is allowed. Without the root the scores' variance would grow with K.
    Vaswani et al. 2017, arXiv:1706.03762, equation 1.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (B, H, T, S)
    if isinstance(mask, Tensor):
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask == "causal":
        allowed = causal_mask(query.size(-2), key.size(-2), query.device)
        scores = scores.masked_fill(~allowed, -torch.inf)
    return softmax(scores)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str = "causal", drop_rate: float = 0) -> Tensor:
    """Scaled dot-product attention, (B, H, T, K): for each query, the values weighted by `attention_weights`.

    Shapes: query (B, H, T, K), key and value (B, H, S, K). `drop_rate` drops whole weights, as GPT-2 does.
    """
    return dropout(attention_weights(query, key, mask), drop_rate) @ value


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """-log p(target) in nats, p = softmax(logits), for logits (N, V) and targets (N,); a target of -100 counts nowhere.

    `reduction` "mean" (over the counted targets) or "sum" gives a scalar, "none" gives (N,) with 0 where nothing
    counts. log softmax is x - log sum exp x, with the maximum taken out, so that no probability rounds to 0 before
    its logarithm is taken. The mean over no target at all is 0 / 0: NaN.

    With `label_smoothing` e the label is no longer certain: it has the probability 1 - e, and e is shared out evenly
    over all V classes. Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    counted = targets != IGNORE_INDEX  # (N,)
    shifted = logits - logits.amax(dim=-1, keepdim=True)  # (N, V)
    log_sum = torch.log(torch.exp(shifted).sum(dim=-1))  # (N,)
    chosen = shifted.gather(-1, torch.where(counted, targets, 0)[:, None])[:, 0]  # (N,)
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * shifted.mean(dim=-1)
    losses = torch.where(counted, log_sum - chosen, 0)  # (N,)
    if reduction == "none":
        return losses
    return losses.sum() / counted.sum() if reduction == "mean" else losses.sum()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in nats of the logits hidden · weight^T, for hidden (N, D), weight (V, D), targets (N,)."""
    return cross_entropy(linear(hidden, weight), targets, reduction, label_smoothing)
