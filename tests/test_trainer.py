"""Compare the training loop with one written by hand, and interrupted runs with uninterrupted ones."""

import contextlib
import dataclasses
import functools
import gc
import itertools
import math
import shutil
import signal
import subprocess
import sys
import threading
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from blocks import GPT2_BLOCK, MODERN_BLOCK, WINDOWED_BLOCK
from conftest import corpus_of
from crashes import Killed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import tolerance
from runs import assert_same_run, change, quiet, rows, stop_at, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gpt.checkpoint
from gpt.checkpoint import RunFolder
from gpt.config import DataConfig, OptimConfig
from gpt.exchange.models import load_model
from gpt.loss import evaluate
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken
from gpt.optim import learning_rate
from gpt.run.logging import read_metrics
from gpt.run.training import resume_run, start_run
from gpt.system.distributed import DistContext
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.text.tokenizers import get_tokenizer
from gpt.trainer import Trainer


@pytest.fixture
def drawn():
    """Draw loss.png in this test."""


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Skip plots and shorten samples, which take most of the time of a tiny run."""
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


def by_hand(config, data, steps, double=False, even_tokens_only=False):
    """Train in plain PyTorch: one large batch per step, mean loss, clipping, AdamW."""
    torch.manual_seed(config.seed)
    model = GPTModel(dataclasses.replace(config.model, vocab_size=data.tokenizer.vocab_size))
    if double:
        model.double()
    o = config.optim
    matrices, vectors = ([p for p in model.parameters() if (p.dim() >= 2) == big] for big in (True, False))
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2))
    tokens, T, stride = data.train.tokens.astype(np.int64), config.model.context_length, config.data.stride
    n_examples, batch = (len(tokens) - T - 1) // stride + 1, config.batch_size * config.grad_accum_steps
    losses, norms = [], []
    for step in range(steps):
        starts = []
        for index in range(step * batch, (step + 1) * batch):
            order = np.random.default_rng([config.seed, index // n_examples]).permutation(n_examples)
            starts.append(order[index % n_examples] * stride)
        window = torch.tensor(np.array([tokens[s : s + T + 1] for s in starts]))
        logits = model(window[:, :-1])
        targets = window[:, 1:].flatten()
        if even_tokens_only:
            targets = torch.where(targets % 2 == 0, targets, -100)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        for p in model.parameters():
            p.grad *= min(1.0, o.grad_clip / norms[-1])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, o, config.max_steps)
        optimizer.step()
        losses.append(loss.item())
    return model, losses, norms


def double_trainer(config, data, folder, objective=NextToken):
    """Return a Trainer in float64, where an error of accumulation cannot hide in rounding."""
    torch.manual_seed(config.seed)
    config = change(config, model_vocab_size=data.tokenizer.vocab_size)
    run = RunFolder(folder)
    run.create(config, data.tokenizer)
    return Trainer(config, objective(GPTModel(config.model).double()), data, run, log=quiet)


def weight_tolerance(n_steps, n_tokens, optim):
    """Return how far float64 weights may be apart after some steps of AdamW.

    An update is lr g / (|g| + eps) at first, and its derivative by the gradient g is at most lr / eps. A gradient is a
    sum over the tokens of a step, clipped to grad_clip.
    """
    adamw_eps = 1e-8
    return n_steps * optim.lr / adamw_eps * tolerance(n_tokens, optim.grad_clip)


@pytest.mark.parametrize(("grad_accum_steps", "block"), [(1, GPT2_BLOCK), (4, GPT2_BLOCK), (4, MODERN_BLOCK)])
def test_steps_equal_a_loop_written_by_hand(tiny_config, prepared, tmp_path, grad_accum_steps, block):
    config = change(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, **block),
        model_drop_rate=0.0,
        batch_size=8 // grad_accum_steps,
        grad_accum_steps=grad_accum_steps,
        max_steps=5,
    )
    model, _, norms = by_hand(config, prepared, 5, double=True)
    trainer = double_trainer(config, prepared, tmp_path / "run")
    trainer.train()
    assert trainer.grad_norm == pytest.approx(norms[-1], rel=1e-6)  # AdamW hides the scale of a gradient
    atol = weight_tolerance(5, 8 * 16, config.optim)
    for ours, theirs in zip(trainer.objective.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


class EvenTokensOnly(NextToken):
    """Count only targets with an even id, so that micro-batches have different token counts."""

    def forward(self, inputs, targets):
        return super().forward(inputs, torch.where(targets % 2 == 0, targets, -100))


def test_micro_batches_of_unequal_token_counts_equal_one_large_batch(tiny_config, prepared, tmp_path):
    weights, norms = [], []
    for batch_size, grad_accum_steps in ((8, 1), (2, 4)):
        config = change(
            tiny_config, model_drop_rate=0.0, batch_size=batch_size, grad_accum_steps=grad_accum_steps, max_steps=3
        )
        trainer = double_trainer(config, prepared, tmp_path / str(grad_accum_steps), EvenTokensOnly)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.objective.parameters()]))
        norms.append(trainer.grad_norm)
    torch.testing.assert_close(*weights, rtol=0, atol=weight_tolerance(3, 8 * 16, config.optim))
    _, _, true_norms = by_hand(config, prepared, 3, double=True, even_tokens_only=True)
    assert norms == pytest.approx([true_norms[-1]] * 2, rel=1e-6)


def test_metrics_equal_those_computed_by_hand(tiny_config, prepared, tmp_path):
    config = change(tiny_config, model_drop_rate=0.0, log_every=2, eval_every=4, max_steps=8)
    trainer = train(config, tmp_path / "run")
    _, losses, norms = by_hand(config, prepared, 8)
    columns = read_metrics(trainer.run.metrics)
    assert columns["step"] == [0, 2, 4, 6, 8]
    assert columns["tokens_seen"] == [k * 8 * 16 for k in (0, 2, 4, 6, 8)]
    assert columns["train_loss"][1:] == pytest.approx([np.mean(losses[k : k + 2]) for k in (0, 2, 4, 6)], rel=1e-4)
    assert columns["train_perplexity"][1:] == pytest.approx(np.exp(columns["train_loss"][1:]), rel=1e-6)
    assert columns["grad_norm"][1:] == pytest.approx(norms[1::2], rel=1e-3)
    assert columns["lr"][1:] == pytest.approx([learning_rate(k, config.optim, 8) for k in (1, 3, 5, 7)])
    assert [not math.isnan(v) for v in columns["val_loss"]] == [True, False, True, False, True]
    assert columns["val_loss"][0] == pytest.approx(math.log(prepared.tokenizer.vocab_size), abs=0.05)
    model, _, _ = load_model(tmp_path / "run", "last")
    val = evaluate(model, prepared.val.tokens, 16)
    assert columns["val_loss"][-1] == pytest.approx(val.loss, rel=1e-6)
    assert columns["val_loss_se"][-1] == pytest.approx(val.standard_error, rel=1e-5)
    assert columns["val_perplexity"][-1] == pytest.approx(math.exp(val.loss), rel=1e-6)
    # ASCII text, one token per character: one byte per token
    assert columns["val_bits_per_byte"][-1] == pytest.approx(val.loss / math.log(2), rel=1e-6)


def test_a_run_learns(tiny_config, tmp_path):
    config = change(
        tiny_config, model_drop_rate=0.0, grad_accum_steps=1, max_steps=100, eval_every=50, sample_every=0, save_every=0
    )
    trainer = train(config, tmp_path / "run")
    val = read_metrics(trainer.run.metrics)["val_loss"]
    assert val[0] > 3.3
    assert val[-1] < 2.0


def test_a_run_stopped_often_equals_an_uninterrupted_one(tiny_config, tmp_path):
    """With dropout and gradient accumulation, across epochs, on and off the reporting intervals."""
    truth, broken = tmp_path / "truth", tmp_path / "broken"
    trainer = train(tiny_config, truth)
    assert len(trainer.examples) < 12 * 8 / 2  # the third epoch begins
    stop_at(start_run(tiny_config, broken, quiet), 1)
    for before, step in itertools.pairwise((1, 2, 3, 5, 6, 8, 12)):
        trainer = resume_run(broken, log=quiet)
        assert trainer.step == before
        stop_at(trainer, step)
    resume_run(broken, log=quiet).train()
    assert_same_run(broken, truth)


@pytest.mark.parametrize(
    "changes",
    [{"model_backbone": "lstm"}, {"model_implementation": "reference"},
     {f"model_{name}": value for name, value in MODERN_BLOCK.items()},
     {f"model_{name}": value for name, value in WINDOWED_BLOCK.items()} | {"dtype": "bfloat16"},
     {"dtype": "bfloat16", "model_tie_embeddings": True}, {"dtype": "float16"},
     {"optim": OptimConfig(schedule="linear", warmup_steps=3, grad_clip=0.0)}, {"packing": "document"},
     {"optim": OptimConfig(name="muon", lr=0.02)},
     {"eval_batches": 1, "eval_every": 1, "keep_checkpoints": 1}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_run_resumes_exactly(tiny_config, tmp_path, changes):
    if changes.pop("packing", None):
        texts = [f"{n} green bottles, hanging on the wall, {'one ' * (n % 5)}more" for n in range(40)]
        prepare_data(corpus_of(tmp_path / "texts", *texts), "char", tmp_path / "data")
        changes["data"] = DataConfig(path=str(tmp_path / "data"), packing="document")
    config = change(tiny_config, max_steps=8, **changes)
    train(config, tmp_path / "truth")
    stop_at(start_run(config, tmp_path / "run", quiet), 2)
    stop_at(resume_run(tmp_path / "run", log=quiet), 5)
    resume_run(tmp_path / "run", log=quiet).train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=3, suppress_health_check=list(HealthCheck))
@given(
    every=st.fixed_dictionaries({f"{w}_every": st.integers(w == "log", 5) for w in ("log", "eval", "save", "sample")}),
    max_steps=st.integers(1, 9),
    grad_accum_steps=st.integers(1, 2),
    stops=st.lists(st.integers(0, 9), max_size=3),
    kills=st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip
def test_runs_stopped_or_killed_anywhere_end_in_the_same_bits(
    tiny_config, tmp_path_factory, every, max_steps, grad_accum_steps, stops, kills
):
    """A stop saves at once; a kill loses the steps since the last checkpoint, which are then repeated."""
    folder = tmp_path_factory.mktemp("any")
    config = change(tiny_config, max_steps=max_steps, grad_accum_steps=grad_accum_steps, **every)
    train(config, folder / "truth")
    trainer = start_run(config, folder / "run", quiet)
    for step, killed in sorted([*((step, False) for step in stops), *((step, True) for step in kills)]):
        inner, last_step = trainer._train_step, step

        def one_step(inner=inner, trainer=trainer, last_step=last_step, killed=killed):
            if killed and trainer.step >= last_step:
                raise Killed
            inner()
            if not killed and trainer.step >= last_step:
                trainer.signal = signal.SIGTERM

        trainer._train_step = one_step
        with contextlib.suppress(Killed):
            trainer.train()
        before, trainer = trainer, resume_run(folder / "run", log=quiet)
        lost = before.step - trainer.step
        assert lost >= 0
        assert not lost or killed
        assert lost <= (config.save_every or max_steps)
    trainer.train()
    assert_same_run(folder / "run", folder / "truth")


def test_steps_after_the_last_checkpoint_are_repeated(tiny_config, tmp_path):
    """Killed at step 8, the run continues from the checkpoint of step 5, and no row or sample appears twice."""
    truth, broken = tmp_path / "truth", tmp_path / "broken"
    config = change(tiny_config, eval_every=0)
    train(config, truth)

    trainer = start_run(config, broken, quiet)
    inner = trainer._train_step

    def one_step():
        if trainer.step == 8:
            raise Killed
        inner()

    trainer._train_step = one_step
    with pytest.raises(Killed):
        trainer.train()
    assert rows(broken)[-1]["step"] == "6"
    trainer = resume_run(broken, log=quiet)
    assert trainer.step == 5
    trainer.train()
    assert_same_run(broken, truth)


def test_resuming_a_finished_run_changes_nothing(tiny_config, drawn, tmp_path):
    train(tiny_config, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    resume_run(tmp_path / "run", log=quiet).train()
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_plot_missing_after_a_kill_is_drawn_on_resume(tiny_config, drawn, tmp_path, monkeypatch):
    """Everything else has been saved, so the resumed run only draws."""
    trainer = start_run(tiny_config, tmp_path / "run", quiet)

    def killed(*args):
        if trainer.step == 12:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("gpt.run.plots.plot_losses", killed)
        with pytest.raises(Killed):
            trainer.train()
    remains = trainer.run.path / ".loss.png.tmp.png"
    remains.write_bytes(b"half")
    assert not trainer.run.plot.exists()
    resume_run(tmp_path / "run", log=quiet).train()
    assert trainer.run.plot.read_bytes().startswith(b"\x89PNG")
    assert not remains.exists()


def test_a_finished_run_can_be_extended(tiny_config, tmp_path):
    """With decay_steps fixed it equals a run planned with more steps from the start."""
    long = change(tiny_config, max_steps=20, optim=dataclasses.replace(tiny_config.optim, decay_steps=12))
    train(long, tmp_path / "truth")
    train(tiny_config, tmp_path / "run")
    config = RunFolder(tmp_path / "run").config()
    stop_at(resume_run(tmp_path / "run", dataclasses.replace(config, max_steps=20), quiet), 16)
    resume_run(tmp_path / "run", log=quiet).train()  # which remembers how far it was to go
    a, b = (RunFolder(tmp_path / name).load("last").weights for name in ("run", "truth"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_reports_do_not_affect_training(tiny_config, tmp_path):
    a = train(change(tiny_config, eval_every=1, sample_every=1, save_every=1, log_every=1), tmp_path / "a")
    b = train(change(tiny_config, eval_every=0, sample_every=0, save_every=0, log_every=100), tmp_path / "b")
    for p, q in zip(a.objective.parameters(), b.objective.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tiny_config, tmp_path, number):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread receives signals")
    lines = []
    trainer = start_run(change(tiny_config, max_steps=100_000, eval_every=0), tmp_path / "run", lines.append)
    inner = trainer._train_step

    def one_step():
        inner()
        if trainer.step == 4:
            signal.raise_signal(number)

    trainer._train_step = one_step
    before = signal.getsignal(number)
    trainer.train()
    assert trainer.stopped_by == number
    assert signal.getsignal(number) is before
    assert any(signal.Signals(number).name in line for line in lines)
    assert RunFolder(tmp_path / "run").load("last").state["step"] == trainer.step


def poison(trainer):
    with torch.no_grad():
        trainer.objective.model.out_head.weight[0, 0] = math.inf


def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tiny_config, tmp_path):
    trainer = start_run(change(tiny_config, eval_every=0, sample_every=0), tmp_path / "run", quiet)
    poison(trainer)
    before = [p.detach().clone() for p in trainer.parameters]
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 1 .*there is no checkpoint yet.*lower --optim.lr"
    ):
        trainer.train()
    for p, q in zip(trainer.parameters, before, strict=True):
        assert torch.equal(p, q)


class Counting(DistContext):
    """One process that counts its reductions."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def all_reduce(self, tensor):
        self.n += 1
        return super().all_reduce(tensor)

    def all_reduce_sum(self, numbers):
        self.n += 1
        return super().all_reduce_sum(numbers)


