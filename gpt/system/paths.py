"""Find the project's folder, paths relative to it, and runs by name."""

import os
from pathlib import Path

from gpt.system.errors import did_you_mean

PROJECT = Path(__file__).resolve().parents[2]
RUNS = Path("runs")


def find_path(path: str | Path) -> Path:
    """Return a path as given or, if nothing is there, relative to the project's root.

    So a config that names data/story works from any working directory.
    """
    path = Path(path)
    return PROJECT / path if not path.exists() and (PROJECT / path).exists() else path


def cache_folder() -> Path:
    """Return the folder for what can be made again, in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(root) / "gpt-from-scratch"


def run_path(name: str) -> Path:
    """Return the folder of a run, given its name under runs/ or its path. ValueError for an empty name.

    SWEEP/NAME, a run of a sweep, is such a name if it is there and nothing is at that path.
    """
    path = Path(name)
    if not name or name in (".", ".."):
        raise ValueError(f"a run needs a name, not {name!r}")
    is_nested = not path.is_absolute() and not path.exists() and find_path(RUNS / path).is_dir()
    return find_path(RUNS / path if name == path.name or is_nested else path)


def is_run(name: str) -> bool:
    """Return whether a name or path is a run's."""
    path = run_path(name)
    return (path / "config.toml").is_file() or (path / "checkpoints").is_dir()


def existing_run(name: str) -> Path:
    """Return the folder of an existing run. ValueError names those that exist."""
    path = run_path(name)
    if not is_run(name):
        runs = find_path(RUNS)
        found = (*runs.glob("*/config.toml"), *runs.glob("*/*/config.toml"))  # runs, and those of sweeps
        there = sorted(p.parent.relative_to(runs).as_posix() for p in found)
        raise ValueError(
            f"unknown run {name!r}: {did_you_mean(name, there) if there else 'there are none under runs/ yet'}"
        )
    return path


def next_run(config_path: str) -> Path:
    """Return runs/X-001, or the first free number, for configs/X.toml."""
    stem = Path(config_path).stem
    number = 1
    while (path := RUNS / f"{stem}-{number:03d}").exists():
        number += 1
    return path
