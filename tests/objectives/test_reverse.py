"""Prediction from right to left, against losses token by token and sources that can be counted."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import corpus_of
from small_objectives import TEXTS, create, create_workspace, log_probability
from torch import nn

from gpt.config import DataConfig, GPTConfig, TrainConfig
from gpt.evaluation.baselines import compute_baselines
from gpt.evaluation.ngrams import ngram_log_probabilities
from gpt.evaluation.samples import check_samples
from gpt.generation import generate_text_simple
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken
from gpt.objectives.reverse import Reverse
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.token_files import load_data


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


def test_transform_reverses_tokens_but_not_documents(workspace):
    data = load_data(workspace / "documents")
    turned = Reverse.transform(data)
    for split, other in ((data.train, turned.train), (data.val, turned.val)):
        assert other.tokens.tolist() == split.tokens.tolist()[::-1]
        assert list(turned.documents(other)) == list(data.documents(split))[::-1]
    assert list(data.documents(data.train)) == TEXTS[:36]
    again = Reverse.transform(turned)
    assert again.val.tokens.tolist() == data.val.tokens.tolist()
    assert list(again.documents(again.val)) == TEXTS[36:]


def test_transform_reverses_a_text_without_documents(tmp_path):
    data = Reverse.transform(prepare_data(corpus_of(tmp_path / "in", "abcdefghij" * 5), "char", tmp_path / "out"))
    assert "".join(data.documents(data.val)) == "fghij"
    assert data.tokenizer.decode(data.val.tokens) == "jihgf"
    config = TrainConfig(model=GPTConfig(vocab_size=0, context_length=4), data=DataConfig(path=str(data.folder)))
    objective = Reverse(GPTModel(GPTConfig(vocab_size=10, context_length=4, emb_dim=8, n_heads=2, n_layers=1)))
    batch = objective.batch(objective.examples(config, data, data.train), [0], (0,))
    assert {key: data.tokenizer.decode(ids[0].tolist()) for key, ids in batch.items()} == {
        "inputs": "edcb",
        "targets": "dcba",
    }
    assert not objective.has_entropy_floor(config)


def test_loss_equals_log_probability_of_reversed_tokens(workspace):
    objective, config, data = create("reverse", workspace)
    encode, eot_id = data.tokenizer.encode, data.tokenizer.eot_id
    expected = [-log_probability(objective.model, [eot_id, *encode(text)[::-1], eot_id]) for text in TEXTS[:35:-1]]
    found = objective.evaluate(config, data)
    assert found.sums.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.counts.tolist() == [len(text) + 1 for text in TEXTS[:35:-1]]
    assert found.bytes_per_token == data.val.bytes / sum(len(text) + 1 for text in TEXTS[36:])
    batch = objective.batch(objective.examples(config, data, data.train), [0], (0,))
    assert batch["inputs"].tolist() == [[eot_id, *encode(TEXTS[35])[::-1]]]
    assert batch["targets"].tolist() == [[*encode(TEXTS[35])[::-1], eot_id]]
    assert objective(**batch)[0].item() == pytest.approx(
        -log_probability(objective.model, [eot_id, *encode(TEXTS[35])[::-1], eot_id]), rel=1e-5
    )


class Exact(nn.Module):
    """A model that knows the source, a table of sequences and their probabilities: p(next | so far), by counting."""

    config = GPTConfig(vocab_size=3, context_length=8)

    def __init__(self, source):
        super().__init__()
        self.source = source

    def probability(self, prefix):
        return math.fsum(p for sequence, p in self.source.items() if sequence[: len(prefix)] == prefix)

    def forward(self, inputs, targets, reduction="none", **_):
        losses = torch.zeros(targets.shape, dtype=torch.float64)
        for row, column in (targets != -100).nonzero().tolist():
            prefix = tuple(inputs[row, 1 : column + 1].tolist())
            further = (*prefix, int(targets[row, column]))
            losses[row, column] = -math.log(self.probability(further) / self.probability(prefix))
        return losses


def test_entropy_is_the_same_in_both_directions(tmp_path):
    """Words over two letters, not the same from both ends: each model knows all conditional probabilities of its own
    direction, and both find -ln p of each word."""
    words = {"a": 0.4, "ab": 0.2, "abb": 0.1, "bab": 0.05, "bb": 0.05, "baa": 0.2}
    texts = [*words, *words, "abb", "baa"]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), "char", tmp_path / "out", 8 / 14)
    model = GPTConfig(vocab_size=3, context_length=8)
    config = TrainConfig(model=model, data=DataConfig(path=str(data.folder), packing="document"))
    found = {}
    for kind, order in ((NextToken, 1), (Reverse, -1)):
        source = {(*data.tokenizer.encode(word)[::order], 2): p for word, p in words.items()}
        found[kind] = kind(Exact(source)).evaluate(config, kind.transform(data))
    truth = [-math.log(words[text]) for text in texts[6:]]
    assert found[NextToken].sums.tolist() == pytest.approx(truth, rel=1e-6)
    assert found[Reverse].sums.tolist() == pytest.approx(truth[::-1], rel=1e-6)
    assert found[Reverse].loss == pytest.approx(sum(truth) / sum(len(text) + 1 for text in texts[6:]), rel=1e-6)


@pytest.fixture(scope="module")
def some_tales(tmp_path_factory):
    return prepare_data(open_corpus("tales:30"), "char", tmp_path_factory.mktemp("tales") / "data", 0.1)


def test_entropy_floor_is_per_tale_and_ngrams_read_right_to_left(some_tales):
    texts = tales.generate(30)
    data = Reverse.transform(some_tales)
    config = TrainConfig(data=DataConfig(path=str(data.folder), packing="document"))
    objective = Reverse(GPTModel(GPTConfig(vocab_size=5, emb_dim=8, n_heads=2, n_layers=1)))
    measure, forwards = (
        compute_baselines(objective, config, data),
        compute_baselines(NextToken(objective.model), config, some_tales),
    )
    assert measure.entropy_floor.tolist() == pytest.approx([-tales.log_probability(text) for text in texts[:26:-1]])
    assert forwards.entropy_floor.tolist() == pytest.approx([-tales.log_probability(text) for text in texts[27:]])
    train, val = (np.array(split.tokens.tolist()[::-1]) for split in (some_tales.train, some_tales.val))
    trigram = -ngram_log_probabilities(train, val, 3, data.tokenizer.vocab_size).mean()
    assert measure.losses["trigram"] == pytest.approx(trigram)
    assert measure.losses["trigram"] != pytest.approx(forwards.losses["trigram"], abs=1e-4)
    assert measure.losses["unigram"] == pytest.approx(forwards.losses["unigram"])
    assert measure.n_tokens == forwards.n_tokens
    for other in (
        dataclasses.replace(config, eval_batches=2),
        dataclasses.replace(config, data=DataConfig(path=str(data.folder))),
    ):
        assert compute_baselines(objective, other, data).entropy_floor is None


def test_samples_are_checked_in_reading_order(some_tales, monkeypatch):
    known, new = tales.generate(30)[3], tales.generate(40)[39]
    data = Reverse.transform(some_tales)
    model = GPTModel(GPTConfig(vocab_size=data.tokenizer.vocab_size, emb_dim=8, n_heads=2, n_layers=1))
    written = [data.tokenizer.encode(text)[::-1] for text in (known, new, new[::-1])]
    monkeypatch.setattr("gpt.evaluation.samples.sample_documents", lambda model, eot_id, n, seed: written)
    texts, report, _ = check_samples(Reverse(model), data, 3)
    assert texts == [known, new, new[::-1]]
    assert (report.texts, report.accepted, report.unseen) == (3, 2, 1)


@pytest.mark.parametrize("prepend_eot", [True, False])
def test_generated_text_ends_with_the_prompt(workspace, prepend_eot):
    objective, _, data = create("reverse", workspace)
    tokenizer = data.tokenizer
    prompt = [tokenizer.eot_id] * prepend_eot + tokenizer.encode("one more")[::-1]
    greedy = generate_text_simple(objective.model, torch.tensor([prompt]), 7, 48)[0].tolist()
    before = greedy[len(prompt) :]
    before = before[: before.index(tokenizer.eot_id)] if tokenizer.eot_id in before else before
    (written,) = objective.generate_text("one more", tokenizer, prepend_eot, 7, temperature=0)
    assert written == tokenizer.decode(before[::-1]) + "one more"
