"""A process killed at a chosen call that changes the disk."""

import os
import sys
from pathlib import Path

import pytest

CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "chmod")  # of os: pathlib and shutil end there


class Killed(BaseException):
    """Raised in place of SIGKILL."""


class Disk:
    """Record the calls that change the disk, and raise Killed from call number `last` on: nothing that a `finally`
    block does afterwards reaches the disk either."""

    def __init__(self, patch: pytest.MonkeyPatch, last: float = float("inf")):
        self.calls, self.last = [], last
        for name in CALLS:
            patch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name, call):
        def counted(*args, **kwargs):
            if len(self.calls) >= self.last:
                raise Killed
            where = args[0]
            if name == "fsync" and sys.platform == "linux":
                where = Path(f"/proc/self/fd/{where}").readlink()
            self.calls.append((name, str(where), *map(str, args[1:2])))
            return call(*args, **kwargs)

        return counted


def killed_at_every_call(act):
    """Call `act` repeatedly, killed at its first call that changes the disk, then its second, ..., until it ends well.
    Yield after each kill."""
    for n in range(1000):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, last=n)
            try:
                act(n)
                return
            except Killed:
                pass
        yield n
    raise AssertionError("it never ended")
