"""gpt/exchange/peft.py: adapters as PEFT writes them, against transformers' models with weights changed by hand."""

import json
import math

import pytest
import safetensors.torch
import torch
from conftest import corpus_of
from small_models import assert_same, randomized, small_family

from gpt.config import TrainConfig, from_dict
from gpt.exchange.models import load_model, load_objective
from gpt.exchange.peft import export_peft
from gpt.exchange.pretrained import load_pretrained, open_pretrained
from gpt.run.training import start_run
from gpt.text.prepare import prepare_data
from gpt.text.tokenizers import get_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

LAYERS = {
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc"],
    "llama": ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj"],
}


def base_of(family, vocab_size=97):
    if family == "gpt2":
        shape = {"vocab_size": vocab_size, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
        config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **shape)
        return randomized(transformers.GPT2LMHeadModel(config))
    return small_family("llama")


def write_adapter(folder, theirs, layers, rank=3, base="base", **settings):
    """Write random updates of layers as PEFT does; return them, (out, in) each without their scale, by layer."""
    folder.mkdir()
    updates, tensors = {}, {}
    for layer in layers:
        rows, columns = theirs.get_submodule(layer).weight.shape
        rows, columns = (columns, rows) if "transformer.h" in layer else (rows, columns)  # a Conv1D is (in, out)
        A, B = torch.randn(rank, columns), torch.randn(rows, rank)
        tensors |= {f"base_model.model.{layer}.lora_{leaf}.weight": x for leaf, x in (("A", A), ("B", B))}
        updates[layer] = B @ A
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 6, "bias": "none"}
    config |= {"use_dora": False, "use_rslora": False, "fan_in_fan_out": "transformer.h" in layers[0], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return updates


def change(theirs, updates):
    """Add updates to the weights of transformers' model."""
    with torch.no_grad():
        for layer, update in updates.items():
            theirs.get_submodule(layer).weight += update.T if "transformer.h" in layer else update
    return theirs


@pytest.mark.parametrize(("settings", "scale"), [
    ({}, 6 / 3), ({"use_rslora": True}, 6 / math.sqrt(3)), ({"alpha_pattern": {"c_attn|q_proj": 1.5}}, 6 / 3),
])  # fmt: skip
@pytest.mark.parametrize("family", LAYERS)
def test_an_adapter_is_merged_into_its_base(family, settings, scale, tmp_path):
    theirs = base_of(family)
    theirs.save_pretrained(tmp_path / "base")
    updates = write_adapter(tmp_path / "adapter", theirs, LAYERS[family], base=tmp_path / "base", **settings)
    first = 1.5 / 3 if "alpha_pattern" in settings else scale  # of the first layer, which has a pattern
    scaled = {layer: update * (scale if n else first) for n, (layer, update) in enumerate(updates.items())}
    assert_same(load_pretrained(tmp_path / "adapter"), change(theirs, scaled))


def test_its_base_may_lie_in_the_adapters_folder_and_its_tokenizer_too(tmp_path):
    theirs = base_of("gpt2", 300)
    updates = write_adapter(tmp_path / "adapter", theirs, LAYERS["gpt2"])
    theirs.save_pretrained(tmp_path / "adapter" / "base")
    get_tokenizer("bpe:290", ["some text, and more of it, and more of it"]).save(tmp_path / "adapter/tokenizer.json")
    found = open_pretrained(tmp_path / "adapter")
    assert found.tokenizer().vocab_size == 300
    assert_same(found.model(), change(theirs, {layer: 2 * update for layer, update in updates.items()}))


@pytest.mark.parametrize(("settings", "words"), [
    ({"use_dora": True}, "use_dora is True, and only plain LoRA is read: merge the adapter"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"base_model_name_or_path": "nowhere"}, "no base model 'nowhere': set base_model_name_or_path to its folder"),
    ({"base_model_name_or_path": None}, "no base model ''"),
])  # fmt: skip
def test_an_adapter_that_is_not_computed_here_is_refused(settings, words, tmp_path):
    write_adapter(tmp_path / "adapter", base_of("gpt2"), LAYERS["gpt2"], **settings)
    with pytest.raises(ValueError, match=words):
        load_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(("old", "new", "words"), [
    ("h.0.attn.c_attn", "h.0.attn.q_attn", r"layer transformer\.h\.0\.attn\.q_attn has no place in its base"),
    ("h.0.attn.c_attn", "h.0.mlp.c_proj", r"update of transformer\.h\.0\.mlp\.c_proj does not fit its base"),
    ("lora_A", "lora_embedding_A", r"tensor .*lora_\w+.* is no low-rank update of a layer: merge"),
    ("lora_B", "lora_C", r"update of transformer\.h\.0\.attn\.c_attn does not fit"),
])  # fmt: skip
def test_tensors_without_a_place_are_named(old, new, words, tmp_path):
    theirs = base_of("gpt2")
    theirs.save_pretrained(tmp_path / "base")
    write_adapter(tmp_path / "adapter", theirs, LAYERS["gpt2"][:1], base=tmp_path / "base")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {name.replace(old, new): tensor for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(ValueError, match=words):
        load_pretrained(tmp_path / "adapter")


def test_damaged_adapters(tmp_path):
    theirs = base_of("gpt2")
    theirs.save_pretrained(tmp_path / "base")
    write_adapter(tmp_path / "adapter", theirs, LAYERS["gpt2"], base=tmp_path / "base")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors cannot be read, it is damaged"):
        load_pretrained(tmp_path / "adapter")
    file.unlink()
    with pytest.raises(ValueError, match=r"lacks the adapter's weights"):
        load_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is damaged"):
        load_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(("family", "targets"), [
    ("gpt2", "W_query, W_value, out_proj, ff.layers.0"), ("llama", "W_key, ff.down, out_head"),
])  # fmt: skip
def test_a_runs_updates_are_exported(family, targets, tmp_path):
    """transformers' base, changed by the file as PEFT says, computes what the run does; and so does what is read."""
    theirs = base_of(family)
    theirs.save_pretrained(tmp_path / "base")
    get_tokenizer("char", ["0123456789 green bottles"]).save(tmp_path / "base" / "tokenizer.json")
    texts = (f"{n} green bottles" for n in range(60))
    prepare_data(corpus_of(tmp_path / "in", *texts), str(tmp_path / "base"), tmp_path / "data")
    config = from_dict(TrainConfig, {
        "max_steps": 3, "batch_size": 4, "eval_every": 0, "sample_every": 0, "device": "cpu",
        "init_from": str(tmp_path / "base"), "data": {"path": str(tmp_path / "data")}, "optim": {"lr": 0.1},
        "adapter": {"name": "lora", "rank": 2, "targets": targets},
    })  # fmt: skip
    start_run(config, tmp_path / "run", lambda line: None).train()
    _, tokenizer, checkpoint = load_objective(tmp_path / "run", "last")
    export_peft(checkpoint, tokenizer, False, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(settings["target_modules"])
    updates = {}
    for layer in settings["target_modules"]:
        A, B = (tensors[f"base_model.model.{layer}.lora_{leaf}.weight"] for leaf in "AB")
        rank = settings["rank_pattern"].get(layer, settings["r"])
        assert (len(A), B.shape[1]) == (rank, rank)
        updates[layer] = settings["alpha_pattern"].get(layer, settings["lora_alpha"]) / rank * (B @ A)
    change(theirs, updates)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        for ours in (load_model(tmp_path / "run", "last")[0], load_pretrained(tmp_path / "out")):
            torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert open_pretrained(tmp_path / "out").tokenizer().to_dict() == tokenizer.to_dict()
