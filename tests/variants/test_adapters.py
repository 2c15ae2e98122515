"""LoRA and prefix tuning have this in common: frozen weights, causal logits, generation with a cache."""

import dataclasses

import pytest
import torch
from blocks import BLOCKS
from small_adapters import LORA, MODEL, PREFIX, adapted, close, model_of, tokens, trained

from gpt.config import AdapterConfig
from gpt.generation import generate, generate_text_simple
from gpt.variants import adapt, create_model

ADAPTERS = pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.name)


@pytest.mark.parametrize("tied", [True, False])
@ADAPTERS
@BLOCKS
def test_only_the_adapter_gets_gradients(config, tied, block):
    model = adapted(config, tie_embeddings=tied, **block).train()
    model(tokens(), tokens()).backward()
    marks = ("lora_A", "lora_B") if config is LORA else ("prefix_key", "prefix_value")
    for name, parameter in model.named_parameters():
        new = name.endswith(marks)
        assert parameter.requires_grad == new
        assert (parameter.grad is not None) == new, name
        assert not new or parameter.grad.abs().sum() > 0
    assert len(trained(model)) == 2 * MODEL.n_layers * (2 if config is LORA else 1)  # W_query and W_value; or once


def test_adapter_none_trains_everything():
    model = adapt(model_of(), AdapterConfig())
    assert len(trained(model)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (dataclasses.replace(LORA, targets="W_qeury"), {}, "called 'W_qeury'; choose from att.W_key, .*, ff.layers.0"),
        (dataclasses.replace(LORA, targets="query"), {}, "no layer is called 'query'"),
        (dataclasses.replace(LORA, targets=""), {}, "no layer is called ''; choose from .*out_head"),
        (dataclasses.replace(LORA, targets="W_query,"), {}, "no layer is called ''"),
        (dataclasses.replace(LORA, targets="out_head"), {"tie_embeddings": True}, "out_head shares its weight"),
        (dataclasses.replace(LORA, rank=17), {}, "adapter.rank 17 exceeds the rank 16"),
        (dataclasses.replace(PREFIX, length=13), {}, "adapter.length 13 exceeds .* context_length 12"),
        (LORA, {"backbone": "lstm"}, "'lora' needs the backbone 'gpt', not 'lstm'"),
        (PREFIX, {"backbone": "lstm"}, "'prefix' needs the backbone 'gpt', not 'lstm'"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(config, changes, words):
    with pytest.raises(ValueError, match=words):
        adapt(create_model(dataclasses.replace(MODEL, **changes)), config)


@ADAPTERS
@BLOCKS
def test_adapted_model_is_causal(config, block):
    model, ids = adapted(config, **block), tokens(1, 10)
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % MODEL.vocab_size
    before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :6], after[:, :6], **close(torch.float32))
    assert (before[:, 6:] - after[:, 6:]).abs().amax() > 0.01


@ADAPTERS
@BLOCKS
def test_generation_with_a_cache_is_unchanged(config, block):
    """Within the context of 12 tokens and, with learned positions, beyond; a rotary model's rows then as each alone."""
    model, ids = adapted(config, dtype=torch.float64, **block), tokens(3, 4)
    new = 24 if model.config.position == "learned" else 8
    assert torch.equal(generate(model, ids, new, temperature=0), generate_text_simple(model, ids, new, 12))
    ragged = [ids[0], ids[1, :1], ids[2, :3]]
    for prompt, written in zip(ragged, generate(model, ragged, 24, temperature=0), strict=True):
        alone = generate_text_simple(model, prompt[None], new, 12)[0]
        assert torch.equal(written[: len(alone)], alone)
        assert torch.equal(written, generate(model, [prompt], 24, temperature=0)[0])
