"""Inject faults into real runs of scripts/train.py: whatever happens, a run ends as an uninterrupted one.

    python tests/faults.py
    python tests/faults.py --kills 20 --flips 100 --fills 5 --seed 3 --folder faults

One run is left alone: the truth. It has dropout, gradient accumulation, several epochs, and rows, evaluations, samples
and saves at different intervals; much of its time goes into saves. Other runs of the same config are

- killed at random moments, while they start, train or save; or stopped by SIGTERM, SIGINT, or two signals. After each,
  every checkpoint must be valid, the newest no older than before and no older than save_every demands, and the run must
  resume. In the end everything must equal the truth, bit for bit: weights, optimizer, random state, counters, rows
  (except times), samples, pointers;
- damaged: a bit is flipped, a file is truncated or deleted. In a checkpoint this must be detected, and the newest valid
  checkpoint used instead; elsewhere in the run it must be repaired; in the data it must be refused with one line;
- left without disk space, by a limit on the size of files and, if this process may mount one, on a small file system:
  refused with one line, all checkpoints valid, nothing half written; with space the run continues.

Every tenth process is new, with all its imports. The others are forks of this one, which has imported PyTorch, on
Linux; they run scripts/train.py all the same. A run that lost something is kept for inspection. The same seed gives the
same faults, as far as clocks allow. Exit status 1 if anything was lost.

A kill leaves the system running, which still writes its buffers: the effect of a power failure is not tested.
"""

import argparse
import collections
import contextlib
import csv
import functools
import io
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # this copy of the project, whichever is installed

import torch  # noqa: E402
import torch._dynamo  # noqa: E402 - the first optimizer would, in each fork anew

import gpt.run.plots  # noqa: E402
import gpt.trainer  # noqa: E402, F401 - here, so that a fork has it
from gpt.checkpoint import RunFolder, read_state  # noqa: E402
from gpt.config import DataConfig, GPTConfig, OptimConfig, TrainConfig, to_toml  # noqa: E402
from gpt.text.prepare import prepare_data  # noqa: E402
from gpt.text.sources import Corpus  # noqa: E402

TRAIN = PROJECT / "scripts" / "train.py"
FORK = multiprocessing.get_context("fork") if sys.platform == "linux" else None
UNLIKE = ("elapsed_s", "kernels", "sha256", "checksum")  # of state.json: kernels are those of a whole process
TIMES = ("tokens_per_second", "elapsed_s")  # the columns of metrics.csv that no two runs share
LOGS = ("metrics.csv", "samples.txt")
SAVED = ("model.safetensors", "training_state.pt", "state.json", *LOGS)
OUTCOMES = ("identical", "found", "refused", "lost")
PATIENCE = 120  # seconds after which a process hangs

TEXT = "".join(
    f"{n} green bottles hanging on the wall, and if {n % 7} should fall there is more to sing.\n" for n in range(90)
)
CONFIG = TrainConfig(
    seed=7,
    max_steps=30,
    batch_size=4,
    grad_accum_steps=2,
    log_every=2,
    eval_every=4,
    eval_batches=2,
    save_every=3,
    keep_checkpoints=3,
    sample_every=15,
    sample_prompt="on the",
    device="cpu",
    model=GPTConfig(vocab_size=0, context_length=16, emb_dim=96, n_heads=4, n_layers=2, drop_rate=0.1, init="gpt2"),
    data=DataConfig(stride=96),
    optim=OptimConfig(lr=0.02, min_lr=0.02, warmup_steps=3, schedule="constant"),
)


class Lost(Exception):  # noqa: N818 - an outcome
    """Raised when a run lost something."""


def demand(condition: Any, words: str) -> None:
    """Raise Lost(words) unless the condition holds."""
    if not condition:
        raise Lost(words)


# --- processes --------------------------------------------------------------------------------------------------------


