"""Available memory and disk."""

import shutil

import psutil
import pytest
import torch

from gpt.system.memory import _left_in_groups, available_disk, available_memory


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(tmp_path, version):
    groups = tmp_path / "cgroup"
    top = tmp_path if version == 2 else tmp_path / "memory"
    group = top / "outer" / "inner"
    group.mkdir(parents=True)
    limit, used, inactive = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    groups.write_text("0::/outer/inner\n" if version == 2 else "3:cpu:/elsewhere\n4:memory:/outer/inner\n0::/\n")
    for folder, most in ((group, "max" if version == 2 else "9223372036854771712"), (group.parent, "5000")):
        (folder / limit).write_text(most + "\n")
        (folder / used).write_text("3000\n")
        (folder / "memory.stat").write_text(f"cache 2000\n{inactive} 1000\n")
    assert min(_left_in_groups(tmp_path, groups)) == 5000 - 3000 + 1000
    assert _left_in_groups(tmp_path, tmp_path / "missing") == []


def test_available_includes_what_the_run_already_holds(tmp_path):
    held = available_disk(tmp_path / "not" / "yet")
    assert 0 < held <= shutil.disk_usage(tmp_path).total
    checkpoint = tmp_path / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    with (checkpoint / "model.safetensors").open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no space
    assert available_disk(tmp_path) >= 2**40
    there = available_memory(torch.device("cpu"))
    assert psutil.Process().memory_info().rss < there <= psutil.virtual_memory().total
