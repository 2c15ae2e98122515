"""Freezing by name: which parameters, what training does to them, what checkpoints and plans make of them."""

import dataclasses

import pytest
import safetensors.torch
import torch
from runs import assert_same_run, change, quiet, stop_at, train

from gpt.checkpoint import RunFolder
from gpt.config import GPTConfig, OptimConfig
from gpt.exchange.models import create_objective, load_model, resolve_config
from gpt.model import GPTModel
from gpt.objectives.weights import freeze
from gpt.optim import create_optimizer
from gpt.planning.memory import optimizer_bytes
from gpt.planning.plan import estimate, format_plan
from gpt.run.notices import freeze_notices
from gpt.run.training import resume_run, start_run

TWELVE = GPTConfig(vocab_size=7, context_length=4, emb_dim=4, n_heads=2, n_layers=12)
FREEZE = "tok_emb, trf_blocks.0, trf_blocks.1.att"


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.mark.parametrize(
    ("beginnings", "frozen"),
    [
        ("trf_blocks.1", lambda parts: parts[:2] == ["trf_blocks", "1"]),
        ("tok_emb,trf_blocks.10.att", lambda p: p[0] == "tok_emb" or p[:3] == ["trf_blocks", "10", "att"]),
        ("trf_blocks.11.ff.layers.0.bias", lambda parts: parts == ["trf_blocks", "11", "ff", "layers", "0", "bias"]),
        (" trf_blocks , ", lambda parts: parts[0] == "trf_blocks"),
        ("", lambda parts: False),
    ],
)
def test_names_are_compared_in_whole_parts(beginnings, frozen):
    model = GPTModel(TWELVE)
    freeze(model, beginnings)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not frozen(name.split("."))), name


@pytest.mark.parametrize(
    ("beginnings", "words"),
    [
        ("tok_emb, tok_em", "begins with 'tok_em': did you mean tok_emb."),
        ("trf_blocks.12", "begins with 'trf_blocks.12': .*, trf_blocks.0 to trf_blocks.11, final_norm"),
        ("wte", "'wte': there are tok_emb, pos_emb, trf_blocks.0 to trf_blocks.11, final_norm, out_head$"),
        ("att", "begins with 'att'"),
        ("tok_emb, pos_emb, trf_blocks, final_norm, out_head", "leaves no parameter to train: name fewer"),
    ],
)
def test_a_name_that_freezes_nothing_or_all_is_refused(beginnings, words):
    with pytest.raises(ValueError, match=f"^freeze.*{words}"):
        freeze(GPTModel(TWELVE), beginnings)


@pytest.mark.parametrize("name", ["tok_emb", "out_head"])
def test_a_shared_weight_is_frozen_under_either_name(tiny_config, name):
    config = change(tiny_config, freeze=name, model=dataclasses.replace(TWELVE, tie_embeddings=True))
    model = GPTModel(config.model)
    freeze(model, name)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["tok_emb.weight"]
    assert "so both are frozen" in freeze_notices(config)[0]
    assert not freeze_notices(change(config, freeze="tok_emb, out_head"))
    assert not freeze_notices(change(config, model=TWELVE))


def test_frozen_weights_stay_and_the_others_are_trained_as_before(tiny_config, tmp_path):
    optim = dataclasses.replace(tiny_config.optim, grad_clip=0.0)  # the norm is that of all trained weights
    config = change(tiny_config, freeze=FREEZE, optim=optim, max_steps=1)
    start = create_objective(resolve_config(config, start_run(config, tmp_path / "a", quiet).data)[0])
    trainer, plain = train(config, tmp_path / "frozen"), train(change(config, freeze=""), tmp_path / "plain")
    torch.manual_seed(config.seed)
    start = GPTModel(trainer.config.model).state_dict()
    after, all_trained = (t.objective.model.state_dict() for t in (trainer, plain))
    frozen = ("tok_emb.", "trf_blocks.0.", "trf_blocks.1.att.")
    for name, weight in after.items():
        assert torch.equal(weight, (start if name.startswith(frozen) else all_trained)[name]), name
        assert torch.equal(weight, start[name]) == name.startswith(frozen), name


def test_checkpoints_hold_the_trained_weights_and_a_run_resumes_exactly(tiny_config, tmp_path):
    config = change(tiny_config, freeze=FREEZE)
    trainer = train(config, tmp_path / "truth")
    stop_at(start_run(config, tmp_path / "run", quiet), 3)
    stop_at(resume_run(tmp_path / "run", log=quiet), 7)
    resume_run(tmp_path / "run", log=quiet).train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")
    run = RunFolder(tmp_path / "run")
    own = safetensors.torch.load_file(run.find("last") / "model.safetensors")
    shared = safetensors.torch.load_file(run.frozen)
    assert own.keys() == {n for n, p in trainer.objective.model.named_parameters() if p.requires_grad}
    assert shared.keys() == {n for n, p in trainer.objective.model.named_parameters() if not p.requires_grad}
    assert all(p.requires_grad for p in load_model(run)[0].parameters())
    with pytest.raises(ValueError, match=r"freeze is 'tok_emb.*' in this run, not '': it cannot change"):
        resume_run(run.path, change(run.config(), freeze=""), quiet)


def test_the_top_of_a_trained_model_is_trained_further(tiny_config, tmp_path):
    train(change(tiny_config, max_steps=2), tmp_path / "base")
    base = load_model(tmp_path / "base")[0].state_dict()
    config = change(tiny_config, init_from=str(tmp_path / "base"), freeze="tok_emb, pos_emb, trf_blocks.0")
    train(change(config, model=GPTConfig(vocab_size=0)), tmp_path / "run")
    for name, weight in load_model(tmp_path / "run", "last")[0].state_dict().items():
        frozen = name.startswith(("tok_emb", "pos_emb", "trf_blocks.0."))
        assert torch.equal(weight, base[name]) == frozen, name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_plan_counts_what_is_trained(tiny_config, prepared, optimizer, tied):
    config = change(
        tiny_config, freeze="out_head, trf_blocks.0", model_tie_embeddings=tied, optim=OptimConfig(optimizer)
    )
    config, _ = resolve_config(config, prepared)
    objective, plan = create_objective(config), estimate(config)
    trained = [p for p in objective.parameters() if p.requires_grad]
    n_trained = sum(p.numel() for p in trained)
    assert (plan.n_trained, plan.memory["gradients"]) == (n_trained, 4 * n_trained)
    assert plan.memory["weights"] == 4 * sum(p.numel() for p in objective.parameters())
    assert f"of them trained       {n_trained:,}" in format_plan(plan)
    network = create_optimizer(objective, config.optim)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    network.step()
    moments = [t for state in network.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    assert optimizer_bytes(config, n_trained) == sum(4 * t.numel() for t in moments)
