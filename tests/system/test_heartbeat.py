"""A process whose heartbeat stops is named, and ends the one that watches it; one that ends by itself does not."""

import threading
import time

import pytest
import torch.distributed as dist

from gpt.system import heartbeat
from gpt.system.heartbeat import Heartbeat


@pytest.fixture
def exits(monkeypatch):
    """Statuses with which threads would have ended the process; time passes a hundred times as fast."""
    statuses = []
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.005)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_TIMEOUT", 0.15)
    monkeypatch.setattr(heartbeat.os, "_exit", statuses.append)
    return statuses


def test_a_silent_process_is_named_and_its_watcher_exits(exits, capsys):
    store = dist.HashStore()
    watcher = Heartbeat(store, 0, 2)
    time.sleep(0.3)
    assert not exits  # rank 1 is still starting
    store.set("heartbeat/1", "process 123 on host|7")
    watcher.thread.join(5)
    assert exits == [1]
    assert capsys.readouterr().err.startswith("rank 1 (process 123 on host) has sent no heartbeat")
    assert store.get("heartbeat/0") == heartbeat.ENDED  # the one that watches the watcher has nothing to name


def test_processes_that_live_and_end_are_left_alone(exits):
    heartbeats = [Heartbeat(store, rank, 3) for store in [dist.HashStore()] for rank in range(3)]
    time.sleep(0.5)
    for beat in heartbeats:  # one after the other, each missed by the next for longer than the timeout
        beat.stop()
        time.sleep(0.3)
    assert not exits
    assert not [thread for thread in threading.enumerate() if thread in [beat.thread for beat in heartbeats]]


def test_a_store_that_is_gone_ends_the_process(exits, capsys):
    class Gone:
        def clone(self):
            return self

        def set(self, key, value):
            raise dist.DistStoreError("Broken pipe")

    Heartbeat(Gone(), 0, 2).thread.join(5)
    assert exits == [1]
    assert "is gone" in capsys.readouterr().err
