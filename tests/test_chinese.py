"""Chinese prose has full-width punctuation: no half-width mark beside a Han character, no space after a wide one."""

import json
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
ZH = PROJECT / "notebooks" / "zh"
PAGES = [PROJECT / "README.zh-CN.md", *sorted((PROJECT / "docs" / "zh").glob("*.md")), *sorted(ZH.glob("*.md"))]
NOTEBOOKS = [*sorted(ZH.glob("[0-9]*.ipynb")), *sorted(ZH.glob("solutions/[0-9]*.ipynb"))]
HINTS = sorted(ZH.glob("hints/*.json"))
HAN, WIDE = "\u4e00-\u9fff", "\uff0c\uff1b\uff1a\uff01\uff1f\uff08\uff09\u3001\u3002"
WRONG = re.compile(rf"[{HAN}][,;:?!()]|[,;:?()](?=[{HAN}])|!(?=[{HAN}])|[{WIDE}] +(?=\S)|[{HAN}{WIDE}] +[{WIDE}]")


def prose(path: Path) -> str:
    """Return the text that a reader sees, without code, formulas and targets of links."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    if path.suffix == ".json":
        text = "\n".join(value for value in json.loads(text).values() if isinstance(value, str))
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]*`", "x", text, flags=re.S)
    text = re.sub(r"\]\([^)\s]*\)", "]", text)
    return re.sub(r" *\| *", "|", text)  # the cells of a table


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, *HINTS], ids=lambda path: str(path.relative_to(PROJECT)))
def test_punctuation_is_full_width(path):
    text = prose(path)
    assert [text[max(0, m.start() - 12) : m.end() + 12] for m in WRONG.finditer(text)] == []


@pytest.mark.parametrize("text", ["\u4f60,a", "a,\u4f60", "\u4f60\u3002 a", "\u4f60(a)", "(\u4f60", "\u4f60 \uff0ca"])
def test_wrong_marks_are_found(text):
    assert WRONG.search(text)
