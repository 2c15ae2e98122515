"""Published weights: files written by transformers and by the book, damaged and unsuitable files, and the hub."""

import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import ThreadingHTTPServer

import pytest
import safetensors.torch
import torch
from conftest import corpus_of
from hub_server import COMMIT, HubHandler

import gpt
from gpt.config import GPTConfig, TrainConfig, from_dict
from gpt.exchange.export import export_hf
from gpt.exchange.layouts import GPT2_SIZES, layout_of
from gpt.exchange.models import open_model, run_data
from gpt.exchange.pretrained import load_pretrained, open_pretrained
from gpt.generation import generate_text_simple
from gpt.model import GPTModel
from gpt.run.training import resume_run, start_run
from gpt.system.paths import PROJECT
from gpt.text.prepare import prepare_data
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import CharTokenizer

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

SHAPES = {
    "small": {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "wide": {"vocab_size": 60, "n_positions": 8, "n_embd": 48, "n_layer": 1, "n_head": 1, "resid_pdrop": 0.3},
    "untied": {
        "vocab_size": 97,
        "n_positions": 24,
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 2,
        "tie_word_embeddings": False,
    },
    "other": {
        "vocab_size": 40,
        "n_positions": 8,
        "n_embd": 12,
        "n_layer": 1,
        "n_head": 3,
        "n_inner": 20,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-2,
    },
    "gpt2's": {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2},
    "padded": {"vocab_size": 50304, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2},
}


def theirs_of(name):
    """Return transformers' GPT-2 of a shape, with random weights, biases and norms included."""
    torch.manual_seed(len(name))
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **SHAPES[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def save(model, folder, form):
    """Save a model as transformers does, in one of the forms that published models have."""
    model.save_pretrained(folder, max_shard_size="6KB" if form == "in pieces" else "5GB")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings and form != ".bin":
        del weights["lm_head.weight"]
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    file = folder / "model.safetensors"
    if form == ".bin":
        file.unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    elif form == "old .bin":
        file.unlink()
        torch.save(bare, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "no prefix":
        safetensors.torch.save_file(bare, file)
    elif form == "masks":
        length, layers = model.config.n_positions, range(model.config.n_layer)
        masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, length, length).tril().byte() for n in layers}
        masks |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in layers}
        safetensors.torch.save_file({**weights, **masks}, file)
    return folder


def assert_same(ours, theirs):
    torch.manual_seed(0)
    ids = torch.randint(0, ours.config.vocab_size, (3, ours.config.context_length))
    with torch.no_grad():
        logits = theirs.double()(ids).logits
        # a few blocks of sums of at most 192 products each
        atol = 1000 * torch.finfo(torch.float64).eps * logits.abs().max().item()
        torch.testing.assert_close(ours.double()(ids), logits, rtol=0, atol=atol)


# --- as transformers writes it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "form"),
    [("small", "whole"), ("small", "in pieces"), ("small", ".bin"), ("untied", ".bin"), ("small", "old .bin"),
     ("untied", "no prefix"), ("small", "masks"), ("wide", "whole"), ("untied", "in pieces"), ("gpt2's", "no prefix"),
     ("other", "whole")],
)  # fmt: skip
def test_a_model_of_transformers_computes_the_same(shape, form, tmp_path):
    theirs = theirs_of(shape)
    ours = load_pretrained(save(theirs, tmp_path, form))
    assert not ours.training
    assert ours.config.drop_rate == theirs.config.resid_pdrop
    assert ours.config.tie_embeddings == theirs.config.tie_word_embeddings
    assert ours.num_parameters() == sum(p.numel() for p in theirs.parameters())
    assert (ours.out_head.weight is ours.tok_emb.weight) == theirs.config.tie_word_embeddings
    assert all(p.requires_grad for p in ours.parameters())
    assert_same(ours, theirs)


def test_greedy_continuations_are_those_of_transformers(tmp_path):
    theirs = theirs_of("untied")
    ours = load_pretrained(save(theirs, tmp_path, "whole"))
    for prompt in torch.randint(1, 97, (10, 1, 5)):
        expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(generate_text_simple(ours, prompt, 12, 24), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions_become_float32(dtype, tmp_path):
    theirs = theirs_of("small").to(dtype)
    ours = load_pretrained(save(theirs, tmp_path, "whole"))
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same(ours, theirs.float())


def test_fewer_positions(tmp_path):
    theirs = theirs_of("small")
    ours = load_pretrained(save(theirs, tmp_path, "whole"), context_length=5)
    assert ours.config.context_length == len(ours.pos_emb.weight) == 5
    assert_same(ours, theirs)


def test_a_file_by_itself(tmp_path):
    theirs = theirs_of("small")
    folder = save(theirs, tmp_path / "whole", "whole")
    assert_same(load_pretrained(folder / "model.safetensors"), theirs)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="how many heads a model of width 32 has"):
        load_pretrained(folder / "model.safetensors")


