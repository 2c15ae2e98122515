"""Write a split's tokens into one file, or into several of equal size; a killed preparation continues at the last."""

import contextlib
import hashlib
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
import numpy as np

from gpt.system.files import atomic_folder, checksummed, flush, read_checksummed, sha256, write_text
from gpt.system.shards import joint_sha256

SHARD_TOKENS = 100_000_000  # of a file where the split has more: 200 MB
PROGRESS = "progress.json"
VERSION = 1  # of how text becomes files: another one continues no older preparation
Item = TypeVar("Item")


class SplitWriter:
    """Write batches of tokens as the files SPLIT-00000.bin, SPLIT-00001.bin, ... of shard_tokens each, the last one of
    the rest; as SPLIT.bin if one holds all. With flags each file holds all its tokens, then their flags.

    `counts` are sums over the batches, `spelled` what `name_counter` counts. They are saved with each finished file, as
    they were before the batch that crosses its end; the next writer of the same folder starts there.
    """

    def __init__(self, progress: "Progress", split: str, dtype: str, shard_tokens: int):
        self.progress, self.split, self.dtype, self.shard_tokens = progress, split, np.dtype(dtype), shard_tokens
        saved = progress.state_of(split)
        self.n_batches, self.last = saved.get("n_batches", 0), saved.get("last", -1)
        self.counts, self.spelled = Counter(saved.get("counts", {})), Counter(saved.get("spelled", {}))
        self.shards: list[dict[str, Any]] = saved.get("shards", [])
        self._written = sum(shard["tokens"] for shard in self.shards) - self.counts["tokens"]  # of the next batch
        self._file = self._flags = self._digest = None
        self._n = 0  # tokens in the open file

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_) -> None:
        for file in filter(None, (self._file, self._flags)):
            file.close()

    @property
    def state(self) -> dict[str, Any]:
        """What the next writer needs to continue."""
        state = {"n_batches": self.n_batches, "last": self.last, "shards": [*self.shards]}
        return {**state, "counts": dict(self.counts), "spelled": dict(self.spelled)}

    def add(
        self, ids: np.ndarray, flags: np.ndarray | None, counts: dict[str, int], spelled: Counter[str], last: np.ndarray
    ) -> None:
        """Write a batch: token ids, flags or None, what it adds to the counts, and its last token, (1,), or (0,)."""
        start = self._written
        while start < len(ids):
            part = slice(start, start + self.shard_tokens - self._n)
            self._write(np.ascontiguousarray(ids[part], self.dtype), None if flags is None else flags[part])
            start = min(part.stop, len(ids))
            if self._n == self.shard_tokens:
                self._finish()
                self.progress.save(self.split, self.state)
        self._written = 0
        self.counts.update({"tokens": len(ids), **counts})
        self.spelled.update(spelled)
        self.n_batches, self.last = self.n_batches + 1, int(last[0]) if len(last) else self.last

    def remaining(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches that are still to be added."""
        return itertools.islice(batches, self.n_batches, None)

    def counts_of(self, *names: str) -> dict[str, int]:
        """Return these counts, in this order."""
        return {name: self.counts[name] for name in names}

    def close(self) -> dict[str, Any]:
        """Return "sha256" and, of several files, "shards": the entries of meta.json."""
        if self._file or not self.shards:
            self._write(np.empty(0, self.dtype), None)
            self._finish()
        digest = joint_sha256([shard["sha256"] for shard in self.shards])
        if len(self.shards) > 1:
            return {"sha256": digest, "shards": self.shards}
        (self.progress.folder / self.shards[0]["file"]).replace(self.progress.folder / f"{self.split}.bin")
        self.shards[0]["file"] = f"{self.split}.bin"
        return {"sha256": digest}

    def _write(self, ids: np.ndarray, flags: np.ndarray | None) -> None:
        if self._file is None:
            self._file = (self.progress.folder / f"{self.split}-{len(self.shards):05}.bin").open("wb")
            self._digest, self._n = hashlib.sha256(), 0
        self._file.write(ids)
        self._digest.update(ids)
        self._n += len(ids)
        if flags is not None:
            self._flags = self._flags or tempfile.TemporaryFile(dir=self.progress.folder)  # noqa: SIM115
            self._flags.write(np.ascontiguousarray(flags))

    def _finish(self) -> None:
        path = Path(self._file.name)
        if self._flags:
            self._flags.seek(0)
            while block := self._flags.read(1 << 20):
                self._file.write(block)
                self._digest.update(block)
            self._flags.close()
        self._file.close()
        flush(path)
        self.shards.append({"file": path.name, "tokens": self._n, "sha256": self._digest.hexdigest()})
        self._file = self._flags = None
        self._n = 0


class Progress:
    """What a preparation has finished, in a file of its folder: so the next one of the same text continues it.

    `identity` says what is prepared. A folder of something else, or one whose files have changed, is emptied;
    `n_lost` is the number of tokens that were in it.
    """

    def __init__(self, folder: Path, identity: str):
        self.folder, self.file = folder, folder / PROGRESS
        self.state: dict[str, Any] = {"identity": hashlib.sha256(identity.encode()).hexdigest()}
        self.n_lost, found = 0, self._read()
        if found.get("identity") == self.state["identity"] and self._has_files(found):
            self.state = found
        else:
            self.n_lost = sum(shard["tokens"] for shard in _shards(found))
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def state_of(self, split: str) -> dict[str, Any]:
        """Return what was saved of a split; {} if nothing was."""
        return self.state.get(split, {})

    def save(self, split: str, state: dict[str, Any]) -> None:
        """Remember the state of a split."""
        self.state[split] = state
        write_text(self.file, checksummed(self.state))

    @property
    def n_tokens(self) -> int:
        """The number of tokens in the files that are finished."""
        return sum(shard["tokens"] for shard in _shards(self.state))

    def _read(self) -> dict[str, Any]:
        try:
            return read_checksummed(self.file)
        except (OSError, ValueError):
            return {}

    def _has_files(self, state: dict[str, Any]) -> bool:
        files = {self.folder / shard["file"]: shard["sha256"] for shard in _shards(state)}
        return all(path.is_file() and sha256(path) == digest for path, digest in files.items())


def _shards(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [shard for split in ("train", "val") for shard in state.get(split, {}).get("shards", ())]


@contextlib.contextmanager
def prepared_folder(out: Path, identity: str, is_long: bool) -> Iterator[Progress]:
    """A folder that becomes `out` when the block ends, and what an earlier try at the same has finished in it.

    Only what `is_long` is continued. ValueError where another process is preparing that.
    """
    out = out.resolve()  # a link's lock is its folder's
    lock = filelock.FileLock(out.with_name(f".{out.name}.lock"))
    if not is_long:
        with atomic_folder(out) as folder:
            progress = Progress(folder, identity)
            yield progress
            progress.file.unlink(missing_ok=True)
        partial = out.with_name(f".{out.name}.partial")  # of a longer one that was stopped
        if partial.exists():
            with contextlib.suppress(filelock.Timeout), _held(lock):
                shutil.rmtree(partial)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_held(lock))
        except filelock.Timeout:
            raise ValueError(
                f"another process is preparing {out}: wait until it ends, or name another folder"
            ) from None
        yield Progress(stack.enter_context(atomic_folder(out, keep=PROGRESS)), identity)


@contextlib.contextmanager
def _held(lock: filelock.FileLock) -> Iterator[None]:
    """Hold a lock for the block, and remove its file. filelock.Timeout where another process holds it."""
    with lock.acquire(blocking=False):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows deletes it on release
                Path(lock.lock_file).unlink()
