"""Losses against torch's cross_entropy, evaluation against brute force over every token."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt.data import create_dataloader
from gpt.loss import calc_loss_batch, calc_loss_loader, evaluate, evaluating, evaluation_windows, perplexity
from gpt.model import GPTModel

CONFIG = {
    "vocab_size": 31, "context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.4,
}  # fmt: skip


@pytest.fixture
def model():
    return GPTModel(CONFIG).double()


def token_losses(model, tokens, context, stride):
    """-log p of each token but the first, one forward pass per token, from the context that its window gives it."""
    model.eval()
    losses = []
    window_start, window_end = 0, min(context, len(tokens) - 1)
    for place in range(1, len(tokens)):
        if place > window_end:
            window_start += stride
            window_end = min(window_start + context, len(tokens) - 1)
        logits = model(torch.tensor(tokens[window_start:place])[None])[0, -1]
        losses.append(F.cross_entropy(logits, torch.tensor(tokens[place])).item())
    return losses


def test_loss_of_a_batch(model):
    inputs, targets = torch.randint(0, 31, (2, 3, 8))
    model.eval()
    truth = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(calc_loss_batch(inputs, targets, model, "cpu"), truth)


def test_loss_of_a_loader_weighs_by_tokens(model):
    """21 windows in batches of 4: the last batch has one window and counts for one."""
    ids = torch.randint(0, 31, (21 * 8 + 1,)).tolist()
    loader = create_dataloader(ids, batch_size=4, context_length=8, shuffle=False, drop_last=False)
    truth = []
    model.eval()
    for start in range(0, 168, 8):
        window = torch.tensor(ids[start : start + 9])
        truth.append(F.cross_entropy(model(window[None, :-1])[0], window[1:]).item())
    model.train()
    assert calc_loss_loader(loader, model) == pytest.approx(np.mean(truth), rel=1e-12)
    assert model.training
    assert calc_loss_loader(loader, model, num_batches=2) == pytest.approx(np.mean(truth[:8]), rel=1e-12)
    assert calc_loss_loader(loader, model, num_batches=99) == pytest.approx(np.mean(truth), rel=1e-12)


@pytest.mark.parametrize(("n_kept", "num_batches"), [(1, 0), (0, None)])
def test_a_loss_over_no_batch_is_an_error(model, n_kept, num_batches):
    loader = list(create_dataloader(list(range(9)), batch_size=1, context_length=8))[:n_kept]
    with pytest.raises(ValueError, match="no batch"):
        calc_loss_loader(loader, model, num_batches=num_batches)


def test_perplexity_is_the_geometric_mean_of_the_inverse_probabilities():
    probabilities = [0.5, 0.1, 0.25, 0.9]
    loss = -sum(map(math.log, probabilities)) / 4
    geometric = math.prod(1 / p for p in probabilities) ** (1 / 4)
    assert perplexity(loss) == pytest.approx(geometric)
    assert perplexity(torch.tensor(loss)).item() == pytest.approx(geometric)
    assert perplexity(math.log(50257)) == pytest.approx(50257)
    assert perplexity(1e6) == math.inf


@pytest.mark.parametrize("n_tokens", [2, 3, 8, 9, 10, 17, 50])
@pytest.mark.parametrize("stride", [None, 1, 3, 8])
def test_evaluation_predicts_each_token_once_with_its_context(model, n_tokens, stride):
    tokens = np.random.default_rng(n_tokens).integers(0, 31, n_tokens)
    truth = token_losses(model, tokens.tolist(), 8, stride or 8)
    result = evaluate(model, tokens, 8, batch_size=3, stride=stride)
    assert result.tokens == n_tokens - 1
    assert result.loss == pytest.approx(np.mean(truth), abs=1e-6)


def test_evaluation_windows_by_hand():
    assert list(evaluation_windows(10, 4)) == [(0, 4, 1), (4, 8, 5), (8, 9, 9)]
    assert list(evaluation_windows(10, 4, 2)) == [(0, 4, 1), (2, 6, 5), (4, 8, 7), (6, 9, 9)]


def test_evaluation_draws_nothing_and_restores_the_mode(model):
    model.train()
    state = torch.get_rng_state()
    tokens = np.arange(31)
    first, second = evaluate(model, tokens, 8), evaluate(model, tokens, 8)
    assert np.array_equal(first.stretches, second.stretches)
    assert np.array_equal(first.sums, second.sums)
    assert np.array_equal(first.counts, second.counts)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_some_batches_are_spread_over_the_text(model):
    """Of 10 windows, 2 batches of 2: windows 0, 2, 5 and 7."""
    tokens = np.random.default_rng(0).integers(0, 31, 81)
    truth = token_losses(model, tokens.tolist(), 8, 8)
    chosen = [truth[8 * w + i] for w in (0, 2, 5, 7) for i in range(8)]
    result = evaluate(model, tokens, 8, batch_size=2, n_batches=2)
    assert result.tokens == 32
    assert result.loss == pytest.approx(np.mean(chosen), abs=1e-6)


def test_units():
    """A uniform guess over 32 tokens is 5 bits; at 2 bytes per token 2.5 bits per byte."""
    model = GPTModel({**CONFIG, "vocab_size": 32})
    torch.nn.init.zeros_(model.out_head.weight)
    result = evaluate(model, np.arange(32), 8, bytes_per_token=2.0)
    assert result.loss == pytest.approx(math.log(32), rel=1e-6)
    assert result.bits_per_token == pytest.approx(5, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(2.5, rel=1e-6)
    assert result.perplexity == pytest.approx(32, rel=1e-6)
    assert result.standard_error == pytest.approx(0, abs=1e-6)


def test_standard_error_is_that_of_a_mean_for_windows_of_equal_length(model):
    tokens = np.random.default_rng(0).integers(0, 31, 20 * 8 + 1)
    truth = np.array(token_losses(model, tokens.tolist(), 8, 8)).reshape(20, 8).mean(1)
    assert evaluate(model, tokens, 8).standard_error == pytest.approx(truth.std(ddof=1) / 20**0.5, rel=1e-5)
    assert math.isnan(evaluate(model, tokens[:5], 8).standard_error)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"tokens": np.arange(1)}, "nothing to predict"), ({"context_length": 9}, "context"), ({"stride": 9}, "stride"),
     ({"context_length": 0}, "context"), ({"stride": 0}, "stride"), ({"batch_size": 0}, "batch_size")],
    ids=str,
)  # fmt: skip
def test_evaluations_that_mean_nothing(model, kwargs, words):
    with pytest.raises(ValueError, match=words):
        evaluate(model, **{"tokens": np.arange(20), "context_length": 8, **kwargs})


def test_evaluating_restores_after_an_error(model):
    model.train()
    model.drop_emb.eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training
        raise KeyError
    assert model.training
    assert not model.drop_emb.training
