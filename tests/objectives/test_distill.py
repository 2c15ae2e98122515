"""Distillation: its loss against PyTorch's, and a student's run."""

import copy
import dataclasses
import shutil

import pytest
import torch
import torch.nn.functional as F
from runs import change, quiet, stop_at, train
from small_objectives import create, create_workspace, short_config

from gpt.checkpoint import RunFolder
from gpt.config import ObjectiveConfig, read_toml
from gpt.exchange.models import load_model, load_objective, resolve_config
from gpt.model import GPTModel
from gpt.objectives.distill import distillation_loss
from gpt.objectives.next_token import NextToken
from gpt.run.training import resume_run, start_run
from gpt.token_files import load_data


@pytest.fixture(autouse=True)
def _short_samples_and_no_plots(monkeypatch):
    """Plots and long samples take most of the time of a tiny run."""
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_distillation_loss_equals_pytorch_kl_div(temperature):
    student, teacher = (torch.randn(7, 11, dtype=torch.float64) * 3 for _ in range(2))
    student.requires_grad_()
    log_q, log_p = (torch.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    truth = temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    ours = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(ours, truth)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, truth)]
    torch.testing.assert_close(*gradients)
    assert distillation_loss(teacher, teacher, temperature) == 0
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, teacher, temperature), student)


def test_gradient_at_temperature_one_equals_soft_labels():
    student, teacher = torch.randn(7, 11, dtype=torch.float64, requires_grad=True), torch.randn(7, 11).double() * 3
    soft = F.cross_entropy(student, torch.softmax(teacher, -1), reduction="sum")
    (ours,) = torch.autograd.grad(distillation_loss(student, teacher, 1.0), student)
    torch.testing.assert_close(ours, torch.autograd.grad(soft, student)[0])


def test_gradient_at_high_temperature_is_the_difference_of_logits():
    """Hinton et al. 2015, section 2.1: (z_i - v_i) / N for logits of mean zero, once 1/T^2 is made up for."""
    student, teacher = torch.randn(7, 11, dtype=torch.float64, requires_grad=True), torch.randn(7, 11).double()
    (ours,) = torch.autograd.grad(distillation_loss(student, teacher, 1e5), student)
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student.detach(), teacher)]
    torch.testing.assert_close(ours, (centred[0] - centred[1]) / 11, rtol=1e-3, atol=1e-6)


def with_settings(objective, **changes):
    objective.config = dataclasses.replace(objective.config, **changes)
    return objective


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_loss_is_the_weighted_sum_of_label_and_teacher_losses(workspace, implementation):
    objective, config, data = create("distill", workspace, model_drop_rate=0.0, model_implementation=implementation)
    teacher, _, checkpoint = load_model(workspace / "runs" / "teacher")
    assert objective.config.teacher.endswith(checkpoint.path.name)
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    counted = batch["targets"] != -100
    assert not counted.all()
    with torch.no_grad():
        student, expected = (model(batch["inputs"])[counted] for model in (objective.model, teacher))
    labels = F.cross_entropy(student, batch["targets"][counted], reduction="sum")
    soft = 2.5**2 * F.kl_div(
        (student / 2.5).log_softmax(-1), (expected / 2.5).log_softmax(-1), reduction="sum", log_target=True
    )
    for weight in (0.0, 0.3, 1.0):
        loss, count = with_settings(objective, label_weight=weight, temperature=2.5)(**batch)
        torch.testing.assert_close(loss, weight * labels + (1 - weight) * soft)
        assert int(count) == int(counted.sum())
    torch.testing.assert_close(loss, NextToken(objective.model).eval()(**batch)[0])


def test_loss_and_gradient_are_zero_when_student_equals_teacher(workspace):
    objective, config, data = create("distill", workspace, model_n_layers=2, model_drop_rate=0.0)
    objective.model.load_state_dict(load_model(workspace / "runs" / "teacher")[0].state_dict())
    batch = objective.batch(objective.examples(config, data, data.train), range(5), (0,))
    loss, _ = with_settings(objective, label_weight=0.0)(**batch)
    assert abs(loss.item()) < 1e-4
    loss.backward()
    assert max(p.grad.abs().max() for p in objective.parameters()) < 1e-3


