"""Information theory against scipy, PyTorch, Keras, autograd and known values."""

import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import tolerance

from gpt.evaluation import information as info
from gpt.evaluation.markov import create_gpt, sample_words, split_examples, train_gpt, transition_matrix
from gpt.loss import perplexity
from gpt.ops import fused, reference
from gpt.run import information_plots as plots

scipy_optimize = pytest.importorskip("scipy.optimize", reason="scipy is a development dependency")
from scipy.spatial.distance import jensenshannon  # noqa: E402
from scipy.stats import entropy as scipy_entropy  # noqa: E402
from scipy.stats import wasserstein_distance  # noqa: E402

PROJECT = Path(__file__).parents[2]
INF = math.inf
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
LOGITS, LABELS = torch.tensor([[1.0, 2, 3], [3, 2, 1]]), torch.tensor([2, 0])
LARGEST_SURPRISE = math.log(9.5 / 0.1)  # -ln p of the smallest probability in `pairs` that is not 0
SOLVER = 24 * 10 * 1e-10  # 24 constraints, each within 1e-10 as the solver is told, for distances of at most 10
LINE = [[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]


def near(dtype, n_terms, *sizes):
    return {"rtol": 0, "atol": tolerance(n_terms, *sizes, dtype=dtype)}


@st.composite
def pairs(draw):
    """Two distributions over up to nine classes, of which some may be impossible."""
    n = draw(st.integers(1, 9))
    rows = draw(st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=2, max_size=2))
    rows = np.where(np.array(rows) < 0.1, 0, rows)
    rows[:, draw(st.integers(0, n - 1))] += 0.5
    return rows / rows.sum(-1, keepdims=True)


# --- known figures ----------------------------------------------------------------------------------------------------


def test_known_figures():
    assert info.information_content(0.3).item() == pytest.approx(1.2040, abs=5e-5)
    assert info.information_content(0.6).item() == pytest.approx(0.5108, abs=5e-5)
    assert info.information_content(0.125, unit="bits").item() == 3
    assert info.cross_entropy_loss(LOGITS, LABELS).item() == pytest.approx(0.4076, abs=5e-5)
    assert perplexity(info.cross_entropy_loss(LOGITS, LABELS)).item() == pytest.approx(1.5032, abs=5e-5)
    flat = torch.zeros(100, 10_000)
    assert info.entropy(flat, from_logits=True)[0].item() == pytest.approx(9.2103, abs=5e-5)
    assert info.cross_entropy_loss(flat, torch.arange(100)).item() == pytest.approx(9.2103, abs=5e-5)
    assert info.entropy([0.5, 0.5], unit="bits").item() == 1
    assert info.entropy([0.5, 0.25, 0.25], unit="bits").item() == 1.5


@pytest.mark.parametrize("n", [64, 100])
def test_loss_of_a_batch_is_the_mean_over_its_tokens(n):
    logits, labels = torch.randn(n, 7).double(), torch.randint(7, (n,))
    each = [-math.log(torch.softmax(row, -1)[label]) for row, label in zip(logits, labels, strict=True)]
    assert info.cross_entropy_loss(logits, labels).item() == pytest.approx(sum(each) / n, rel=tolerance(n))
    assert info.cross_entropy_loss(logits, labels, reduction="sum").item() == pytest.approx(sum(each), rel=tolerance(n))


def test_binary_cross_entropy_of_confident_predictions():
    right, wrong = (info.binary_cross_entropy([0.99], [label]).item() for label in (1, 0))
    assert right == pytest.approx(0.01005, abs=1e-5) and wrong == pytest.approx(4.60517, abs=1e-5)
    assert info.binary_cross_entropy([0.0], [1]).item() == INF
    assert info.binary_cross_entropy([0.0, 1.0], [0, 1]).item() == 0


