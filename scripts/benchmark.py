"""Benchmark training, decoding and data preparation against what people would use instead.

    python scripts/benchmark.py
    python scripts/benchmark.py --cases train-30m decode --rounds 1
    python scripts/benchmark.py --cases prepare --text book.txt
    python scripts/benchmark.py --quick

The contenders are Hugging Face transformers, if installed (pip install -e ".[bench]"), with default settings and with
this project's allocator settings ("tuned"); a plain GPT in eager PyTorch (benchmarks/plain_gpt.py); and tiktoken on one
thread. Each runs in its own process, in turn over several rounds, and the medians are compared. Shares are relative to
the fastest matrix product and memory read measured on this machine at the start; one formula counts the FLOPs of all
(gpt/planning/flops.py). Close other programs first. It takes a quarter of an hour on two cores and writes a table, a
CSV and a bar chart.
"""

import sys
from pathlib import Path

from gpt.run.cli import Parser, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed with gpt


def main() -> int:
    from benchmarks.cases import CASES, QUICK

    parser = Parser(__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="NAME", help=f"any of {', '.join(CASES)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="runs per contender (default: 3)")
    parser.add_argument("--text", metavar="FILE", help="a UTF-8 text for data preparation (default: a generated one)")
    parser.add_argument(
        "--out", default="runs/benchmark", metavar="FOLDER", help="folder for the results (default: runs/benchmark)"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes and one round, as a smoke test")
    arguments = parser.parse_args()
    rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else 3
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, not {rounds}")
    if arguments.text is not None and not Path(arguments.text).is_file():
        parser.error(f"--text: there is no file {arguments.text}")
    text = Path(arguments.text).resolve() if arguments.text is not None else None
    cases = list(dict.fromkeys(arguments.cases or (QUICK if arguments.quick else CASES)))

    from benchmarks.measure import benchmark

    rows = benchmark(cases, rounds, Path(arguments.out), arguments.quick, text)
    return 1 if any("problem" in row for row in rows) else 0


if __name__ == "__main__":
    run(main)
