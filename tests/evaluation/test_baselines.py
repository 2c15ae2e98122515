"""The baselines of a model: n-grams, saved results, and the entropy of the tales from their grammar."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import corpus_of
from numerics import tolerance
from torch import nn

import gpt.evaluation.baselines
import gpt.objectives.objective
from gpt.config import DataConfig, GPTConfig, TrainConfig
from gpt.evaluation.baselines import compute_baselines, tales_entropy_floor
from gpt.evaluation.ngrams import ngram_log_probabilities
from gpt.loss import evaluate
from gpt.objectives.next_token import NextToken
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus

TOKENIZERS = ["char", "bpe:512", "gpt2"]
N_VAL = 30  # a tenth of the tales


@pytest.fixture(scope="module")
def tale_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tales")
    return {name: prepare_data(open_corpus("tales:300"), name, folder / name.replace(":", "-")) for name in TOKENIZERS}


def next_token_baselines(data):
    """The baselines of next-token prediction, document by document."""
    return compute_baselines(NextToken(nn.Identity()), TrainConfig(data=DataConfig(packing="document")), data)


@pytest.fixture(scope="module")
def tale_baselines(tale_data):
    return {name: next_token_baselines(data) for name, data in tale_data.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_baselines_are_uniform_and_ngram_losses(tale_data, tale_baselines, name):
    data, found = tale_data[name], tale_baselines[name]
    vocab_size = data.tokenizer.vocab_size
    losses = [math.log(vocab_size)]
    losses += [-ngram_log_probabilities(data.train.tokens[1:], data.val.tokens, 1, vocab_size).mean()]
    losses += [-ngram_log_probabilities(data.train.tokens, data.val.tokens, n, vocab_size).mean() for n in (2, 3)]
    assert list(found.losses) == ["uniform", "unigram", "bigram", "trigram"]
    assert list(found.losses.values()) == pytest.approx(losses, rel=tolerance(len(data.val.tokens)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > found.entropy_floor_loss


@pytest.mark.parametrize("name", TOKENIZERS)
def test_entropy_floor_is_minus_log_p_of_each_tale(tale_data, tale_baselines, name):
    data, found = tale_data[name], tale_baselines[name]
    truth = [-tales.log_probability(tale) for tale in tales.generate(300)[-N_VAL:]]
    assert found.entropy_floor.tolist() == truth
    assert found.n_tokens == len(data.val.tokens) - 1
    assert found.entropy_floor_loss == pytest.approx(sum(truth) / (len(data.val.tokens) - 1), rel=tolerance(N_VAL))


class Guess(nn.Module):
    """A model to which all tokens are equally likely."""

    def __init__(self, vocab_size):
        super().__init__()
        self.config = GPTConfig(vocab_size)

    def forward(self, inputs, targets, reduction):
        return torch.where(targets == -100, 0.0, math.log(self.config.vocab_size))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_baselines_and_evaluation_count_the_same_tokens(tale_data, tale_baselines, name):
    """Every document's tokens and the end-of-text token after it; and stretch i of an evaluation is floor[i]'s."""
    data, found = tale_data[name], tale_baselines[name]
    guess = Guess(data.tokenizer.vocab_size)
    result = evaluate(guess, data.val.tokens, 400, eot_id=data.tokenizer.eot_id)
    assert result.n_tokens == found.n_tokens
    assert result.segments.tolist() == list(range(N_VAL))
    assert result.loss == pytest.approx(found.losses["uniform"], rel=1e-6)
    assert result.excess_over_floor(found.entropy_floor).loss == pytest.approx(
        result.loss - found.entropy_floor_loss, abs=tolerance(N_VAL, result.loss)
    )


def test_entropy_floor_in_bits_per_byte_does_not_depend_on_the_tokenizer(tale_data, tale_baselines):
    bits = [
        found.entropy_floor_loss * found.n_tokens / tale_data[name].val.bytes / math.log(2)
        for name, found in tale_baselines.items()
    ]
    n_bytes = sum(len(tale.encode()) for tale in tales.generate(300)[-N_VAL:])
    assert bits == pytest.approx(
        [tale_baselines["char"].entropy_floor.sum() / n_bytes / math.log(2)] * 3, rel=tolerance(N_VAL)
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_entropy_per_token_is_the_entropy_of_a_tale_over_the_mean_length(tale_baselines, name):
    found = tale_baselines[name]
    assert found.entropy * found.n_tokens / N_VAL == pytest.approx(tales.entropy(), rel=tolerance(4))
    error = found.entropy_floor.std(ddof=1) / N_VAL**0.5  # of a tale's mean -ln p, whose expectation is the entropy
    assert abs(found.entropy_floor.mean() - tales.entropy()) < 4 * error


def test_gap_closed_is_0_at_the_trigram_loss_and_1_at_the_floor(tale_baselines):
    for found in tale_baselines.values():
        gap = found.losses["trigram"] - found.entropy_floor_loss
        assert found.gap_closed(gap) == 0
        assert found.gap_closed(0) == 1
        assert found.gap_closed(gap * 3 / 4) == pytest.approx(0.25)
        assert found.gap_closed(found.losses["bigram"] - found.entropy_floor_loss) < 0


def test_tales_of_another_grammar_are_refused(tmp_path, monkeypatch):
    data = prepare_data(open_corpus("tales:20"), "char", tmp_path / "data", 0.2)
    assert len(tales_entropy_floor(data)) == 4
    monkeypatch.setattr(tales, "fingerprint", lambda: "00000000")
    with pytest.raises(ValueError, match="tales of a grammar other than that of"):
        tales_entropy_floor(data)


def test_text_other_than_tales_has_no_entropy_floor(prepared, tmp_path):
    """Neither one long text nor documents; its baselines it has."""
    documents = prepare_data(
        corpus_of(tmp_path / "in", *(f"document {n}" for n in range(12))), "char", tmp_path / "out"
    )
    assert documents.has_eot
    for data in (prepared, documents):
        found = next_token_baselines(data)
        assert found.entropy_floor is None
        assert list(found.losses) == ["uniform", "unigram", "bigram", "trigram"]
        assert np.isfinite(list(found.losses.values())).all()
        assert found.n_tokens == len(data.val.tokens) - 1


@pytest.mark.parametrize(("place", "has_floor"), [(0, True), (17, True), (18, False), (19, False)])
def test_a_validation_document_that_is_no_tale_removes_the_entropy_floor(tmp_path, place, has_floor):
    """Of 20 documents the last two validate."""
    texts = tales.generate(20)
    texts[place] = texts[place].replace("Once", "Twice").replace("Long ago", "Today")
    assert tales.log_probability(texts[place]) == -math.inf
    found = next_token_baselines(prepare_data(corpus_of(tmp_path / "in", *texts), "char", tmp_path / "out"))
    assert (found.entropy_floor is not None) == has_floor


def test_character_only_in_the_validation_split_has_a_finite_loss(tmp_path):
    """A char tokenizer knows it, from both splits; no character of the training split is as rare."""
    data = prepare_data(corpus_of(tmp_path / "in", *["abcd" * 5] * 11, "abzd"), "char", tmp_path / "out")
    assert np.isfinite(list(next_token_baselines(data).losses.values())).all()


def test_saved_results_apply_only_to_the_data_they_were_measured_on(tale_data, tmp_path, monkeypatch):
    char, bpe = tale_data["char"], tale_data["bpe:512"]
    results = [
        {"name": "LSTM", "data": char.checksums, "val_loss": 0.5},
        {"name": "another's", "data": bpe.checksums, "val_loss": 0.6},
        {"name": "half another's", "data": {**char.checksums, "val": bpe.val.sha256}, "val_loss": 0.7},
        {"name": "half its own", "data": {**bpe.checksums, "val": char.val.sha256}, "val_loss": 0.8},
    ]
    monkeypatch.setattr(gpt.evaluation.baselines, "RESULTS", tmp_path / "baselines.json")
    gpt.evaluation.baselines.RESULTS.write_text(json.dumps(results))
    found = next_token_baselines(char).losses
    assert list(found) == ["uniform", "unigram", "bigram", "trigram", "LSTM"]
    assert found["LSTM"] == 0.5
    assert list(next_token_baselines(bpe).losses)[4:] == ["another's"]
    assert list(next_token_baselines(tale_data["gpt2"]).losses)[4:] == []


def test_saved_results_of_the_project_are_valid():
    for result in json.loads(gpt.evaluation.baselines.RESULTS.read_text(encoding="utf-8")):
        assert isinstance(result["name"], str)
        assert 0 < result["val_loss"] < 20
        assert set(result["data"]) == {"train", "val"}
        assert all(len(bytes.fromhex(digest)) == 32 for digest in result["data"].values())


def test_baselines_use_only_the_first_tokens_of_a_large_split(tale_data, tale_baselines, monkeypatch):
    data = tale_data["bpe:512"]
    for module in (gpt.evaluation.baselines, gpt.objectives.objective):
        monkeypatch.setattr(module, "MAX_TOKENS", 2000)
    found = next_token_baselines(data)
    for n, name in ((1, "unigram"), (2, "bigram")):
        loss = -ngram_log_probabilities(data.train.tokens[2 - n : 2000], data.val.tokens[:2000], n, 512).mean()
        assert found.losses[name] == pytest.approx(loss, rel=tolerance(2000))
    assert found.n_tokens == len(data.val.tokens) - 1
    assert found.entropy_floor.tolist() == tale_baselines["bpe:512"].entropy_floor.tolist()
