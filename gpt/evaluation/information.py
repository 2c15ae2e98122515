"""Information theory for language models: functions whose figures can be checked by hand.

Shape letters: V classes, such as the tokens of a vocabulary; n tokens of a text; "..." any dimensions before the last,
or none. A distribution lies along the last dimension. It is given by its probabilities, or with `from_logits=True` by
logits, of which it is the softmax; logarithms are then taken with log-sum-exp, so that logits of ±10,000 are as good as
any. A logit of -inf is a probability of 0, and p.log() are logits of p.

Results are in nats, or with unit="bits" in bits: 1 bit = ln 2 = 0.6931 nats. Lists count as float64.

Of a probability of 0 the information is infinite, and 0 · log 0 is 0, its limit; its share in the gradient is 0 too, so
that a class that cannot be never makes a NaN. ValueError is raised for probabilities that are negative or whose sum is
further from 1 than 0.0001 (in half precision: than its rounding), for logits that are NaN or +inf or all -inf, for
shapes that do not fit, for an unknown unit, and where there is nothing to measure.

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
TOLERANCE = 1e-4  # how far from 1 a sum of probabilities may be
MOST_ROUTES = 1_000_000  # between tokens in earth_movers_distance: a linear program of more takes minutes

# --- what goes in -----------------------------------------------------------------------------------------------------


def _tensor(x: Numbers) -> Tensor:
    x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    return x if x.is_floating_point() else x.double()


def _nats(unit: str) -> float:
    if unit not in UNITS:
        raise ValueError(f"the unit is 'nats' or 'bits', not {unit!r}")
    return UNITS[unit]


def _reduced(losses: Tensor, reduction: str, count: Tensor | int) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
    return losses if reduction == "none" else losses.sum() / count if reduction == "mean" else losses.sum()


def _distribution(x: Numbers, name: str, from_logits: bool = False) -> Tensor:
    """Probabilities (..., V) as they are, or of logits the log-probabilities, once they have been checked."""
    x = _tensor(x)
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(x.shape)} is no distribution: its last dimension holds the classes")
    if from_logits:
        if x.isnan().any() or x.isposinf().any():
            raise ValueError(f"the logits {name} hold NaN or +inf, of which there is no softmax")
        if x.isneginf().all(-1).any():
            raise ValueError(f"the logits {name} are all -inf somewhere: no class would be possible")
        return torch.log_softmax(x, -1)  # x less its maximum, and only then less log-sum-exp: nothing is rounded away
    if not (x >= 0).all():
        raise ValueError(f"{name} holds a probability that is negative or NaN (from_logits=True takes logits)")
    furthest = (x.sum(-1) - 1).abs().max().item()
    if not furthest <= max(TOLERANCE, torch.finfo(x.dtype).eps):
        raise ValueError(f"the probabilities {name} sum to 1 but for {furthest:.4g} (from_logits=True takes logits)")
    return x


def _pair(p: Numbers, q: Numbers, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Probabilities p and log-probabilities log q, which may be -inf."""
    p, q = _distribution(p, "p", from_logits), _distribution(q, "q", from_logits)
    if p.size(-1) != q.size(-1):
        raise ValueError(f"p has {p.size(-1)} classes and q has {q.size(-1)}: they must be the same ones")
    try:
        torch.broadcast_shapes(p.shape, q.shape)
    except RuntimeError:
        raise ValueError(f"shapes {tuple(p.shape)} and {tuple(q.shape)} of p and q do not fit each other") from None
    if from_logits:
        return p.exp(), q
    return p, torch.where((p == 0) & (q == 0), 1, q).log()  # before the logarithm, whose gradient would be 0 / 0


def _times(p: Tensor, x: Tensor) -> Tensor:
    """p · x, where 0 · ∞ is 0."""
    return p * x.masked_fill((p == 0) & x.isinf(), 0)


# --- of distributions -------------------------------------------------------------------------------------------------


