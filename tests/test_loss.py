"""Losses against torch's cross_entropy, evaluation against brute force over every token."""

import itertools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import GPT2_BLOCK, MODERN_BLOCK, WINDOWED_BLOCK
from numerics import tolerance

from gpt.config import GPTConfig
from gpt.data import DocumentExamples, create_dataloader, padded_batch
from gpt.loss import (
    Evaluation,
    calc_loss_batch,
    calc_loss_loader,
    evaluate,
    evaluation_mode,
    perplexity,
)
from gpt.model import GPTModel
from gpt.variants import create_model

# Relative. A dozen sums of at most 64 terms, and one over at most 170 tokens; norm and softmax amplify tenfold.
ROUNDING = tolerance(64 * 12 * 170, 10)

CONFIG = {
    "vocab_size": 31, "context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.4,
}  # fmt: skip


@pytest.fixture
def model():
    return GPTModel(CONFIG).double()


def token_losses(model, tokens, context, stride):
    """Return -log p of each token but the first, by one forward pass per token over the context in its window."""
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


def test_loss_of_a_loader_is_weighted_by_tokens(model):
    """21 windows in batches of 4: the last batch has one window and counts for one."""
    ids = torch.randint(0, 31, (21 * 8 + 1,)).tolist()
    loader = create_dataloader(ids, batch_size=4, context_length=8, shuffle=False, drop_last=False)
    truth = []
    model.eval()
    for start in range(0, 168, 8):
        window = torch.tensor(ids[start : start + 9])
        truth.append(F.cross_entropy(model(window[None, :-1])[0], window[1:]).item())
    model.train()
    assert calc_loss_loader(loader, model) == pytest.approx(np.mean(truth), rel=ROUNDING)
    assert model.training
    assert calc_loss_loader(loader, model, num_batches=2) == pytest.approx(np.mean(truth[:8]), rel=ROUNDING)
    assert calc_loss_loader(loader, model, num_batches=99) == pytest.approx(np.mean(truth), rel=ROUNDING)


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
    assert result.n_tokens == n_tokens - 1
    assert result.loss == pytest.approx(np.mean(truth), abs=1e-6)


def test_evaluation_touches_no_random_state_and_restores_the_mode(model):
    model.train()
    state = torch.get_rng_state()
    tokens = np.arange(31)
    first, second = evaluate(model, tokens, 8), evaluate(model, tokens, 8)
    assert np.array_equal(first.segments, second.segments)
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
    assert result.n_tokens == 32
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
def test_meaningless_evaluations_are_refused(model, kwargs, words):
    with pytest.raises(ValueError, match=words):
        evaluate(model, **{"tokens": np.arange(20), "context_length": 8, **kwargs})


# --- documents --------------------------------------------------------------------------------------------------------

EOT = 30


def documents_of(*lengths, seed=0):
    """Random documents of the given lengths, each between two end-of-text tokens."""
    draw = np.random.default_rng(seed)
    return np.concatenate([[EOT], *([*draw.integers(0, 30, length), EOT] for length in lengths)])


def document_losses(model, tokens, context):
    """Nats of each document, its end included, token by token: each from the end-of-text token before the document on,
    or, in a document longer than the context, from the last multiple of the context on."""
    model.eval()
    sums = []
    for before, after in pairwise([i for i, token in enumerate(tokens.tolist()) if token == EOT]):
        losses = []
        for place in range(before + 1, after + 1):
            start = before + (place - 1 - before) // context * context
            logits = model(torch.tensor(tokens[start:place])[None])[0, -1]
            losses.append(F.cross_entropy(logits, torch.tensor(tokens[place])).item())
        sums.append(math.fsum(losses))
    return np.array(sums)


@pytest.mark.parametrize(
    "options",
    [GPT2_BLOCK, {"implementation": "reference"}, {"backbone": "lstm"}, MODERN_BLOCK, WINDOWED_BLOCK],
    ids=str,
)
def test_a_padded_batch_has_the_loss_of_its_documents(options):
    """And the sum of their gradients."""
    model = create_model(GPTConfig(**CONFIG | options)).double().eval()
    tokens = documents_of(3, 7, 0, 5, 20, 1)
    examples = DocumentExamples(tokens, 8, EOT)
    parameters = list(model.parameters())

    def loss_and_gradient(inputs, targets):
        loss = model(inputs, targets, reduction="sum")
        return loss, torch.autograd.grad(loss, parameters, materialize_grads=True)

    together, gradient = loss_and_gradient(*examples.batch(range(len(examples))))
    alone = [loss_and_gradient(*(part[None] for part in examples[i])) for i in range(len(examples))]
    assert [len(examples[i][0]) for i in range(len(examples))] == [4, 8, 1, 6, 8, 8, 5, 2]
    assert together.item() == pytest.approx(math.fsum(loss.item() for loss, _ in alone), rel=ROUNDING)
    assert together.item() == pytest.approx(document_losses(model, tokens, 8).sum(), rel=ROUNDING)
    for i, whole in enumerate(gradient):
        torch.testing.assert_close(whole, sum(parts[i] for _, parts in alone))


