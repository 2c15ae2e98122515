"""A size by the amount of text: what is left out is chosen, what is set is kept, also on resume and with init_from."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from gpt.config import GPTConfig, TrainConfig, load_config
from gpt.exchange.models import resolve_config
from gpt.objectives.size import fit_to_text
from gpt.run.training import resume_run, start_run
from gpt.system.paths import PROJECT

MINE = load_config(PROJECT / "configs" / "mine.toml")


def fitted(n_tokens, config=MINE):
    return fit_to_text(config, SimpleNamespace(train=SimpleNamespace(tokens=np.zeros(n_tokens))))


def test_a_longer_text_is_read_fewer_times_with_less_dropout():
    configs = {n: fitted(n) for n in (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)}
    steps = [config.max_steps for config in configs.values()]
    epochs = [c.max_steps * c.batch_size * c.model.context_length / n for n, c in configs.items()]
    rates = [config.model.drop_rate for config in configs.values()]
    assert steps == sorted(steps)
    assert epochs == sorted(epochs, reverse=True)
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (0.3, 0.0)
    assert configs[1_000_000].model.emb_dim % MINE.model.n_heads == 0


@pytest.mark.parametrize(
    ("length", "paired", "context_length"), [(3, False, 32), (99, False, 128), (99, True, 256), (5000, False, 512)]
)
def test_the_context_holds_documents_or_pairs(length, paired, context_length):
    """Nine of ten have this length with their end, the others twice as many tokens."""
    documents = [[*[1] * (length - 1), 0] if n % 20 else [*[1] * (2 * length - 1), 0] for n in range(40)]
    tokens = np.array([0, *itertools.chain(*documents)])
    split = SimpleNamespace(tokens=tokens, flags=None)
    data = SimpleNamespace(train=split, tokenizer=SimpleNamespace(eot_id=0), paired=paired)
    config = dataclasses.replace(MINE, data=dataclasses.replace(MINE.data, packing="document"))
    assert fit_to_text(config, data).model.context_length == context_length


@pytest.mark.parametrize(
    ("name", "value"), [("context_length", 32), ("emb_dim", 64), ("n_layers", 1), ("drop_rate", 0.3)]
)
def test_what_is_set_is_kept(name, value):
    config = dataclasses.replace(MINE, max_steps=60, model=dataclasses.replace(MINE.model, **{name: value}))
    found = fitted(100_000, config)
    assert (found.max_steps, getattr(found.model, name)) == (60, value)


def test_a_config_without_it_is_left_alone(tiny_config, prepared):
    assert resolve_config(tiny_config, prepared)[0].max_steps == tiny_config.max_steps
    model = resolve_config(
        dataclasses.replace(tiny_config, model=GPTConfig(vocab_size=0, context_length=16)), prepared
    )[0].model
    assert (model.emb_dim, model.n_layers) == (GPTConfig().emb_dim, GPTConfig().n_layers)


def test_a_run_is_resumed_with_the_same_config(prepared, tmp_path):
    """Also with the config that leaves the size out, and with other max_steps."""
    data = dataclasses.replace(MINE.data, path=str(prepared.folder))
    model = dataclasses.replace(MINE.model, context_length=16, emb_dim=8, n_layers=1, n_heads=2)
    config = dataclasses.replace(MINE, model=model, data=data, eval_every=0, patience=0, sample_every=0, device="cpu")
    trainer = start_run(dataclasses.replace(config, max_steps=3), tmp_path / "run", lambda line: None)
    assert trainer.config.model.drop_rate == 0.0  # read less than once; the default is not
    trainer.train()
    assert resume_run(tmp_path / "run", config, lambda line: None).config.max_steps == 3
    longer = dataclasses.replace(config, max_steps=5)
    assert resume_run(tmp_path / "run", longer, lambda line: None).config.max_steps == 5


def test_a_model_that_it_starts_from_keeps_its_size():
    config = fitted(100_000, dataclasses.replace(MINE, init_from="gpt2"))
    assert config.model.emb_dim == GPTConfig().emb_dim
    assert config.max_steps != TrainConfig().max_steps
