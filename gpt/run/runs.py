"""List runs: state, steps, best loss, time, and the settings that differ. Run folders are read without PyTorch."""

import csv
import fnmatch
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gpt.config import TrainConfig, config_fields, load_config
from gpt.run.settings import flat
from gpt.system.errors import did_you_mean
from gpt.system.files import read_checksummed
from gpt.system.paths import RUNS, find_path, is_run

REPORTS = {"log_every", "eval_every", "save_every", "keep_checkpoints", "sample_every", "sample_prompt", "logger"}
CLOCK_ERROR = 60.0  # seconds by which the start of a process may seem later than it was


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Return the columns of a metrics.csv; an empty cell is NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunInfo:
    """What a run folder says about its run; None where it does not say it."""

    name: str  # as --run takes it
    state: str  # training, finished, stopped, diverged, empty or damaged
    problem: str | None = None  # of a damaged run: a sentence
    step: int | None = None  # of the newest checkpoint, from which --resume continues; of the last row while it trains
    max_steps: int | None = None
    best_loss: float | None = None  # on the validation split, in nats per token or what else the objective counts
    best_step: int | None = None
    best_bits_per_byte: float | None = None  # at that step
    seconds: float | None = None  # of training
    changed: float | None = None  # seconds since 1970, of the last row of metrics
    settings: dict[str, Any] = field(default_factory=dict)  # by dotted name


def is_training(run: Path) -> bool:
    """Return whether a live process holds the lock of a run, by the process id in its file. The lock is not touched."""
    lock = run / ".lock"
    try:
        pid = int(lock.read_text(encoding="utf-8"))
        return psutil.Process(pid).create_time() < lock.stat().st_mtime + CLOCK_ERROR  # else the id has a new owner
    except PermissionError:
        return os.name == "nt"  # Windows lets nobody read a locked file
    except (OSError, ValueError, psutil.Error):
        return False


def read_run_info(run: Path, name: str) -> RunInfo:
    """Return the RunInfo of a run folder. A run that trains is read as well, and a damaged one raises no error."""
    training, found, problems = is_training(run), {}, []
    for read in (_read_config, _read_metrics, _read_checkpoint):
        try:
            found |= read(run) if read is not _read_checkpoint or not training else {}
        except (OSError, ValueError, TypeError, KeyError, IndexError, csv.Error) as error:
            reason = f"{error.filename} cannot be read" if isinstance(error, OSError) else str(error)
            problems.append(reason.splitlines()[0].replace(f"{run}{os.sep}", ""))
    saved, stale, saved_at = (found.pop(key, None) for key in ("saved", "stale", "saved_at"))
    rows, settings = found.pop("rows", 0), found.get("settings", {})
    done = saved is not None and saved >= settings.get("max_steps", math.inf)
    done = done or 0 < settings.get("patience", 0) <= (stale or 0)
    if training:
        state = "training"
    elif problems:
        state = "damaged"
    elif done:
        state = "finished"
    elif (batch := run / "not_finite.safetensors").is_file() and batch.stat().st_mtime > (saved_at or 0):
        state = "diverged"
    else:
        state = "stopped" if rows or saved is not None else "empty"
    if state in ("finished", "stopped", "empty"):
        found["step"] = saved or 0
    return RunInfo(name, state, problems[0] if state == "damaged" else None, **found)


def _read_config(run: Path) -> dict[str, Any]:
    config = load_config(run / "config.toml")
    return {"settings": flat(config), "max_steps": config.max_steps}


def _read_metrics(run: Path) -> dict[str, Any]:
    """Return what metrics.csv says; nothing where there is none yet."""
    path = run / "metrics.csv"
    if not path.is_file() and not _checkpoints(run):
        return {}
    columns = read_metrics(path)
    found: dict[str, Any] = {"rows": len(columns.get("step", ())), "changed": path.stat().st_mtime}
    if not found["rows"]:
        return found
    seconds = columns["elapsed_s"][-1]  # NaN in a row that is torn
    found |= {"step": int(columns["step"][-1]), "seconds": seconds if math.isfinite(seconds) else None}
    losses = columns["val_loss"]
    evaluated = [row for row, loss in enumerate(losses) if math.isfinite(loss) and columns["step"][row] > 0]
    if evaluated:
        best = min(evaluated, key=losses.__getitem__)
        bits = columns["val_bits_per_byte"][best]
        found |= {"best_loss": losses[best], "best_step": int(columns["step"][best])}
        found |= {"best_bits_per_byte": bits if math.isfinite(bits) else None}
    return found


def _checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _read_checkpoint(run: Path) -> dict[str, Any]:
    """Return what the newest checkpoint says about the state of the run. Its weights are not checked."""
    if not (checkpoints := _checkpoints(run)):
        return {}
    file = checkpoints[-1] / "state.json"
    state = read_checksummed(file)
    return {"saved": state["step"], "stale": state.get("stale", 0), "saved_at": file.stat().st_mtime}


# --- several runs -----------------------------------------------------------------------------------------------------


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the run folders below a folder, at any depth, in the order of their names."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            if is_run(str(path.absolute())):
                yield path
            elif not path.is_symlink():  # a link may lead into a circle
                yield from find_runs(path)


