"""Plant bugs in the parts of gpt/ that notebooks 13 to 15 re-make, one at a time, and see whether the notebook notices.

    python tests/planted_bugs.py                # all ten
    python tests/planted_bugs.py dpo-sign       # one of them

Each is planted in a copy of the project, in which the notebook then runs. It must end with an AssertionError.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
REFERENCE, FUSED = "gpt/ops/reference.py", "gpt/ops/fused.py"


class Bug(NamedTuple):
    """Replacements (file, old, new), each of a text that is in the file once, and the notebook that must notice."""

    notebook: str
    replacements: list[tuple[str, str, str]]


BUGS = {
    "rotary-pairs": Bug(  # neighbours, as in GPT-J, in place of i and i + K/2
        "13",
        [
            (REFERENCE, "torch.cat([cosine, cosine], dim=-1)", "cosine.repeat_interleave(2, dim=-1)"),
            (REFERENCE, "torch.cat([-sine, sine], dim=-1)", "torch.stack([-sine, sine], dim=-1).flatten(-2)"),
            (REFERENCE, "first, second = x.chunk(2, dim=-1)", "first, second = x[..., ::2], x[..., 1::2]"),
            (REFERENCE, "torch.cat([second, first], dim=-1)", "torch.stack([second, first], dim=-1).flatten(-2)"),
            (FUSED, "x.roll(x.size(-1) // 2, dims=-1)", "x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)"),
        ],
    ),
    "norm-epsilon": Bug(  # outside the root
        "13",
        [
            (
                REFERENCE,
                "torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)",
                "(torch.sqrt((x * x).mean(dim=-1, keepdim=True)) + eps)",
            ),
            (
                FUSED,
                "kernels.rms_norm(x, scale, eps) if own else F.rms_norm(x, scale.shape, scale, eps)",
                "scale * x / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps)",
            ),
        ],
    ),
    "grouped-order": Bug(  # query heads 0, G, 2G, ... share a key head, in place of neighbours
        "13",
        [
            (
                REFERENCE,
                "(x.repeat_interleave(query.size(1) // key.size(1), dim=1) for x in (key, value))",
                "(x.repeat(1, query.size(1) // key.size(1), 1, 1) for x in (key, value))",
            ),
            (
                FUSED,
                "    n_queries, n_keys, n_groups = query.size(-2), key.size(-2), key.size(1)\n",
                "    key, value = (x.repeat(1, query.size(1) // x.size(1), 1, 1) for x in (key, value))\n"
                "    n_queries, n_keys, n_groups = query.size(-2), key.size(-2), key.size(1)\n",
            ),
        ],
    ),
    "cache-position": Bug(
        "13",
        [
            (
                "gpt/model.py",
                "positions = torch.arange(start, end, device",
                "positions = (start > 0) + torch.arange(start, end, device",
            )
        ],
    ),
    "int8-axis": Bug(  # one scale for the whole matrix's columns, not for its rows
        "14",
        [
            (
                "gpt/variants/quantized.py",
                "integers = (weight / scale[:, None]).round().to(torch.int8)",
                "columns = (weight.abs().amax(dim=0) / 127).clamp(min=1e-30)  # (in,)\n"
                "        integers = (weight / columns).round().to(torch.int8)",
            )
        ],
    ),
    "mask-user": Bug(  # the user's words count too
        "15",
        [
            (
                "gpt/text/chat.py",
                'if message["role"] != "assistant" or n < first:',
                'if message["role"] == "system" or n < first:',
            )
        ],
    ),
    "stop-token": Bug(  # the token that ends an answer does not count
        "15",
        [("gpt/text/chat.py", "end + len(end_token) * after.startswith(end_token)", "end")],
    ),
    "dpo-sign": Bug(
        "15",
        [("gpt/objectives/dpo.py", "(log_ratios[:, 0] - log_ratios[:, 1])", "(log_ratios[:, 1] - log_ratios[:, 0])")],
    ),
    "not-centred": Bug(
        "15",
        [("gpt/objectives/rollouts.py", "(rollout.reward - rewards.mean()) / scale", "rollout.reward / scale")],
    ),
    "dropout-on": Bug(
        "15",
        [
            (
                "gpt/objectives/grpo.py",
                "        with evaluation_mode(self.model):\n"
                "            now = self.log_probabilities(self.model, inputs, targets)  # (N,)\n",
                "        if True:\n            now = self.log_probabilities(self.model, inputs, targets)  # (N,)\n",
            )
        ],
    ),
}


def plant(bug: Bug, folder: Path) -> None:
    """Make the replacements of a bug in a copy of the project."""
    for file, old, new in bug.replacements:
        path = folder / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has this {text.count(old)} times: {old}"
        path.write_text(text.replace(old, new), encoding="utf-8")


def noticed(bug: Bug) -> str:
    """Run the notebook in a copy of the project with the bug. Return the assertion that failed, "" if none did."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project")
        ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
        plant(bug, copy)
        command = [sys.executable, copy / "notebooks" / "run.py", bug.notebook]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^-+> +\d+ (.*)\n[\s\S]*^AssertionError", ran.stderr, re.MULTILINE)
    return found[1].strip() if found else ""


def main() -> None:
    names = sys.argv[1:] or list(BUGS)
    missed = []
    for name in names:
        start = time.monotonic()
        assertion = noticed(BUGS[name])
        seconds = time.monotonic() - start
        print(f"{name:16} notebook {BUGS[name].notebook}  {seconds:4.0f} s  {assertion or 'NOT NOTICED'}", flush=True)
        missed += [name] * (not assertion)
    print(f"{len(names) - len(missed)} of {len(names)} noticed")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
