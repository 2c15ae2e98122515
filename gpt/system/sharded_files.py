"""Tensors of a sharded model in files: each process writes its shards, any number of processes read them.

The files are those of torch.distributed.checkpoint in its safetensors form: shards, and a header that says where each
lies in the whole tensor. Reading them executes nothing; PyTorch's default form has an index that is a pickle. All
machines have to see the same folder.
"""

import contextlib
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpt.system.distributed import SINGLE_PROCESS, DistContext, copy_shard, shard_like
from gpt.system.files import report_full_disk, sha256

# torch.distributed.checkpoint takes time to import: only where it is used.

K = TypeVar("K")

OPTIMIZER = "optimizer."  # how names of the optimizer's tensors begin, in files of their own
FILE_BYTES = 2**28  # the writer copies a file's content in one call, for which Python's other threads have to wait

# --- writing ----------------------------------------------------------------------------------------------------------


def check_finite(checkpoint: Path, tensors: dict[str, Any], ctx: DistContext = SINGLE_PROCESS) -> None:
    """Raise FloatingPointError in all processes if a tensor of a checkpoint has an infinite or undefined number."""
    found = ""
    for name, tensor in tensors.items():
        local = tensor.to_local() if hasattr(tensor, "to_local") else torch.as_tensor(tensor)
        if not found and not local.isfinite().all():
            found = "the optimizer state" if name.startswith(OPTIMIZER) else name
    for name in filter(None, ctx.all_gather(found)):
        raise FloatingPointError(f"{name} is not finite, so {checkpoint.name} was not saved")