# --- of distributions -------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(pairs())
def test_entropy_and_divergences_equal_scipy(rows):
    p, q = rows
    truth = {"entropy": scipy_entropy(p), "kl": scipy_entropy(p, q), "js": jensenshannon(p, q) ** 2}
    for dtype in (torch.float64, torch.float32):
        a, b = torch.tensor(p, dtype=dtype), torch.tensor(q, dtype=dtype)
        for unit, scale in (("nats", 1), ("bits", math.log(2))):
            atol = tolerance(9, LARGEST_SURPRISE / scale, dtype=dtype)
            for logits in (False, True):
                kwargs = {"from_logits": logits, "unit": unit}
                x, y = (a.log(), b.log()) if logits else (a, b)
                close = pytest.approx(truth["entropy"] / scale, abs=atol)
                assert info.entropy(x, **kwargs).item() == close
                kl, cross = info.kl_divergence(x, y, **kwargs), info.cross_entropy(x, y, **kwargs)
                assert kl.item() == pytest.approx(truth["kl"] / scale, abs=atol) and kl >= 0
                assert cross.item() == pytest.approx((info.entropy(x, **kwargs) + kl).item(), abs=atol)
                js = info.js_divergence(x, y, **kwargs).item()
                assert js == pytest.approx(truth["js"] / scale, abs=atol)


def test_divergences_are_asymmetric_and_infinite_for_impossible_classes():
    p, q = [0.9, 0.1], [0.5, 0.5]
    assert info.cross_entropy(p, q).item() == pytest.approx(math.log(2))
    assert info.cross_entropy(q, p).item() == pytest.approx(-math.log(0.9) / 2 - math.log(0.1) / 2)
    assert info.cross_entropy([0.5, 0.5, 0], [1, 0, 0]).item() == INF
    assert info.kl_divergence([0.5, 0.5, 0], [1, 0, 0]).item() == INF
    assert info.kl_divergence([1, 0, 0], [0.5, 0.5, 0]).item() == pytest.approx(math.log(2))
    assert info.js_divergence([1, 0], [0, 1], unit="bits").item() == 1
    assert info.information_content([0, 1]).tolist() == [INF, 0]
    assert not info.entropy([1.0]).signbit()


