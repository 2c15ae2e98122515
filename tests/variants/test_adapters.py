"""What LoRA and prefixes share: frozen weights, generation, and runs from start to finish."""

import dataclasses
import shutil

import pytest
import safetensors.torch
import torch
from crashes import Killed, killed_at_every_call
from runs import assert_same_run, change, quiet, stop_at, train
from small_adapters import LORA, MODEL, PREFIX, adapted, close, model_of, tokens, trained

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, GPTConfig, TrainConfig
from gpt.exchange.models import create_objective, load_model, load_objective, resolve_config
from gpt.generation import generate, generate_text_simple
from gpt.model import MultiHeadAttention
from gpt.planning.plan import estimate
from gpt.run.training import resume_run, start_run
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.variants import adapt, create_model
from gpt.variants.prefix import PrefixAttention


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.name)
def test_only_the_adapter_gets_gradients(config, tied):
    model = adapted(config, tie_embeddings=tied).train()
    model(tokens(), tokens()).backward()
    marks = ("lora_A", "lora_B") if config is LORA else ("prefix_key", "prefix_value")
    for name, parameter in model.named_parameters():
        new = name.endswith(marks)
        assert parameter.requires_grad == new
        assert (parameter.grad is not None) == new, name
        assert not new or parameter.grad.abs().sum() > 0
    assert len(trained(model)) == 2 * MODEL.n_layers * (2 if config is LORA else 1)  # W_query and W_value; or once


def test_adapter_none_trains_everything():
    model = adapt(model_of(), AdapterConfig())
    assert len(trained(model)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (dataclasses.replace(LORA, targets="W_qeury"), {}, "called 'W_qeury'; choose from att.W_key, .*, ff.layers.0"),
        (dataclasses.replace(LORA, targets="query"), {}, "no layer is called 'query'"),
        (dataclasses.replace(LORA, targets=""), {}, "no layer is called ''; choose from .*out_head"),
        (dataclasses.replace(LORA, targets="W_query,"), {}, "no layer is called ''"),
        (dataclasses.replace(LORA, targets="out_head"), {"tie_embeddings": True}, "out_head shares its weight"),
        (dataclasses.replace(LORA, rank=17), {}, "adapter.rank 17 exceeds the rank 16"),
        (dataclasses.replace(PREFIX, length=13), {}, "adapter.length 13 exceeds .* context_length 12"),
        (LORA, {"backbone": "lstm"}, "'lora' needs the backbone 'gpt', not 'lstm'"),
        (PREFIX, {"backbone": "lstm"}, "'prefix' needs the backbone 'gpt', not 'lstm'"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(config, changes, words):
    with pytest.raises(ValueError, match=words):
        adapt(create_model(dataclasses.replace(MODEL, **changes)), config)


@pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.name)
def test_adapted_model_is_causal(config):
    model, ids = adapted(config), tokens(1, 10)
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % MODEL.vocab_size
    before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :6], after[:, :6], **close(torch.float32))
    assert (before[:, 6:] - after[:, 6:]).abs().amax() > 0.01


@pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.name)
def test_generation_with_a_cache_is_unchanged(config):
    model, ids = adapted(config, dtype=torch.float64), tokens(3, 4)
    simple = generate_text_simple(model, ids, 14, MODEL.context_length)  # beyond the window of 12
    assert torch.equal(generate(model, ids, 14, temperature=0), simple)
    ragged = [ids[0], ids[1, :1], ids[2, :3]]
    for prompt, written in zip(ragged, generate(model, ragged, 8, temperature=0), strict=True):
        assert torch.equal(written, generate_text_simple(model, prompt[None], 8, MODEL.context_length)[0])


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory):
    """A run of two steps, which others start from."""
    config = TrainConfig(
        seed=1, max_steps=2, batch_size=4, sample_every=0, sample_prompt="on the", device="cpu",
        model=dataclasses.replace(MODEL, vocab_size=0, context_length=16, tie_embeddings=True),
        data=DataConfig(path=str(prepared.folder), stride=256),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
        return train(config, tmp_path_factory.mktemp("base") / "run").run.path


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture(params=[LORA, PREFIX], ids=lambda config: config.name)
def config(request, tiny_config, base):
    """A run that adapts the base."""
    model = GPTConfig(vocab_size=0, drop_rate=0.1)
    return change(tiny_config, init_from=str(base), adapter=request.param, model=model)


def own_weights(run, which="last"):
    """What a checkpoint holds itself."""
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


def test_resumed_run_needs_no_base_and_gives_the_same_bits(config, base, tmp_path):
    train(config, tmp_path / "truth")
    gone = tmp_path / "base"
    shutil.copytree(base, gone)
    config = change(config, init_from=str(gone))
    stop_at(start_run(config, tmp_path / "run", quiet), 2)
    shutil.rmtree(gone)
    frozen = (tmp_path / "run/frozen.safetensors").stat()
    for step in (3, 7, 10):
        stop_at(resume_run(tmp_path / "run", log=quiet), step)
    resume_run(tmp_path / "run", log=quiet).train()
    after = (tmp_path / "run/frozen.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino) == (frozen.st_mtime_ns, frozen.st_ino)
    a, b = (RunFolder(tmp_path / name).load("last") for name in ("run", "truth"))
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert a.state["frozen"] == b.state["frozen"] != ""


def test_first_save_is_atomic(config, tmp_path):
    trainer = train(change(config, max_steps=1, eval_every=0), tmp_path / "run")
    run, deaths, whole = trainer.run, 0, 0

    def forget():
        shutil.rmtree(run.checkpoints)
        run.checkpoints.mkdir()
        run.frozen.unlink(missing_ok=True)
        run._frozen_sha256 = ""

    forget()
    for _ in killed_at_every_call(lambda n: trainer._save(is_best=True)):
        if run.steps():
            assert len(run.load("last").weights) == len(trainer.objective.state_dict()) - 1  # the tied head
            whole += 1
        deaths += 1
        forget()
    assert deaths > 10
    assert 0 < whole < deaths


def test_kill_between_frozen_weights_and_checkpoint(config, tmp_path, monkeypatch):
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


@pytest.mark.parametrize("damage", ["flip", "empty", "delete", "exchange"])
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
        run.frozen.write_bytes(b"" if damage == "empty" else content)
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


# --- init_from ---------------------------------------------------------------------------------


def test_model_shape_comes_from_init_from(tiny_config, prepared, base):
    left_out = GPTConfig(vocab_size=0, drop_rate=0.25, implementation="reference")
    found = resolve_config(change(tiny_config, init_from=str(base), model=left_out), prepared)[0].model
    assert found == dataclasses.replace(load_model(base)[0].config, drop_rate=0.25, implementation="reference")
    for agreed in (GPTConfig(), dataclasses.replace(found, vocab_size=0), found):
        assert resolve_config(change(tiny_config, init_from=str(base), model=agreed), prepared)[0].model.emb_dim == 16
    objective = create_objective(resolve_config(change(tiny_config, init_from=str(base), model=left_out), prepared)[0])
    theirs = load_model(base)[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in objective.model.state_dict().items())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"n_layers": 3}, "model.n_layers is 3, but 2 in .*: leave it out"),
        ({"vocab_size": 7}, "model.vocab_size is 7, but "),
        ({"init": "gpt2"}, "model.init is 'gpt2', but 'lecun'"),
        ({"backbone": "lstm"}, "model.backbone is 'lstm', but 'gpt'"),
    ],
)
def test_other_model_shape_is_refused(tiny_config, prepared, base, setting, words):
    model = GPTConfig(**{"vocab_size": 0, **setting})
    with pytest.raises(ValueError, match=words):
        resolve_config(change(tiny_config, init_from=str(base), model=model), prepared)


def test_invalid_init_from_is_refused(tiny_config, prepared, base, tmp_path):
    with pytest.raises(ValueError, match="unknown run 'nowhere'"):
        resolve_config(change(tiny_config, init_from="nowhere"), prepared)
    with pytest.raises(ValueError, match=r"adapter 'lora' needs a model to adapt: .* init_from"):
        resolve_config(change(tiny_config, adapter=LORA), prepared)
    story = prepare_data(open_corpus("story"), "char", tmp_path / "story")
    left_out = change(tiny_config, init_from=str(base), model=GPTConfig(vocab_size=0))
    with pytest.raises(ValueError, match=r"has other tokens than .*--tokenizer .*tokenizer.json"):
        resolve_config(left_out, story)


def test_missing_special_token_is_named(tiny_config, prepared, base, monkeypatch):
    monkeypatch.setattr("gpt.objectives.NextToken.special_tokens", ("[SEP]",))
    with pytest.raises(ValueError, match=r"has no token \[SEP\], which objective.name 'next_token' adds"):
        resolve_config(change(tiny_config, init_from=str(base), model=GPTConfig(vocab_size=0)), prepared)
