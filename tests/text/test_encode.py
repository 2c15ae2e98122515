"""gpt/text/encode.py: threads that encode in order. The token files that it writes are tested in test_prepare.py."""

import threading
import time

import pytest

import gpt.text.encode
from gpt.text.encode import ordered_map


def test_ordered_map_keeps_the_order_and_is_bounded(monkeypatch):
    monkeypatch.setattr(gpt.text.encode, "WORKERS", 2)
    taken = []

    def items():
        for n in range(20):
            taken.append(n)
            yield n

    def slow_where_even(n):
        time.sleep(0.01 * (n % 2 == 0))
        return n * n

    for n, square in enumerate(ordered_map(slow_where_even, items())):
        assert square == n * n
        assert len(taken) <= n + 5
    assert len(taken) == 20


def test_ordered_map_raises_an_exception_in_turn(monkeypatch):
    """The first of several, and all before it come out; no thread is left behind."""
    monkeypatch.setattr(gpt.text.encode, "WORKERS", 3)
    threads = threading.active_count()
    results = ordered_map(lambda n: 1 // (n % 4 - 3), range(20))
    assert [next(results), next(results), next(results)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == threads
