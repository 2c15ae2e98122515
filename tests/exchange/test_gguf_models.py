"""Models in GGUF files: as llama.cpp's converter writes them, exported to transformers, damaged."""

import struct
import sys

import numpy as np
import pytest
import torch
from small_models import FAMILIES, LLAMA3_ROPE, assert_same, randomized, small_family, transformers

from gpt.config import GPTConfig
from gpt.exchange.export import export_gguf
from gpt.exchange.pretrained import load_pretrained, open_pretrained
from gpt.model import GPTModel
from gpt.text.tokenizers import get_tokenizer

gguf = pytest.importorskip("gguf", reason='quantized GGUF files need pip install -e ".[gguf]"')
from gguf_files import written  # noqa: E402, after the skip

# --- models -----------------------------------------------------------------------------------------------------------


def permuted(weights, n_heads):
    """As convert_hf_to_gguf.py of llama.cpp permutes the queries and keys of a Llama."""
    return weights.reshape(n_heads, 2, len(weights) // n_heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def converted(theirs, path, changes=()):
    """Write a model of transformers' as llama.cpp's converter does, with the package's own table of names."""
    c, arch = theirs.config, {"mistral": "llama"}.get(theirs.config.model_type, theirs.config.model_type)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), c.num_hidden_layers)

    def add(writer):
        if arch == "gpt2":
            writer.add_context_length(c.n_positions)
            writer.add_feed_forward_length(c.n_inner or 4 * c.n_embd)
            writer.add_layer_norm_eps(c.layer_norm_epsilon)
        else:
            writer.add_context_length(c.max_position_embeddings)
            writer.add_feed_forward_length(c.intermediate_size)
            writer.add_layer_norm_rms_eps(c.rms_norm_eps)
            writer.add_head_count_kv(c.num_key_value_heads)
            writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
            writer.add_vocab_size(c.vocab_size)
            if c.head_dim if "head_dim" in vars(c) else None:
                writer.add_key_length(c.head_dim)
                writer.add_value_length(c.head_dim)
                writer.add_rope_dimension_count(c.head_dim)
        writer.add_embedding_length(c.hidden_size)
        writer.add_block_count(c.num_hidden_layers)
        writer.add_head_count(c.num_attention_heads)
        for name, tensor in theirs.named_parameters():
            module, leaf = name.rsplit(".", 1)
            value = tensor.detach().numpy()
            if arch == "gpt2" and module.split(".")[-1] in ("c_attn", "c_proj", "c_fc") and leaf == "weight":
                value = np.ascontiguousarray(value.T)
            if arch == "llama" and module.endswith(("q_proj", "k_proj")):
                value = permuted(value, c.num_attention_heads if module.endswith("q_proj") else c.num_key_value_heads)
            writer.add_tensor(f"{names.get_name(module)}.{leaf}", value)
        for change in changes:
            change(writer)

    return written(path, add, arch)


NOT_IN_GGUF = ("window", "every other", "feed-forward biases", "qwen3 biases", "llama 3", "qwen3 tied")


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.endswith(NOT_IN_GGUF)])
def test_a_model_of_transformers_as_llama_cpp_converts_it(name, tmp_path):
    theirs = small_family(name)
    found = open_pretrained(converted(theirs, tmp_path / "a.gguf"))
    assert found.config.tie_embeddings == theirs.config.tie_word_embeddings
    assert_same(found.model(), theirs)


def small_gpt2(**settings):
    shape = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    shape |= {"layer_norm_epsilon": 2.0**-16, **settings}
    return randomized(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)))


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False, "n_inner": 40, "layer_norm_epsilon": 0.5}])
def test_a_gpt2_as_llama_cpp_converts_it(settings, tmp_path):
    theirs = small_gpt2(**settings)
    assert_same(load_pretrained(converted(theirs, tmp_path / "a.gguf")), theirs)


