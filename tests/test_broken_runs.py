"""notebooks/broken_runs: the files of each run show what its diagnosis says, and tell the six runs apart."""

import json
import math
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from gpt.run.runs import read_metrics
from gpt.text import tales
from gpt.tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
from exercises import CHECKS, _load  # noqa: E402

_load("16.1")
RIGHT = CHECKS["16.5"].__globals__["RIGHT"]
RUNS = sorted((FOLDER / "broken_runs").glob("run-?"))
named = {word: FOLDER / "broken_runs" / run for run, word in RIGHT.items()}
each_run = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)


def texts(path):
    """Return the training tales and the validation tales of a run."""
    return [(path / name).read_text(encoding="utf-8").split("\n")[:-1] for name in ("train.txt", "val.txt")]


def baselines(path):
    return json.loads((path / "baselines.json").read_text(encoding="utf-8"))


def settings(path):
    return tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))


def last(path, column):
    return read_metrics(path / "metrics.csv")[column][-1]


def test_there_are_six_runs_each_with_a_diagnosis_and_no_weights():
    assert [path.name for path in RUNS] == list(RIGHT) and len({*RIGHT.values()}) == 6
    files = [file for path in RUNS for file in path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1.3e6
    assert not [file for file in files if file.suffix in (".safetensors", ".pt")]


@each_run
def test_the_floor_and_the_first_loss_are_those_of_the_tales(path):
    found = baselines(path)
    nats = -sum(map(tales.log_probability, texts(path)[1]))
    assert math.isclose(found["floor"], nats / found["n_tokens"], rel_tol=1e-6)
    first = read_metrics(path / "metrics.csv")["val_loss"][0]
    assert abs(first - math.log(load_tokenizer(path / "tokenizer.json").vocab_size)) < 0.1


@each_run
def test_only_one_run_has_copies_of_its_validation_tales(path):
    train, val = texts(path)
    assert any(tale in train for tale in val) == (RIGHT[path.name] == "leak")


def test_each_illness_is_in_the_files_of_its_run_alone():
    signs = {
        "leak": lambda path: last(path, "val_loss") < baselines(path)["floor"],
        "memorised": lambda path: (
            last(path, "train_loss") < baselines(path)["floor"]
            and last(path, "val_loss") > np.nanmin(read_metrics(path / "metrics.csv")["val_loss"]) + 0.1
        ),
        "rate": lambda path: settings(path)["optim"]["lr"] > 0.1,
        "shift": lambda path: (
            last(path, "val_loss") - last(path, "train_loss") > 0.3
            and last(path, "train_loss") > baselines(path)["floor"]
        ),
        "tokenizer": lambda path: (
            len(b"".join(tale.encode() for tale in texts(path)[1])) / baselines(path)["n_tokens"] < 3
        ),
        "warmup": lambda path: settings(path)["optim"]["warmup_steps"] > settings(path)["max_steps"],
    }
    for word, sign in signs.items():
        assert [path.name for path in RUNS if sign(path)] == [named[word].name], word


def test_the_villain_of_the_shifted_tales_is_in_none_of_the_training_tales():
    train, val = ({tales.facts(tale).villain for tale in part} for part in texts(named["shift"]))
    assert len(val) == 1 and not val & train
