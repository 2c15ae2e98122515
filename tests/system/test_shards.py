"""gpt/system/shards.py: several files read as one array, each verified when it is first read."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.system import shards
from gpt.system.files import sha256
from gpt.system.shards import Shard, ShardedArray, find, find_all, joint_sha256, verify_once

LENGTHS = [7, 1, 30, 12]
NUMBERS = np.random.default_rng(0).integers(0, 5, sum(LENGTHS)).astype(np.uint16)
quick = settings(deadline=None, derandomize=True, max_examples=200)


def write(folder, verify=False):
    """Write NUMBERS as shards of LENGTHS; the third is preceded by four bytes."""
    found, start = [], 0
    for i, n in enumerate(LENGTHS):
        path, offset = folder / f"{i}.bin", 4 * (i == 2)
        path.write_bytes(b"\1" * offset + NUMBERS[start : start + n].tobytes())
        found.append(Shard(path, n, np.dtype(np.uint16), offset, sha256(path) if verify else ""))
        start += n
    return found


@pytest.fixture(scope="module")
def array(tmp_path_factory):
    return ShardedArray(write(tmp_path_factory.mktemp("shards")))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpt-from-scratch" / "verified"


places = st.none() | st.integers(-60, 60)


@quick
@given(start=places, stop=places, step=st.sampled_from([None, 1, 2, -1, -3]))
def test_a_slice_is_that_of_one_array(array, start, stop, step):
    part = array[start:stop:step]
    assert np.array_equal(np.asarray(part), NUMBERS[start:stop:step])
    assert part.dtype == NUMBERS.dtype
    whole_reversed = step == -1 and len(part) == len(NUMBERS)
    assert isinstance(part, ShardedArray if whole_reversed else np.ndarray)


@quick
@given(start=places, stop=places)
def test_a_slice_of_the_reversed_array_is_that_of_one_array(array, start, stop):
    assert np.array_equal(array[::-1][start:stop], NUMBERS[::-1][start:stop])
    assert np.array_equal(array[::-1][::-1][start:stop], NUMBERS[start:stop])


def test_single_numbers_and_arrays_of_indices(array):
    assert [array[i] for i in range(-50, 50)] == [NUMBERS[i] for i in range(-50, 50)]
    assert array[np.int64(8)].dtype == np.uint16
    indices = np.random.default_rng(1).integers(-50, 50, 99)
    assert np.array_equal(array[indices], NUMBERS[indices])
    for wrong in (50, -51, 2**40):
        with pytest.raises(IndexError, match="out of bounds for an array of 50"):
            array[wrong]
    assert list(array) == NUMBERS.tolist()
    for wrong in (np.array([True, False]), np.array([1.5]), 1.5, "1"):
        with pytest.raises(TypeError, match="integer"):
            array[wrong]


def test_numpy_reads_it_whole(array):
    assert len(array) == 50
    assert np.asarray(array).tolist() == NUMBERS.tolist()
    assert np.asarray(array, np.int64).dtype == np.int64
    for found, expected in ((array == 3, NUMBERS == 3), (array != 3, NUMBERS != 3), (array & 1, NUMBERS & 1)):
        assert np.array_equal(found, expected)
    assert np.flatnonzero(array).tolist() == np.flatnonzero(NUMBERS).tolist()
    assert np.unique(array).tolist() == [0, 1, 2, 3, 4]


def test_a_slice_within_a_shard_is_no_copy(array):
    assert np.shares_memory(array[10:20], array[12:30])
    assert not np.shares_memory(array[5:10], array[5:10])
    assert not array[10:20].flags.writeable


def test_a_process_can_be_handed_one(array):
    assert np.array_equal(pickle.loads(pickle.dumps(array))[3:40], NUMBERS[3:40])


def test_few_files_are_open_at_once(array, monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "MAX_OPEN", 2)
    small, opened = ShardedArray(write(tmp_path)), []
    monkeypatch.setattr(np, "memmap", lambda path, *_, shape, **__: opened.append(path.name) or np.zeros(shape))
    for i in (0, 3, 7, 8, 0, 45):
        small[i]
    assert opened == ["0.bin", "1.bin", "2.bin", "0.bin", "3.bin"]


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_find_goes_block_by_block(array, monkeypatch, block):
    monkeypatch.setattr(shards, "BLOCK", block)
    for numbers in (array, NUMBERS):
        assert list(find(numbers, lambda part: part == 2)) == np.flatnonzero(NUMBERS == 2).tolist()
        assert find_all(numbers, lambda part: part == 2).tolist() == np.flatnonzero(NUMBERS == 2).tolist()
        assert find_all(numbers, lambda part: part == 9).dtype == np.int64


def test_the_joint_sha256_depends_on_each_and_on_the_order():
    assert joint_sha256(["ab"]) == "ab"
    several = {joint_sha256(digests) for digests in (["ab", "cd"], ["cd", "ab"], ["ab", "ce"], ["ab", "cd", "ef"])}
    assert len(several) == 4
    assert all(len(digest) == 64 for digest in several)


# --- verification -----------------------------------------------------------------------------------------------------


def test_a_shard_is_verified_when_it_is_first_read(tmp_path):
    files = write(tmp_path, verify=True)
    files[2].path.write_bytes(files[2].path.read_bytes()[:-1] + b"\7")
    array = ShardedArray(files)
    assert np.array_equal(array[:8], NUMBERS[:8])
    assert np.array_equal(array[38:], NUMBERS[38:])
    for place in (8, slice(37, 39), slice(0, 50)):
        with pytest.raises(ValueError, match=r"2\.bin has changed since it was written \(its SHA-256 differs\)"):
            array[place]


def count_hashes(monkeypatch):
    hashed = []
    monkeypatch.setattr(shards, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    return hashed


def test_what_was_right_is_not_read_again_until_it_is_written(tmp_path, monkeypatch, cache):
    path = write(tmp_path)[0].path
    digest, hashed = sha256(path), count_hashes(monkeypatch)
    for _ in range(3):
        verify_once(path, digest)
    assert hashed == ["0.bin"]
    assert [note.stat().st_size for note in cache.iterdir() if not note.suffix] == [0]
    os.utime(path, ns=(1, 1))
    verify_once(path, digest)
    assert hashed == ["0.bin"] * 2
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    for _ in range(2):
        with pytest.raises(ValueError, match="has changed"):
            verify_once(path, digest)
    assert hashed == ["0.bin"] * 4


def test_another_copy_is_verified_by_itself(tmp_path, monkeypatch):
    one, other = (tmp_path / name for name in ("one", "other"))
    for path in (one, other):
        path.write_bytes(b"numbers")
        os.utime(path, ns=(1, 1))
    digest, hashed = sha256(one), count_hashes(monkeypatch)
    verify_once(one, digest)
    verify_once(other, digest)
    assert hashed == ["one", "other"]


def test_without_a_cache_that_can_be_written_each_process_reads_the_file(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file is in its place")
    path = write(tmp_path)[0].path
    digest, hashed = sha256(path), count_hashes(monkeypatch)
    verify_once(path, digest)
    verify_once(path, digest)
    assert hashed == ["0.bin"] * 2


def test_of_several_processes_one_reads_the_file(tmp_path):
    path = tmp_path / "shard.bin"
    path.write_bytes(b"numbers")
    program = (
        "import sys, time; from pathlib import Path; from gpt.system import shards, files\n"
        "def slow(path): print('read', flush=True); time.sleep(0.5); return files.sha256(path)\n"
        "shards.sha256 = slow; shards.verify_once(Path(sys.argv[1]), sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(path), sha256(path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert "".join(process.communicate()[0] for process in started) == "read\n"
    assert not any(process.returncode for process in started)
