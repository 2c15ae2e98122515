"""What may change when a run is resumed: settings, and the checkpoint from which it continues."""

import dataclasses
import re
import shutil

import pytest
from crashes import killed_at_every_call
from runs import assert_same_run, change, quiet, rows, stop_at, train

from gpt.checkpoint import RunFolder
from gpt.config import GPTConfig, TrainConfig, from_dict
from gpt.run.settings import check_resumable
from gpt.run.training import resume_run, set_aside, start_run
from gpt.system.files import checksummed, read_checksummed


def changed(config, **settings):
    """The config with settings changed, given as model__n_layers=3 for model.n_layers."""
    values = dataclasses.asdict(config)
    for name, value in settings.items():
        table, _, last = name.rpartition("__")
        (values[table] if table else values)[last] = value
    return from_dict(TrainConfig, values)


RUN = changed(TrainConfig(), model__vocab_size=300, optim__decay_steps=1000)


def test_a_resumed_run_may_change_its_length_learning_rate_and_hardware():
    new = {"max_steps": 5000, "optim__lr": 5e-4, "dtype": "float32", "recompute": True, "data__path": "data/moved"}
    after = changed(RUN, **new)
    assert check_resumable(RUN, after) == after


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1), ("init_from", "gpt2"), ("model.n_layers", 3), ("data.stride", 7), ("optim.beta1", 0.5)],
)
def test_a_resumed_run_must_keep_what_it_learns(name, value):
    with pytest.raises(ValueError, match=rf"^{re.escape(name)} is .* in this run, not .*: it cannot change"):
        check_resumable(RUN, changed(RUN, **{name.replace(".", "__"): value}))


def test_a_resumed_run_may_split_its_steps_differently():
    assert check_resumable(RUN, changed(RUN, batch_size=4, grad_accum_steps=4)).grad_accum_steps == 4
    with pytest.raises(ValueError, match="batch_size is 16 in this run, not 8"):
        check_resumable(RUN, changed(RUN, batch_size=8))


def test_the_run_fills_in_what_a_config_leaves_open():
    """As the config that the run was started with does."""
    assert check_resumable(RUN, changed(RUN, model__vocab_size=0, optim__decay_steps=0)) == RUN
    student = changed(RUN, objective__name="distill", objective__teacher="tales-001:step-000500")
    assert check_resumable(student, changed(student, objective__teacher="tales-001")) == student
    tuned = changed(RUN, init_from="gpt2", model__n_layers=3, model__drop_rate=0.0)
    assert check_resumable(tuned, changed(tuned, model__n_layers=GPTConfig().n_layers)) == tuned


# --- from an earlier checkpoint ---------------------------------------------------------------------------------------


@pytest.fixture
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture
def kept(tiny_config, _undrawn, tmp_path):
    """A finished run that keeps a checkpoint of every other step, and its lines."""
    config = change(tiny_config, save_every=2, eval_every=3, log_every=1, keep_checkpoints=20)
    return train(config, tmp_path / "truth").run


@pytest.mark.parametrize("step", [2, 4, 6, 9])
def test_a_run_continues_from_an_earlier_checkpoint_as_if_it_had_been_stopped_there(kept, tmp_path, step):
    """Step 2 comes before the first best checkpoint."""
    shutil.copytree(kept.path, tmp_path / "run")
    run, lines = RunFolder(tmp_path / "run"), []
    later = [name for name in run.steps() if int(name[5:]) > step]
    before = {name: (run.checkpoints / name / "model.safetensors").read_bytes() for name in later}
    trainer = resume_run(run.path, log=lines.append, checkpoint=f"step-{step:06d}")
    assert trainer.step == step
    assert [int(row["step"]) for row in rows(run.path)] == list(range(step + 1))
    aside = run.checkpoints / "aside-001"
    assert f"set aside in {aside}: {later[0]} to {later[-1]}" in "".join(lines)
    assert {name: (aside / name / "model.safetensors").read_bytes() for name in later} == before
    assert (aside / "metrics.csv").read_bytes() == kept.metrics.read_bytes()
    assert (aside / "samples.txt").read_bytes() == kept.samples.read_bytes()
    trainer.train()
    assert_same_run(run.path, kept.path)
    assert run.find("best").name == kept.find("best").name
    resume_run(run.path, log=quiet, checkpoint="best").train()
    assert_same_run(run.path, kept.path)
    assert (run.checkpoints / "aside-002").is_dir() == (run.find("best").name != "step-000012")


