"""What a config will need before it runs: parameters, memory, disk, FLOPs and time on this machine.

    python scripts/plan.py --config configs/tales.toml
    python scripts/plan.py --config configs/gpt2_124m.toml --model.vocab_size 50257 --batch_size 4

Settings come from the config file; each can be overridden here by its name. Where the prepared data is there, the
vocabulary and the number of tokens are read off it. The time is that of training and of its evaluations; the machine is
tried out for about a second to tell it.
"""

from gpt.cli import Parser, add_config_options, config_from, run
from gpt.places import find_path, run_path


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a TOML file of settings, such as those in configs/"
    )
    parser.add_argument("--run", default="plan", metavar="NAME", help="where the run would be written: its disk counts")
    add_config_options(parser)
    arguments = parser.parse_args()
    config, folder = config_from(arguments.config, arguments), run_path(arguments.run)

    from gpt import plan, runtime
    from gpt.objectives import fit
    from gpt.prepared import load_data
    from gpt.probe import probe

    runtime.tune()
    path = find_path(config.data.path)
    needs = plan.estimate_on(*fit(config, load_data(path))) if path.exists() else plan.estimate(config)
    memory, disk = runtime.memory_there_is(runtime.choose_device(config.device)), runtime.disk_there_is(folder)
    print(plan.describe(needs, memory, disk, plan.seconds(needs, probe(needs)) if needs.peak <= memory else None))
    plan.check(needs, memory, disk)


if __name__ == "__main__":
    run(main)
