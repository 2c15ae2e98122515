"""Parameter counts and FLOPs against published sizes, hand computation and PyTorch's own counter."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt.config import GPTConfig
from gpt.exchange.layouts import GPT2_SIZES
from gpt.planning.flops import count_parameters, flops_per_token
from gpt.variants import create_model

SMALL = GPTConfig(vocab_size=65, context_length=64, emb_dim=64, n_heads=4, n_layers=3, drop_rate=0.0)


@pytest.mark.parametrize(
    ("name", "published"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_parameters_of_gpt2s_published_sizes(name, published):
    assert sum(count_parameters(GPT2_SIZES[name]).values()) == published


def test_parts_of_gpt2():
    # by hand: V·D, T·D, L·(4·D·D + 4·D), L·(8·D·D + 5·D), (2·L + 1)·2·D; the head is the embedding
    assert count_parameters(GPT2_SIZES["gpt2"]) == {
        "token embedding": 50257 * 768,
        "positions": 1024 * 768,
        "attention": 12 * (4 * 768 * 768 + 4 * 768),
        "feed-forward": 12 * (8 * 768 * 768 + 5 * 768),
        "norms": 25 * 2 * 768,
    }
    untied = dataclasses.replace(GPT2_SIZES["gpt2"], tie_embeddings=False)
    assert count_parameters(untied)["output head"] == 50257 * 768


@pytest.mark.parametrize("backbone", ["gpt", "lstm"])
def test_parts_add_up_to_the_model(backbone):
    model = dataclasses.replace(SMALL, backbone=backbone)
    assert sum(count_parameters(model).values()) == create_model(model).num_parameters()


@pytest.mark.parametrize(
    ("name", "by_hand"),  # 6 · (12·L·D² + V·D) + 12·L·T·D, worked out on paper
    [("gpt2", 854_438_400), ("gpt2-medium", 2_422_708_224), ("gpt2-large", 5_198_937_600), ("gpt2-xl", 10_273_545_600)],
)
def test_flops_of_gpt2s_published_sizes(name, by_hand):
    assert sum(flops_per_token(GPT2_SIZES[name])) == by_hand


def test_flops_of_layers_and_head():
    assert flops_per_token(GPT2_SIZES["gpt2"]) == (6 * 84_934_656 + 113_246_208, 6 * 38_597_376)


@pytest.mark.parametrize("backbone", ["gpt", "lstm"])
def test_flops_agree_with_pytorchs_counter(backbone):
    config = dataclasses.replace(SMALL, implementation="reference", backbone=backbone)
    n_tokens = 48 if backbone == "gpt" else 12  # PyTorch's LSTM on "meta" is a slow loop over the tokens
    ids = torch.randint(config.vocab_size, (2, n_tokens))
    with torch.device("cpu" if backbone == "gpt" else "meta"):  # the counter does not see a CPU's LSTM kernel
        model = create_model(config)
    ids = ids.to(next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model.hidden_states(ids).sum().backward()
    assert sum(flops_per_token(config, n_tokens)) * ids.numel() == pytest.approx(
        counter.get_total_flops() + 6 * config.vocab_size * config.emb_dim * ids.numel(), rel=0.02
    )
