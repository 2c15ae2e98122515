"""Where things are: the project's own folder, a path as seen from it, and runs by their names."""

from pathlib import Path

from gpt.system.errors import did_you_mean

PROJECT = Path(__file__).resolve().parents[2]
RUNS = Path("runs")


def find_path(path: str | Path) -> Path:
    """A path as given or, where nothing is there, as seen from the project's root, so that a config that names
    data/story works from any working folder."""
    path = Path(path)
    return PROJECT / path if not path.exists() and (PROJECT / path).exists() else path


def run_path(name: str) -> Path:
    """The folder of a run: a name under runs/, or a path. ValueError for a name that leads nowhere sensible."""
    path = Path(name)
    if not name or name in (".", ".."):
        raise ValueError(f"a run needs a name, not {name!r}")
    return find_path(RUNS / name if name == path.name else path)


def is_run(name: str) -> bool:
    """Whether a name or a path is a run's."""
    path = run_path(name)
    return (path / "config.toml").is_file() or (path / "checkpoints").is_dir()


def existing_run(name: str) -> Path:
    """The folder of a run that must be there. ValueError names the runs that are."""
    path = run_path(name)
    if not is_run(name):
        there = sorted(p.parent.name for p in find_path(RUNS).glob("*/config.toml"))
        raise ValueError(
            f"unknown run {name!r}: {did_you_mean(name, there) if there else 'there are none under runs/ yet'}"
        )
    return path


def next_run(config_path: str) -> Path:
    """runs/X-001, or the first number that is free, for configs/X.toml."""
    stem = Path(config_path).stem
    number = 1
    while (path := RUNS / f"{stem}-{number:03d}").exists():
        number += 1
    return path
