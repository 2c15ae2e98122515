"""Run a sweep: check all its configs, then train each by scripts/train.py, in a process of its own.

runs/SWEEP/
  lr=0.001,seed=1337/   a run folder like any other, with what its process printed in output.txt
  sweep.png             the losses over the swept setting
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

import gpt
from gpt.checkpoint import RunFolder
from gpt.config import to_toml
from gpt.exchange.models import resolve_config
from gpt.objectives import OBJECTIVES
from gpt.planning.plan import check_fits, estimate_for_data, format_bytes, memory_per_process
from gpt.run.cli import check_prepared
from gpt.run.grid import Grid, with_settings
from gpt.run.lines import Lines
from gpt.run.runs import RunInfo, duration, find_runs, read_run_info
from gpt.run.settings import flat
from gpt.run.sweep_results import describe_results, draw_results
from gpt.run.training import check_resumable, differences
from gpt.system.files import write_text
from gpt.system.memory import available_disk
from gpt.system.paths import RUNS, find_path
from gpt.system.signals import stop_signals
from gpt.token_files import load_data

TRAIN = Path(gpt.__file__).parent.parent / "scripts" / "train.py"
POLL_SECONDS = 0.1
BAR_SECONDS = 1.0  # between two updates of the bar
DIVERGED = "A lower --optim.lr helps most often"  # in the last line that such a run prints
DONE = ("finished", "diverged")  # such a run is not started again


def run_sweep(grid: Grid, folder: Path, jobs: int, command: str, log: Callable[[str], None] = print) -> int:
    """Train all runs of a grid that are not done, in `folder`, `jobs` at a time; print the results and draw them.

    Return the exit status: 0; 1 if a run failed for a reason other than a diverged loss; 128 + a signal that stopped
    it. `command` is what to type to continue. ValueError, before anything is written, for a config that does not fit
    the data or the machine, and for a setting that is another one in a run that is there.
    """
    check_grid(grid, folder, jobs)
    sweep_name = folder.name if folder.parent in (RUNS, find_path(RUNS)) else str(folder)
    sweep = Sweep(grid, folder, jobs, log)
    n, swept = len(grid.configs), [f"{len(values)} x {name}" for name, values in grid.swept.items()]
    counts = [*swept, f"{len(grid.seeds)} seed" + "s" * (len(grid.seeds) > 1)]
    log(f"sweep  {folder}: {n} runs ({', '.join(counts)})" + f", {jobs} at a time" * (jobs > 1))
    sweep.run()
    if sweep.stopped_by:
        done = sum(info.state in DONE for info in sweep.infos().values())
        log(f"stopped: {done} of {n} runs are done\nto continue: {command}")
        return 128 + sweep.stopped_by
    infos = sweep.infos()
    log("\n" + describe_results(grid, infos, sweep_name))
    if plot := draw_results(grid, infos, folder / "sweep.png"):
        log(f"plot  {plot}")
    return 1 if sweep.failed else 0


def check_grid(grid: Grid, folder: Path, jobs: int) -> None:
    """Raise ValueError unless all configs fit their data, this machine and the runs that `folder` already holds."""
    if (folder / "config.toml").exists():
        raise ValueError(f"{folder} is a run, not a sweep: name another with --run")
    disk, data = 0, {}
    for name, config in grid.configs.items():
        try:
            if "reward" in OBJECTIVES[config.objective.name].training_metrics:
                raise ValueError("a sweep compares validation losses, but this objective is judged by a reward")
            check_prepared(grid.config_path, config)
            path = config.data.path
            if path not in data:
                data[path] = load_data(find_path(path))
            plan = estimate_for_data(*resolve_config(config, data[path]))
            check_fits(plan, memory_per_process(config) // jobs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        info = read_run_info(folder / name, name)
        if info.state == "training":
            raise ValueError(f"{folder / name} is training now: wait until it ends, or name another sweep with --run")
        disk += plan.disk if info.state not in DONE else 0
    if (free := available_disk(folder)) is not None and disk > free:
        raise ValueError(
            f"the checkpoints of all runs take up to {format_bytes(disk)} of disk, but {format_bytes(free)} is free: "
            f"lower --keep_checkpoints, now {config.keep_checkpoints}"
        )
    for path in find_runs(folder):
        _check_same(grid, path)


def _check_same(grid: Grid, run: Path) -> None:
    """Raise ValueError if a run in the sweep's folder has other settings than the sweep would give it."""
    before, configs = RunFolder(run).config(), grid.configs
    if (wanted := configs.get(run.name)) is None:  # of other values, from an earlier command
        found, free = flat(before), {"seed", *grid.swept, *(grid.derived(grid.points[0]).keys() - grid.fixed.keys())}
        wanted = with_settings(next(iter(configs.values())), {name: found[name] for name in free})
    way_out = "a sweep's settings stay the same; name another one with --run"
    try:
        changed = differences(before, check_resumable(before, wanted))
    except ValueError as error:
        raise ValueError(f"{run}: {str(error).partition(': ')[0]}: {way_out}") from None
    if changed:
        name, (old, new) = next(iter(changed.items()))
        raise ValueError(f"{run}: {name} is {old!r} in this run, not {new!r}: {way_out}")


