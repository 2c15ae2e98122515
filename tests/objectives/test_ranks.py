"""gpt/objectives/ranks.py: ranks and accuracy against sorting, token by token."""

import doctest
import math

import numpy as np
import pytest
import torch
from numerics import tolerance

import gpt.objectives.ranks
from gpt.config import GPTConfig
from gpt.evaluation.metrics import accuracy, top_k_accuracy
from gpt.loss import evaluate
from gpt.objectives.ranks import accuracy_with_error, evaluate_top_k, target_ranks
from gpt.system import chunked_loss
from gpt.variants import create_model


def brute_ranks(logits, targets):
    """Where each target stands when the tokens are sorted by logit, then by id."""
    rows = zip(logits.flatten(0, -2).tolist(), targets.flatten().tolist(), strict=True)
    return [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i)).index(t) for row, t in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ranks_equal_sorting(dtype):
    """Whole numbers as logits, so that ties abound; infinite ones among them."""
    logits = torch.randint(-3, 4, (5, 7, 11)).to(dtype)
    logits[logits == -3] = -torch.inf
    logits[0][logits[0] == 3] = torch.inf
    targets = torch.randint(0, 11, (5, 7))
    ranks = target_ranks(logits, targets)
    assert ranks.shape == targets.shape
    assert ranks.flatten().tolist() == brute_ranks(logits, targets)
    for k in (1, 3, 11, 20):
        assert top_k_accuracy(logits, targets, k) == pytest.approx(
            np.mean(ranks.numpy() < k), rel=4 * np.finfo(float).eps
        )
    assert accuracy(logits, targets) == np.mean(ranks.numpy() == 0)


def test_equal_logits_rank_by_token_id():
    logits = torch.zeros(1000, 10)
    targets = torch.arange(1000) % 10
    assert [top_k_accuracy(logits, targets, k) for k in (1, 3, 10)] == [0.1, 0.3, 1.0]  # no more than a guess
    assert target_ranks(torch.full((1, 4), -torch.inf), torch.tensor([2])).tolist() == [2]


def test_ignored_targets_are_not_counted():
    logits = torch.randn(4, 6, 9)
    targets = torch.randint(0, 9, (4, 6), dtype=torch.int32)
    counted = torch.rand(4, 6) < 0.5
    masked = torch.where(counted, targets, -100)
    assert top_k_accuracy(logits, masked, 2) == pytest.approx(top_k_accuracy(logits[counted], targets[counted], 2))
    assert (target_ranks(logits, masked)[~counted] == -1).all()


# --- a model's accuracy -----------------------------------------------------------------------------------------------

EOT = 0


def tiny(backbone="gpt", implementation="fused"):
    config = GPTConfig(
        vocab_size=31, context_length=8, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.4,
        backbone=backbone, implementation=implementation,
    )  # fmt: skip
    return create_model(config)


def brute_accuracy(model, spans, tokens, k):
    """Window by window, all logits at once."""
    model.eval()
    topk_correct = []
    for start, end in spans:
        logits = model(torch.tensor(tokens[start:end])[None])[0]
        topk_correct += [rank < k for rank in brute_ranks(logits, torch.tensor(tokens[start + 1 : end + 1]))]
    return np.mean(topk_correct)


@pytest.mark.parametrize(("backbone", "implementation"), [("gpt", "fused"), ("gpt", "reference"), ("lstm", "fused")])
@pytest.mark.parametrize("rows", [3, 1000])
def test_top_k_accuracy_needs_no_second_forward_pass(backbone, implementation, rows, monkeypatch):
    """The same loss to the last bit, never more logits at once than a chunk holds, in documents too."""
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", rows * 31)
    model = tiny(backbone, implementation).double()
    held = []
    model.out_head.register_forward_hook(lambda module, inputs, logits: held.append(logits.numel()))
    tokens = np.random.default_rng(1).integers(1, 31, 100)
    plain, spans = evaluate(model, tokens, 8, batch_size=3), [(i, min(i + 8, 99)) for i in range(0, 99, 8)]
    assert not plain.topk_correct
    result = evaluate_top_k(model, tokens, 8, batch_size=3, top_k=(1, 5))
    assert max(held) <= rows * 31
    if implementation == "fused":
        assert np.array_equal(result.sums, plain.sums)
    np.testing.assert_allclose(result.sums, plain.sums, rtol=tolerance(12 * 64))  # a dozen sums of at most 64 products
    for k in (1, 5):
        assert accuracy_with_error(result, k)[0] == pytest.approx(
            brute_accuracy(model, spans, tokens, k), rel=tolerance(99)
        )
    tokens[[0, 3, 4, 17, 99]] = EOT
    spans = [(0, 3), (3, 4), (4, 12), (12, 17), *((i, min(i + 8, 99)) for i in range(17, 99, 8))]
    result = evaluate_top_k(model, tokens, 8, batch_size=4, eot_id=EOT, top_k=(1, 5))
    for k in (1, 5):
        assert accuracy_with_error(result, k)[0] == pytest.approx(
            brute_accuracy(model, spans, tokens, k), rel=tolerance(99)
        )
    shares = [brute_accuracy(model, [(i, i + 8)], tokens, 5) for i in range(0, 96, 8)]
    result = evaluate_top_k(model, tokens[:97], 8, top_k=(5,))
    truth = (np.mean(shares), np.std(shares, ddof=1) / 12**0.5)
    assert accuracy_with_error(result, 5) == pytest.approx(truth, rel=tolerance(99))


def test_overlapping_windows_count_each_token_once():
    model = tiny()
    tokens = np.random.default_rng(2).integers(0, 31, 60)
    result = evaluate_top_k(model, tokens, 8, stride=3, top_k=(1, 31))
    assert result.n_tokens == 59
    assert accuracy_with_error(result, 31) == (1, 0)
    with torch.no_grad():
        model.out_head.weight.zero_()  # all tokens equally likely: the lowest id comes first
    result = evaluate_top_k(model, tokens, 8, stride=3, top_k=(1,))
    assert accuracy_with_error(result)[0] == np.mean(tokens[1:] == 0)


def test_accuracy_of_nan_logits_is_an_error():
    model = tiny()
    with torch.no_grad():
        model.out_head.weight[3] = math.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        evaluate_top_k(model, np.arange(20), 8, top_k=(1,))


def test_docstring_examples():
    result = doctest.testmod(gpt.objectives.ranks)
    assert result.attempted >= 1
    assert result.failed == 0