class Waits(TorchDispatchMode):
    """Record the operations after which Python reads a number from a tensor, and so waits for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_on_a_gpu_waits_for_nothing_and_reduces_once(tiny_config, tmp_path, monkeypatch, name):
    """As on a GPU: the numbers of a step are read in the next one, and nothing depends on the values of a tensor."""
    config = change(tiny_config, eval_every=0, log_every=100, grad_accum_steps=2, optim=OptimConfig(name=name))
    trainer = start_run(config, tmp_path / "run", quiet, ctx=Counting())
    trainer.read_delay = 1
    read = trainer._read_metrics
    monkeypatch.setattr(trainer, "_read_metrics", lambda delay=0: None)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)  # the model's checks of values are a CPU's
    trainer._train_step()  # the optimizer makes its state
    trainer.ctx.n = 0
    with Waits() as waits, monkeypatch.context() as patch:
        for name in ("tensor", "as_tensor", "scalar_tensor"):  # a number copied to a GPU waits too
            patch.setattr(torch, name, lambda *_, **__: pytest.fail("a number is copied to the device"))
        trainer._train_step()
    assert (waits.found, trainer.ctx.n) == ([], 1)
    with Waits() as waits:
        float(torch.ones(1))
    assert len(waits.found) == 1, "a wait would be seen"
    assert (len(trainer.pending), trainer.tokens_seen) == (2, 0)
    read(delay=1)
    assert (len(trainer.pending), trainer.tokens_seen) == (1, 8 * 16)


def test_the_garbage_collector_leaves_alone_what_exists_before_training(tiny_config, tmp_path, monkeypatch):
    trainer = start_run(change(tiny_config, max_steps=1, eval_every=0), tmp_path / "run", quiet)
    step, frozen = trainer._train_step, []
    monkeypatch.setattr(trainer, "_train_step", lambda: frozen.append(gc.get_freeze_count()) or step())
    trainer.train()
    assert frozen[0] > 10_000
    assert gc.get_freeze_count() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_not_waited_for(tiny_config, tmp_path):
    """By CUDA's own account of it."""
    config = change(tiny_config, device="cuda", eval_every=0, sample_every=0, save_every=0, log_every=1000)
    trainer = start_run(config, tmp_path / "run", quiet)
    for _ in range(3):
        trainer._train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_read_one_step_late_is_the_same_run(tiny_config, tmp_path):
    """Also if it is stopped before the numbers of its last step are read."""
    train(tiny_config, tmp_path / "truth")
    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    trainer.read_delay = 1
    stop_at(trainer, 5)
    assert not trainer.pending
    trainer = resume_run(tmp_path / "run", log=quiet)
    trainer.read_delay = 1
    trainer.train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")


