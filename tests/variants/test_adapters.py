"""Low-rank updates and prefixes against their formulas, and runs of them from beginning to end."""

import copy
import dataclasses
import json
import math
import shutil

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from crashes import Killed, killed_at_every_call
from runs import assert_same_run, change, quiet, stop_at, train
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, GPTConfig, TrainConfig
from gpt.exchange.models import create_objective, load_model, load_objective, resolve_config
from gpt.generation import generate, generate_text_simple
from gpt.model import GPTModel, Linear, MultiHeadAttention
from gpt.ops import fused, use_implementation
from gpt.planning.plan import estimate
from gpt.run.training import resume_run, start_run
from gpt.system.files import checksummed
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.variants import adapt, create_model
from gpt.variants.int8 import Int8GPTModel
from gpt.variants.lora import LoRALinear, merge, unmerge
from gpt.variants.prefix import PrefixAttention

LORA, PREFIX = AdapterConfig("lora", rank=2, alpha=3), AdapterConfig("prefix", length=3)
EVERY = "W_query, W_key, W_value, out_proj, ff.layers.0, layers.2, out_head"
MODEL = GPTConfig(19, 12, 16, 4, 2, 0.0, qkv_bias=True, init="lecun")


def model_of(**changes):
    return GPTModel(dataclasses.replace(MODEL, **changes)).eval()


def adapted(config, model=None, dtype=torch.float32, **changes):
    """A model with an adapter that has moved away from its beginning."""
    model = adapt((model or model_of(**changes)).to(dtype), config).eval()
    for parameter in trained(model).values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def trained(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def tokens(n_batch=2, n_tokens=7):
    return torch.randint(MODEL.vocab_size, (n_batch, n_tokens))


# --- low-rank updates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_update_is_alpha_over_rank_times_b_a(implementation, bias):
    linear = Linear(5, 4, bias).double()
    use_implementation(linear, implementation)
    layer = LoRALinear(linear, rank=2, alpha=7.0)
    layer.lora_B.data.normal_()
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    matrix = linear.weight + 7 / 2 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), F.linear(x, matrix, linear.bias), rtol=0, atol=1e-14)
    torch.testing.assert_close(layer.merged()(x), layer(x), rtol=0, atol=1e-14)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((2, 5), (4, 2))


@pytest.mark.parametrize("tied", [True, False])
def test_it_starts_as_the_model_that_it_is_made_of(tied):
    model, ids = model_of(tie_embeddings=tied), tokens()
    names, logits = set(model.state_dict()), model(ids)
    adapt(model, dataclasses.replace(LORA, targets=EVERY if not tied else EVERY.removesuffix(", out_head")))
    assert torch.equal(model(ids), logits)
    assert {name for name in model.state_dict() if "lora" not in name} == names
    a = model.trf_blocks[0].ff.layers[2].lora_A  # normal, with the variance 1/in
    assert a.std().item() == pytest.approx((4 * MODEL.emb_dim) ** -0.5, rel=0.3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.name)
def test_a_gradient_comes_only_where_something_is_trained(config, tied):
    model = adapted(config, tie_embeddings=tied).train()
    model(tokens(), tokens()).backward()
    marks = ("lora_A", "lora_B") if config is LORA else ("prefix_key", "prefix_value")
    for name, parameter in model.named_parameters():
        new = name.endswith(marks)
        assert parameter.requires_grad == new
        assert (parameter.grad is not None) == new, name
        assert not new or parameter.grad.abs().sum() > 0
    assert len(trained(model)) == 2 * MODEL.n_layers * (2 if config is LORA else 1)  # W_query and W_value; or once


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_gradients_of_updates_follow_from_that_of_the_matrix(implementation):
    """dL/dA = s B^T dL/dW and dL/dB = s dL/dW A^T, with dL/dW that of a plain model of the weights W + s B A."""
    config = dataclasses.replace(LORA, targets=EVERY)
    model, ids, targets = adapted(config, dtype=torch.float64, implementation=implementation), tokens(), tokens()
    plain = copy.deepcopy(model)
    merge(plain)
    model(ids, targets).backward()
    F.cross_entropy(plain(ids).flatten(0, 1), targets.flatten()).backward()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    assert len(layers) == 6 * MODEL.n_layers + 1
    for name, layer in layers.items():
        gradient = plain.get_submodule(name).weight.grad
        torch.testing.assert_close(layer.lora_A.grad, 1.5 * layer.lora_B.T @ gradient, rtol=0, atol=1e-13)
        torch.testing.assert_close(layer.lora_B.grad, 1.5 * gradient @ layer.lora_A.T, rtol=0, atol=1e-13)