def test_a_best_checkpoint_that_was_deleted_is_still_recorded(kept, tmp_path):
    """As keep_checkpoints does when a better one is found."""
    shutil.copytree(kept.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    shutil.rmtree(run.checkpoints / "step-000003")
    trainer = resume_run(run.path, log=quiet, checkpoint="step-000004")
    assert run.find("best").name == "step-000004"  # the newest instead
    stop_at(trainer, 5)
    assert run.load("last").state["best"] == "step-000003"
    resume_run(run.path, log=quiet).train()
    assert_same_run(run.path, kept.path)


def test_nothing_is_lost_whenever_it_is_killed(kept, tmp_path):
    """Each checkpoint is in one of the two places, the logs in at least one, and the run can be resumed."""
    states = {name: (kept.checkpoints / name / "state.json").read_bytes() for name in kept.steps()}
    checkpoint, run, moved = kept.load("step-000004"), RunFolder(tmp_path / "run"), set()
    shutil.copytree(kept.path, run.path)
    for _ in killed_at_every_call(lambda n: set_aside(run, checkpoint)):
        places = [run.checkpoints, *run.checkpoints.glob("aside-*")]
        found = [file for place in places for file in place.glob("step-*/state.json")]
        assert {file.parent.name: file.read_bytes() for file in found} == states
        assert len(found) == len(states)
        assert any(log.read_bytes() == kept.metrics.read_bytes() for log in run.path.rglob("metrics.csv"))
        moved.add(len(run.steps()))
        resume_run(run.path, log=quiet).run.folder_lock.release()  # from the newest that is left
        shutil.rmtree(run.path)
        shutil.copytree(kept.path, run.path)
    assert moved == set(range(3, len(states) + 1))  # also killed between any two


def test_an_unknown_or_damaged_checkpoint_changes_nothing(kept):
    before = {path: path.read_bytes() for path in kept.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"no checkpoint 'step-000005' in .*; available: step-000002, step-000003"):
        resume_run(kept.path, log=quiet, checkpoint="step-000005")
    assert {path: path.read_bytes() for path in kept.path.rglob("*") if path.is_file()} == before
    (kept.checkpoints / "step-000004" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-000004.* is damaged"):
        resume_run(kept.path, log=quiet, checkpoint="step-000004")
    assert kept.steps()[-1] == "step-000012"


def test_another_precision_is_said(tiny_config, tmp_path, monkeypatch):
    """A CPU with bfloat16 may be followed by one without, or follow a checkpoint from before it was stored."""
    monkeypatch.setattr("gpt.system.device.has_fast_bfloat16", lambda: True)
    monkeypatch.setattr("gpt.system.device.MIN_BFLOAT16_PARAMETERS", 0)
    start_run(change(tiny_config, max_steps=1), tmp_path / "run").train()
    monkeypatch.setattr("gpt.system.device.has_fast_bfloat16", lambda: False)
    lines = []
    resume_run(tmp_path / "run", log=lines.append)
    assert "precision: torch.bfloat16 → torch.float32; results differ" in lines
    state = RunFolder(tmp_path / "run").find("last") / "state.json"
    content = read_checksummed(state)
    del content["environment"]["precision"]
    state.write_text(checksummed(content))
    monkeypatch.setattr("gpt.system.device.has_fast_bfloat16", lambda: True)
    lines.clear()
    resume_run(tmp_path / "run", log=lines.append)
    assert "precision: torch.float32 → torch.bfloat16; results differ" in lines
