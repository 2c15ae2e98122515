"""Exported models against transformers, which loads them, and against a GPT in the book's layout."""

import dataclasses
import json
import re

import pytest
import torch
from conftest import corpus_of
from torch import nn

from gpt.config import AdapterConfig, DataConfig, GPTConfig, ObjectiveConfig, TrainConfig
from gpt.exchange.export import export_book, export_hf, notices
from gpt.exchange.models import open_model
from gpt.exchange.pretrained import open_pretrained
from gpt.generation import generate
from gpt.model import GPTModel
from gpt.run.training import start_run
from gpt.text.prepare import prepare_data
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import CharTokenizer, from_dict, with_special_tokens
from gpt.variants import adapt, create_model
from scripts import run_script

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

TEXTS = {
    "English": "It's a café, isn't it? They've 12,345 of them...  and\tmore\n\n\n  than   that.\n",
    "German": "Größe, Übermut und Straßenbahn: »Äh«, sagte Jörg.",
    "Chinese": "从前有一个勇敢的孩子，名叫小明。他丢了铃铛！",
    "Arabic": "كان يا ما كان، في قديم الزمان، طفلٌ شجاع.",
    "code": "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # ok\r\n\tif x<=0: pass\n",
    "emoji": "👩🏽‍🚀 and 👨‍👩‍👧‍👦, e\u0301 and \u00e9; 🇩🇪 \u200b\u2028\u00a0x",
}
TOKENIZERS = {
    "bpe": lambda: get_tokenizer("bpe:400", [*TEXTS.values()] * 3),
    "char": lambda: CharTokenizer("".join(TEXTS.values())),
    "char with end": lambda: CharTokenizer("".join(TEXTS.values()), end_of_text=True),
    "with a mask": lambda: with_special_tokens(get_tokenizer("bpe:300", [*TEXTS.values()]), ["[MASK]"]),
}


