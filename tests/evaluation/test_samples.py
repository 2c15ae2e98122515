"""gpt/evaluation/samples.py: the entropy of what a model writes against an enumeration, friends counted by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from gpt.config import GPTConfig
from gpt.evaluation import samples
from gpt.model import GPTModel
from gpt.objectives import NextToken
from gpt.objectives.documents import sample_documents
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus

EOT = 2


@pytest.fixture(scope="module")
@torch.no_grad()
def three_tokens():
    """Return a model of at most three tokens from a vocabulary of three, and ln p of each document, token by token."""
    torch.manual_seed(5)
    model = GPTModel(GPTConfig(vocab_size=3, context_length=3, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0)).eval()
    log_p = {}
    for length in range(4):
        for document in itertools.product((0, 1), repeat=length):
            total, read = 0.0, [EOT]
            for token in (*document, EOT)[:3]:  # three tokens leave no room for an end
                total += float(model(torch.tensor([read])).log_softmax(-1)[0, -1, token])
                read.append(token)
            log_p[document] = total
    return model, log_p


def test_information_is_minus_ln_p_of_exactly_these_ids(three_tokens):
    model, log_p = three_tokens
    found = samples.information(model.train(), EOT, [list(document) for document in log_p], batch_size=4)
    assert found == pytest.approx([-p for p in log_p.values()], abs=1e-5)
    assert model.training, "it was in training mode before"


def test_the_mean_information_of_samples_is_the_entropy(three_tokens):
    model, log_p = three_tokens
    exact = -sum(p * math.exp(p) for p in log_p.values())
    nats = samples.information(model, EOT, sample_documents(model, EOT, 4000, seed=1))
    mean, error = samples._mean_with_error(nats)
    assert error == pytest.approx(np.std(nats) / math.sqrt(4000), rel=1e-3)
    assert abs(mean - exact) < 4 * error
    assert error < 0.03


def test_samples_are_judged_by_ids_not_by_their_text(tmp_path, monkeypatch):
    """A text that has been sampled in other tokens than the tokenizer's own has the probability of the sampled ones."""
    data = prepare_data(open_corpus("tales:60"), "bpe:700", tmp_path / "data", 0.2)
    shape = GPTConfig(vocab_size=data.tokenizer.vocab_size, context_length=900, emb_dim=8, n_heads=2, n_layers=1)
    model, texts = GPTModel(shape), tales.generate(6, seed=99)
    own = [data.tokenizer.encode(text) for text in texts]
    letters = [i for letter in texts[0] for i in data.tokenizer.encode(letter)]
    assert letters != own[0]
    monkeypatch.setattr(samples, "sample_documents", lambda model, eot_id, n, seed: [letters, *own[1:]])
    written, report, variety = samples.check_samples(NextToken(model), data, 6)
    assert (written, report.accepted) == (texts, 6)
    expected = samples.information(model, data.tokenizer.eot_id, [letters, *own[1:]])
    assert variety.entropy[0] == pytest.approx(expected.mean())
    assert expected[0] > 2 * samples.information(model, data.tokenizer.eot_id, own)[0]
    three = sum("three friends" in text for text in texts)
    assert 0 < three < 6
    p = three / 6
    assert variety.three_friends == pytest.approx((p, math.sqrt(p * (1 - p) / 5)))


def test_variety_stands_beside_the_grammars():
    first, second = samples.describe_variety(samples.Variety((70.123, 0.456), (0.3, 0.02))).splitlines()
    own = f"the grammar's: {tales.entropy():.2f}"
    assert first.split() == f"entropy of what it writes 70.12 ± 0.46 nats per tale; {own}".split()
    assert second.split() == ["tales", "with", "three", "friends", "30.0%", "±", "2.0%;", "the", "grammar's:", "33.3%"]
    assert max(map(len, (first, second))) <= 120


def test_a_third_of_the_grammars_tales_have_three_friends():
    written = tales.generate(5000, seed=3)
    share = sum(len(tales.facts(tale).friends) == 3 for tale in written) / len(written)
    assert share == pytest.approx(samples.THREE_FRIENDS, abs=4 * math.sqrt(2 / 9 / 5000))
    assert "\n  2x {friends:=few.two}" in tales.RULES, "two alternatives, one of them with twice the weight"
