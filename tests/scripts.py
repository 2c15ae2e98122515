"""Run scripts of scripts/ inside the test process, which saves the seconds that importing PyTorch takes."""

import io
import runpy
import shlex
import sys
import traceback
from pathlib import Path

import pytest
import torch

from gpt.system import paths

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def run_script(command: str) -> int:
    """Run a script as a shell would, such as "generate --run tiny --prompt 'the cat'"; return its exit status."""
    name, *arguments = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        patch.setattr(paths, "PROJECT", Path.cwd())  # hides the project's own runs and data
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.delenv("GPT_TRACEBACK", raising=False)
        if sys.stdin is sys.__stdin__:  # pytest -s: no script waits for the terminal
            patch.setattr(sys, "stdin", io.StringIO())
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        except Exception:  # as the interpreter would
            traceback.print_exc()
            return 1
    return 0
