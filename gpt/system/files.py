"""Write files and folders whole or not at all, and let one process at a time write a run.

What is written gets a temporary name first, is flushed to the disk, and takes its place by a rename, which file systems
do atomically. A program that is killed, or a machine that loses its power, leaves either the old or the new content.
Pillai et al. 2014, "All File Systems Are Not Created Equal", OSDI, lists what goes wrong otherwise.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import safetensors


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package, without running the package; None if it is not installed."""
    package = importlib.util.find_spec(name)
    return package and Path(package.submodule_search_locations[0])


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(digests: dict[Path, str]) -> None:
    """Raise ValueError if a file does not have its SHA-256, FileNotFoundError if it is missing."""
    for path, digest in digests.items():
        if sha256(path) != digest:
            raise ValueError(f"{path} is damaged: its SHA-256 differs from the one in state.json")


def checksummed(state: dict[str, Any]) -> str:
    """Return a JSON text whose last entry, "checksum", is the SHA-256 of the JSON text of the others."""
    state = {name: value for name, value in state.items() if name != "checksum"}
    text = json.dumps(state, indent=2, allow_nan=False)
    return json.dumps({**state, "checksum": hashlib.sha256(text.encode()).hexdigest()}, indent=2) + "\n"


def read_checksummed(path: Path, advice: str = "") -> dict[str, Any]:
    """Read a file that `checksummed` wrote. ValueError, with the advice, where it is damaged."""
    text = path.read_bytes()
    with contextlib.suppress(ValueError, RecursionError):  # damaged JSON or UTF-8
        state = json.loads(text)
        if isinstance(state, dict) and text == checksummed(state).encode():
            return state
    raise ValueError(f"{path} is damaged: its checksum does not match" + (advice and f"; {advice}"))


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk. Windows cannot flush folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path whose file replaces `path` when the block ends, and is deleted if it fails."""
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")  # matplotlib derives the format from the suffix
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: Path, text: str) -> None:
    """Append a text to a file."""
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:  # a full disk's error names no file
        raise OSError(f"{path} could not be written ({error.strerror}): is the disk full?") from error


@contextlib.contextmanager
def report_full_disk(checkpoint: Path) -> Iterator[None]:
    """A context in which an error of writing a checkpoint becomes an OSError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # a full disk, as each writer reports it
        reason = str(error).splitlines()[0]
        raise OSError(
            f"the checkpoint {checkpoint.name} could not be written to {checkpoint.parent} ({reason}): is the disk "
            f"full? Free some space; --resume then continues from the newest checkpoint"
        ) from error


@contextlib.contextmanager
def atomic_folder(path: Path, temporary: Path | None = None, keep: str = "") -> Iterator[Path]:
    """A temporary folder that replaces `path` when the block ends, and is deleted if it fails. One that others have
    begun to fill can be given as `temporary`.

    With `keep` it is .NAME.partial, and stays if the block fails, or is killed, while it holds a file of that name: the
    next block finds it as it was. That file is removed last, when all others are on the disk. Only one process at a
    time may be in such a block.

    An existing folder is renamed to .NAME.old while the new one takes its place; `recover` undoes that if the program
    was killed in between.
    """
    path = path.resolve()  # a link to a folder stays one
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file: move it away, or name another folder")
    begun, ending = temporary is not None, "partial" if keep else f"{os.getpid()}.tmp"
    temporary, aside = temporary or path.with_name(f".{path.name}.{ending}"), _aside(path)
    parents = [parent for parent in path.parents if not parent.exists()]  # nearest first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        if not begun and not (keep and (temporary / keep).exists()):
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same id
        temporary.mkdir(exist_ok=True)
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            if written.is_file():
                written.chmod(
                    temporary.stat().st_mode & 0o666
                )  # safetensors makes files that only their owner can read
            flush(written)
        if path.exists():
            path.rename(aside)
        if keep:
            (temporary / keep).unlink(missing_ok=True)
        temporary.rename(path)
        flush(path.parent)
    finally:
        recover(path)
        if not (keep and (temporary / keep).exists()):
            shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: all went well
            for parent in parents:
                parent.rmdir()


def recover(path: Path) -> None:
    """Clean up after an `atomic_folder(path)` that was killed between its two renames: the old folder returns to its
    place unless the new one has taken it."""
    aside = _aside(path)
    if aside.exists():
        shutil.rmtree(aside) if path.exists() else aside.rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


class FolderLock:
    """Lets one process at a time write a folder. The system releases it when the process dies.

    The lock is a file .lock in the folder, which holds the process id for the message to a second process.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / ".lock"
        # thread_local=False: a Trainer may be made in one thread and train in another
        self._lock = filelock.FileLock(self.file, thread_local=False)
        self._created: list[Path] = []  # folders, nearest first

    def acquire(self) -> None:
        """Create the folder if need be, and lock it; do nothing if this lock is held already.

        ValueError where another process, or another lock of this one, holds it.
        """
        if self._lock.is_locked:
            return
        self._created = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        for attempts_left in reversed(range(100)):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(blocking=False)
                break
            except filelock.Timeout:
                raise ValueError(
                    f"{self.folder} is being written by {self._holder()}: wait until it ends, stop it, or name another"
                ) from None
            except (FileExistsError, FileNotFoundError):
                if not attempts_left or self.folder.is_file():
                    raise  # otherwise the previous holder has just removed the folder
        with contextlib.suppress(OSError):  # a full disk; and Windows lets nobody write a locked file
            self.file.write_text(str(os.getpid()), encoding="utf-8")

    def release(self) -> None:
        """Unlock, and remove the lock file, and the folders that `acquire` created if they are empty."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):  # Windows deletes it on release
                self.file.unlink()
            self._lock.release()
            with contextlib.suppress(OSError):  # not empty
                for folder in self._created:
                    folder.rmdir()

    @contextlib.contextmanager
    def lock_or_fail(self) -> Iterator[None]:
        """Acquire the lock, and keep it after the block unless the block fails."""
        self.acquire()
        try:
            yield
        except BaseException:
            self.release()
            raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for the block."""
        with self.lock_or_fail():
            yield
        self.release()

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.file.read_text(encoding="utf-8"))
            return "this process" if pid == os.getpid() else f"process {pid}"
        return "another process"
