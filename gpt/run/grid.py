"""The runs of a sweep: every combination of the values that options list, each with several seeds."""

import itertools
import re
import shlex
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from gpt.config import TrainConfig, config_fields, from_dict
from gpt.run.cli import config_from, option_value
from gpt.run.runs import short_name, show_value

MAX_LENGTH = 40  # characters of a value in a folder's name


@dataclass(frozen=True)
class Point:
    """One combination of the swept values, with its config for each seed."""

    values: tuple[Any, ...]  # one for each setting of Grid.swept
    configs: dict[str, TrainConfig]  # by the name of the run's folder, in the order of the seeds

    def label(self, swept: Iterable[str]) -> str:
        """Return the combination as text: lr 0.001, n_layers 4."""
        return label(swept, self.values)


@dataclass(frozen=True)
class Grid:
    """A sweep before it is run."""

    config_path: str
    swept: dict[str, list[Any]]  # the values of each setting that has several; the seed is not among them
    fixed: dict[str, Any]  # the other settings from the command line
    seeds: list[int]
    points: list[Point]

    @property
    def configs(self) -> dict[str, TrainConfig]:
        """The configs of all runs, by the names of their folders."""
        return {name: config for point in self.points for name, config in point.configs.items()}

    def derived(self, point: Point) -> dict[str, Any]:
        """Return the settings of a point that the command line changes: the fixed ones, its own, and min_lr."""
        own = dict(zip(self.swept, point.values, strict=True))
        if "optim.lr" in own and "optim.min_lr" not in {**self.swept, **self.fixed}:
            own["optim.min_lr"] = next(iter(point.configs.values())).optim.min_lr
        return {**self.fixed, **own}

    def train_command(self, point: Point) -> str:
        """Return the command that trains with the values of a point."""
        options = (f"--{name} {shlex.quote(show_value(value))}" for name, value in self.derived(point).items())
        return " ".join(["python scripts/train.py --config", shlex.quote(self.config_path), *options])


def label(swept: Iterable[str], values: Iterable[Any]) -> str:
    """Return values with the short names of their settings: lr 0.001, n_layers 4."""
    return ", ".join(f"{short_name(name)} {show_value(value)}" for name, value in zip(swept, values, strict=True))


def create_grid(config_path: str, arguments: Namespace, n_seeds: int | None) -> Grid:
    """Return the grid of a config file and the options of `add_config_options(parser, "append")`.

    A number, true/false or a choice may be a list, 1e-4,3e-4; a text may itself have commas, so its option is repeated
    instead. Where lr is swept, min_lr keeps its ratio to lr unless it is given. ValueError for any value that is not
    allowed.
    """
    base = config_from(config_path, Namespace())
    given = {name: _values(name, field.type, vars(arguments)[name])
             for name, field in config_fields(TrainConfig) if name in vars(arguments)}  # fmt: skip
    seeds = given.pop("seed", [base.seed])
    if n_seeds is not None:
        if len(seeds) > 1:
            raise ValueError("give either --seeds, a number of seeds, or a list of them as --seed")
        if n_seeds < 1:
            raise ValueError(f"--seeds must be at least 1, not {n_seeds}")
        seeds = [seeds[0] + i for i in range(n_seeds)]
    swept = {name: values for name, values in given.items() if len(values) > 1}
    fixed = {name: values[0] for name, values in given.items() if len(values) == 1}
    points = []
    for values in itertools.product(*swept.values()):
        own = dict(zip(swept, values, strict=True))
        folder = "".join(f"{short_name(name)}={_clean(value)}," for name, value in own.items())
        if "optim.lr" in own and "optim.min_lr" not in given and base.optim.lr:
            own["optim.min_lr"] = float(f"{base.optim.min_lr * own['optim.lr'] / base.optim.lr:.6g}")
        try:
            configs = {f"{folder}seed={seed}": with_settings(base, {**fixed, **own, "seed": seed}) for seed in seeds}
        except ValueError as error:
            raise ValueError(f"{label(swept, values)}: {error}" if swept else str(error)) from None
        points.append(Point(values, configs))
    grid = Grid(config_path, swept, fixed, seeds, points)
    if len(grid.configs) < len(points) * len(seeds):
        raise ValueError("two of the values have the same name as a folder: let them differ in their first letters")
    return grid


def with_settings(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """Return a config with other values of some settings, by dotted names. ValueError if one is not allowed."""
    values = asdict(config)
    for name, value in settings.items():
        table, _, last = name.rpartition(".")
        (values[table] if table else values)[last] = value
    return from_dict(TrainConfig, values)


def _values(name: str, kind: Any, texts: list[str]) -> list[Any]:
    """Return the values of an option, each once."""
    if kind is not str:
        texts = [text.strip() for text in ",".join(texts).split(",")]
        if "" in texts:
            raise ValueError(f"--{name} has an empty value: write a list without spaces, as in --{name} A,B,C")
    return list(dict.fromkeys(option_value(name, text, kind) for text in texts))


def _clean(value: Any) -> str:
    """Return a value as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", show_value(value)).strip("-")[:MAX_LENGTH] or "empty"
