"""The folder that prepared data are written to: whether what it holds may be replaced."""

import json
import re
from pathlib import Path

FILES = re.compile(r"(train|val)(-\d{5,})?\.bin|tokenizer\.json|meta\.json")


def check_target(out: Path) -> None:
    """Raise ValueError unless `out` is new, empty, or holds what `prepare_data` writes and nothing else."""
    if not out.exists():
        return
    if out.samefile(Path.cwd()):
        raise ValueError(f"--out {out} is the working folder itself: name a folder in it, such as data/mine")
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    if names and not ("meta.json" in names and all(map(FILES.fullmatch, names))):
        raise ValueError(f"{out} exists and is not a folder of prepared data: name another one")


def check_same(out: Path, key: str, value: str, overwrite: bool) -> None:
    """Raise ValueError if `out` holds data of another source or tokenizer, unless it may be overwritten."""
    try:
        there = json.loads((out / "meta.json").read_text(encoding="utf-8")).get(key, value)
    except (OSError, ValueError):
        return  # nothing there, or too damaged to be of use
    if there != value and not overwrite:
        raise ValueError(f"{out} holds data of the {key} {there!r}, not {value!r}: name another folder, or --overwrite")


def check_same_text(out: Path, source: str, n_characters: dict[str, int], overwrite: bool) -> None:
    """Raise ValueError if `out` holds another text under the name `source`, unless it may be overwritten."""
    try:
        meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
        there = {split: meta[split]["characters"] for split in n_characters}
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing there, or too damaged to be of use
    if there != n_characters and not overwrite:
        old, new = (" and ".join(f"{n:,}" for n in numbers.values()) for numbers in (there, n_characters))
        raise ValueError(
            f"{out} holds another text or split of {source!r}, with {old} training and validation characters, not "
            f"{new}: name another folder, or --overwrite"
        )
