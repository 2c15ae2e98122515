"""Information theory for language models: entropy, divergences, losses of labels, calibration, earth mover's distance.

Shape letters: V classes, such as the tokens of a vocabulary; n tokens of a text; "..." any leading dimensions. The last
dimension is a distribution: probabilities, or with `from_logits=True` logits, whose softmax it is. Logarithms of logits
use log-sum-exp, so that logits of ±10,000 lose no precision. A logit of -inf is a probability of 0, and p.log() are
logits of p.

Results are in nats, or with unit="bits" in bits: 1 bit = ln 2 = 0.6931 nats. Lists and integers become float64.

The information of probability 0 is infinite. 0 · log 0 is 0, its limit, and so is its gradient: impossible classes
never cause a NaN. All functions raise ValueError for negative probabilities, for sums further from 1 than 0.0001 (in
half precision: than its rounding), for logits that are NaN, +inf or all -inf, for shapes that do not match, for an
unknown unit, and for empty inputs.

Shannon 1948 is "A Mathematical Theory of Communication".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.loss import evaluate, perplexity
from gpt.ops.reference import IGNORE_INDEX

Numbers = Tensor | np.ndarray | Sequence
UNITS = {"nats": 1.0, "bits": math.log(2)}  # in nats
SUM_TOLERANCE = 1e-4  # how far from 1 a sum of probabilities may be
MAX_FLOWS = 1_000_000  # variables of the linear program in earth_movers_distance: more take minutes

# --- inputs -----------------------------------------------------------------------------------------------------------


def _to_tensor(x: Numbers) -> Tensor:
    x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    return x if x.is_floating_point() else x.double()


def _nats_per(unit: str) -> float:
    if unit not in UNITS:
        raise ValueError(f"unit must be 'nats' or 'bits', not {unit!r}")
    return UNITS[unit]


def _reduce(losses: Tensor, reduction: str, count: Tensor | int) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / count}[reduction]


def _check_distribution(x: Numbers, name: str, from_logits: bool = False) -> Tensor:
    """Return valid probabilities (..., V) unchanged, or the log-probabilities of logits."""
    x = _to_tensor(x)
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(x.shape)} is no distribution: its last dimension must hold classes")
    if from_logits:
        if x.isnan().any() or x.isposinf().any():
            raise ValueError(f"the logits {name} hold NaN or +inf, which have no softmax")
        if x.isneginf().all(-1).any():
            raise ValueError(f"the logits {name} have a row of -inf: no class would be possible")
        return torch.log_softmax(x, -1)  # it subtracts the maximum before log-sum-exp, so that nothing is rounded away
    if not (x >= 0).all():
        raise ValueError(f"{name} holds a negative probability or NaN: for logits set from_logits=True")
    error = (x.sum(-1) - 1).abs().max().item()
    if not error <= max(SUM_TOLERANCE, torch.finfo(x.dtype).eps):
        raise ValueError(
            f"the sum of the probabilities {name} differs from 1 by {error:.4g}: for logits set from_logits=True"
        )
    return x


def _p_and_log_q(p: Numbers, q: Numbers, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Return probabilities p and log-probabilities log q, which may be -inf."""
    p, q = _check_distribution(p, "p", from_logits), _check_distribution(q, "q", from_logits)
    if p.size(-1) != q.size(-1):
        raise ValueError(f"p has {p.size(-1)} classes and q has {q.size(-1)}: they must have the same classes")
    try:
        torch.broadcast_shapes(p.shape, q.shape)
    except RuntimeError:
        raise ValueError(f"shapes {tuple(p.shape)} and {tuple(q.shape)} of p and q do not broadcast") from None
    if from_logits:
        return p.exp(), q
    return p, torch.where((p == 0) & (q == 0), 1, q).log()  # before the logarithm, whose gradient would be 0 / 0


def _multiply(p: Tensor, x: Tensor) -> Tensor:
    """Return p · x with 0 · ∞ = 0."""
    return p * x.masked_fill((p == 0) & x.isinf(), 0)


