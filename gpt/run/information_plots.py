"""Plots of what information theory says, for scripts/information.py and docs/information.md."""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

from gpt.evaluation.information import Numbers, Reliability, binary_cross_entropy, entropy
from gpt.run.plots import GREY, TRAIN, VAL, save, style


def plot_binary_loss(out: Path) -> None:
    """Plot binary cross-entropy in nats over the predicted probability, for a true and a false label, as a PNG."""
    p = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for label, name, colour in ((1.0, "label true: -ln p", TRAIN), (0.0, "label false: -ln(1 - p)", VAL)):
        losses = binary_cross_entropy(p, torch.full_like(p, label), reduction="none")
        axes.plot(p.tolist(), losses.tolist(), color=colour, label=name)
    axes.axhline(math.log(2), color=GREY, ls="--", lw=1, label="p = 1/2: ln 2 = 0.693")
    axes.set(xlim=(0, 1), ylim=(0, 6.5), xlabel="predicted probability of true", ylabel="loss, nats")
    axes.set_title("binary cross-entropy is unbounded", loc="left", fontsize=10)
    axes.legend(loc="upper center", frameon=False)
    style(axes)
    save(figure, out)


def plot_coin_entropy(out: Path) -> None:
    """Plot the entropy of a coin in bits over the probability of heads, as a PNG."""
    heads = torch.linspace(0, 1, 401, dtype=torch.float64)
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    bits = entropy(torch.stack([heads, 1 - heads], -1), unit="bits")
    axes.plot(heads.tolist(), bits.tolist(), color=TRAIN)
    for p in (0.1, 0.5, 0.9):
        height = entropy([p, 1 - p], unit="bits").item()
        axes.plot(p, height, "o", color=TRAIN, ms=5)
        place = {"xytext": (0, -8) if p == 0.5 else (9 if p < 0.5 else -9, 0), "textcoords": "offset points"}
        sides = {"ha": "center", "va": "top"} if p == 0.5 else {"ha": "left" if p < 0.5 else "right", "va": "center"}
        axes.annotate(f"{height:.3f}", (p, height), **place, **sides, fontsize=9)
    axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.05), xlabel="probability of heads", ylabel="entropy, bits")
    axes.set_title("entropy of a coin: highest for a fair one", loc="left", fontsize=10)
    style(axes)
    save(figure, out)


def plot_target_probabilities(before: Numbers, after: Numbers, vocab_size: int, out: Path) -> None:
    """Plot the probability of each target of a batch before and after training, as a PNG.

    A dashed line marks the uniform distribution over `vocab_size` tokens.
    """
    figure = Figure(figsize=(8, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for probabilities, name, colour in ((before, "before training", GREY), (after, "after training", TRAIN)):
        flat = torch.as_tensor(probabilities).detach().flatten().tolist()
        axes.plot(range(1, len(flat) + 1), flat, "o", color=colour, ms=4, label=name)
    axes.axhline(1 / vocab_size, color=VAL, ls="--", lw=1, label=f"uniform: 1/{vocab_size:,} = {1 / vocab_size:.3g}")
    axes.set_ylim(0, 1.03)
    axes.set(xlabel="target", ylabel="probability")
    axes.set_title("probabilities of the targets", loc="left", fontsize=10)
    figure.legend(loc="outside right center", frameon=False)
    style(axes)
    save(figure, out)


def plot_reliability(models: dict[str, Reliability], out: Path) -> None:
    """Plot reliability diagrams side by side, titled with the models' names, as a PNG.

    Bars show accuracy by bin of confidence; a calibrated model lies on the diagonal. Below: the share of predictions.
    """
    figure = Figure(figsize=(4.4 * len(models), 5.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex=True, sharey="row", height_ratios=(4, 1))
    for (above, below), (name, found) in zip(panels.T, models.items(), strict=True):
        bins = len(found.count)
        middles = [(i + 0.5) / bins for i in range(bins)]
        gaps = (found.confidence - found.accuracy).tolist()  # NaN, which is not drawn, in an empty bin
        accuracy = found.accuracy.nan_to_num(0).tolist()
        above.bar(middles, accuracy, 0.92 / bins, color=TRAIN, label="accuracy")
        above.bar(
            middles, gaps, 0.92 / bins, accuracy, fc="none", ec=VAL, hatch="///", label="gap to the mean confidence"
        )
        above.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1)
        above.set(xlim=(0, 1), ylim=(0, 1))
        error = found.expected_calibration_error
        above.set_title(f"{name}\nexpected calibration error {error:.3f}", loc="left", fontsize=10)
        below.bar(middles, (found.count / found.count.sum()).tolist(), 0.92 / bins, color=GREY)
        below.set_xlabel("confidence")
        for axes in (above, below):
            style(axes)
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("share")
    panels[0, 0].legend(loc="upper left", frameon=False, fontsize=8)
    save(figure, out)
