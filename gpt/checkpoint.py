"""A run folder: config, tokenizer, logs, and checkpoints that are written whole or not at all.

runs/NAME/
  config.toml  tokenizer.json  metrics.csv  loss.png  samples.txt  index.html (the run as a page)
  frozen.safetensors         the weights that are not trained (adapter, freeze), once for all checkpoints
  checkpoints/step-000500/   model.safetensors  training_state.pt  metrics.csv  samples.txt  state.json
                             sharded: model- and optimizer-00001-of-00004.safetensors, ... (gpt/system/sharded_files.py)
  checkpoints/last, best     text files: the newest checkpoint, the one with the lowest validation loss

state.json holds the counters, the config, and the SHA-256 of every other file and of itself.

Notebook: 16_run_taken_apart.
"""

import contextlib
import os
import pickle
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
from gpt.system.distributed import SINGLE_PROCESS, DistContext, full_tensor
from gpt.system.files import atomic_file, atomic_folder, checksummed, report_full_disk, sha256, write_text
from gpt.system.sharded_files import ShardedWriter, UnreadTensor, check_finite, flatten, raised_by_all, read_sharded
from gpt.system.step_folders import StepFolders
from gpt.tokenizer import Tokenizer, load_tokenizer

FORMAT = 3  # of a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder."""

    path: Path
    weights: dict[str, Tensor | UnreadTensor]  # unread: sharded, and to be read by several processes
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


def check_checkpoint(folder: Path, ctx: DistContext = SINGLE_PROCESS) -> dict[str, Any]:
    """Return a checkpoint's state.json. ValueError if a file is missing or does not have its checksum.

    Processes share the files, and all of them fail if one does.
    """
    with raised_by_all(folder, ctx):
        state = read_state(folder)
        digests = {folder / name: digest for name, digest in state["sha256"].items()}
        if state["frozen"]:
            digests[folder.parent.parent / "frozen.safetensors"] = state["frozen"]
        files.check_sha256(dict(ctx.shard([*digests.items()])))
    return state


def read_checkpoint(folder: Path, training: bool = True, ctx: DistContext = SINGLE_PROCESS) -> Checkpoint:
    """Read a checkpoint and check it. ValueError if a file is missing or damaged.

    Nothing in it is executed. Without `training` the optimizer state, up to twice the size of the weights, is not read.
    """
    state, path, training_state = check_checkpoint(folder, ctx), folder / "training_state.pt", None
    with raised_by_all(folder, ctx):
        if training:
            try:
                training_state = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                raise ValueError(f"{path} is damaged: it holds more than tensors") from None
        if "model.safetensors" in state["sha256"]:
            weights = safetensors.torch.load_file(folder / "model.safetensors")
        else:
            weights = read_sharded(folder, training_state, ctx)
        if state["frozen"]:
            weights = {**safetensors.torch.load_file(folder.parent.parent / "frozen.safetensors"), **weights}
    return Checkpoint(folder, weights, training_state, state)


