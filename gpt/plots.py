"""Every picture. Drawn without a display, so that a server and a test draw what a laptop does."""

import csv
import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

TRAIN, VAL, QUIET = "#1f6fb4", "#d9480f", "#868e96"


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a metrics.csv; NaN where a row has no figure."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}


def plot_losses(metrics: Path, out: Path, baselines: dict[str, float]) -> None:
    """Draw training and validation loss (nats per token) and perplexity over tokens seen, as a PNG.

    `baselines` are losses in nats per token that need no training to reach, drawn as level lines.
    """
    columns = read_metrics(metrics)
    tokens = columns["tokens_seen"]
    figure = Figure(figsize=(11, 4.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, train, val, level in (
        (left, "train_loss", "val_loss", lambda loss: loss),
        (right, "train_perplexity", "val_perplexity", math.exp),
    ):
        for name, column, colour in (("training", train, TRAIN), ("validation", val, VAL)):
            points = [(x, y) for x, y in zip(tokens, columns[column], strict=True) if not math.isnan(y)]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colour, label=name, marker="o" if name[0] == "v" else None, ms=3
                )
        for name, loss in baselines.items():
            axes.axhline(level(loss), color=QUIET, ls="--", lw=1)
            axes.annotate(
                f"{name}: {level(loss):,.{2 if level(loss) < 1000 else 0}f}",
                (1, level(loss)), xycoords=("axes fraction", "data"), xytext=(-4, -4), textcoords="offset points",
                ha="right", va="top", color=QUIET, fontsize=8,
            )  # fmt: skip
        axes.set_xlabel("tokens seen")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x else "0")
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.set_ylabel("cross-entropy, nats per token")
    right.set_ylabel("perplexity (log scale)")
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    right.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:.1f}")
    right.yaxis.set_minor_formatter(NullFormatter())  # its own would write 6 x 10^1 where the range is narrow
    left.legend(frameon=False)
    figure.savefig(out)
