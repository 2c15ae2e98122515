"""Prints the commands of the README's quick start, a line each."""

import re
from pathlib import Path

readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
section = readme.split("## Quick start", 1)[1].split("\n## ", 1)[0]
for block in re.findall(r"```sh\n(.*?)```", section, re.S):
    for command in block.splitlines():
        if command != "make test" and not command.startswith("source "):
            print(command)
