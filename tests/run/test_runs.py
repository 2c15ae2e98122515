"""The list of runs: each state as it arises, every figure that of metrics.csv, and nothing changed on disk."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import change, quiet, stop_at, train

from gpt.config import to_toml
from gpt.run.runs import RunInfo, duration, find_runs, format_runs, list_runs, read_run_info
from gpt.run.training import resume_run, start_run
from scripts import SCRIPTS, run_script


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 8)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture
def runs(tiny_config, tmp_path, monkeypatch):
    """Return a folder runs/ with a run in each state that ends, below the working folder."""
    monkeypatch.chdir(tmp_path)
    train(tiny_config, "runs/finished")
    stop_at(start_run(change(tiny_config, model_n_layers=1), "runs/stopped", quiet), 6)
    wild = dataclasses.replace(tiny_config.optim, lr=1e30, grad_clip=0.0, warmup_steps=0)
    with pytest.raises(FloatingPointError):
        train(change(tiny_config, optim=wild), "runs/diverged")
    Path("runs/sweep/empty").mkdir(parents=True)
    Path("runs/sweep/empty/config.toml").write_text(to_toml(tiny_config))
    return tmp_path / "runs"


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob("*"))}


def test_each_state_and_figure(runs, tiny_config, capsys):
    before = contents(runs)
    assert run_script("runs --json") == 0
    found = {run["name"]: run for run in json.loads(capsys.readouterr().out)}
    assert {name: run["state"] for name, run in found.items()} == {
        "finished": "finished", "stopped": "stopped", "diverged": "diverged", "sweep/empty": "empty",
    }  # fmt: skip
    for name, last in (("finished", 12), ("stopped", 6)):
        run, rows = found[name], rows_of(runs / name)
        evaluated = [row for row in rows if row["val_loss"] and int(row["step"]) > 0]
        best = min(evaluated, key=lambda row: float(row["val_loss"]))
        assert (run["step"], run["max_steps"]) == (last, 12)
        assert run["best_loss"] == float(best["val_loss"])
        assert run["best_bits_per_byte"] == float(best["val_bits_per_byte"])
        assert run["best_step"] == int(best["step"])
        assert run["seconds"] == float(rows[-1]["elapsed_s"])
        assert run["changed"] == pytest.approx(time.time(), abs=60)
    assert found["stopped"]["settings"]["model.n_layers"] == 1
    assert found["stopped"]["settings"]["optim.lr"] == tiny_config.optim.lr
    assert found["diverged"]["best_loss"] is None  # the loss before the first step is not its own
    assert found["sweep/empty"]["seconds"] is None
    assert contents(runs) == before


def test_a_run_that_trains_is_read_and_one_that_was_killed_is_not_said_to_train(runs, tiny_config):
    trainer = resume_run("runs/stopped", log=quiet)  # holds the lock
    info = read_run_info(runs / "stopped", "stopped")
    assert (info.state, info.step) == ("training", 4)  # its last row
    shutil.copytree(runs / "stopped", runs / "killed")  # its .lock names a process that lives
    lock = runs / "killed" / ".lock"
    assert read_run_info(runs / "killed", "").state == "training"
    os.utime(lock, (1e9, 1e9))  # older than that process: the system has given its id to another one
    assert read_run_info(runs / "killed", "").state == "stopped"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for content in (str(gone.pid), "", "no number"):
        lock.write_text(content)
        assert read_run_info(runs / "killed", "").state == "stopped"
    trainer.train()
    assert read_run_info(runs / "stopped", "stopped").state == "finished"


def test_a_run_that_patience_ended_is_finished(tiny_config, tmp_path):
    still = dataclasses.replace(tiny_config.optim, lr=0.0, min_lr=0.0)
    train(change(tiny_config, max_steps=40, patience=2, optim=still), tmp_path / "run")
    info = read_run_info(tmp_path / "run", "run")
    assert (info.state, info.step, info.max_steps) == ("finished", 12, 40)


def test_a_run_that_was_resumed_past_a_divergence_is_not_diverged(runs, tiny_config):
    shutil.copy(runs / "diverged" / "not_finite.safetensors", runs / "stopped")
    assert read_run_info(runs / "stopped", "").state == "diverged"
    resume_run("runs/stopped", log=quiet).train()
    assert (runs / "stopped" / "not_finite.safetensors").exists()
    assert read_run_info(runs / "stopped", "").state == "finished"
    stop_at(resume_run("runs/stopped", change(tiny_config, max_steps=20, model_n_layers=1), quiet), 14)
    assert read_run_info(runs / "stopped", "").state == "stopped"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.toml", b"max_steps = 'x'", "config.toml: max_steps must be a whole number"),
        ("config.toml", b"\xff\xfe", "config.toml is not valid TOML"),
        ("config.toml", None, "config.toml"),
        ("metrics.csv", None, "metrics.csv cannot be read"),
        ("metrics.csv", b"step,val_loss\n1,x\n", "could not convert string to float: 'x'"),
        ("metrics.csv", b"step\n1\n", "'elapsed_s'"),
        ("metrics.csv", b"step,elapsed_s\n1,2,3,4\n,\n", ""),
        ("metrics.csv", bytes(range(256)), ""),
        ("checkpoints/step-000012/state.json", b"{}", "step-000012/state.json is damaged"),
        ("checkpoints/step-000012/state.json", None, "state.json cannot be read"),
    ],
)
def test_a_damaged_run_is_a_row_that_says_so(runs, capsys, file, content, words):
    path = runs / "finished" / file
    path.unlink() if content is None else path.write_bytes(content)
    assert run_script("runs --run finished stopped") == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if line.startswith("finished"))
    assert re.match(r"finished +damaged +\S", row)
    assert words in row
    assert any(re.match(r"stopped +stopped +6 of 12 ", line) for line in lines)
    assert run_script("runs --json") == 0
    json.loads(capsys.readouterr().out)


def test_runs_are_chosen_by_name_pattern_and_folder(runs, tmp_path, capsys):
    def names(*patterns):
        return [run.name for run in list_runs(patterns)]

    assert names() == ["diverged", "finished", "stopped", "sweep/empty"]
    assert names("st*", "finished", "s*") == ["stopped", "finished", "sweep/empty"]
    assert names("sweep") == names("sweep/") == names("sweep/*") == ["sweep/empty"]
    (tmp_path / "elsewhere").mkdir()
    shutil.move(runs / "finished", tmp_path / "elsewhere" / "moved")
    assert names("elsewhere") == names("elsewhere/moved") == ["elsewhere/moved"]
    assert run_script("runs --run stoped") == 2
    assert "runs.py: error: no run fits 'stoped': did you mean stopped?" in capsys.readouterr().err
    assert [path.name for path in find_runs(runs)] == ["diverged", "stopped", "empty"]


def test_without_runs_the_first_command_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_script("runs") == 0
    assert "no runs under runs/ yet: python scripts/train.py" in capsys.readouterr().out
    assert run_script("runs --json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_sorting(runs, capsys):
    def order(by):
        assert run_script(f"runs --json --sort {by}") == 0
        return json.loads(capsys.readouterr().out)

    losses = [run["best_loss"] for run in order("loss")]
    assert losses[:2] == sorted(losses[:2])
    assert losses[2:] == [None, None]  # unknown ones are last
    assert [run["step"] for run in order("steps")] == [12, 6, 0, 0]
    when = [run["changed"] for run in order("when")]
    assert when[:3] == sorted(when[:3], reverse=True)
    assert run_script("runs --sort size") == 2
    assert "--sort" in capsys.readouterr().err


def info(name, **settings):
    defaults = {"data.path": "data/a", "max_steps": 9, "optim.decay_steps": 9, "optim.lr": 0.1, "optim.min_lr": 0.01}
    return RunInfo(name, "finished", None, 9, 9, 1.5, 9, 2.0, 120.0, time.time() - 7200, defaults | settings)


def test_the_table_shows_the_settings_that_differ_as_far_as_they_fit():
    runs = [
        info("a", **{"optim.lr": 0.1, "seed": 1, "logger": "csv"}),
        info("b", **{"optim.lr": 0.2, "optim.min_lr": 0.02, "seed": 2, "logger": "tensorboard"}),
        info("c", **{"data.path": "data/b"}),
    ]
    first, second = format_runs(runs, 100).split("\n\n")
    assert first.splitlines() == [
        "data/a",
        "run  state     steps  val loss  bits/byte     time       when   lr  seed",  # min_lr keeps its ratio to lr
        "a    finished      9    1.5000     2.0000  2.0 min  2.0 h ago  0.1     1",
        "b    finished      9    1.5000     2.0000  2.0 min  2.0 h ago  0.2     2",
    ]
    assert not re.search(r"\b(lr|logger|path)\b", second)
    narrow = format_runs(runs[:2], 66)
    assert max(map(len, narrow.splitlines()[:4])) <= 66
    assert "more settings differ" in narrow


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (3600, "60 min"),
        (5400, "1.5 h"),
        (86_400, "24 h"),
        (2e5, "2.3 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_hundred_runs_are_listed_without_pytorch_in_a_moment(runs):
    for number in range(96):
        shutil.copytree(runs / "finished", runs / f"copy-{number:02}")
    program = "import runpy, sys\nsys.argv = ['runs.py', '--json']\ntry:\n    runpy.run_path(%r, run_name='__main__')\n"
    program += "except SystemExit:\n    print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    start = time.perf_counter()
    command = [sys.executable, "-c", program % str(SCRIPTS / "runs.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == 100
    assert done.stderr.split() == ["False", "False"]
    assert time.perf_counter() - start < 10  # about one second; a busy machine is slower