def test_the_loss_of_padded_batches_ignores_padding(model):
    tokens = documents_of(1, 7, 3, 2, 6)
    examples = DocumentExamples(tokens, 8, EOT)
    truth = document_losses(model, tokens, 8)
    batches = [examples.batch([0, 1]), examples.batch([2, 3, 4])]
    assert calc_loss_loader(batches, model) == pytest.approx(truth.sum() / (len(tokens) - 1), rel=ROUNDING)
    assert calc_loss_loader(batches, model, num_batches=1) == pytest.approx(truth[:2].sum() / 10, rel=ROUNDING)
    model.eval()
    assert calc_loss_batch(*batches[0], model).item() == pytest.approx(truth[:2].sum() / 10, rel=ROUNDING)


@pytest.mark.parametrize(("batch_size", "context"), [(1, 8), (3, 1), (3, 3), (100, 8)])
@pytest.mark.parametrize("lengths", [(4,), (0,), (3, 7, 0, 5, 20, 1), (8, 8), (7, 7, 7, 16)], ids=str)
def test_documents_are_evaluated_one_by_one(model, lengths, context, batch_size):
    """A document of several windows is one segment. Text before the first and after the last mark is in none."""
    tokens = documents_of(*lengths)
    truth = document_losses(model, tokens, context)
    for text in (tokens, np.concatenate([[3, 4], tokens, [5]]).astype(np.uint16)):
        result = evaluate(model, text, context, batch_size=batch_size, eot_id=EOT, stride=context)
        assert result.segments.tolist() == list(range(len(lengths)))
        assert result.counts.tolist() == [length + 1 for length in lengths]
        assert result.sums == pytest.approx(truth, rel=1e-5)
        assert result.n_tokens == len(tokens) - 1
        assert result.loss == pytest.approx(truth.sum() / (len(tokens) - 1), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 3, 4, 7])
def test_documents_are_evaluated_in_overlapping_windows(model, stride):
    """Each token once, with the context of its window, which starts within its document."""
    lengths = (3, 7, 0, 8, 20, 1, 9)
    tokens = documents_of(*lengths)
    marks = np.flatnonzero(tokens == EOT)
    alone = [tokens[before : after + 1].tolist() for before, after in itertools.pairwise(marks)]
    truth = [sum(token_losses(model, document, 8, stride)) for document in alone]
    result = evaluate(model, tokens, 8, batch_size=3, eot_id=EOT, stride=stride)
    assert result.counts.tolist() == [length + 1 for length in lengths]
    assert result.sums == pytest.approx(truth, rel=1e-5)


def test_some_batches_of_documents_are_spread_over_the_text(model):
    """Of 10 documents, 2 batches of 2: 0, 2, 5 and 7, also in the floor."""
    tokens = documents_of(*range(1, 8), 2, 2, 2)
    truth = document_losses(model, tokens, 8)
    result = evaluate(model, tokens, 8, batch_size=2, n_batches=2, eot_id=EOT)
    assert result.segments.tolist() == [0, 2, 5, 7]
    assert result.counts.tolist() == [2, 4, 7, 3]
    assert result.sums == pytest.approx(truth[[0, 2, 5, 7]], rel=1e-5)
    floor = truth - np.arange(10)
    assert result.excess_over_floor(floor).loss == pytest.approx((0 + 2 + 5 + 7) / 16, rel=1e-5)


@pytest.mark.parametrize(("stride", "eot_id"), [(None, EOT), (3, EOT), (2, None), (3, None), (None, None)])
@pytest.mark.parametrize("n_batches", [1, 2, 3])
def test_a_part_of_the_text_is_evaluated_in_whole_segments(model, n_batches, stride, eot_id):
    """A document of three windows is evaluated whole or not at all, as a floor is one of whole documents."""
    tokens = documents_of(*[20] * 10)
    whole = evaluate(model, tokens, 8, stride=stride, eot_id=eot_id)
    part = evaluate(model, tokens, 8, batch_size=4, n_batches=n_batches, stride=stride, eot_id=eot_id)
    assert 0 < len(part.segments) < len(whole.segments)
    assert part.counts.tolist() == whole.counts[part.segments].tolist()
    assert part.excess_over_floor(whole.sums - whole.counts).loss == pytest.approx(1, rel=1e-5)