@pytest.mark.parametrize(("name", "count"), [
    ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200),
])  # fmt: skip
def test_layout_of_the_published_sizes(name, count):
    """transformers' names and shapes, on the meta device."""
    size = GPT2_SIZES[name]
    shape = {"n_embd": size.emb_dim, "n_layer": size.n_layers, "n_head": size.n_heads}
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    found = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    assert {entry.name: entry.shape for entry in layout_of("gpt2", "hf", size)} == found
    assert sum(p.numel() for p in theirs.parameters()) == count


def test_the_smallest_published_size_without_its_config(tmp_path):
    """The file alone, as on the hub: no prefix, no head; the number of heads follows from the width."""
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    weights = {
        n.removeprefix("transformer."): torch.zeros(p.shape, dtype=torch.bfloat16) for n, p in theirs.named_parameters()
    }
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    found = open_pretrained(tmp_path / "model.safetensors")
    assert found.config == GPT2_SIZES["gpt2"]
    assert found.tokenizer().to_dict() == {"kind": "gpt2"}


# --- the book's layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tied", "wrapped"), [(False, True), (True, False)])
def test_a_checkpoint_of_the_book(tied, wrapped, tmp_path):
    config = GPTConfig(50, 12, 768, 12, 1, 0.0, qkv_bias=tied)
    model = GPTModel(config).eval()
    if tied:  # as the book stores GPT-2: one tensor under two names
        model.out_head.weight.data.copy_(model.tok_emb.weight)
    weights = {**model.state_dict(), "trf_blocks.0.att.mask": torch.ones(12, 12).triu(1)}
    torch.save(
        {"model_state_dict": weights, "optimizer_state_dict": {}} if wrapped else weights, tmp_path / "model.pth"
    )
    for path in (tmp_path, tmp_path / "model.pth"):
        found = load_pretrained(path)
        assert (found.config.tie_embeddings, found.config.qkv_bias, found.config.n_heads) == (tied, tied, 12)
        ids = torch.arange(12)[None]
        torch.testing.assert_close(found(ids), model(ids), rtol=0, atol=0)
    (tmp_path / "config.json").write_text(json.dumps({"n_heads": 8, "drop_rate": 0.5, "unknown": 1}))
    assert load_pretrained(tmp_path).config.n_heads == 8
    assert load_pretrained(tmp_path).config.drop_rate == 0.5


# --- damaged and unsuitable files --------------------------------------------------------------------------------


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(("name", "zipped"), [("pytorch_model.bin", True), ("model.pth", False)])
def test_code_in_a_pickle_is_not_executed(name, zipped, tmp_path):
    sprung = tmp_path / "sprung"
    weights = {"transformer.wte.weight": torch.zeros(3, 4), "x": Trap(sprung)}
    torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds code besides tensors and was not loaded"):
        load_pretrained(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="was not loaded"):
        load_pretrained(tmp_path)
    assert not sprung.exists()


@pytest.mark.parametrize("form", ["whole", ".bin", "old .bin"])
def test_a_truncated_file_is_refused(form, tmp_path):
    folder = save(theirs_of("small"), tmp_path, form)
    file = max(folder.glob("*model*[sb]*"), key=lambda path: (path.suffix != ".json", path.stat().st_size))
    whole = file.read_bytes()
    for length in (0, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged|incomplete") as caught:
            load_pretrained(folder)
        assert file.name in str(caught.value)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ValueError, match=r"no weights in|lacks"):
        load_pretrained(folder)


def change_missing(weights):
    del weights["transformer.h.1.mlp.c_fc.bias"]


def change_shape(weights):
    weights["transformer.h.1.attn.c_attn.weight"] = torch.zeros(96, 32)  # as nn.Linear has it


def change_extra(weights):
    weights["transformer.h.2.ln_1.weight"] = torch.zeros(32)


def change_everything(weights):
    weights.clear()
    weights["model.embed_tokens.weight"] = torch.zeros(3, 4)


@pytest.mark.parametrize(("change", "words"), [
    (change_missing, r"h\.1\.mlp\.c_fc\.bias is missing \(1 missing"),
    (change_shape, r"c_attn\.weight has the shape \(96, 32\), not \(32, 96\)"),
    (change_extra, r"h\.2\.ln_1\.weight has no place in its model"),
    (change_everything, r"wte\.weight is missing"),
])  # fmt: skip
def test_a_wrong_tensor_is_named(change, words, tmp_path):
    folder = save(theirs_of("small"), tmp_path, "whole")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        load_pretrained(folder)


