"""Files and folders that are written whole or not at all, and the lock that lets one process at a time write a run.

Whatever is written here first gets another name, is flushed to the disk itself, and only then takes its place by a
rename, which a file system does wholly or not at all. So a program that is killed, or a machine that loses its power,
leaves what was there before or what was to be there. Pillai et al. 2014, "All File Systems Are Not Created Equal",
OSDI, lists what goes wrong otherwise.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock


def _refuse_pipe(path: Path) -> None:
    if path.is_fifo():  # to open it would wait for a writer
        raise OSError(errno.EINVAL, "A pipe is not a file", str(path))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    _refuse_pipe(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksummed(state: dict[str, Any]) -> str:
    """A text of JSON that ends with the SHA-256 of everything before it."""
    state = {name: value for name, value in state.items() if name != "seal"}
    text = json.dumps(state, indent=2, allow_nan=False)
    return json.dumps({**state, "seal": hashlib.sha256(text.encode()).hexdigest()}, indent=2) + "\n"


def read_checksummed(path: Path, advice: str = "") -> dict[str, Any]:
    """What a file holds that `sealed` wrote; ValueError, with the advice, where it is damaged."""
    _refuse_pipe(path)
    with contextlib.suppress(ValueError, RecursionError):  # JSON's and Unicode's, and that of deep nests
        text = path.read_bytes()
        state = json.loads(text)
        if isinstance(state, dict) and text == checksummed(state).encode():
            return state
    raise ValueError(f"{path} is damaged: its seal is not the SHA-256 of the rest" + (advice and f"; {advice}"))


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk itself. Windows cannot flush folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path, whose file takes the place of `path` when the block ends well, and is gone otherwise."""
    if path.is_dir() and not path.is_symlink():  # the rename's own complaint names the temporary file
        raise IsADirectoryError(errno.EISDIR, "A folder is where a file belongs, so move it away", str(path))
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")  # matplotlib goes by the suffix
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # safetensors' files are private
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Have a small text file hold `text`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: Path, text: str) -> None:
    """Write a text behind what a file holds."""
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:  # that of a full disk names no file
        raise OSError(f"{path} could not be written ({error.strerror}): is the disk full?") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and leaves no trace otherwise.

    A folder that is there already is set aside as .NAME.old while the new one is moved in: `put_back` undoes that where
    the program was killed in between.
    """
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    made = [parent for parent in path.parents if not parent.exists()]  # nearest first
    temporary = aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield temporary
        for found in (*temporary.rglob("*"), temporary):
            # mkdtemp's folders are private, and so are safetensors' files
            found.chmod((0o777 if found.is_dir() else 0o666) & ~_umask())
            flush(found)
        if path.exists():
            aside = _aside(path)
            path.rename(aside)
        temporary.rename(path)
        flush(path.parent)
    finally:
        if aside is not None and not path.exists():
            aside.rename(path)
        for left in filter(None, (aside, temporary)):
            shutil.rmtree(left, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: all went well
                parent.rmdir()


def recover(path: Path) -> None:
    """Clear up after a `whole_folder(path)` that was killed between its two renames: what it had set aside goes back to
    its place, unless the new folder has taken it."""
    aside = _aside(path)
    if aside.is_symlink():
        aside.unlink()  # not what was set aside, and what it leads to is not ours
    elif aside.exists():
        shutil.rmtree(aside) if path.exists() else aside.rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


class FolderLock:
    """Lets one process at a time write a folder. The system itself lets go of it when its holder dies, however it does.

    The lock is a file .lock in the folder, which holds the number of the process for the message to a second one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / ".lock"
        # not bound to the thread that made it: a Trainer may be made in one thread and train in another
        self._lock = filelock.FileLock(self.file, thread_local=False)
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Make the folder if need be, and hold it; nothing happens where it is held already.

        ValueError where another process, or another lock of this one, holds it.
        """
        if self._lock.is_locked:
            return
        self._made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        for left in reversed(range(100)):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(blocking=False)
                break
            except filelock.Timeout:
                raise ValueError(
                    f"{self.folder} is being written by {self._holder()}: wait for its end or stop it, or name another"
                ) from None
            except (FileExistsError, FileNotFoundError):
                if not left or self.folder.is_file():
                    raise  # else its last holder has taken the folder away meanwhile
        with contextlib.suppress(OSError):  # a disk may be full, and Windows keeps a locked file from being written
            self.file.write_text(str(os.getpid()), encoding="utf-8")

    def release(self) -> None:
        """Let go, and leave nothing behind: neither the file, nor the folder where it was made for it alone."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):  # Windows deletes it on release
                self.file.unlink()
            self._lock.release()
            with contextlib.suppress(OSError):  # not empty
                for folder in self._made:
                    folder.rmdir()

    @contextlib.contextmanager
    def lock_or_fail(self) -> Iterator[None]:
        """Holds the lock from here on; a block that fails lets go of it."""
        self.acquire()
        try:
            yield
        except BaseException:
            self.release()
            raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock for a block."""
        with self.lock_or_fail():
            yield
        self.release()

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            number = int(self.file.read_text(encoding="utf-8"))
            return "this process" if number == os.getpid() else f"process {number}"
        return "another process"
