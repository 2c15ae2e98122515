"""This project's speed and memory beside what people would use instead: training, decoding, data preparation.

    python scripts/benchmark.py
    python scripts/benchmark.py --cases train-30m decode --rounds 1
    python scripts/benchmark.py --cases prepare --text book.txt
    python scripts/benchmark.py --quick

Contenders are Hugging Face transformers where it is installed (pip install -e ".[bench]"), once as its users run it and
once with this project's allocator settings ("tuned"), a plain GPT in eager PyTorch (benchmarks/plain_gpt.py), and one
thread of tiktoken. Each runs in a process of its own, in turn over several rounds; the medians are compared. Shares are
those of the best matrix product and of the fastest memory read that this machine has shown just before; the FLOPs of a
step are counted by one formula for all (gpt/planning/flops.py). Close other programs meanwhile. It takes a quarter of an
hour on two cores, and writes a table, a CSV and a bar chart.
"""

import sys
from pathlib import Path

from gpt.run.cli import Parser, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed with gpt


def main() -> int:
    from benchmarks.cases import CASES, QUICK

    parser = Parser(__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="times that each contender runs (default: 3)")
    parser.add_argument("--text", metavar="FILE", help="a UTF-8 text for the data preparation (default: it makes one)")
    parser.add_argument(
        "--out", default="runs/benchmark", metavar="FOLDER", help="where the results go (default: runs/benchmark)"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes and one round, to see that it works")
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
