"""The fault suite in a short form: `make faults` injects a hundred times as many."""

import os
import shutil

import faults
import pytest

from gpt.checkpoint import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="its signals, and its limits on files, are POSIX"),
]


def test_no_fault_loses_anything(tmp_path):
    """One test, since the uninterrupted run that everything is compared with takes most of the time."""
    bench = faults.Bench(tmp_path)
    for inject, expected in (
        (lambda: None, 1),  # a forked process trains as a new one
        (lambda: faults.kills(bench, 5), 6),
        (lambda: faults.damages(bench, flips=6, others=3, resumed=1), 15),
        (lambda: faults.fills(bench, 1), 1),
    ):
        inject()
        assert sum(count.total() for count in bench.results.values()) >= expected
        assert not bench.lost, bench.table()
        bench.results.clear()
    for name in ("samples.txt", "metrics.csv", "checkpoints/last", "checkpoints/best"):
        assert_a_difference_is_detected(bench, tmp_path / "different", name)


def assert_a_difference_is_detected(bench, folder, name):
    """The whole suite relies on this comparison."""
    run = RunFolder(folder)
    shutil.copytree(bench.truth.path, run.path)
    faults.demand_the_same(run, bench.truth)
    content = (run.path / name).read_text()
    (run.path / name).write_text(content.replace("step-0000", "step-0009") if "/" in name else content + "1\n")
    with pytest.raises(faults.Lost, match=name.rpartition("/")[2]):
        faults.demand_the_same(run, bench.truth)
    shutil.rmtree(run.path)
