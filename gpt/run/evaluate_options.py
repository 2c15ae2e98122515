"""The options of scripts/evaluate.py, and which of them exclude each other. Importing it takes no PyTorch."""

import argparse
from typing import NamedTuple

from gpt.evaluation.tasks import GROUPS, TASKS
from gpt.run.cli import add_model_options, add_weights_option, seed
from gpt.text.sources import add_text_options

OPTIONS = ["limit", "text", "tasks", "reward", "context", "stride", "weights"]  # that not every mode knows


class Mode(NamedTuple):
    """What a command evaluates: by the loss on a text, unless an option asks for something else."""

    name: str  # of the function in gpt/run/evaluate.py
    option: str  # that asks for it, and what it does
    known: tuple[str, ...]  # of OPTIONS


MODEL = Mode("evaluate_model", "the loss on a text", ("text", "context", "stride", "weights"))
CHECKPOINTS = Mode("evaluate_checkpoints", "--checkpoint all, which checks sampled tales", ())
TASKS_ASKED = Mode("evaluate_tasks", "--tasks, which asks questions with choices", ("tasks", "limit"))
ANSWERS = Mode("evaluate_answers", "--reward, which judges whole answers", ("reward", "text"))


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model, and what it is evaluated on."""
    add_model_options(parser)
    add_weights_option(parser)
    parser.add_argument(
        "--text", metavar="TEXT",
        help="a file, folder, glob, story, tales:N:SEED or - (default: the validation split)",
    )  # fmt: skip
    add_text_options(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help=f"ask the questions of these: {', '.join((*TASKS, *GROUPS))}: all of them",
    )
    parser.add_argument(
        "--reward", metavar="NAME", help="judge its answers: forms, exact_match, 'module:function', ..."
    )
    numbers = {
        "limit": (None, "ask the first N questions of each task (default: all)"),
        "context": (None, "tokens of context (default: the model's context_length)"),
        "stride": (None, "tokens from one example to the next; below --context they overlap (default: the context)"),
        "batch_size": (None, "examples in a batch (default: 16, or fewer if they have over 1,024 tokens)"),
        "samples": (500, "tales to sample, for a run on tales or on requests for them (default: 500)"),
        "seed": (0, "seed of these samples (default: 0)"),
        "continuations": (20, "prompts to continue, for BLEU and ROUGE (default: 20)"),
    }  # fmt: skip
    for name, (default, help_text) in numbers.items():
        kind = seed if name == "seed" else int
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=help_text)


def chosen_mode(arguments: argparse.Namespace) -> Mode:
    """Return what a command evaluates. ValueError for options that exclude each other, and numbers out of range."""
    all_checkpoints = arguments.checkpoint == "all"
    asked = [(all_checkpoints or None, CHECKPOINTS), (arguments.tasks, TASKS_ASKED), (arguments.reward, ANSWERS)]
    mode = next((mode for given, mode in asked if given is not None), MODEL)
    lowest = {"samples": int(all_checkpoints), "continuations": 0, "limit": 1}
    for option, least in lowest.items():
        if (value := getattr(arguments, option)) is not None and value < least:
            raise ValueError(f"--{option} must be at least {least}, not {value}")
    for option in OPTIONS:
        if option not in mode.known and getattr(arguments, option) not in (None, "float32"):
            raise ValueError(
                "--limit needs --tasks: it is the number of questions asked of each"
                if mode is MODEL
                else f"--{option} cannot be combined with {mode.option}"
            )
    if arguments.pretrained is not None and (all_checkpoints or (arguments.text is None and mode is not TASKS_ASKED)):
        raise ValueError("published weights have no checkpoints and no validation split: name a text, --text FILE")
    return mode