def test_teacher_is_not_trained_and_not_saved(workspace, tmp_path):
    trainer = start_run(short_config("distill", workspace), tmp_path / "run", quiet)
    (teacher,) = trainer.objective._teacher
    before = copy.deepcopy(teacher.state_dict())
    trainer.train()
    assert trainer.objective._teacher[0] is teacher
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert trainer.objective.training
    plain = set(GPTModel(trainer.config.model).state_dict())
    assert set(RunFolder(tmp_path / "run").load("last").weights) == plain
    assert {id(p) for p in trainer.parameters} == {id(p) for p in trainer.objective.model.parameters()}


def test_student_can_be_evaluated_without_its_teacher(workspace, tmp_path):
    shutil.copytree(workspace / "runs" / "teacher", tmp_path / "teacher")
    objective = ObjectiveConfig(name="distill", teacher=str(tmp_path / "teacher"))
    trainer = train(short_config("distill", workspace, objective=objective), tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    student, _, checkpoint = load_objective(tmp_path / "run", "last")
    assert student.evaluate(checkpoint.config, trainer.data).loss == pytest.approx(trainer.evaluation.loss)
    assert "".join(student.generate_text("7", trainer.data.tokenizer, True, 3)).startswith("7")
    with pytest.raises(ValueError, match="unknown run"):
        resume_run(tmp_path / "run", log=quiet)


def test_checkpoint_of_the_teacher_is_fixed_when_the_run_starts(workspace, tmp_path):
    name = str(shutil.copytree(workspace / "runs" / "teacher", tmp_path / "teacher"))
    best = (tmp_path / "teacher/checkpoints/best").read_text().strip()
    other = next(step for step in RunFolder(name).steps() if step != best)
    config = short_config("distill", workspace, objective=ObjectiveConfig(name="distill", teacher=name))
    stop_at(start_run(config, tmp_path / "run", quiet), 3)
    assert read_toml(tmp_path / "run" / "config.toml")["objective"]["teacher"] == f"{name}:{best}"
    (tmp_path / "teacher/checkpoints/best").write_text(f"{other}\n")  # it was trained on
    for step, given in ((4, config), (5, None)):
        trainer = resume_run(tmp_path / "run", given, quiet)
        stop_at(trainer, step)
        assert trainer.config.objective.teacher == f"{name}:{best}"
        truth = load_model(name, best)[0].state_dict()
        assert all(torch.equal(t, truth[key]) for key, t in trainer.objective._teacher[0].state_dict().items())
    for wrong in (f"{name}:{other}", "", str(tmp_path / "another")):
        changed = change(config, objective=dataclasses.replace(config.objective, teacher=wrong))
        with pytest.raises(ValueError, match=r"objective\.teacher is .* it cannot change when a run is resumed"):
            resume_run(tmp_path / "run", changed, quiet)
    named = change(config, objective=dataclasses.replace(config.objective, teacher=f"{name}:{other}"))
    assert resolve_config(named, trainer.data)[0].objective.teacher == f"{name}:{other}"


def test_unsuitable_teacher_is_refused(workspace, tmp_path, prepared):
    data, teacher = load_data(workspace / "documents"), str(workspace / "runs" / "teacher")

    def refused(words, name=teacher, data=data, **changes):
        config = short_config("distill", workspace, objective=ObjectiveConfig(name="distill", teacher=name), **changes)
        with pytest.raises(ValueError, match=words) as caught:
            resolve_config(config, data)
        assert "\n" not in str(caught.value)

    refused(r"objective\.teacher is empty: name the run", "")
    refused(r"unknown run 'nobody'", "nobody")
    refused(r"no checkpoint 'step-000009'", f"{teacher}:step-000009")
    refused(r"model\.context_length is 49, but 48 in the teacher", model_context_length=49)
    refused(r"has other tokens than .* prepare the data with --tokenizer .*tokenizer\.json", data=prepared)
    for name in ("reverse",):
        start_run(short_config(name, workspace), tmp_path / name, quiet)._save(is_best=True)
        refused(r"was trained with the objective reverse", str(tmp_path / name))


def test_loss_in_bfloat16_is_summed_in_float32(workspace, tmp_path):
    objective, config, data = create("distill", workspace, model_drop_rate=0.0)
    batch = objective.batch(objective.examples(config, data, data.train), range(30), (0,))
    truth, _ = objective(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(**batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, truth, rtol=0.02, atol=0)
    soft, _ = with_settings(objective, label_weight=0.0)(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(**batch)
    assert loss.dtype == torch.float32
    assert loss.item() != torch.tensor(loss.item(), dtype=torch.bfloat16).item(), "eight bits hold no sum of many"
    torch.testing.assert_close(loss, soft, rtol=0.1, atol=0)
