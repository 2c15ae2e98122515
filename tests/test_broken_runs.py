"""notebooks/broken_runs: the files hold what notebook 16, its checks and the script that made them say."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt.checkpoint import RunFolder
from gpt.optim import learning_rate
from gpt.run.runs import read_metrics
from gpt.text import tales
from gpt.tokenizer import load_tokenizer

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FOLDER = NOTEBOOKS / "broken_runs"
sys.path[:0] = [str(NOTEBOOKS), str(NOTEBOOKS / "solutions")]
checks = importlib.import_module("checks.16_run_taken_apart")
import make_broken_runs as made  # noqa: E402

RUNS = {name: FOLDER / name for name in made.WRONG}
OF = {wrong: name for name, (wrong, _) in made.WRONG.items()}  # the run in which this is wrong
each_run = pytest.mark.parametrize("name", RUNS)


def lines(name: str, split: str) -> list[str]:
    return (RUNS[name] / f"{split}.txt").read_text(encoding="utf-8").splitlines()


def read(name: str, file: str) -> dict:
    return json.loads((RUNS[name] / file).read_text(encoding="utf-8"))


def val_losses(name: str) -> np.ndarray:
    """Return the validation losses of a run, the one before training first."""
    losses = np.array(read_metrics(RUNS[name] / "metrics.csv")["val_loss"])
    return losses[~np.isnan(losses)]


def train_loss(name: str) -> float:
    """Return the last training loss."""
    return read_metrics(RUNS[name] / "metrics.csv")["train_loss"][-1]


def test_the_checker_knows_the_right_diagnoses():
    assert {name: wrong for name, (wrong, _) in made.WRONG.items()} == checks.RIGHT
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(RUNS)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_200_000


@each_run
def test_texts_are_those_that_the_script_makes(name):
    wrong, _ = made.WRONG[name]
    train, val = made.texts(wrong)
    assert lines(name, "val") == val and len(val) == made.N_VAL
    shown = lines(name, "train")
    assert shown == train if len(train) <= made.MAX_SHOWN else len(shown) == made.N_SHOWN and {*shown} <= {*train}
    documents = [read(name, "meta.json")[split]["documents"] for split in ("train", "val")]
    assert documents == [len(train), len(val)]
    assert all(tales.first_broken_rule(tale) is None for tale in [*shown, *val])


@each_run
def test_levels_and_tokens_follow_from_the_text(name):
    tokenizer, meta, baselines = (
        load_tokenizer(RUNS[name] / "tokenizer.json"),
        read(name, "meta.json"),
        read(name, "baselines.json"),
    )
    val = lines(name, "val")
    n_tokens = sum(len(tokenizer.encode(tale)) + 1 for tale in val)  # each with its end
    assert baselines["n_tokens"] == n_tokens == meta["val"]["tokens"] - 1
    assert math.isclose(baselines["floor"], -sum(map(tales.log_probability, val)) / n_tokens)
    assert math.isclose(baselines["losses"]["uniform"], math.log(tokenizer.vocab_size))
    assert abs(val_losses(name)[0] - math.log(tokenizer.vocab_size)) < 0.1


@each_run
def test_columns_follow_from_config_and_losses(name):
    run, config, meta = (
        read_metrics(RUNS[name] / "metrics.csv"),
        RunFolder(RUNS[name]).config(),
        read(name, "meta.json"),
    )
    rates = [learning_rate(int(step) - 1, config.optim, config.max_steps) for step in run["step"][1:]]
    np.testing.assert_allclose(run["lr"][1:], rates, rtol=1e-6)
    assert run["step"][-1] == config.max_steps == made.BASE["max_steps"]
    bits = run["val_loss"][-1] / math.log(2) * (meta["val"]["tokens"] / meta["val"]["bytes"])
    assert math.isclose(run["val_bits_per_byte"][-1], bits, rel_tol=1e-3)
    assert name in config.data.path and not any(word in config.data.path for word in checks.HINTS)


def test_only_the_settings_that_are_wrong_differ():
    for name, (_, changes) in made.WRONG.items():
        config = RunFolder(RUNS[name]).config()
        for section in ("model", "optim"):
            wanted = {**made.BASE[section], **changes.get(section, {})}
            found = {key: getattr(getattr(config, section), key) for key in wanted if key != "vocab_size"}
            assert found == {key: value for key, value in wanted.items() if key != "vocab_size"}


def test_the_leak_is_in_one_run_and_its_loss_is_below_the_floor():
    leaked = {name: len({*lines(name, "val")} & {*lines(name, "train")}) for name in RUNS}
    assert leaked == {name: made.N_LEAKED * (name == OF["leak"]) for name in RUNS}
    below = [name for name in RUNS if val_losses(name).min() < read(name, "baselines.json")["floor"]]
    assert below == [OF["leak"]]


def test_the_memorised_text_is_short_and_its_validation_loss_turns():
    name = OF["memorised"]
    losses, floor = val_losses(name), read(name, "baselines.json")["floor"]
    assert len(lines(name, "train")) == made.N_FEW
    assert train_loss(name) < 0.5 * floor and losses[-1] > 1.2 * losses.min() > 2 * floor


def test_the_shift_is_a_villain_and_a_gap_that_the_trigram_has_too():
    name = OF["shift"]
    train, val = ({tales.facts(tale).villain for tale in lines(name, split)} for split in ("train", "val"))
    assert len(val) == 1 and len(train) > 5 and not train & val
    losses, floor = val_losses(name), read(name, "baselines.json")["floor"]
    assert losses[-1] > train_loss(name) + 0.4 and losses[-1] < 1.02 * losses.min() and train_loss(name) > 2 * floor
    trigram = {run: read(run, "baselines.json")["losses"]["trigram"] for run in RUNS}
    assert trigram[name] > trigram[OF["rate"]] + 0.3 and trigram[OF["rate"]] == trigram[OF["warmup"]]


def test_the_tokenizer_is_cheap_by_the_token_and_dear_by_the_byte():
    name = OF["tokenizer"]
    n_bytes = {run: read(run, "meta.json")["val"]["bytes"] / read(run, "meta.json")["val"]["tokens"] for run in RUNS}
    assert n_bytes.pop(name) < 2.2 < 4 < min(n_bytes.values())
    bits = {run: read_metrics(RUNS[run] / "metrics.csv")["val_bits_per_byte"][-1] for run in RUNS}
    assert val_losses(name)[-1] < val_losses(OF["shift"])[-1] and bits[name] > bits[OF["shift"]]
    assert abs(val_losses(name)[-1] - train_loss(name)) < 0.1


def test_the_rates_are_too_high_and_too_low():
    high, low = (read_metrics(RUNS[OF[wrong]] / "metrics.csv") for wrong in ("rate", "warmup"))
    assert max(high["lr"][1:]) == 1.0 and max(low["lr"][1:]) < 3e-4
    assert max(high["train_loss"][1:]) > 10 and max(high["grad_norm"][1:]) > 10 > max(low["grad_norm"][1:])
    assert np.all(np.diff(val_losses(OF["warmup"])) < 0) and val_losses(OF["warmup"])[-1] > 4
