"""Print the commands of the README's quick start, then those of the docs pages, one per line.

CI runs every ```sh block of these pages, in this order. Commands that it should not run are in ```bash blocks.
"""

import re
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PAGES = ["generating", "evaluating", "objectives", "finetuning", "exporting", "scaling"]


def commands(text: str) -> list[str]:
    """Return the lines of all ```sh blocks of a page, without `make test` and `source`: .ci/run has done these."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [line for line in lines if line != "make test" and not line.startswith("source ")]


def quick_start() -> list[str]:
    """Return the commands of the README's section "Quick start" and of the docs pages."""
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    found = commands(readme.split("## Quick start", 1)[1].split("\n## ", 1)[0])
    for page in PAGES:
        found += commands((PROJECT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    print("\n".join(quick_start()))
