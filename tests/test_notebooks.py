"""The saved notebooks and the checker of their exercises. `make notebooks` runs the notebooks."""

import ast
import json
import math
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
sys.path.insert(0, str(FOLDER))
from exercises import _load  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("[0-9]*.ipynb"))
CHINESE = [FOLDER / "zh" / path.relative_to(FOLDER) for path in NOTEBOOKS + SOLUTIONS]
SETUP = "".join(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"][1]["source"]).split("\n\nimport")[0]
LANGUAGE = 'os.environ["NOTEBOOK_LANGUAGE"] = '
CORE = [*(ROOT / "gpt").glob("[a-z]*.py"), *(ROOT / "gpt" / "ops").glob("[a-z]*.py")]


def notebooks_named(file: Path) -> list[str]:
    """Return the notebooks that the docstring of a file names."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return re.findall(r"\w+", "".join(re.findall(r"^Notebooks?: (\w+(?:, \w+)*)\.$", docstring, re.MULTILINE)))


NAMED = {file: notebooks_named(file) for file in CORE}


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
each_translation = pytest.mark.parametrize("path", CHINESE, ids=name_of)
each_file = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS + CHINESE, ids=name_of)


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


def test_each_notebook_has_checks_solutions_a_translation_and_a_row_in_the_readme():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 17)]
    for pattern in ("checks/[0-9]*.py", "solutions/[0-9]*.ipynb", "zh/[0-9]*.ipynb", "zh/solutions/[0-9]*.ipynb"):
        assert sorted(path.stem for path in FOLDER.glob(pattern)) == [path.stem for path in NOTEBOOKS], pattern
    for page in (FOLDER / "README.md", FOLDER / "zh" / "README.md"):
        listed = re.findall(r"^\| \d+ \| \[.*?\]\((.*?)\)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert listed == [path.name for path in NOTEBOOKS], page


@each_translation
def test_a_translation_has_the_code_of_the_original_cell_by_cell(path):
    original = FOLDER / path.relative_to(FOLDER / "zh")
    ours, theirs = cells(path), cells(original)
    assert [cell["cell_type"] for cell in ours] == [cell["cell_type"] for cell in theirs]
    for cell, other in zip(ours, theirs, strict=True):
        if cell["cell_type"] == "code":
            assert cell["source"] == other["source"].replace(f'{LANGUAGE}"en"', f'{LANGUAGE}"zh"')
        else:
            assert re.findall("^#+ ", cell["source"], re.MULTILINE) == re.findall("^#+ ", other["source"], re.MULTILINE)
            assert re.search("[\u4e00-\u9fff]", cell["source"]) and cell["source"] != other["source"], cell["source"]
    asked = [cell for cell in ours if "check(" in cell["source"] and path.parent.name == "zh"]
    for cell in asked:
        assert "not yet" not in json.dumps(cell["outputs"]) and "not answered" not in json.dumps(cell["outputs"])


def linked_code(path: Path) -> list[tuple[str, Path]]:
    """Return (name, file) of what a notebook says that it re-makes."""
    (line,) = re.findall(r"^\*\*(?:In|在) `gpt`.*$", cells(path)[0]["source"], re.MULTILINE)
    return [(name, (path.parent / file).resolve()) for name, file in re.findall(r"\[`([\w.]+)`\]\((.*?)\)", line)]


def names_in(file: Path) -> set[str]:
    """Return the functions and classes of a file, and the methods as Class.method."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {f"{c.name}.{node.name}" for c in classes for node in c.body if isinstance(node, ast.FunctionDef)}
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} | methods


@each_notebook
def test_a_notebook_links_the_code_that_it_re_makes_and_the_core_links_back(path):
    linked = linked_code(path)
    assert linked and linked == linked_code(FOLDER / "zh" / path.name)
    for name, file in linked:
        assert name in names_in(file), f"{file.name} has no {name}"
    assert {file for file in CORE if path.stem in NAMED[file]} == {file for _, file in linked if file in CORE}


def test_each_file_of_the_core_names_a_notebook():
    assert all(NAMED.values()), [file for file in CORE if not NAMED[file]]


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
    for cell in cells(path, "code")[1:]:
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        assert 3 <= len(lines) <= 12, cell["source"]
        only_defines = all(isinstance(node, ast.FunctionDef) for node in ast.parse(cell["source"]).body)
        assert cell["outputs"] or only_defines, cell["source"]  # a function definition needs no output


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=name_of)
def test_the_first_cell_is_the_same_in_all_and_fetches_the_project_from_its_address(path):
    assert cells(path, "code")[0]["source"].startswith(f"{SETUP}\n\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f'REPOSITORY = "{project["urls"]["Repository"]}"' in SETUP


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
    [
        *NOTEBOOKS,
        *SOLUTIONS,
        *CHINESE,
        *FOLDER.glob("README.md"),
        *FOLDER.glob("zh/README.md"),
        ROOT / "docs/glossary.md",
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
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
