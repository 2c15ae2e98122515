"""What a plan foretells, beside what the run then takes: memory and time, by one process and by two.

    python benchmarks/foretold.py
    python benchmarks/foretold.py --quick

Runs the first steps of each of CASES in a temporary folder, and asks the system for the largest resident set of each
process. The table replaces that of docs/scaling.md. It takes a quarter of an hour on two cores, which nothing else
should use.
--quick trains two steps of the smallest, and writes no page.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from objectives import PREPARED, PROJECT, script, write

from gpt.planning.plan import duration, size
from gpt.run import cli

PAGE = PROJECT / "docs" / "scaling.md"
CASES = {  # config, the data that it is given, settings
    "story": ("story", "data/story", []),
    "tales, 1,200 steps": ("tales", "data/tales", ["--max_steps=1200"]),
    "124M, 4 windows of 256": (
        "gpt2_124m",
        "data/story",
        [
            "--max_steps=8", "--batch_size=2", "--grad_accum_steps=2", "--model.context_length=256", "--eval_every=8",
            "--eval_batches=2", "--compile=false", "--sample_every=0", "--save_every=0",
        ],
    ),
}  # fmt: skip
PROCESSES = {"1": (1, []), "2, ddp": (2, ["--parallel=ddp"]), "2, fsdp": (2, ["--parallel=fsdp"])}

# A process of train.py that leaves behind what it was told it would need, and what it needed.
WATCHED = """
import json, os, runpy, sys
from pathlib import Path
from gpt.planning import plan

told, line = {}, plan.line

def listen(needs, memory=None, seconds=None):
    told.update(memory=needs.peak, seconds=seconds)
    return line(needs, memory, seconds)

plan.line = listen
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    told["peak"] = 1024 * int(status["VmHWM"].split()[0])
    Path(f"told-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(told))
"""


@dataclass(frozen=True)
class Found:
    """What was foretold of a run, and what it took: bytes of the largest process, seconds, tokens per second."""

    memory: int
    seconds: float
    peak: int
    took: float
    speed: float


def watch(name: str, config: str, data: Path, settings: list[str], n: int, folder: Path) -> Found:
    """Train a run of n processes to its end in a folder."""
    folder.mkdir(parents=True)
    (folder / "watched.py").write_text(WATCHED, encoding="utf-8")
    launch = [] if n == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={n}", "--"]
    command = [sys.executable, *launch, "watched.py", PROJECT / "scripts" / "train.py", f"--run={folder / 'run'}"]
    command += [f"--config={PROJECT / 'configs' / config}.toml", f"--data.path={data}", *settings]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    if done.returncode:
        raise RuntimeError(f"{name} by {n} ended with status {done.returncode}: {done.stderr}")
    told = [json.loads(path.read_text()) for path in sorted(folder.glob("told-*.json"))]
    with (folder / "run" / "metrics.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    speed = int(last["tokens_seen"]) / float(last["elapsed_s"])
    peak = max(one["peak"] for one in told)
    return Found(told[0]["memory"], told[0]["seconds"], peak, float(last["elapsed_s"]), speed)


def measure(folder: Path, cases: dict, ctx: dict) -> list[str]:
    """The lines of the table."""
    lines = ["| run | processes | memory of each: foretold | measured | time: foretold | measured | tokens/s |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, (config, data, settings) in cases.items():
        if not (folder / data).exists():
            script("prepare_data", *PREPARED[data], f"--out={data}", folder=folder)
        for words, (n, options) in ctx.items():
            place = folder / f"{config}-{words.replace(', ', '-')}"
            found = watch(name, config, folder / data, [*settings, *options], n, place)
            memory, time = found.peak / found.memory - 1, found.took / found.seconds - 1
            lines.append(
                f"| {name} | {words} | {size(found.memory)} | {size(found.peak)} ({memory:+.0%}) | "
                f"{duration(found.seconds)} | {duration(found.took)} ({time:+.0%}) | {found.speed:,.0f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="two steps of the smallest, to see that it works")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        if not quick:
            write(PAGE, {"foretold": measure(Path(folder), CASES, PROCESSES)})
            return
        few = {"story": ("story", "data/story", ["--max_steps=20", "--sample_every=0"])}
        measure(Path(folder), few, PROCESSES)


if __name__ == "__main__":
    cli.run(main)
