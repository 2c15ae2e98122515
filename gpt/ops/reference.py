"""The formulas of a GPT, written out as on a blackboard: slow, with nothing hidden.

Shape letters: B batch, T tokens, S tokens attended to (S = T without a cache), H heads, K head_dim, D emb_dim, N = B·T,
V vocab_size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # targets with this value are left out of every loss and count


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the probabilities exp(x_i) / sum_j exp(x_j) along `dim`, in the shape of x.

    The maximum is subtracted first. It cancels in the fraction and keeps exp from overflowing.
    """
    exponentials = torch.exp(x - x.amax(dim, keepdim=True))
    return exponentials / exponentials.sum(dim, keepdim=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weight^T + bias, (..., D_in) -> (..., D_out), for a weight (D_out, D_in) and a bias (D_out,)."""
    product = x @ weight.T  # under autocast in a lower precision than the bias
    return product if bias is None else product + bias.to(product.dtype)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalize each vector of x (..., D) to mean 0 and variance 1, then scale and shift it.

    (x - mean) / sqrt(variance + eps) · scale + shift, with the biased variance. Ba et al. 2016, arXiv:1607.06450.
    """
    mean = x.mean(dim=-1, keepdim=True)  # (..., 1)
    variance = x.var(dim=-1, keepdim=True, unbiased=False)  # (..., 1)
    return scale * (x - mean) / torch.sqrt(variance + eps) + shift


def gelu(x: Tensor) -> Tensor:
    """Return x · Phi(x) elementwise, with GPT-2's tanh approximation of the normal distribution function Phi.

    0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dropout(x: Tensor, p: float) -> Tensor:
    """Return x · Bernoulli(1 - p) / (1 - p), which preserves the expectation. Srivastava et al. 2014, "Dropout".

    PyTorch's function, so that a seed draws the same numbers as in nn.Dropout.
    """
    return F.dropout(x, p)


def causal_mask(n_queries: int, n_keys: int, device: torch.device | None = None) -> Tensor:
    """Return a boolean mask (T, S), True where the query may see the key: at its own position and earlier ones.

    The queries are the last T of the S positions, because a cache holds the earlier ones.
    """
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | str = "causal") -> Tensor:
    """Return softmax(Q K^T / sqrt(K)), (B, H, T, S), for queries (B, H, T, K) and keys (B, H, S, K); rows sum to 1.

    `mask` is "causal", "full", or a boolean tensor that broadcasts to (B, H, T, S), True where attention is allowed.
    Without the division by sqrt(K) the variance of the scores would grow with K. Vaswani et al. 2017, arXiv:1706.03762.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (B, H, T, S)
    if mask == "causal":
        mask = causal_mask(query.size(-2), key.size(-2), query.device)
    return softmax(scores if mask == "full" else scores.masked_fill(~mask, -torch.inf))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str = "causal", drop_rate: float = 0) -> Tensor:
    """Return for each query the values weighted by `attention_weights`, (B, H, T, K): scaled dot-product attention.

    Shapes: query (B, H, T, K), key and value (B, H, S, K). `drop_rate` is the dropout of the weights, as in GPT-2.
    """
    return dropout(attention_weights(query, key, mask), drop_rate) @ value


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """Return -log p(target) in nats, with p = softmax(logits), for logits (N, V) and targets (N,).

    `reduction` "mean" or "sum" gives a scalar, "none" gives (N,). Targets of -100 are ignored: "none" has 0 there, and
    "mean" divides by the number of other targets (NaN if all are ignored). log softmax is x - log sum exp x, with the
    maximum subtracted first, so that no probability rounds to 0 before its logarithm is taken.

    With `label_smoothing` e the target has probability 1 - e, and e is spread evenly over all V classes. Szegedy et
    al. 2016, arXiv:1512.00567, section 7.
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
    """Return `cross_entropy` of the logits hidden · weight^T, for hidden (N, D), weight (V, D) and targets (N,)."""
    return cross_entropy(linear(hidden, weight), targets, reduction, label_smoothing)