class Made(TorchDispatchMode):
    """Collects the shapes of all tensors that PyTorch computes, forward and backward."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        self.shapes |= {made.shape} if isinstance(made, torch.Tensor) else set()
        return made


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("formula", ["linear", "linear_cross_entropy"])
def test_for_a_frozen_matrix_no_gradient_is_computed(formula, trained):
    x, weight, targets = torch.randn(6, 512).requires_grad_(), torch.randn(600, 512), torch.arange(6)
    weight.requires_grad_(trained)
    with Made() as made:
        if formula == "linear":
            fused.linear(x, weight).sum().backward()
        else:
            fused.linear_cross_entropy(x, weight, targets, "sum").backward()
    assert (weight.shape in made.shapes) == trained
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("targets", ["W_query, W_value", EVERY])
def test_merged_it_computes_the_same_and_unmerged_it_is_as_before(targets, dtype, tolerance):
    model, ids, labels = adapted(dataclasses.replace(LORA, targets=targets), dtype=dtype), tokens(), tokens()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, loss = model(ids), model(ids, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()), rtol=0, atol=tolerance)
    matrices = {n: m.weight + 1.5 * m.lora_B @ m.lora_A for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    layers = merge(model)
    assert layers.keys() == matrices.keys()
    assert {type(model.get_submodule(name)) for name in matrices} == {Linear}
    assert model.state_dict().keys() == model_of().state_dict().keys()
    assert len(trained(model)) == len(list(model.parameters()))
    for name, matrix in matrices.items():
        torch.testing.assert_close(model.get_submodule(name).weight, matrix, rtol=0, atol=tolerance)
    torch.testing.assert_close(model(ids), logits, rtol=0, atol=tolerance)
    torch.testing.assert_close(model(ids, labels), loss, rtol=0, atol=tolerance)
    assert merge(model) == {}
    unmerge(model, layers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(ids), logits)
    assert set(trained(model)) == {name for name in before if "lora" in name}


def test_only_what_is_named_gets_an_update():
    model = adapt(
        model_of(), dataclasses.replace(LORA, targets="trf_blocks.1.att.W_key,  out_head, trf_blocks.1.att.W_key")
    )
    assert set(trained(model)) == {
        f"{name}.lora_{letter}" for name in ("trf_blocks.1.att.W_key", "out_head") for letter in "AB"
    }


def test_none_trains_all():
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
def test_what_does_not_fit_is_said(config, changes, words):
    with pytest.raises(ValueError, match=words):
        adapt(create_model(dataclasses.replace(MODEL, **changes)), config)


# --- prefixes ---------------------------------------------------------------------------------------------------------


def masks(n_batch, n_heads, n_queries, n_keys):
    """Each kind of mask, and the (B, H, T, S) that it means."""
    causal = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)
    drawn = torch.rand(n_batch, n_heads, n_queries, n_keys) < 0.5
    every = torch.ones(n_batch, n_heads, n_queries, n_keys, dtype=torch.bool)
    yield "causal", every & causal
    yield "full", every
    yield drawn, drawn
    yield drawn[0, 0], every & drawn[0, 0]
    yield drawn[:, :1, :1], every & drawn[:, :1, :1]  # of keys alone
    yield drawn[:, :1, :, :1], every & drawn[:, :1, :, :1]  # of queries alone


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("n_queries", [1, 3, 5])
def test_every_query_takes_from_the_prefix_and_from_what_its_mask_allows(implementation, n_queries):
    model = adapted(PREFIX, dtype=torch.float64, implementation=implementation)
    layer = model.trf_blocks[1].att
    query = torch.randn(2, 4, n_queries, 4, dtype=torch.float64)
    key, value = torch.randn(2, 2, 4, 5, 4, dtype=torch.float64)
    for mask, allowed in masks(2, 4, n_queries, 5):
        found = layer.attend(query, key, value, mask)
        for b in range(2):
            for h in range(4):
                for t in range(n_queries):
                    seen = allowed[b, h, t]
                    keys = torch.cat([layer.prefix_key[h], key[b, h, seen]])
                    values = torch.cat([layer.prefix_value[h], value[b, h, seen]])
                    weights = torch.exp(keys @ query[b, h, t] / math.sqrt(4))
                    expected = weights @ values / weights.sum()
                    torch.testing.assert_close(found[b, h, t], expected, rtol=0, atol=1e-13)


def test_a_prefix_starts_as_that_of_tokens_before_the_text():
    """The plain model reads the same tokens and then the text, whose positions begin at 0 again."""
    model, ids, length = model_of().double(), tokens(2, 12), PREFIX.length
    torch.manual_seed(3)
    before = torch.randint(MODEL.vocab_size, (1, length)).expand(2, -1)
    positions = torch.cat([torch.arange(length), torch.arange(12)])
    model.config = dataclasses.replace(MODEL, context_length=length + 12)  # room for both
    expected = model.hidden_states(torch.cat([before, ids], dim=1), positions=positions)[:, length:]
    model.config = MODEL
    torch.manual_seed(3)
    adapt(model, PREFIX)
    assert not model.training
    torch.testing.assert_close(model.hidden_states(ids), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.name)
def test_later_tokens_change_nothing_earlier(config):
    model, ids = adapted(config), tokens(1, 10)
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % MODEL.vocab_size
    before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert (before[:, 6:] - after[:, 6:]).abs().amax() > 0.01


def test_a_prefix_changes_what_is_read():
    model, ids = model_of(), tokens()
    plain = model(ids)
    assert (adapted(PREFIX, model)(ids) - plain).abs().amax() > 0.01


@pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.name)
def test_with_a_cache_the_same_is_written(config):
    model, ids = adapted(config, dtype=torch.float64), tokens(3, 4)
    simple = generate_text_simple(model, ids, 14, MODEL.context_length)  # beyond the window of 12
    assert torch.equal(generate(model, ids, 14, temperature=0), simple)
    ragged = [ids[0], ids[1, :1], ids[2, :3]]
    for prompt, written in zip(ragged, generate(model, ragged, 8, temperature=0), strict=True):
        assert torch.equal(written, generate_text_simple(model, prompt[None], 8, MODEL.context_length)[0])


def test_a_prefix_under_autocast_is_near_what_it_is_without():
    model, ids = adapted(PREFIX), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(ids)
    torch.testing.assert_close(half.float(), model(ids), rtol=0.1, atol=0.1)


def test_int8_weights_of_a_model_that_is_merged_and_of_none_that_is_not():
    model = adapted(LORA)
    for unmerged in (model, adapted(PREFIX)):
        with pytest.raises(ValueError, match=r"(lora_A|prefix_key): use float32"):
            Int8GPTModel(unmerged)
    ids = tokens()
    logits = model(ids)
    merge(model)
    assert (Int8GPTModel(model)(ids) - logits).norm() / logits.norm() < 0.05


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


def test_checkpoints_hold_what_is_trained_and_the_rest_is_written_once(config, base, tmp_path):
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


def test_a_run_without_an_adapter_has_nothing_frozen(tiny_config, tmp_path):
    run = train(change(tiny_config, max_steps=1), tmp_path / "run").run
    assert not run.frozen.exists()
    state = json.loads((run.find() / "state.json").read_text())
    assert state.pop("frozen") == ""
    (run.find() / "state.json").write_text(checksummed(state))  # as it was before there were adapters
    assert run.load().state["frozen"] == ""
    resume_run(run.path, run.config(), quiet)


def test_stopped_anywhere_it_ends_in_the_same_bits_without_its_base(config, base, tmp_path):
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


def test_killed_at_any_call_of_its_first_save_it_is_whole_or_not_there(config, tmp_path):
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


def test_killed_between_the_frozen_weights_and_the_checkpoint(config, tmp_path, monkeypatch):
    train(config, tmp_path / "truth")
    with monkeypatch.context() as patch, pytest.raises(Killed):

        def killed(*args):
            raise Killed

        patch.setattr("gpt.checkpoint.whole_folder", killed)
        train(config, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.frozen.exists()
    assert not run.steps()
    trainer = resume_run(tmp_path / "run", log=quiet)
    assert not run.frozen.exists()  # it may be another base's by now
    trainer.train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")


@pytest.mark.parametrize("damage", ["flip", "empty", "delete", "exchange"])
def test_frozen_weights_that_are_not_what_was_written(config, base, tmp_path, damage):
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


def test_a_loaded_run_predicts_what_the_trained_one_did(config, prepared, tmp_path):
    trainer = train(config, tmp_path / "run")
    ids = torch.tensor(prepared.val.tokens[:16].astype(int))[None]
    logits = trainer.objective.model.eval()(ids)
    model, _, _ = load_model(tmp_path / "run", "last")
    torch.testing.assert_close(model(ids), logits, rtol=0, atol=1e-5)
    plain = config.adapter is LORA
    assert (len(trained(model)) == len(list(model.parameters()))) == plain
    assert {type(block.att) for block in model.trf_blocks} == {MultiHeadAttention if plain else PrefixAttention}
    objective, tokenizer, _ = load_objective(tmp_path / "run", "last")
    torch.testing.assert_close(objective.model(ids), logits, rtol=0, atol=1e-5)
    assert objective.evaluate(trainer.config, prepared).loss == pytest.approx(trainer.evaluation.loss, abs=1e-5)
    assert "".join(objective.generate_text("on the", tokenizer, False, 20, temperature=0)).startswith("on the")


def test_a_run_starts_from_a_merged_one_but_from_no_prefix(config, prepared, tmp_path):
    train(config, tmp_path / "run")
    after = change(config, init_from=str(tmp_path / "run"), adapter=AdapterConfig(), max_steps=1)
    if config.adapter is PREFIX:
        with pytest.raises(ValueError, match=r"has a prefix, which is no part .* start from .*base.*run"):
            start_run(after, tmp_path / "after", quiet)
        return
    objective = create_objective(resolve_config(after, prepared)[0])
    theirs = load_model(tmp_path / "run")[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in objective.model.state_dict().items())
    assert len(trained(objective)) == len(list(objective.parameters()))


def test_the_plan_counts_what_is_trained(config, prepared):
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


# --- the run that another starts from ---------------------------------------------------------------------------------


def test_the_shape_of_a_model_is_that_of_the_run_it_starts_from(tiny_config, prepared, base):
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
def test_a_model_of_another_shape_is_refused(tiny_config, prepared, base, setting, words):
    model = GPTConfig(**{"vocab_size": 0, **setting})
    with pytest.raises(ValueError, match=words):
        resolve_config(change(tiny_config, init_from=str(base), model=model), prepared)


def test_other_tokens_an_unknown_run_and_none_are_refused(tiny_config, prepared, base, tmp_path):
    with pytest.raises(ValueError, match="unknown run 'nowhere'"):
        resolve_config(change(tiny_config, init_from="nowhere"), prepared)
    with pytest.raises(ValueError, match=r"adapter 'lora' is trained beside the weights of another run: .* init_from"):
        resolve_config(change(tiny_config, adapter=LORA), prepared)
    story = prepare_data(open_corpus("story"), "char", tmp_path / "story")
    left_out = change(tiny_config, init_from=str(base), model=GPTConfig(vocab_size=0))
    with pytest.raises(ValueError, match=r"has other tokens than .*--tokenizer .*tokenizer.json"):
        resolve_config(left_out, story)


def test_an_objectives_token_that_the_run_lacks_is_named(tiny_config, prepared, base, monkeypatch):
    monkeypatch.setattr("gpt.objectives.NextToken.special_tokens", ("[SEP]",))
    with pytest.raises(ValueError, match=r"has no token \[SEP\], which objective.name 'next_token' adds"):
        resolve_config(change(tiny_config, init_from=str(base), model=GPTConfig(vocab_size=0)), prepared)