def test_leading_dimensions_broadcast():
    p, q = torch.rand(4, 1, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    found = info.kl_divergence(p, q)
    assert found.shape == (4, 3) and info.js_divergence(p, q).shape == (4, 3)
    assert found[2, 1].item() == pytest.approx(scipy_entropy(p[2, 0], q[1]), abs=tolerance(5, p.log(), q.log()))


@DTYPES
def test_extreme_logits_lose_no_precision(dtype):
    x = torch.tensor([[1e4, -1e4, 0], [-INF, 5, 5], [-1e4, -1e4, -INF]], dtype=dtype, requires_grad=True)
    entropies = info.entropy(x, from_logits=True)
    torch.testing.assert_close(entropies, torch.tensor([0, math.log(2), math.log(2)], dtype=dtype), **near(dtype, 3))
    y = x.detach().flip(-1).where(x.isfinite(), -INF).requires_grad_()  # rules out the same classes, and one more
    values = [f(y, x, from_logits=True) for f in (info.cross_entropy, info.kl_divergence, info.js_divergence)]
    assert not any(value.isnan().any() for value in [*values, info.kl_divergence(x, y, from_logits=True)])
    values += [entropies, info.information_content(x, from_logits=True)]
    gradients = torch.autograd.grad(sum(v[v.isfinite()].sum() for v in values), [x, y])
    assert all(g.isfinite().all() for g in gradients)
    assert info.information_content(x[0].detach(), from_logits=True)[1].item() == 2e4
    one, same = torch.zeros(1, dtype=dtype), torch.full((1000,), 1e4, dtype=dtype)
    assert info.entropy(one, from_logits=True) == 0 == info.cross_entropy_loss(one[None], [0])
    assert info.entropy(same, from_logits=True).item() == pytest.approx(math.log(1000), rel=1e-6)


def test_gradients_at_probability_zero_are_not_nan():
    p = torch.tensor([0.4, 0.0, 0.6, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    for function in (info.cross_entropy, info.kl_divergence, info.js_divergence, lambda p, q: info.entropy(p)):
        gradients = torch.autograd.grad(function(p, q), [p, q], allow_unused=True)
        assert not any(g.isnan().any() for g in gradients if g is not None)
    x, y = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    for function in (info.cross_entropy, info.kl_divergence, info.js_divergence):
        assert torch.autograd.gradcheck(lambda x, y, f=function: f(x, y, from_logits=True), (x, y))


def test_perplexity_of_a_text():
    p = [0.5, 0.1, 0.25, 0.9]
    geometric = math.prod(1 / x for x in p) ** (1 / 4)
    nats, bits = (info.information_content(p, unit=unit) for unit in ("nats", "bits"))
    found = [info.sequence_perplexity(p), info.sequence_perplexity(nats, from_losses=True)]
    found += [info.sequence_perplexity(bits, from_losses=True, unit="bits"), 2 ** bits.mean(), math.e ** nats.mean()]
    assert [float(x) for x in found] == pytest.approx([geometric] * 5, rel=tolerance(4, nats))
    assert info.sequence_perplexity(p, per_token=False).item() == pytest.approx(
        1 / math.prod(p), rel=tolerance(4, nats.sum())
    )
    for n in (1, 5, 50):  # as long texts of uniform choices: the branching factor stays, without 1/n it grows
        assert info.sequence_perplexity([1 / 7] * n).item() == pytest.approx(7)
        assert info.sequence_perplexity([1 / 7] * n, per_token=False).item() == pytest.approx(7.0**n)
    assert info.sequence_perplexity([[0.5, 0.0], [0.5, 0.5]]).tolist() == pytest.approx([INF, 2])


# --- of labels --------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_and_its_gradient_equal_pytorch(dtype, smoothing, weighted, reduction):
    logits = torch.randn(40, 6, dtype=dtype, requires_grad=True)
    labels = torch.randint(6, (40,))
    labels[::7] = -100
    weight = torch.rand(6, dtype=dtype) + 0.1 if weighted else None
    found = info.cross_entropy_loss(logits, labels, weight=weight, label_smoothing=smoothing, reduction=reduction)
    truth = F.cross_entropy(logits, labels, weight, label_smoothing=smoothing, reduction=reduction)
    scale = 40 if reduction == "sum" else 1
    torch.testing.assert_close(found / scale, truth / scale, **near(dtype, 46, torch.log_softmax(logits, -1)))
    if reduction == "mean":
        (gradient,) = torch.autograd.grad(truth, logits)
        written = info.cross_entropy_gradient(logits, labels, weight=weight, label_smoothing=smoothing)
        torch.testing.assert_close(written.detach(), gradient, **near(dtype, 46))
        torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient, **near(dtype, 46))


@DTYPES
def test_cross_entropy_of_one_hot_labels_equals_pytorch_and_ops(dtype):
    logits, labels = 5 * torch.randn(30, 9, dtype=dtype), torch.randint(9, (30,))
    one_hot = F.one_hot(labels, 9).to(dtype)
    truth = torch.nn.CrossEntropyLoss(reduction="none")(logits, labels)
    for found in (
        info.cross_entropy(one_hot.log(), logits, from_logits=True),
        info.cross_entropy_loss(logits, labels, reduction="none"),
        reference.cross_entropy(logits, labels, "none"),
        fused.cross_entropy(logits, labels, "none"),
    ):
        torch.testing.assert_close(found, truth, **near(dtype, 9, logits))
    gradient = info.cross_entropy_gradient(logits, labels)
    torch.testing.assert_close(gradient, (torch.softmax(logits, -1) - one_hot) / 30, **near(dtype, 9))


def test_extreme_logits_break_log_of_softmax_but_not_cross_entropy_loss():
    logits, labels = torch.tensor([[1e4, -1e4]]), torch.tensor([1])
    x = logits.clone().requires_grad_()
    naive = -torch.log(torch.softmax(x, -1) + 1e-12)[0, 1]
    assert naive.item() == pytest.approx(27.631, abs=1e-3)  # -ln 1e-12, whatever the logits are
    assert torch.autograd.grad(naive, x)[0].abs().max() == 0  # and nothing is learnt from it
    assert info.cross_entropy_loss(logits, labels).item() == 2e4
    assert info.cross_entropy_gradient(logits, labels).tolist() == [[1, -1]]
    ruled_out = torch.tensor([[0.0, -INF, 0.0]])
    assert info.cross_entropy_loss(ruled_out, [0]).item() == pytest.approx(math.log(2))
    assert info.cross_entropy_loss(ruled_out, [1]).item() == INF


@DTYPES
@pytest.mark.parametrize("positive", [1.0, 3.5])
def test_binary_cross_entropy_equals_pytorch(dtype, positive):
    z = torch.cat(
        [30 * torch.randn(50, dtype=dtype), torch.tensor([0, 1e4, -1e4, 21, -21], dtype=dtype)]
    ).requires_grad_()
    labels = torch.rand(55, dtype=dtype).round(decimals=1)
    kwargs = {"from_logits": True, "positive_weight": positive, "reduction": "none"}
    found = info.binary_cross_entropy(z, labels, **kwargs)
    truth = F.binary_cross_entropy_with_logits(
        z, labels, pos_weight=torch.tensor(positive, dtype=dtype), reduction="none"
    )
    # exp, log1p, a product and two sums, each within a few units in the last place
    torch.testing.assert_close(found, truth, rtol=tolerance(16, dtype=dtype), atol=tolerance(16, positive, dtype=dtype))
    ours, theirs = torch.autograd.grad(found.sum(), z)[0], torch.autograd.grad(truth.sum(), z)[0]
    torch.testing.assert_close(ours, theirs, **near(dtype, 16, positive))
    p = torch.sigmoid(torch.randn(20, dtype=dtype))
    truth, close = F.binary_cross_entropy(p, labels[:20]), near(dtype, 20, p.log(), (1 - p).log())
    torch.testing.assert_close(info.binary_cross_entropy(p, labels[:20]), truth, **close)
    bits = info.binary_cross_entropy(p, labels[:20], unit="bits")
    torch.testing.assert_close(bits * math.log(2), truth, **close)


@pytest.mark.slow  # Keras takes ten seconds to import
@pytest.mark.skipif(find_spec("keras") is None, reason="keras, a development dependency, is not installed")
def test_losses_equal_keras(tmp_path):
    program = """
import keras, torch
assert keras.backend.backend() == "torch"
z, y = torch.tensor([[1.0, 2, 3], [3, 2, 1]]), torch.tensor([2, 0])
one_hot, b = torch.nn.functional.one_hot(y, 3).float(), torch.tensor([1.0, 0.0, 1.0])
L = keras.losses
print(float(L.SparseCategoricalCrossentropy(from_logits=True)(y, z)))
print(float(L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(one_hot, z)))
print(float(L.BinaryCrossentropy(from_logits=True)(b, z[0])))
print(float(L.KLDivergence()(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]]))))
"""
    settings = {"KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [float(x) for x in done.stdout.split()] == pytest.approx(
        [
            info.cross_entropy_loss(LOGITS, LABELS).item(),
            info.cross_entropy_loss(LOGITS, LABELS, label_smoothing=0.1).item(),
            info.binary_cross_entropy(LOGITS[0], [1, 0, 1], from_logits=True).item(),
            info.kl_divergence([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]).item(),
        ],
        abs=1e-6,
    )


# --- calibration, domains ---------------------------------------------------------------------------------------------


def test_calibration_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5], [0.85, 0.15]], dtype=torch.float64)
    found = info.reliability(p, torch.tensor([0, 0, 0, 1, -100]), bins=5)
    assert found.count.tolist() == [0, 0, 2, 1, 1]  # a confidence of 0.6, and one of 0.8, belong below their edges
    assert found.confidence[2:].tolist() == pytest.approx([0.55, 0.8, 0.9])
    assert found.accuracy[2:].tolist() == pytest.approx([0.5, 0, 1]) and found.accuracy[:2].isnan().all()
    assert found.expected_calibration_error == pytest.approx((2 * 0.05 + 0.8 + 0.1) / 4)
    logits = info.expected_calibration_error(p.log(), [0, 0, 0, 1, -100], bins=5, from_logits=True)
    assert logits == pytest.approx(0.25)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_equals_a_loop_over_the_bins(bins):
    p = torch.softmax(2 * torch.randn(500, 6, dtype=torch.float64), -1)
    labels = torch.randint(6, (500,))
    error = 0.0
    for m in range(bins):
        inside = [i for i in range(500) if m / bins < p[i].max() <= (m + 1) / bins]
        right = sum(p[i].argmax() == labels[i] for i in inside)
        error += abs(right - sum(p[i].max() for i in inside)) / 500
    assert info.expected_calibration_error(p, labels, bins=bins) == pytest.approx(float(error), abs=tolerance(500))


