"""Folders numbered by step, step-000500, next to pointers: text files that hold the name of one."""

import contextlib
import re
import shutil
from pathlib import Path

from gpt.system import files


class StepFolders:
    """The folders step-NNNNNN in `checkpoints`, and the pointers `last` and `best`."""

    def __init__(self, checkpoints: Path):
        self.checkpoints = checkpoints
        self._corrupt: set[str] = set()  # checkpoints that failed their checks: neither counted nor deleted

    def steps(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        names = (re.fullmatch(r"\.(step-\d+)\.old|(step-\d+)", p.name, re.ASCII) for p in folders if p.is_dir())
        found = {match[1] or match[2] for match in names if match}
        return sorted(found, key=lambda name: int(name.removeprefix("step-")))

    def find(self, which: str = "last") -> Path:
        """Return the folder of the checkpoint "last", "best" or "step-NNNNNN". ValueError if there is none."""
        steps, name = self.steps(), which
        if which in ("last", "best"):
            name = self._pointer(which)
            name = name if name in steps or not steps else steps[-1]
        if name not in steps:
            available = ", ".join(steps) or "none"
            raise ValueError(f"no checkpoint {which!r} in {self.checkpoints.parent}; available: {available}")
        return self._folder(name)

    def _folder(self, step: str) -> Path:
        """Return a checkpoint's folder; if a repeated save was killed between its two renames, the one set aside."""
        folder, aside = self.checkpoints / step, self.checkpoints / f".{step}.old"
        return aside if aside.exists() and not folder.exists() else folder

    def _pointer(self, name: str) -> str | None:
        path = self.checkpoints / name
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    def _remove_unfinished(self) -> None:
        """Clean up after a save that was killed."""
        for aside in self.checkpoints.glob(".step-*.old"):
            files.recover(self.checkpoints / aside.name[1:-4])
        for unfinished in (*self.checkpoints.parent.glob(".*.tmp*"), *self.checkpoints.glob(".*.tmp")):
            shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()

    def _publish(self, path: Path, is_best: bool, keep_checkpoints: int) -> None:
        """Point `last` and, if `is_best`, `best` to a new checkpoint. Delete older ones, except the newest
        `keep_checkpoints` and the best."""
        for pointer in ("last", "best") if is_best else ("last",):
            files.write_text(self.checkpoints / pointer, path.name + "\n")
        self._corrupt.discard(path.name)
        valid = [step for step in self.steps() if step not in self._corrupt]
        for step in set(valid) - {*valid[-keep_checkpoints:], self._pointer("best")}:
            doomed = self.checkpoints / f".{step}.tmp"  # renamed first: a kill leaves no half of a checkpoint
            with contextlib.suppress(OSError):  # Windows, while it is being read; the next save retries
                (self.checkpoints / step).rename(doomed)
                shutil.rmtree(doomed)
