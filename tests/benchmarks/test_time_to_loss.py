"""The table by hand; all settings train on the same text, and two of them the same model."""

import dataclasses

from benchmarks.time_to_loss import CONFIGS, Run, table
from gpt.config import TrainConfig, from_dict, read_toml


def test_the_table_by_hand():
    runs = [
        Run("plain", 1, 100.0, ((0, 0.0, 4.2), (5, 40.0, 2.2), (9, 90.0, 2.0))),
        Run("fast", 1, 30.0, ((3, 20.0, 1.9),)),
        Run("plain", 2, 120.0, ((0, 0.0, 4.2), (5, 50.0, 1.8), (9, 110.0, 1.6))),
        Run("fast", 2, 25.0, ((3, 15.0, 1.85),)),
        Run("modern", 1, 22.0, ((4, 20.0, 1.7),)),
    ]
    title, *rows, fast, modern = table(runs)
    assert title[-1] == "to reach 1.800"
    assert [row[-1] for row in rows] == ["not reached", "not reached", "50.0", "not reached", "20.0"]
    assert rows[2] == ("plain", "2", "9", "1.6000", "120.0", "110.0", "50.0")
    assert fast[4:6] == ("0.250", "0.175")  # 27.5 / 110, 17.5 / 100
    assert modern[4:6] == ("0.200", "0.200")  # 22 / 110, 20 / 100


def test_all_train_on_the_same_text_and_two_the_same_model():
    plain, fast, modern = (from_dict(TrainConfig, read_toml(path)) for path in CONFIGS.values())
    architecture = [dataclasses.replace(config.model, init="gpt2", tie_embeddings=True) for config in (plain, fast)]
    assert architecture[0] == architecture[1]
    assert plain.data == fast.data == modern.data
    assert plain.eval_batches == fast.eval_batches == modern.eval_batches == 0, "the whole validation split"
