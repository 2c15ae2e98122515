"""Benchmark training, decoding and data preparation against what people would use instead.

    python scripts/benchmark.py
    python scripts/benchmark.py --cases train-30m decode --rounds 1
    python scripts/benchmark.py --cases decode --record
    python scripts/benchmark.py --redraw
    python scripts/benchmark.py --quick

The contenders are Hugging Face transformers, if installed (pip install -e ".[bench]"), with default settings and with
this project's allocator settings ("tuned"); a plain GPT in eager PyTorch (benchmarks/plain_gpt.py); and tiktoken on one
thread. Some are timed in bfloat16 or int8 too, or compiled, where the machine can do it. Each runs in its own
process, in turn over several rounds, and the medians are compared. Shares are relative to the fastest matrix product
and memory read measured on this machine at the start; one formula counts the FLOPs of all (gpt/planning/flops.py).
Close other programs first. It takes an hour and a half on two cores and writes a table, a CSV and a bar chart.

--record also merges the cases into benchmarks/results/, a file for each kind of machine, and writes the tables of
docs/speed.md from all of these files; --redraw only writes the tables.
"""

import sys
from pathlib import Path

from gpt.run.cli import Parser, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed with gpt


def main() -> int:
    from benchmarks.cases import CASES, QUICK
    from benchmarks.results import MIN_ROUNDS, redraw

    parser = Parser(__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="NAME", help=f"any of {', '.join(CASES)} (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help=f"runs per contender (default: {MIN_ROUNDS}; 1 with --quick)"
    )
    parser.add_argument("--text", metavar="FILE", help="a UTF-8 text for data preparation (default: a generated one)")
    parser.add_argument(
        "--out", default="runs/benchmark", metavar="FOLDER", help="folder for the results (default: runs/benchmark)"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes and one round, as a smoke test")
    parser.add_argument(
        "--record", action="store_true", help="merge the figures into benchmarks/results and docs/speed.md"
    )
    parser.add_argument("--redraw", action="store_true", help="only write docs/speed.md from benchmarks/results")
    arguments = parser.parse_args()
    rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else MIN_ROUNDS
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, not {rounds}")
    if arguments.text is not None and not Path(arguments.text).is_file():
        parser.error(f"--text: there is no file {arguments.text}")
    if arguments.record and (rounds < MIN_ROUNDS or arguments.quick or arguments.text is not None):
        parser.error(f"--record takes at least {MIN_ROUNDS} rounds, without --quick and --text")
    if arguments.redraw:
        redraw()
        return 0
    text = Path(arguments.text).resolve() if arguments.text is not None else None
    cases = list(dict.fromkeys(arguments.cases or (QUICK if arguments.quick else CASES)))

    from benchmarks.measure import benchmark

    rows = benchmark(cases, rounds, Path(arguments.out), arguments.quick, text, record=arguments.record)
    return 1 if any("problem" in row for row in rows) else 0


if __name__ == "__main__":
    run(main)