@pytest.mark.parametrize(("settings", "words"), [
    ({"model_type": "bloom"}, "model_type is 'bloom', but only gpt2, llama, mistral, qwen2, qwen3 are read"),
    ({"activation_function": "relu"}, "activation_function is 'relu', but GPTModel has gelu_new, gelu_pytorch_tanh"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, but GPTModel has False"),
    ({"n_inner": 64}, r"mlp\.c_fc\.weight has the shape \(32, 128\), not \(32, 64\)"),
    ({"n_head": 5}, "emb_dim 32 is not divisible by n_heads 5"),
    ({"n_head": "4"}, "n_heads must be a whole number"),
    ({"vocab_size": 98}, r"wte\.weight has the shape \(97, 32\), not \(98, 32\)"),
    ({"n_layer": 3}, r"h\.2\..* is missing"),
])  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(settings, words, tmp_path):
    folder = save(theirs_of("small"), tmp_path, "whole")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(ValueError, match=words):
        load_pretrained(folder)


def test_a_folder_without_weights_and_an_unknown_name(tmp_path):
    torch.save({}, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match=r"no weights in .*: a model's folder has one of model\.safetensors"):
        load_pretrained(tmp_path)
    torch.save({"blocks.0.key.weight": torch.zeros(2, 2)}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"no weights in .* under a usual name: name its file, .*last\.ckpt"):
        load_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is in no layout that is read here: its first tensor is blocks\.0\.key"):
        load_pretrained(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="no file or folder 'gpt3'; known names are gpt2, gpt2-medium"):
        load_pretrained("gpt3")


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub(HubHandler):
    """Answers huggingface_hub for one model, whose files are in `folder`."""

    folder = None

    def answer(self, head=False):
        files = [(path.name, path.stat().st_size) for path in self.folder.iterdir()]
        file = self.folder / self.path.rpartition("/")[2]
        if "/tree/" in self.path and not head:
            listed = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in files]
            self.send(json.dumps(listed).encode(), head, "application/json")
        elif self.path.startswith("/api/models/") and not head:
            listed = {"id": "o/n", "sha": COMMIT, "siblings": [{"rfilename": name} for name, _ in files]}
            self.send(json.dumps(listed).encode(), head, "application/json")
        elif file.is_file():
            self.send(file.read_bytes(), head)
        else:
            self.send(b"", head, error="EntryNotFound")


@pytest.mark.slow
def test_the_hub(tmp_path):
    """In a process of its own, since huggingface_hub reads its environment once."""
    pytest.importorskip("huggingface_hub")
    theirs = theirs_of("small")
    Hub.folder = save(theirs, tmp_path / "served", "whole")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = "from gpt import load_pretrained\n"
    program += "for name in ('hub:someone/something', 'gpt2'): print(load_pretrained(name).num_parameters())\n"
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(PROJECT), "NO_PROXY": "*",
    }  # fmt: skip
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **variables})
    server.shutdown()
    server.server_close()
    count = str(sum(p.numel() for p in theirs.parameters()))
    assert done.stdout.split() == [count, count], done.stderr


BY_HAND = "download config.json and model.safetensors from https://huggingface.co/openai-community/gpt2-xl and name"


def test_without_a_network(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*arguments, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(
        ValueError,
        match=f"gpt2-xl cannot be downloaded .ConnectionError.*: run the same .*without a network, {BY_HAND}",
    ):
        load_pretrained("gpt2-xl")


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=f"pip install -e .*hub.*{BY_HAND}"):
        load_pretrained("gpt2-xl")


# --- training from published weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["gpt2's", "padded"])
def test_a_run_starts_from_published_weights(shape, tmp_path):
    """Its first validation loss is that of transformers on the same examples. Rows without a token are unused."""
    theirs = theirs_of(shape)
    folder = save(theirs, tmp_path / "model", "whole")
    data = prepare_data(
        corpus_of(tmp_path / "texts", *(f"{n} green bottles, one more" for n in range(60))), "gpt2", tmp_path / "data"
    )
    config = from_dict(TrainConfig, {
        "max_steps": 1, "batch_size": 4, "eval_every": 0, "sample_every": 0, "device": "cpu", "init_from": str(folder),
        "model": {"context_length": 8, "drop_rate": 0.0}, "data": {"path": str(tmp_path / "data")},
    })  # fmt: skip
    trainer = start_run(config, tmp_path / "run", lambda line: None)
    assert trainer.config.model.context_length == 8
    assert trainer.config.model.n_layers == 1
    found = trainer.objective.evaluate(trainer.config, data)
    tokens = torch.tensor(data.val.tokens.astype("int64"))
    total, n = 0.0, 0
    for start in range(0, len(tokens) - 1, 8):
        window = tokens[start : start + 9]
        with torch.no_grad():
            logits = theirs(window[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        n += len(window) - 1
    assert (found.loss, found.n_tokens) == (pytest.approx(total / n, rel=1e-5), n)
    trainer.train()
    assert trainer.step == 1
    trainer = resume_run(tmp_path / "run", replace(trainer.config, max_steps=2), lambda line: None)
    trainer.train()
    assert trainer.step == 2
    subject = open_model(str(tmp_path / "run"), "last", None)
    unused = {"special_tokens": [f"<|unused {i}|>" for i in range(50257, 50304)]} if shape == "padded" else {}
    assert subject.tokenizer.to_dict() == {"kind": "gpt2", **unused}
    export_hf(subject.objective.model, subject.tokenizer, False, tmp_path / "exported")
    assert open_pretrained(tmp_path / "exported").tokenizer().to_dict() == subject.tokenizer.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "char"])
