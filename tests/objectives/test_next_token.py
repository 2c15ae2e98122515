"""Next-token prediction with smoothed labels."""

import pytest
import torch
import torch.nn.functional as F
from small_objectives import create, create_workspace

from gpt.config import ObjectiveConfig


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


def test_label_smoothing_applies_only_in_training(workspace):
    objective, config, data = create(
        "next_token", workspace, model_drop_rate=0.0, objective=ObjectiveConfig(label_smoothing=0.3)
    )
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    logits = objective.model(batch["inputs"]).flatten(0, 1)
    truth = {
        smoothing: F.cross_entropy(logits, batch["targets"].flatten(), reduction="sum", label_smoothing=smoothing)
        for smoothing in (0.0, 0.3)
    }
    assert abs(truth[0.3] - truth[0.0]) > 0.1
    objective.eval()
    torch.testing.assert_close(objective(**batch)[0], truth[0.0])
    torch.testing.assert_close(objective.eval_batch(**batch)["loss"][0], truth[0.0])
    whole = objective.evaluate(config, data).loss
    objective.train()
    torch.testing.assert_close(objective(**batch)[0], truth[0.3])
    assert objective.evaluate(config, data).loss == whole
    assert int(objective(**batch)[1]) == int((batch["targets"] != -100).sum())
