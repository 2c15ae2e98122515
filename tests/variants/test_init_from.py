"""A run that starts from another run's model: its shape, its tokens, its weights."""

import dataclasses
import re

import pytest
import torch
from conftest import corpus_of
from runs import change
from small_adapters import LORA, train_base

from gpt.config import GPTConfig
from gpt.exchange.models import create_objective, load_model, resolve_config
from gpt.run.notices import new_row_notices
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory):
    """Return the folder of a pretrained run, which other runs start from."""
    return train_base(prepared, tmp_path_factory.mktemp("base") / "run")


def test_model_shape_comes_from_init_from(tiny_config, prepared, base):
    left_out = GPTConfig(vocab_size=0, drop_rate=0.25, implementation="reference")
    found = resolve_config(change(tiny_config, init_from=str(base), model=left_out), prepared)[0].model
    assert found == dataclasses.replace(load_model(base)[0].config, drop_rate=0.25, implementation="reference")
    for agreed in (GPTConfig(), dataclasses.replace(found, vocab_size=0), found):
        assert resolve_config(change(tiny_config, init_from=str(base), model=agreed), prepared)[0].model.emb_dim == 16
    objective = create_objective(resolve_config(change(tiny_config, init_from=str(base), model=left_out), prepared)[0])
    theirs = load_model(base)[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in objective.model.state_dict().items())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"n_layers": 3}, "model.n_layers is 3, but 2 in .*: leave it out"),
        ({"vocab_size": 7}, "model.vocab_size is 7, but "),
        ({"init": "gpt2"}, "model.init is 'gpt2', but 'lecun'"),
        ({"backbone": "lstm"}, "model.backbone is 'lstm', but 'gpt'"),
        ({"context_length": 15}, "model.context_length is 15, but 16 in .*: leave it out"),
    ],
)
def test_other_model_shape_is_refused(tiny_config, prepared, base, setting, words):
    model = GPTConfig(**{"vocab_size": 0, **setting})
    with pytest.raises(ValueError, match=words):
        resolve_config(change(tiny_config, init_from=str(base), model=model), prepared)


def test_invalid_init_from_is_refused(tiny_config, prepared, base, tmp_path):
    with pytest.raises(ValueError, match="unknown run 'nowhere'"):
        resolve_config(change(tiny_config, init_from="nowhere"), prepared)
    with pytest.raises(ValueError, match=r"adapter 'lora' needs a model to adapt: .* init_from"):
        resolve_config(change(tiny_config, adapter=LORA), prepared)
    story = prepare_data(open_corpus("story"), "char", tmp_path / "story")
    left_out = change(tiny_config, init_from=str(base), model=GPTConfig(vocab_size=0))
    with pytest.raises(ValueError, match=r"has other tokens than .*--tokenizer .*tokenizer.json"):
        resolve_config(left_out, story)


@pytest.mark.parametrize("given", ["documents", "special tokens", "objective"])
def test_tokens_that_are_new_get_rows(tiny_config, prepared, base, tmp_path, monkeypatch, given):
    """What ends documents, what was asked for, and what an objective adds: each starts as the mean of the others."""
    names = {"documents": ["<|endoftext|>"], "special tokens": ["<|user|>", "<|bot|>"]}.get(given, ["[SEP]"])
    data = prepared
    if given == "objective":
        monkeypatch.setattr("gpt.objectives.NextToken.special_tokens", ("[SEP]",))
    else:
        texts = ["green bottles " * 9, "on the wall " * 9][: 2 if given == "documents" else 1]
        corpus, saved = corpus_of(tmp_path / "in", *texts), str(base / "tokenizer.json")
        special_tokens = names if given == "special tokens" else None
        data = prepare_data(corpus, saved, tmp_path / "out", 0.5, special_tokens=special_tokens)
    config = change(tiny_config, init_from=str(base), model=GPTConfig(vocab_size=0))
    resolved, read = resolve_config(config, data)
    source = load_model(base)[0]
    known = source.config.vocab_size
    assert [read.tokenizer.special_tokens[name] for name in names] == [known + i for i in range(len(names))]
    assert resolved.model.vocab_size == read.tokenizer.vocab_size == known + len(names)
    (line,) = new_row_notices(resolved, read)
    assert line.startswith(f"init_from {base} has no token {' '.join(names)}: ")
    ours, theirs = create_objective(resolved).model.eval(), source.state_dict()
    for name, tensor in ours.state_dict().items():
        rows = len(theirs[name])
        assert torch.equal(tensor[:rows], theirs[name])
        if len(tensor) > rows:
            assert torch.allclose(tensor[rows:], theirs[name].mean(0).expand(len(names), -1))
    ids = torch.arange(5)[None]
    expected = source(ids)
    assert torch.allclose(ours(ids)[..., :known], expected, atol=1e-5)
    assert torch.allclose(ours(ids)[..., known], expected.mean(-1), atol=1e-5)
    with pytest.raises(ValueError, match=rf"has no token {re.escape(' '.join(names))}, and adapter 'lora' trains no"):
        resolve_config(change(config, adapter=LORA), data)
    assert new_row_notices(change(resolved, model=source.config), prepared) == []


def test_positions_that_are_new_get_rows(tiny_config, prepared, base):
    """They start as copies of the last one; what the source could read gives the same logits."""
    config = change(tiny_config, init_from=str(base), model=GPTConfig(vocab_size=0, context_length=20))
    resolved, _ = resolve_config(config, prepared)
    source = load_model(base)[0]
    assert (resolved.model.context_length, source.config.context_length) == (20, 16)
    (line,) = new_row_notices(resolved, prepared)
    assert line == f"init_from {base} has no position beyond 16: a new one starts as a copy of the last"
    ours, theirs = create_objective(resolved).model.eval(), source.state_dict()
    rows = ours.state_dict()["pos_emb.weight"]
    assert rows.shape == (20, 16) and torch.equal(rows[:16], theirs["pos_emb.weight"])
    assert all(torch.equal(row, rows[15]) for row in rows[16:])
    ids = torch.arange(16)[None] % source.config.vocab_size
    assert torch.allclose(ours(ids), source(ids), atol=1e-5)
    assert ours(torch.zeros(1, 20, dtype=torch.long)).shape[1] == 20
    with pytest.raises(ValueError, match=r"has no position beyond 16, and adapter 'lora' trains no embedding for it"):
        resolve_config(change(config, adapter=LORA), prepared)


def test_a_model_with_rotary_positions_has_no_rows_to_add(tiny_config, prepared, tmp_path):
    rope = train_base(prepared, tmp_path / "rope", {"position": "rope"})
    config = change(tiny_config, init_from=str(rope), model=GPTConfig(vocab_size=0, context_length=20))
    with pytest.raises(ValueError, match=r"model.context_length is 20, but 16 in .*rope, which .*: leave it out"):
        resolve_config(config, prepared)
