"""Compare runs: the settings that differ, the results, and a picture of the validation losses.

    python scripts/compare.py --run tales-001 tales_long-001
    python scripts/compare.py --run a b c --out comparison.png

A loss per token depends on the tokenizer. Where the tokenizers differ, bits per byte are compared instead.
"""

from pathlib import Path

from gpt.run.cli import Parser, run
from gpt.system.paths import RUNS


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--run", nargs="+", required=True, metavar="NAME", help="two runs or more: names or paths")
    parser.add_argument(
        "--out", default=str(RUNS / "compare.png"), metavar="FILE", help="the picture (default: runs/compare.png)"
    )
    arguments = parser.parse_args()

    from gpt.run.compare import compare_runs

    print(compare_runs(arguments.run, Path(arguments.out)))


if __name__ == "__main__":
    run(main)