class Attempt:
    """A process of scripts/train.py, new or forked, that may not write files larger than `room` bytes. It ends with the
    block at the latest."""

    def __init__(self, *arguments: str | Path, fresh: bool = False, room: int | None = None):
        self.arguments = [str(argument) for argument in arguments]
        self.said, self.complained = "", ""  # stdout and stderr, through pipes, whose size no limit cuts
        pipes = [os.pipe(), os.pipe()]
        self._readers = [reader for reader, _ in pipes]
        writers = [writer for _, writer in pipes]
        for reader in self._readers:
            os.set_blocking(reader, False)
        if fresh or FORK is None:
            paths = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, TRAIN, *self.arguments], env={**os.environ, **paths}, stdin=subprocess.DEVNULL,
                stdout=writers[0], stderr=writers[1], preexec_fn=lambda: _limit(room),
            )  # fmt: skip
        else:
            self.process = FORK.Process(target=_train, args=(self.arguments, writers, room))
            self.process.start()
        for writer in writers:
            os.close(writer)

    @property
    def status(self) -> int | None:
        """As subprocess has it: None while it is at work, -9 where it was killed."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> bool:
        """Wait until the process has ended, `until()` holds or the seconds are over; whether it is still at work."""
        end, holds = time.perf_counter() + seconds, False  # once is enough: a save that was seen may have ended since
        while self.status is None and not (holds := until()) and (left := end - time.perf_counter()) > 0:
            time.sleep(min(left, 0.001))
            self._read()
        at_work = self.status is None
        self._read()
        demand(not at_work or seconds < PATIENCE or holds, f"hangs, or nothing comes of it in {PATIENCE} s")
        return at_work

    def send(self, number: int) -> None:
        """Send a signal, if the process is still at work."""
        if self.status is None:
            os.kill(self.process.pid, number)

    def _read(self) -> None:
        for reader, name in zip(self._readers, ("said", "complained"), strict=False):  # none once it has ended
            with contextlib.suppress(BlockingIOError):
                while data := os.read(reader, 1 << 16):
                    setattr(self, name, getattr(self, name) + data.decode(errors="replace"))

    @property
    def has_begun(self) -> bool:
        """Whether it has said what it is about to train."""
        return "\nrun    " in self.said

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *error: Any) -> None:
        self.send(signal.SIGKILL)
        while self.status is None:
            time.sleep(0.001)
        self._read()
        while self._readers:
            os.close(self._readers.pop())

    def __str__(self) -> str:
        return f"train.py {' '.join(self.arguments)}\nstatus {self.status}\n{self.said}\n{self.complained}"


def _limit(room: int | None) -> None:
    if room is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def _train(arguments: list[str], writers: list[int], room: int | None) -> None:
    """Run the script's main in a fork, with its own streams."""
    for number, writer in enumerate(writers, start=1):
        os.dup2(writer, number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    _limit(room)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


# --- what a run folder holds ------------------------------------------------------------------------------------------


def whole(run: RunFolder) -> list[str]:
    """Return the names of the valid checkpoints, oldest first."""

    def is_whole(name: str) -> bool:
        with contextlib.suppress(ValueError):
            return bool(run.load(name))
        return False

    return [name for name in run.steps() if is_whole(name)]


def contents(run: RunFolder) -> dict[Path, bytes]:
    """Return the content of all files of a run folder."""
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def step_of(names: list[str]) -> int:
    """Return the step of the newest of some checkpoints, or 0."""
    return int(names[-1].removeprefix("step-")) if names else 0


def is_saving(run: RunFolder) -> bool:
    """Return whether a save is under way."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.name.startswith(".step-") for path in run.checkpoints.iterdir())
    return False


def last_row(run: RunFolder) -> int:
    """Return the step of the last complete row of metrics.csv."""
    lines = run.metrics.read_text().split("\n")[1:-1] if run.metrics.is_file() else []
    return int(lines[-1].split(",")[0]) if lines else 0


def rows(run: RunFolder) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without times."""
    found = csv.DictReader(io.StringIO(run.metrics.read_text()))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def same(a: Any, b: Any) -> bool:
    """Return whether two nested dictionaries or lists of tensors are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def demand_the_same(run: RunFolder, truth: RunFolder) -> None:
    """Raise Lost, naming the differences, unless a finished run equals the uninterrupted one."""
    demand(step_of(whole(run)) == CONFIG.max_steps, f"finished, but {whole(run)} are the checkpoints that are whole")
    differing = []
    for pointer in ("last", "best"):
        try:
            ours, theirs = run.load(pointer), truth.load(pointer)
        except ValueError as error:
            raise Lost(f"finished, but {error}") from None
        for what in ("weights", "training_state", "state"):
            a, b = (dict(getattr(checkpoint, what)) for checkpoint in (ours, theirs))
            for name in [name for name in {**a, **b} if name not in UNLIKE]:
                if not same(a.get(name), b.get(name)):
                    differing.append(f"{name} of {pointer}, {ours.path.name}")
        if (run.checkpoints / pointer).read_bytes() != (truth.checkpoints / pointer).read_bytes():
            differing.append(pointer)
    if rows(run) != rows(truth):
        differing.append("metrics.csv")
    differing += [
        name
        for name in ("config.toml", "tokenizer.json", "samples.txt")
        if (run.path / name).read_bytes() != (truth.path / name).read_bytes()
    ]
    differing += [f"{path.name}, which is left over," for path in run.path.rglob(".*")]
    demand(not differing, f"finished, but {', '.join(differing)} differ from those of the run left alone")


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(file: Path, dice: random.Random) -> str:
    """Flip one bit of a file; return which."""
    data = bytearray(file.read_bytes())
    place, bit = dice.randrange(len(data)), dice.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {place} of {file.name} flipped"


def cut(file: Path, dice: random.Random) -> str:
    """Truncate a file; return where."""
    length = dice.randrange(file.stat().st_size)
    os.truncate(file, length)
    return f"{file.name} cut to {length} bytes"


def delete(file: Path, dice: random.Random) -> str:
    """Delete a file."""
    file.unlink()
    return f"{file.name} deleted"


# --- the bench --------------------------------------------------------------------------------------------------------


class Bench:
    """Prepared data, a config, the uninterrupted run, and the outcome of every fault."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self.results: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.skipped: dict[str, str] = {}
        self.in_saves = 0  # kills that fell into one
        self._attempts = self._runs = 0
        (folder / "bottles.txt").write_text(TEXT)
        self.data = prepare_data(Corpus("bottles", [folder / "bottles.txt"]), "char", folder / "data").folder
        self.config = folder / "bottles.toml"
        self.config.write_text(to_toml(CONFIG).replace(CONFIG.data.path, self.data.as_posix()))
        self.truth = RunFolder(folder / "truth")
        began = time.perf_counter()
        with self.attempt(self.truth, fresh=True) as attempt:
            attempt.wait(lambda: attempt.has_begun)
            self.fresh_start = time.perf_counter() - began  # seconds
            attempt.wait()
            demand(attempt.status == 0, f"the run to be left alone has failed: {attempt}")
        self.settle("none", Bench._left_alone)

    def _left_alone(self, run: RunFolder) -> str:
        """A second truth, forked: what the others are is no matter of how their process came to be."""
        began = time.perf_counter()
        with self.attempt(run, fresh=False) as attempt:
            attempt.wait(lambda: attempt.has_begun)
            self.start = time.perf_counter() - began
            attempt.wait()
            self.training = time.perf_counter() - began - self.start
            return self.ended_well(attempt, run)

    def dice(self, section: str) -> random.Random:
        """A section's own, so that it is the same whatever ran before it."""
        return random.Random(f"{self.seed} {section}")

    def attempt(self, run: RunFolder, fresh: bool | None = None, **options: Any) -> Attempt:
        """Start or resume the run with one command, as a restarted job does."""
        self._attempts += 1
        fresh = self._attempts % 10 == 0 if fresh is None else fresh
        return Attempt("--config", self.config, "--run", run.path, "--resume", fresh=fresh, **options)

    def ended_well(self, attempt: Attempt, run: RunFolder) -> str:
        """ "identical", unless the attempt has failed or differs from the truth: then Lost."""
        attempt.wait()
        demand(attempt.status == 0 and not attempt.complained, f"did not end well: {attempt}")
        demand_the_same(run, self.truth)
        return "identical"

    def finish(self, run: RunFolder) -> str:
        """Resume a run until it has ended, and compare it."""
        with self.attempt(run) as attempt:
            return self.ended_well(attempt, run)

    def settle(self, fault: str, story: Callable[..., str], *arguments: Any, origin: RunFolder | None = None) -> None:
        """Tell a story of a new run, or of the copy of another, and count how it ends."""

        def telling(bench: "Bench", run: RunFolder, faults: collections.Counter) -> str:
            faults[fault] += 1
            return story(bench, run, *arguments)

        self.settle_all(telling, origin=origin)

    def settle_all(self, story: Callable[..., str], *arguments: Any, origin: RunFolder | None = None) -> None:
        """The same for a story of several faults, which it counts itself: where one is lost, all are."""
        self._runs += 1
        run = RunFolder(self.folder / f"run-{self._runs:04d}")
        if origin:
            shutil.copytree(origin.path, run.path)
        faults: collections.Counter = collections.Counter()
        try:
            outcome = story(self, run, faults, *arguments)
        except Lost as lost:
            outcome = "lost"
            self.keep(run.path, f"{', '.join(faults)}: {lost}")
        for fault, count in faults.items():
            self.results[fault][outcome] += count
        shutil.rmtree(run.path, ignore_errors=True)

    def keep(self, path: Path, words: str) -> None:
        """Keep a folder for inspection, with the reason."""
        kept = self.folder / f"lost-{path.name}-{sum(count['lost'] for count in self.results.values())}"
        if path.is_dir():
            shutil.copytree(path, kept, dirs_exist_ok=True)
        kept.mkdir(exist_ok=True)
        (kept / "why.txt").write_text(f"seed {self.seed}\n{words}\n")
        print(f"LOST, see {kept}: {words}", flush=True)

    @functools.cached_property
    def half(self) -> RunFolder:
        """A run that was stopped half-way, with as many checkpoints as it keeps. It is copied, and stays as it is."""
        dice = self.dice("half")
        for number in range(10):  # on a busy machine a run may have ended before it is stopped
            run = RunFolder(self.folder / f"half-{number}")
            step = dice.randrange(CONFIG.max_steps // 3, CONFIG.max_steps * 2 // 3)
            with self.attempt(run, fresh=False) as attempt:
                attempt.wait(lambda run=run, step=step: last_row(run) >= step)
                attempt.send(signal.SIGTERM)
                attempt.wait()
            if (
                attempt.status == 143
                and CONFIG.keep_checkpoints <= len(whole(run))
                and step_of(whole(run)) < CONFIG.max_steps
            ):
                return run
        raise Lost(f"was not stopped: {attempt}")

    @property
    def lost(self) -> int:
        """How many faults did harm."""
        return sum(count["lost"] for count in self.results.values())

    def table(self) -> str:
        """All faults and what came of them."""
        lines = [f"{'fault':<44}{'injected':>9}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES)]
        for fault, count in self.results.items():
            figures = (count.total(), *(count[outcome] for outcome in OUTCOMES))
            lines.append(f"{fault:<44}{figures[0]:>9}" + "".join(f"{figure:>10}" for figure in figures[1:]))
        lines += [f"{fault:<44} skipped: {reason}" for fault, reason in self.skipped.items()]
        if self.in_saves:
            lines.append(f"Of the kills, {self.in_saves} left a save half done.")
        return "\n".join(lines)


# --- A: killed and stopped --------------------------------------------------------------------------------------------

KILLS = ("killed at the start", "killed in training", "killed in a save")
STOPS = {
    "stopped by SIGTERM": (signal.SIGTERM,),
    "stopped by SIGINT": (signal.SIGINT,),
    "stopped by two signals": (signal.SIGTERM, signal.SIGINT),
}


def kills(bench: Bench, count: int) -> None:
    """Inject at least `count` kills, and a stop for every five; each run is resumed and killed until it ends."""
    dice = bench.dice("kills")
    planned = [KILLS[number % 3] for number in range(count)] + [[*STOPS][n % 3] for n in range(count // 5)]
    dice.shuffle(planned)
    while planned:
        bench.settle_all(_hurt_until_it_ends, planned, dice)


def _hurt_until_it_ends(
    bench: Bench, run: RunFolder, faults: collections.Counter, planned: list[str], dice: random.Random
) -> str:
    before: list[str] = []
    while planned:
        fault = planned.pop()
        faults[fault] += 1
        with bench.attempt(run) as attempt:
            if not (_kill if fault in KILLS else _stop)(bench, attempt, run, fault, dice):  # it has ended before that
                planned.append(fault)
                faults[fault] -= 1
                return bench.ended_well(attempt, run)
        before = _demand_nothing_lost(run, before, attempt)
    return bench.finish(run)


def _kill(bench: Bench, attempt: Attempt, run: RunFolder, moment: str, dice: random.Random) -> bool:
    """Kill at a random moment; return whether it was still running."""
    if moment == "killed at the start":
        start = bench.fresh_start if isinstance(attempt.process, subprocess.Popen) else bench.start
        attempt.wait(seconds=dice.uniform(0, 1.2 * start))
    else:
        attempt.wait(lambda: attempt.has_begun)
        attempt.wait(seconds=dice.uniform(0, bench.training / 3))
        if moment == "killed in a save":
            attempt.wait(lambda: is_saving(run))
            attempt.wait(seconds=dice.uniform(0, 0.02))
    attempt.send(signal.SIGKILL)
    attempt.wait()
    demand(attempt.status in (0, -signal.SIGKILL), f"ended by itself: {attempt}")
    bench.in_saves += attempt.status != 0 and is_saving(run)
    return attempt.status != 0


def _stop(bench: Bench, attempt: Attempt, run: RunFolder, fault: str, dice: random.Random) -> bool:
    """Stop at a random moment of training; return whether it was still running. It must save the current step, unless
    a second signal ends it at once."""
    attempt.wait(lambda: "\nstep " in attempt.said)
    attempt.wait(seconds=dice.uniform(0, bench.training / 3))
    if attempt.status is not None:
        return False
    at_least = last_row(run)
    for number in STOPS[fault]:
        attempt.send(number)
        attempt.wait(seconds=dice.uniform(0, 0.03))
    attempt.wait()
    if attempt.status == 0:
        return False
    demand("Traceback" not in attempt.complained, f"ended with a traceback: {attempt}")
    demand(attempt.status in {128 + number for number in STOPS[fault]}, f"ended with another status: {attempt}")
    if step_of(run.steps()) == CONFIG.max_steps:  # there was nothing left to stop
        return True
    step = step_of(whole(run))
    if f"stopped at step {step} of" in attempt.said:
        demand(step >= at_least, f"did not save step {at_least}, but step {step}: {attempt}")
        demand(not list(run.path.rglob(".*")), f"left more than it should: {attempt}")
    else:
        demand(len(STOPS[fault]) > 1, f"did not save the step at hand and say so: {attempt}")
    return True


def _demand_nothing_lost(run: RunFolder, before: list[str], attempt: Attempt) -> list[str]:
    """Return the valid checkpoints after a kill: all there are, with earlier ones unless due to be deleted."""
    after = whole(run)
    for name in run.steps():
        demand(name in after, f"{name} is not whole: {attempt}")
    demand(step_of(after) >= step_of(before), f"{before} was there, now {after}: {attempt}")
    demand(
        step_of(after) >= (last_row(run) - 1) // CONFIG.save_every * CONFIG.save_every,
        f"step {last_row(run)} has its row, but {after} is all that was saved: {attempt}",
    )
    for name in set(before) - set(after):
        newer = [other for other in after if other > name]
        demand(len(newer) >= CONFIG.keep_checkpoints, f"{name} went, and only {after} are there: {attempt}")
        demand(read_state(run.find(after[-1]))["best"] != name, f"{name} went, the best one: {attempt}")
    return after


# --- B: damaged -------------------------------------------------------------------------------------------------------


def damages(bench: Bench, flips: int, others: int, resumed: int) -> None:
    """Damage checkpoints; each damage must be detected. Then resume copies of damaged runs."""
    dice = bench.dice("damages")
    run = RunFolder(bench.folder / "damaged")
    shutil.copytree(bench.truth.path, run.path)
    names = run.steps()
    demand(len(names) >= 3, f"{names} are too few checkpoints to damage")
    for fault, damage, count in (("flip", flip, flips), ("cut", cut, others), ("deletion", delete, others)):
        for _ in range(count):
            file = run.checkpoints / dice.choice(names) / dice.choice(SAVED)
            content = file.read_bytes()
            what = damage(file, dice)
            try:
                _demand_found(run, names, file)
                outcome = "found"
            except Lost as lost:
                outcome = "lost"
                bench.keep(run.path, f"{what} in {file.parent.name}: {lost}")
            bench.results[f"{fault} in a checkpoint, loaded"][outcome] += 1
            file.write_bytes(content)
    shutil.rmtree(run.path)

    half = bench.half
    for number in range(resumed):
        origin = half if number % 5 else bench.truth
        damage = (flip, cut, delete)[number % 3]
        bench.settle("damage in the newest checkpoint, resumed", _corrupt, damage, dice, origin=origin)
    beside = ("config.toml", "tokenizer.json", "checkpoints/last", "checkpoints/best", *LOGS)
    for number in range(resumed):
        name, damage = beside[number % len(beside)], (flip, cut)[number // len(beside) % 2]
        damage = delete if name == "config.toml" else damage  # any other change of it is a person's edit
        origin = (half, bench.truth)[(number + number // len(beside)) % 2]  # each of both kinds
        bench.settle(f"damage in {name}, resumed", _put_right, name, damage, dice, origin=origin)
    data = ("train.bin", "meta.json", "val.bin", "tokenizer.json")
    for number in range(resumed):
        name = data[number % len(data)]
        bench.settle(f"flip in the data's {name}, resumed", _refused, name, dice, origin=half)


def _demand_found(run: RunFolder, names: list[str], file: Path) -> None:
    step = file.parent.name
    expected = [name for name in names if name != step][-1]
    try:
        run.load(step)
    except ValueError as error:
        demand(step in str(error), f"refused without its name: {error}")
    except Exception as error:
        raise Lost(f"{type(error).__name__}: {error}") from error
    else:
        raise Lost("was not found")
    try:
        checkpoint, errors = run.load_newest_valid()
    except Exception as error:
        raise Lost(f"{expected} was not taken instead: {type(error).__name__}: {error}") from error
    demand(checkpoint and checkpoint.path.name == expected, f"{expected} was not taken instead")
    demand(len(errors) == (step == names[-1]), f"reported {errors}")


def _corrupt(bench: Bench, run: RunFolder, damage: Callable, dice: random.Random) -> str:
    newest = run.steps()[-1]
    what = damage(run.checkpoints / newest / dice.choice(SAVED), dice)
    with bench.attempt(run) as attempt:
        attempt.wait()
        demand(f"skipped: {run.checkpoints / newest}" in attempt.said, f"{what}, not said: {attempt}")
        return bench.ended_well(attempt, run)


def _put_right(bench: Bench, run: RunFolder, name: str, damage: Callable, dice: random.Random) -> str:
    what = damage(run.path / name, dice)
    arguments = ["--config", bench.config] * dice.randrange(2)  # without it the folder has to know
    with Attempt(*arguments, "--run", run.path, "--resume") as attempt:
        try:
            return bench.ended_well(attempt, run)
        except Lost as lost:
            raise Lost(f"{what}: {lost}") from None


def _refused(bench: Bench, run: RunFolder, name: str, dice: random.Random) -> str:
    file, before = bench.data / name, contents(run)
    content = file.read_bytes()
    what = flip(file, dice)
    try:
        with bench.attempt(run) as attempt:
            attempt.wait()
            if attempt.status == 0 and name == "meta.json":  # a bit that does not matter
                try:
                    return bench.ended_well(attempt, run)
                except Lost as lost:
                    raise Lost(f"{what}: {lost}") from None
            _demand_refusal(attempt)
            named = bench.data if name == "meta.json" else file  # which holds the sums that others are checked against
            demand(str(named) in attempt.complained, f"{what}, refused without its name: {attempt}")
    finally:
        file.write_bytes(content)
    demand(contents(run) == before, f"{what}, refused, but the run was touched: {attempt}")
    return "refused"


def _demand_refusal(attempt: Attempt) -> None:
    """Demand status 2 and one line that says why."""
    one_line = attempt.complained.startswith("train.py: error: ") and attempt.complained.count("\n") == 1
    demand(attempt.status == 2 and one_line, f"was not refused in one line: {attempt}")


# --- C: without room --------------------------------------------------------------------------------------------------


def fills(bench: Bench, count: int) -> None:
    """Limit the size of files; then run on a small disk, if one can be mounted."""
    dice = bench.dice("fills")
    largest = max(file.stat().st_size for file in bench.truth.checkpoints.rglob("*") if file.is_file())
    half = bench.half
    for number in range(count):
        # as many limits meet small files as large ones
        room = dice.randrange(largest) if number % 2 else int(largest ** dice.random()) - 1
        origin = half if number % 4 < 2 else None
        bench.settle("no file may grow beyond a size", _and_with_room, room, origin=origin)

    fault, disk = "a full disk", bench.folder / "disk"
    size = 12 * largest  # some five checkpoints
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        bench.skipped[fault] = reason.strip().splitlines()[0]
        return
    try:
        for number in range(count // 2):
            origin = half if number % 2 else None
            bench.settle(fault, _on_a_full_disk, disk, origin, dice)
    finally:
        subprocess.run(["umount", disk], check=True)


def _without_room(bench: Bench, run: RunFolder, room: int | None = None) -> str:
    before = whole(run)
    with bench.attempt(run, room=room) as attempt:
        attempt.wait()
    if attempt.status == 0:  # there was enough
        return bench.ended_well(attempt, run)
    try:
        _demand_refusal(attempt)
        _demand_nothing_lost(run, before, attempt)
        left = [path.name for path in run.path.rglob(".*")]
        demand(not left, f"left {left}: {attempt}")
    except Lost as lost:
        raise Lost(f"room {room}: {lost}") from None
    return "refused"


def _and_with_room(bench: Bench, run: RunFolder, room: int) -> str:
    outcome = _without_room(bench, run, room)
    bench.finish(run)
    return outcome


def _on_a_full_disk(bench: Bench, run: RunFolder, disk: Path, origin: RunFolder | None, dice: random.Random) -> str:
    there, filler = RunFolder(disk / run.path.name), disk / "filler"
    try:
        if origin:
            shutil.copytree(origin.path, there.path)
        room = shutil.disk_usage(disk).free
        with filler.open("wb") as file:
            file.write(bytes(dice.randrange(room // 2, room)))
        outcome = _without_room(bench, there)
        filler.unlink()
        bench.finish(there)
        return outcome
    except Lost:
        shutil.copytree(there.path, run.path, dirs_exist_ok=True)  # off the disk, to be looked at
        raise
    finally:
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- all of it --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bench_in(folder: Path | None, seed: int) -> Iterator[Bench]:
    """Yield a bench in a folder, or in a temporary one that is kept only if something was lost."""
    torch.set_num_threads(1)  # as in the fresh processes
    place = Path(tempfile.mkdtemp(prefix="faults-")) if folder is None else folder.resolve()
    place.mkdir(parents=True, exist_ok=True)
    bench = Bench(place, seed)
    yield bench
    if folder is None and not bench.lost:
        shutil.rmtree(place)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=210, help="processes killed; a fifth as many stopped")
    parser.add_argument("--flips", type=int, default=1000, help="bits flipped; a tenth as many files cut, and deleted")
    parser.add_argument("--fills", type=int, default=24, help="runs without room; half as many on a small disk")
    parser.add_argument("--seed", type=int, default=0, help="of the dice (default: 0)")
    parser.add_argument("--folder", type=Path, help="a new folder to work in (default: a temporary one)")
    arguments = parser.parse_args()
    began = time.perf_counter()
    with bench_in(arguments.folder, arguments.seed) as bench:
        for section, counts in (
            (kills, (arguments.kills,)),
            (damages, (arguments.flips, arguments.flips // 10, min(26, arguments.flips))),
            (fills, (arguments.fills,)),
        ):
            section(bench, *counts)
            print(f"{section.__name__}: done after {time.perf_counter() - began:.0f} s", flush=True)
    print(f"{bench.table()}\n{time.perf_counter() - began:.0f} s, seed {arguments.seed}")
    return 1 if bench.lost else 0


if __name__ == "__main__":
    sys.exit(main())