def information_content(p: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """-log p, how surprising an event of probability p is: 0 of a certain one, ∞ of an impossible one; p's shape.

    `p` are probabilities of any shape, which need not sum to 1; or logits (..., V), for the information of each class.
    Nats, or bits. ValueError for probabilities outside 0 .. 1. Shannon 1948, section 6.
    """
    if from_logits:
        return (0 - _distribution(p, "p", True)) / _nats(unit)
    p = _tensor(p)
    if not p.numel() or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities lie between 0 and 1, and one is needed at least")
    return (0 - p.log()) / _nats(unit)  # 0 - 0 is 0, where -0 would be printed with its sign


def entropy(p: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """H(p) = -sum p log p, the mean information of a draw from p: (...) for p (..., V), between 0 and log V.

    Nats, or bits. ValueError as the module says. Shannon 1948, section 6.
    """
    return cross_entropy(p, p, from_logits=from_logits, unit=unit)


def cross_entropy(p: Numbers, q: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """H(p, q) = -sum p log q, the mean information that who believes q gets from draws of p: (...) for p, q (..., V).

    H(p, q) = H(p) + KL(p ‖ q); it is not H(q, p). ∞ where q rules out what p does not. `from_logits` is said of both.
    Nats, or bits. ValueError as the module says. Goodfellow et al. 2016, "Deep Learning", section 3.13.
    """
    p, log_q = _pair(p, q, from_logits)
    return (0 - _times(p, log_q).sum(-1)) / _nats(unit)


def kl_divergence(p: Numbers, q: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """KL(p ‖ q) = sum p log(p / q), what believing q costs above the entropy of p: (...) for p and q (..., V).

    Never negative, 0 only where p = q, ∞ where q rules out what p does not; not symmetric. Nats, or bits. ValueError as
    the module says. Kullback and Leibler 1951, "On Information and Sufficiency".
    """
    weights, log_q = _pair(p, q, from_logits)
    _, log_p = _pair(p, p, from_logits)
    sums = (_times(weights, log_p) - _times(weights, log_q)).sum(-1)
    return sums.clamp(min=0) / _nats(unit)  # rounding may put a sum just below


def js_divergence(p: Numbers, q: Numbers, *, from_logits: bool = False, unit: str = "nats") -> Tensor:
    """The Jensen-Shannon divergence, (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2: (...) for p and q (..., V).

    Symmetric, and finite: at most ln 2 nats, 1 bit, where nothing is possible under both. Its root is a distance. Nats,
    or bits. ValueError as the module says. Lin 1991, "Divergence Measures Based on the Shannon Entropy".
    """
    _pair(p, q, from_logits)  # checked as given
    p, q = (torch.softmax(_tensor(x), -1) if from_logits else _tensor(x) for x in (p, q))
    middle = (p + q) / 2
    return (kl_divergence(p, middle, unit=unit) + kl_divergence(q, middle, unit=unit)) / 2


def sequence_perplexity(p: Numbers, *, per_token: bool = True, from_losses: bool = False, unit: str = "nats") -> Tensor:
    """The perplexity of texts, (...), from the probabilities (..., n) that a model gave to their n tokens.

    The geometric mean of 1/p, which is e^(mean loss in nats) and 2^(mean loss in bits): among how many equally likely
    tokens the model was as unsure. With `from_losses` p are the losses -log p instead, in `unit`. Without `per_token`
    the exponent 1/n is left out: 1/p(text), which grows exponentially with length, so that texts of different lengths
    cannot be compared. A number without a unit; ∞ where one token had probability 0. ValueError for a text of no token,
    and for probabilities outside 0 .. 1. Jelinek et al. 1977; Jurafsky and Martin, "Speech and Language Processing",
    chapter 3.
    """
    p = _tensor(p)
    if not p.numel() or not p.dim():
        raise ValueError("a text of no token has no perplexity")
    losses = p * _nats(unit) if from_losses else information_content(p)
    return perplexity(losses.mean(-1) if per_token else losses.sum(-1))


# --- of labels --------------------------------------------------------------------------------------------------------


def _labels(labels: Numbers, predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (...) of predictions (..., V), and which of them count, once they have been checked."""
    labels = torch.as_tensor(labels, device=predictions.device)
    shape, n_classes = predictions.shape[:-1], predictions.size(-1)
    if labels.shape != shape or labels.is_floating_point():
        raise ValueError(f"labels are whole numbers {tuple(shape)} here, not {labels.dtype} {tuple(labels.shape)}")
    counted = labels != IGNORE_INDEX
    if not ((labels >= 0) & (labels < n_classes) | ~counted).all():
        raise ValueError(f"a label is 0 to {n_classes - 1}, or {IGNORE_INDEX} where it counts nowhere")
    if not counted.any():
        raise ValueError("no label counts: a loss over nothing is not defined")
    return labels.long(), counted


def _targets(
    logits: Numbers, labels: Numbers, weight: Numbers | None, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (..., V), what each of them weighs in the loss (..., V), and what a mean is divided by."""
    log_p = _distribution(logits, "logits", True)
    labels, counted = _labels(labels, log_p)
    n_classes = log_p.size(-1)
    weight = torch.ones(n_classes) if weight is None else _tensor(weight)
    if weight.shape != (n_classes,) or not (weight >= 0).all():
        raise ValueError(f"weight holds a number of at least 0 for each of the {n_classes} classes")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is 0 to 1, not {label_smoothing}")
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
    """Cross-entropy between labels (...), each the one-hot distribution of a class, and softmax(logits) (..., V).

    `label_smoothing` e puts (1 - e) onehot + e/V in the place of onehot (Szegedy et al. 2015, arXiv:1512.00567, section
    7). `weight` (V,) multiplies the share of each class, for classes that are rare. `reduction` "mean" divides the sum
    by the labels' weights, so by their number where there are none; "sum"; "none" gives (...). A label of -100 counts
    nowhere. As nn.CrossEntropyLoss, and with neither option as `gpt.ops`, whose formula is the one to train by: this
    one writes the targets out. Nats, or bits. ValueError as the module says, and where no label counts.
    """
    log_p, targets, total = _targets(logits, labels, weight, label_smoothing)
    return _reduced((0 - _times(targets, log_p).sum(-1)) / _nats(unit), reduction, total)


def cross_entropy_gradient(
    logits: Numbers, labels: Numbers, *, weight: Numbers | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """The gradient of `cross_entropy_loss`, its mean in nats, to the logits (..., V): (softmax - onehot) / n.

    What is predicted less what is true, for n labels. Of targets t, once smoothed and weighted, it is
    (sum(t) · softmax - t) over the sum of the labels' weights. Nats per unit of logit. ValueError as above. Bishop
    2006, "Pattern Recognition and Machine Learning", equation 4.109.
    """
    log_p, targets, total = _targets(logits, labels, weight, label_smoothing)
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
    """-(y log p + (1 - y) log(1 - p)) for probabilities p of "true" and labels y in 0 .. 1, both of one shape.

    With `from_logits`, p = 1 / (1 + e^-z) and z is given: then it is y log(1 + e^-z) + (1 - y) log(1 + e^z), which no z
    makes overflow. `positive_weight` multiplies the first term, where what is true is rare. A confident error costs
    without bound: ∞ at p = 0 of what is true (where PyTorch, given probabilities, stops at 100). `reduction` "mean",
    "sum" or "none", which keeps the shape. Nats, or bits. ValueError for shapes that differ, and for probabilities or
    labels outside 0 .. 1. Bishop 2006, equation 4.90.
    """
    p = _tensor(p)
    labels = _tensor(labels).to(p)
    if p.shape != labels.shape or not p.numel():
        raise ValueError(f"predictions {tuple(p.shape)} and labels {tuple(labels.shape)} must be as many, and not none")
    if not ((labels >= 0) & (labels <= 1)).all() or not positive_weight >= 0 or p.isnan().any():
        raise ValueError("a label lies between 0 and 1, positive_weight is at least 0, and no prediction is NaN")
    if from_logits:
        nothing = torch.zeros_like(p)
        if_true, if_false = torch.logaddexp(nothing, -p), torch.logaddexp(nothing, p)  # log(e^0 + e^z)
    else:
        if_true, if_false = information_content(p), 0 - torch.log1p(-p)
    losses = _times(positive_weight * labels, if_true) + _times(1 - labels, if_false)
    return _reduced(losses / _nats(unit), reduction, losses.numel())


# --- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # tensors make no truth value
class Reliability:
    """Whether a model is right as often as it believes: predictions by confidence, in bins of one width, (bins,) each.

    Bin i holds the confidences above i/bins, up to (i+1)/bins. Guo et al. 2017, arXiv:1706.04599, section 2.
    """

    confidence: Tensor  # the mean probability of the class predicted; NaN in an empty bin
    accuracy: Tensor  # the share of predictions that were right; NaN in an empty bin
    count: Tensor  # predictions

    @property
    def expected_calibration_error(self) -> float:
        """sum over bins of count / N · |accuracy - confidence|, 0 .. 1: 0 of a model that knows what it knows."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0)
        return float((self.count * gaps).sum() / self.count.sum())


def reliability(p: Numbers, labels: Numbers, *, bins: int = 15, from_logits: bool = False) -> Reliability:
    """The reliability diagram of predictions p (..., V), each of its most probable class, of labels (...).

    A label of -100 counts nowhere. Probabilities and shares, no unit. ValueError as the module says, for labels that
    are no class, and for fewer than one bin. DeGroot and Fienberg 1983; Niculescu-Mizil and Caruana 2005.
    """
    p = _distribution(p, "p", from_logits).detach().double()
    labels, counted = _labels(labels, p)
    if bins < 1:
        raise ValueError(f"a diagram has at least one bin, not {bins}")
    confidence, predicted = (p.exp() if from_logits else p)[counted].max(-1)  # (N,) each
    right = (predicted == labels[counted]).double()
    edges = torch.arange(1, bins, dtype=torch.float64, device=p.device) / bins
    place = torch.bucketize(confidence, edges)  # a confidence on an edge belongs below it
    count, sums, rights = (torch.bincount(place, x, bins) for x in (torch.ones_like(right), confidence, right))
    return Reliability(sums / count, rights / count, count.long())  # 0 / 0 is NaN


def expected_calibration_error(p: Numbers, labels: Numbers, *, bins: int = 15, from_logits: bool = False) -> float:
    """By how much confidence and accuracy differ, on average over predictions p (..., V) of labels (...): 0 .. 1.

    A difference of probabilities, no unit. It depends on the number of bins. ValueError as in `reliability`. Naeini et
    al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Guo et al. 2017, equation 3.
    """
    return reliability(p, labels, bins=bins, from_logits=from_logits).expected_calibration_error


# --- between texts, between tokens ------------------------------------------------------------------------------------


def domain_shift(
    models: Sequence[nn.Module],
    corpora: Sequence[np.ndarray],
    *,
    context_length: int | None = None,
    unit: str = "nats",
    **options,
) -> Tensor:
    """The cross-entropy per token of each model on each corpus, (models, corpora), float64, by `gpt.loss.evaluate`.

    Where row i is the model trained on corpus i, the diagonal is lowest, and how far a figure lies above the diagonal
    of its column is what being trained on something else costs. A corpus is a row of token ids, all of one tokenizer:
    without that, tokens are no common measure. `context_length` None: the shortest of the models'. `options` go to
    `evaluate`. Nats, or bits. ValueError for no model or corpus, for a token that a model lacks, and as in `evaluate`.
    """
    if not len(models) or not len(corpora):
        raise ValueError("a matrix of models by corpora needs a model and a corpus at least")
    corpora = [np.asarray(tokens) for tokens in corpora]
    highest = max((int(tokens.max()) for tokens in corpora if len(tokens)), default=0)
    if highest >= min(model.config.vocab_size for model in models):
        raise ValueError(f"a corpus holds token {highest}, which a model lacks: all must share one tokenizer")
    context_length = context_length or min(model.config.context_length for model in models)
    losses = [[evaluate(model, tokens, context_length, **options).loss for tokens in corpora] for model in models]
    return torch.tensor(losses, dtype=torch.float64) / _nats(unit)


def embedding_distances(embeddings: Numbers) -> Tensor:
    """Euclid's distances between embeddings (V, D), (V, V), float64, in the embeddings' own unit: a ground for
    `earth_movers_distance`. ValueError for another shape. Kusner et al. 2015, "From Word Embeddings To Document
    Distances"."""
    embeddings = _tensor(embeddings).detach().double()
    if embeddings.dim() != 2:
        raise ValueError(f"embeddings have the shape (V, D), not {tuple(embeddings.shape)}")
    return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")  # products would round


def earth_movers_distance(p: Numbers, q: Numbers, distances: Numbers) -> Tensor:
    """The least work by which the probabilities p become q, (...) for p and q (..., V), given distances (V, V).

    The minimum of sum flow[i, j] · distances[i, j] over flows of at least 0 whose rows sum to p and columns to q: a
    transport problem, solved exactly as a linear program by scipy's HiGHS, over the tokens that have probability, in
    float64 and without a gradient. Cross-entropy sees only what probability the true token gets; this also sees how far
    the rest lies from it. In the unit of the distances. ValueError as the module says, for distances that are negative
    or not finite, and for more than a million pairs of tokens: keep the most probable ones. ImportError without scipy.
    Rubner et al. 2000, "The Earth Mover's Distance as a Metric for Image Retrieval"; Villani 2009, "Optimal Transport".
    """
    p, q = _distribution(p, "p").detach().double().cpu(), _distribution(q, "q").detach().double().cpu()
    distances = _tensor(distances).detach().double().cpu()
    if p.shape != q.shape or distances.shape != (p.size(-1), p.size(-1)):
        raise ValueError(
            f"p and q (..., V) need distances (V, V), not {tuple(p.shape)}, {tuple(q.shape)}, {tuple(distances.shape)}"
        )
    if not (distances >= 0).all() or distances.isinf().any():
        raise ValueError("a distance is finite, and not negative")
    rows = zip(p.reshape(-1, p.size(-1)).numpy(), q.reshape(-1, q.size(-1)).numpy(), strict=True)
    work = [_least_work(a / a.sum(), b / b.sum(), distances.numpy()) for a, b in rows]
    return torch.tensor(work, dtype=torch.float64).reshape(p.shape[:-1])


def _least_work(p: np.ndarray, q: np.ndarray, distances: np.ndarray) -> float:
    try:
        from scipy.optimize import linprog
        from scipy.sparse import eye, kron, vstack
    except ImportError:
        raise ImportError("the earth mover's distance needs scipy: python -m pip install scipy") from None
    here, there = np.flatnonzero(p), np.flatnonzero(q)
    m, n = len(here), len(there)
    if m * n > MOST_ROUTES:
        raise ValueError(f"{m:,} x {n:,} pairs of tokens are too many: keep the most probable ones, scaled to sum to 1")
    leave, arrive = kron(eye(m), np.ones((1, n))), kron(np.ones((1, m)), eye(n))  # (m, m·n), (n, m·n)
    cost = distances[np.ix_(here, there)]
    finest = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(
        cost.ravel(), A_eq=vstack([leave, arrive]).tocsr(), b_eq=np.concatenate([p[here], q[there]]), options=finest
    )
    if found.status:
        raise RuntimeError(f"the linear program was not solved: {found.message}")
    return max(0.0, float(found.fun))
