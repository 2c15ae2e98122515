"""Documents that cannot drift: the README's Python runs, its links lead somewhere, its options exist.

Its quick start is run word for word by .ci/quick_start.
"""

import math
import re
from pathlib import Path

import pytest

from gpt.config import TrainConfig, config_fields

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]


def test_the_readmes_python_runs(monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    (program,) = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.S)
    exec(compile(program, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    losses = [float(re.search(r"loss (\S+),", line)[1]) for line in lines[:5]]
    assert losses == sorted(losses, reverse=True)
    assert "On Monday the Patience" in "\n".join(lines[5:])


def test_the_python_of_the_tales_page_runs(capsys):
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/tales.md").read_text(encoding="utf-8"), re.S)
    exec(compile(program, "tales.md", "exec"), {})
    log_p, entropy, wrong = map(float, capsys.readouterr().out.split())
    assert -200 < log_p < -40 < 0 < entropy  # nats
    assert wrong == -math.inf


def test_the_python_of_the_objectives_page_prints_what_it_says(tmp_path, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/objectives.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "objectives.md", "exec"), {})
    said = re.findall(r"print\(.*?\)  # (\[.*?\])", program)
    printed = capsys.readouterr().out.splitlines()
    assert len(said) == 4
    assert [re.findall(r"-?\d+", line) for line in printed] == [re.findall(r"-?\d+", line) for line in said]
    assert (tmp_path / "docs" / "infilling_mask.png").stat().st_size > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    known = {name for name, _ in config_fields(TrainConfig)}
    for name in re.findall(r"(?:--|`)((?:model|optim|data|objective)\.[a-z_0-9]+)\b", text):
        assert name in known, name


def test_the_quick_start_has_commands_to_run():
    section = PAGES[0].read_text(encoding="utf-8").split("## Quick start", 1)[1].split("\n## ", 1)[0]
    commands = [line for block in re.findall(r"```sh\n(.*?)```", section, re.S) for line in block.splitlines()]
    assert commands[:2] == ["make train", "make test"]
    assert len(commands) > 6