def _last_line(run: Path) -> str:
    """Return the last line that a run's process printed, "" if there is none."""
    with contextlib.suppress(OSError):
        lines = (run / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


class Sweep(Lines):
    """The processes of a sweep."""

    def __init__(self, grid: Grid, folder: Path, jobs: int, log: Callable[[str], None]):
        super().__init__(log)
        self.grid, self.folder, self.jobs = grid, folder, jobs
        self.running: dict[str, subprocess.Popen] = {}
        self.failed: dict[str, str] = {}  # the last line that each failed run printed
        self.diverged: set[str] = set()  # known by the exit status; not each leaves a batch in its folder
        self.stopped_by = 0
        self.seconds: list[float] = []  # of each run that ended in this session
        self.started: dict[str, float] = {}

    def info(self, name: str) -> RunInfo:
        """Return what is known of a run."""
        info = read_run_info(self.folder / name, name)
        is_diverged = name in self.diverged
        if info.state == "stopped":  # also in an earlier session
            is_diverged = is_diverged or DIVERGED in _last_line(self.folder / name)
        state = "failed" if name in self.failed else "diverged" if is_diverged else info.state
        return RunInfo(**{**vars(info), "state": state})

    def infos(self) -> dict[str, RunInfo]:
        """Return what is known of all runs."""
        return {name: self.info(name) for name in self.grid.configs}

    def run(self) -> None:
        """Train the runs that are not done. The first signal stops all after their step, with a checkpoint."""
        configs = self.grid.configs
        waiting = [name for name, info in self.infos().items() if info.state not in DONE]
        if done := len(configs) - len(waiting):
            self.log(f"{done} of them done already")
        total = sum(configs[name].max_steps for name in waiting)
        self.bar = tqdm(total=total, unit="step", disable=not (waiting and sys.stderr.isatty()), dynamic_ncols=True)
        shown, todo = 0.0, list(waiting)
        with stop_signals(self._stop):
            try:
                while self.running or (waiting and not self.stopped_by):
                    while waiting and len(self.running) < self.jobs and not self.stopped_by:
                        self._start(waiting.pop(0))
                    for name, process in list(self.running.items()):
                        if (status := process.poll()) is not None:
                            del self.running[name]
                            self._ended(name, status, len(waiting) + len(self.running))
                    if not self.bar.disable and time.monotonic() - shown > BAR_SECONDS:
                        shown = time.monotonic()
                        self.bar.n = sum(self.info(name).step or 0 for name in todo)
                        self.bar.refresh()
                    time.sleep(POLL_SECONDS)
            finally:  # after an error of the sweep itself
                for process in self.running.values():
                    process.send_signal(signal.SIGTERM)
                    process.wait()
        self.bar.close()
        self.bar = tqdm(disable=True)

    def _start(self, name: str) -> None:
        """Start a run, or resume it, as `train.py --run NAME --resume` does for a person."""
        run = self.folder / name
        if not (run / "config.toml").exists():
            run.mkdir(parents=True, exist_ok=True)
            write_text(run / "config.toml", to_toml(self.grid.configs[name]))
        environment = dict(os.environ)
        if self.jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.jobs)))
        with (run / "output.txt").open("ab") as output:
            self.running[name] = subprocess.Popen(
                [sys.executable, str(TRAIN), "--run", str(run), "--resume"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
        self.started[name] = time.monotonic()

    def _ended(self, name: str, status: int, left: int) -> None:
        """Print what became of a run."""
        last = _last_line(self.folder / name) or f"exit status {status}"
        if status == 1 and last.startswith("train.py: error: "):
            self.diverged.add(name)
        elif status and not self.stopped_by:
            self.failed[name] = last.removeprefix("train.py: error: ")
        self.seconds.append(time.monotonic() - self.started[name])
        info, known = self.info(name), len(self.grid.configs)
        number = sum(info.state in DONE for info in self.infos().values())
        state = "stopped" if info.state == "empty" else info.state  # before its first step
        result = f"{state:<9}"
        if info.state == "finished" and info.best_loss is not None:
            result += f"  val loss {info.best_loss:.4f}"
        elif info.state == "failed":
            result += f"  {self.failed[name]}"
        elif info.step is not None:
            result += f"  at step {info.step:,} of {info.max_steps:,}"
        time_left = sum(self.seconds) / len(self.seconds) * left / min(self.jobs, max(1, left))
        rest = f", about {duration(time_left)} left" if left and not self.stopped_by else ""
        padded = name.ljust(max(map(len, self.grid.configs)))
        self.log(f"[{number:>{len(str(known))}}/{known}]  {padded}  {result}  {duration(self.seconds[-1])}{rest}")

    def _stop(self, number: int) -> None:
        """Pass a signal on. Ctrl-C in a terminal reaches the processes as well, which take two at once for one."""
        self.stopped_by = number
        for process in self.running.values():
            if os.name != "nt":  # there, only the console can send Ctrl-C
                process.send_signal(signal.SIGINT)
        names = f"{len(self.running)} run" + "s" * (len(self.running) != 1)
        self.log(f"{signal.Signals(number).name}: {names} will finish the step and save; a second signal ends at once")