def test_a_loss_that_is_not_finite_is_noticed_one_step_late_with_its_own_batch(tiny_config, tmp_path):
    trainer = start_run(change(tiny_config, eval_every=0, sample_every=0), tmp_path / "run", quiet)
    trainer.read_delay = 1
    poison(trainer)
    with pytest.raises(FloatingPointError, match=r"not finite at step 1 .*its batch is in"):
        trainer.train()
    assert not trainer.run.steps()
    with safetensors.safe_open(trainer.run.not_finite, "pt") as file:
        assert file.metadata()["examples"] == str(trainer.sampler.step(0))


# --- float16 ----------------------------------------------------------------------------------------------------------


def test_float16_trains_as_float32_does(tiny_config, tmp_path):
    config = change(tiny_config, model_drop_rate=0.0, max_steps=20, eval_every=20, optim=OptimConfig(warmup_steps=2))
    losses = []
    for dtype in ("float32", "float16"):
        trainer = train(change(config, dtype=dtype), tmp_path / dtype)
        losses.append(np.array(read_metrics(trainer.run.metrics)["val_loss"])[[0, -1]])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[0][-1] < losses[0][0] - 0.3


def test_an_infinite_gradient_in_float16_skips_the_step_and_halves_the_scale(tiny_config, tmp_path):
    trainer = start_run(change(tiny_config, dtype="float16", eval_every=0), tmp_path / "run", quiet)
    trainer._train_step()
    before, last = [p.detach().clone() for p in trainer.parameters], trainer.parameters[-1]
    handle = last.register_hook(lambda gradient: gradient * math.inf)
    trainer._train_step()
    handle.remove()
    assert all(map(torch.equal, before, trainer.parameters))
    assert trainer.scaler.get_scale() == 0.5
    assert trainer.grad_norm is None
    trainer._save(is_best=False)
    assert trainer.run.load("last").state["step"] == 2
    trainer._train_step()
    assert math.isfinite(trainer.grad_norm)
    assert not any(map(torch.equal, before, trainer.parameters))
    last.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="not finite"):  # no scale helps
        for _ in range(40):
            trainer._train_step()