def test_tokens_of_the_data_take_unused_rows(kind, tmp_path):
    """What ends documents, and special tokens: in a run from published weights, and in a second run from that one."""
    source = save(theirs_of("padded" if kind == "gpt2" else "small"), tmp_path / "model", "whole")
    texts = [f"<|user|>{n} green bottles<|bot|>one more" for n in range(60)]
    corpus = corpus_of(tmp_path / "texts", *texts)
    if kind == "char":
        CharTokenizer("".join(texts)).save(source / "tokenizer.json")
    tokenizer, n_known = "gpt2" if kind == "gpt2" else str(source), get_tokenizer("gpt2").vocab_size
    n_known = n_known if kind == "gpt2" else len({*"".join(texts)}) + 1  # and the end of a document
    names: list[str] = []
    for name in ("<|user|>", "<|bot|>"):
        names.append(name)
        run, data = tmp_path / f"run{len(names)}", tmp_path / f"data{len(names)}"
        prepared = prepare_data(corpus, tokenizer, data, 0.1, special_tokens=[name])
        assert prepared.tokenizer.encode("".join(names), special=True) == [n_known + i for i in range(len(names))]
        assert n_known + len(names) - 1 in prepared.train.tokens
        config = from_dict(TrainConfig, {
            "max_steps": 1, "batch_size": 4, "eval_every": 0, "sample_every": 0, "device": "cpu",
            "init_from": str(source), "model": {"context_length": 8}, "data": {"path": str(data)},
        })  # fmt: skip
        trainer = start_run(config, run, lambda line: None)
        trainer.train()
        trainer = resume_run(run, replace(trainer.config, max_steps=2), lambda line: None)
        trainer.train()
        source, tokenizer = run, str(run / "tokenizer.json")
    subject = open_model(str(run), "last", None)
    own = subject.tokenizer.special_tokens
    assert run_data(run, subject.checkpoint).tokenizer.special_tokens.items() <= own.items()
    export_hf(subject.objective.model, subject.tokenizer, False, tmp_path / "exported")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert len(theirs) == subject.objective.model.config.vocab_size > n_known + 2
    for text in texts[:5]:
        assert theirs.encode(text, add_special_tokens=False) == subject.tokenizer.encode(text, special=True)
        assert subject.tokenizer.encode(text, special=True)[0] == own[names[0]] == n_known


@pytest.mark.parametrize(("model", "words"), [
    ({"qkv_bias": False, "norm": "rms"}, "model.norm is 'rms', but 'layer' in"),
    ({"n_layers": 2}, "model.n_layers is 2, but 1 in"),
])  # fmt: skip
def test_a_config_must_agree_with_the_weights(model, words, tmp_path):
    folder = save(theirs_of("gpt2's"), tmp_path / "model", "whole")
    prepare_data(corpus_of(tmp_path / "texts", "some text, " * 50), "gpt2", tmp_path / "data")
    data = {"path": str(tmp_path / "data")}
    config = from_dict(TrainConfig, {"init_from": str(folder), "device": "cpu", "model": model, "data": data})
    with pytest.raises(ValueError, match=words):
        start_run(config, tmp_path / "run", lambda line: None)


def test_tokenizers_of_another_model(tmp_path):
    folder = save(theirs_of("small"), tmp_path / "model", "whole")
    with pytest.raises(ValueError, match=r"model comes without a tokenizer: add its tokenizer\.json"):
        open_pretrained(folder).tokenizer()
    get_tokenizer("bpe:300", ["some text"]).save(folder / "tokenizer.json")
    with pytest.raises(ValueError, match=r"has 2.. tokens, but the model has only 97"):
        open_pretrained(folder).tokenizer()
    get_tokenizer("char", ["some text"]).save(folder / "tokenizer.json")
    tokenizer = open_pretrained(folder).tokenizer()
    assert tokenizer.vocab_size == 97
    assert tokenizer.decode([0, 96]) == " <|unused 96|>"


def test_load_pretrained_is_in_the_package():
    assert gpt.load_pretrained is load_pretrained