def rope_factors(rope, head_dim):
    """As convert_hf_to_gguf.py of llama.cpp computes rope_freqs.weight."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / head_dim)
        smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        if wavelength < high:
            factors.append(1)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def test_llama_3s_scaling(tmp_path):
    """GGUF has it as a divisor of each frequency."""
    theirs = small_family("llama 3")
    factors = rope_factors(LLAMA3_ROPE, 32)
    assert len({*factors}) > 3
    path = converted(theirs, tmp_path / "a.gguf", [lambda writer: writer.add_tensor("rope_freqs.weight", factors)])
    config = open_pretrained(path).config
    assert (config.rope_scaling, config.rope_original_length) == (8.0, 128)
    other = converted(theirs, tmp_path / "b.gguf", [lambda w: w.add_tensor("rope_freqs.weight", factors**2)])
    with pytest.raises(ValueError, match=r"rope_freqs\.weight is not the scaling of Llama 3\.1"):
        load_pretrained(other)
    assert_same(load_pretrained(path), theirs)


@pytest.mark.parametrize(("change", "words"), [
    (lambda w: w.add_expert_count(8), r"llama: expert_count is 8, but GPTModel has 0"),
    (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"rope\.scaling\.type is 'yarn'"),
    (lambda w: w.add_rope_dimension_count(4), r"rope\.dimension_count is 4, but GPTModel has 8"),
    (lambda w: w.add_uint32("llama.novelty", 1), r"llama\.novelty is a setting that GPTModel does not have"),
    (lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32)), r"attn_sinks\.weight has no place"),
])  # fmt: skip
def test_what_is_not_computed_is_refused(change, words, tmp_path):
    theirs = small_family("llama")
    del theirs.config.head_dim
    path = converted(theirs, tmp_path / "a.gguf", [change])
    with pytest.raises(ValueError, match=words) as caught:
        open_pretrained(path)
    assert str(caught.value).startswith(str(path))


def test_a_sliding_window(tmp_path):
    """Converters name Mistral's, though llama.cpp reads it as a Llama."""
    theirs = small_family("mistral window")
    path = converted(theirs, tmp_path / "a.gguf", [lambda writer: writer.add_sliding_window(5)])
    assert_same(load_pretrained(path), theirs)


# --- export -----------------------------------------------------------------------------------------------------------

MODERN = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "bias": False}
EXPORTS = {
    "gpt2": {"qkv_bias": True, "tie_embeddings": True, "context_length": 1024},  # for transformers it has no other
    "gpt2 untied": {"context_length": 1024},
    "llama": {**MODERN, "n_kv_heads": 2, "rope_theta": 500.0},
    "llama tied": {**MODERN, "tie_embeddings": True, "head_dim": 16},
    "llama biases": {**MODERN, "bias": True, "qkv_bias": True},
    "qwen2": {**MODERN, "qkv_bias": True, "n_kv_heads": 1},
    "qwen3": {**MODERN, "qk_norm": True, "head_dim": 128},
}
TOKENIZER = get_tokenizer("bpe:300", ["It's a café, isn't it? They've 12,345 of them..."])


def exported(name, path, **options):
    shape = {"context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, **EXPORTS[name]}
    shape["norm_eps"] = 2.0**-16  # which float32, GGUF's type for it, can express
    model = randomized(GPTModel(GPTConfig(vocab_size=TOKENIZER.vocab_size, **shape)))
    export_gguf(model, TOKENIZER, False, path, **options)
    return model


@pytest.mark.parametrize("name", [name for name in EXPORTS if "biases" not in name])
def test_transformers_reads_an_export(name, tmp_path):
    """It would read a Llama without its biases; llama.cpp has them."""
    pytest.importorskip("accelerate", reason="transformers needs accelerate to read GGUF")
    ours = exported(name, tmp_path / "a.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf").eval()
    assert type(theirs).__name__.lower().startswith(name.split()[0])
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_read_here(name, tmp_path):
    ours = exported(name, tmp_path / "a.gguf")
    found = open_pretrained(tmp_path / "a.gguf")
    assert found.tokenizer().to_dict() == TOKENIZER.to_dict()
    again = found.model()
    assert again.state_dict().keys() == ours.state_dict().keys() or name == "gpt2 untied"  # whose biases are zero
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in ours.state_dict().items())


def test_an_export_with_scaled_rotary_embeddings(tmp_path):
    shape = {"context_length": 24, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, **MODERN}
    scaling = {"rope_theta": 5e3, "rope_scaling": 8.0, "rope_original_length": 128, "head_dim": 32, "norm_eps": 0.5}
    ours = randomized(GPTModel(GPTConfig(vocab_size=TOKENIZER.vocab_size, **shape, **scaling)))
    export_gguf(ours, TOKENIZER, False, tmp_path / "a.gguf")
    factors = next(t.data for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "rope_freqs.weight")
    np.testing.assert_allclose(factors, rope_factors(LLAMA3_ROPE, 32), rtol=1e-5)
    assert load_pretrained(tmp_path / "a.gguf").config == ours.config.__class__(**{**vars(ours.config), "init": "gpt2"})


