"""What a config will need before it runs: parameters, memory, disk, FLOPs and time, on this machine or on another.

    python scripts/plan.py --config configs/tales.toml
    python scripts/plan.py --config configs/gpt2_124m.toml --model.vocab_size 50257 --batch_size 4
    python scripts/plan.py --config configs/gpt2_124m.toml --model.vocab_size 50257 --hardware h100x8
    python scripts/plan.py --config configs/tales.toml --sweep batch_size=4,8,16,32

Settings come from the config file; each can be overridden here by its name. Where the prepared data is there, the
vocabulary and the number of tokens are read off it. The time is that of training and of its evaluations; this machine
is tried out for about a second to tell it, another's is read off its data sheet. --sweep sets one beside another for
each value of a setting, and draws them.
"""

from argparse import Namespace
from pathlib import Path

from gpt.planning.hardware import hardware
from gpt.run.cli import Parser, add_config_options, config_from, run, with_options
from gpt.system.errors import did_you_mean
from gpt.system.paths import find_path, run_path


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a TOML file of settings, such as those in configs/"
    )
    parser.add_argument("--run", default="plan", metavar="NAME", help="where the run would be written: its disk counts")
    parser.add_argument(
        "--hardware", default="this", metavar="NAME",
        help="this (the default), thisx2 (two processes), m3, rtx3090, rtx4090, l4, a100, h100, h200, h100x8 (eight)",
    )  # fmt: skip
    parser.add_argument("--sweep", metavar="NAME=A,B,C", help="a plan for each of these values of a setting")
    parser.add_argument("--out", default="plan.png", metavar="FILE", help="the plot of a sweep (default: plan.png)")
    add_config_options(parser)
    arguments = parser.parse_args()
    config, machine = config_from(arguments.config, arguments), hardware(arguments.hardware)
    folder = run_path(arguments.run)
    name, _, values = (arguments.sweep or "").partition("=")
    if arguments.sweep and not values:
        parser.error(f"--sweep takes a setting and its values, as batch_size=4,8,16, not {arguments.sweep!r}")
    if name and name not in config.flat():
        parser.error(f"--sweep: unknown setting {name}: {did_you_mean(name, list(config.flat()))}")
    configs = {value: with_options(config, Namespace(**{name: value})) for value in values.split(",") if values}

    from gpt.exchange.models import resolve_config
    from gpt.planning import plan
    from gpt.planning.throughput import probe
    from gpt.system.memory import available_disk, set_allocator_flags
    from gpt.token_files import load_data

    set_allocator_flags()

    def needs(config):
        path = find_path(config.data.path)
        if path.exists():
            return plan.estimate_on(*resolve_config(config, load_data(path)), machine)
        return plan.estimate(config, hardware=machine)

    def seconds(needs):
        return plan.seconds(needs, plan.data_sheet(needs) if machine.device else probe(needs))

    memory = int(machine.memory) if machine.device else plan.memory_per_process(config, machine.n)
    disk = available_disk(folder)
    if configs:
        plans = {value: needs(changed) for value, changed in configs.items()}
        times = [seconds(found) if found.peak <= memory else None for found in plans.values()]
        print(plan.compare(name, plans, times, memory))
        from gpt.run.plots import plot_plans

        plot_plans(name, plans, times, memory, Path(arguments.out))
        print(f"\nplot  {arguments.out}")
        return
    found = needs(config)
    print(plan.describe(found, memory, disk, seconds(found) if found.peak <= memory else None))
    plan.check(found, memory, disk)


if __name__ == "__main__":
    run(main)
