"""Atomic writes and locks. Atomic writes are killed at every single call that changes the disk."""

import os
import subprocess
import sys
import threading

import pytest
from crashes import Disk, killed_at_every_call

from gpt.system.files import (
    FolderLock,
    append_text,
    atomic_file,
    atomic_folder,
    checksummed,
    read_checksummed,
    recover,
    sha256,
    write_text,
)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- files ------------------------------------------------------------------------------------------------------------


def test_sha256_of_the_standards_example(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-4's example
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_checksummed_file_is_read_back_unless_it_is_damaged(tmp_path):
    path = tmp_path / "state.json"
    text = checksummed({"step": 3, "name": "é"})
    path.write_text(text)
    state = read_checksummed(path)
    assert {name: state[name] for name in ("step", "name")} == {"step": 3, "name": "é"}
    for damaged in (text.replace("3", "4", 1), text[:-9], "", "[]", "\0"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"state.json is damaged: its checksum does not match; start again"):
            read_checksummed(path, "start again")


def test_append_text(tmp_path):
    append_text(tmp_path / "log", "one\n")
    append_text(tmp_path / "log", "two\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(OSError, match=r"x/log could not be written \(No such file"):
        append_text(tmp_path / "x" / "log", "one")


def test_a_killed_write_leaves_the_old_or_the_new_file(tmp_path):
    path, deaths = tmp_path / "last", 0
    path.write_text("old")
    for _ in killed_at_every_call(lambda n: write_text(path, "new")):
        assert path.read_text() in ("old", "new")
        path.write_text("old")
        deaths += 1
    assert path.read_text() == "new"
    assert deaths >= 3  # a flush, a rename, a flush of the folder
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="full"), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("ne")
        raise OSError("full")
    assert contents(tmp_path) == {"a.txt": b"old"}


# --- folders ----------------------------------------------------------------------------------------------------------


def write_folder(path, text):
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text(text)
        (temporary / "b").write_text(text)


@pytest.mark.parametrize("there", [False, True], ids=["new", "again"])
def test_a_killed_write_leaves_the_old_or_the_new_folder(tmp_path, there):
    """After `recover`, which the next write calls."""
    deaths, seen = 0, set()

    def one(n):
        write_folder(tmp_path / str(n) / "x", "new")

    for n in range(60) if there else ():
        write_folder(tmp_path / str(n) / "x", "old")
    for n in killed_at_every_call(one):
        parent = tmp_path / str(n)
        recover(parent / "x")
        found = {name: data for name, data in (contents(parent) if parent.exists() else {}).items() if name[0] == "x"}
        assert found in ([{"x/a": b"old", "x/b": b"old"}] if there else [{}]) + [{"x/a": b"new", "x/b": b"new"}]
        assert not list(parent.glob(".*.old"))
        seen.add(str(found))
        deaths += 1
        write_folder(parent / "x", "third")  # leftovers are no obstacle
        assert (parent / "x" / "a").read_text() == "third"
    assert deaths >= 6
    assert len(seen) == 2  # also the new one: killed after the rename


def test_a_failed_write_leaves_the_old_folder_alone(tmp_path):
    write_folder(tmp_path / "x", "old")
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "x") as temporary:
        (temporary / "a").write_text("ne")
        raise OSError("full")
    assert contents(tmp_path) == {"x/a": b"old", "x/b": b"old"}
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "deep" / "er" / "x"):
        raise OSError("full")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file is flushed")
def test_everything_is_flushed_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    """Otherwise a power cut could lose content: a file system may write names before contents."""
    disk = Disk(monkeypatch)
    write_folder(tmp_path / "x", "new")
    write_text(tmp_path / "last", "x")
    renamed = next(i for i, call in enumerate(disk.calls) if call[0] == "rename")
    temporary = disk.calls[renamed][1]
    before, after = disk.calls[:renamed], disk.calls[renamed + 1 :]
    assert [c for c in before if c[0] == "fsync"][-1] == ("fsync", temporary)
    assert {c[1] for c in before if c[0] == "fsync"} == {f"{temporary}/a", f"{temporary}/b", temporary}
    pointed = next(i for i, call in enumerate(after) if call[0] == "replace")
    assert ("fsync", str(tmp_path)) in after[:pointed]
    assert ("fsync", after[pointed][1]) in after[:pointed]
    assert ("fsync", str(tmp_path)) in after[pointed:]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "x") as temporary:
            (temporary / "a").touch(0o600)
        with atomic_file(tmp_path / "b") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "x", tmp_path / "x/a", tmp_path / "b")]
    assert modes == [0o750, 0o640, 0o640]


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_one_holder_at_a_time_in_one_process(tmp_path):
    first, second = FolderLock(tmp_path / "run"), FolderLock(tmp_path / "run")
    first.acquire()
    first.acquire()  # it holds it already
    with pytest.raises(ValueError, match=r"run is being written by this process"):
        second.acquire()
    thread = threading.Thread(target=first.release)  # a trainer may end in another thread than it began in
    thread.start()
    thread.join()
    with second.held(), pytest.raises(ValueError, match="this process"):
        first.acquire()
    first.acquire()
    first.release()


def test_one_holder_at_a_time_among_processes(tmp_path):
    """Four processes try repeatedly. No two are inside at once, or one would find the other's file there."""
    program = """if True:
        import sys, time
        from pathlib import Path
        from gpt.system.files import FolderLock
        folder, inside, won = Path(sys.argv[1]), Path(sys.argv[1]) / "inside", 0
        end = time.time() + 0.7
        while time.time() < end:
            lock = FolderLock(folder / "run")
            try:
                lock.acquire()
            except ValueError:
                continue
            inside.open("x").close()  # fails if another one is in
            won += 1
            inside.unlink()
            lock.release()
        print(won)"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    won = [int(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(won) > 10


def test_a_failed_block_releases_the_lock_and_leaves_nothing(tmp_path):
    lock = FolderLock(tmp_path / "runs" / "x")
    with pytest.raises(KeyError), lock.lock_or_fail():
        raise KeyError
    assert not (tmp_path / "runs").exists()
    with lock.lock_or_fail():
        (tmp_path / "runs" / "x" / "a").touch()
    with pytest.raises(ValueError, match="by this process"):
        FolderLock(tmp_path / "runs" / "x").acquire()
    lock.release()
    assert contents(tmp_path) == {"runs/x/a": b""}
