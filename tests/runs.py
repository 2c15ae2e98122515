"""Small runs: start, stop, resume and compare them."""

import csv
import dataclasses
import signal

import torch

from gpt.checkpoint import RunFolder
from gpt.run.training import start_run

TIMES = ("tokens_per_second", "elapsed_s", "sample_s", "judge_s", "train_s")


def quiet(line):
    """Discard a line of progress."""


def change(config, **changes):
    """Return a config with other values; model_drop_rate=0 sets model.drop_rate."""
    for name in [n for n in changes if n.startswith("model_")]:
        model = dataclasses.replace(changes.get("model", config.model), **{name[6:]: changes.pop(name)})
        changes["model"] = model
    return dataclasses.replace(config, **changes)


def train(config, folder):
    trainer = start_run(config, folder, quiet)
    trainer.train()
    return trainer


def rows(run):
    with RunFolder(run).metrics.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(run, truth):
    a, b = (RunFolder(folder).load("last") for folder in (run, truth))
    assert a.weights.keys() == b.weights.keys()
    for name, tensor in a.weights.items():
        assert torch.equal(tensor, b.weights[name]), name
    for key, state in a.training_state["optimizer"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, b.training_state["optimizer"]["state"][key][name])
    assert torch.equal(a.training_state["random"][0]["cpu"], b.training_state["random"][0]["cpu"])
    timed = ("elapsed_s", "sha256", "checksum")
    assert {k: v for k, v in a.state.items() if k not in timed} == {k: v for k, v in b.state.items() if k not in timed}
    assert rows(run) == rows(truth)
    assert RunFolder(run).samples.read_text() == RunFolder(truth).samples.read_text()


def stop_at(trainer, step):
    """Train until `step` optimizer steps are done, then stop as a signal does."""
    inner = trainer._train_step

    def one_step():
        inner()
        if trainer.step == step:
            trainer.signal = signal.SIGINT

    trainer._train_step = one_step
    trainer.train()
