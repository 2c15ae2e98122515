"""Compare planned memory and time with those of real runs, in one process and in two.

    python benchmarks/plan_accuracy.py
    python benchmarks/plan_accuracy.py --quick

Trains the first steps of each of CASES in a temporary folder and reads the largest resident set of each process from
/proc. The table replaces that of docs/scaling.md. It takes a quarter of an hour on two cores that nothing else uses.
--quick trains a few steps of the smallest case and writes no page.
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

from gpt.planning.plan import format_bytes, format_duration
from gpt.run import cli

PAGE = PROJECT / "docs" / "scaling.md"
CASES = {  # config, data, settings
    "story": ("story", "data/story", []),
    "tales, 1,200 steps": ("tales", "data/tales", ["--max_steps=1200"]),
    "124M, 4 examples of 256": (
        "gpt2_124m",
        "data/story",
        [
            "--max_steps=8", "--batch_size=2", "--grad_accum_steps=2", "--model.context_length=256", "--eval_every=8",
            "--eval_batches=2", "--compile=false", "--sample_every=0", "--save_every=0",
        ],
    ),
}  # fmt: skip
PROCESSES = {"1": (1, []), "2, ddp": (2, ["--parallel=ddp"]), "2, fsdp": (2, ["--parallel=fsdp"])}

# Runs train.py and writes the planned memory and time, and the measured peak, to plan-RANK.json.
WATCHED = """
import json, os, runpy, sys
from pathlib import Path
from gpt.planning import plan

record, summarize_plan = {}, plan.summarize_plan

def watch(needs, memory=None, seconds=None):
    record.update(memory=needs.peak, seconds=seconds)
    return summarize_plan(needs, memory, seconds)

plan.summarize_plan = watch
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    record["peak"] = 1024 * int(status["VmHWM"].split()[0])
    Path(f"plan-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(record))
"""


@dataclass(frozen=True)
class Measurement:
    """The planned and measured needs of a run: bytes of the largest process, and seconds; and tokens per second."""

    planned_memory: int
    planned_seconds: float | None
    memory: int
    seconds: float
    tokens_per_second: float


def watch(name: str, config: str, data: Path, settings: list[str], n: int, folder: Path) -> Measurement:
    """Train a run in n processes."""
    folder.mkdir(parents=True)
    (folder / "watched.py").write_text(WATCHED, encoding="utf-8")
    launch = [] if n == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={n}", "--"]
    command = [sys.executable, *launch, "watched.py", PROJECT / "scripts" / "train.py", f"--run={folder / 'run'}"]
    command += [f"--config={PROJECT / 'configs' / config}.toml", f"--data.path={data}", *settings]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    if done.returncode:
        raise RuntimeError(f"{name} in {n} processes ended with status {done.returncode}: {done.stderr}")
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("plan-*.json"))]
    with (folder / "run" / "metrics.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    speed = int(last["tokens_seen"]) / float(last["elapsed_s"])
    peak = max(record["peak"] for record in records)
    return Measurement(records[0]["memory"], records[0]["seconds"], peak, float(last["elapsed_s"]), speed)


def measure(folder: Path, cases: dict, processes: dict) -> list[str]:
    """Return the lines of the table."""
    lines = ["| run | processes | memory of each: planned | measured | time: planned | measured | tokens/s |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, (config, data, settings) in cases.items():
        if not (folder / data).exists():
            script("prepare_data", *PREPARED[data], f"--out={data}", folder=folder)
        for label, (n, options) in processes.items():
            run_folder = folder / f"{config}-{label.replace(', ', '-')}"
            found = watch(name, config, folder / data, [*settings, *options], n, run_folder)
            memory = f"{format_bytes(found.memory)} ({found.memory / found.planned_memory - 1:+.0%})"
            planned_time, time = "", format_duration(found.seconds)
            if found.planned_seconds is not None:  # else the run is too short for an estimate
                planned_time = format_duration(found.planned_seconds)
                time += f" ({found.seconds / found.planned_seconds - 1:+.0%})"
            lines.append(
                f"| {name} | {label} | {format_bytes(found.planned_memory)} | {memory} | {planned_time} | {time} | "
                f"{found.tokens_per_second:,.0f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of the smallest case, as a smoke test")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        if not quick:
            write(PAGE, {"plan accuracy": measure(Path(folder), CASES, PROCESSES)})
            return
        few = {"story": ("story", "data/story", ["--max_steps=20", "--sample_every=0"])}
        measure(Path(folder), few, PROCESSES)


if __name__ == "__main__":
    cli.run(main)
