"""gpt/exchange/nanogpt.py against plain modules with the names and shapes of nanoGPT's and minGPT's models."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt.config import GPTConfig
from gpt.exchange.export import export_nanogpt, notices
from gpt.exchange.pretrained import load_pretrained, open_pretrained
from gpt.model import GPTModel
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import CharTokenizer

D, H, L, T, V = 24, 3, 2, 12, 20


def block(bias):
    """Return the modules of one block under their names."""
    norm = [nn.LayerNorm(D, bias=bias) for _ in range(2)]
    attn = nn.ModuleDict({"c_attn": nn.Linear(D, 3 * D, bias), "c_proj": nn.Linear(D, D, bias)})
    mlp = nn.ModuleDict({"c_fc": nn.Linear(D, 4 * D, bias), "c_proj": nn.Linear(4 * D, D, bias)})
    return nn.ModuleDict({"ln_1": norm[0], "attn": attn, "ln_2": norm[1], "mlp": mlp})


class Theirs(nn.Module):
    """A GPT as nanoGPT has it, or as minGPT does: not tied, GELU approximated, with masks among its tensors."""

    def __init__(self, bias=True, mingpt=False):
        super().__init__()
        self.gelu = nn.GELU(approximate="tanh" if mingpt else "none")
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(V, D), "wpe": nn.Embedding(T, D), "h": nn.ModuleList(block(bias) for _ in range(L)),
            "ln_f": nn.LayerNorm(D, bias=bias),
        })  # fmt: skip
        self.lm_head = nn.Linear(D, V, bias=False)
        if mingpt:
            for layer in self.transformer.h:
                layer.attn.register_buffer("bias", torch.ones(T, T).tril().view(1, 1, T, T))
        else:
            self.lm_head.weight = self.transformer.wte.weight
        torch.manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)

    def forward(self, ids):
        x = self.transformer.wte(ids) + self.transformer.wpe.weight[: ids.size(1)]
        for layer in self.transformer.h:
            qkv = layer.attn.c_attn(layer.ln_1(x)).view(*ids.shape, 3, H, D // H).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2).flatten(2)
            x = x + layer.attn.c_proj(y)
            x = x + layer.mlp.c_proj(self.gelu(layer.mlp.c_fc(layer.ln_2(x))))
        return self.lm_head(self.transformer.ln_f(x))


def assert_same(ours, theirs):
    ids = torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.double()(ids)
        atol = 1000 * torch.finfo(torch.float64).eps * float(expected.abs().max())
        torch.testing.assert_close(ours.double()(ids), expected, rtol=0, atol=atol)


def checkpoint_of(theirs, bias, prefix=""):
    arguments = {"n_layer": L, "n_head": H, "n_embd": D, "block_size": T, "bias": bias, "vocab_size": V, "dropout": 0.1}
    weights = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    return {"model": weights, "optimizer": {"state": {}}, "model_args": arguments, "iter_num": 7,
            "best_val_loss": torch.tensor(1.5), "loss": np.float64(1.5), "config": {"dataset": "x"}}  # fmt: skip


@pytest.mark.parametrize(("bias", "prefix"), [(True, ""), (False, "_orig_mod."), (True, "module._orig_mod.")])
def test_a_checkpoint_of_nanogpt(bias, prefix, tmp_path):
    theirs = Theirs(bias)
    torch.save(checkpoint_of(theirs, bias, prefix), tmp_path / "ckpt.pt")
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        ours = load_pretrained(path)
        config = ours.config
        assert (config.feed_forward, config.tie_embeddings, config.drop_rate) == ("gelu_exact", True, 0.1)
        assert (config.bias, config.qkv_bias) == (bias, bias)
        assert_same(ours, theirs)


@pytest.mark.parametrize("prefix", ["", "model.", "model._orig_mod."])
@pytest.mark.parametrize("mingpt", [False, True])
def test_a_state_dict_by_itself(mingpt, prefix, tmp_path):
    """Wrapped as Lightning does, or bare. Its number of heads has to be said."""
    theirs = Theirs(mingpt=mingpt)
    weights = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": weights} if prefix else weights, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r'how many heads .* put a config\.json beside it.*\{"n_head": 4\} for one'):
        load_pretrained(tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": H}))
    ours = load_pretrained(tmp_path / "model.pt")
    assert (ours.config.feed_forward, ours.config.tie_embeddings) == ("gelu" if mingpt else "gelu_exact", not mingpt)
    assert_same(ours, theirs)


def test_its_characters_come_with_it(tmp_path):
    torch.save(checkpoint_of(Theirs(), True), tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"without a tokenizer: add its tokenizer\.json, or nanoGPT's meta\.pkl"):
        open_pretrained(tmp_path).tokenizer()
    characters = "\n abcdefghijklmnopqr"
    ids = {character: i for i, character in enumerate(characters)}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 20, "stoi": ids, "itos": dict(enumerate(ids))}))
    tokenizer = open_pretrained(tmp_path).tokenizer()
    assert (tokenizer.encode("a bad\n"), tokenizer.vocab_size) == ([2, 1, 3, 2, 5, 0], V)
    assert not open_pretrained(tmp_path).prepend_eot


def test_a_model_with_other_positions_asks_for_its_config(tmp_path):
    saved = checkpoint_of(Theirs(), True)
    del saved["model"]["transformer.wpe.weight"]
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"does not say which model it is: add its config\.json"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    (lambda saved: saved["model"].pop("transformer.h.1.ln_2.weight"), r"h\.1\.ln_2\.weight is missing"),
    (lambda saved: saved["model_args"].update(n_layer=3), r"h\.2\..* is missing"),
    (lambda saved: saved["model_args"].update(n_head=5), "emb_dim 24 is not divisible by n_heads 5"),
    (lambda saved: saved["model"].update(extra=torch.zeros(1)), "extra has no place"),
    (lambda saved: saved.update(config=print), "holds code besides tensors"),
])  # fmt: skip
def test_a_damaged_checkpoint(change, words, tmp_path):
    saved = checkpoint_of(Theirs(), True)
    change(saved)
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=words):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("bias", [True, False])
def test_an_exported_checkpoint_loads_and_computes_the_same(bias, tmp_path):
    tokenizer = CharTokenizer("\n abcdefghijklmnopqr")
    options = {"tie_embeddings": True, "qkv_bias": bias, "bias": bias, "feed_forward": "gelu_exact"}
    torch.manual_seed(2)
    ours = GPTModel(GPTConfig(V, T, D, H, L, 0.1, **options)).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    export_nanogpt(ours, tokenizer, tmp_path / "out", step=5)
    saved = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    assert saved["model_args"] | {"dropout": 0.1} == checkpoint_of(ours, True)["model_args"]
    assert saved["iter_num"] == 5
    theirs = Theirs()
    theirs.load_state_dict(saved["model"], strict=True)
    assert_same(ours, theirs)
    assert_same(load_pretrained(tmp_path / "out"), theirs)
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert [meta["itos"][meta["stoi"][character]] for character in "bad\n"] == list("bad\n")
    assert get_tokenizer(str(tmp_path / "out" / "meta.pkl")).to_dict() == tokenizer.to_dict()
    assert not notices(ours, tokenizer, "nanogpt")


@pytest.mark.parametrize(("options", "words"), [
    ({"tie_embeddings": False}, "tie_embeddings False cannot be exported: nanoGPT's has tie_embeddings True"),
    ({"feed_forward": "relu2"}, "feed_forward 'relu2' cannot be exported: nanoGPT's has feed_forward 'gelu_exact'"),
    ({"norm": "rms"}, "norm 'rms' cannot be exported: nanoGPT's has norm 'layer'"),
])  # fmt: skip
def test_a_model_that_nanogpt_does_not_have(options, words, tmp_path):
    model = GPTModel(GPTConfig(V, T, D, H, L, 0.1, **{"tie_embeddings": True, **options}))
    with pytest.raises(ValueError, match=words):
        export_nanogpt(model, CharTokenizer("ab"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
