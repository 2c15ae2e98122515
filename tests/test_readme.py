"""The documents match the code: their Python runs, their links resolve, the options and settings they name exist.

CI runs the commands of the README and of some docs pages word for word (.ci/quick_start).
"""

import importlib.util
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from gpt.config import TrainConfig, config_fields, to_toml

PROJECT = Path(__file__).parent.parent
README, CHINESE, GERMAN = PROJECT / "README.md", PROJECT / "README.zh-CN.md", PROJECT / "README.de.md"
DOCS = sorted((PROJECT / "docs").glob("*.md"))
CHINESE_DOCS = sorted((PROJECT / "docs" / "zh").glob("*.md"))
PAGES = [README, CHINESE, GERMAN, PROJECT / "CONTRIBUTING.md", PROJECT / "data" / "README.md", *DOCS, *CHINESE_DOCS]
SETTINGS = {name for name, _ in config_fields(TrainConfig)}

translated = pytest.mark.parametrize("page", [CHINESE, GERMAN], ids=lambda page: page.name)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(text: str, language: str = "[a-z]*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def targets(text: str) -> set[str]:
    """Return the targets of all links and pictures of a page."""
    return set(re.findall(r"\]\(([^)\s]+)\)", text))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", read(page), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_python(page: Path) -> None:
    (program,) = code_blocks(read(page), "python")
    exec(compile(program, page.name, "exec"), {})


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_trains_and_generates(page, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    run_python(PROJECT / page)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in lines[:5]]
    assert losses == sorted(losses, reverse=True)
    assert "On Monday the Patience" in "\n".join(lines[5:])


def test_python_page_trains_a_run_and_loads_it(tiny_config, tmp_path, monkeypatch):
    _, load, _, train = code_blocks(read(PROJECT / "docs" / "python.md"))
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/tales.toml").write_text(to_toml(tiny_config), encoding="utf-8")
    exec(train, {})
    Path("runs/mine").rename("runs/tales-001")
    names = {}
    exec(load, names)
    assert names["checkpoint"].state["step"] > 0
    assert names["model"].config.vocab_size == names["tokenizer"].vocab_size


def test_python_of_the_tales_page_runs(capsys):
    run_python(PROJECT / "docs" / "tales.md")
    log_p, entropy, wrong = map(float, capsys.readouterr().out.split())
    assert -200 < log_p < -40 < 0 < entropy  # nats
    assert wrong == -math.inf


def test_python_of_the_objectives_page_prints_what_its_comments_say(tmp_path, monkeypatch, capsys):
    page = PROJECT / "docs" / "objectives.md"
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    run_python(page)
    expected = re.findall(r"print\(.*?\)  # (\[.*?\])", read(page))
    printed = capsys.readouterr().out.splitlines()
    assert len(expected) == 4
    assert [re.findall(r"-?\d+", line) for line in printed] == [re.findall(r"-?\d+", line) for line in expected]
    assert (tmp_path / "docs" / "infilling_mask.png").stat().st_size > 1000


@every_page
def test_links_resolve(page):
    for link in targets(read(page)):
        path, _, anchor = link.partition("#")
        if not path.startswith("http"):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@every_page
def test_settings_exist(page):
    for name in re.findall(r"(?:--|`)((?:model|optim|data|objective|adapter)\.[a-z_0-9]+)\b", read(page)):
        assert name.endswith((".py", ".path")) or name in SETTINGS, name


@every_page
def test_options_of_scripts_exist(page):
    shared = "".join(
        map(read, sorted([*(PROJECT / "gpt" / "run").glob("*.py"), PROJECT / "gpt" / "text" / "prepare.py"]))
    )
    text = re.sub(r"\s*\\\n\s*", " ", read(page))
    for script, options in re.findall(r"(scripts/\w+\.py|notebooks/run\.py) ([^\n`]*)", text):
        source = read(PROJECT / script)
        for option in re.findall(r"(?<= --)[\w.]+", f" {options}"):
            assert option in {*SETTINGS, "help"} or f"--{option}" in source + shared, f"{script} --{option}"


def test_every_docs_page_is_in_the_index():
    index = targets(read(PROJECT / "docs" / "README.md"))
    assert {page.name for page in DOCS} - {"README.md"} <= index


@pytest.mark.parametrize("page", CHINESE_DOCS, ids=lambda page: page.name)
def test_chinese_docs_page_follows_the_english_one(page):
    def links(p):  # to the same places, in whichever language, apart from those between the two
        found = {re.sub(r"^(\.\./)+|^zh/", "", re.sub(r"/zh/", "/", link)) for link in targets(read(p))}
        return {link for link in found if not link.startswith("#")} - {page.name}

    english = page.parent.parent / page.name
    assert code_blocks(read(page)) == code_blocks(read(english))
    assert links(page) == links(english)


def test_each_format_is_held_by_the_test_that_it_names():
    named = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", read(PROJECT / "docs" / "formats.md"))
    assert len(named) > 30
    for test, path in named:
        assert re.search(rf"^def {test}\(", read(PROJECT / path), re.MULTILINE), f"{path} has no {test}"
    rows = [line for line in read(PROJECT / "docs" / "formats.md").splitlines() if line.startswith("|")]
    assert all("test_" in row or "held by" in row or set(row) <= {*"|-"} for row in rows)


def test_readme_is_short():
    assert len(read(README).split()) <= 1200


def test_ci_runs_the_commands_of_the_readme_and_of_the_pages_it_names():
    spec = importlib.util.spec_from_file_location("quick_start", PROJECT / ".ci" / "quick_start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = module.quick_start()
    assert commands[0] == "make train"
    assert commands.count("make train") == 1  # a second one would be tales-002
    for page in module.PAGES:
        (first, *_) = code_blocks(read(PROJECT / "docs" / f"{page}.md"), "sh")
        assert first.splitlines()[0] in commands
    assert all(not command.endswith("\\") for command in commands)  # each line is run by itself


@translated
def test_translated_readme_has_the_same_commands_and_python(page):
    assert code_blocks(read(page)) == code_blocks(read(README))


@translated
def test_translated_readme_has_the_same_figures(page):
    def figures(p):  # German writes 30.000 and 2,5
        found = re.findall(r"\d[\d,.]*\d|\d", re.sub(r"\]\([^)]*\)", "]", read(p)))
        return Counter(re.sub("[,.]", "", figure) for figure in found)

    assert figures(page) == figures(README)


@translated
def test_translated_readme_has_the_same_links_and_picture(page):
    def links(p):  # to the same pages, in whichever language, whose headings differ
        pages = {link.replace("/zh/", "/").partition("#")[0] for link in targets(read(p))}
        return pages - {p.name for p in (README, CHINESE, GERMAN)}

    assert links(page) == links(README)


@translated
def test_readmes_link_to_each_other(page):
    names = {README.name, CHINESE.name, GERMAN.name}
    assert names - {page.name} <= targets(read(page))
    assert names - {README.name} <= targets(read(README))


@translated
def test_translated_readme_has_the_same_structure(page):
    def outline(p):
        text = re.sub(r"^```.*?^```", "", read(p), flags=re.S | re.M)
        return re.findall(r"^(#+) |^(\|)|^(-) ", text, re.M)

    assert outline(page) == outline(README)
