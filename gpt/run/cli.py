"""The command line: options read off the config classes, and a person's mistake answered in one line, with status 2."""

import sys


def _quiet_at_ctrl_c(kind: type[BaseException], error: BaseException, trace) -> None:
    """What Python shows of an error that nothing catches: nothing where Ctrl-C came before `run`, among the imports."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _quiet_at_ctrl_c  # before the imports, which take most of the time until then

import argparse
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from gpt.config import TrainConfig, config_fields, from_dict, read_toml
from gpt.system.errors import did_you_mean
from gpt.system.paths import existing_run, find_path

LONGEST_MESSAGE = 2000  # characters


class Parser(argparse.ArgumentParser):
    """argparse, but an error is a ValueError, whose sentence `run` prints without the usage text."""

    def __init__(self, doc: str):
        super().__init__(
            usage="%(prog)s [options]",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("type", int, lambda text: _number(text, int))
        self.register("type", float, lambda text: _number(text, float))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """As argparse's, but a reader that has left is noticed here, within `run`, and not when Python ends."""
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        """Raise the sentence, without argparse's "argument" before the option's name."""
        option, separator, complaint = message.removeprefix("argument ").partition(": ")
        if complaint == "expected one argument":
            complaint = f"a value is missing (one that begins with a dash is written {option}=-...)"
        raise ValueError(option + (" " if complaint.startswith("takes ") else separator) + complaint)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse's, but an unknown option is answered with the nearest known one, before anything else."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for name, _, value in (word.partition("=") for word in (sys.argv[1:] if args is None else args)):
            if name.startswith("--") and value == "--":  # argparse would take it for the end of the options
                self.error(f"{name}: '--' is no value")
            if name.startswith("--") and name not in known:
                self.error(f"unknown option {name}: {did_you_mean(name[2:], [option[2:] for option in known], '--')}")
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}: a value that holds spaces is written in quotes")
        return parsed


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main and exit with its status: a person's mistake is one line and 2, a diverged loss one and 1.

    With GPT_TRACEBACK=1 in the environment a mistake shows where it was raised.
    """
    _ready_streams()
    status = 0
    # as an exception SIGTERM passes through all that clears up
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        status = 130
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        no_memory = isinstance(error, MemoryError) or (type(error) is RuntimeError and "alloc" in str(error).lower())
        if os.environ.get("GPT_TRACEBACK") or (isinstance(error, RuntimeError) and not no_memory):
            raise
        sentence = "not enough memory: a smaller batch, context or text takes less" if no_memory else _sentence(error)
        print(f"{Path(sys.argv[0]).name}: error: {sentence}", file=sys.stderr)
        status = 1 if isinstance(error, FloatingPointError) else 2
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)


def _ready_streams() -> None:
    """Output that no text can break: a console of ASCII or cp1252 shows ? for what it lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)  # a line is in `| tee log` when it is printed


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    words = "\\n".join(str(error).splitlines())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= LONGEST_MESSAGE else f"{shown[: LONGEST_MESSAGE // 2]} ... {shown[-300:]}"


# --- configs ----------------------------------------------------------------------------------------------------------


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """One option per field of TrainConfig, those of nested tables with a dot: --max_steps, --model.n_layers, ..."""
    groups: dict[str, Any] = {}
    for name, field in config_fields(TrainConfig):
        table = name.rpartition(".")[0]
        if table not in groups:
            groups[table] = parser.add_argument_group(f"[{table}]" if table else "the run")
        words = field.metadata["help"].replace("%", "%%")
        bare = {"nargs": "?", "const": "true"} if field.type is bool else {}
        default = (
            "empty" if field.default == "" else str(field.default).lower() if field.type is bool else field.default
        )
        groups[table].add_argument(
            f"--{name}", dest=name, default=argparse.SUPPRESS, help=f"{words} (default: {default})",
            metavar=_metavar(field.type), **bare,
        )  # fmt: skip


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}[kind]


def config_from(path: str | Path, arguments: argparse.Namespace) -> TrainConfig:
    """The config of a TOML file, with the options given on the command line over it."""
    values = read_toml(find_path(path))
    try:
        config = from_dict(TrainConfig, values)  # a mistake in the file is told apart from one on the command line
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return with_options(config, arguments)


def with_options(config: TrainConfig, arguments: argparse.Namespace) -> TrainConfig:
    """A config with the options given on the command line over it."""
    values = dataclasses.asdict(config)
    for name, field in config_fields(TrainConfig):
        if name in vars(arguments):
            *tables, last = name.split(".")
            place = values
            for table in tables:
                place = place[table]
            place[last] = _from_text(name, vars(arguments)[name], field.type)
    return from_dict(TrainConfig, values)


def _from_text(name: str, text: str, kind: Any) -> Any:
    """A value as it is typed on the command line."""
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
    """The options that say which checkpoint of which run is used: --run and --checkpoint."""
    parser.add_argument("--run", metavar="NAME", help="a name under runs/, or a path")
    parser.add_argument(
        "--checkpoint", default="best", metavar="NAME", help="best, last, or a name such as step-000500 (default: best)"
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is used, and where: a run's, or published weights, and --device."""
    add_run_options(parser)
    parser.add_argument(
        "--pretrained", metavar="NAME",
        help="instead of a run: gpt2, gpt2-medium, gpt2-large, gpt2-xl or hub:OWNER/NAME, downloaded once; a folder "
        "that export.py or transformers wrote; a .safetensors, .bin or .pth file",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)"
    )


def chosen_run(arguments: argparse.Namespace) -> Path | None:
    """The folder of the run that these options name; None where they name published weights. ValueError unless they
    name one of the two, and a run that is there."""
    if (arguments.run is None) == (arguments.pretrained is None):
        raise ValueError("name a run (--run NAME) or published weights (--pretrained NAME), one of them")
    return None if arguments.run is None else existing_run(arguments.run)


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """The option --weights."""
    parser.add_argument(
        "--weights", choices=["float32", "int8"], default="float32",
        help="int8: a quarter of the bytes to read for each token, a slightly other loss; CPU only (default: float32)",
    )  # fmt: skip