def model_of(tokenizer, **changes):
    """Return a small model whose weights are all random, biases and norms included."""
    torch.manual_seed(0)
    shape = {"context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.1, **changes}
    model = GPTModel(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def theirs_of(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


# --- Hugging Face's layout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tied", "qkv_bias"),
    [("char with end", True, True), ("bpe", False, False), ("char", True, False), ("with a mask", False, True)],
)
def test_transformers_computes_and_generates_the_same(kind, tied, qkv_bias, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    model = model_of(tokenizer, tie_embeddings=tied, qkv_bias=qkv_bias)
    export_hf(model, tokenizer, False, tmp_path / "out")
    theirs, their_tokenizer = theirs_of(tmp_path / "out")
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    ids = torch.randint(0, tokenizer.vocab_size, (3, 24))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-4)
    torch.manual_seed(1)
    prompts = [text[start : start + 4] for text in TEXTS.values() for start in (0, 9)]
    for prompt in prompts:
        expected = tokenizer.encode(prompt)
        found = their_tokenizer(prompt, return_tensors="pt")
        assert found["input_ids"][0].tolist() == expected
        written = theirs.generate(**found, max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
        ours = generate(model, torch.tensor([expected]), 8, temperature=0, stop_id=tokenizer.eot_id)[0]
        assert written.tolist() == ours.tolist()
        assert their_tokenizer.decode(written) == tokenizer.decode(ours.tolist())


@pytest.mark.parametrize(("kind", "tied"), [("char", False), ("bpe", True), ("char with end", False)])
def test_open_pretrained_reads_an_export(kind, tied, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    model = model_of(tokenizer, tie_embeddings=tied, qkv_bias=True)
    for write, out in ((export_hf, (False, tmp_path / "hf")), (export_book, (tmp_path / "book",))):
        write(model, tokenizer, *out)
        found = open_pretrained(out[-1])
        assert found.tokenizer().to_dict() == tokenizer.to_dict()
        again = found.model()
        kept = dataclasses.replace(model.config, init="gpt2")
        assert again.config == kept
        assert again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_exported_tokenizer_prepends_the_end_of_text_token(tmp_path):
    tokenizer = TOKENIZERS["bpe"]()
    export_hf(model_of(tokenizer), tokenizer, True, tmp_path / "out")
    _, theirs = theirs_of(tmp_path / "out")
    assert theirs(TEXTS["German"])["input_ids"] == [tokenizer.eot_id, *tokenizer.encode(TEXTS["German"])]
    assert open_pretrained(tmp_path / "out").prepend_eot
    export_hf(model_of(tokenizer), tokenizer, False, tmp_path / "plain")
    assert not open_pretrained(tmp_path / "plain").prepend_eot


# --- the book's layout ------------------------------------------------------------------------------------------------


class BookAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_heads, d = cfg["n_heads"], cfg["emb_dim"]
        self.W_query, self.W_key, self.W_value = (nn.Linear(d, d, bias=cfg["qkv_bias"]) for _ in range(3))
        self.out_proj = nn.Linear(d, d)
        self.register_buffer("mask", torch.ones(cfg["context_length"], cfg["context_length"]).triu(1))

    def forward(self, x):
        q, k, v = (
            w(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for w in (self.W_query, self.W_key, self.W_value)
        )
        scores = q @ k.mT / k.shape[-1] ** 0.5
        scores = scores.masked_fill(self.mask[: x.shape[1], : x.shape[1]].bool(), -torch.inf)
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class BookNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.scale, self.shift, 1e-5)


class BookFeedForward(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(approximate="tanh"), nn.Linear(4 * d, d))


class BookBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.att, self.ff = BookAttention(cfg), BookFeedForward(cfg["emb_dim"])
        self.norm1, self.norm2 = BookNorm(cfg["emb_dim"]), BookNorm(cfg["emb_dim"])

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff.layers(self.norm2(x))


class BookModel(nn.Module):
    """A GPT of PyTorch's modules with the book's names, its seven config keys and its mask as a buffer."""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.trf_blocks = nn.Sequential(*[BookBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = BookNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


@pytest.mark.parametrize(("tied", "qkv_bias"), [(False, False), (True, True)])
def test_the_books_model_loads_an_export(tied, qkv_bias, tmp_path):
    tokenizer = TOKENIZERS["bpe"]()
    model = model_of(tokenizer, tie_embeddings=tied, qkv_bias=qkv_bias)
    export_book(model, tokenizer, tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(cfg) == 7
    book = BookModel(cfg)
    book.load_state_dict(torch.load(tmp_path / "out" / "model.pth"), strict=True)
    ids = torch.randint(0, tokenizer.vocab_size, (2, 24))
    with torch.no_grad():
        torch.testing.assert_close(book(ids), model(ids), rtol=0, atol=1e-5)


# --- from a terminal --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of runs: documents, packed, reverse, masked, with a prefix, with LoRA, and an LSTM."""
    folder = tmp_path_factory.mktemp("shelf")
    prepare_data(
        corpus_of(folder / "texts", *(f"{n} green bottles, one more" for n in range(40))), "char", folder / "data"
    )
    plain = TrainConfig(
        max_steps=2, batch_size=4, sample_every=0, eval_every=0, device="cpu",
        model=GPTConfig(0, 48, 16, 2, 1, tie_embeddings=True), data=DataConfig(str(folder / "data"), "document"),
    )  # fmt: skip
    changes = {
        "documents": {},
        "packed": {"data": DataConfig(str(folder / "data"))},
        "reverse": {"objective": ObjectiveConfig("reverse")},
        "masked": {"objective": ObjectiveConfig("masked")},
        "prefix": {"adapter": AdapterConfig("prefix", length=3), "init_from": str(folder / "runs" / "documents")},
        "lora": {"adapter": AdapterConfig("lora", rank=2), "init_from": str(folder / "runs" / "documents")},
        "lstm": {"model": dataclasses.replace(plain.model, backbone="lstm")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
        for name, changed in changes.items():
            config = dataclasses.replace(plain, **changed)
            start_run(config, folder / "runs" / name, lambda line: None).train()
    return folder


@pytest.mark.parametrize("name", ["documents", "packed", "lora"])
def test_a_run_and_its_export_generate_the_same(name, shelf, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(shelf)
    out = tmp_path / "out"
    assert run_script(f"export --run {name} --out {out}") == 0
    assert f"runs/{name}, step 2 -> {out}: " in capfd.readouterr()[0]
    options = "--prompt '7 green' --max_new_tokens 10 --temperature 0"
    written = []
    for source in (f"--run {name}", f"--pretrained {out}"):
        assert run_script(f"generate {source} {options}") == 0
        written.append(capfd.readouterr()[0])
    theirs, tokenizer = theirs_of(out)
    ids = tokenizer("7 green", return_tensors="pt")
    text = tokenizer.decode(theirs.generate(**ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[0])
    assert written[0] == written[1] == text.replace("<|endoftext|>", "") + "\n"
    figures = []
    for source in (f"--run {name}", f"--pretrained {out}"):
        assert run_script(f"evaluate {source} --text texts --continuations 0") == 0
        figures.append(capfd.readouterr()[0].splitlines()[1:])
    assert figures[0] == figures[1]
    assert any("tokenizer char" in line and "48" in line for line in figures[0])
    subject = open_model(None, "", str(out))
    assert subject.prepend_eot == (name != "packed")
    assert run_script(f"export --run {name} --out {out}") == 2
    assert f"{out} exists already: name another folder" in capfd.readouterr()[1]


def test_a_run_is_exported_to_nanogpt(shelf, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(shelf)
    assert run_script(f"export --run packed --format nanogpt --out {tmp_path / 'out'}") == 0
    assert capfd.readouterr()[1].startswith("Note: nanoGPT computes GELU exactly")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ckpt.pt", "meta.pkl", "tokenizer.json"]


@pytest.mark.parametrize(("command", "words"), [
    ("export --run reverse --out new", "reverse was trained for reverse"),
    ("export --run masked --out new", "masked was trained for masked"),
    ("export --run prefix --out new", "a model with a prefix cannot be exported"),
    ("export --run lstm --out new", "the model has the backbone 'lstm'"),
    ("export --run document --out new", "unknown run 'document': did you mean documents?"),
    ("export --out new", "name a run: --run NAME"),
    ("export --run documents --format peft --out new", "the run has adapter 'none', and peft is the format of 'lora'"),
    ("export --run lora --format peft --out new", "PEFT needs a base that is a folder of transformers' or on the hub"),
    ("export --run documents --format nanogpt --out texts", "texts exists already: name another folder"),
    ("export --run documents --out texts", "texts exists already: name another folder"),
    ("generate --prompt x", "name either a run (--run NAME) or published weights (--pretrained NAME)"),
    ("generate --run documents --pretrained gpt2 --prompt x", "name either a run (--run NAME) or published weights"),
    ("generate --pretrained runs/documents --prompt x", "runs/documents is a run: --run runs/documents"),
    ("generate --pretrained nothing --prompt x", "no file or folder 'nothing'; known names are gpt2, gpt2-medium"),
    ("generate --pretrained texts --prompt x", "no weights in texts"),
    ("generate --run packed --chat --prompt x", "the model has no chat template: it was not trained on conversations"),
    ("generate --pretrained none.gguf --prompt x", "no file or folder 'none.gguf'"),
    ("export --run documents --format gguf --out new", "new must end in .gguf"),
    ("export --run documents --format gguf --out new.gguf", "GGUF cannot hold the char tokenizer"),
    ("export --run documents --dtype q8_0 --out new", "--dtype is an option of --format gguf: leave it out"),
    ("evaluate --pretrained gpt2", "name a text, --text FILE"),
])  # fmt: skip
def test_mistakes(command, words, shelf, monkeypatch, capfd):
    monkeypatch.chdir(shelf)
    assert run_script(command) == 2
    err = capfd.readouterr()[1]
    assert words in err
    assert "Traceback" not in err
    assert not (shelf / "new").exists()


def test_a_prefix_cannot_be_exported():
    config = GPTConfig(20, 8, 16, 2, 1)
    prefixed = adapt(create_model(config), AdapterConfig("prefix", length=2))
    for export in (
        lambda out: export_hf(prefixed, CharTokenizer("ab"), False, out),
        lambda out: export_book(prefixed, CharTokenizer("ab"), out),
    ):
        with pytest.raises(ValueError, match=r"no place for .*prefix"):
            export("nowhere")


# --- what other programs will miss ------------------------------------------------------------------------------------


def test_an_exported_gpt2_has_what_llama_cpps_converter_reads(tmp_path):
    tokenizer = TOKENIZERS["bpe"]()
    export_hf(model_of(tokenizer), tokenizer, False, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["n_ctx"], config["n_embd"], config["n_head"], config["n_layer"]) == (24, 32, 4, 2)
    assert config["layer_norm_epsilon"] == 1e-5


@pytest.mark.parametrize(("kind", "form", "words"), [
    ("char", "hf", ["has no end-of-text token.* prefix_token_id=0", "no unknown token: .* bpe:N"]),
    ("char with end", "hf", [r"read <\|endoftext\|> inside a text as the special", "no unknown token"]),
    ("bpe", "hf", ["inside a text"]),
    ("bpe", "book", []),
    ("bpe", "nanogpt", ["nanoGPT computes GELU exactly"]),
    ("flags", "gguf", ["inside a text", r"GGUF cannot say how \[MASK\] matches"]),
])  # fmt: skip
def test_what_other_programs_will_miss_is_said(kind, form, words):
    tokenizer = TOKENIZERS["with a mask" if kind == "flags" else kind]()
    if kind == "flags":
        tokenizer = from_dict({**tokenizer.to_dict(), "lstrip": ["[MASK]"]})
    found = notices(model_of(tokenizer), tokenizer, form)
    assert len(found) == len(words)
    for line, pattern in zip(found, words, strict=True):
        assert re.search(pattern, line)
        assert "\n" not in line
