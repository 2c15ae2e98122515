"""Prefix tuning against its formulas."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from blocks import BLOCKS
from small_adapters import MODEL, PREFIX, adapted, close, model_of, tokens

from gpt.ops import reference as ops
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
@BLOCKS
def test_every_query_attends_to_the_prefix_and_to_the_allowed_keys(implementation, n_queries, block):
    """Five keys: the window of four hides the first from the last query. The prefix meets unrotated queries."""
    model = adapted(PREFIX, dtype=torch.float64, implementation=implementation, **block)
    layer, n_groups = model.trf_blocks[0].att, model.config.kv_heads
    query = torch.randn(2, 4, n_queries, 4, dtype=torch.float64)
    key, value = torch.randn(2, 2, n_groups, 5, 4, dtype=torch.float64)
    _, rotation = model.pos_emb.encode(torch.zeros(1, n_queries, 16), torch.arange(5 - n_queries, 5))
    rotated = query if rotation is None else ops.rotate(query, *rotation)
    distance = torch.arange(5 - n_queries, 5)[:, None] - torch.arange(5)
    for mask, allowed in masks(2, 4, n_queries, 5):
        found = layer.attend(rotated, key, value, mask, rotation)
        for b, h, t in itertools.product(range(2), range(4), range(n_queries)):
            seen, group = allowed[b, h, t] & (distance[t] < (block.get("window") or 5)), h * n_groups // 4
            scores = [layer.prefix_key[group] @ query[b, h, t], key[b, group, seen] @ rotated[b, h, t]]
            values = torch.cat([layer.prefix_value[group], value[b, group, seen]])
            weights = torch.exp(torch.cat(scores) / math.sqrt(4))
            expected = weights @ values / weights.sum()
            torch.testing.assert_close(found[b, h, t], expected, rtol=0, atol=1e-6)  # float32 angles


@BLOCKS
def test_prefix_starts_as_the_keys_and_values_of_random_tokens(block):
    """The plain model reads the same tokens and then the text, whose positions begin at 0 again, or are all 0 for a
    rotary model. Text and prefix together exceed the context; a window never hides the prefix."""
    block = {**block, "full_every": 0}
    model, ids, length = model_of(**block).double(), tokens(2, 12), PREFIX.length
    is_rotary, config = model.config.position == "rope", model.config
    torch.manual_seed(3)
    before = torch.randint(MODEL.vocab_size, (1, length)).expand(2, -1)
    positions = torch.cat([torch.arange(length), torch.arange(12)]) * (not is_rotary)
    model.config = dataclasses.replace(config, context_length=length + 12)  # room for both
    row, column = torch.arange(length + 12)[:, None], torch.arange(length + 12)
    visible = (column <= row) & ((column < length) | (row - column < (config.window or 99)))
    plain = copy.deepcopy(model)
    for layer in plain.trf_blocks:
        layer.att.window = 0
    expected = plain.hidden_states(torch.cat([before, ids], dim=1), mask=visible, positions=positions)[:, length:]
    model.config = config
    torch.manual_seed(3)
    adapt(model, PREFIX)
    assert not model.training
    found = model.hidden_states(ids, positions=positions[length:])
    torch.testing.assert_close(found, expected, **close(torch.float64))


def test_prefix_changes_the_logits():
    model, ids = model_of(), tokens()
    plain = model(ids)
    assert (adapted(PREFIX, model)(ids) - plain).abs().amax() > 0.01


@BLOCKS
def test_prefix_under_autocast(block):
    model, ids = adapted(PREFIX, **block), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(ids)
    torch.testing.assert_close(half.float(), model(ids), rtol=0.1, atol=0.1)
