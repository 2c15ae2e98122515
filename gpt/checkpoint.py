"""A run folder: config, tokenizer, metrics, samples, and checkpoints that are written whole or not at all.

runs/NAME/
  config.toml  tokenizer.json  metrics.csv  loss.png  samples.txt  learnt.png  not_finite.safetensors
  frozen.safetensors         where not all weights are trained, the others, once for all checkpoints
  checkpoints/step-000500/   model.safetensors  training_state.pt  metrics.csv  samples.txt  state.json (with the
                             SHA-256 of all of them, of frozen.safetensors, and of itself)
  checkpoints/last, best     text files that name the newest checkpoint, and the one with the lowest validation loss
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.config import TrainConfig, from_dict, is_sealed, read_toml, to_toml
from gpt.state import FORMAT, FROZEN, Checkpoint, check_finite, read_checkpoint, read_state
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.system.files import FolderLock, atomic_file, atomic_folder, checksummed, flush, recover, sha256, write_text
from gpt.tokenizer import Tokenizer, load_tokenizer


class RunFolder:
    """The files of one run. Whoever writes to it holds its lock; reading needs none, and changes nothing."""

    def __init__(self, path: str | Path):
        # new/../notes is notes, whether or not there is a folder new: what is looked at is what is written
        self.path = Path(os.path.realpath(path)) if ".." in Path(path).parts else Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.lock = FolderLock(self.path)
        self._tokenizer_sha256 = self._frozen_sha256 = ""
        self._corrupt: set[str] = set()  # checkpoints that are not whole: neither counted nor deleted

    @property
    def metrics(self) -> Path:
        """One row per report."""
        return self.path / "metrics.csv"

    @property
    def samples(self) -> Path:
        """What the model wrote, by step."""
        return self.path / "samples.txt"

    @property
    def plot(self) -> Path:
        """Loss and perplexity over tokens seen."""
        return self.path / "loss.png"

    @property
    def plot_is_new(self) -> bool:
        """Whether the plot shows all of the metrics."""
        return self.plot.exists() and self.plot.stat().st_mtime >= self.metrics.stat().st_mtime

    @property
    def learnt(self) -> Path:
        """What each checkpoint's tales are worth, where they have been judged."""
        return self.path / "learnt.png"

    @property
    def not_finite(self) -> Path:
        """The batch whose loss or gradient was not finite, where the run has ended so."""
        return self.path / "not_finite.safetensors"

    @property
    def frozen(self) -> Path:
        """The weights that are not trained, where there are any."""
        return self.path / FROZEN

    @contextlib.contextmanager
    def lock_or_fail(self, ctx: DistContext = SINGLE_PROCESS) -> Iterator[None]:
        """Holds the lock from here on, unless the block fails. What a killed save had begun is finished or undone. Of
        several processes rank 0 does so, and the others begin after it.

        ValueError where the lock is taken, and for a folder that holds something else than a run.
        """
        with self._claimed() if ctx.is_main else contextlib.nullcontext():
            ctx.barrier()
            yield

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        visible = self.path.exists() and any(not p.name.startswith(".") for p in self.path.iterdir())
        # a killed start leaves names with a dot
        if visible and not (self.path / "config.toml").is_file() and not self.steps():
            raise ValueError(f"{self.path} exists and is not a run: name another folder")
        with self.lock.lock_or_fail():
            for aside in self.checkpoints.glob(".step-*.old"):
                recover(self.checkpoints / aside.name[1:-4])
            for unfinished in (*self.path.glob(".*.tmp*"), *self.checkpoints.glob(".*.tmp")):
                folder = unfinished.is_dir() and not unfinished.is_symlink()
                shutil.rmtree(unfinished) if folder else unfinished.unlink()
            yield

    def create(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """Make the folder and write down everything the run is started with. A run without a checkpoint starts anew."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(config)  # first: it tells a run from another folder
        self.write_tokenizer(tokenizer)
        self.checkpoints.mkdir(exist_ok=True)
        for old in (self.metrics, self.samples, self.plot, self.learnt, self.not_finite, self.frozen):
            old.unlink(missing_ok=True)
        self._frozen_sha256 = ""
        for folder in (self.path, self.path.parent):
            flush(folder)

    def write_config(self, config: TrainConfig) -> None:
        """Write config.toml."""
        write_text(self.path / "config.toml", to_toml(config))

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write tokenizer.json, whose checksum the checkpoints from here on carry."""
        with atomic_file(self.path / "tokenizer.json") as temporary:
            tokenizer.save(temporary)
            self._tokenizer_sha256 = sha256(temporary)

    @property
    def config_is_whole(self) -> bool:
        """Whether config.toml is what was written."""
        file = self.path / "config.toml"
        return file.is_file() and is_sealed(file.read_text(encoding="utf-8", errors="replace"))

    def config(self) -> TrainConfig:
        """The run's config: that of the newest whole checkpoint, where config.toml was edited, damaged or deleted.

        ValueError where the folder is not a run, and where there is neither.
        """
        if not self.config_is_whole and (checkpoint := self.load_newest_valid()[0]):
            return checkpoint.config
        if not (self.path / "config.toml").is_file():
            raise ValueError(f"no run in {self.path}: a run folder holds a config.toml")
        try:
            return from_dict(TrainConfig, read_toml(self.path / "config.toml"))
        except ValueError as error:
            raise ValueError(f"{self.path / 'config.toml'}: {error}") from None

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load_tokenizer(self.path / "tokenizer.json")

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
        """Write the checkpoint step-NNNNNN, all of it or nothing; before the first one, the weights that are frozen,
        given by their names.

        `last`, and `best` where `is_best`, name it only after that; then older checkpoints go, but for the newest
        `keep` and the best. Interrupted anywhere, the folder still holds the checkpoints it held before.

        FloatingPointError where a tensor to be saved is not finite, OSError where the disk is full.
        """
        name = f"step-{state['step']:06d}"
        check_finite(name, weights, training_state)
        frozen = {name: weights[name] for name in frozen & weights.keys()}
        weights = {name: tensor for name, tensor in weights.items() if name not in frozen}
        folder = self.checkpoints / name
        try:
            if frozen and not self._frozen_sha256:
                with atomic_file(self.frozen) as temporary:
                    safetensors.torch.save_file(frozen, temporary)
                    self._frozen_sha256 = sha256(temporary)
            state = {**state, "best": name if is_best else self._pointed("best")}
            state |= {"tokenizer": self._tokenizer_sha256, "frozen": self._frozen_sha256}
            if folder.is_symlink() or folder.is_file():
                folder.unlink()  # what a link leads to is not ours to replace
            with atomic_folder(folder) as temporary:
                safetensors.torch.save_file(weights, temporary / "model.safetensors")
                torch.save(training_state, temporary / "training_state.pt")
                for record in (self.metrics, self.samples):
                    record.touch()  # it may have been deleted since
                    shutil.copy(record, temporary)
                digests = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
                whole = checksummed({"format": FORMAT, **state, "sha256": digests})
                (temporary / "state.json").write_text(whole, encoding="utf-8", newline="\n")
            write_text(self.checkpoints / "last", name + "\n")
            if is_best:
                write_text(self.checkpoints / "best", name + "\n")
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # each writer has its own for a full disk
            reason = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint {name} could not be written to {self.checkpoints} ({reason}): is the disk full? "
                f"With room, --resume goes on from the newest checkpoint there is"
            ) from error
        self._corrupt.discard(name)
        older = [step for step in self.steps() if step not in self._corrupt]
        kept = {*older[-keep_checkpoints:], self._pointed("best")}
        for old in older:
            if old not in kept:
                self._delete(old)
        return folder

    def _delete(self, step: str) -> None:
        """Delete a checkpoint under another name: killed on the way, it leaves no half of one."""
        doomed = self.checkpoints / f".{step}.tmp"
        with contextlib.suppress(OSError):  # Windows, while it is being read: then after the next save
            (self.checkpoints / step).rename(doomed)
            doomed.unlink() if doomed.is_symlink() else shutil.rmtree(doomed)

    def point(self, checkpoint: Checkpoint) -> None:
        """Have `last` and `best` name what they were to name beside this checkpoint: its save may have been killed
        before it came to that. Checkpoints from here on share its frozen weights."""
        self._frozen_sha256 = checkpoint.state["frozen"]
        for pointer, name in (("last", checkpoint.path.name), ("best", checkpoint.state["best"])):
            file = self.checkpoints / pointer
            if name in self.steps() and (not file.is_file() or file.read_bytes() != f"{name}\n".encode()):
                write_text(file, f"{name}\n")

    def truncate_logs(self, checkpoint: Checkpoint) -> list[str]:
        """Have metrics.csv and samples.txt be what they were at a checkpoint, since what was written later will be
        written again; the names of those that held something else."""
        damaged = []
        for record in (self.metrics, self.samples):
            saved, found = (checkpoint.path / record.name).read_bytes(), b""
            if record.is_file():
                found = record.read_bytes()
            if found != saved:
                with atomic_file(record) as temporary:
                    temporary.write_bytes(saved)
            if not found.startswith(saved):
                damaged.append(record.name)
        return damaged

    def save_batch(self, batch: dict[str, Tensor], **facts: Any) -> None:
        """Write a batch whose loss is not finite to not_finite.safetensors, to be looked at; the facts are its
        metadata."""
        with atomic_file(self.not_finite) as temporary:
            metadata = {name: str(fact) for name, fact in facts.items()}
            temporary.write_bytes(safetensors.torch.save(batch, metadata))

    # --- reading ------------------------------------------------------------------------------------------------------

    def steps(self) -> list[str]:
        """The names of the checkpoints, oldest first."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        names = (re.fullmatch(r"\.(step-\d+)\.old|(step-\d+)", p.name, re.ASCII) for p in folders if p.is_dir())
        return sorted({found[1] or found[2] for found in names if found}, key=_step)

    def _folder(self, step: str) -> Path:
        """A checkpoint's folder; where its second save was killed between two renames, that of the first."""
        folder, aside = self.checkpoints / step, self.checkpoints / f".{step}.old"
        return aside if aside.exists() and not folder.exists() else folder

    def _pointed(self, pointer: str) -> str | None:
        path = self.checkpoints / pointer
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    def find(self, which: str = "last") -> Path:
        """The folder of the checkpoint "last", "best", or of one by its name. ValueError where there is none."""
        name = which
        steps = self.steps()
        if which in ("last", "best"):
            pointed = self._pointed(which)
            name = pointed if pointed in steps or not steps else steps[-1]
        if name not in steps:
            raise ValueError(f"no checkpoint {which!r} in {self.path}; there are: {', '.join(self.steps()) or 'none'}")
        return self._folder(name)

    def load(self, which: str = "last", training: bool = True) -> Checkpoint:
        """The checkpoint that `find` finds, checked against its sums: ValueError where a file is missing or damaged.

        Without `training` the optimizer's state, up to twice the size of the weights, is not read into memory.
        """
        return read_checkpoint(self.find(which), training)

    def state(self, which: str = "last") -> dict[str, Any]:
        """The counters of a checkpoint alone: step, tokens_seen, best_loss, ..."""
        return read_state(self.find(which))

    def load_newest_valid(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole (None where there is none), and what was wrong with newer ones."""
        complaints = []
        for name in reversed(self.steps()):
            try:
                return read_checkpoint(self._folder(name)), complaints
            except ValueError as error:
                complaints.append(str(error))
                self._corrupt.add(name)
        return None, complaints


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))
