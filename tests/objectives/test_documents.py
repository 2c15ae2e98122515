"""gpt/objectives/documents.py: sampled documents against the model's probabilities."""

import itertools
import math
from collections import Counter

import pytest
import torch

from gpt.config import GPTConfig
from gpt.model import GPTModel
from gpt.objectives.documents import complete, generate_ids, sample_documents
from gpt.tokenizer import CharTokenizer


def test_sampled_documents_are_as_probable_as_the_model_says():
    """All documents of at most three tokens of a vocabulary of three, their probabilities by the chain rule."""
    torch.manual_seed(5)
    config = GPTConfig(vocab_size=3, context_length=3, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0)
    model = GPTModel(config).eval()
    eot = 2
    expected = {}
    for length in range(4):
        for tokens in itertools.product((0, 1), repeat=length):
            ids = [eot, *tokens, *([eot] if length < 3 else [])]  # three tokens and no end: cut off
            log_p = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
            expected[tokens] = math.exp(sum(log_p[i, token].item() for i, token in enumerate(ids[1:])))
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    n = 4000
    written = Counter(tuple(ids) for ids in sample_documents(model, eot, n, seed=3, batch_size=1500))
    assert sum(written.values()) == n
    assert set(written) <= set(expected)
    for tokens, p in expected.items():
        assert abs(written[tokens] / n - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-9
    assert sample_documents(model, eot, 5, seed=3) == sample_documents(model, eot, 5, seed=3)
    assert sample_documents(model, eot, 20, seed=3) != sample_documents(model, eot, 20, seed=4)


def test_prepend_eot_starts_the_prompt_with_the_end_of_text_token():
    tokenizer = CharTokenizer("abc", end_of_text=True)
    read = []

    class Reader(GPTModel):
        def hidden_states(self, token_ids, **arguments):
            read.append(token_ids.tolist())
            return super().hidden_states(token_ids, **arguments)

    reader = Reader({"vocab_size": 4, "context_length": 8, "emb_dim": 8, "n_heads": 1, "n_layers": 1}).eval()
    cases = ([2, 0, 1], True, [3, 2, 0, 1]), ([2, 0, 1], False, [2, 0, 1]), ([], True, [3]), ([], False, [3])
    for ids, prepend_eot, expected in cases:
        read.clear()
        list(generate_ids(reader, ids, tokenizer, prepend_eot, 2, temperature=0))
        assert read[0] == [expected]
    with pytest.raises(ValueError, match="the prompt is empty, and the tokenizer has no token that begins a text"):
        list(generate_ids(reader, [], CharTokenizer("abcd"), False))
    assert len(list(generate_ids(reader, [2], CharTokenizer("abcd"), False, temperature=0))) == 200


def test_each_text_ends_at_the_first_of_several_tokens():
    """As by hand: greedy texts without an end, cut at the first of the two tokens."""
    torch.manual_seed(1)
    model = GPTModel({"vocab_size": 8, "context_length": 64, "emb_dim": 8, "n_heads": 2, "n_layers": 1}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    prompts, stops = [[0], [1, 2], [3, 4, 5], [6]], {2, 5}
    for (whole, _), (ids, ended) in zip(
        complete(model, prompts, set(), 30, generator=[torch.Generator().manual_seed(i) for i in range(4)]),
        complete(model, prompts, stops, 30, generator=[torch.Generator().manual_seed(i) for i in range(4)]),
        strict=True,
    ):
        end = next((n for n, i in enumerate(whole) if i in stops), len(whole))
        assert (ids, ended) == (whole[:end], end < len(whole))
        assert len(whole) == 30
