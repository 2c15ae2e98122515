"""Plots of runs. They need no display, so they also work on a server and in tests."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from gpt.evaluation.baselines import Baselines
from gpt.evaluation.information import Numbers
from gpt.loss import perplexity
from gpt.planning.plan import Plan
from gpt.run.logging import read_metrics
from gpt.system.files import atomic_file
from gpt.text import tales
from gpt.text.grammar import UNKNOWN
from gpt.text.tales import GrammarReport

TRAIN, VAL, GREY, FLOOR = "#1f6fb4", "#d9480f", "#868e96", "#2b8a3e"
GRAMMAR = "the grammar's"  # entropy
RULES = [
    "#fab005",
    "#1f6fb4",
    "#d9480f",
    "#ae3ec9",
    "#e64980",
    "#1098ad",
    "#7048e8",
    "#82583a",
]  # neither grey nor green


def plot_losses(metrics: Path, out: Path, baselines: Baselines) -> None:
    """Plot losses in nats per token and perplexity over tokens seen, with baselines, as a PNG.

    The loss of an objective that counts something else has no perplexity. With an entropy floor a third panel shows the
    excess over it, the KL divergence.
    """
    columns = read_metrics(metrics)
    levels = dict(baselines.losses)
    panels = [("cross-entropy, nats per token", "linear", float), ("perplexity", "log", perplexity)]
    if baselines.unit != "token":
        panels = [(f"loss, nats per {baselines.unit}", "linear", float)]
    if baselines.entropy_floor is not None:
        floor = baselines.entropy_floor_loss
        levels["entropy floor"] = floor
        panels.append(
            ("excess over the entropy floor (KL divergence), nats per token", "log", lambda loss: loss - floor)
        )
    figure = Figure(figsize=(5.6 * len(panels), 4.6), dpi=110, layout="constrained")
    for axes, (title, scale, level) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_yscale(scale)
        _plot_columns(axes, columns, "train_loss", "val_loss", level)
        shown = {name: level(loss) for name, loss in levels.items()}
        if scale == "log":
            shown = {name: y for name, y in shown.items() if y > 0}
        for name, y in shown.items():
            axes.axhline(
                y, color=FLOOR if name == "entropy floor" else GREY, ls="-" if name == "entropy floor" else "--", lw=1
            )
        _label_levels(axes, shown)
        axes.set_title(title, loc="left", fontsize=10)
        _tokens_axis(axes, f"{baselines.unit}s seen")
        if scale == "log":
            _plain_log_axis(axes)
    figure.axes[0].legend(loc="upper right")
    save(figure, out)


def plot_rewards(metrics: Path, out: Path, baselines: Baselines) -> None:
    """Plot the reward and the entropy of what a model writes, and its validation loss, over tokens seen, as a PNG.

    With an entropy floor, that of the validation tales, lines mark the grammar's own entropy and the floor.
    """
    columns = read_metrics(metrics)
    columns["entropy"] = [loss * n for loss, n in zip(columns["train_loss"], columns["length"], strict=True)]
    is_known = baselines.entropy_floor is not None
    panels = (
        ("mean reward of what it writes", "reward", "val_reward", {}),
        (
            "entropy of what it writes, nats per completion",
            "entropy",
            "val_entropy",
            {GRAMMAR: tales.entropy()} if is_known else {},
        ),
        (
            f"loss on the validation split, nats per {baselines.unit}",
            "",
            "val_loss",
            {"entropy floor": baselines.entropy_floor_loss} if is_known else {},
        ),
    )
    figure = Figure(figsize=(5.6 * len(panels), 4.6), dpi=110, layout="constrained")
    for axes, (title, train, val, levels) in zip(figure.subplots(1, len(panels), sharex=True), panels, strict=True):
        _plot_columns(axes, columns, train, val)
        for y in levels.values():
            axes.axhline(y, color=FLOOR, lw=1)
        _label_levels(axes, levels)
        axes.set_title(title, loc="left", fontsize=10)
        _tokens_axis(axes, f"{baselines.unit}s seen")
    figure.axes[0].legend()
    save(figure, out)


def _plot_columns(
    axes: Axes,
    columns: dict[str, list[float]],
    train: str,
    val: str,
    level: Callable[[float], float] = float,
) -> None:
    """Plot `level` of two columns of metrics over tokens seen, the second one with dots; one that is missing is left
    out."""
    for name, column, colour, marker in (("training", train, TRAIN, None), ("validation", val, VAL, "o")):
        values = zip(columns["tokens_seen"], columns[column], strict=True) if column in columns else ()
        if points := [(x, level(y)) for x, y in values if not math.isnan(y)]:
            axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, ms=3)


def save(figure: Figure, out: Path) -> None:
    """Write a figure, as a whole or not at all."""
    with atomic_file(out) as temporary:
        figure.savefig(temporary)


def _label_levels(axes: Axes, levels: dict[str, float]) -> None:
    """Write names and values of level lines to the right of the axes, moved apart where they would overlap."""
    axes.get_ylim()  # computes the limits from the data, which happens only on request
    place = axes.transAxes.inverted().transform
    lowest = -0.05
    for name, y in sorted(levels.items(), key=lambda level: level[1]):
        height = float(place(axes.transData.transform((0, y)))[1])
        lowest = max(height, lowest + 0.05)
        text = f"{name} {y:,.{3 if y < 1 else 2 if y < 1000 else 0}f}"
        colour = FLOOR if name in ("entropy floor", GRAMMAR) else GREY
        axes.text(1.01, lowest, text, transform=axes.transAxes, va="center", color=colour, fontsize=8)


def _tokens_axis(axes: Axes, label: str = "tokens seen") -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x else "0")
    style(axes)


def style(axes: Axes) -> None:
    """Draw a faint grid, and remove the frame where there is no axis."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain_log_axis(axes: Axes) -> None:
    """Label a log axis with plain numbers."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())  # the default writes 6 x 10^1 if the range is narrow


def plot_mask(mask: Tensor, labels: Sequence[str], out: Path) -> None:
    """Plot a boolean (T, T) attention mask of queries and keys, with a label for each token, as a PNG."""
    figure = Figure(figsize=(1.4 + 0.4 * len(labels), 1.2 + 0.4 * len(labels)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(mask.int().numpy(), cmap=ListedColormap(["white", TRAIN]), edgecolor="#ced4da", vmin=0, vmax=1)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    positions = [position + 0.5 for position in range(len(labels))]
    axes.set_xticks(positions, labels, rotation=90)
    axes.set_yticks(positions, labels)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel("key", labelpad=8)
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("query")
    for spine in axes.spines.values():
        spine.set_visible(False)
    save(figure, out)


def plot_grammar_reports(reports: dict[int, GrammarReport], out: Path) -> None:
    """Plot the grammar reports of several checkpoints, by tokens seen, as a PNG.

    Areas show the share of sampled tales that the grammar accepts, and of the others by the first rule broken.
    """
    tokens = sorted(reports)
    rules = sorted({rule for report in reports.values() for rule in report.broken}, key=lambda r: (r == UNKNOWN, r))
    shares = [[reports[t].accepted / reports[t].texts for t in tokens]]
    shares += [[reports[t].broken.get(rule, 0) / reports[t].texts for t in tokens] for rule in rules]
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = [FLOOR, *(GREY if rule == UNKNOWN else RULES[i % len(RULES)] for i, rule in enumerate(rules))]
    axes.stackplot(tokens, shares, labels=["accepted", *rules], colors=colours, alpha=0.8)
    axes.set_ylim(0, 1)
    axes.set_xlim(tokens[0], tokens[-1])
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.set_title("sampled tales: accepted by the grammar, or the first rule broken", loc="left", fontsize=10)
    _tokens_axis(axes)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    save(figure, out)


def plot_comparison(runs: dict[str, dict[str, list[float]]], column: str, title: str, out: Path) -> None:
    """Plot a column of the metrics of several runs over tokens and over seconds, as a PNG."""
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    for axes, along in zip(figure.subplots(1, 2, sharey=True), ("tokens_seen", "elapsed_s"), strict=True):
        for number, (name, metrics) in enumerate(runs.items()):
            points = [(x, y) for x, y in zip(metrics[along], metrics[column], strict=True) if not math.isnan(y)]
            colour = RULES[1:][number % len(RULES[1:])]
            axes.plot(*zip(*points, strict=True) if points else ((), ()), color=colour, label=name, marker="o", ms=3)
        _tokens_axis(axes) if along == "tokens_seen" else style(axes)
    figure.axes[0].set_title(title, loc="left", fontsize=10)
    figure.axes[1].set_xlabel("seconds")
    figure.axes[1].legend(frameon=False, fontsize=8)
    save(figure, out)


def plot_sweep(setting: str, lines: dict[str, list[tuple[Any, list[float], int]]], title: str, out: Path) -> None:
    """Plot losses over the values of a setting as a PNG: a point for each seed, a line through the means.

    A line, by its label, has for each value the losses of the seeds that finished, and how many diverged: a cross at
    the top. Values from 8-fold on are on a log axis; those that are not numbers have equal distances.
    """
    values = list(dict.fromkeys(value for points in lines.values() for value, _, _ in points))
    is_number = not any(isinstance(value, bool | str) for value in values)
    figure = Figure(figsize=(7, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (label, points) in enumerate(lines.items()):
        colour = [TRAIN, *RULES[2:]][number % (len(RULES) - 1)]
        at = {value: value if is_number else values.index(value) for value in values}
        points = sorted(points, key=lambda point: at[point[0]])
        means = [(at[value], float(np.mean(losses))) for value, losses, _ in points if losses]
        axes.plot(*zip(*means, strict=True) if means else ((), ()), color=colour, label=label, lw=1.5)
        for value, losses, diverged in points:
            axes.plot([at[value]] * len(losses), losses, "o", color=colour, ms=5, alpha=0.6, mec="none")
            if diverged:
                axes.plot(at[value], 0.98, "x", color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
                axes.annotate(f"{diverged} diverged", (at[value], 0.98), (6, 0), xycoords=axes.get_xaxis_transform(),
                              textcoords="offset points", va="center", fontsize=8, color=colour)  # fmt: skip
    if is_number and min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(values if is_number else range(len(values)), [f"{v:g}" if is_number else str(v) for v in values])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel(setting)
    axes.set_title(title, loc="left", fontsize=10)
    style(axes)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    save(figure, out)


def plot_benchmark(rows: list[dict], titles: dict[str, str], out: Path) -> None:
    """Plot a benchmark as a PNG: for each case a group of bars, whose lengths are speeds relative to gpt.

    A row has a case, a contender, `times_gpt` (its time divided by gpt's) and `rate` (text), or a problem and no bar.
    """
    groups = {case: [row for row in rows if row["case"] == case] for case in titles}
    height = 1.0 + sum(len(group) + 1.6 for group in groups.values())  # in bars
    figure = Figure(figsize=(9, 0.27 * height + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    y, positions, names = 0.0, [], []
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # hides the line at gpt's speed
    for case, group in groups.items():
        axes.text(0, y, titles[case], va="center", fontsize=10, fontweight="bold", bbox=clear)
        for row in group:
            y += 1
            positions.append(y)
            names.append(row["contender"])
            speed = 1 / row["times_gpt"] if row.get("times_gpt") else 0.0
            ours = row["contender"].startswith("gpt")
            axes.barh(y, speed, 0.78, color=TRAIN if ours else GREY, alpha=1 if ours else 0.55)
            words = "failed" if row.get("problem") else f"{row['rate']}   {speed:.2f} x" if speed else row["rate"]
            colour = TRAIN if ours else "black"
            axes.annotate(
                words, (speed, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour, bbox=clear
            )
        y += 1.6
    axes.axvline(1, color=TRAIN, lw=1, ls=":", zorder=0)
    axes.set_yticks(positions, names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.8, -0.8)
    axes.set_xlim(0, 1.3 * max(1.0, *(bar.get_width() for bar in axes.patches)) if axes.patches else 1)
    axes.set_xlabel("speed relative to gpt (longer is faster)")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    save(figure, out)


def plot_scaling(
    curves: Sequence[tuple[str, Numbers, Numbers]],
    law: Callable[[np.ndarray], np.ndarray],
    floor: float,
    out: Path,
) -> None:
    """Plot loss over training FLOPs for several model sizes as a PNG.

    A curve is a model's size as a label, and the FLOPs and loss (nats per token) of each evaluation. `law` is fitted to
    the last points. The right panel shows the excess over the entropy floor, where a power law is a straight line.
    """
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    ends = np.array([flops[-1] for _, flops, _ in curves], float)
    along = np.geomspace(ends.min() / 2, ends.max() * 2, 50)
    for axes, below, title in zip(
        figure.subplots(1, 2),
        (0.0, floor),
        ("validation loss, nats per token", "excess over the entropy floor, nats per token"),
        strict=True,
    ):
        for number, (name, flops, losses) in enumerate(curves):
            colour = colormaps["viridis"](0.9 * number / max(1, len(curves) - 1))
            axes.plot(flops, np.asarray(losses) - below, color=colour, lw=1, label=name)
            axes.plot(flops[-1], losses[-1] - below, color=colour, marker="o", ms=6)
        axes.plot(along, law(along) - below, color=VAL, ls="--", lw=1, label="power law")
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs")
        axes.set_title(title, loc="left", fontsize=10)
        style(axes)
    left, right = figure.axes
    if floor:
        left.axhline(floor, color=FLOOR, lw=1)
        _label_levels(left, {"entropy floor": floor})
    right.set_yscale("log")
    _plain_log_axis(right)
    right.legend(frameon=False, fontsize=8, title="parameters", title_fontsize=8)
    save(figure, out)


def plot_plans(name: str, plans: dict[str, Plan], seconds: Sequence[float | None], memory: float, out: Path) -> None:
    """Plot plans for several values of a setting as a PNG: memory by part, and hours.

    A plan that needs more than `memory` bytes has None instead of seconds.
    """
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    positions, lowest = np.arange(len(plans)), np.zeros(len(plans))
    parts = list(dict.fromkeys(part for plan in plans.values() for part, count in plan.memory.items() if count))
    for part, colour in zip(parts, [*RULES, GREY, "#495057"], strict=False):
        heights = np.array([plan.memory[part] for plan in plans.values()]) / 1e9
        left.bar(positions, heights, 0.7, lowest, label=part, color=colour)
        lowest += heights
    left.axhline(memory / 1e9, color="black", lw=1, ls="--", label=f"available: {memory / 1e9:,.1f}")
    left.set_title("peak memory, GB", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8, reverse=True, loc="center left", bbox_to_anchor=(1, 0.5))
    hours = np.array([np.nan if time is None else time / 3600 for time in seconds])
    right.bar(positions, hours, 0.7, color=TRAIN)
    for position, time in zip(positions, hours, strict=True):
        if np.isnan(time):
            right.text(position, 0, "too large\n", ha="center", color=VAL, fontsize=8)
    right.set_title("training time, hours", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xticks(positions, plans)
        axes.set_xlim(-0.6, len(plans) - 0.4)  # leaves room for a plan without a bar
        axes.set_xlabel(name)
        style(axes)
    save(figure, out)
