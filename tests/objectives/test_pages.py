"""Every objective's run has a page; the model is looked into where it predicts each next token."""

import pytest
from page_reader import Page
from runs import train
from small_objectives import create_workspace, short_config

from gpt.objectives import OBJECTIVES

LOOKED_INTO = {"next_token", "dpo", "grpo", "distill"}  # sft reads pairs here, the others are not left to right


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_page(name, workspace, pages, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
    trainer = train(short_config(name, workspace), tmp_path / "run")
    page = Page(trainer.run.page)
    assert {"Result", "What was trained, and how", "Curves", "Samples", "Rows of metrics.csv"} <= {*page.headings}
    assert ("Validation text by surprise" in page.headings) == (name in LOOKED_INTO)
    assert ("Calibration" in page.headings) == (name in LOOKED_INTO)
    drawn = {column for chart in page.data["curves"]["charts"] for column in chart["columns"]}
    assert {"train_loss", "val_loss", "lr", "grad_norm", *trainer.objective.columns} <= drawn
    assert [sample["step"] for sample in page.data["samples"]] == [0, 3, 6]