@pytest.mark.parametrize(("options", "words"), [
    ({"window": 4}, "window 4 cannot be written as GGUF: llama.cpp has no such option for llama"),
    ({"qk_norm": True, "qkv_bias": True}, "qkv_bias True cannot be written as GGUF: llama.cpp has no .* for qwen3"),
    ({"qkv_bias": True, "rope_scaling": 2.0}, "rope_scaling 2.0 cannot be written as GGUF: .* for qwen2"),
    ({"feed_forward": "relu2"}, "feed_forward 'relu2'"),
    ({"position": "learned", "norm": "layer", "feed_forward": "gelu_exact"}, "'gelu_exact' cannot be .* for gpt2"),
])  # fmt: skip
def test_options_that_llama_cpp_lacks(options, words, tmp_path):
    shape = {"context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 1}
    model = GPTModel(GPTConfig(vocab_size=TOKENIZER.vocab_size, **shape, **{**MODERN, **options}))
    with pytest.raises(ValueError, match=words):
        export_gguf(model, TOKENIZER, False, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_the_name_of_an_export(tmp_path):
    with pytest.raises(ValueError, match=r"out must end in \.gguf"):
        exported("llama", tmp_path / "out")
    exported("llama", tmp_path / "new" / "a.gguf")
    with pytest.raises(ValueError, match=r"a\.gguf exists already: name another file"):
        exported("llama", tmp_path / "new" / "a.gguf")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gguf"]


# --- damage -----------------------------------------------------------------------------------------------------------


def cut(end):
    return lambda raw: raw[:end]


def put(at, new):
    return lambda raw: raw[:at] + new + raw[at + len(new) :]


def swap(old, new):
    return lambda raw: raw.replace(old.encode(), new.encode())


@pytest.mark.parametrize(("damage", "words"), [
    (cut(0), "is not a GGUF file"),
    (put(0, b"PK\x03\x04"), "is not a GGUF file: it does not begin with GGUF"),
    (put(4, struct.pack("<I", 1)), "has GGUF version 1, but versions 2 and 3 are read"),
    (put(4, struct.pack(">I", 3)), "has GGUF version 50331648"),
    (cut(12), "damaged or incomplete: its header cannot be read"),
    (cut(100), "damaged or incomplete: its header cannot be read"),
    (cut(-4000), r"is incomplete: \S+ ends at byte [\d,]+, but the file at [\d,]+"),
    (put(16, struct.pack("<Q", 2**40)), "damaged or incomplete"),  # the number of keys
    (put(24, struct.pack("<Q", 2**63)), "damaged or incomplete"),  # the length of a name
    (put(32, b"\xff"), "damaged or incomplete"),  # a name that is not UTF-8
    (swap("general.architecture", "general.Architecture"), "architecture is None, but only gpt2, llama, qwen2 and"),
    (put(64, b"gemma"), "architecture is 'gemma', but only"),
    (swap("llama.embedding_length", "llama.Embedding_length"), r"its metadata lack llama\.embedding_length"),
    (swap("token_embd", "Token_embd"), r"the tensor token_embd\.weight is missing"),
    (swap("blk.1.ffn_up", "blk.2.ffn_up"), r"the tensor blk\.1\.ffn_up\.weight is missing .1 missing"),
    (swap("tokenizer.ggml.tokens", "tokenizer.ggml.Tokens"), "its tokenizer is damaged: KeyError 'tokens'"),
])  # fmt: skip
def test_a_damaged_file_is_one_sentence(damage, words, tmp_path):
    path = tmp_path / "a.gguf"
    exported("llama", path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=words) as caught:
        open_pretrained(path).tokenizer()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    exported("llama", path)
    raw = path.read_bytes()
    for length in [*range(0, 9000, 37), *range(9000, len(raw), 4999)]:
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"a\.gguf"):
            open_pretrained(path)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    exported("llama", tmp_path / "a.gguf", dtype="float16")
    load_pretrained(tmp_path / "a.gguf")
    exported("llama", tmp_path / "b.gguf", dtype="q8_0")
    with pytest.raises(ValueError, match=r"b\.gguf has quantized weights, which need: pip install -e"):
        load_pretrained(tmp_path / "b.gguf")
