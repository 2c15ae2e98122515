"""The last words of a run, on curves drawn by hand."""

import math

import pytest

from gpt.config import TrainConfig
from gpt.evaluation.baselines import Baselines
from gpt.run.advice import advise

NAN = math.nan
STEPS = [0, 50, 100, 150, 200, 250, 300]
CURVES = {  # train losses, validation losses -> how each piece of advice begins
    "learns to the end": ([4.9, 4.0, 3.5, 3.1, 2.9, 2.8], [8, 5, 4.2, 3.6, 3.3, 3.29, 3.28], []),
    "overfits": ([4.9, 4.0, 3.0, 2.5, 2.0, 1.5], [8, 5, 4.2, 3.9, 4.0, 4.2, 4.4], ["overfitting"]),
    "ends too early": ([6, 5, 4.5, 4.2, 4.0, 3.8], [8, 5.5, 4.8, 4.4, 4.2, 4.0, 3.8], ["still falling"]),
    "falls by memorising": ([6, 5, 4.5, 3.2, 2.4, 1.8], [8, 5.5, 4.8, 4.4, 4.2, 4.0, 3.8], []),
    "learns nothing": ([8, 8, 8, 8, 8, 8], [8, 8, 8, 8, 8, 8, 8], ["worse than counting"]),
    "worse than counting, and overfits": ([6, 5, 4, 3, 2, 1], [8, 6, 5.6, 6, 7, 8, 9],
                                          ["worse than counting", "overfitting"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_gets_the_advice_that_fits_it(name):
    train, val, expected = CURVES[name]
    metrics = {"step": [*map(float, STEPS)], "train_loss": [NAN, *train], "val_loss": [*map(float, val)]}
    baselines = Baselines({"uniform": 8.0, "bigram": 5.5, "trigram": 5.0}, None, 1000)
    lines = advise(metrics, baselines, TrainConfig(max_steps=300))
    assert [line.partition(":")[0] for line in lines] == expected
    if "overfitting" in expected:
        assert f"{min(val):.3f} at step {STEPS[val.index(min(val))]}" in lines[-1]
    if "worse than counting" in expected:
        assert "the trigram table has 5.000" in lines[0]
        assert ("Train for longer" in lines[0]) == ("overfitting" not in expected)
    if "still falling" in expected:
        assert "--max_steps 600" in lines[0]


def test_a_run_with_one_evaluation_is_not_judged_by_its_curve():
    metrics = {"step": [10.0, 20.0], "train_loss": [5.0, 4.0], "val_loss": [NAN, 4.0]}
    assert advise(metrics, Baselines({"uniform": 8.0}, None, 1000), TrainConfig()) == []
    assert advise({"step": [], "train_loss": [], "val_loss": []}, Baselines({}, None, 1000), TrainConfig()) == []
