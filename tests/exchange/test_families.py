"""Llama, Mistral, Qwen2 and Qwen3 against transformers: read from its folders, and written as folders that it reads."""

import dataclasses

import pytest
import torch
from small_models import FAMILIES, LLAMA3_ROPE, assert_same, edit_config, randomized, small_family, transformers

from gpt.config import GPTConfig
from gpt.exchange.export import export_book, export_hf
from gpt.exchange.pretrained import load_pretrained
from gpt.model import GPTModel
from gpt.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("".join(map(chr, range(33, 33 + 97))))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_transformers_computes_the_same_here_and_after_an_export(name, tmp_path):
    theirs = small_family(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    config = ours.config
    assert (ours.out_head.weight is ours.tok_emb.weight) == theirs.config.tie_word_embeddings
    assert_same(ours, theirs)
    if name == "qwen3 biases":
        with pytest.raises(ValueError, match="bias True and qk_norm True cannot be exported"):
            export_hf(ours, TOKENIZER, False, tmp_path / "ours")
        return
    export_hf(ours.float(), TOKENIZER, False, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    kind = "Llama" if name == "mistral" else FAMILIES[name][0]  # without a window they are the same
    assert type(again).__name__ == f"{kind}ForCausalLM"
    assert_same(ours, again)
    if name == "llama feed-forward biases":  # transformers has one switch for the biases of attention
        config = dataclasses.replace(config, qkv_bias=True)
    assert load_pretrained(tmp_path / "ours").config == config


@pytest.mark.parametrize("rope", [LLAMA3_ROPE, {"rope_type": "default", "rope_theta": 300.0}])
def test_rotary_settings_as_transformers_wrote_them_before_version_5(rope, tmp_path):
    theirs = small_family("llama")
    theirs = randomized(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**theirs.config.to_dict(), "rope_parameters": rope}))
    )
    theirs.save_pretrained(tmp_path)
    old = {key: value for key, value in rope.items() if key != "rope_theta"} if len(rope) > 2 else None
    edit_config(tmp_path, rope_parameters=None, rope_theta=rope["rope_theta"], rope_scaling=old)
    assert_same(load_pretrained(tmp_path), theirs)


def test_a_config_of_the_first_llamas(tmp_path):
    """It leaves out what later ones say, and the file has rotary frequencies."""
    theirs = small_family("llama")
    theirs.save_pretrained(tmp_path)
    left_out = (
        "rope_parameters",
        "head_dim",
        "num_key_value_heads",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
    )
    edit_config(tmp_path, **dict.fromkeys(left_out))
    assert_same(load_pretrained(tmp_path), theirs)


@pytest.mark.parametrize(("options", "kind"), [
    ({}, "Llama"),
    ({"bias": True}, "Llama"),
    ({"bias": True, "qkv_bias": True}, "Llama"),
    ({"qkv_bias": True}, "Qwen2"),
    ({"qk_norm": True}, "Qwen3"),
    ({"qk_norm": True, "qkv_bias": True}, "Qwen3"),
    ({"qk_norm": True, "window": 5, "full_every": 2, "n_layers": 4}, "Qwen3"),
    ({"window": 5}, "Mistral"),
    ({"window": 5, "qkv_bias": True}, "Qwen2"),
    ({"window": 5, "full_every": 3, "n_layers": 4}, "Qwen2"),
    ({"n_heads": 3, "n_kv_heads": 1, "head_dim": 6, "emb_dim": 20}, "Mistral"),
    ({"n_kv_heads": 1, "ffn_dim": 24, "tie_embeddings": True, "norm_eps": 1e-3, "rope_theta": 50.0}, "Llama"),
    ({"position": "learned", "norm": "layer", "feed_forward": "gelu", "bias": False, "ffn_dim": 24}, "GPT2"),
    ({"position": "learned", "norm": "layer", "feed_forward": "gelu_exact", "implementation": "reference"}, "GPT2"),
])  # fmt: skip
def test_the_options_decide_what_a_model_is_exported_as(options, kind, tmp_path):
    modern = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "bias": False}
    shape = {"vocab_size": 97, "context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0}
    ours = randomized(GPTModel(GPTConfig(**{**shape, **modern, **options})))
    export_hf(ours, TOKENIZER, False, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__.startswith(kind)
    assert_same(ours, theirs)
    assert_same(load_pretrained(tmp_path / "out"), theirs)


@pytest.mark.parametrize(("options", "words"), [
    ({"feed_forward": "relu2"}, "feed_forward 'relu2' and position 'rope' cannot be exported: Llama's family has"),
    ({"norm": "layer"}, "norm 'layer' and position 'rope'"),
    ({"position": "learned"}, "norm 'rms' and position 'learned' cannot be exported: GPT-2 has norm 'layer'"),
    ({"bias": True, "qk_norm": True}, "bias True and qk_norm True"),
    ({"bias": True, "window": 4}, "bias True and window 4"),
])  # fmt: skip
def test_options_that_no_architecture_has(options, words, tmp_path):
    modern = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "bias": False}
    model = GPTModel(GPTConfig(97, 24, 32, 4, 2, **{**modern, **options}))
    with pytest.raises(ValueError, match=words):
        export_hf(model, TOKENIZER, False, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be exported: the book's has"):
        export_book(model, TOKENIZER, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "settings", "words"), [
    ("llama", {"model_type": "gemma"}, "model_type is 'gemma', but only gpt2, llama, mistral, qwen2, qwen3 are read"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', but GPTModel has 'silu'"),
    ("llama", {"hidden_size": None}, "config lacks hidden_size"),
    ("llama", {"num_hidden_layers": "2"}, "n_layers must be a whole number, not '2'"),
    ("llama", {"num_key_value_heads": 3}, "n_heads 4 is not divisible by n_kv_heads 3"),
    ("llama", {"attention_bias": True}, "the tensor model.layers.0.self_attn.q_proj.bias is missing .8 missing"),
    ("llama biases", {"mlp_bias": False}, "the tensor model.layers.0.mlp.down_proj.bias has no place"),
    ("llama", {"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ has no place"),
    ("llama", {"vocab_size": 98}, r"embed_tokens\.weight has the shape \(97, 32\), not \(98, 32\)"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type is 'yarn'"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    ("llama 3", {"rope_parameters": {**LLAMA3_ROPE, "low_freq_factor": 2.0}}, "low_freq_factor is 2.0"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    ("qwen2 every other", {"layer_types": ["full_attention", "sliding_attention"]}, "not in all blocks, nor in"),
    ("qwen2 window", {"layer_types": None, "max_window_layers": 1}, "not in all blocks, nor in all but every n-th"),
])  # fmt: skip
def test_a_setting_that_is_not_computed_is_refused(family, settings, words, tmp_path):
    small_family(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        load_pretrained(edit_config(tmp_path, **settings))
    assert str(caught.value).startswith(str(tmp_path))


def test_a_folder_without_a_config(tmp_path):
    small_family("llama").save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"does not say which model it is: add its config\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no JSON object, but a list"):
        load_pretrained(tmp_path)


def test_in_pieces_in_bfloat16_and_with_fewer_positions(tmp_path):
    small_family("qwen3").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="6KB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = load_pretrained(tmp_path, context_length=7)
    assert ours.config.context_length == 7
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same(ours, theirs)
