"""The benchmark itself: starts each contender in a process of its own, in turn, and makes a table of what they print.

An allocator that is tuned in a shared process would flatter the others. Linux counts what a parent has had in RAM among
its child's peak, so this process loads nothing large before the last of them has ended.
"""

import contextlib
import csv
import importlib.util
import itertools
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks import results as recorded
from benchmarks.cases import CASES, NEEDS, Case
from gpt.system.files import atomic_file, write_text

PROJECT = Path(__file__).resolve().parent.parent
PEAKS = ("matmul", "onednn", "bfloat16", "bandwidth")  # the machine's rates, as benchmarks/machine.py names them
MACHINE_SECONDS = 28  # that measuring them takes
COLUMNS = [
    "case", "contender", "rounds", "seconds", "lowest", "highest", "units", "per_second", "times_gpt",
    "share_of_peak", "share_of_bandwidth", "peak_mb", "flops", "bytes", "parameters", "first_loss", "last_loss",
    "tokens", "problem",
]  # fmt: skip


def benchmark(
    names: list[str],
    rounds: int,
    out: Path,
    quick: bool = False,
    text: Path | None = None,
    log: Callable[[str], None] = print,
    record: bool = False,
) -> list[dict]:
    """Time the cases called `names`, their contenders in turn over so many rounds, and write benchmark.csv, .txt and
    .png into the folder `out`; the rows of the CSV. `text` is what the data preparation reads; it makes one otherwise.
    `record` merges the figures into this kind of machine's file and page, see benchmarks/results.py.

    A contender that fails has a row with what went wrong, in words, and the others go on; one that this machine cannot
    run has none. Ctrl-C ends the timing; what there is by then is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    cases = {name: CASES[name].quick() if quick else CASES[name] for name in names}
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    for package in missing:
        if any(_package(c) == package for case in cases.values() for c in case.contenders):
            log(f"{package} is not installed, and is left out; it comes with: pip install {package}")
    entries = {name: [c for c in case.contenders if _package(c) not in missing] for name, case in cases.items()}
    jobs = [("machine", "", 0)]
    jobs += [(name, c, n) for name in names for n in range(rounds) for c in entries[name]]
    expected = [cases[name].seconds if name in cases else 2.0 if quick else MACHINE_SECONDS for name, _, _ in jobs]
    log(f"{len(jobs)} processes, one after the other: {_duration(sum(expected))} on two cores")

    found: dict[tuple[str, str], list[dict]] = defaultdict(list)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(KeyboardInterrupt):
        if "prepare" in cases and text is None:
            text = make_text(Path(scratch) / "text.txt", int(cases["prepare"].megabytes * 1e6))
        for number, (name, contender, n) in enumerate(jobs, 1):
            results = found[name, contender]
            if results and results[-1].keys() & {"problem", "left_out"}:
                continue
            job = {"case": name, "contender": contender, "quick": quick, "folder": scratch, "text": str(text or "")}
            results.append(run(job))
            passed, ahead = sum(expected[:number]), sum(expected[number:])
            left = _duration((time.perf_counter() - start) / passed * ahead) + " left" if ahead else "done"
            label = f"{name:<15} {contender:<27} round {n + 1}" if contender else name
            log(f"{label:<52} {_in_short(results[-1]):<42} {left}".rstrip())
    machine, *_ = found.pop(("machine", ""), None) or [{"problem": "stopped"}]
    rows = [_row(name, c, results) for (name, c), results in found.items() if results and "left_out" not in results[-1]]
    _compare(rows, machine)
    _write(rows, machine, cases, out, log)
    if record:
        titles = {name: case.title for name, case in cases.items()}
        recorded.record(rows, machine, titles, recorded.FOLDER, recorded.PAGE, log)
    return rows


def _package(contender: str) -> str:
    return contender.partition(" ")[0]


def _duration(seconds: float) -> str:
    return f"about {math.ceil(seconds / 60)} min" if seconds > 90 else f"about {seconds:.0f} s"


def _in_short(result: dict) -> str:
    if "problem" in result:
        return result["problem"]
    if "left_out" in result:
        return f"left out: {result['left_out']}"
    if "bandwidth" in result:
        return _machine_line(result)
    rate = _rate(result["units"] / result["seconds"], "tokens" in result)
    return f"{result['seconds']:8.3f} s {rate:>16} {result['peak_bytes'] / 1e6:>8,.0f} MB"


def _rate(per_second: float, of_bytes: bool) -> str:
    return f"{per_second / 1e6:,.2f} MB/s" if of_bytes else f"{per_second:,.{1 if per_second < 100 else 0}f} tokens/s"


def _machine_line(rates: dict) -> str:
    if "problem" in rates:
        return f"the machine's own rates are not known: {rates['problem']}"
    return f"{recorded.title(rates['machine'])}: {recorded.rates_line(rates)}"


# --- one process ------------------------------------------------------------------------------------------------------


def run(job: dict) -> dict:
    """What the process of a job prints; {"problem": words} where it dies or prints nothing of the kind."""
    command = [sys.executable, "-m", "benchmarks.contenders", json.dumps(job)]
    done = subprocess.run(
        command, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode == 0:
        try:
            return json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return {"problem": "ended without a result"}
    return {"problem": ending(done.returncode, done.stderr)}


def ending(status: int, errors: str) -> str:
    """Why a process ended, in words: the signal that killed it, or the last line that it wrote to stderr."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + ", as the system does where memory runs out" * (name == "SIGKILL")
    last = (errors.strip().splitlines() or ["it said nothing"])[-1].strip()
    return f"died with status {status}: {last}"


