"""Which settings of a run may change on resume."""

import dataclasses
import re

import pytest

from gpt.config import GPTConfig, TrainConfig, from_dict
from gpt.run.training import check_resumable


def changed(config, **settings):
    """The config with settings changed, given as model__n_layers=3 for model.n_layers."""
    values = dataclasses.asdict(config)
    for name, value in settings.items():
        table, _, last = name.rpartition("__")
        (values[table] if table else values)[last] = value
    return from_dict(TrainConfig, values)


RUN = changed(TrainConfig(), model__vocab_size=300, optim__decay_steps=1000)


def test_a_resumed_run_may_change_its_length_learning_rate_and_hardware():
    new = {"max_steps": 5000, "optim__lr": 5e-4, "dtype": "float32", "recompute": True, "data__path": "data/moved"}
    after = changed(RUN, **new)
    assert check_resumable(RUN, after) == after


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1), ("init_from", "gpt2"), ("model.n_layers", 3), ("data.stride", 7), ("optim.beta1", 0.5)],
)
def test_a_resumed_run_must_keep_what_it_learns(name, value):
    with pytest.raises(ValueError, match=rf"^{re.escape(name)} is .* in this run, not .*: it cannot change"):
        check_resumable(RUN, changed(RUN, **{name.replace(".", "__"): value}))


def test_a_resumed_run_may_split_its_steps_differently():
    assert check_resumable(RUN, changed(RUN, batch_size=4, grad_accum_steps=4)).grad_accum_steps == 4
    with pytest.raises(ValueError, match="batch_size is 16 in this run, not 8"):
        check_resumable(RUN, changed(RUN, batch_size=8))


def test_the_run_fills_in_what_a_config_leaves_open():
    """As the config that the run was started with does."""
    assert check_resumable(RUN, changed(RUN, model__vocab_size=0, optim__decay_steps=0)) == RUN
    student = changed(RUN, objective__name="distill", objective__teacher="tales-001:step-000500")
    assert check_resumable(student, changed(student, objective__teacher="tales-001")) == student
    tuned = changed(RUN, init_from="gpt2", model__n_layers=3, model__drop_rate=0.0)
    assert check_resumable(tuned, changed(tuned, model__n_layers=GPTConfig().n_layers)) == tuned
