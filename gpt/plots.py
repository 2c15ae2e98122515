"""Every picture. Drawn without a display, so that a server and a test draw what a laptop does."""

import csv
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gpt.baselines import Yardstick
from gpt.files import whole_file
from gpt.grammar import UNKNOWN
from gpt.loss import perplexity
from gpt.tales import Verdict

TRAIN, VAL, QUIET, FLOOR = "#1f6fb4", "#d9480f", "#868e96", "#2b8a3e"
RULES = ["#fab005", "#1f6fb4", "#d9480f", "#ae3ec9", "#e64980", "#1098ad", "#7048e8", "#82583a"]  # no grey, no green


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a metrics.csv; NaN where a row has no figure."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}


def plot_losses(metrics: Path, out: Path, yardstick: Yardstick) -> None:
    """Draw training and validation loss (nats per token) and perplexity over tokens seen, among the yardstick's
    baselines and above its floor, as a PNG. With a floor, the distance to it is drawn as well: the KL divergence."""
    columns = read_metrics(metrics)
    levels = dict(yardstick.baselines)
    panels = [("cross-entropy, nats per token", "linear", lambda loss: loss)]
    panels.append(("perplexity: among how many tokens it is unsure", "log", perplexity))
    if yardstick.floor is not None:
        floor = yardstick.floor_loss
        levels["floor"] = floor
        panels.append(("above the floor: KL divergence, nats per token", "log", lambda loss: loss - floor))
    figure = Figure(figsize=(5.6 * len(panels), 4.6), dpi=110, layout="constrained")
    for axes, (title, scale, level) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.set_yscale(scale)
        for name, column, colour in (("training", "train_loss", TRAIN), ("validation", "val_loss", VAL)):
            points = [
                (x, level(y)) for x, y in zip(columns["tokens_seen"], columns[column], strict=True) if not math.isnan(y)
            ]
            if points:
                marker = "o" if column == "val_loss" else None
                axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, ms=3)
        shown = {name: level(loss) for name, loss in levels.items()}
        if scale == "log":
            shown = {name: y for name, y in shown.items() if y > 0}
        for name, y in shown.items():
            axes.axhline(y, color=FLOOR if name == "floor" else QUIET, ls="-" if name == "floor" else "--", lw=1)
        _label_levels(axes, shown)
        axes.set_title(title, loc="left", fontsize=10)
        _tokens_axis(axes)
        if scale == "log":
            _plain_log_axis(axes)
    figure.axes[0].legend(loc="upper right")
    with whole_file(out) as temporary:
        figure.savefig(temporary)


def _label_levels(axes: Axes, levels: dict[str, float]) -> None:
    """Names and values of level lines, right of the axes, pushed apart where they would overlap."""
    axes.get_ylim()  # until they are asked for, the axes' limits are not made to fit what was drawn
    place = axes.transAxes.inverted().transform
    lowest = -0.05
    for name, y in sorted(levels.items(), key=lambda level: level[1]):
        height = float(place(axes.transData.transform((0, y)))[1])
        lowest = max(height, lowest + 0.05)
        text = f"{name} {y:,.{3 if y < 1 else 2 if y < 1000 else 0}f}"
        colour = FLOOR if name == "floor" else QUIET
        axes.text(1.01, lowest, text, transform=axes.transAxes, va="center", color=colour, fontsize=8)


def _tokens_axis(axes: Axes) -> None:
    axes.set_xlabel("tokens seen")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x else "0")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain_log_axis(axes: Axes) -> None:
    """Plain numbers on a log axis, whatever its range."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())  # its own would write 6 x 10^1 where the range is narrow


def plot_verdicts(verdicts: dict[int, Verdict], out: Path) -> None:
    """Draw what a model of tales has learnt when, as a PNG: over tokens seen, the share of its tales that the grammar
    accepts, and of the others the share by the first rule that each breaks."""
    tokens = sorted(verdicts)
    rules = sorted({rule for verdict in verdicts.values() for rule in verdict.broken}, key=lambda r: (r == UNKNOWN, r))
    shares = [[verdicts[t].accepted / verdicts[t].texts for t in tokens]]
    shares += [[verdicts[t].broken.get(rule, 0) / verdicts[t].texts for t in tokens] for rule in rules]
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = [FLOOR, *(QUIET if rule == UNKNOWN else RULES[i % len(RULES)] for i, rule in enumerate(rules))]
    axes.stackplot(tokens, shares, labels=["accepted", *rules], colors=colours, alpha=0.8)
    axes.set_ylim(0, 1)
    axes.set_xlim(tokens[0], tokens[-1])
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.set_title("sampled tales: accepted by the grammar, or the first rule broken", loc="left", fontsize=10)
    _tokens_axis(axes)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    with whole_file(out) as temporary:
        figure.savefig(temporary)


def plot_benchmark(rows: list[dict], titles: dict[str, str], out: Path) -> None:
    """Draw the rows of a benchmark as a PNG: a group of bars for each case, titled as `titles` say, whose lengths are
    speeds relative to gpt's. A row has a case, a contender, `times_gpt`, its time over gpt's, and its `rate` in words;
    or a problem, and then no bar."""
    groups = {case: [row for row in rows if row["case"] == case] for case in titles}
    height = 1.0 + sum(len(group) + 1.6 for group in groups.values())  # in bars
    figure = Figure(figsize=(9, 0.27 * height + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    y, places, names = 0.0, [], []
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of the line at gpt's speed
    for case, group in groups.items():
        axes.text(0, y, titles[case], va="center", fontsize=10, fontweight="bold", bbox=clear)
        for row in group:
            y += 1
            places.append(y)
            names.append(row["contender"])
            speed = 1 / row["times_gpt"] if row.get("times_gpt") else 0.0
            ours = row["contender"].startswith("gpt")
            axes.barh(y, speed, 0.78, color=TRAIN if ours else QUIET, alpha=1 if ours else 0.55)
            words = "failed" if row.get("problem") else f"{row['rate']}   {speed:.2f} x" if speed else row["rate"]
            colour = TRAIN if ours else "black"
            axes.annotate(
                words, (speed, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour, bbox=clear
            )
        y += 1.6
    axes.axvline(1, color=TRAIN, lw=1, ls=":", zorder=0)
    axes.set_yticks(places, names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.8, -0.8)
    axes.set_xlim(0, 1.3 * max(1.0, *(bar.get_width() for bar in axes.patches)) if axes.patches else 1)
    axes.set_xlabel("speed relative to gpt: longer is faster")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    with whole_file(out) as temporary:
        figure.savefig(temporary)
