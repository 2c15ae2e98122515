"""Plots show the figures of their tables. Their look is not tested."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from gpt.evaluation.baselines import Baselines
from gpt.objectives.grpo import GRPO
from gpt.run import plots
from gpt.run.callbacks import CSVLog
from gpt.text.grammar import UNKNOWN
from gpt.text.tales import GrammarReport


@pytest.fixture
def drawn(monkeypatch):
    """A dictionary with the axes of the last saved figure."""
    drawn = {}
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update(axes=figure.axes) or save(figure, path))
    return drawn


@pytest.mark.parametrize("floor", [None, np.array([10.0, 14.0])])
def test_loss_plot(tmp_path, drawn, floor):
    metrics, out = tmp_path / "metrics.csv", tmp_path / "loss.png"
    CSVLog.create(metrics)
    for step, train, val in ((0, None, 4.0), (10, 3.0, None), (20, 2.0, 2.5)):
        row = {"step": step, "tokens_seen": step * 64, "elapsed_s": 1.0}
        row |= {"train_loss": train, "train_perplexity": math.exp(train)} if train else {}
        row |= {"val_loss": val, "val_perplexity": math.exp(val)} if val else {}
        CSVLog.append(metrics, row)
    plots.plot_losses(metrics, out, Baselines({"uniform": math.log(65), "trigram": 2.2}, floor, 20))
    assert out.read_bytes().startswith(b"\x89PNG")
    panels = [lambda x: x, math.exp] + [lambda x: x - 24 / 20] * (floor is not None)
    for axes, level in zip(drawn["axes"], panels, strict=True):
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert lines["training"] == [[640, pytest.approx(level(3.0))], [1280, pytest.approx(level(2.0))]]
        assert lines["validation"] == [[0, pytest.approx(level(4.0))], [1280, pytest.approx(level(2.5))]]
        heights = [line.get_ydata()[0] for line in axes.lines[2:]]
        assert heights[:2] == pytest.approx([level(math.log(65)), level(2.2)])
        if floor is not None and axes is not drawn["axes"][2]:
            assert heights[2] == pytest.approx(level(1.2))
        named = {text.get_text().split()[0]: text.get_position()[1] for text in axes.texts}
        assert set(named) == {"uniform", "trigram", *(["entropy"] if len(heights) == 3 else [])}
        uniform = axes.transAxes.inverted().transform(axes.transData.transform((0, level(math.log(65)))))[1]
        assert named["uniform"] == pytest.approx(uniform, abs=0.01), "a label is at the height of its line"
    assert [axes.get_yscale() for axes in drawn["axes"]] == ["linear", "log", "log"][: len(panels)]


def test_a_loss_of_pairs_is_drawn_without_perplexity(tmp_path, drawn):
    metrics, out = tmp_path / "metrics.csv", tmp_path / "loss.png"
    CSVLog.create(metrics)
    CSVLog.append(metrics, {"step": 1, "tokens_seen": 8, "elapsed_s": 1.0, "train_loss": 0.6, "val_loss": 0.5})
    plots.plot_losses(metrics, out, Baselines({"the reference": math.log(2)}, None, 20, "pair"))
    (axes,) = drawn["axes"]
    assert axes.get_title(loc="left") == "loss, nats per pair"
    assert axes.get_xlabel() == "pairs seen"


@pytest.mark.parametrize("floor", [None, np.array([10.0, 14.0])])
def test_reinforcement_is_drawn_as_reward_and_entropy(tmp_path, drawn, floor):
    metrics, columns = tmp_path / "metrics.csv", GRPO.training_metrics + GRPO.metrics
    CSVLog.create(metrics, columns)
    evaluated = {"val_loss": 0.75, "val_reward": 0.5, "val_entropy": 7.0}
    for step, more in ((1, {}), (2, evaluated)):
        row = {"step": step, "tokens_seen": step * 64, "elapsed_s": 1.0, "train_loss": 0.5 * step, **more}
        CSVLog.append(metrics, {**row, "reward": 0.25 * step, "length": 10.0})
    plots.plot_rewards(metrics, tmp_path / "loss.png", Baselines({}, floor, 20))
    lines = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in drawn["axes"]]
    assert [panel.get("training") for panel in lines] == [[[64, 0.25], [128, 0.5]], [[64, 5], [128, 10]], None]
    assert [panel["validation"] for panel in lines] == [[[128, 0.5]], [[128, 7]], [[128, 0.75]]]
    named = [[text.get_text() for text in axes.texts] for axes in drawn["axes"]]
    assert named == ([[], ["the grammar's 71.64"], ["entropy floor 1.20"]] if floor is not None else [[], [], []])


def test_grammar_reports_are_drawn_as_shares_that_add_up(tmp_path, drawn):
    reports = {
        1000: GrammarReport(10, 2, 2, -70.0, {"order": 5, UNKNOWN: 3}),
        2000: GrammarReport(10, 7, 7, -70.0, {"thing": 1, "order": 2}),
    }
    plots.plot_grammar_reports(reports, tmp_path / "learnt.png")
    assert (tmp_path / "learnt.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn["axes"]
    tops = {}
    for area in axes.collections:
        corners = area.get_paths()[0].vertices
        tops[area.get_label()] = [corners[corners[:, 0] == x, 1].max() for x in (1000, 2000)]
    assert list(tops) == ["accepted", "order", "thing", UNKNOWN]
    assert tops["accepted"] == pytest.approx([0.2, 0.7])
    assert tops["order"] == pytest.approx([0.7, 0.9])
    assert tops[UNKNOWN] == pytest.approx([1, 1])


def test_read_metrics_of_an_empty_table(tmp_path):
    CSVLog.create(tmp_path / "metrics.csv")
    assert plots.read_metrics(tmp_path / "metrics.csv") == {}


def test_benchmark_bars_are_speeds_relative_to_gpt(tmp_path, drawn):
    rows = [
        {"case": "a", "contender": "gpt", "times_gpt": 1.0, "rate": "9 tokens/s"},
        {"case": "a", "contender": "plain", "times_gpt": 4.0, "rate": "2 tokens/s"},
        {"case": "b", "contender": "gpt", "times_gpt": 1.0, "rate": "7 MB/s"},
        {"case": "b", "contender": "tiktoken", "problem": "died", "rate": ""},
    ]
    plots.plot_benchmark(rows, {"a": "training", "b": "preparation"}, tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn["axes"]
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.25, 1.0, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gpt", "plain", "gpt", "tiktoken"]
    words = [text.get_text().strip() for text in axes.texts]
    assert words == [
        "training",
        "9 tokens/s   1.00 x",
        "2 tokens/s   0.25 x",
        "preparation",
        "7 MB/s   1.00 x",
        "failed",
    ]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2, "gpt has a colour of its own"
