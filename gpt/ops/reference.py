"""The formulas of a GPT, written out as on a blackboard: slow, with nothing hidden.

Shape letters: B batch, T tokens, S tokens attended to (S = T without a cache), H heads, G key/value heads (G = H unless
grouped), K head_dim, D emb_dim, F width of the feed-forward layer, N = B·T, V vocab_size.

Notebooks: 04_attention, 05_gpt, 06_loss, 09_inside, 13_todays_block.
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


def rms_norm(x: Tensor, scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Divide each vector of x (..., D) by its root mean square, then scale it: x / sqrt(mean(x^2) + eps) · scale.

    LayerNorm without its mean and shift. Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    return scale * x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


def gelu(x: Tensor, exact: bool = False) -> Tensor:
    """Return x · Phi(x) elementwise, with the normal distribution function Phi(x) = 0.5 (1 + erf(x / sqrt(2))).

    Unless `exact`, with GPT-2's tanh approximation of it. Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    erf = torch.erf(x / math.sqrt(2)) if exact else torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + erf)


def relu2(x: Tensor) -> Tensor:
    """Return max(0, x)^2 elementwise. So et al. 2021 (Primer), arXiv:2109.08668."""
    return torch.maximum(x, torch.zeros_like(x)) ** 2


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up elementwise, with silu(x) = x · sigmoid(x). Shazeer 2020, arXiv:2002.05202."""
    return gate / (1 + torch.exp(-gate)) * up


def rotary_tables(
    positions: Tensor, head_dim: int, theta: float = 10_000.0, scaling: float = 1.0, original_length: int = 8192
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, (..., T, K) in float32, of the angles by which `rotate` turns the pairs of a vector.

    At position t the i-th of K/2 pairs turns by t · theta^(-2i/K). Su et al. 2021 (RoFormer), arXiv:2104.09864. Both
    tables cover each pair twice, and the sine is negative in the first half, where a rotation subtracts.

    `scaling` divides low frequencies by this factor, so that a model reads texts longer than those it was trained on:
    wavelengths above original_length in full, those below a quarter of it not at all, the others in between
    (Llama 3.1; Llama Team 2024, arXiv:2407.21783).
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim  # (K/2,)
    frequencies = 1 / theta**exponents
    if scaling != 1:
        turns = original_length * frequencies / (2 * math.pi)  # whole turns within the original length
        kept = ((turns - 1) / (4 - 1)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling)
    angles = positions[..., None].float() * frequencies  # (..., T, K/2)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + K/2}) of x (..., T, K) by an angle of `rotary_tables`.

    After it the product of a query and a key depends on their distance alone, not on their positions.
    """
    first, second = x.chunk(2, dim=-1)  # (..., T, K/2) each
    return x * cosine.to(x.dtype) + torch.cat([second, first], dim=-1) * sine.to(x.dtype)


def dropout(x: Tensor, p: float) -> Tensor:
    """Return x · Bernoulli(1 - p) / (1 - p), which preserves the expectation. Srivastava et al. 2014, "Dropout".

    PyTorch's function, so that a seed draws the same numbers as in nn.Dropout.
    """
    return F.dropout(x, p)


def attention_mask(
    mask: Tensor | str, n_queries: int, n_keys: int, window: int = 0, device: torch.device | None = None
) -> Tensor:
    """Return a boolean mask (T, S), or of the shape of `mask`: True where the query may see the key.

    `mask` is "causal" (its own position and earlier ones), "full" (all), or such a mask already. With a `window` a
    query sees its own position and at most window - 1 before it. The queries are the last T of the S positions, because
    a cache holds the earlier ones.
    """
    everything = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    if isinstance(mask, str):
        mask = everything.tril(n_keys - n_queries) if mask == "causal" else everything
    return mask & everything.triu(n_keys - n_queries - window + 1) if window else mask


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | str = "causal", window: int = 0) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)), (B, H, T, S), for queries (B, H, T, K) and keys (B, H, S, K); rows sum to 1.

    For `mask` and `window` see `attention_mask`; a tensor broadcasts to (B, H, T, S). Without the division by sqrt(K)
    the variance of the scores would grow with K. Vaswani et al. 2017, arXiv:1706.03762.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (B, H, T, S)
    visible = attention_mask(mask, query.size(-2), key.size(-2), window, query.device)
    return softmax(scores.masked_fill(~visible, -torch.inf))


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str = "causal", drop_rate: float = 0, window: int = 0
) -> Tensor:
    """Return for each query the values weighted by `attention_weights`, (B, H, T, K): scaled dot-product attention.

    Shapes: query (B, H, T, K), key and value (B, G, S, K). Each of the G heads of keys serves H/G heads of queries:
    Ainslie et al. 2023 (grouped queries), arXiv:2305.13245. `drop_rate` is the dropout of the weights, as in GPT-2.
    """
    key, value = (x.repeat_interleave(query.size(1) // key.size(1), dim=1) for x in (key, value))  # (B, H, S, K)
    return dropout(attention_weights(query, key, mask, window), drop_rate) @ value


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
