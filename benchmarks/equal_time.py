"""Runs that train for the same time, each in its own process: a clock, and a deadline at which a run ends.

The clock of a run on one thread counts the seconds of CPU time, so that other programs hardly disturb it.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import ladder
import torch

from gpt.config import TrainConfig, from_dict, read_toml
from gpt.loss import Evaluation
from gpt.model import GPTModel
from gpt.run import cli
from gpt.run.training import start_run
from gpt.trainer import Callback, Trainer

POINTS = 6  # of a curve after its first one, at equal parts of the time


class Run:
    """A run in progress: its clock, which starts now; the seconds of its parts; and its curve.

    `figures` measures a model for a point of the curve, while the clock stands; None: there is no curve.
    """

    def __init__(self, seed: int, seconds: float, folder: Path, figures: Callable[[GPTModel], list[float]] | None):
        self.seed, self.seconds, self.folder, self.figures = seed, seconds, folder, figures
        self.parts = {"sample_s": 0.0, "judge_s": 0.0}
        self.curve: list[list[float]] = []  # seconds, then figures
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        self.steps, self.start = 0, self.clock()

    @property
    def elapsed(self) -> float:
        """The seconds that count so far."""
        return self.clock() - self.start

    def measure(self, model: GPTModel) -> None:
        """Add a point to the curve if one is due."""
        if self.figures and (elapsed := self.elapsed) >= len(self.curve) * self.seconds / POINTS:
            self.curve.append([round(elapsed, 1), *self.figures(model)])
            self.start += self.elapsed - elapsed

    def train(
        self, config: Path, changed: dict, until: float, name: str = "run", callback: Callback | None = None
    ) -> Path:
        """Train a config, with some settings changed by their dotted names, until the clock says so. Return the folder
        of the run."""
        fixed = {"seed": self.seed, "device": "cpu", "log_every": 1, "eval_every": 0, "save_every": 0}
        config = with_settings(config, {**fixed, "sample_every": 0, **changed})
        trainer = start_run(config, self.folder / name, log=lambda line: None)
        trainer.callbacks = [Deadline(self, until), *([callback] if callback else [])]
        trainer.train()
        if trainer.stopped_by:  # a signal ended the run before its time
            raise KeyboardInterrupt
        self.steps += trainer.step
        return self.folder / name

    def seconds_by_part(self) -> dict[str, float]:
        """Return the seconds of sampling, judging and training; empty if nothing was trained."""
        rest = self.elapsed - sum(self.parts.values())
        return {name: round(s, 2) for name, s in {**self.parts, "train_s": rest}.items()} if self.steps else {}


class Deadline(Callback):
    """Ends a run at a second of its clock. Until then max_steps is what its pace predicts: so the learning rate decays
    over the time."""

    def __init__(self, run: Run, until: float):
        self.run, self.until, self.begun = run, until, 0.0
        self.last = run.clock(), time.perf_counter()

    def on_log(self, trainer: Trainer, evaluation: Evaluation | None) -> None:
        """Count the seconds of sampling and judging in a step, which the objective measures by another clock."""
        before, self.last = self.last, (self.run.clock(), time.perf_counter())
        ours, theirs = (now - then for now, then in zip(self.last, before, strict=True))
        for name, total in zip(trainer.objective.training_metrics, trainer.sums[2:], strict=False):
            if name in self.run.parts:
                self.run.parts[name] += total * ours / theirs

    def on_step_end(self, trainer: Trainer) -> None:
        """Set the number of steps."""
        self.run.measure(trainer.objective.model)
        now = self.run.elapsed
        if not trainer.step:
            self.begun = now
            return
        expected = round(trainer.step * (self.until - self.begun) / (now - self.begun))
        steps = trainer.step if now >= self.until else max(trainer.step + 2, expected)
        optim = dataclasses.replace(trainer.config.optim, decay_steps=steps)
        trainer.config = dataclasses.replace(trainer.config, max_steps=steps, optim=optim)


def with_settings(path: Path, changed: dict) -> TrainConfig:
    """Return a config file with some settings changed, by their dotted names."""
    values = read_toml(path)
    for name, value in changed.items():
        table, _, key = name.rpartition(".")
        (values.setdefault(table, {}) if table else values)[key] = value
    return from_dict(TrainConfig, values)


def parse(parser: cli.Parser, seeds: Sequence[int], seconds: float) -> argparse.Namespace:
    """Return the arguments of a benchmark of such runs, after its own ones."""
    default = f"of each run; default: {seconds:g}"
    parser.add_argument("--seconds", default=seconds, type=float, metavar="S", help=default)
    parser.add_argument("--seeds", default=list(seeds), type=int, nargs="+", metavar="N", help="default: 1 2 3")
    parser.add_argument("--jobs", default=2, type=int, metavar="N", help="runs at the same time; default: 2")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, only write the page from the results")
    parser.add_argument("--quick", action="store_true", help="a second of each, as a smoke test")
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or arguments.jobs < 1:
        parser.error(f"--seconds must be above 0 and --jobs at least 1: {arguments.seconds:g} and {arguments.jobs}")
    return arguments


class Results(ladder.Results):
    """Results of runs by method, seed and seconds."""

    keys = ("method", "seed", "seconds")

    def of(self, method: str, seconds: float) -> list[dict]:
        """Return the runs of a method, by seed."""
        return [row for key, row in sorted(self.found.items()) if (key[0], key[2]) == (method, seconds)]


def measure(jobs: Iterable[tuple], n_processes: int, results: Results, train: Callable[..., dict]) -> None:
    """Measure what `results` lacks of some jobs: arguments of `train`, the first three being a result's keys."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // n_processes))  # of the processes to come
    missing = [job for job in jobs if job[:3] not in results.found]
    with ProcessPoolExecutor(n_processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        try:
            for done in as_completed([pool.submit(train, *job) for job in missing]):
                results.add(**(row := done.result()))
                print(", ".join(f"{name} {value}" for name, value in row.items() if name != "curve"), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
