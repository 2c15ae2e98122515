"""Sweeps: the grid of an options' list, runs that diverge, fail, stop and continue, and figures by hand."""

import csv
import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from runs import change, quiet, stop_at

from gpt.config import TrainConfig, load_config, to_toml
from gpt.run import sweep
from gpt.run.cli import Parser, add_config_options
from gpt.run.grid import create_grid
from gpt.run.runs import RunInfo
from gpt.run.sweep_results import describe_results, draw_results
from gpt.run.training import resume_run
from scripts import SCRIPTS, run_script


@pytest.fixture
def config(tiny_config, tmp_path, monkeypatch):
    """Write a config tiny.toml into a working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 8)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
    small = change(tiny_config, max_steps=6, eval_every=2, save_every=0, grad_accum_steps=1)
    Path("tiny.toml").write_text(to_toml(small), encoding="utf-8")
    return small


@pytest.fixture
def in_process(monkeypatch):
    """Train the runs in this process; `stop_in` stops a run after its third step, as a signal does."""
    state = SimpleNamespace(started=[], threads=[], stop_in="", fail_in="")

    class Process:
        def __init__(self, command, stdout, env, **options):
            run = command[command.index("--run") + 1]
            assert command[1:] == [str(SCRIPTS / "train.py"), "--run", run, "--resume"]
            state.started.append(Path(run).name)
            state.threads.append(env.get("OMP_NUM_THREADS"))
            self.status, stop = 0, state.stop_in in run
            try:
                if state.fail_in and state.fail_in in run:
                    raise ValueError("no memory")
                trainer = resume_run(run, log=quiet)
                stop_at(trainer, 3 if state.stop_in and stop else -1)
                if trainer.stopped_by:
                    os.kill(os.getpid(), signal.SIGINT)  # reaches the sweep as well
                    self.status = 130
            except (FloatingPointError, ValueError) as error:
                stdout.write(f"train.py: error: {error}\n".encode())
                self.status = 1 if isinstance(error, FloatingPointError) else 2

        def poll(self):
            return self.status

    monkeypatch.setattr(sweep.subprocess, "Popen", Process)
    return state


def grid_of(command, n_seeds=None, path="tiny.toml"):
    parser = Parser("")
    add_config_options(parser, "append")
    return create_grid(path, parser.parse_args(command.split()), n_seeds)


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_product_of_all_lists_times_the_seeds(config):
    grid = grid_of("--optim.lr 1e-3,2e-3 --model.n_layers 1,2,3 --batch_size 3 --model.qkv_bias true,false", 2)
    assert len(grid.points) == 12
    assert len(grid.configs) == 24
    name = "qkv_bias=false,n_layers=3,lr=0.002,seed=8"
    name = next(n for n in grid.configs if set(n.split(",")) == set(name.split(",")))
    found = grid.configs[name]
    assert (found.model.qkv_bias, found.model.n_layers, found.optim.lr, found.seed) == (False, 3, 0.002, 8)
    assert {c.batch_size for c in grid.configs.values()} == {3}
    expected = dataclasses.replace(
        config, seed=8, batch_size=3, model=dataclasses.replace(config.model, n_layers=3, qkv_bias=False),
        optim=dataclasses.replace(config.optim, lr=0.002, min_lr=0.0002),
    )  # fmt: skip
    assert found == expected


def test_min_lr_keeps_its_ratio_unless_it_is_given(config):
    def ends(command):
        return [point.optim.min_lr for point in grid_of(command).configs.values()]

    assert ends("--optim.lr 1e-3,6e-3") == [1e-4, 6e-4]  # 3e-4 of 3e-3 in the file
    assert ends("--optim.lr 1e-3,6e-3 --optim.min_lr 1e-5") == [1e-5, 1e-5]
    assert ends("--optim.lr 4e-3") == [3e-4]  # as train.py
    grid = grid_of("--optim.lr 1e-3,6e-3 --batch_size 2")
    command = grid.train_command(grid.points[1])
    assert command == "python scripts/train.py --config tiny.toml --batch_size 2 --optim.lr 0.006 --optim.min_lr 0.0006"


def test_a_text_is_never_split_but_may_be_given_several_times(config):
    grid = grid_of(
        "--sample_prompt=a,b --sample_prompt=c --freeze=tok_emb,pos_emb --optim.lr 1e-3 --optim.lr 2e-3,1e-3"
    )
    assert {c.sample_prompt for c in grid.configs.values()} == {"a,b", "c"}
    assert {c.freeze for c in grid.configs.values()} == {"tok_emb,pos_emb"}
    assert grid.swept == {"sample_prompt": ["a,b", "c"], "optim.lr": [1e-3, 2e-3]}
    assert [Path(name).parts for name in grid.configs] == [(name,) for name in grid.configs]  # no slash in a name


def test_seeds(config):
    assert grid_of("", 3).seeds == [7, 8, 9]
    assert list(grid_of("--seed 20", 2).configs) == ["seed=20", "seed=21"]
    assert grid_of("--seed 4,2").seeds == [4, 2]
    with pytest.raises(ValueError, match="either --seeds, a number of seeds, or a list of them as --seed"):
        grid_of("--seed 4,2", 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--optim.lr 1e-3,x", "--optim.lr takes a number, not 'x'"),
        ("--optim.lr 1e-3,,2", "--optim.lr has an empty value"),
        ("--model.n_layers 1,0", "n_layers 0: model.n_layers must be at least 1, not 0"),
        ("--optim.schedule linear,square", "schedule square: optim.schedule must be one of"),
        ("--optim.lr 1e-3,2e-3 --optim.min_lr 1.5e-3", "lr 0.001: optim.min_lr 0.0015 is above lr 0.001"),
        ("--seeds 0", "--seeds must be at least 1, not 0"),
        ("--jobs 0", "--jobs must be at least 1, not 0"),
        ("--optm.lr 1", "unknown option --optm.lr: did you mean --optim.lr?"),
        ("--data.path nowhere", "seed=7: no prepared data in nowhere"),
        ("--model.context_length 8,9000", "context_length=9000,seed=7: the training split of"),
        ("--model.emb_dim 32,131072", "emb_dim=131072,seed=7: a training step needs about"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(config, capsys, options, words):
    assert run_script(f"sweep --config tiny.toml {options}") == 2
    out, err = capsys.readouterr()
    assert words in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not Path("runs").exists()


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_sweep_trains_all_runs_and_a_second_one_none(config, in_process, capsys):
    command = "sweep --config tiny.toml --optim.lr 1e-3,4e-3 --seeds 2"
    assert run_script(command) == 0
    text = capsys.readouterr().out
    folder = Path("runs/tiny-sweep-001")
    names = ["lr=0.001,seed=7", "lr=0.001,seed=8", "lr=0.004,seed=7", "lr=0.004,seed=8"]
    assert in_process.started == names
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    losses = {}
    for name in names:
        with (folder / name / "metrics.csv").open(newline="") as file:
            found = [(float(row["val_loss"]), int(row["step"])) for row in csv.DictReader(file) if row["val_loss"]]
        losses.setdefault(name.partition(",")[0], []).append(min(loss for loss, step in found if step))
    found = re.findall(r"^ *([\d.]+) +(\d+) +([\d.]+) ± ([\d.]+) +([\d.]+) +([\d.]+) ", text, re.M)
    rows = {lr: tuple(figures) for lr, *figures in found}
    for lr, both in (("0.001", losses["lr=0.001"]), ("0.004", losses["lr=0.004"])):
        figures = [statistics.fmean(both), abs(both[0] - both[1]) / 2**0.5, min(both), max(both)]
        assert rows[lr] == ("2", *(f"{figure:.4f}" for figure in figures))
    best = min(("0.001", "0.004"), key=lambda lr: statistics.fmean(losses[f"lr={lr}"]))
    assert f"lr {best} is best: " in text
    assert "to train with it: python scripts/train.py --config tiny.toml --optim.lr" in text
    assert run_script(f"{command} --run tiny-sweep-001") == 0
    again = capsys.readouterr().out
    assert len(in_process.started) == 4  # none was started again
    assert again.partition("\n\n")[2] == text.partition("\n\n")[2]


@pytest.mark.slow
def test_a_stopped_sweep_continues_and_ends_as_one_that_was_not(config, in_process, capsys):
    command = "sweep --config tiny.toml --optim.lr 1e-3,4e-3 --seeds 2"
    assert run_script(f"{command} --run whole") == 0
    whole = capsys.readouterr().out
    in_process.stop_in = "lr=0.001,seed=8"
    in_process.started.clear()
    assert run_script(command) == 130
    stopped = capsys.readouterr().out
    assert in_process.started == ["lr=0.001,seed=7", "lr=0.001,seed=8"]  # no other one was started
    assert "stopped    at step 3 of 6" in stopped
    (line,) = re.findall(r"to continue: python scripts/(.*)", stopped)
    assert "--run tiny-sweep-001" in line
    in_process.stop_in = ""
    assert run_script(line.replace("sweep.py", "sweep", 1)) == 0
    assert in_process.started[2:] == ["lr=0.001,seed=8", "lr=0.004,seed=7", "lr=0.004,seed=8"]
    continued = capsys.readouterr().out

    def table(text):  # without the times
        return [re.sub(r" +\d+ s$", "", row) for row in text.partition("\n\n")[2].splitlines()[:5]]

    assert table(continued) == table(whole)


def test_after_a_signal_no_other_run_is_started(config, in_process, capsys):
    in_process.stop_in = "lr=0.001"
    assert run_script("sweep --config tiny.toml --optim.lr 1e-3,2e-3,4e-3 --jobs 2") == 130
    assert in_process.started == ["lr=0.001,seed=7"]
    assert "SIGINT: " in capsys.readouterr().out


def test_a_diverged_run_is_a_row_and_not_tried_again(config, in_process, capsys):
    command = "sweep --config tiny.toml --optim.lr 3e-3,1e30 --optim.grad_clip 0 --optim.warmup_steps 0 --run wild"
    for _ in range(2):
        assert run_script(command) == 0
        text = capsys.readouterr().out
        assert re.search(r"^1e\+30 +1 diverged$", text, re.M)
        assert "lr 0.003 is best: " in text
        assert "One seed does not show" not in text  # there is nothing to compare
    assert in_process.started == ["lr=0.003,seed=7", "lr=1e+30,seed=7"]


def test_a_failed_run_says_why_is_tried_again_and_the_others_are_trained(config, in_process, capsys):
    in_process.fail_in = "lr=0.001"
    command = "sweep --config tiny.toml --optim.lr 1e-3,4e-3 --run some"
    assert run_script(command) == 1
    text = capsys.readouterr().out
    assert re.search(r"lr=0.001,seed=7  failed     no memory", text)
    assert re.search(r"^0.001 +1 failed$", text, re.M)
    in_process.fail_in = ""
    assert run_script(command) == 0
    assert in_process.started == ["lr=0.001,seed=7", "lr=0.004,seed=7", "lr=0.001,seed=7"]


def test_settings_stay_the_same_but_lists_may_grow(config, in_process, capsys):
    first = "sweep --config tiny.toml --optim.lr 1e-3,2e-3 --run grows"
    assert run_script(first) == 0
    assert run_script("sweep --config tiny.toml --optim.lr 1e-3,2e-3,4e-3 --seeds 2 --run grows") == 0
    assert len(in_process.started) == 6  # two before, four more
    capsys.readouterr()
    for options, words in (
        ("--optim.lr 1e-3,2e-3 --batch_size 2", "batch_size is 4 in this run, not 2"),
        ("--optim.lr 5e-3,6e-3 --batch_size 2", "batch_size is 4 in this run, not 2"),  # other runs than those there
        ("--optim.lr 1e-3,2e-3 --max_steps 8", "max_steps is 6 in this run, not 8"),
        ("--optim.lr 1e-3,2e-3 --optim.min_lr 0", "optim.min_lr is 0.0001 in this run, not 0.0"),
        ("--model.n_layers 1,2", "optim.lr is"),
    ):
        assert run_script(f"sweep --config tiny.toml {options} --run grows") == 2
        err = capsys.readouterr().err
        assert words in err
        assert "a sweep's settings stay the same; name another one with --run" in err
    assert len(in_process.started) == 6
    assert run_script(f"{first[: first.index('--run')]} --run grows/lr=0.001,seed=7") == 2
    assert "is a run, not a sweep" in capsys.readouterr().err


def test_jobs_share_the_cores(config, in_process, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert run_script("sweep --config tiny.toml --optim.lr 1e-3,2e-3 --jobs 3") == 0
    assert in_process.threads == ["2", "2"]
    assert run_script("sweep --config tiny.toml --optim.lr 1e-3,2e-3") == 0
    assert in_process.threads[2:] == [None, None]


@pytest.mark.slow
def test_real_processes_stop_at_ctrl_c_and_continue(config):
    """Two learning rates by two seeds, two at a time; Ctrl-C once the first runs train."""

    def command(run):
        options = "--optim.lr 1e-3,4e-3 --seeds 2 --jobs 2 --max_steps 300 --eval_every 100 --sample_every 0"
        script = str(SCRIPTS / "sweep.py")
        return [sys.executable, script, "--config", "tiny.toml", "--run", run, *options.split()]

    whole = subprocess.run(command("whole"), capture_output=True, text=True, check=True).stdout
    process = subprocess.Popen(command("cut"), stdout=subprocess.PIPE, text=True, start_new_session=True)
    first = Path("runs/cut/lr=0.001,seed=7/metrics.csv")
    deadline = time.monotonic() + 120
    while not (first.exists() and len(first.read_text().splitlines()) > 4):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    stopped = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert "to continue: " in stopped
    cut = subprocess.run(command("cut"), capture_output=True, text=True, check=True).stdout

    def table(text):
        return [re.sub(r" +\d+ s$", "", row) for row in text.partition("\n\n")[2].splitlines()[:3]]

    assert len(table(whole)) == 3
    assert table(cut) == table(whole)


# --- the results ------------------------------------------------------------------------------------------------------


def results(config, command, losses, n_seeds=1, states=None):
    """Return the text of a sweep whose runs have these losses."""
    grid = grid_of(command, n_seeds)
    infos = {
        name: RunInfo(name, (states or {}).get(number, "finished"), None, 6, 6, loss, 6, 2 * loss, 60.0)
        for number, (name, loss) in enumerate(zip(grid.configs, losses, strict=True))
    }
    return grid, infos, describe_results(grid, infos, "mine")


def test_the_best_is_named_with_the_spread_by_hand(config):
    _, _, text = results(config, "--optim.lr 1e-3,2e-3,4e-3", [1.6, 1.7, 1.2, 1.3, 1.24, 1.34], 2)
    # means 1.65, 1.25, 1.29; two values 0.1 apart have a standard deviation of 0.1/√2
    assert "lr 0.002 is best: 1.2500 ± 0.0707 nats per token over 2 seeds." in text
    assert "Within the spread of it: lr 0.004. More --seeds would tell them apart." in text
    assert "tried" not in text  # 0.002 is in the middle
    _, _, text = results(config, "--optim.lr 1e-3,2e-3,4e-3", [1.6, 1.7, 1.2, 1.3, 0.9, 0.91], 2)
    assert "The next, lr 0.002, is worse by 0.3450, which is more than the spread." in text
    assert "0.004 is the highest lr tried: a higher one may be better still." in text
    assert "add it to the list and type the same command with --run mine." in text


def test_one_seed_has_no_spread(config):
    _, _, text = results(config, "--optim.lr 1e-3,2e-3", [1.6, 1.5])
    assert "lr 0.002 is best: 1.5000 nats per token." in text
    assert "One seed does not show how much of a difference is chance: --seeds 3 does." in text
    assert "±" not in text
    _, _, text = results(config, "", [1.5, 1.7], 2)
    assert "\n1.6000 ± 0.1414 nats per token over 2 seeds. A difference of that size" in text


def test_a_setting_of_which_a_seed_diverged_is_not_the_best(config):
    _, _, text = results(config, "--optim.lr 1e-3,2e-3", [1.6, 1.7, 1.0, 9.0], 2, {3: "diverged"})
    assert "lr 0.001 is best: 1.6500" in text
    assert re.search(r"0.002 +1 finished, 1 diverged +1.0000 +1.0000 +1.0000", text)
    _, _, text = results(config, "--optim.lr 1e-3,2e-3", [1.6, 1.7], 1, {0: "diverged", 1: "diverged"})
    assert "No setting has finished with all seeds" in text


def test_different_data_are_compared_by_bits_per_byte(config):
    _, _, text = results(config, "--data.path data/a --data.path data/b", [1.6, 1.5])
    assert "path data/b is best: 3.0000 bits per byte." in text


def test_the_plot_has_the_losses_over_the_learning_rate_on_a_log_axis(config, monkeypatch, tmp_path):
    drawn, save = {}, Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update(axes=figure.axes[0]) or save(figure, path))
    losses = [2.0, 2.2, 1.8, 1.9, 1.0, 1.2, 9.0, 9.0]
    command, states = "--model.n_layers 1,2 --optim.lr 1e-3,1e-2", {6: "diverged", 7: "diverged"}
    grid, infos, _ = results(config, command, losses, 2, states)
    assert draw_results(grid, infos, tmp_path / "sweep.png") == tmp_path / "sweep.png"
    axes = drawn["axes"]
    assert axes.get_xlabel() == "optim.lr"
    assert axes.get_xscale() == "log"
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == ["n_layers 1", "n_layers 2"]
    for line, points in zip(named, ([[0.001, 2.1], [0.01, 1.85]], [[0.001, 1.1]]), strict=True):
        assert line.get_xydata().tolist() == [pytest.approx(point) for point in points]
    points = sorted(y for line in axes.lines if line.get_marker() == "o" for _, y in line.get_xydata().tolist())
    assert points == sorted(losses[:6])
    assert [text.get_text() for text in axes.texts] == ["2 diverged"]
    grid, infos, _ = results(config, "", [1.5, 1.7], 2)
    assert draw_results(grid, infos, tmp_path / "none.png") is None


def test_a_judged_objective_is_refused(config):
    kind = dataclasses.replace(config.objective, name="grpo", reward="tales")
    Path("judged.toml").write_text(to_toml(dataclasses.replace(config, objective=kind)), encoding="utf-8")
    with pytest.raises(ValueError, match="judged by a reward"):
        sweep.check_grid(grid_of("", 2, "judged.toml"), Path("runs/x"), 1)


def test_the_config_of_each_run_is_that_of_its_point(config, in_process):
    assert run_script("sweep --config tiny.toml --optim.lr 1e-3,2e-3 --run s") == 0
    for name, wanted in grid_of("--optim.lr 1e-3,2e-3").configs.items():
        found: TrainConfig = load_config(Path("runs/s") / name / "config.toml")
        assert (found.optim.lr, found.optim.min_lr, found.seed) == (wanted.optim.lr, wanted.optim.min_lr, wanted.seed)
