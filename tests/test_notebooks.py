"""The notebooks as they lie there: `make notebooks` runs them. And the checker of their exercises."""

import ast
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
sys.path.insert(0, str(FOLDER))
from exercises import CHECKS, _load, check  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("[0-9]*.ipynb"))
SETUP = "".join(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"][1]["source"]).split("\n\nimport")[0]
name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
any_name = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def cells(path: Path, kind: str = "") -> list[dict]:
    """The cells of a notebook, those of a kind, with their source as one text."""
    read = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in read if kind in ("", cell["cell_type"])]


def registered(path: Path) -> list[str]:
    """The numbers of the exercises of a notebook that have a check."""
    number = path.name[:2]
    return sorted(name for name in _load(f"{number}.1") if name.startswith(number))


def prose(path: Path) -> str:
    return "\n\n".join(cell["source"] for cell in cells(path, "markdown"))


def test_each_has_its_checks_and_solutions_and_a_place_on_the_map():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 13)]
    for folder, ending in (("checks", "py"), ("solutions", "ipynb")):
        assert sorted(p.stem for p in (FOLDER / folder).glob(f"[0-9]*.{ending}")) == [p.stem for p in NOTEBOOKS]
    listed = re.findall(
        r"^\| \d+ \| \[.*?\]\((.*?)\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert listed == [path.name for path in NOTEBOOKS]


@any_name
def test_the_committed_outputs_are_those_of_one_clean_run(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert not any(output["output_type"] == "error" for output in cell["outputs"]), cell["source"]
        assert not any(output.get("name") == "stderr" for output in cell["outputs"]), cell["source"]
    assert path.stat().st_size < 1_200_000


@name
def test_each_cell_is_short_and_shows_something(path):
    setup, *others = cells(path, "code")
    assert setup["source"].startswith(SETUP), "the first cell is the same in all notebooks"
    for cell in others:
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        assert 3 <= len(lines) <= 12, cell["source"]
        only_defines = all(isinstance(node, ast.FunctionDef) for node in ast.parse(cell["source"]).body)
        assert cell["outputs"] or only_defines, cell["source"]  # a function is shown by the cell that calls it


@name
def test_each_says_what_it_teaches_and_where_to_go_on(path):
    first, *_, last = cells(path)
    assert re.match(rf"# {int(path.name[:2])} · \w+", first["source"])
    for words in ("**You will know at the end**", "**Before this:**", "**Time:**"):
        assert words in first["source"]
    assert last["source"].startswith("## Further reading")
    assert len(re.findall(r"^- .*(19|20)\d\d", last["source"], re.MULTILINE)) >= 3
    images = [o for cell in cells(path, "code") for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert images, "at least one picture"


@name
def test_it_derives_and_asserts_and_copies_no_class(path):
    source = "\n".join(cell["source"] for cell in cells(path, "code"))
    assert source.count("assert") >= 5
    names = {node.name for node in ast.walk(_parsed(path)) if isinstance(node, ast.ClassDef)}
    assert not names & {"MultiHeadAttention", "GELU", "FeedForward", "LayerNorm", "TransformerBlock", "GPTModel"}


def _parsed(path: Path) -> ast.Module:
    lines = "\n".join(cell["source"] for cell in cells(path, "code")).splitlines()
    return ast.parse("\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in lines))


@pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLUTIONS, FOLDER / "README.md", ROOT / "docs" / "glossary.md"], ids=str)
def test_links_lead_somewhere(path):
    text = prose(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (path.parent / target).exists(), target


@name
def test_each_exercise_is_posed_checked_and_solved(path):
    number = path.name[:2]
    posed = [f"{number}.{k}" for k in re.findall(rf"^### {int(number)}\.(\d)", prose(path), re.MULTILINE)]
    assert 3 <= len(posed) <= 5 and posed == registered(path)
    solved = cells(FOLDER / "solutions" / path.name, "code")
    for exercise in posed:
        asked = [cell for cell in cells(path, "code") if f'check("{exercise}"' in cell["source"]]
        assert len(asked) == 1 and "not " in json.dumps(asked[0]["outputs"])  # unanswered, and says so
        assert any(f'assert check("{exercise}"' in cell["source"] for cell in solved), exercise


ODD = [None, ..., "", "abc", math.nan, math.inf, -1e9, True, [], [1, 2], {}, object(), torch.zeros(2, 3), torch.nan]
ODD += [lambda: 1, lambda *a: None, lambda *a: ..., lambda *a: "x", lambda *a: 1 / 0, lambda *a: a[0], lambda *a: a]
ODD += [lambda *a: torch.zeros(2, 3), lambda *a: torch.tensor(math.nan), lambda *a, **k: [], int, torch.softmax]


@name
def test_whatever_the_answer_the_checker_says_something(path):
    for exercise in registered(path):
        for answer in ODD:
            verdict = check(exercise, answer)
            assert not verdict, (exercise, answer)
            sentence = repr(verdict)
            assert sentence.startswith(f"{exercise}: not ") and sentence.endswith((".", "?")), sentence
            assert "Traceback" not in sentence and len(sentence) < 500


def test_an_exercise_that_is_not_there():
    with pytest.raises(ValueError, match=r"no exercise '99\.1'"):
        check("99.1", 1)
    assert CHECKS
