"""Runs side by side: every figure is that of metrics.csv and of the trainers."""

import csv
import dataclasses
import math
import re

import pytest
from conftest import TEXT, corpus_of
from matplotlib.figure import Figure
from runs import change, train

from gpt.config import DataConfig
from gpt.run.compare import compare_runs
from gpt.text.prepare import prepare_data
from scripts import run_script


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture
def two(tiny_config, tmp_path):
    """Two runs that differ in width and learning rate, the second without an evaluation at its end."""
    wide = change(tiny_config, model_emb_dim=64, optim=dataclasses.replace(tiny_config.optim, lr=2e-3))
    return [train(config, tmp_path / name) for name, config in (("a", tiny_config), ("wide", wide))]


def rows_of(trainer):
    with trainer.run.metrics.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def table(text, title):
    """The rows of a table by their first cell."""
    lines = next(part for part in text.split("\n\n") if part.startswith(title)).splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {first: rest for first, *rest in cells}


def test_a_comparison_shows_what_differs_and_what_came_of_it(two, tmp_path, monkeypatch, capsys):
    drawn, save = {}, Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update(axes=figure.axes) or save(figure, path))
    paths = [str(trainer.run.path) for trainer in two]
    out = tmp_path / "new" / "compare.png"
    assert run_script(f"compare --run {' '.join(paths)} --out {out}") == 0
    text = capsys.readouterr().out
    names = [path if len(path) <= 40 else path[:39] + "…" for path in paths]
    assert table(text, "settings") == {
        "settings that differ": names, "model.emb_dim": ["32", "64"], "optim.lr": ["0.003", "0.002"],
    }  # fmt: skip
    results, measured = table(text, "results"), [rows_of(trainer) for trainer in two]
    evaluated = [[row for row in rows if "val_loss" in row] for rows in measured]
    best = [min(rows, key=lambda row: row["val_loss"]) for rows in evaluated]
    assert results["parameters"] == [f"{sum(p.numel() for p in t.objective.parameters()):,}" for t in two]
    assert results["steps"] == ["12", "12"]
    assert results["tokens"] == [f"{12 * 8 * 16:,}"] * 2
    assert results["training loss, last"] == [f"{rows[-1]['train_loss']:.4f}" for rows in measured]
    assert results["validation loss, last"] == [f"{rows[-1]['val_loss']:.4f}" for rows in evaluated]
    for name, column in (("validation loss, best", "val_loss"), ("bits per byte", "val_bits_per_byte")):
        assert results[name] == [f"{row[column]:.4f}" for row in best]
    assert results["at step"] == [f"{row['step']:.0f}" for row in best]
    lowest = min(best, key=lambda row: row["val_loss"])
    gap = abs(best[0]["val_loss"] - best[1]["val_loss"])
    assert f"{paths[best.index(lowest)]} has the lowest validation loss, by {gap:.4f} nats per token." in text
    assert out.read_bytes().startswith(b"\x89PNG")
    for axes, along in zip(drawn["axes"], ("tokens_seen", "elapsed_s"), strict=True):
        for path, line, rows in zip(paths, axes.lines, evaluated, strict=True):
            assert line.get_label() == path
            assert line.get_xydata().tolist() == [[row[along], row["val_loss"]] for row in rows]


def test_other_tokens_are_compared_by_bits_per_byte(two, tiny_config, tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", TEXT), "bpe:300", tmp_path / "data")
    pairs = train(change(tiny_config, data=DataConfig(str(data.folder))), tmp_path / "pairs")
    text = compare_runs([str(two[0].run.path), str(pairs.run.path)], tmp_path / "c.png")
    assert "The tokenizers differ, so losses per token are not comparable: compare bits per byte." in text
    bits = [min(r["val_loss"] / math.log(2) for r in rows_of(t) if "val_loss" in r) for t in (two[0], pairs)]
    bits[1] *= len(data.val.tokens) / data.val.bytes
    gap, found = abs(bits[0] - bits[1]), re.search(r"lowest validation loss, by (\S+) bits per byte", text)
    assert float(found[1]) == pytest.approx(gap, abs=2e-4)
    assert table(text, "settings")["tokenizer"][0].startswith("char, 31 tokens")


def test_other_texts_and_other_objectives_are_named(two, tiny_config, tmp_path):
    tokenizer = tiny_config.data.path + "/tokenizer.json"
    data = prepare_data(corpus_of(tmp_path / "in", TEXT[200:]), tokenizer, tmp_path / "data")
    other = train(change(tiny_config, data=DataConfig(str(data.folder))), tmp_path / "other")
    said = compare_runs([str(two[0].run.path), str(other.run.path)], tmp_path / "c.png")
    assert "The validation splits differ, so the losses are those of different texts." in said
    backwards = change(tiny_config, objective=dataclasses.replace(tiny_config.objective, name="reverse"))
    other = train(backwards, tmp_path / "reverse")
    said = compare_runs([str(two[0].run.path), str(other.run.path)], tmp_path / "c.png")
    assert "The objectives differ (next_token, reverse), so the losses are not comparable." in said


def test_runs_that_cannot_be_compared_are_named(two, tmp_path):
    path = two[0].run.path
    with pytest.raises(ValueError, match="name two runs or more"):
        compare_runs([str(path), str(path.parent / "wide" / ".." / "a")], tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"unknown run .*none"):
        compare_runs([str(path), str(tmp_path / "none")], tmp_path / "c.png")
    header, first, *_ = two[1].run.metrics.read_text().splitlines()
    for content, words in (
        (header + "\n", "has no validation loss yet"),
        (f"{header}\n{first}\nx,y\n", "is missing or damaged"),
    ):
        two[1].run.metrics.write_text(content)
        with pytest.raises(ValueError, match=words):
            compare_runs([str(t.run.path) for t in two], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