def test_the_batch_that_was_not_finite_is_saved(tiny_config, prepared, tmp_path):
    """All examples of the step, cut by hand as the sampler's definition says."""
    stop_at(start_run(change(tiny_config, eval_every=0), tmp_path / "run", quiet), 7)
    trainer = resume_run(tmp_path / "run", log=quiet)
    poison(trainer)
    with pytest.raises(FloatingPointError, match=r"at step 8 .*the last good checkpoint is step-000007") as error:
        trainer.train()
    assert str(trainer.run.not_finite) in str(error.value)
    with safetensors.safe_open(trainer.run.not_finite, "pt") as file:
        facts, inputs, targets = file.metadata(), file.get_tensor("inputs"), file.get_tensor("targets")
    assert facts["step"] == "8"
    n_examples, tokens = len(trainer.examples), prepared.train.tokens
    order = [np.random.default_rng([7, epoch]).permutation(n_examples) for epoch in range(3)]
    examples = [int(order[i // n_examples][i % n_examples]) for i in range(7 * 8, 8 * 8)]
    assert facts["examples"] == str(examples)
    for row, window in enumerate(examples):
        assert inputs[row].tolist() == tokens[window * 256 :][:16].tolist()
        assert targets[row].tolist() == tokens[window * 256 + 1 :][:16].tolist()
    resume_run(tmp_path / "run", log=quiet).train()  # not poisoned this time


def test_weights_that_are_not_finite_are_not_saved(tiny_config, tmp_path):
    """An update that overflows shows only in the next loss; the checkpoint before it stays the last one."""
    trainer = start_run(change(tiny_config, eval_every=0, sample_every=0, save_every=2), tmp_path / "run", quiet)
    inner = trainer._train_step

    def one_step():
        inner()
        if trainer.step == 4:
            poison(trainer)

    trainer._train_step = one_step
    with pytest.raises(
        FloatingPointError, match=r"out_head.weight is not finite, so step-000004 was not saved; .*000002"
    ):
        trainer.train()
    assert trainer.run.steps() == ["step-000002"]
    assert trainer.run.load("last").state["step"] == 2


def test_a_validation_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    with torch.no_grad():
        trainer.objective.model.out_head.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="validation loss is nan after step 0"):
        trainer.train()


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(tiny_config, tmp_path):
    """A learning rate that diverges after the first evaluations, so that the best is not the last."""
    config = change(
        tiny_config, max_steps=40, eval_every=5, save_every=10,
        optim=OptimConfig(lr=1.0, min_lr=1.0, warmup_steps=40, schedule="constant", grad_clip=0.0),
    )  # fmt: skip
    trainer = train(config, tmp_path / "run")
    columns = read_metrics(trainer.run.metrics)
    losses = {int(s): v for s, v in zip(columns["step"], columns["val_loss"], strict=True) if s and not math.isnan(v)}
    best = min(losses, key=losses.get)
    assert best < 40
    checkpoint = trainer.run.load("best")
    assert checkpoint.state["step"] == best
    assert checkpoint.state["best_loss"] == pytest.approx(losses[best], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"seed": 8}, "seed is 7 in this run, not 8"), ({"batch_size": 5}, "batch_size"),
     ({"grad_accum_steps": 1}, "grad_accum_steps"),
     ({"model_n_layers": 1}, "model.n_layers is 2"),
     ({"optim": OptimConfig(weight_decay=0.0)}, "optim.weight_decay is 0.1")],
    ids=str,
)  # fmt: skip
def test_settings_that_change_the_computation_are_refused_on_resume(tiny_config, tmp_path, changes, words):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 2)
    config = change(RunFolder(tmp_path / "run").config(), **changes)
    with pytest.raises(ValueError, match=words):
        resume_run(tmp_path / "run", config, quiet)


