"""Runs with an adapter, from start to finish: checkpoints, frozen weights, resuming, loading, plans."""

import shutil

import pytest
import safetensors.torch
import torch
from blocks import GPT2_BLOCK, MODERN_BLOCK
from crashes import Killed, killed_at_every_call
from runs import assert_same_run, change, quiet, stop_at, train
from small_adapters import LORA, PREFIX, close, train_base, trained

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, GPTConfig
from gpt.exchange.models import create_objective, load_model, load_objective, resolve_config
from gpt.model import MultiHeadAttention
from gpt.planning.plan import estimate
from gpt.run.training import resume_run, start_run
from gpt.variants import adapt, create_model
from gpt.variants.prefix import PrefixAttention


@pytest.fixture(scope="module", params=[(LORA, GPT2_BLOCK), (PREFIX, MODERN_BLOCK)], ids=["lora-gpt2", "prefix-modern"])
def pair(request):
    """Return an adapter, and the block of the model that it adapts."""
    return request.param


@pytest.fixture(scope="module")
def base(pair, prepared, tmp_path_factory):
    """Return the folder of a pretrained run, which other runs start from."""
    return train_base(prepared, tmp_path_factory.mktemp("base") / "run", pair[1])


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture
def config(pair, tiny_config, base):
    """Return the config of a run that adapts the pretrained model."""
    model = GPTConfig(vocab_size=0, drop_rate=0.1)
    return change(tiny_config, init_from=str(base), adapter=pair[0], model=model)


def own_weights(run, which="last"):
    """Return the weights in the checkpoint itself, without the frozen ones."""
    return safetensors.torch.load_file(RunFolder(run).find(which) / "model.safetensors")


def test_checkpoints_hold_trained_weights_and_frozen_ones_are_saved_once(config, base, tmp_path):
    trainer = train(config, tmp_path / "run")
    run, plain = RunFolder(tmp_path / "run"), RunFolder(base).load("best").weights
    assert own_weights(run.path).keys() == trained(trainer.objective.model).keys()
    assert len(trainer.parameters) == len(own_weights(run.path))
    frozen = safetensors.torch.load_file(run.frozen)
    assert frozen.keys() == plain.keys()
    assert all(torch.equal(frozen[name], plain[name]) for name in plain)
    assert run.frozen.stat().st_mode == (run.path / "config.toml").stat().st_mode
    for step in run.steps():
        assert run.load(step).weights.keys() == frozen.keys() | own_weights(run.path).keys()
    started = own_weights(run.path, run.steps()[0])
    assert all((own_weights(run.path)[name] - started[name]).abs().max() > 0 for name in started)
    assert len(list(run.path.rglob("frozen.safetensors"))) == 1


def test_run_without_an_adapter_has_no_frozen_file(tiny_config, tmp_path):
    run = train(change(tiny_config, max_steps=1), tmp_path / "run").run
    assert not run.frozen.exists()
    assert run.load().state["frozen"] == ""
    resume_run(run.path, run.config(), quiet)