class RunFolder(StepFolders):
    """The files of one run. A writer holds the lock; a reader needs none and changes nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(os.path.realpath(path)) if ".." in Path(path).parts else Path(path)
        super().__init__(self.path / "checkpoints")
        self.config_file, self.tokenizer_file = self.path / "config.toml", self.path / "tokenizer.json"
        self.metrics, self.samples = self.path / "metrics.csv", self.path / "samples.txt"
        self.plot, self.page, self.grammar_plot = (self.path / n for n in ("loss.png", "index.html", "grammar.png"))
        self.frozen, self.not_finite = self.path / "frozen.safetensors", self.path / "not_finite.safetensors"
        self.folder_lock = files.FolderLock(self.path)
        self._tokenizer_sha256 = self._frozen_sha256 = ""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Take the lock and keep it unless the block fails; first clean up after a save that was killed.

        ValueError if the lock is taken, or if the folder holds something other than a run.
        """
        visible = self.path.exists() and any(not p.name.startswith(".") for p in self.path.iterdir())
        if visible and not self.config_file.is_file() and not self.steps():
            raise ValueError(f"{self.path} exists and is not a run: name another folder")
        with self.folder_lock.lock_or_fail():
            self._remove_unfinished()
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
        """Return the settings in config.toml or, if gone, of the newest valid checkpoint. ValueError if bad or none."""
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
        writer: ShardedWriter | None = None,
    ) -> Path:
        """Write the checkpoint step-NNNNNN, all of it or nothing, then point `last` and, if `is_best`, `best` to it.

        The weights named in `frozen` are written once, before the first checkpoint. Then older checkpoints are deleted,
        except the newest `keep_checkpoints` and the best. An interrupted save leaves the earlier checkpoints intact.

        With a `writer` all processes save, each its shards, while training continues: the checkpoint exists once
        `writer.finish` has returned its name.

        FloatingPointError if a tensor is not finite, OSError if the disk is full.
        """
        path, ctx = self._path(state), writer.ctx if writer else SINGLE_PROCESS
        moments = flatten(training_state["optimizer"]["state"])
        check_finite(path, {**weights, **moments}, ctx)

        def seal(folder: Path, digests: dict[str, str]) -> None:
            with atomic_folder(path, folder):
                self._write_state(folder, state, is_best, digests)
            self._publish(path, is_best, keep_checkpoints)

        with report_full_disk(path):
            weights = self._write_frozen(weights, frozen, ctx)
            if writer:
                rest = {**training_state, "optimizer": {**training_state["optimizer"], "state": {}}}
                writer.start(path, {**weights, **moments}, lambda folder: self._write_rest(folder, rest), seal)
                return path
            with atomic_folder(path) as temporary:
                safetensors.torch.save_file(weights, temporary / "model.safetensors")
                self._write_rest(temporary, training_state)
                self._write_state(temporary, state, is_best)
            self._publish(path, is_best, keep_checkpoints)
        return path

    def _path(self, state: dict) -> Path:
        return self.checkpoints / f"step-{state['step']:06d}"

    def _write_frozen(self, weights: dict, frozen: set[str], ctx: DistContext = SINGLE_PROCESS) -> dict[str, Tensor]:
        """Write the weights named in `frozen`, whole, unless that has been done. Return the others."""
        names = sorted(frozen & weights.keys())
        if names and not ctx.all_gather(self._frozen_sha256)[0]:
            whole = {}
            for name in names:  # all processes give their shards, rank 0 keeps the sum of them
                tensor = full_tensor(weights[name])
                if ctx.is_main:
                    whole[name] = tensor.cpu()
            if ctx.is_main:
                with atomic_file(self.frozen) as temporary:
                    safetensors.torch.save_file(whole, temporary)
                    self._frozen_sha256 = sha256(temporary)
        return {name: tensor for name, tensor in weights.items() if name not in frozen}

    def _write_rest(self, folder: Path, training_state: dict) -> None:
        torch.save(training_state, folder / "training_state.pt")
        for log in (self.metrics, self.samples):
            log.touch()
            shutil.copy(log, folder)

    def _write_state(self, folder: Path, state: dict, is_best: bool, digests: dict[str, str] | None = None) -> None:
        """Write state.json, with the SHA-256 of each file unless `digests` has it."""
        state = {**state, "best": self._path(state).name if is_best else self._pointer("best")}
        state |= {"tokenizer": self._tokenizer_sha256, "frozen": self._frozen_sha256}
        known = digests or {}
        digests = {file.name: known.get(file.name) or sha256(file) for file in sorted(folder.iterdir())}
        if missing := sorted(known.keys() - digests.keys()):  # of another machine
            raise OSError(f"{missing[0]} is not in {folder}, which all machines have to see")
        text = checksummed({"format": FORMAT, **state, "sha256": digests})
        (folder / "state.json").write_text(text, encoding="utf-8", newline="\n")

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

    def load(self, which: str = "last", training: bool = True, ctx: DistContext = SINGLE_PROCESS) -> Checkpoint:
        """Read the checkpoint that `find` finds; see `read_checkpoint`."""
        return read_checkpoint(self.find(which), training, ctx)

    def load_newest_valid(self, ctx: DistContext = SINGLE_PROCESS) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest valid checkpoint, or None, and the errors of newer ones."""
        errors = []
        for name in reversed(self.steps()):
            try:
                return read_checkpoint(self._folder(name), ctx=ctx), errors
            except ValueError as error:
                errors.append(str(error))
                self._corrupt.add(name)
        return None, errors
