"""Train a GPT.

    python scripts/train.py --config configs/story.toml
    python scripts/train.py --config configs/story.toml --run mine --max_steps 200 --model.n_layers 4
    python scripts/train.py --run mine --resume
    python scripts/train.py --run mine --resume --checkpoint step-000500
    torchrun --nproc-per-node 4 -- scripts/train.py --config configs/tales.toml --run mine
    python scripts/train.py --config configs/story.toml --run mine --resume

Settings come from the config file; an option overrides a setting by its name. The run is written to runs/NAME: metrics,
a plot, samples, checkpoints. Ctrl-C finishes the step and saves; --resume continues from there, with the settings in
runs/NAME/config.toml. The last form starts the run or, if it exists, continues it: use it for jobs that are restarted.
"""

import os

from gpt.run.cli import Parser, add_config_options, check_prepared, config_from, run, with_options
from gpt.system.paths import existing_run, next_run, run_path


def main() -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return train()
    from gpt.system.distributed import distributed_context  # imports PyTorch, which --help does not need

    with distributed_context() as ctx:
        return train(ctx)


def train(ctx=None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings, such as those in configs/")
    parser.add_argument("--run", metavar="NAME", help="a name under runs/, or a path (default: CONFIG-001, -002, ...)")
    parser.add_argument("--resume", action="store_true", help="continue from the run's last checkpoint")
    parser.add_argument("--checkpoint", metavar="NAME", help="with --resume: continue from best or step-000500 instead")
    add_config_options(parser)
    arguments = parser.parse_args()
    if arguments.config is None and not arguments.resume:
        parser.error("name a config (--config configs/story.toml), or a run to resume (--run NAME --resume)")
    if arguments.resume and arguments.run is None:
        parser.error("--resume needs the name of the run: --run NAME")
    if arguments.checkpoint and not arguments.resume:
        parser.error("--checkpoint needs --resume: it names the checkpoint of a run to continue from")

    if arguments.config is not None:
        folder = run_path(arguments.run) if arguments.run is not None else next_run(arguments.config)
        config = config_from(arguments.config, arguments)
        check_prepared(arguments.config, config)
    else:
        from gpt.checkpoint import RunFolder

        folder = existing_run(arguments.run)
        config = with_options(RunFolder(folder).config(), arguments)

    # PyTorch is imported once the arguments are known to be good
    from gpt.run.callbacks import Summary
    from gpt.run.training import resume_run, start_run
    from gpt.system.distributed import SINGLE_PROCESS
    from gpt.system.memory import set_allocator_flags

    set_allocator_flags()
    ctx = ctx or SINGLE_PROCESS
    folder = ctx.broadcast(str(folder))  # rank 0 chooses the next free number
    if arguments.resume:
        trainer = resume_run(folder, config, ctx=ctx, checkpoint=arguments.checkpoint)
    else:
        trainer = start_run(config, folder, ctx=ctx)
    trainer.callbacks.append(Summary())
    trainer.train()
    return 128 + trainer.stopped_by if trainer.stopped_by else 0


if __name__ == "__main__":
    run(main)
