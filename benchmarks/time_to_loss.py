"""Measure how soon the fast and the modern settings reach the final loss of the plain settings.

    python benchmarks/time_to_loss.py
    python benchmarks/time_to_loss.py --input shakespeare.txt --seeds 1 2 3

For each seed it trains configs/shakespeare_char_plain.toml, then _fast.toml (the same model, with Muon), then
_modern.toml (today's block), each in its own process with all cores. The target is plain's mean final loss over the
whole validation split. Seconds are wall-clock time from the start of a process to its end. The text is prepared first
if necessary; without a network, --input names a file with it.
"""

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from gpt.run import cli

PROJECT = Path(__file__).resolve().parent.parent
CONFIGS = {name: PROJECT / "configs" / f"shakespeare_char_{name}.toml" for name in ("plain", "fast", "modern")}
DATA = PROJECT / "data" / "shakespeare_char"


@dataclass(frozen=True)
class Run:
    """One finished `train.py`."""

    name: str  # plain, fast or modern
    seed: int
    seconds: float  # wall-clock time of the process
    history: tuple[tuple[int, float, float], ...]  # step, seconds, nats per character

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        return self.history[-1][0]

    @property
    def training_seconds(self) -> float:
        """Seconds of training until the last evaluation, from metrics.csv."""
        return self.history[-1][1]

    @property
    def loss(self) -> float:
        """The final validation loss in nats per character."""
        return self.history[-1][2]

    def seconds_to(self, loss: float) -> float | None:
        """Return the seconds of training until `loss` was reached, or None."""
        return next((seconds for _, seconds, reached in self.history if reached <= loss), None)


def train(name: str, seed: int, data: Path, settings: tuple[str, ...] = ()) -> Run:
    """Train a config of CONFIGS in its own process; `settings` are options of train.py. RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        _script("train", f"--config={CONFIGS[name]}", f"--run={folder}/run", f"--seed={seed}", f"--data.path={data}",
                *settings)  # fmt: skip
        seconds = time.perf_counter() - start
        with Path(folder, "run", "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["val_loss"]]
    history = tuple((int(row["step"]), float(row["elapsed_s"]), float(row["val_loss"])) for row in rows)
    return Run(name, seed, seconds, history)


def train_all(data: Path, seeds: list[int], settings: tuple[str, ...] = ()) -> Iterator[Run]:
    """Yield the runs of each seed as they end."""
    return (train(name, seed, data, settings) for seed in seeds for name in CONFIGS)


def table(runs: list[Run]) -> list[tuple[str, ...]]:
    """Return a header, a row for each run, and for each other setting the ratios of its median times to plain's.

    The target is the mean of plain's final losses.
    """
    by_name = {name: [one for one in runs if one.name == name] for name in CONFIGS}
    plain = by_name.pop("plain")
    target = statistics.fmean(one.loss for one in plain)
    rows = [("settings", "seed", "steps", "val loss", "seconds", "in training", f"to reach {target:.3f}")]
    for one in runs:
        times = (one.seconds, one.training_seconds, one.seconds_to(target))
        shown = ["not reached" if time is None else f"{time:.1f}" for time in times]
        rows.append((one.name, str(one.seed), f"{one.steps:,}", f"{one.loss:.4f}", *shown))
    for name, others in by_name.items():
        ratios = [
            statistics.median(map(seconds, others)) / statistics.median(map(seconds, plain))
            for seconds in (attrgetter("seconds"), attrgetter("training_seconds"))
        ]
        rows.append((f"{name} / plain", "", "", "", *(f"{ratio:.3f}" for ratio in ratios), ""))
    return rows


def _script(name: str, *arguments: str) -> None:
    """Run a script of scripts/. RuntimeError with its stderr if it fails."""
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts" / f"{name}.py", *arguments],
        cwd=PROJECT, capture_output=True, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}.py ended with status {done.returncode}: {done.stderr.strip()}")


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data", default=DATA, type=Path, metavar="FOLDER", help="default: data/shakespeare_char")
    parser.add_argument(
        "--input", default="shakespeare", metavar="TEXT", help="the text to prepare if FOLDER does not exist"
    )
    parser.add_argument("--seeds", default=[1, 2, 3], type=int, nargs="+", metavar="N", help="default: 1 2 3")
    arguments = parser.parse_args()
    data, text = arguments.data.resolve(), Path(arguments.input)
    if not (data / "meta.json").is_file():
        text = text.resolve() if text.exists() else text  # otherwise a name that prepare_data.py knows
        _script("prepare_data", f"--input={text}", "--tokenizer=char", f"--out={data}")
    runs = []
    for one in train_all(data, arguments.seeds):
        runs.append(one)
        print(f"{one.name}, seed {one.seed}: {one.loss:.4f} after {one.seconds:.1f} s")
    rows = table(runs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


if __name__ == "__main__":
    cli.run(main)
