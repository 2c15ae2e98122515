"""Runs side by side: the settings that differ, the results, and validation losses over tokens and over seconds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt.checkpoint import RunFolder, read_state
from gpt.config import TrainConfig
from gpt.objectives import OBJECTIVES
from gpt.run.logging import COLUMNS
from gpt.run.runs import read_metrics
from gpt.run.settings import flat
from gpt.system.device import shapes_only
from gpt.system.paths import existing_run
from gpt.tokenizer import Tokenizer
from gpt.variants import adapt, create_model

MAX_WIDTH = 40  # characters of a cell


@dataclass(frozen=True)
class RunResult:
    """The settings of a run and its rows of metrics.csv, by column."""

    name: str
    config: TrainConfig
    tokenizer: Tokenizer
    metrics: dict[str, list[float]]
    validation: str  # SHA-256 of the validation tokens; "" before the first checkpoint

    @property
    def best(self) -> int:
        """The row with the lowest validation loss."""
        losses = self.metrics["val_loss"]
        return min((row for row, loss in enumerate(losses) if not math.isnan(loss)), key=losses.__getitem__)


def count_parameters(config: TrainConfig) -> int:
    """Return the number of parameters that a run's config gives, trained and frozen, without allocating them."""
    with shapes_only():
        model = adapt(create_model(config.model), config.adapter)
        objective = OBJECTIVES[config.objective.name](model, config.objective)
    return sum(p.numel() for p in objective.parameters())


def read_run(name: str) -> RunResult:
    """Read a run by its name or path. ValueError if there is none, or if it has no validation loss yet."""
    folder = RunFolder(existing_run(name))
    try:
        metrics = read_metrics(folder.metrics)
        evaluated = any(not math.isnan(loss) for loss in metrics.get("val_loss", ()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder.metrics} is missing or damaged ({error}): --resume restores it") from None
    if not evaluated:
        raise ValueError(f"{name} has no validation loss yet: compare it after its first evaluation")
    validation = read_state(folder.find("last"))["data"]["val"] if folder.steps() else ""
    return RunResult(name, folder.config(), folder.tokenizer(), metrics, validation)


def compare_runs(names: Sequence[str], out: Path) -> str:
    """Draw the validation losses of two runs or more as a PNG, and return their differences and results as text."""
    from gpt.run.plots import plot_comparison  # matplotlib takes half a second to import

    runs = [read_run(name) for name in {existing_run(name).resolve(): name for name in names}.values()]
    if len(runs) < 2:
        raise ValueError("name two runs or more to compare: --run A B")
    column, unit = compared_column(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    plot_comparison({run.name: run.metrics for run in runs}, column, f"validation loss, {unit}", out)
    names, settings = [run.name for run in runs], differing_settings(runs)
    differ = _table([("settings that differ", *names), *settings]) if settings else "no setting differs"
    return "\n".join([differ, "", _table([("results", *names), *results(runs)]), "", *verdict(runs), f"plot  {out}"])


def _same_tokens(runs: Sequence[RunResult]) -> bool:
    return len({str(run.tokenizer.to_dict()) for run in runs}) == 1


def compared_column(runs: Sequence[RunResult]) -> tuple[str, str]:
    """Return the column of metrics.csv by which runs are compared, and its unit: bits per byte if tokenizers differ."""
    has_bytes = not any(math.isnan(run.metrics["val_bits_per_byte"][run.best]) for run in runs)
    if _same_tokens(runs) or not has_bytes:
        return "val_loss", f"nats per {OBJECTIVES[runs[0].config.objective.name].unit}"
    return "val_bits_per_byte", "bits per byte"


def differing_settings(runs: Sequence[RunResult]) -> list[tuple[str, ...]]:
    """Return the settings that are not the same in all runs: the name of each, and its value in each run."""
    by_run = [{**flat(run.config), "tokenizer": _tokenizer(run)} for run in runs]
    return [(name, *(str(s[name]) for s in by_run)) for name in by_run[0] if len({str(s[name]) for s in by_run}) > 1]


def _tokenizer(run: RunResult) -> str:
    return f"{run.tokenizer.name}, {run.tokenizer.vocab_size:,} tokens"


def results(runs: Sequence[RunResult]) -> list[tuple[str, ...]]:
    """Return what each run took and reached: the name of each figure, and its value in each run."""

    def last(column: str, form: str) -> Callable[[RunResult], str]:
        return lambda run: _number([x for x in run.metrics[column] if not math.isnan(x)][-1:], form)

    def best(column: str, form: str) -> Callable[[RunResult], str]:
        return lambda run: _number(run.metrics.get(column, [])[run.best :][:1], form)

    own = sorted({name for run in runs for name in run.metrics.keys() - {*COLUMNS}})  # of their objectives
    rows: dict[str, Callable[[RunResult], str]] = {
        "parameters": lambda run: f"{count_parameters(run.config):,}",
        "steps": last("step", ",.0f"),
        "tokens": last("tokens_seen", ",.0f"),
        "seconds": last("elapsed_s", ",.0f"),
        "training loss, last": last("train_loss", ".4f"),
        "validation loss, last": last("val_loss", ".4f"),
        "validation loss, best": best("val_loss", ".4f"),
        "  its standard error": best("val_loss_se", ".4f"),
        "  bits per byte": best("val_bits_per_byte", ".4f"),
        **{f"  {name.removeprefix('val_').replace('_', ' ')}": best(name, ".4f") for name in own},
        "  at step": best("step", ",.0f"),
    }
    cells = [(name, *(show(run) for run in runs)) for name, show in rows.items()]
    return [row for row in cells if any(row[1:])]


def _number(values: Sequence[float], form: str) -> str:
    """Format the only value; "" without one."""
    return "".join(format(value, form) for value in values if not math.isnan(value))


def verdict(runs: Sequence[RunResult]) -> list[str]:
    """Return which run is best, and what keeps the losses from being compared."""
    column, unit = compared_column(runs)
    objectives = sorted({run.config.objective.name for run in runs})
    if len(objectives) > 1:
        return [f"The objectives differ ({', '.join(objectives)}), so the losses are not comparable."]
    lines = []
    if not _same_tokens(runs):
        lines.append("The tokenizers differ, so losses per token are not comparable: compare bits per byte.")
        if column == "val_loss":
            return ["The tokenizers differ, so losses per token are not comparable, and bits per byte are not known."]
    elif len({run.validation for run in runs}) > 1:
        lines.append("The validation splits differ, so the losses are those of different texts.")
    (lowest, name), (second, _), *_ = sorted((run.metrics[column][run.best], run.name) for run in runs)
    return [*lines, f"{name} has the lowest validation loss, by {second - lowest:.4f} {unit}."]


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Align the columns, the first on its left and the others on their right; cut long cells."""
    rows = [tuple(cell if len(cell) <= MAX_WIDTH else cell[: MAX_WIDTH - 1] + "…" for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] + [str.rjust] * (len(widths) - 1)
    aligned = ([side(*cell) for side, *cell in zip(sides, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in aligned)