def test_label_smoothing_calibrates_an_overconfident_model():
    first = transition_matrix(1)
    inputs, targets = split_examples(sample_words(first, 1001, seed=4))
    text = sample_words(first, 130, seed=3)
    errors = []
    for smoothing in (0.0, 0.2):
        logits = train_gpt(text, 45, smoothing)(inputs)
        errors.append(info.expected_calibration_error(logits, targets, from_logits=True))
    assert errors[1] < 0.8 * errors[0] and errors[0] > 0.1


def test_domain_shift_is_lowest_on_the_diagonal():
    sources = [transition_matrix(seed) for seed in (1, 2)]
    models = [train_gpt(sample_words(s, 400, seed=3), 40) for s in sources]
    corpora = [sample_words(s, 800, seed=6) for s in sources]
    shift = info.domain_shift(models, corpora)
    assert shift.shape == (2, 2) and shift.dtype == torch.float64
    assert shift[0, 0] < shift[0, 1] and shift[0, 0] < shift[1, 0] and shift[1, 1] < shift[0, 1]
    inputs, targets = split_examples(corpora[1][:513])
    loss = F.cross_entropy(models[0](inputs).flatten(0, 1), targets.flatten()).item()
    exact = info.domain_shift(models[:1], [corpora[1][:513]], unit="bits", batch_size=5).item()
    assert exact == pytest.approx(loss / math.log(2), abs=1e-5)
    untrained = create_gpt()
    assert info.domain_shift([untrained], corpora)[0].tolist() == pytest.approx([math.log(7)] * 2, abs=0.1)
    with pytest.raises(ValueError, match="token 7"):
        info.domain_shift(models, [np.array([1, 7])])
    with pytest.raises(ValueError, match="at least a model and a corpus"):
        info.domain_shift(models, [])


