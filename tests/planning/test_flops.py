"""Parameter counts and FLOPs against published sizes, hand computation and PyTorch's own counter."""

import dataclasses

import pytest
import torch
from blocks import BLOCKS, GPT2_BLOCK, MODERN_BLOCK, WINDOWED_BLOCK
from torch.utils.flop_counter import FlopCounterMode

from gpt.config import AdapterConfig, GPTConfig
from gpt.exchange.layouts import GPT2_SIZES
from gpt.planning.flops import count_adapter, count_parameters, flops_per_token
from gpt.variants import adapt, create_model

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


@pytest.mark.parametrize(
    "options",
    [{"backbone": "lstm"}, GPT2_BLOCK, MODERN_BLOCK, WINDOWED_BLOCK, {**MODERN_BLOCK, "tie_embeddings": True}],
)
def test_parts_add_up_to_the_model(options):
    model = dataclasses.replace(SMALL, **options)
    assert sum(count_parameters(model).values()) == create_model(model).num_parameters()


@BLOCKS
@pytest.mark.parametrize(
    "adapter", [AdapterConfig("lora", rank=3), AdapterConfig("lora", targets="out_proj, trf_blocks.1.att.W_key"),
                AdapterConfig("prefix", length=5)],
)  # fmt: skip
def test_parameters_of_an_adapter(adapter, block):
    config = dataclasses.replace(SMALL, **block)
    model = adapt(create_model(config), adapter)
    assert count_adapter(adapter, config) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_parameters_of_smollm2_135m():
    """134,515,008 by transformers' LlamaForCausalLM of the published config (576 wide, 30 layers, 9 heads on 3)."""
    model = GPTConfig(
        49152, 8192, 576, 9, 30, tie_embeddings=True, n_kv_heads=3, position="rope", norm="rms", feed_forward="swiglu",
        ffn_dim=1536, bias=False,
    )  # fmt: skip
    assert sum(count_parameters(model).values()) == 134_515_008


@pytest.mark.parametrize(
    ("name", "by_hand"),  # 6 · (12·L·D² + V·D) + 12·L·T·D, worked out on paper
    [("gpt2", 854_438_400), ("gpt2-medium", 2_422_708_224), ("gpt2-large", 5_198_937_600), ("gpt2-xl", 10_273_545_600)],
)
def test_flops_of_gpt2s_published_sizes(name, by_hand):
    assert sum(flops_per_token(GPT2_SIZES[name])) == by_hand


def test_flops_of_layers_and_head():
    assert flops_per_token(GPT2_SIZES["gpt2"]) == (6 * 84_934_656 + 113_246_208, 6 * 38_597_376)


@pytest.mark.parametrize(
    "options",
    [{"backbone": "lstm"}, GPT2_BLOCK, MODERN_BLOCK, {**MODERN_BLOCK, "head_dim": 24, "n_kv_heads": 1}, WINDOWED_BLOCK],
)
def test_flops_agree_with_pytorchs_counter(options):
    config = dataclasses.replace(SMALL, implementation="reference", **options)
    is_lstm = config.backbone == "lstm"
    n_tokens = 12 if is_lstm else 48  # PyTorch's LSTM on "meta" is a slow loop over the tokens
    ids = torch.randint(config.vocab_size, (2, n_tokens))
    with torch.device("meta" if is_lstm else "cpu"):  # the counter does not see a CPU's LSTM kernel
        model = create_model(config)
    ids = ids.to(next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model.hidden_states(ids).sum().backward()
    # the reference computes what a window hides: in the first and the third layer
    hidden = 2 * 12 * (n_tokens - 4) * config.emb_dim if config.window else 0
    assert (sum(flops_per_token(config, n_tokens)) + hidden) * ids.numel() == pytest.approx(
        counter.get_total_flops() + 6 * config.vocab_size * config.emb_dim * ids.numel(), rel=0.02
    )
