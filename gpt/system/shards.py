"""A split's token files as one array, memory-mapped; of several each is opened, and checked, when it is first read."""

import contextlib
import hashlib
import operator
import platform
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from gpt.system.files import sha256
from gpt.system.paths import cache_folder

ADVICE = "prepare the data again"
VERIFIED_AT_ONCE = 2**30  # bytes of a split up to which all of it is hashed at each start, in a second or two
BLOCK = 2**24  # numbers that are searched at once
MAX_OPEN = 48  # files of an array that stay open; a process has four (tokens, flags), and some systems allow it 256


@dataclass(frozen=True)
class Shard:
    """Numbers in a file: `n` of a dtype, from a byte on. With `sha256` the file is verified when it is opened."""

    path: Path
    n: int
    dtype: np.dtype
    offset: int = 0
    sha256: str = ""
    step: int = 1  # -1: from the last number to the first

    def open(self) -> np.ndarray:
        """Return the numbers, memory-mapped, (n,). ValueError if the file has changed."""
        if self.sha256:
            verify_once(self.path, self.sha256)
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.n)[:: self.step]


class ShardedArray:
    """The numbers of several shards in turn, read like an array of one dimension.

    A slice is an array: a view where it lies in one shard, else a copy; only [::-1] of the whole is a ShardedArray.
    `np.asarray`, ==, != and & read every shard, and their result is in memory.
    """

    ndim = 1
    __hash__ = None  # as an array

    def __init__(self, shards: Sequence[Shard]):
        self.shards, self.dtype = list(shards), shards[0].dtype
        self.ends = list(accumulate(shard.n for shard in shards))
        self._open = lru_cache(MAX_OPEN)(Shard.open)

    def __reduce__(self):
        return ShardedArray, (self.shards,)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray | np.generic:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._slice(start, stop)
            if step == -1 and (start, stop) == (len(self) - 1, -1):
                return ShardedArray([replace(shard, step=-shard.step) for shard in reversed(self.shards)])
            return self[np.arange(start, stop, step)]
        if isinstance(key, np.ndarray) and key.ndim:
            if not np.issubdtype(key.dtype, np.integer):
                raise TypeError(f"an array of indices must be of integers, not {key.dtype}")
            return np.array([self[index] for index in key.tolist()], self.dtype)
        index = operator.index(key)
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError(f"index {key} is out of bounds for an array of {len(self)} numbers")
        number = bisect_right(self.ends, index)
        return self._open(self.shards[number])[index - self.ends[number]]  # from the shard's end

    def _slice(self, start: int, stop: int) -> np.ndarray:
        parts = [np.empty(0, self.dtype)]
        while start < stop:
            number = bisect_right(self.ends, start)
            first, end = self.ends[number] - self.shards[number].n, min(stop, self.ends[number])
            parts.append(self._open(self.shards[number])[start - first : end - first])
            start = end
        return parts[-1] if len(parts) < 3 else np.concatenate(parts)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=bool(copy))

    def __eq__(self, value: int) -> np.ndarray:
        return np.concatenate([self._open(shard) == value for shard in self.shards])

    def __ne__(self, value: int) -> np.ndarray:
        return np.concatenate([self._open(shard) != value for shard in self.shards])

    def __and__(self, value: int) -> np.ndarray:
        return np.concatenate([self._open(shard) & value for shard in self.shards])


def open_split(
    folder: Path, split: str, meta: dict[str, Any], verify: bool
) -> tuple[np.ndarray | ShardedArray, np.ndarray | ShardedArray | None, str]:
    """Return the tokens of a split of prepared data, their flags (None without), and the split's SHA-256.

    `meta` is the content of meta.json. Each file holds all its tokens, then their flags. With `verify` the files of a
    small split are read now, those of a larger one once on this machine: a single one now, of several each when it is
    opened. ValueError if a file is missing, has another length or, as far as that is checked now, has changed.
    """
    dtype, flagged, meta = np.dtype(meta["dtype"]), meta.get("flagged", False), meta[split]
    shards, flags = [], []
    for file in meta.get("shards", [{"file": f"{split}.bin", **meta}]):
        path, n = folder / file["file"], file["tokens"]
        size = n * (dtype.itemsize + flagged)
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{path} is missing or not {size} bytes long, as it was written: {ADVICE}")
        shards.append(Shard(path, n, dtype, 0, file["sha256"]))
        flags.append(Shard(path, n, np.dtype(np.uint8), n * dtype.itemsize, file["sha256"]))
    digest = joint_sha256([shard.sha256 for shard in shards])
    at_once = sum(shard.path.stat().st_size for shard in shards) <= VERIFIED_AT_ONCE
    for shard in shards if verify and at_once else ():
        verify_now(shard.path, shard.sha256)
    if at_once or not verify:
        shards, flags = ([replace(shard, sha256="") for shard in each] for each in (shards, flags))
    return _open(shards), _open(flags) if flagged else None, digest


def _open(shards: list[Shard]) -> np.ndarray | ShardedArray:
    return ShardedArray(shards) if len(shards) > 1 else shards[0].open()


def find(array: np.ndarray | ShardedArray, condition: Callable[[np.ndarray], np.ndarray]) -> Iterator[int]:
    """Yield the indices at which a condition holds, in ascending order. Memory does not grow with the array."""
    for indices in _found(array, condition):
        yield from indices.tolist()


def find_all(array: np.ndarray | ShardedArray, condition: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the indices at which a condition holds, ascending, int64. Beyond them no memory grows with the array."""
    return np.concatenate([np.empty(0, np.int64), *_found(array, condition)])


def _found(array: np.ndarray | ShardedArray, condition: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the indices at which a condition holds, int64, block by block."""
    for start in range(0, len(array), BLOCK):
        yield start + np.flatnonzero(condition(array[start : start + BLOCK]))


def joint_sha256(digests: Sequence[str]) -> str:
    """Return one SHA-256 for several files: of one its own, of several that of their SHA-256s in turn."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def verify_now(path: Path, digest: str) -> None:
    """Raise ValueError if a file has another SHA-256."""
    if sha256(path) != digest:
        raise ValueError(f"{path} has changed since it was written (its SHA-256 differs): {ADVICE}")


def verify_once(path: Path, digest: str) -> None:
    """Raise ValueError if a file has another SHA-256, unless it was right before and nobody has written it since.

    An empty file in the user's cache folder remembers that, by this machine and the file's path, size, time and inode.
    Of several processes one reads the file, and the others wait.
    """
    stat = path.stat()
    facts = (platform.node(), str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino, digest)
    note = cache_folder() / "verified" / hashlib.sha256(repr(facts).encode()).hexdigest()
    if note.exists():
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where the cache cannot be written, each process reads the file
            note.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(note.with_suffix(".lock")))
        if not note.exists():
            verify_now(path, digest)
            with contextlib.suppress(OSError):
                note.touch()
                note.with_suffix(".lock").unlink(missing_ok=True)