def flatten(state: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the tensors of an optimizer's state, {number: {name: tensor}}, in one dictionary."""
    return {f"{OPTIMIZER}{number}.{name}": t for number, values in state.items() for name, t in values.items()}


def unflatten(tensors: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Undo `flatten`."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        number, name = key.removeprefix(OPTIMIZER).split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    return state


def assign_files(tensors: dict[str, Tensor], n: int) -> tuple[dict[str, int], list[str]]:
    """Divide tensors, weights first, among files in which each of n processes has about FILE_BYTES. Return the number
    of each tensor's file, from 1, and the kind of each file: "model" or "optimizer"."""
    numbers, kinds, size = {}, [], 0
    for name, tensor in tensors.items():
        kind, share = "optimizer" if name.startswith(OPTIMIZER) else "model", tensor.numel() * tensor.itemsize // n
        if kinds[-1:] != [kind] or size + share > FILE_BYTES:
            kinds.append(kind)
            size = 0
        numbers[name], size = len(kinds), size + share
    return numbers, kinds


class ShardedWriter:
    """Writes folders of sharded tensors, one at a time, while training continues.

    All processes make it and call its methods together. Its threads have a process group of their own.
    """

    def __init__(self, ctx: DistContext):
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.ctx, self._group = ctx, torch.distributed.new_group(backend="gloo")
        on_gpu = torch.cuda.is_available()  # then host memory is pinned, once, and kept
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu, use_non_blocking_copy=on_gpu, use_async_staging=False, use_shared_memory=False
            )
        )
        self._thread: threading.Thread | None = None
        self._outcome: dict[str, str] | str  # the SHA-256 of each file of this process, or an error

    def start(
        self,
        path: Path,
        tensors: dict[str, Tensor],
        begin: Callable[[Path], None],
        seal: Callable[[Path, dict[str, str]], None],
    ) -> None:
        """Copy the tensors to host memory, and write them into a temporary folder next to `path` in a thread.

        Rank 0 calls begin(temporary folder) at once and seal(temporary folder, SHA-256 of each file written) in
        `finish`, to make `path` of it.
        """
        self.path, self._seal = path, seal
        self._folder = path.with_name(self.ctx.all_gather(f".{path.name}.{os.getpid()}.shards.tmp")[0])
        error = ""
        try:
            if self.ctx.is_main:
                self._folder.mkdir()
                begin(self._folder)
        except (OSError, RuntimeError) as full_disk:
            error = str(full_disk) or type(full_disk).__name__
        self._raise(self.ctx.all_gather(error))
        self._thread = threading.Thread(target=self._run, args=(self._stager.stage(tensors),), daemon=True)
        self._thread.start()

    def finish(self, wait: bool = True) -> str:
        """Return the name of the folder that this call has sealed; "" if there is none.

        Without `wait` nothing happens until all processes have written their part. OSError in all processes if one
        could not.
        """
        if self._thread is None or (not wait and self.ctx.all_reduce_sum(int(self._thread.is_alive()))):
            return ""
        self._thread.join()
        self._thread, outcomes = None, self.ctx.all_gather(self._outcome)
        error = ""
        with report_full_disk(self.path):
            self._raise([outcome for outcome in outcomes if isinstance(outcome, str)])
            try:
                if self.ctx.is_main:
                    self._seal(self._folder, {name: digest for digests in outcomes for name, digest in digests.items()})
            except (OSError, RuntimeError) as failure:
                error = str(failure) or type(failure).__name__
            self._raise(self.ctx.all_gather(error))
        return self.path.name

    def _raise(self, errors: list[str]) -> None:
        """Raise the first error, which all processes have, and remove what has been written."""
        for error in filter(None, errors):
            shutil.rmtree(self._folder, ignore_errors=True)
            raise OSError(error)

    def _run(self, copies: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            self._outcome = self._write(copies)
        except CheckpointException as error:  # of some processes, by rank
            self._outcome = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        except Exception as error:  # `finish` raises it in the main thread
            self._outcome = str(error) or type(error).__name__

    def _write(self, copies: dict[str, Tensor]) -> dict[str, str]:
        """Write this process's shards, flushed to the disk. Return the SHA-256 of each file."""
        import torch.distributed.checkpoint as dcp

        number, n = self.ctx.rank + 1, self.ctx.world_size
        numbers, kinds = assign_files(copies, n)
        writer = dcp.HuggingFaceStorageWriter(str(self._folder), numbers, save_distributed=True)
        dcp.save(copies, storage_writer=writer, process_group=self._group)
        digests = {}
        for index, kind in enumerate(kinds, 1):
            part = kinds[:index].count(kind)
            name = f"{kind}-{number:05d}-of-{n:05d}{f'-{part}' * (part > 1)}.safetensors"
            for file in self._folder.glob(f"shard-{number:05d}-model-{index:05d}-of-*"):  # none if it would be empty
                digests[name] = sha256(file.rename(self._folder / name))
        return digests


# --- reading ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def raised_by_all(folder: Path, ctx: DistContext) -> Iterator[None]:
    """A context for reading a checkpoint in which one process's ValueError or missing file is a ValueError in all."""
    error = ""
    try:
        yield
    except FileNotFoundError as missing:
        error = f"{folder} is incomplete: {Path(missing.filename or folder).name} is missing"
    except (ValueError, OSError) as damage:
        error = str(damage)
    for reason in filter(None, ctx.all_gather(error)):
        raise ValueError(reason)


@dataclass(frozen=True)
class UnreadTensor:
    """A tensor in sharded files that `read_into` and `read_like` read."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    reader: Any


def open_sharded(folder: Path) -> dict[str, UnreadTensor]:
    """Return the tensors in the sharded files of a folder, unread."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    reader.read_metadata = lambda: metadata  # the headers are read once
    tensors = metadata.state_dict_metadata.items()
    return {name: UnreadTensor(name, found.size, found.properties.dtype, reader) for name, found in tensors}


def read_sharded(folder: Path, training_state: dict | None, ctx: DistContext) -> dict[str, Tensor | UnreadTensor]:
    """Return the weights in a folder, and give a training state the optimizer's tensors. They are unread if there are
    several processes, each of which then reads what it needs."""
    tensors = open_sharded(folder)
    if training_state is None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER)}
    tensors = read_like(tensors) if ctx.world_size == 1 else tensors
    moments = {name: tensors.pop(name) for name in list(tensors) if name.startswith(OPTIMIZER)}
    if training_state is not None:
        training_state["optimizer"]["state"] = unflatten(moments)
    return tensors


@torch.no_grad()
def read_into(saved: dict[K, Tensor | UnreadTensor], targets: dict[K, Tensor]) -> None:
    """Copy saved tensors to the targets of the same keys and shapes, in place. Of an unread tensor only what this
    process holds of the target is read."""
    unread = {}
    for key, target in targets.items():
        if isinstance(tensor := saved[key], UnreadTensor):
            unread[tensor.name], reader = target.detach(), tensor.reader
        else:
            copy_shard(tensor, target)
    if unread:
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():  # that no processes are asked for help
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(unread, storage_reader=reader, no_dist=True)


def read_like(saved: dict[K, Tensor | UnreadTensor], other: Tensor | None = None) -> dict[K, Tensor]:
    """Return saved tensors, whole, or sharded as `other` where they have its shape."""
    result, targets = {}, {}
    for key, tensor in saved.items():
        if not isinstance(tensor, UnreadTensor):
            result[key] = tensor if other is None else shard_like(tensor, other)
        elif other is not None and tensor.shape == other.shape:
            result[key] = targets[key] = torch.empty_like(other.detach(), dtype=tensor.dtype)
        else:
            result[key] = targets[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
    read_into(saved, targets)
    return result