# --- distributions ----------------------------------------------------------------------------------------------------


def information_content(p: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """Return -log p of each probability in p, in the shape of p: 0 if it is certain, ∞ if it is impossible.

    `p` are probabilities of any shape, which need not sum to 1, or logits (..., V). ValueError for probabilities
    outside 0 .. 1. Shannon 1948, section 6.
    """
    if from_logits:
        return (0 - _check_distribution(p, "p", True)) / _nats_per(unit)
    p = _to_tensor(p)
    if not p.numel() or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p must hold probabilities between 0 and 1, at least one")
    return (0 - p.log()) / _nats_per(unit)  # 0 - 0 is 0; -0 would be printed with its sign


def entropy(p: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """Return H(p) = -sum p log p, the mean information of a draw: (...) for p (..., V). Shannon 1948, section 6."""
    return cross_entropy(p, p, from_logits=from_logits, unit=unit)


def cross_entropy(p: Numbers, q: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """Return H(p, q) = -sum p log q, the mean loss of predicting q for draws from p: (...) for p and q (..., V).

    H(p, q) = H(p) + KL(p ‖ q), and differs from H(q, p). ∞ if q is 0 where p is not. `from_logits` applies to both.
    Goodfellow et al. 2016, "Deep Learning", section 3.13.
    """
    p, log_q = _p_and_log_q(p, q, from_logits)
    return (0 - _multiply(p, log_q).sum(-1)) / _nats_per(unit)


def kl_divergence(p: Numbers, q: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """Return KL(p ‖ q) = sum p log(p / q), the cross-entropy in excess of the entropy of p: (...) for p and q (..., V).

    Never negative; 0 only if p = q; ∞ if q is 0 where p is not; not symmetric. Kullback and Leibler 1951, "On
    Information and Sufficiency".
    """
    weights, log_q = _p_and_log_q(p, q, from_logits)
    _, log_p = _p_and_log_q(p, p, from_logits)
    sums = (_multiply(weights, log_p) - _multiply(weights, log_q)).sum(-1)
    return sums.clamp(min=0) / _nats_per(unit)  # rounding may make a sum slightly negative


def js_divergence(p: Numbers, q: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """Return the Jensen-Shannon divergence (KL(p ‖ m) + KL(q ‖ m)) / 2, m = (p + q) / 2: (...) for p and q (..., V).

    Symmetric and finite: at most ln 2 nats or 1 bit, if p and q have no class in common. Its square root is a distance.
    Lin 1991, "Divergence Measures Based on the Shannon Entropy".
    """
    _p_and_log_q(p, q, from_logits)  # checks them
    p, q = (torch.softmax(_to_tensor(x), -1) if from_logits else _to_tensor(x) for x in (p, q))
    m = (p + q) / 2
    return (kl_divergence(p, m, unit=unit) + kl_divergence(q, m, unit=unit)) / 2


def sequence_perplexity(p: Numbers, *, per_token: bool = True, from_losses: bool = False, unit: str = "nats") -> Tensor:
    """Return the perplexity of texts, (...), from the probabilities (..., n) of their n tokens.

    It is the geometric mean of 1/p, e^(mean loss in nats), 2^(mean loss in bits): a choice among that many equally
    likely tokens has the same loss. With `from_losses`, p are losses -log p in `unit`. With `per_token` False, it is
    1/p(text), which grows exponentially with n: then texts of different lengths are not comparable. It has no unit and
    is ∞ if a token has probability 0. ValueError for a text without tokens and probabilities outside 0 .. 1. Jelinek et
    al. 1977; Jurafsky and Martin, "Speech and Language Processing", chapter 3.
    """
    p = _to_tensor(p)
    if not p.numel() or not p.dim():
        raise ValueError("a text of no tokens has no perplexity")
    losses = p * _nats_per(unit) if from_losses else information_content(p)
    return perplexity(losses.mean(-1) if per_token else losses.sum(-1))


# --- labels -----------------------------------------------------------------------------------------------------------


def _check_labels(labels: Numbers, predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Return valid labels (...) of predictions (..., V), and a mask of those that are not -100."""
    labels = torch.as_tensor(labels, device=predictions.device)
    shape, n_classes = predictions.shape[:-1], predictions.size(-1)
    if labels.shape != shape or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape {tuple(shape)}, not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    counted = labels != IGNORE_INDEX
    if not ((labels >= 0) & (labels < n_classes) | ~counted).all():
        raise ValueError(f"labels must be 0 to {n_classes - 1}, or {IGNORE_INDEX} to be ignored")
    if not counted.any():
        raise ValueError("all labels are ignored: the loss is undefined")
    return labels.long(), counted


def _target_weights(
    logits: Numbers, labels: Numbers, weight: Numbers | None, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities (..., V), their weights in the loss (..., V), and the divisor of a mean."""
    log_p = _check_distribution(logits, "logits", True)
    labels, counted = _check_labels(labels, log_p)
    n_classes = log_p.size(-1)
    weight = torch.ones(n_classes) if weight is None else _to_tensor(weight)
    if weight.shape != (n_classes,) or not (weight >= 0).all():
        raise ValueError(f"weight must hold a number of at least 0 for each of the {n_classes} classes")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be 0 to 1, not {label_smoothing}")
    one_hot = F.one_hot(torch.where(counted, labels, 0), n_classes).to(log_p)
    smoothed = (1 - label_smoothing) * one_hot + label_smoothing / n_classes
    weights = weight.to(log_p) * counted[..., None]  # (..., V)
    return log_p, weights * smoothed, (weights * one_hot).sum()


def cross_entropy_loss(
    logits: Numbers,
    labels: Numbers,
    *,
    weight: Numbers | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    unit: str = "nats",
) -> Tensor:
    """Return the cross-entropy between one-hot labels, given as classes (...), and softmax(logits) (..., V).

    `label_smoothing` e replaces onehot by (1 - e) onehot + e/V (Szegedy et al. 2015, arXiv:1512.00567, section 7).
    `weight` (V,) multiplies the loss of each class. `reduction` is "mean", which divides by the sum of the labels'
    weights, "sum", or "none", which returns (...). Labels of -100 are ignored. The result is that of
    nn.CrossEntropyLoss; train with `gpt.ops.cross_entropy`, which needs less memory. ValueError also if all labels are
    ignored.
    """
    log_p, targets, total = _target_weights(logits, labels, weight, label_smoothing)
    return _reduce((0 - _multiply(targets, log_p).sum(-1)) / _nats_per(unit), reduction, total)


def cross_entropy_gradient(
    logits: Numbers, labels: Numbers, *, weight: Numbers | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the gradient of the mean `cross_entropy_loss` in nats with respect to the logits, (..., V).

    For n labels it is (softmax - onehot) / n: predicted minus true. For smoothed and weighted targets t it is
    (sum(t) · softmax - t) over the sum of the labels' weights. Bishop 2006, "Pattern Recognition and Machine Learning",
    equation 4.109.
    """
    log_p, targets, total = _target_weights(logits, labels, weight, label_smoothing)
    return (targets.sum(-1, keepdim=True) * log_p.exp() - targets) / total


def binary_cross_entropy(
    p: Numbers,
    labels: Numbers,
    *,
    from_logits: bool = False,
    positive_weight: float = 1.0,
    reduction: str = "mean",
    unit: str = "nats",
) -> Tensor:
    """Return -(y log p + (1 - y) log(1 - p)) for probabilities p and labels y in 0 .. 1 of the same shape.

    With `from_logits` p holds z, where p = 1 / (1 + e^-z): y log(1 + e^-z) + (1 - y) log(1 + e^z) never overflows.
    `positive_weight` multiplies the first term. The loss is unbounded: ∞ for p = 0 and y = 1, where
    F.binary_cross_entropy stops at 100. `reduction` is "mean", "sum" or "none", which keeps the shape. ValueError for
    different shapes and for probabilities or labels outside 0 .. 1. Bishop 2006, equation 4.90.
    """
    p = _to_tensor(p)
    labels = _to_tensor(labels).to(p)
    if p.shape != labels.shape or not p.numel():
        raise ValueError(
            f"p {tuple(p.shape)} and labels {tuple(labels.shape)} must have the same shape and not be empty"
        )
    if not ((labels >= 0) & (labels <= 1)).all() or not positive_weight >= 0 or p.isnan().any():
        raise ValueError("labels must be between 0 and 1, positive_weight at least 0, and p not NaN")
    if from_logits:
        zero = torch.zeros_like(p)
        if_true, if_false = torch.logaddexp(zero, -p), torch.logaddexp(zero, p)  # log(e^0 + e^z)
    else:
        if_true, if_false = information_content(p), 0 - torch.log1p(-p)
    losses = _multiply(positive_weight * labels, if_true) + _multiply(1 - labels, if_false)
    return _reduce(losses / _nats_per(unit), reduction, losses.numel())


# --- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Reliability:
    """A reliability diagram: predictions in bins of equal width by confidence, (bins,) each.

    Bin i holds confidences above i/bins, up to (i+1)/bins. Guo et al. 2017, arXiv:1706.04599, section 2.
    """

    confidence: Tensor  # mean probability of the predicted class; NaN in an empty bin
    accuracy: Tensor  # share of correct predictions; NaN in an empty bin
    count: Tensor  # number of predictions

    @property
    def expected_calibration_error(self) -> float:
        """The sum over bins of count / N · |accuracy - confidence|: 0 if the model is calibrated, at most 1."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0)
        return float((self.count * gaps).sum() / self.count.sum())


def reliability(p: Numbers, labels: Numbers, *, bins: int = 15, from_logits: bool = False) -> Reliability:
    """Return the reliability diagram of predictions p (..., V) for labels (...); the most probable class is predicted.

    Labels of -100 are ignored. ValueError also for fewer than one bin. DeGroot and Fienberg 1983; Niculescu-Mizil and
    Caruana 2005.
    """
    p = _check_distribution(p, "p", from_logits).detach().double()
    labels, counted = _check_labels(labels, p)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence, predicted = (p.exp() if from_logits else p)[counted].max(-1)  # (N,) each
    correct = (predicted == labels[counted]).double()
    edges = torch.arange(1, bins, dtype=torch.float64, device=p.device) / bins
    bin_index = torch.bucketize(confidence, edges)  # a confidence on an edge belongs to the lower bin
    count, sums, hits = (torch.bincount(bin_index, x, bins) for x in (torch.ones_like(correct), confidence, correct))
    return Reliability(sums / count, hits / count, count.long())  # 0 / 0 is NaN


def expected_calibration_error(p: Numbers, labels: Numbers, *, bins: int = 15, from_logits: bool = False) -> float:
    """Return the mean difference between confidence and accuracy, 0 .. 1, of predictions p (..., V) for labels (...).

    It depends on the number of bins. Arguments and errors are those of `reliability`. Naeini et al. 2015, "Obtaining
    Well Calibrated Probabilities Using Bayesian Binning"; Guo et al. 2017, equation 3.
    """
    return reliability(p, labels, bins=bins, from_logits=from_logits).expected_calibration_error


# --- distances between texts and between tokens -----------------------------------------------------------------------


def domain_shift(
    models: Sequence[nn.Module],
    corpora: Sequence[np.ndarray],
    *,
    context_length: int | None = None,
    unit: str = "nats",
    **options,
) -> Tensor:
    """Return the cross-entropy per token of each model on each corpus, (models, corpora), float64.

    If model i was trained on corpus i, the excess over the diagonal of a column is the cost of training on another
    corpus. Corpora are token ids, (n,), of the same tokenizer. `context_length` None is the shortest of the models'.
    `options` are those of `gpt.loss.evaluate`. ValueError for no model or corpus, for a token outside a model's
    vocabulary, and as in `evaluate`.
    """
    if not len(models) or not len(corpora):
        raise ValueError("domain_shift needs at least a model and a corpus")
    corpora = [np.asarray(tokens) for tokens in corpora]
    highest = max((int(tokens.max()) for tokens in corpora if len(tokens)), default=0)
    if highest >= min(model.config.vocab_size for model in models):
        raise ValueError(f"a corpus holds token {highest}, which a model lacks: all must share a tokenizer")
    context_length = context_length or min(model.config.context_length for model in models)
    losses = [[evaluate(model, tokens, context_length, **options).loss for tokens in corpora] for model in models]
    return torch.tensor(losses, dtype=torch.float64) / _nats_per(unit)


def embedding_distances(embeddings: Numbers) -> Tensor:
    """Return the Euclidean distances between embeddings (V, D), (V, V), float64. Kusner et al. 2015, "From Word
    Embeddings To Document Distances"."""
    embeddings = _to_tensor(embeddings).detach().double()
    if embeddings.dim() != 2:
        raise ValueError(f"embeddings must have the shape (V, D), not {tuple(embeddings.shape)}")
    return torch.cdist(
        embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist"
    )  # matrix products would round more


def earth_movers_distance(p: Numbers, q: Numbers, distances: Numbers) -> Tensor:
    """Return the least work that turns p into q, (...) for p and q (..., V), in the unit of the distances (V, V).

    It is the minimum of sum flow[i, j] · distances[i, j] over flows of at least 0 whose rows sum to p and columns to q,
    a linear program that scipy's HiGHS solves in float64, without a gradient. Cross-entropy depends only on the
    probability of the true token; this distance also on how far the other probable tokens are from it. ValueError for
    distances that are negative or infinite, and for more than a million pairs of tokens with probability: keep the most
    probable ones. ImportError without scipy. Rubner et al. 2000, "The Earth Mover's Distance as a Metric for Image
    Retrieval"; Villani 2009, "Optimal Transport".
    """
    p, q = _check_distribution(p, "p").detach().double().cpu(), _check_distribution(q, "q").detach().double().cpu()
    distances = _to_tensor(distances).detach().double().cpu()
    if p.shape != q.shape or distances.shape != (p.size(-1), p.size(-1)):
        raise ValueError(
            f"p and q (..., V) need distances (V, V), not {tuple(p.shape)}, {tuple(q.shape)}, {tuple(distances.shape)}"
        )
    if not (distances >= 0).all() or distances.isinf().any():
        raise ValueError("distances must be finite and not negative")
    rows = zip(p.reshape(-1, p.size(-1)).numpy(), q.reshape(-1, q.size(-1)).numpy(), strict=True)
    work = [_least_work(a / a.sum(), b / b.sum(), distances.numpy()) for a, b in rows]
    return torch.tensor(work, dtype=torch.float64).reshape(p.shape[:-1])


def _least_work(p: np.ndarray, q: np.ndarray, distances: np.ndarray) -> float:
    try:
        from scipy.optimize import linprog
        from scipy.sparse import eye, kron, vstack
    except ImportError:
        raise ImportError("the earth mover's distance needs scipy: python -m pip install scipy") from None
    sources, sinks = np.flatnonzero(p), np.flatnonzero(q)
    m, n = len(sources), len(sinks)
    if m * n > MAX_FLOWS:
        raise ValueError(f"{m:,} x {n:,} pairs of tokens are too many: keep the most probable ones, scaled to sum to 1")
    row_sums, column_sums = kron(eye(m), np.ones((1, n))), kron(np.ones((1, m)), eye(n))  # (m, m·n), (n, m·n)
    cost = distances[np.ix_(sources, sinks)]
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    sums, totals = vstack([row_sums, column_sums]).tocsr(), np.concatenate([p[sources], q[sinks]])
    result = linprog(cost.ravel(), A_eq=sums, b_eq=totals, options=options)
    if result.status:
        raise RuntimeError(f"the linear program was not solved: {result.message}")
    return max(0.0, float(result.fun))
