"""SIGINT, SIGTERM and SIGHUP: the first finishes the step and saves, the second ends the program."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

TWICE_AT_ONCE = 0.2  # seconds in which a second signal is the first again: `timeout` sends each one twice


@contextlib.contextmanager
def stop_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """A context in which the first of SIGINT, SIGTERM and SIGHUP (the terminal is closed) calls stop(number), and a
    second one ends the program at once, with status 128 + number.

    Only the main thread may set handlers; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it ignored
        numbers.append(signal.SIGHUP)
    came: list[int] = []

    def first(number: int, frame) -> None:
        if not came:
            came.append(number)
            stop(number)

    before = {number: signal.signal(number, first) for number in numbers}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_at_the_second, args=(reader, numbers), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # which ends the watcher
        watcher.join()
        reader.close()


def _end_at_the_second(reader: socket.socket, numbers: list[int]) -> None:
    """Reads the number of each signal as it comes. A handler would have to wait for its turn, and a backward pass,
    which to Python is a single call, may take a minute."""
    first = None
    while number := reader.recv(1):
        if number[0] in numbers:
            now = time.monotonic()
            first = now if first is None else first
            if now - first > TWICE_AT_ONCE:
                os._exit(128 + number[0])