def test_a_run_with_a_checkpoint_is_not_started_again(tiny_config, tmp_path):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 2)
    with pytest.raises(ValueError, match="--resume"):
        start_run(tiny_config, tmp_path / "run", quiet)


def test_other_data_is_refused(tiny_config, prepared, tmp_path):
    """Prepared again in the same folder, from another text and with another tokenizer."""
    folder = tmp_path / "data"
    shutil.copytree(prepared.folder, folder)
    config = change(tiny_config, data=dataclasses.replace(tiny_config.data, path=str(folder)))
    stop_at(start_run(config, tmp_path / "run", quiet), 2)
    prepare_data(open_corpus("story"), "char", folder, overwrite=True)
    with pytest.raises(ValueError, match="is not what the run"):
        resume_run(tmp_path / "run", log=quiet)


def edit(path, name, value):
    """Give a setting of a TOML file another value, as a person does in an editor."""
    lines = [f"{name} = {value}" if line.split(" ")[0] == name else line for line in path.read_text().splitlines()]
    assert f"{name} = {value}" in lines
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [("max_steps", "14", "max_steps 12 → 14"), ("lr", "0.002", "optim.lr 0.003 → 0.002"),
     ("save_every", "3", "save_every 5 → 3")],
)  # fmt: skip
def test_an_edit_of_config_toml_counts(tiny_config, tmp_path, name, value, line):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 2)
    edit(tmp_path / "run" / "config.toml", name, value)
    lines = []
    trainer = resume_run(tmp_path / "run", log=lines.append)
    assert line in lines
    before, after = (attrgetter(line.split(" ")[0])(config) for config in (tiny_config, trainer.config))
    assert after == type(before)(value)


