"""A run folder: config, tokenizer, logs, and checkpoints that are written whole or not at all.

runs/NAME/
  config.toml  tokenizer.json  metrics.csv  loss.png  samples.txt  index.html (the run as a page)
  frozen.safetensors         the weights that are not trained (adapter, freeze), once for all checkpoints
  checkpoints/step-000500/   model.safetensors  training_state.pt  metrics.csv  samples.txt  state.json
  checkpoints/last, best     text files: the newest checkpoint, the one with the lowest validation loss

state.json holds the counters, the config, and the SHA-256 of every other file and of itself.
"""

import contextlib
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.config import TrainConfig, from_dict, load_config, to_toml
from gpt.system import files
from gpt.system.files import atomic_file, atomic_folder, checksummed, sha256, write_text
from gpt.tokenizer import Tokenizer, load_tokenizer

FORMAT = 3  # of a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder."""

    path: Path
    weights: dict[str, Tensor]
    training_state: dict[str, Any] | None  # optimizer and random state; None if not read
    state: dict[str, Any]  # counters, config, environment, checksums

    @property
    def config(self) -> TrainConfig:
        """The config of the run when the checkpoint was saved."""
        return from_dict(TrainConfig, self.state["config"])


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state.json. FileNotFoundError if there is none, ValueError if it is damaged or of another
    format."""
    state = files.read_checksummed(folder / "state.json")
    if state["format"] != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {state['format']}, this version reads {FORMAT}")
    return state


def read_checkpoint(folder: Path, training: bool = True) -> Checkpoint:
    """Read a checkpoint and check it against its checksums. ValueError if a file is missing or damaged.

    Nothing in it is executed. Without `training` the optimizer state, up to twice the size of the weights, is not read.
    """
    frozen = folder.parent.parent / "frozen.safetensors"
    try:
        state = read_state(folder)
        digests = {folder / name: digest for name, digest in state["sha256"].items()}
        if state["frozen"]:
            digests[frozen] = state["frozen"]
        for path, digest in digests.items():
            if sha256(path) != digest:
                raise ValueError(f"{path} is damaged: its SHA-256 differs from the one in state.json")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        if frozen in digests:
            weights = {**safetensors.torch.load_file(frozen), **weights}
        path = folder / "training_state.pt"
        training_state = torch.load(path, map_location="cpu", weights_only=True) if training else None
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is incomplete: {Path(error.filename).name} is missing") from None
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is damaged: it holds more than tensors") from None
    return Checkpoint(folder, weights, training_state, state)


def _check_finite(name: str, weights: dict[str, Tensor], training_state: dict) -> None:
    moments = [t for state in training_state["optimizer"]["state"].values() for t in state.values()]
    for label, tensor in [*weights.items(), *(("the optimizer state", t) for t in moments)]:
        if not torch.as_tensor(tensor).isfinite().all():
            raise FloatingPointError(f"{label} is not finite, so {name} was not saved")


class RunFolder:
    """The files of one run. A writer holds the lock; a reader needs none and changes nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(os.path.realpath(path)) if ".." in Path(path).parts else Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config_file, self.tokenizer_file = self.path / "config.toml", self.path / "tokenizer.json"
        self.metrics, self.samples = self.path / "metrics.csv", self.path / "samples.txt"
        self.plot, self.page, self.grammar_plot = (self.path / n for n in ("loss.png", "index.html", "grammar.png"))
        self.frozen, self.not_finite = self.path / "frozen.safetensors", self.path / "not_finite.safetensors"
        self.folder_lock = files.FolderLock(self.path)
        self._tokenizer_sha256 = self._frozen_sha256 = ""
        self._corrupt: set[str] = set()  # checkpoints that failed their checks: neither counted nor deleted

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Take the lock and keep it unless the block fails; first clean up after a save that was killed.

        ValueError if the lock is taken, or if the folder holds something other than a run.
        """
        visible = self.path.exists() and any(not p.name.startswith(".") for p in self.path.iterdir())
        if visible and not self.config_file.is_file() and not self.steps():
            raise ValueError(f"{self.path} exists and is not a run: name another folder")
        with self.folder_lock.lock_or_fail():
            for aside in self.checkpoints.glob(".step-*.old"):
                files.recover(self.checkpoints / aside.name[1:-4])
            for unfinished in (*self.path.glob(".*.tmp*"), *self.checkpoints.glob(".*.tmp")):
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
            yield

    def create(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """Make the folder, write config and tokenizer, and remove the logs of a run that never saved."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, to_toml(config))  # first: it marks the folder as a run
        self.write_tokenizer(tokenizer)
        self.checkpoints.mkdir(exist_ok=True)
        for old in (self.metrics, self.samples, self.plot, self.page, self.grammar_plot, self.not_finite, self.frozen):
            old.unlink(missing_ok=True)
        self.samples.touch()
        self._frozen_sha256 = ""
        for folder in (self.path, self.path.parent):
            files.flush(folder)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write tokenizer.json; later checkpoints carry its checksum."""
        with atomic_file(self.tokenizer_file) as temporary:
            tokenizer.save(temporary)
            self._tokenizer_sha256 = sha256(temporary)

    def config(self) -> TrainConfig:
        """Return the settings in config.toml or, if that file is gone, those of the newest valid checkpoint.

        ValueError if there is neither, or if config.toml is not valid.
        """
        if self.config_file.is_file():
            return load_config(self.config_file)
        if checkpoint := self.load_newest_valid()[0]:
            return checkpoint.config
        raise ValueError(f"no run in {self.path}: a run folder holds a config.toml")

    def tokenizer(self) -> Tokenizer:
        """Return the run's tokenizer."""
        return load_tokenizer(self.tokenizer_file)

    # --- writing ------------------------------------------------------------------------------------------------------

    def save(
        self,
        weights: dict[str, Tensor],
        frozen: set[str],
        training_state: dict,
        state: dict,
        is_best: bool,
        keep_checkpoints: int,
    ) -> Path:
        """Write the checkpoint step-NNNNNN, all of it or nothing, then point `last` and, if `is_best`, `best` to it.

        The weights named in `frozen` are written once, before the first checkpoint. Then older checkpoints are deleted,
        except the newest `keep_checkpoints` and the best. An interrupted save leaves the earlier checkpoints intact.

        FloatingPointError if a tensor is not finite, OSError if the disk is full.
        """
        name = f"step-{state['step']:06d}"
        _check_finite(name, weights, training_state)
        try:
            best = name if is_best else self._pointer("best")
            folder = self._write(name, weights, frozen, training_state, {**state, "best": best})
            write_text(self.checkpoints / "last", name + "\n")
            if is_best:
                write_text(self.checkpoints / "best", name + "\n")
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # a full disk, as each writer reports it
            reason = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint {name} could not be written to {self.checkpoints} ({reason}): is the disk full? "
                f"Free some space; --resume then continues from the newest checkpoint"
            ) from error
        self._corrupt.discard(name)
        self._delete_old(keep_checkpoints)
        return folder

    def _write(self, name: str, weights: dict, frozen: set[str], training_state: dict, state: dict) -> Path:
        frozen_weights = {name: weights[name] for name in frozen & weights.keys()}
        if frozen_weights and not self._frozen_sha256:
            with atomic_file(self.frozen) as temporary:
                safetensors.torch.save_file(frozen_weights, temporary)
                self._frozen_sha256 = sha256(temporary)
        weights = {name: tensor for name, tensor in weights.items() if name not in frozen_weights}
        state |= {"tokenizer": self._tokenizer_sha256, "frozen": self._frozen_sha256}
        folder = self.checkpoints / name
        with atomic_folder(folder) as temporary:
            safetensors.torch.save_file(weights, temporary / "model.safetensors")
            torch.save(training_state, temporary / "training_state.pt")
            for log in (self.metrics, self.samples):
                log.touch()
                shutil.copy(log, temporary)
            digests = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            text = checksummed({"format": FORMAT, **state, "sha256": digests})
            (temporary / "state.json").write_text(text, encoding="utf-8", newline="\n")
        return folder

    def _delete_old(self, keep_checkpoints: int) -> None:
        valid = [step for step in self.steps() if step not in self._corrupt]
        for step in set(valid) - {*valid[-keep_checkpoints:], self._pointer("best")}:
            doomed = self.checkpoints / f".{step}.tmp"  # renamed first: a kill leaves no half of a checkpoint
            with contextlib.suppress(OSError):  # Windows, while it is being read; the next save retries
                (self.checkpoints / step).rename(doomed)
                shutil.rmtree(doomed)

    def update_pointers(self, checkpoint: Checkpoint) -> None:
        """Point `last` and `best` as this checkpoint's save would have, in case it was killed before it could."""
        self._frozen_sha256 = checkpoint.state["frozen"]
        for pointer, name in (("last", checkpoint.path.name), ("best", checkpoint.state["best"])):
            if name in self.steps() and self._pointer(pointer) != name:
                write_text(self.checkpoints / pointer, f"{name}\n")

    def save_batch(self, batch: dict[str, Tensor], **metadata: Any) -> None:
        """Write a batch whose loss is not finite to not_finite.safetensors."""
        with atomic_file(self.not_finite) as temporary:
            temporary.write_bytes(safetensors.torch.save(batch, {name: str(value) for name, value in metadata.items()}))

    # --- reading ------------------------------------------------------------------------------------------------------

    def steps(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        names = (re.fullmatch(r"\.(step-\d+)\.old|(step-\d+)", p.name, re.ASCII) for p in folders if p.is_dir())
        found = {match[1] or match[2] for match in names if match}
        return sorted(found, key=lambda name: int(name.removeprefix("step-")))

    def _folder(self, step: str) -> Path:
        """Return a checkpoint's folder; if a repeated save was killed between its two renames, the one set aside."""
        folder, aside = self.checkpoints / step, self.checkpoints / f".{step}.old"
        return aside if aside.exists() and not folder.exists() else folder

    def _pointer(self, name: str) -> str | None:
        path = self.checkpoints / name
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    def find(self, which: str = "last") -> Path:
        """Return the folder of the checkpoint "last", "best" or "step-NNNNNN". ValueError if there is none."""
        steps, name = self.steps(), which
        if which in ("last", "best"):
            name = self._pointer(which)
            name = name if name in steps or not steps else steps[-1]
        if name not in steps:
            raise ValueError(f"no checkpoint {which!r} in {self.path}; available: {', '.join(steps) or 'none'}")
        return self._folder(name)

    def load(self, which: str = "last", training: bool = True) -> Checkpoint:
        """Read the checkpoint that `find` finds; see `read_checkpoint`."""
        return read_checkpoint(self.find(which), training)

    def load_newest_valid(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest valid checkpoint, or None, and the errors of newer ones."""
        errors = []
        for name in reversed(self.steps()):
            try:
                return read_checkpoint(self._folder(name)), errors
            except ValueError as error:
                errors.append(str(error))
                self._corrupt.add(name)
        return None, errors
