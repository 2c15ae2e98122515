"""The fault suite in a short form: `make faults` injects a hundred times as many."""

import os
import shutil

import faults
import pytest

from gpt.checkpoint import RunFolder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its signals, and its limits on files, are POSIX")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"))


def assert_survived(bench, injected):
    assert sum(count.total() for count in bench.results.values()) >= injected
    assert not bench.lost, bench.table()
    bench.results.clear()


def test_a_forked_process_trains_as_a_new_one(bench):
    assert_survived(bench, 1)


def test_a_killed_or_stopped_run_ends_as_an_uninterrupted_one(bench):
    faults.kills(bench, 5)
    assert_survived(bench, 6)


def test_damage_is_detected_and_repaired(bench):
    faults.damages(bench, flips=12, others=3, resumed=2)
    assert_survived(bench, 24)


def test_a_full_disk_loses_nothing(bench):
    faults.fills(bench, 1)
    assert_survived(bench, 1)


@pytest.mark.parametrize("name", ["samples.txt", "metrics.csv", "checkpoints/last", "checkpoints/best"])
def test_the_comparison_detects_a_difference(bench, tmp_path, name):
    """The whole suite relies on this comparison."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(bench.truth.path, run.path)
    faults.demand_the_same(run, bench.truth)
    content = (run.path / name).read_text()
    (run.path / name).write_text(content.replace("step-0000", "step-0009") if "/" in name else content + "1\n")
    with pytest.raises(faults.Lost, match=name.rpartition("/")[2]):
        faults.demand_the_same(run, bench.truth)