def test_untrained_model_gives_targets_probability_one_in_seven():
    inputs, targets = split_examples(sample_words(transition_matrix(1), 65, seed=3))
    p = torch.softmax(create_gpt()(inputs), -1).gather(-1, targets[..., None])
    assert p.mean().item() == pytest.approx(1 / 7, abs=0.02)


# --- earth mover's distance -------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(pairs(), st.integers(0, 10_000))
def test_earth_movers_distance_on_a_line_equals_scipy(rows, seed):
    places = np.random.default_rng(seed).normal(size=rows.shape[1])
    found = info.earth_movers_distance(rows[0], rows[1], info.embedding_distances(places[:, None])).item()
    truth = wasserstein_distance(places, places, rows[0], rows[1])
    assert found == pytest.approx(truth, abs=SOLVER)
    assert info.earth_movers_distance(rows[0], rows[0], info.embedding_distances(places[:, None])).item() < SOLVER


def test_earth_movers_distance_of_uniform_masses_is_an_assignment():
    embeddings = torch.randn(24, 5)
    distances = info.embedding_distances(embeddings)
    torch.testing.assert_close(distances, (embeddings[:, None] - embeddings).double().norm(dim=-1), rtol=0, atol=1e-6)
    p = torch.zeros(2, 24)
    p[0, :12] = p[1, 12:] = 1 / 12
    rows, columns = scipy_optimize.linear_sum_assignment(distances[:12, 12:].numpy())
    truth = distances[rows, columns + 12].mean().item()
    found = info.earth_movers_distance(p, p.flip(0), distances)
    assert found.tolist() == pytest.approx([truth, truth], abs=SOLVER)


