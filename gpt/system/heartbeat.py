"""Detect a frozen process: each process of a run sends a heartbeat and watches that of another.

torchrun ends all processes when one of them exits. It does not notice one that hangs, or a machine that lost its power:
the others would wait in a collective operation, for ten minutes on GPUs and thirty on CPUs.
"""

import contextlib
import os
import socket
import sys
import threading
import time

import torch.distributed as dist

HEARTBEAT_INTERVAL = 0.5  # seconds
HEARTBEAT_TIMEOUT = 15  # seconds without a heartbeat after which a process counts as frozen
ENDED = b"ended"  # the last heartbeat of a process that ends by itself


class Heartbeat:
    """A thread that sends this process's heartbeat through a store and watches that of the previous rank.

    When the other's stops, print a line and end this process with status 1; torchrun then ends the rest.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int):
        self.rank, self.watched = rank, (rank - 1) % world_size
        self.store = store.clone()  # a connection of its own: the main thread may be waiting on the other one
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Stop watching, and tell the process that watches this one."""
        self.stopped.set()
        self.thread.join(HEARTBEAT_TIMEOUT)

    def _run(self) -> None:
        try:
            problem = self._watch()
        except RuntimeError:
            problem = "torchrun, or the machine of rank 0, is gone"
        failed = bool(problem) and not self.stopped.is_set()
        if failed:
            print(f"{problem}: ending. --resume continues from the last checkpoint", file=sys.stderr, flush=True)
        with contextlib.suppress(RuntimeError):  # or the next rank, stuck meanwhile, would name this one
            self.store.set(f"heartbeat/{self.rank}", ENDED)
        if failed:
            os._exit(1)

    def _watch(self) -> str:
        """Send and watch until stopped. Return a description of the watched process once its heartbeat stops."""
        sender = f"process {os.getpid()} on {socket.gethostname()}"
        n, last, last_time = 0, b"", time.monotonic()
        while not self.stopped.wait(HEARTBEAT_INTERVAL):
            n += 1
            self.store.set(f"heartbeat/{self.rank}", f"{sender}|{n}")
            if not self.store.check([f"heartbeat/{self.watched}"]):
                continue  # it is still starting
            heartbeat = self.store.get(f"heartbeat/{self.watched}")
            if heartbeat == ENDED or heartbeat != last:
                last, last_time = heartbeat, time.monotonic()
            elif time.monotonic() - last_time > HEARTBEAT_TIMEOUT:
                name = heartbeat.decode().partition("|")[0]
                return f"rank {self.watched} ({name}) has sent no heartbeat for {HEARTBEAT_TIMEOUT} seconds"
        return ""
