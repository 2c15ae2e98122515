"""The results of a sweep: a table, the best setting, a plot. A spread is the standard deviation over the seeds."""

import math
import shlex
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.objectives import OBJECTIVES
from gpt.run.grid import Grid, Point
from gpt.run.plots import plot_sweep
from gpt.run.runs import RunInfo, duration, short_name, show_value


@dataclass(frozen=True)
class Result:
    """The runs of one combination of values: their losses, one for each seed that finished."""

    point: Point
    losses: list[float]
    states: list[str]  # of all seeds
    seconds: float  # mean of the finished runs

    @property
    def mean(self) -> float:
        """The mean loss; NaN without one."""
        return statistics.fmean(self.losses) if self.losses else math.nan

    @property
    def spread(self) -> float:
        """The standard deviation of the loss over seeds; NaN for fewer than two."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else math.nan

    @property
    def is_whole(self) -> bool:
        """Whether all seeds finished: a mean without those that diverged would be too low."""
        return bool(self.losses) and len(self.losses) == len(self.states)

    def shown(self) -> str:
        """Return the mean and the spread as text."""
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.4f}"
        return f"{self.mean:.4f}{spread}" if self.losses else ""


def results_of(grid: Grid, infos: dict[str, RunInfo]) -> list[Result]:
    """Return the results of a grid's points. Losses are bits per byte where the data, and so the tokens, differ."""
    results = []
    for point in grid.points:
        runs = [infos[name] for name in point.configs]
        done = [run for run in runs if run.state == "finished" and _score(grid, run) is not None]
        seconds = statistics.fmean(run.seconds or 0.0 for run in done) if done else math.nan
        results.append(Result(point, [_score(grid, run) for run in done], [run.state for run in runs], seconds))
    return results


def _score(grid: Grid, run: RunInfo) -> float | None:
    return run.best_bits_per_byte if "data.path" in grid.swept else run.best_loss


def _unit(grid: Grid) -> str:
    if "data.path" in grid.swept:
        return "bits per byte"
    return f"nats per {OBJECTIVES[next(iter(grid.configs.values())).objective.name].unit}"


def describe_results(grid: Grid, infos: dict[str, RunInfo], sweep: str) -> str:
    """Return the table of a sweep, which setting is best, and the command that trains with it."""
    results = results_of(grid, infos)
    return "\n".join([_table(grid, results), "", *_verdict(grid, results, sweep)])


def _table(grid: Grid, results: list[Result]) -> str:
    names = [short_name(name) for name in grid.swept]
    rows = [[*names, "seeds", f"val loss, {_unit(grid)}", "lowest", "highest", "time"]]
    for result in results:
        counts = Counter(result.states)
        seeds = ", ".join(f"{n} {state}" for state, n in counts.items())
        ends = ["", "", ""]
        if result.losses:
            ends = [f"{min(result.losses):.4f}", f"{max(result.losses):.4f}", duration(result.seconds)]
        whole = str(len(result.states)) if counts.keys() == {"finished"} else seeds
        rows.append([*map(show_value, result.point.values), whole, result.shown(), *ends])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)


def _verdict(grid: Grid, results: list[Result], sweep: str) -> list[str]:
    """Return which combination is best, whether the seeds can tell, and what to type next."""
    whole = sorted((result for result in results if result.is_whole), key=lambda result: result.mean)
    if not whole:
        return ["No setting has finished with all seeds: a lower --optim.lr helps most often."]
    best, others = whole[0], whole[1:]
    if "objective.name" in grid.swept:
        return ["The objectives differ, so the losses are not comparable."]
    name, n = best.point.label(grid.swept), len(grid.seeds)
    found = f"{best.shown()} {_unit(grid)}" + (f" over {n} seeds" if n > 1 else "")
    lines = [f"{name} is best: {found}."]
    if not grid.swept:
        lines = [f"{found}. A difference of that size between settings may be chance." if n > 1 else f"{found}."]
    elif others:
        lines += _compare(grid, best, others)
    else:
        lines.append("No other setting has finished with all seeds.")
    edges = [edge for setting in grid.swept if others and (edge := _edge(grid, best, setting))]
    if edges:
        edges.append(f"To try one, add it to the list and type the same command with --run {shlex.quote(sweep)}.")
    return [*lines, *edges, "", f"to train with it: {grid.train_command(best.point)}"]


def _compare(grid: Grid, best: Result, others: list[Result]) -> list[str]:
    """Return whether the differences from the best are larger than the spread."""
    if math.isnan(best.spread):
        return ["One seed does not show how much of a difference is chance: --seeds 3 does."]
    near = [o for o in others if o.mean - best.mean <= max(best.spread, o.spread)]
    if near:
        names = "; ".join(other.point.label(grid.swept) for other in near)
        return [f"Within the spread of it: {names}. More --seeds would tell them apart."]
    gap = others[0].mean - best.mean
    return [f"The next, {others[0].point.label(grid.swept)}, is worse by {gap:.4f}, which is more than the spread."]


def _edge(grid: Grid, best: Result, setting: str) -> str:
    """Return that the best value of a setting is the lowest or the highest one tried; "" otherwise."""
    values: list[Any] = grid.swept[setting]
    value = best.point.values[list(grid.swept).index(setting)]
    if isinstance(value, bool | str) or min(values) < value < max(values):
        return ""
    side, other = ("lowest", "lower") if value == min(values) else ("highest", "higher")
    return f"{show_value(value)} is the {side} {short_name(setting)} tried: a {other} one may be better still."


def draw_results(grid: Grid, infos: dict[str, RunInfo], out: Path) -> Path | None:
    """Draw the losses over the learning rate, or else over the first swept setting that is a number, or the first one.

    The combinations of the others are lines. Return the path of the picture; None if there is nothing to draw.
    """
    results = results_of(grid, infos)
    if not grid.swept or not any(result.losses for result in results):
        return None
    names = list(grid.swept)
    numbers = [name for name in names if not isinstance(grid.swept[name][0], bool | str)]
    along = names.index("optim.lr" if "optim.lr" in names else [*numbers, names[0]][0])
    lines: dict[str, list[tuple[Any, list[float], int]]] = {}
    others = [name for name in names if name != names[along]]
    for result in results:
        values = [value for i, value in enumerate(result.point.values) if i != along]
        text = ", ".join(f"{short_name(n)} {show_value(v)}" for n, v in zip(others, values, strict=True))
        diverged = result.states.count("diverged")
        lines.setdefault(text, []).append((result.point.values[along], result.losses, diverged))
    shown = ": each seed, and the mean" if len(grid.seeds) > 1 else ""
    plot_sweep(names[along], lines, f"best validation loss, {_unit(grid)}{shown}", out)
    return out
