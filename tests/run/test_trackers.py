"""TensorBoard's event files, read back by TensorBoard's own reader, against metrics.csv and samples.txt."""

import csv
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import change, quiet, stop_at

from gpt.run.callbacks import CSVLog
from gpt.run.training import resume_run, start_run

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 8)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


def cells(path):
    """Return the filled cells of a metrics.csv: {column: {step: number}}."""
    columns = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name != "step" and text:
                    columns.setdefault(name, {})[int(row["step"])] = float(text)
    return columns


def read_events(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def assert_events_are_those_of_metrics(run):
    events, expected = read_events(run), cells(run / "metrics.csv")
    tags = {re.sub(r"^(?!train_|val_)", "run_", name).replace("_", "/", 1): name for name in expected}
    assert set(events.Tags()["scalars"]) == set(tags)
    for tag, name in tags.items():
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == list(expected[name])
        # an event is a float32, a cell of elapsed_s or tokens_per_second has one decimal
        margin = 0.05 if name in ("elapsed_s", "tokens_per_second") else 1e-9
        np.testing.assert_allclose([s.value for s in scalars], list(expected[name].values()), rtol=1e-6, atol=margin)
    texts = [(t.step, t.tensor_proto.string_val[0].decode()) for t in events.Tensors("sample/text_summary")]
    parts = re.split(r"^--- step (\d+) ---\n", (run / "samples.txt").read_text(), flags=re.M)
    written = [(int(step), text.split()) for step, text in zip(parts[1::2], parts[2::2], strict=True)]
    assert [(step, text.split()) for step, text in texts] == written


def test_events_are_the_rows_of_metrics_also_after_a_step_back(tiny_config, tmp_path):
    run = tmp_path / "run"
    config = change(tiny_config, logger="tensorboard", sample_every=3, keep_checkpoints=9)
    stop_at(start_run(config, run, quiet), 10)
    assert_events_are_those_of_metrics(run)
    assert max(cells(run / "metrics.csv")["train_loss"]) == 9
    trainer = resume_run(run, log=quiet, checkpoint="step-000005")
    assert max(cells(run / "metrics.csv")["train_loss"]) == 4  # step 5 is no row: rows every 3 steps, evaluations at 4
    trainer.train()
    assert_events_are_those_of_metrics(run)
    steps = list(cells(run / "metrics.csv")["train_loss"])
    assert steps == [3, 4, 6, 8, 9, 12]
    times = [event.wall_time for event in read_events(run).Scalars("run/elapsed_s")]
    elapsed = list(cells(run / "metrics.csv")["elapsed_s"].values())
    assert np.diff(times) == pytest.approx(np.diff(elapsed), abs=0.2)


def test_a_run_gets_its_whole_history_when_the_logger_is_chosen_later(tiny_config, tmp_path):
    run = tmp_path / "run"
    stop_at(start_run(tiny_config, run, quiet), 8)
    assert not (run / "tensorboard").exists()
    resume_run(run, change(tiny_config, logger="tensorboard"), quiet).train()
    assert_events_are_those_of_metrics(run)
    config = read_events(run).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "max_steps = 12" in config


def test_hparams_are_the_settings(tiny_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = tmp_path / "run"
    stop_at(start_run(change(tiny_config, logger="tensorboard"), run, quiet), 1)
    content = read_events(run).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["optim.lr"].number_value == tiny_config.optim.lr
    assert hparams["model.n_layers"].number_value == tiny_config.model.n_layers
    assert hparams["optim.schedule"].string_value == "cosine"


def test_events_of_a_diverged_run_are_on_disk(tiny_config, tmp_path):
    run = tmp_path / "run"
    trainer = start_run(change(tiny_config, logger="tensorboard"), run, quiet)
    step = trainer._train_step

    def diverge():
        if trainer.step == 7:
            raise trainer._diverged("the loss is not finite")
        step()

    trainer._train_step = diverge
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert [event.step for event in read_events(run).Scalars("train/loss")] == [3, 4, 6]


def test_a_damaged_metrics_file_does_not_stop_the_run(tiny_config, tmp_path):
    pytest.importorskip("tensorboard")
    said, config = [], change(tiny_config, logger="tensorboard")
    trainer = start_run(config, tmp_path / "run", said.append)
    with trainer.run.metrics.open("a") as file:
        file.write("x,y\n")
    trainer.train()
    assert any("TensorBoard starts at step 0, since" in line for line in said)
    assert [event.step for event in read_events(tmp_path / "run").Scalars("val/loss")] == [0, 4, 8, 12]


def test_without_the_library_nothing_is_written(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = r'logger = "tensorboard" needs TensorBoard: pip install -e "\.\[tensorboard\]"'
    with pytest.raises(ValueError, match=words):
        start_run(change(tiny_config, logger="tensorboard"), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_not_imported_unless_it_is_chosen(tiny_config, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    start_run(change(tiny_config, max_steps=1), tmp_path / "run", quiet).train()
    assert "tensorboard" not in sys.modules


def test_the_tracker_of_the_docs_gets_each_row(tiny_config, tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.S | re.M)
    names, received = {}, {}
    exec(block, names)

    class Fake:
        def log(self, values, step):
            received[step] = values

    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    trainer.callbacks.append(names["Tracker"](Fake()))
    trainer.train()
    expected = cells(tmp_path / "run" / "metrics.csv")
    assert list(received) == [0, 3, 4, 6, 8, 9, 12]
    for name, column in expected.items():
        if name not in ("elapsed_s", "tokens_per_second"):
            assert {s: v[name] for s, v in received.items() if name in v} == pytest.approx(column, rel=1e-8)


# --- model FLOPs utilisation ------------------------------------------------------------------------------------------


def test_mfu_is_a_column_where_it_is_known(tiny_config, tmp_path, monkeypatch):
    for module in ("logging", "training"):
        monkeypatch.setattr(f"gpt.run.{module}.seconds_per_token", lambda trainer: 1e-6)
    said = []
    start_run(tiny_config, tmp_path / "run", said.append).train()
    columns = cells(tmp_path / "run" / "metrics.csv")
    assert columns["mfu"].keys() == columns["tokens_per_second"].keys()
    for step, speed in columns["tokens_per_second"].items():
        assert columns["mfu"][step] == pytest.approx(speed * 1e-6, abs=1e-6)  # the cell of a speed has one decimal
        assert any(f"step {step:>2}/12" in line and f"MFU {speed * 1e-6:.1%}" in line for line in said)


def test_a_run_without_the_column_is_resumed_in_its_own_columns(tiny_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stop_at(start_run(tiny_config, run, quiet), 6)
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert "mfu" not in header
    for module in ("logging", "training"):
        monkeypatch.setattr(f"gpt.run.{module}.seconds_per_token", lambda trainer: 1e-6)
    resume_run(run, log=quiet).train()
    lines = (run / "metrics.csv").read_text().splitlines()
    assert lines[0] == header
    assert {line.count(",") for line in lines} == {header.count(",")}
    elapsed = list(cells(run / "metrics.csv")["elapsed_s"].values())
    assert elapsed == sorted(elapsed)
    assert not any(math.isnan(value) for value in elapsed)


def test_a_deleted_metrics_file_does_not_stop_the_run(tiny_config, tmp_path):
    class Delete(CSVLog):
        def on_log(self, trainer, evaluation):
            if trainer.step == 4:
                trainer.run.metrics.unlink()

    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    trainer.callbacks.append(Delete())
    trainer.train()
    assert list(cells(tmp_path / "run" / "metrics.csv")["elapsed_s"]) == [6, 8, 9, 12]