def test_segments_of_a_text_without_documents_are_context_lengths(model):
    """Overlapping windows add to the segment of their first new token."""
    tokens = np.random.default_rng(0).integers(0, 31, 21)
    losses = np.array(token_losses(model, tokens.tolist(), 8, 8))
    result = evaluate(model, tokens, 8)
    assert result.segments.tolist() == [0, 1, 2]
    assert result.counts.tolist() == [8, 8, 4]
    assert result.sums == pytest.approx([losses[:8].sum(), losses[8:16].sum(), losses[16:].sum()], rel=1e-5)
    for stride in (1, 4):
        losses = np.array(token_losses(model, tokens.tolist(), 8, stride))
        result = evaluate(model, tokens, 8, stride=stride)
        assert result.counts.tolist() == [8, 8, 4]
        assert result.sums == pytest.approx([losses[:8].sum(), losses[8:16].sum(), losses[16:].sum()], rel=1e-5)


def test_the_excess_over_a_floor_by_hand():
    """Two documents of 2 and 3 tokens, whose 1.0 and 3.0 nats lie 0.5 and 1.5 above the floor: 2 nats in 5 tokens, from
    which they deviate by 0.5 - 0.8 and 1.5 - 1.2 nats."""
    above = Evaluation(np.array([0, 2]), np.array([1.0, 3.0]), np.array([2, 3]), 4.0).excess_over_floor(
        np.array([0.5, 9.0, 1.5])
    )
    assert above.sums.tolist() == [0.5, 1.5]
    assert (above.n_tokens, above.bytes_per_token) == (5, 4.0)
    assert above.loss == pytest.approx(0.4)
    assert above.standard_error == pytest.approx(math.sqrt(2 * (0.3**2 + 0.3**2)) / 5)


def test_the_standard_error_over_a_floor_is_that_of_paired_differences(model):
    """The difficulty that a document has for both cancels out."""
    tokens = documents_of(*[6] * 25)
    losses = document_losses(model, tokens, 8)
    floor = losses - np.random.default_rng(1).normal(1, 0.1, 25)
    result = evaluate(model, tokens, 8, eot_id=EOT)
    differences = (losses - floor) / 7
    above = result.excess_over_floor(floor)
    assert above.loss == pytest.approx(differences.mean(), rel=1e-4)
    assert above.standard_error == pytest.approx(np.std(differences, ddof=1) / math.sqrt(25), rel=1e-3)
    assert result.standard_error == pytest.approx(np.std(losses / 7, ddof=1) / math.sqrt(25), rel=1e-4)
    assert above.standard_error < result.standard_error / 2
    assert result.excess_over_floor(result.sums).loss == result.excess_over_floor(result.sums).standard_error == 0


def test_the_standard_error_of_documents_of_many_lengths_is_what_repetition_shows():
    """500 times 200 documents of 1 to 30 tokens, each token 2 nats give or take 1, each document 0.5: the standard
    errors, squared, average to the variance of the losses."""
    draw = np.random.default_rng(0)
    losses, errors = [], []
    for _ in range(500):
        counts = draw.integers(1, 31, 200)
        sums = counts * draw.normal(2, 0.5, 200) + draw.normal(0, 1, 200) * np.sqrt(counts)
        evaluation = Evaluation(np.arange(200), sums, counts)
        losses.append(evaluation.loss)
        errors.append(evaluation.standard_error)
    assert np.mean(losses) == pytest.approx(2, abs=0.01)
    assert np.mean(np.square(errors)) == pytest.approx(np.var(losses), rel=0.2)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"stride": 9}, "stride must be 1 to context_length, 8"), ({"eot_id": 29}, "contains no document"),
     ({"tokens": np.array([1, EOT, 2])}, "contains no document")],
    ids=str,
)  # fmt: skip
def test_meaningless_evaluations_of_documents_are_refused(model, kwargs, words):
    tokens = np.array([EOT, 1, 2, EOT, 3, EOT])
    with pytest.raises(ValueError, match=words):
        evaluate(model, **{"tokens": tokens, "context_length": 8, "eot_id": EOT, **kwargs})


def test_padding_is_on_the_right_and_its_targets_are_ignored():
    inputs, targets = padded_batch(np.arange(20, dtype=np.uint16), iter([(3, 4), (10, 13), (0, 2)]))
    assert inputs.dtype == targets.dtype == torch.int64
    assert targets.tolist() == [[4, -100, -100], [11, 12, 13], [1, 2, -100]]
    assert [row[:n] for row, n in zip(inputs.tolist(), (1, 3, 2), strict=True)] == [[3], [10, 11, 12], [0, 1]]


def test_evaluating_restores_after_an_error(model):
    model.train()
    model.drop_emb.eval()
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not model.training
        raise KeyError
    assert model.training
    assert not model.drop_emb.training