@pytest.mark.parametrize(("name", "value"), [("n_heads", "2"), ("drop_rate", "0.2"), ("seed", "8"), ("beta1", "0.5")])
def test_an_edit_of_what_must_stay_is_refused_by_name(tiny_config, tmp_path, name, value):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 2)
    edit(tmp_path / "run" / "config.toml", name, value)
    with pytest.raises(ValueError, match=rf"{name} is .* in this run, not {value}"):
        resume_run(tmp_path / "run", log=quiet)


def test_a_broken_config_toml_is_named(tiny_config, tmp_path):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 2)
    (tmp_path / "run" / "config.toml").write_text("max_steps = = 3")
    with pytest.raises(ValueError, match=r"config.toml.* is not valid TOML"):
        resume_run(tmp_path / "run", log=quiet)


def test_a_deleted_config_toml_is_written_again(tiny_config, tmp_path):
    train(tiny_config, tmp_path / "truth")
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 2)
    (tmp_path / "run" / "config.toml").unlink()
    resume_run(tmp_path / "run", log=quiet).train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")
    assert RunFolder(tmp_path / "run").config() == RunFolder(tmp_path / "truth").config()


def test_a_setting_changed_on_resume_is_logged(tiny_config, tmp_path):
    """A new learning rate holds from here on, also after a kill before the next checkpoint."""
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 5)
    lines = []
    optim = dataclasses.replace(RunFolder(tmp_path / "run").config().optim, lr=1e-3)
    resume_run(tmp_path / "run", change(RunFolder(tmp_path / "run").config(), optim=optim), lines.append)
    assert "optim.lr 0.003 → 0.001" in lines
    resume_run(tmp_path / "run", log=quiet).train()
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert columns["lr"][-1] == pytest.approx(learning_rate(11, optim, 12))
    assert columns["lr"][-1] < learning_rate(11, tiny_config.optim, 12)


@pytest.mark.parametrize("damage", ["delete", "shorten", "flip"])
def test_damaged_logs_are_restored(tiny_config, tmp_path, damage):
    train(tiny_config, tmp_path / "truth")
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 5)
    run = RunFolder(tmp_path / "run")
    before = run.metrics.read_bytes()
    run.samples.unlink()
    if damage == "delete":
        run.metrics.unlink()
    else:
        flipped = before[:-9] + bytes([before[-9] ^ 1]) + before[-8:]
        run.metrics.write_bytes(before[:-9] if damage == "shorten" else flipped)
    lines = []
    resume_run(run.path, log=lines.append).train()
    for name in ("metrics.csv", "samples.txt"):
        assert any(f"{name} was damaged: restored as of step 5" in line for line in lines)
    assert_same_run(run.path, tmp_path / "truth")


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_damaged_best_checkpoint_is_reported_and_not_needed(tiny_config, tmp_path, name):
    """It is older than the checkpoint to resume from, and the run ends well."""
    config = change(tiny_config, eval_every=4, save_every=5, max_steps=11)
    trainer = start_run(config, tmp_path / "run", quiet)
    stop_at(trainer, 5)
    assert (trainer.run.find("best").name, trainer.run.find("last").name) == ("step-000004", "step-000005")
    path = trainer.run.find("best") / name
    path.write_bytes(path.read_bytes()[:-1])
    lines = []
    trainer = resume_run(tmp_path / "run", log=lines.append)
    assert any(
        f"the best checkpoint is lost, which does not affect the run: {path.parent}" in line.replace(f"/{name}", "")
        for line in lines
    )
    trainer.best_loss = 0.0  # no other becomes the best
    trainer.train()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
def test_a_full_disk_is_reported_when_a_row_is_written(tiny_config, tmp_path):
    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    trainer.run.metrics.unlink()
    trainer.run.metrics.symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"metrics.csv could not be written \(No space left on device\): is the disk full"
    ):
        trainer.train()


def test_a_log_deleted_during_a_run_does_not_end_it(tiny_config, tmp_path):
    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    stop_at(trainer, 3)
    trainer = resume_run(tmp_path / "run", log=quiet)
    trainer.run.metrics.unlink()
    trainer.run.samples.unlink()
    trainer.train()
    assert trainer.run.load("last").state["step"] == 12


def test_a_kill_between_a_checkpoint_and_its_pointers_is_repaired(tiny_config, tmp_path, monkeypatch):
    """Killed after writing the best checkpoint, before `best` and `last` point to it."""
    trainer = start_run(tiny_config, tmp_path / "run", quiet)

    def replace(path, text):
        if trainer.step == 8:
            raise Killed
        original(path, text)

    original = gpt.system.files.write_text
    with monkeypatch.context() as patch:
        patch.setattr("gpt.system.files.write_text", replace)
        with pytest.raises(Killed):
            trainer.train()
    run = RunFolder(tmp_path / "run")
    assert run.find("best").name == "step-000004"
    resume_run(run.path, log=quiet)
    assert run.find("best").name == run.find("last").name == "step-000008"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_a_closed_output_does_not_end_a_run(tiny_config, tmp_path, error):
    def broken(line):
        raise error

    trainer = start_run(tiny_config, tmp_path / "run", broken)
    trainer.train()
    assert trainer.step == 12