def test_earth_movers_distance_depends_on_where_the_mass_is():
    true, close, far = [1.0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]
    assert info.cross_entropy(true, close) == info.cross_entropy(true, far)
    assert info.earth_movers_distance(true, close, LINE).item() == pytest.approx(0.5)
    assert info.earth_movers_distance(true, far, LINE).item() == pytest.approx(1)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        info.earth_movers_distance([1.0, 0, 0], [1.0, 0, 0], LINE)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: info.entropy([0.5, -0.1, 0.6]), "negative"),
        (lambda: info.entropy([0.5, math.nan]), "NaN"),
        (lambda: info.entropy([0.5, 0.6]), "differs from 1 by 0.1"),
        (lambda: info.entropy([]), "no distribution"),
        (lambda: info.entropy(1.0), "no distribution"),
        (lambda: info.entropy([0.5, 0.5], unit="bit"), "'nats' or 'bits', not 'bit'"),
        (lambda: info.entropy([0.0, INF], from_logits=True), r"\+inf"),
        (lambda: info.entropy([-INF, -INF], from_logits=True), "no class"),
        (lambda: info.cross_entropy([0.5, 0.5], [1.0]), "2 classes and q has 1"),
        (lambda: info.kl_divergence(torch.ones(2, 1), torch.ones(3, 1)), "do not broadcast"),
        (lambda: info.information_content(1.5), "between 0 and 1"),
        (lambda: info.information_content([]), "between 0 and 1"),
        (lambda: info.sequence_perplexity([]), "no tokens"),
        (lambda: info.cross_entropy_loss(LOGITS, [2, 3]), "0 to 2"),
        (lambda: info.cross_entropy_loss(LOGITS, [2]), "must be integers"),
        (lambda: info.cross_entropy_loss(LOGITS, [-100, -100]), "all labels are ignored"),
        (lambda: info.cross_entropy_loss(LOGITS, LABELS, weight=[1, 2]), "each of the 3 classes"),
        (lambda: info.cross_entropy_loss(LOGITS, LABELS, label_smoothing=2), "0 to 1, not 2"),
        (lambda: info.cross_entropy_loss(LOGITS, LABELS, reduction="all"), "not 'all'"),
        (lambda: info.binary_cross_entropy([0.5], [0.5, 1]), "the same shape"),
        (lambda: info.binary_cross_entropy([0.5], [2]), "between 0 and 1"),
        (lambda: info.reliability([[0.5, 0.5]], [0], bins=0), "at least 1, not 0"),
        (lambda: info.embedding_distances([1.0, 2.0]), r"\(V, D\)"),
        (lambda: info.earth_movers_distance([0.5, 0.5], [0.5, 0.5], LINE), r"distances \(V, V\)"),
        (lambda: info.earth_movers_distance([0.5, 0.5], [1, 0], [[0, -1], [1, 0]]), "not negative"),
        (lambda: info.earth_movers_distance(torch.ones(1001) / 1001, torch.ones(1001) / 1001, torch.ones(1001, 1001)),
         "too many"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- pictures and pages -----------------------------------------------------------------------------------------------


def test_plots_show_the_values(tmp_path, monkeypatch):
    drawn = []
    save = plots.Figure.savefig
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, path: drawn.append(figure.axes) or save(figure, path))
    plots.plot_binary_loss(tmp_path / "a.png")
    plots.plot_coin_entropy(tmp_path / "b.png")
    plots.plot_target_probabilities([0.1, 0.2], [[0.8], [0.9]], 7, tmp_path / "c.png")
    found = info.reliability([[0.9, 0.1], [0.7, 0.3]], [0, 1], bins=5)
    plots.plot_reliability({"one": found, "two": found}, tmp_path / "d.png")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    (loss,), (coin,), (targets,), panels = drawn
    for line, sign in zip(loss.lines[:2], (1, 0), strict=True):
        for p, nats in line.get_xydata()[::100]:
            assert nats == pytest.approx(-math.log(p if sign else 1 - p))
    assert coin.lines[0].get_ydata()[[0, 200, 400]].tolist() == pytest.approx([0, 1, 0])
    assert [line.get_ydata()[0] for line in targets.lines] == pytest.approx([0.1, 0.8, 1 / 7])
    assert [bar.get_height() for bar in panels[0].patches[:5]] == pytest.approx([0, 0, 0, 0, 1])
    assert [bar.get_height() for bar in panels[0].patches[8:]] == pytest.approx([0.7, -0.1])
    assert "0.400" in panels[0].get_title("left") and len(panels) == 4


def test_code_in_docs_information_prints_its_comments(capsys):
    page = (PROJECT / "docs/information.md").read_text(encoding="utf-8")
    names, printed = {}, 0
    for program in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(program, "information.md", "exec"), names)
        said = [line.rpartition("# ")[2].split() for line in program.splitlines() if line.startswith("print(")]
        out = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert len(said) == len(out)
        for words, figures in zip(said, out, strict=True):
            assert [float(x.strip(",;")) for x in words[: len(figures)]] == pytest.approx(
                [float(x) for x in figures], abs=6e-5
            ), program
            printed += 1
    assert printed > 15
