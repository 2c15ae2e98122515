"""Estimate the parameters, memory, disk, FLOPs and time of a run, on this machine or on another.

    python scripts/plan.py --config configs/tales.toml
    python scripts/plan.py --config configs/gpt2_124m.toml --model.vocab_size 50257 --batch_size 4
    python scripts/plan.py --config configs/gpt2_124m.toml --model.vocab_size 50257 --hardware h100x8
    python scripts/plan.py --config configs/tales.toml --sweep batch_size=4,8,16,32

Settings come from the config file; an option of the same name overrides each. If the prepared data exists, it gives the
vocabulary and the number of tokens. The time covers training and evaluation. It is measured on this machine in about a
second, and estimated from the data sheet for other hardware. --sweep compares plans for several values of a setting, as
a table and as a plot.
"""

import sys
from argparse import Namespace
from pathlib import Path

from gpt.config import TrainConfig, config_fields
from gpt.planning.hardware import get_hardware
from gpt.run.cli import Parser, add_config_options, check_prepared, config_from, run, with_options
from gpt.system.errors import did_you_mean
from gpt.system.paths import find_path, run_path


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="a TOML file of settings, such as those in configs/")
    add("--run", default="plan", metavar="NAME", help="the run's name or path, whose disk must hold the checkpoints")
    machines = "this (default), thisx2 (two processes), m3, t4, rtx3090, rtx4090, l4, a100, h100, h200, h100x8 (eight)"
    add("--hardware", default="this", metavar="NAME", help=machines)
    add("--sweep", metavar="NAME=A,B,C", help="compare plans for these values of a setting")
    add("--out", default="plan.png", metavar="FILE", help="the plot of a sweep (default: plan.png)")
    add_config_options(parser)
    arguments = parser.parse_args()
    config, hardware = config_from(arguments.config, arguments), get_hardware(arguments.hardware)
    folder = run_path(arguments.run)
    name, _, values = (arguments.sweep or "").partition("=")
    if arguments.sweep and not values:
        parser.error(f"--sweep takes a setting and its values, as in batch_size=4,8,16, not {arguments.sweep!r}")
    known = [setting for setting, _ in config_fields(TrainConfig)]
    if name and name not in known:
        parser.error(f"--sweep: unknown setting {name}: {did_you_mean(name, known)}")
    sweep = {value: with_options(config, Namespace(**{name: value})) for value in values.split(",") if values}

    from gpt.exchange.models import resolve_config
    from gpt.planning import plan, throughput
    from gpt.system.device import choose_device
    from gpt.system.memory import available_disk, set_allocator_flags
    from gpt.token_files import load_data

    def estimate(config) -> plan.Plan:
        path = find_path(config.data.path)
        if path.exists():
            return plan.estimate_for_data(*resolve_config(config, load_data(path)), hardware)
        if not config.model.vocab_size or config.size_by_text:
            check_prepared(arguments.config, config, ", or give --model.vocab_size")
        return plan.estimate(config, hardware=hardware)

    set_allocator_flags()
    memory = int(hardware.memory) if hardware.device else plan.memory_per_process(config, hardware.n)
    disk = None if hardware.device else available_disk(folder)  # that of another machine is not known
    plans = {value: estimate(changed) for value, changed in sweep.items()} or {"": estimate(config)}
    if not hardware.device and (notice := throughput.busy_notice(choose_device(config.device))):
        print(notice, file=sys.stderr)
    times = throughput.estimate_times(list(plans.values()), memory)
    if sweep:
        from gpt.run.plots import plot_plans

        print(plan.format_sweep(name, plans, times, memory))
        plot_plans(name, plans, times, memory, Path(arguments.out))
        print(f"\nplot  {arguments.out}")
        return
    print(plan.format_plan(plans[""], memory, disk, times[0]))
    plan.check_fits(plans[""], memory, disk)


if __name__ == "__main__":
    run(main)
