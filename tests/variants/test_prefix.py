"""Prefix tuning against its formulas."""

import dataclasses
import math

import pytest
import torch
from small_adapters import MODEL, PREFIX, adapted, close, model_of, tokens

from gpt.variants import adapt


def masks(n_batch, n_heads, n_queries, n_keys):
    """Each kind of mask, and the (B, H, T, S) that it means."""
    causal = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)
    drawn = torch.rand(n_batch, n_heads, n_queries, n_keys) < 0.5
    every = torch.ones(n_batch, n_heads, n_queries, n_keys, dtype=torch.bool)
    yield "causal", every & causal
    yield "full", every
    yield drawn, drawn
    yield drawn[0, 0], every & drawn[0, 0]
    yield drawn[:, :1, :1], every & drawn[:, :1, :1]  # of keys alone
    yield drawn[:, :1, :, :1], every & drawn[:, :1, :, :1]  # of queries alone


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("n_queries", [1, 3, 5])
def test_every_query_attends_to_the_prefix_and_to_the_allowed_keys(implementation, n_queries):
    model = adapted(PREFIX, dtype=torch.float64, implementation=implementation)
    layer = model.trf_blocks[1].att
    query = torch.randn(2, 4, n_queries, 4, dtype=torch.float64)
    key, value = torch.randn(2, 2, 4, 5, 4, dtype=torch.float64)
    for mask, allowed in masks(2, 4, n_queries, 5):
        found = layer.attend(query, key, value, mask)
        for b in range(2):
            for h in range(4):
                for t in range(n_queries):
                    seen = allowed[b, h, t]
                    keys = torch.cat([layer.prefix_key[h], key[b, h, seen]])
                    values = torch.cat([layer.prefix_value[h], value[b, h, seen]])
                    weights = torch.exp(keys @ query[b, h, t] / math.sqrt(4))
                    expected = weights @ values / weights.sum()
                    torch.testing.assert_close(found[b, h, t], expected, **close(torch.float64))


def test_prefix_starts_as_the_keys_and_values_of_random_tokens():
    """The plain model reads the same tokens and then the text, whose positions begin at 0 again."""
    model, ids, length = model_of().double(), tokens(2, 12), PREFIX.length
    torch.manual_seed(3)
    before = torch.randint(MODEL.vocab_size, (1, length)).expand(2, -1)
    positions = torch.cat([torch.arange(length), torch.arange(12)])
    model.config = dataclasses.replace(MODEL, context_length=length + 12)  # room for both
    expected = model.hidden_states(torch.cat([before, ids], dim=1), positions=positions)[:, length:]
    model.config = MODEL
    torch.manual_seed(3)
    adapt(model, PREFIX)
    assert not model.training
    torch.testing.assert_close(model.hidden_states(ids), expected, **close(torch.float64))


def test_prefix_changes_the_logits():
    model, ids = model_of(), tokens()
    plain = model(ids)
    assert (adapted(PREFIX, model)(ids) - plain).abs().amax() > 0.01


def test_prefix_under_autocast():
    model, ids = adapted(PREFIX), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(ids)
    torch.testing.assert_close(half.float(), model(ids), rtol=0.1, atol=0.1)
