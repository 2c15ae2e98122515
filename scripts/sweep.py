"""Train one config with several values of its settings, and with several seeds: which one is best, and is it chance?

    python scripts/sweep.py --config configs/story.toml --optim.lr 3e-4,1e-3,3e-3
    python scripts/sweep.py --config configs/tales.toml --optim.lr 3e-3,1e-2,3e-2 --seeds 3 --max_steps 600
    python scripts/sweep.py --config configs/story.toml --optim.lr 3e-4,1e-3 --model.n_layers 2,4 --run sizes --jobs 2
    python scripts/sweep.py --config configs/mine.toml --data.path data/a --data.path data/b

Every setting is an option, as in train.py. Numbers, true/false and names take a list; the option of a text, in which a
comma may stand, is repeated. All combinations are trained one after another, or --jobs at a time, each with the seeds
seed, seed + 1, ... Where optim.lr is a list, optim.min_lr keeps its ratio to it, unless it is given.

Each run is a folder in runs/SWEEP, which runs.py and compare.py know as SWEEP/NAME. Ctrl-C stops the runs after their
step; the same command with --run SWEEP continues: it resumes what has stopped, and trains what a list has gained. A
diverged run is a row of the table. The end is a table, a plot, and the best setting, with the spread over the seeds.
"""

import shlex
import sys

from gpt.run.cli import Parser, add_config_options, run
from gpt.run.grid import create_grid
from gpt.system.paths import next_run, run_path


def main() -> int:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="a TOML file of settings, such as those in configs/")
    add("--run", metavar="SWEEP", help="a name under runs/, or a path (default: CONFIG-sweep-001, -002, ...)")
    add("--seeds", type=int, metavar="N", help="runs of each combination, with different seeds (default: 1)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time, which share the CPU cores (default: 1)")
    add_config_options(parser, "append")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {arguments.jobs}")
    grid = create_grid(arguments.config, arguments, arguments.seeds)
    folder = (
        run_path(arguments.run)
        if arguments.run is not None
        else next_run(arguments.config.removesuffix(".toml") + "-sweep")
    )
    command = ["python", "scripts/sweep.py", *sys.argv[1:], *([] if arguments.run else ["--run", folder.name])]

    from gpt.run.sweep import run_sweep  # imports PyTorch, which --help does not need

    return run_sweep(grid, folder, arguments.jobs, shlex.join(command))


if __name__ == "__main__":
    run(main)