def test_resumed_run_needs_no_pretrained_run_and_gives_the_same_bits(config, base, tmp_path):
    train(config, tmp_path / "truth")
    pretrained = tmp_path / "base"
    shutil.copytree(base, pretrained)
    config = change(config, init_from=str(pretrained))
    stop_at(start_run(config, tmp_path / "run", quiet), 2)
    shutil.rmtree(pretrained)
    frozen = (tmp_path / "run/frozen.safetensors").stat()
    stop_at(resume_run(tmp_path / "run", log=quiet), 7)
    resume_run(tmp_path / "run", log=quiet).train()
    after = (tmp_path / "run/frozen.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino) == (frozen.st_mtime_ns, frozen.st_ino)
    a, b = (RunFolder(tmp_path / name).load("last") for name in ("run", "truth"))
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert a.state["frozen"] == b.state["frozen"] != ""


def test_first_checkpoint_is_complete_or_absent_whenever_the_run_is_killed(config, tmp_path):
    trainer = train(change(config, max_steps=1, eval_every=0), tmp_path / "run")
    run, n_kills, n_complete = trainer.run, 0, 0

    def start_over():
        shutil.rmtree(run.checkpoints)
        run.checkpoints.mkdir()
        run.frozen.unlink(missing_ok=True)
        run._frozen_sha256 = ""

    start_over()
    for _ in killed_at_every_call(lambda n: trainer._save(is_best=True)):
        if run.steps():
            assert len(run.load("last").weights) == len(trainer.objective.state_dict()) - 1  # the tied head
            n_complete += 1
        n_kills += 1
        start_over()
    assert n_kills > 10
    assert 0 < n_complete < n_kills


def test_run_killed_before_its_first_checkpoint_starts_over(config, tmp_path, monkeypatch):
    train(config, tmp_path / "truth")
    with monkeypatch.context() as patch, pytest.raises(Killed):

        def killed(*args):
            raise Killed

        patch.setattr("gpt.checkpoint.atomic_folder", killed)
        train(config, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.frozen.exists()
    assert not run.steps()
    trainer = resume_run(tmp_path / "run", log=quiet)
    assert not run.frozen.exists()  # it may be another base's by now
    trainer.train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")


@pytest.mark.parametrize("damage", ["flip", "delete", "exchange"])
def test_damaged_frozen_weights_are_refused(config, base, tmp_path, damage):
    run = train(change(config, max_steps=2), tmp_path / "run").run
    content = bytearray(run.frozen.read_bytes())
    content[-100] ^= 1
    if damage == "delete":
        run.frozen.unlink()
    elif damage == "exchange":
        shutil.copy(RunFolder(base).find() / "model.safetensors", run.frozen)
        weights = safetensors.torch.load_file(run.frozen)
        safetensors.torch.save_file({n: w + 1e-3 for n, w in weights.items()}, run.frozen)
    else:
        run.frozen.write_bytes(content)
    words = "frozen.safetensors is " + ("missing" if damage == "delete" else "damaged")
    for act in (lambda: resume_run(run.path, log=quiet), lambda: load_model(run.path), lambda: run.load("best")):
        with pytest.raises(ValueError, match=words):
            act()


def test_loaded_run_gives_the_same_logits(config, prepared, tmp_path):
    trainer = train(config, tmp_path / "run")
    ids = torch.tensor(prepared.val.tokens[:16].astype(int))[None]
    logits = trainer.objective.model.eval()(ids)
    model, _, _ = load_model(tmp_path / "run", "last")
    torch.testing.assert_close(model(ids), logits, **close(torch.float32))
    plain = config.adapter is LORA
    assert (len(trained(model)) == len(list(model.parameters()))) == plain
    assert {type(block.att) for block in model.trf_blocks} == {MultiHeadAttention if plain else PrefixAttention}
    objective, tokenizer, _ = load_objective(tmp_path / "run", "last")
    torch.testing.assert_close(objective.model(ids), logits, **close(torch.float32))
    assert objective.evaluate(trainer.config, prepared).loss == pytest.approx(
        trainer.evaluation.loss, abs=close(torch.float32)["atol"]
    )
    assert "".join(objective.generate_text("on the", tokenizer, False, 20, temperature=0)).startswith("on the")


def test_run_can_start_from_a_lora_run_but_not_from_a_prefix(config, prepared, tmp_path):
    train(config, tmp_path / "run")
    after = change(config, init_from=str(tmp_path / "run"), adapter=AdapterConfig(), max_steps=1)
    if config.adapter is PREFIX:
        with pytest.raises(ValueError, match=r"has a prefix, which is not part .* start from .*base.*run"):
            start_run(after, tmp_path / "after", quiet)
        return
    objective = create_objective(resolve_config(after, prepared)[0])
    theirs = load_model(tmp_path / "run")[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in objective.model.state_dict().items())
    assert len(trained(objective)) == len(list(objective.parameters()))


def test_plan_counts_only_trained_parameters(config, prepared):
    filled, _ = resolve_config(config, prepared)
    model = adapt(create_model(filled.model), filled.adapter)
    own, plain = estimate(filled), estimate(change(filled, adapter=AdapterConfig()))
    n_trained, added = sum(p.numel() for p in trained(model).values()), sum(p.numel() for p in model.parameters())
    assert own.n_parameters == added
    assert own.memory["weights"] == 4 * added
    assert own.memory["gradients"] == 4 * n_trained
    assert own.memory["optimizer"] == 8 * n_trained
    assert own.disk < plain.disk
    assert plain.memory["gradients"] == 4 * plain.n_parameters