def test_a_plot_that_cannot_be_written_does_not_end_a_run(tiny_config, drawn, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt.run.plots.plot_losses", full)
    lines = []
    trainer = start_run(tiny_config, tmp_path / "run", lines.append)
    trainer.train()
    assert trainer.step == 12
    assert any("loss.png was not drawn (No space left on device)" in line for line in lines)


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_a_second_trainer_is_refused_until_the_first_is_done(tiny_config, tmp_path):
    first = start_run(tiny_config, tmp_path / "run", quiet)
    for second in (resume_run, lambda run, log: start_run(tiny_config, run, log)):
        with pytest.raises(ValueError, match=r"run is being written by this process: wait .* or name another"):
            second(tmp_path / "run", log=quiet)
    first.train()
    assert not (tmp_path / "run" / ".lock").exists()
    resume_run(tmp_path / "run", log=quiet)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_trainer_leaves_no_lock_behind(tiny_config, tmp_path):
    """Another process holds the lock, is named in the error, and is killed."""
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 5)
    program = "import pathlib, sys, time; from gpt.system.files import FolderLock\n"
    program += "lock = FolderLock(pathlib.Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is being written by process {holder.pid}"):
            resume_run(tmp_path / "run", log=quiet)
    finally:
        holder.kill()
        holder.communicate()
    assert resume_run(tmp_path / "run", log=quiet).step == 5


def test_a_refused_start_or_resume_releases_the_lock(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 30"):
        start_run(change(tiny_config, model_vocab_size=30), tmp_path / "new" / "run", quiet)
    assert not (tmp_path / "new").exists()
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 5)
    with pytest.raises(ValueError, match="seed is 7"):
        resume_run(tmp_path / "run", change(tiny_config, seed=8), quiet)
    assert not (tmp_path / "run" / ".lock").exists()
    assert resume_run(tmp_path / "run", log=quiet).step == 5


