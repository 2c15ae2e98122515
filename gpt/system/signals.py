"""SIGINT, SIGTERM and SIGHUP: the first finishes the step and saves, the second ends the program."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

DUPLICATE_SECONDS = 0.2  # a signal this soon after the first is a duplicate: `timeout` sends each one twice


@contextlib.contextmanager
def stop_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """A context in which the first SIGINT, SIGTERM or SIGHUP (the terminal is closed) calls stop(number), and a second
    one ends the program immediately with status 128 + number.

    Python allows handlers in the main thread only: in another thread the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    received: list[int] = []

    def handle(number: int, frame) -> None:
        if not received:
            received.append(number)
            stop(number)

    before = {number: signal.signal(number, handle) for number in numbers}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_exit_at_second_signal, args=(reader, numbers), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # ends the watcher
        watcher.join()
        reader.close()


def _exit_at_second_signal(reader: socket.socket, numbers: list[int]) -> None:
    """Read the number of each signal as it arrives, in a thread. A handler has to wait for the current call to return,
    and a backward pass, which is one call, may take a minute."""
    first = None
    while number := reader.recv(1):
        if number[0] in numbers:
            now = time.monotonic()
            first = now if first is None else first
            if now - first > DUPLICATE_SECONDS:
                os._exit(128 + number[0])
