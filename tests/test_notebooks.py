"""The saved notebooks and the checker of their exercises. `make notebooks` runs the notebooks."""

import ast
import json
import math
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
sys.path.insert(0, str(FOLDER))
from exercises import _load  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("[0-9]*.ipynb"))
SETUP = "".join(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"][1]["source"]).split("\n\nimport")[0]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def cells(path: Path, cell_type: str = "") -> list[dict]:
    """Return the cells of a notebook (of one type, if given), each source as one string."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if cell_type in ("", cell["cell_type"])]


def checked_exercises(path: Path) -> list[str]:
    """Return the numbers of the exercises of a notebook that have a check."""
    number = path.name[:2]
    return sorted(name for name in _load(f"{number}.1") if name.startswith(number))


def prose(path: Path) -> str:
    return "\n\n".join(cell["source"] for cell in cells(path, "markdown"))


def test_each_notebook_has_checks_solutions_and_a_row_in_the_readme():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 13)]
    for folder, ending in (("checks", "py"), ("solutions", "ipynb")):
        assert sorted(p.stem for p in (FOLDER / folder).glob(f"[0-9]*.{ending}")) == [p.stem for p in NOTEBOOKS]
    listed = re.findall(
        r"^\| \d+ \| \[.*?\]\((.*?)\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert listed == [path.name for path in NOTEBOOKS]


@each_file
def test_saved_outputs_come_from_one_clean_run(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert not any(output["output_type"] == "error" for output in cell["outputs"]), cell["source"]
        assert not any(output.get("name") == "stderr" for output in cell["outputs"]), cell["source"]
    assert path.stat().st_size < 1_200_000


@each_notebook
def test_cells_are_short_and_show_something(path):
    setup, *others = cells(path, "code")
    assert setup["source"].startswith(SETUP), "the first cell is the same in all notebooks"
    for cell in others:
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        assert 3 <= len(lines) <= 12, cell["source"]
        only_defines = all(isinstance(node, ast.FunctionDef) for node in ast.parse(cell["source"]).body)
        assert cell["outputs"] or only_defines, cell["source"]  # a function definition needs no output


@each_notebook
def test_first_cell_states_goals_and_last_cell_lists_references(path):
    first, *_, last = cells(path)
    assert re.match(rf"# {int(path.name[:2])} · \w+", first["source"])
    for words in ("**You will know at the end**", "**Before this:**", "**Time:**"):
        assert words in first["source"]
    assert last["source"].startswith("## Further reading")
    assert len(re.findall(r"^- .*(19|20)\d\d", last["source"], re.MULTILINE)) >= 3
    images = [o for cell in cells(path, "code") for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert images, "at least one picture"


@each_notebook
def test_notebooks_assert_and_copy_no_class(path):
    source = "\n".join(cell["source"] for cell in cells(path, "code"))
    assert source.count("assert") >= 5
    names = {node.name for node in ast.walk(_parsed(path)) if isinstance(node, ast.ClassDef)}
    assert not names & {"MultiHeadAttention", "GELU", "FeedForward", "LayerNorm", "TransformerBlock", "GPTModel"}


def _parsed(path: Path) -> ast.Module:
    lines = "\n".join(cell["source"] for cell in cells(path, "code")).splitlines()
    return ast.parse("\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in lines))


@pytest.mark.parametrize(
    "path",
    [*NOTEBOOKS, *SOLUTIONS, FOLDER / "README.md", ROOT / "docs" / "glossary.md"],
    ids=lambda path: path.parent.name + "/" + path.name,
)
def test_links_exist(path):
    text = prose(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (path.parent / target).exists(), target


@each_notebook
def test_exercises_are_posed_checked_and_solved(path):
    number = path.name[:2]
    posed = [f"{number}.{k}" for k in re.findall(rf"^### {int(number)}\.(\d)", prose(path), re.MULTILINE)]
    assert 3 <= len(posed) <= 5 and posed == checked_exercises(path)
    solved = cells(FOLDER / "solutions" / path.name, "code")
    for exercise in posed:
        asked = [cell for cell in cells(path, "code") if f'check("{exercise}"' in cell["source"]]
        assert len(asked) == 1 and "not " in json.dumps(asked[0]["outputs"])  # reported as unanswered
        assert any(f'assert check("{exercise}"' in cell["source"] for cell in solved), exercise


def test_the_notebook_on_scale_says_what_the_docs_show():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    tables = re.findall(r"<!-- scaling of .*? -->\n(.*?)<!--", page, re.S)
    rows = [re.findall(r"^\| \d+, \d+ \|.*?(\S+e\+\d+) ", table, re.M) for table in tables]
    words = {5: "five", 6: "six", 7: "seven", 8: "eight"}
    (sizes, decades) = re.search(r"scaling\.md\) has (\w+) sizes over (\w+)\sdecades", prose(NOTEBOOKS[11])).groups()
    assert [words[len(row)] for row in rows] == [sizes] * len(tables)
    assert round(math.log10(float(rows[0][-1]) / float(rows[0][0]))) == {"three": 3, "four": 4, "five": 5}[decades]
    assert "(predicted)" in tables[0] and "error bar" not in prose(NOTEBOOKS[11])