def test_a_killed_start_can_be_repeated(tiny_config, tmp_path):
    """Before config.toml is written the folder has only hidden files; after it, it is a run."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.toml.tmp.toml").write_text("max_st")
    (run / ".lock").write_text("4711")
    trainer = start_run(tiny_config, run, quiet)
    shutil.rmtree(run / "checkpoints")
    (run / "tokenizer.json").unlink()
    trainer.run.folder_lock.release()
    resume_run(run, log=quiet).train()
    assert RunFolder(run).load("last").state["step"] == 12


def test_another_machine_is_reported(tiny_config, tmp_path, monkeypatch):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 5)
    monkeypatch.setattr("torch.get_num_threads", lambda: 17)
    lines = []
    resume_run(tmp_path / "run", log=lines.append)
    assert any(line.startswith("threads: 1 → 17; the last digits") for line in lines)


@pytest.mark.parametrize(("pointer", "damage"), [("last", ""), ("last", "step-000004\n"), ("best", "\0")])
def test_damaged_pointers_are_repaired(tiny_config, tmp_path, pointer, damage):
    train(tiny_config, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / pointer
    before = path.read_bytes()
    path.write_bytes(damage.encode())
    resume_run(tmp_path / "run", log=quiet).train()
    assert path.read_bytes() == before


def test_a_replaced_tokenizer_is_restored(tiny_config, tmp_path):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 5)
    path = tmp_path / "run" / "tokenizer.json"
    before = path.read_bytes()
    get_tokenizer("char", ["abc"]).save(path)
    with pytest.raises(ValueError, match="3 tokens, but the model was trained with 31"):
        load_model(tmp_path / "run")
    resume_run(tmp_path / "run", log=quiet)
    assert path.read_bytes() == before


def test_max_steps_below_the_current_step_is_refused(tiny_config, tmp_path):
    stop_at(start_run(tiny_config, tmp_path / "run", quiet), 5)
    with pytest.raises(ValueError, match="is at step 5, beyond max_steps 3"):
        resume_run(tmp_path / "run", change(tiny_config, max_steps=3), quiet)


def test_a_step_may_be_split_differently_on_resume(tiny_config, tmp_path):
    """As the hint after an out-of-memory error suggests."""
    config = change(tiny_config, model_drop_rate=0.0)
    truth = train(config, tmp_path / "truth")
    stop_at(start_run(config, tmp_path / "run", quiet), 5)
    trainer = resume_run(tmp_path / "run", change(config, batch_size=2, grad_accum_steps=4), quiet)
    trainer.train()
    for ours, theirs in zip(trainer.parameters, truth.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_compile_without_a_compiler_is_reported_and_skipped(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt.system.device.shutil.which", lambda name: None)
    lines = []
    trainer = start_run(change(tiny_config, compile=True, max_steps=1), tmp_path / "run", lines.append)
    assert "needs a C++ compiler" in lines[0]
    trainer.train()
    assert trainer.step == 1


@pytest.mark.slow
def test_a_compiled_model_is_saved_as_the_plain_one_and_resumed_exactly(tiny_config, tmp_path, monkeypatch):
    """The eager backend is enough to test that."""
    monkeypatch.setattr("gpt.variants.compiled.compile_obstacle", lambda device: None)
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="eager"))
    config = change(tiny_config, compile=True, max_steps=6)
    truth = train(config, tmp_path / "truth")
    assert all("forward" in vars(block) for block in truth.objective.model.trf_blocks)
    assert set(truth.run.load("last").weights) == set(GPTModel(truth.config.model).state_dict())
    stop_at(start_run(config, tmp_path / "run", quiet), 3)
    resume_run(tmp_path / "run", log=quiet).train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")


@pytest.mark.parametrize("vocab_size", [30, 64])
def test_data_of_another_tokenizer_is_refused(tiny_config, tmp_path, vocab_size):
    with pytest.raises(ValueError, match="prepared with the tokenizer char of 31 tokens"):
        start_run(change(tiny_config, model_vocab_size=vocab_size), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_the_files_of_a_run_folder(tiny_config, drawn, pages, tmp_path):
    trainer = train(tiny_config, tmp_path / "run")
    found = {p.relative_to(trainer.run.path).as_posix() for p in trainer.run.path.rglob("*") if p.is_file()}
    top = {
        "config.toml",
        "tokenizer.json",
        "metrics.csv",
        "loss.png",
        "index.html",
        "samples.txt",
        "checkpoints/last",
        "checkpoints/best",
    }
    steps = {f for f in found if f.startswith("checkpoints/step-")}
    assert found - steps == top | {"checkpoints/last", "checkpoints/best"}
    inside = {"model.safetensors", "training_state.pt", "metrics.csv", "samples.txt", "state.json"}
    assert {f.rpartition("/")[2] for f in steps} == inside
    config = trainer.run.config()
    assert config.model.vocab_size == trainer.data.tokenizer.vocab_size
    assert config.optim.decay_steps == 12
    samples = trainer.run.samples.read_text()
    assert [line for line in samples.splitlines() if line.startswith("---")] == [
        f"--- step {k} ---" for k in (0, 6, 12)
    ]
    assert samples.splitlines()[1].startswith("on the")


# --- early stopping ---------------------------------------------------------------------------------------------------


def losses_of(run):
    """The validation losses of a run by step, without step 0, from its metrics."""
    columns = read_metrics(run / "metrics.csv")
    pairs = zip(columns["step"], columns["val_loss"], strict=True)
    return {int(step): loss for step, loss in pairs if step and not math.isnan(loss)}


@pytest.fixture
def unsteady(tiny_config):
    """The config of a run whose validation loss jumps up and down."""
    optim = OptimConfig(lr=0.3, min_lr=0.3, warmup_steps=0, schedule="constant", grad_clip=0.0)
    return change(tiny_config, max_steps=60, eval_every=2, save_every=5, sample_every=7, optim=optim)


@pytest.mark.parametrize("patience", [1, 3])
def test_a_run_ends_after_so_many_evaluations_without_a_better_loss(unsteady, tmp_path, patience):
    train(unsteady, tmp_path / "truth")
    losses = losses_of(tmp_path / "truth")
    steps, best = list(losses), 0
    for number, step in enumerate(steps):  # by hand
        best = number if losses[step] < min([losses[k] for k in steps[:number]], default=math.inf) else best
        if number - best == patience:
            break
    end = step
    assert end < 60
    trainer = train(change(unsteady, patience=patience), tmp_path / "run")
    assert (trainer.step, trainer.finished, trainer.stopped_by) == (end, True, None)
    assert losses_of(tmp_path / "run") == {step: loss for step, loss in losses.items() if step <= end}
    assert trainer.run.find("last").name == f"step-{end:06d}"
    assert trainer.run.find("best").name == f"step-{steps[best]:06d}"
    assert f"--- step {end} ---" in trainer.run.samples.read_text()


@pytest.mark.slow
def test_early_stopping_does_not_depend_on_interruptions(unsteady, tmp_path):
    """Stopped at, before and after evaluations; resuming what has ended changes nothing; more patience goes on."""
    config = change(unsteady, patience=3)
    end = train(config, tmp_path / "truth").step
    stop_at(start_run(config, tmp_path / "run", quiet), 1)
    for step in range(2, end):
        stop_at(resume_run(tmp_path / "run", log=quiet), step)
    for _ in range(2):
        resume_run(tmp_path / "run", log=quiet).train()
        assert_same_run(tmp_path / "run", tmp_path / "truth")
    more = change(RunFolder(tmp_path / "run").config(), patience=0, max_steps=end + 3)
    trainer = resume_run(tmp_path / "run", more, quiet)
    trainer.train()
    assert trainer.step == end + 3


def test_patience_needs_evaluations(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="patience is 2, but eval_every 0 evaluates only at the end"):
        start_run(change(tiny_config, patience=2, eval_every=0), tmp_path / "run", quiet)