def list_runs(patterns: Sequence[str] = ()) -> list[RunInfo]:
    """Return the runs below runs/ whose name, or whose folder's, fits one of the patterns; all without a pattern.

    A pattern may also be the path of a run, or of a folder with runs. ValueError if nothing fits.
    """
    root = find_path(RUNS)
    known = {path.relative_to(root).as_posix(): path for path in find_runs(root)}
    chosen = dict(known) if not patterns else {}
    for pattern in patterns:
        parts = (pattern.rstrip("/"), f"{pattern.rstrip('/')}/*")
        fitting = {name: path for name, path in known.items() if any(fnmatch.fnmatchcase(name, p) for p in parts)}
        if not fitting and Path(pattern).is_dir():
            paths = [Path(pattern)] if is_run(str(Path(pattern).absolute())) else find_runs(Path(pattern))
            fitting = {path.as_posix(): path for path in paths}
        if not fitting:
            near = did_you_mean(pattern, list(known)) if known else "there are none under runs/ yet"
            raise ValueError(f"no run fits {pattern!r}: {near}")
        chosen |= fitting
    return [read_run_info(path, name) for name, path in chosen.items()]


SORTS = {  # a sort key by name; None is last
    "name": lambda run: run.name,
    "loss": lambda run: run.best_loss,
    "bits": lambda run: run.best_bits_per_byte,
    "steps": lambda run: None if run.step is None else -run.step,
    "time": lambda run: run.seconds,
    "when": lambda run: None if run.changed is None else -run.changed,
}


def sort_runs(runs: Iterable[RunInfo], by: str) -> list[RunInfo]:
    """Return runs sorted by one of SORTS: the lowest loss and time first, the most steps, the newest."""
    key = SORTS[by]
    return sorted(runs, key=lambda run: ((value := key(run)) is None, 0 if value is None else value))


def to_json(runs: Iterable[RunInfo]) -> str:
    """Return runs as a JSON list, in full precision; null is unknown."""
    return json.dumps([asdict(run) for run in runs], indent=2, allow_nan=False)


# --- a table ----------------------------------------------------------------------------------------------------------

_ENDS = Counter(name.rpartition(".")[2] for name, _ in config_fields(TrainConfig))
HEADER = ("run", "state", "steps", "val loss", "bits/byte", "time", "when")


def short_name(setting: str) -> str:
    """Return a setting's name without its table where this is clear: lr, n_layers, but optim.name."""
    end = setting.rpartition(".")[2]
    return end if _ENDS[end] == 1 else setting


def show_value(value: Any) -> str:
    """Return the value of a setting as the command line takes it, in few digits where they say it all."""
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def duration(seconds: float) -> str:
    """Return a duration in few letters: 42 s, 2.5 min, 17 h, 12 days."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{0 if seconds >= 9.95 * length else 1}f} {unit}"
    return f"{seconds:.0f} s"


def differing(runs: Sequence[RunInfo]) -> list[str]:
    """Return the settings that are not the same in all runs, the model's and the optimizer's first.

    The number of steps has a column of its own, the end of the decay follows it, as min_lr may follow lr, and reports
    change no result.
    """
    known = [run.settings for run in runs if run.settings]
    names = [name for name in (known[0] if known else ()) if len({repr(settings[name]) for settings in known}) > 1]
    follows = all(s["optim.decay_steps"] in (0, s["max_steps"]) for s in known)
    if len({s["optim.min_lr"] / s["optim.lr"] if s["optim.lr"] else 0 for s in known}) == 1:
        names = [name for name in names if name != "optim.min_lr"]
    left_out = REPORTS | {"max_steps", "data.path"} | ({"optim.decay_steps"} if follows else set())
    return sorted((name for name in names if name not in left_out), key=lambda name: "." not in name)


def format_runs(runs: Sequence[RunInfo], width: int | None = None) -> str:
    """Return runs as tables, one for each data folder, with as many of the differing settings as the width holds."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    groups: dict[str, list[RunInfo]] = {}
    for run in runs:
        groups.setdefault(run.settings.get("data.path", "data not known"), []).append(run)
    tables = [f"{path}\n{_table(group, width)}" for path, group in groups.items()]
    tables += [
        f"to resume: python scripts/train.py --run {run.name} --resume" for run in runs if run.state == "stopped"
    ][:1]
    return "\n\n".join(tables)


def _table(runs: Sequence[RunInfo], width: int) -> str:
    """Return the runs on one data folder as a table."""
    rows = [HEADER, *map(_cells, runs)]
    names, dropped = differing(runs), 0
    columns = [_align(column, left=number < 2) for number, column in enumerate(zip(*rows, strict=True))]
    for name in names:
        values = [show_value(run.settings[name]) if run.settings else "" for run in runs]
        column = _align([short_name(name), *values])
        if sum(len(c[0]) + 2 for c in columns) + len(column[0]) > width:
            dropped += 1
        else:
            columns.append(column)
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    for number, run in enumerate(runs, 1):
        if run.problem:
            start = f"{columns[0][number]}  damaged  "
            lines[number] = start + run.problem[: max(20, width - len(start))]
    if dropped:
        lines.append(f"{dropped} more settings differ: scripts/compare.py and --json show them")
    return "\n".join(lines)


def _align(column: Sequence[str], left: bool = False) -> list[str]:
    """Pad the cells of a column to the same width."""
    width = max(map(len, column))
    return [cell.ljust(width) if left else cell.rjust(width) for cell in column]


def _cells(run: RunInfo) -> tuple[str, ...]:
    """Return the cells of a run's row, those of HEADER."""
    if run.problem:
        return (run.name, "damaged", *[""] * (len(HEADER) - 2))
    of = f" of {run.max_steps:,}" if run.max_steps is not None and run.step != run.max_steps else ""
    shown = (
        "" if run.step is None else f"{run.step:,}{of}",
        "" if run.best_loss is None else f"{run.best_loss:.4f}",
        "" if run.best_bits_per_byte is None else f"{run.best_bits_per_byte:.4f}",
        "" if run.seconds is None else duration(run.seconds),
        "" if run.changed is None else f"{duration(max(0.0, time.time() - run.changed))} ago",
    )
    return (run.name, run.state, *shown)
