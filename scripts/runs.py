"""List the runs below runs/: state, steps, best validation loss, time, and the settings that differ.

    python scripts/runs.py
    python scripts/runs.py --sort loss
    python scripts/runs.py --run "tales*" story-001
    python scripts/runs.py --json

A run is training now, finished, stopped (--resume continues it), diverged (its loss was not finite), empty (nothing is
logged yet) or damaged. There is a table for each data folder, since a loss per token is comparable on the same data
only; bits per byte are comparable across tokenizers. Runs are only read, also while they train.
"""

from gpt.run.cli import Parser, run
from gpt.run.runs import SORTS, format_runs, list_runs, sort_runs, to_json


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--run", nargs="+", default=[], metavar="NAME", help="names or patterns of runs, or folders (default: runs/)")
    add("--sort", choices=SORTS, default="name", metavar="KEY", help=f"{', '.join(SORTS)} (default: name)")
    add("--json", action="store_true", help="a JSON list for programs, with all settings; null is unknown")
    arguments = parser.parse_args()
    runs = sort_runs(list_runs(arguments.run), arguments.sort)
    if arguments.json:
        print(to_json(runs))
    elif runs:
        print(format_runs(runs))
    else:
        print("no runs under runs/ yet: python scripts/train.py --config configs/story.toml")


if __name__ == "__main__":
    run(main)