def make_text(path: Path, n_bytes: int, seed: int = 0) -> Path:
    """Write a text of about so many bytes, for tokenizers: words drawn by Zipf's law (Zipf 1949) from 50,000, which
    are made up letter by letter, each after the two before it as in the bundled story. ASCII; the path."""
    rng = random.Random(seed)
    story = " ".join((PROJECT / "data" / "story.txt").read_text(encoding="utf-8").lower().split())
    letters = [c for c in story if c.isascii() and (c.isalpha() or c == " ")]
    following = defaultdict(list)
    for first, second, third in zip(letters, letters[1:], letters[2:], strict=False):
        following[first, second].append(third)
    words: dict[str, None] = {}
    while len(words) < min(50_000, n_bytes // 20):
        word, pair = "", (" ", rng.choice(following[" ", " "] or letters))
        while pair[1] != " ":
            word, pair = word + pair[1], (pair[1], rng.choice(following[pair] or [" "]))
        words[word] = None
    ranked = sorted(words, key=len)  # the short ones are frequent
    weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(ranked))))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while file.tell() < n_bytes:
            lines = (rng.choices(ranked, cum_weights=weights, k=rng.randint(4, 20)) for _ in range(200))
            file.write("".join(f"{' '.join(line).capitalize()}.\n" for line in lines))
    return path


# --- rows, a table, a picture -----------------------------------------------------------------------------------------


def _row(name: str, contender: str, results: list[dict]) -> dict:
    """The medians of a contender's rounds; its peak memory is the largest of them."""
    row = {"case": name, "contender": contender, "rounds": len(results)}
    if "problem" in results[-1]:
        return row | {"problem": results[-1]["problem"]}
    row |= {key: value for key, value in results[-1].items() if key in COLUMNS}
    seconds = [result["seconds"] for result in results]
    row |= {"seconds": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds)}
    row["per_second"] = row["units"] / row["seconds"]
    row["peak_mb"] = max(result["peak_bytes"] for result in results) / 1e6
    return row


def _compare(rows: list[dict], machine: dict) -> None:
    """Adds to the rows their time over gpt's, and their shares of what the machine can do."""
    known = "problem" not in machine
    ours = {row["case"]: row for row in rows if row["contender"] == "gpt" and "seconds" in row}
    for row in (row for row in rows if "seconds" in row):
        reference = ours.get(row["case"])
        if reference and abs(row.get("tokens", 0) - reference.get("tokens", 0)) > 2:  # where splits cut a word
            row["problem"] = f"not the same work: {row['tokens']:,} tokens, and gpt's {reference['tokens']:,}"
        elif reference:
            row["times_gpt"] = row["seconds"] / reference["seconds"]
        if "flops" in row and known:
            half = "bfloat16" in row["contender"]
            peak = machine["bfloat16"] if half else max(machine["matmul"], machine["onednn"])
            row["share_of_peak"] = row["flops"] / row["seconds"] / peak
        if "bytes" in row and known:
            row["share_of_bandwidth"] = row["bytes"] / row["seconds"] / machine["bandwidth"]


def table(rows: list[dict], machine: dict, cases: dict[str, Case]) -> str:
    """The rows as a text, a block for each case; a step of decoding or preparing is all of its work."""
    lines = [_machine_line(machine)]
    for name, case in cases.items():
        head = f"{'s/step':>9}{'rate':>17}{'time/gpt':>10}{'of peak':>9}{'of read':>9}{'peak MB':>9}"
        lines += ["", f"{case.title:<44}{head}"]
        for row in (row for row in rows if row["case"] == name):
            if "problem" in row:
                lines.append(f"  {row['contender']:<42}  {row['problem']}")
                continue
            ratio = f"{row['times_gpt']:.2f}" if "times_gpt" in row else ""
            shares = [f"{row[key]:.0%}" if key in row else "" for key in ("share_of_peak", "share_of_bandwidth")]
            rate = _rate(row["per_second"], "tokens" in row)
            lines.append(
                f"  {row['contender']:<42}{row['seconds']:9.3f}{rate:>17}{ratio:>10}{shares[0]:>9}{shares[1]:>9}"
                f"{row['peak_mb']:9,.0f}"
            )
    return "\n".join(lines)


def _write(rows: list[dict], machine: dict, cases: dict[str, Case], out: Path, log: Callable[[str], None]) -> None:
    from gpt.run.plots import plot_benchmark  # which brings PyTorch along

    rates = [{"case": "machine", "contender": key, "per_second": machine[key]} for key in PEAKS if key in machine]
    with (
        atomic_file(out / "benchmark.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([*rates, *rows])
    text = table(rows, machine, cases)
    write_text(out / "benchmark.txt", text + "\n")
    titles = {name: case.title for name, case in cases.items()}
    labels = [_rate(row["per_second"], "tokens" in row) if "per_second" in row else "" for row in rows]
    plot_benchmark(
        [row | {"rate": label} for row, label in zip(rows, labels, strict=True)], titles, out / "benchmark.png"
    )
    log(f"\n{text}\n\n{out / 'benchmark.csv'}, benchmark.txt and benchmark.png are written")
