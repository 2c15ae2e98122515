"""Memory and disk: how much is available, and how memory is allocated."""

import contextlib
import ctypes
import gc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch


def set_allocator_flags() -> None:
    """Let glibc keep the memory of freed tensors for the next step.

    Call this before the first tensor. Otherwise each step's activations are new memory, which the system clears page by
    page: a third of a training step on a CPU.
    """
    if sys.platform != "linux":
        return
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


@contextlib.contextmanager
def frozen_objects() -> Iterator[None]:
    """A context in which Python's garbage collector leaves alone the objects that exist now: the model, its libraries.

    Each full collection visits them all, hundreds of milliseconds in which a GPU waits, and with it all others.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process can use on a device: those that are free and those it uses already.

    On a CPU the limits of a container (its control groups) and of ulimit -v count too.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    own = psutil.Process().memory_info()
    left = [psutil.virtual_memory().available, *_left_in_groups()]
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
        left += [max(0, limit - own.vms)] * (limit != resource.RLIM_INFINITY)
    return own.rss + min(left)


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the bytes left in each control group of this process that has a limit, and in the groups around them.

    Inactive file cache counts as left, since the system can reclaim it.
    """
    left = []
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                top, limit, used, inactive = root, "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):  # version 1
                top, inactive = root / "memory", "total_inactive_file"
                limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            group = top / path.strip("/")
            for folder in (group, *group.parents):  # in a container the path may be the host's: its own group is `top`
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    held = int((folder / used).read_text())
                    files = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    left.append(int((folder / limit).read_text()) - held + int(files.get(inactive, 0)))
                if folder == top:
                    break
    return left


def available_disk(folder: str | Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist, and those of the checkpoints in it."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    held = sum(file.stat().st_size for file in (folder / "checkpoints").glob("step-*/*"))
    return shutil.disk_usage(there).free + held
