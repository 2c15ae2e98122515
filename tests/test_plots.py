"""Pictures: that they show what the table says. What they look like is for eyes."""

import math

import pytest
from matplotlib.figure import Figure

from gpt import plots, report


def test_loss_plot_draws_each_figure_of_the_table(tmp_path, monkeypatch):
    metrics, out = tmp_path / "metrics.csv", tmp_path / "loss.png"
    report.begin(metrics)
    for step, train, val in ((0, None, 4.0), (10, 3.0, None), (20, 2.0, 2.5)):
        row = {"step": step, "tokens_seen": step * 64, "elapsed_s": 1.0}
        row |= {"train_loss": train, "train_perplexity": math.exp(train)} if train else {}
        row |= {"val_loss": val, "val_perplexity": math.exp(val)} if val else {}
        report.append(metrics, row)
    drawn = {}
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update(axes=figure.axes) or save(figure, path))
    plots.plot_losses(metrics, out, {"uniform": math.log(65)})
    assert out.read_bytes().startswith(b"\x89PNG")
    for axes, level in zip(drawn["axes"], (lambda x: x, math.exp), strict=True):
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert lines["training"] == [[640, pytest.approx(level(3.0))], [1280, pytest.approx(level(2.0))]]
        assert lines["validation"] == [[0, pytest.approx(level(4.0))], [1280, pytest.approx(level(2.5))]]
        assert axes.lines[-1].get_ydata()[0] == pytest.approx(level(math.log(65)))
    assert drawn["axes"][1].get_yscale() == "log"


def test_read_metrics_of_an_empty_table(tmp_path):
    report.begin(tmp_path / "metrics.csv")
    assert plots.read_metrics(tmp_path / "metrics.csv") == {}
