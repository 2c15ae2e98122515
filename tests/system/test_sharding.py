"""Sharded models against whole ones: the same losses and gradients, in bfloat16 and on several nodes too."""

import contextlib
import ctypes
import dataclasses
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blocks import GPT2_BLOCK, MODERN_BLOCK
from numerics import tolerance
from together import fork

from gpt.config import GPTConfig, TrainConfig
from gpt.model import GPTModel
from gpt.objectives import OBJECTIVES, NextToken
from gpt.planning.flops import count_parameters
from gpt.planning.memory import activation_bytes
from gpt.run.building import build_objective
from gpt.system.deferred import DeferredInit
from gpt.system.device import compile_obstacle
from gpt.system.distributed import SINGLE_PROCESS, DistContext, full_tensor
from gpt.variants import create_model
from gpt.variants.compiled import compile_training

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="needs a fork that can use PyTorch"
)
CPU = torch.device("cpu")
BF16 = torch.bfloat16
SMALL = {"vocab_size": 61, "context_length": 16, "emb_dim": 32, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0}
MICRO_BATCHES = torch.randint(61, (3, 4, 17), generator=torch.Generator().manual_seed(1))  # (3, 4 examples, T+1)
BLOCKS = pytest.mark.parametrize("block", [GPT2_BLOCK, MODERN_BLOCK], ids=["gpt2", "modern"])


def new_objective(block, **settings):
    """An objective whose initial weights are the same in every process."""
    torch.manual_seed(3)
    return NextToken(GPTModel(GPTConfig(**{**SMALL, **block, **settings})))


def accumulated(ctx, objective, dtype=torch.float32, forward=None):
    """The loss of the micro-batches and its gradients by name, whole; each process reads its share of each."""
    forward = forward or objective
    total = 0.0
    for number, rows in enumerate(MICRO_BATCHES, 1):
        rows = ctx.shard(rows)
        with ctx.grad_sync(forward, is_last=number == len(MICRO_BATCHES)):
            with ctx.autocast(CPU, dtype):
                loss, _ = forward(inputs=rows[:, :-1], targets=rows[:, 1:])
            loss.backward()
        total += loss.detach()
    gradients = {name: full_tensor(p.grad) * ctx.world_size for name, p in objective.named_parameters()}
    return {"loss": ctx.all_reduce_sum(float(total)).item(), "dtype": loss.dtype, "gradients": gradients}


def assert_same(found, exact):
    """Equal but for float32's rounding."""
    n_terms = MICRO_BATCHES.numel() * SMALL["emb_dim"]
    assert found["loss"] == pytest.approx(exact["loss"], rel=tolerance(n_terms, dtype=torch.float32))
    assert found["gradients"].keys() == exact["gradients"].keys()
    for name, gradient in exact["gradients"].items():
        atol = tolerance(n_terms, exact["gradients"]["model.tok_emb.weight"], dtype=torch.float32)
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=0, atol=atol, msg=name)


@BLOCKS
@pytest.mark.slow
@pytest.mark.forks
def test_a_sharded_model_in_bfloat16_has_a_float32_loss(block, tmp_path):
    """And gradients summed in float32, as near to the exact ones as those of one process under autocast."""

    def work(ctx):
        objective = ctx.wrap_fsdp(new_objective(block, tie_embeddings=True), "fsdp", CPU, BF16)
        found = accumulated(ctx, objective, BF16)
        assert {p.dtype for p in objective.parameters()} == {p.grad.dtype for p in objective.parameters()}
        assert not torch.is_autocast_enabled("cpu")
        return found

    exact = accumulated(SINGLE_PROCESS, new_objective(block, tie_embeddings=True))
    by_rank = fork(2, work, tmp_path)
    assert by_rank[0]["loss"] == by_rank[1]["loss"]
    found, eps = by_rank[0], torch.finfo(BF16).eps
    assert found["dtype"] == torch.float32
    n_tokens = MICRO_BATCHES[..., 1:].numel()  # the errors of their losses average out
    assert 0 < abs(found["loss"] / exact["loss"] - 1) < 2 * eps / math.sqrt(n_tokens)
    for name, gradient in exact["gradients"].items():
        if not name.endswith("W_key.bias"):  # 0 but for rounding: softmax ignores it
            assert (found["gradients"][name] - gradient).norm() < 4 * eps * gradient.norm(), name


@pytest.mark.slow
@pytest.mark.forks
def test_gradients_are_shards_between_micro_batches(tmp_path):
    def work(ctx):
        objective = ctx.wrap_fsdp(new_objective(GPT2_BLOCK), "fsdp", CPU, torch.float32)
        with ctx.grad_sync(objective, is_last=False):
            objective(inputs=MICRO_BATCHES[0, :, :-1], targets=MICRO_BATCHES[0, :, 1:])[0].backward()
        return [(p.numel(), p.grad.to_local().numel()) for p in objective.parameters() if p.size(0) % 2 == 0]

    for whole, shard in fork(2, work, tmp_path)[1]:
        assert shard == whole / 2


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize(("parallel", "n", "per_node"), [("fsdp", 2, 2), ("hsdp", 2, 2), ("hsdp", 4, 2)])
def test_sharded_gradients_are_those_of_one_process(parallel, n, per_node, tmp_path):
    """In one node, and in two that each hold the whole model: every weight is then twice as large a shard."""

    def work(ctx):
        objective = ctx.wrap_fsdp(new_objective(MODERN_BLOCK), parallel, CPU, torch.float32)
        found = accumulated(ctx, objective)
        return {**found, "shard": objective.model.trf_blocks[0].ff.up.weight.to_local().numel()}

    found = fork(n, work, tmp_path, per_node)
    exact = accumulated(SINGLE_PROCESS, new_objective(MODERN_BLOCK))
    for of_rank in found:
        assert_same(of_rank, exact)
        assert of_rank["shard"] == 24 * 32 / per_node


def test_uneven_nodes_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="3 processes are no multiple of the 2 on this node"):
        DistContext(0, 3).wrap_fsdp(new_objective(GPT2_BLOCK), "hsdp", CPU, torch.float32)


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluation_data(n_tokens):
    tokens = np.random.default_rng(0).integers(61, size=n_tokens)
    return SimpleNamespace(
        val=SimpleNamespace(tokens=tokens), tokenizer=SimpleNamespace(eot_id=None), bytes_per_token=math.nan
    )


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize("n_tokens", [150, 40])
def test_evaluation_gathers_one_block_at_a_time(n_tokens, tmp_path):
    """Five batches, or two, for three processes."""
    config, data = TrainConfig(model=GPTConfig(**SMALL), batch_size=2), evaluation_data(n_tokens)

    def work(ctx):
        objective, gathered = new_objective(GPT2_BLOCK), []
        ctx.wrap_fsdp(objective, "fsdp", CPU, torch.float32)
        blocks = objective.model.trf_blocks

        def count(*_):
            gathered.append(sum(not hasattr(next(block.parameters()), "full_tensor") for block in blocks))

        for block in blocks:
            block.att.register_forward_pre_hook(count)
        with ctx.reshard_after():
            evaluation = objective.evaluate(config, data, CPU, ctx)
        is_sharded = all(hasattr(p, "full_tensor") for p in objective.parameters())
        return {"sums": torch.from_numpy(evaluation.sums), "gathered": gathered, "is_sharded": is_sharded}

    exact = new_objective(GPT2_BLOCK).evaluate(config, data)
    n_rounds = -(-len(range(0, len(exact.sums), 2)) // 3)
    for found in fork(3, work, tmp_path):
        np.testing.assert_allclose(found["sums"], exact.sums, rtol=tolerance(16 * 32, dtype=torch.float32))
        assert found["gathered"] == [1] * 3 * n_rounds
        assert found["is_sharded"]


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["next_token", "masked"])
@pytest.mark.parametrize("init", ["pytorch", "gpt2", "lecun"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("block", [GPT2_BLOCK, MODERN_BLOCK, {"backbone": "lstm"}], ids=["gpt2", "modern", "lstm"])
def test_deferred_initialization_is_the_plain_one(kind, init, tied, block):
    """Bit for bit, and the random generator is left in the same state."""
    config, results = GPTConfig(**{**SMALL, **block}, init=init, tie_embeddings=tied), []
    for deferred in (None, DeferredInit()):
        torch.manual_seed(7)
        with deferred.recording() if deferred else contextlib.nullcontext():
            objective = OBJECTIVES[kind](create_model(config))
        if deferred:
            assert {p.device.type for p in objective.parameters() if p.dim() > 1} == {"meta"}
            deferred.materialize(objective, list(objective.parameters()), CPU)
        results.append((objective, torch.get_rng_state()))
    (plain, state), (found, other_state) = results
    assert torch.equal(state, other_state)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in found.named_parameters()]
    for (name, a), b in zip(plain.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (found.model.out_head.weight is found.model.tok_emb.weight) == tied


def build(ctx, config):
    objective = build_objective(config, ctx)
    return {name: full_tensor(p).clone() for name, p in objective.named_parameters()}


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize(("tied", "parallel"), [(True, "fsdp"), (False, "hsdp")])
def test_a_sharded_model_starts_as_the_plain_one(tied, parallel, tmp_path):
    """Bit for bit, also where 4 processes share 61 rows; or as the model of init_from, which rank 0 alone reads."""
    model = GPTConfig(**SMALL, **MODERN_BLOCK, init="gpt2", tie_embeddings=tied)
    config = TrainConfig(model=model, device="cpu", parallel=parallel, freeze="trf_blocks.0")
    plain = build(SINGLE_PROCESS, config)
    torch.manual_seed(9)
    source = GPTModel(model)

    def work(ctx):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gpt.run.building.initial_model", lambda config: source if ctx.is_main else None)
            loaded = build(ctx, dataclasses.replace(config, init_from="another"))
        return build(ctx, config), loaded

    for rank, (found, loaded) in enumerate(fork(4, work, tmp_path, local_world_size=2)):
        for name, tensor in plain.items():
            assert torch.equal(found[name], tensor), (rank, name)
            assert torch.equal(loaded[name], source.get_parameter(name.removeprefix("model.")))


@pytest.mark.slow
@pytest.mark.forks
def test_no_process_holds_the_whole_model(tmp_path):
    """The peak of each of four processes is a quarter of the weights and one whole parameter."""
    model = GPTConfig(8192, 64, 512, 8, 16, 0.0, tie_embeddings=True, init="gpt2")
    config = TrainConfig(model=model, device="cpu", parallel="fsdp")
    tiny = dataclasses.replace(config, model=dataclasses.replace(model, n_layers=1, emb_dim=8))
    memory = {"whole": 4 * sum(count_parameters(model).values()), "parameter": 4 * 8192 * 512}

    def work(ctx):
        build_objective(tiny, ctx)  # what the first construction imports
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far may be the parent's
        before = peak()
        build_objective(config, ctx)
        return peak() - before

    for grown in fork(4, work, tmp_path):
        assert memory["whole"] / 4 < grown < memory["whole"] / 4 + memory["parameter"] + memory["whole"] / 20


def peak():
    """The largest resident set of this process in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


# --- recomputed, compiled ---------------------------------------------------------------------------------------------


def changed(ctx, block, parallel="fsdp", recompute=False, compiled=False, **settings):
    """The loss and gradients of an objective that is compiled, sharded, and recomputes its blocks."""
    objective = new_objective(block, **settings)
    objective.model.recompute = recompute
    if compiled:
        compile_training(objective.model, CPU, pytest.fail)
    if parallel == "ddp":
        return accumulated(ctx, objective, forward=ctx.wrap_ddp(objective, CPU))
    return accumulated(ctx, ctx.wrap_fsdp(objective, parallel, CPU, torch.float32))


@BLOCKS
@pytest.mark.slow
@pytest.mark.forks
def test_recomputed_blocks_have_the_same_gradients(block, tmp_path):
    exact = accumulated(SINGLE_PROCESS, new_objective(block))
    assert_same(changed(SINGLE_PROCESS, block, recompute=True), exact)
    for found in fork(2, lambda ctx: changed(ctx, block, recompute=True), tmp_path):
        assert_same(found, exact)


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.skipif(compile_obstacle(CPU) is not None, reason="needs a compiler")
@pytest.mark.parametrize(("parallel", "recompute"), [("ddp", False), ("fsdp", False), ("fsdp", True)])
def test_compiled_blocks_have_the_same_gradients(parallel, recompute, tmp_path):
    """A backend that runs PyTorch's own operations would not show what fusing changes."""
    exact = accumulated(SINGLE_PROCESS, new_objective(MODERN_BLOCK, tie_embeddings=True))

    def work(ctx):
        return changed(ctx, MODERN_BLOCK, parallel, recompute, compiled=True, tie_embeddings=True)

    for found in fork(2, work, tmp_path):
        assert_same(found, exact)


@pytest.mark.slow
@pytest.mark.forks
def test_recomputing_saves_the_memory_that_the_plan_says(tmp_path):
    """By the peak of a training step of one of two processes."""
    shape = {"emb_dim": 256, "context_length": 256, "n_layers": 10}
    rows = torch.randint(61, (4, 257))

    def grown(ctx, recompute):
        m_mmap_threshold = -3  # of glibc's malloc.h: freed tensors leave no gaps
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**16)
        objective = ctx.wrap_fsdp(new_objective(GPT2_BLOCK, **shape), "fsdp", CPU, torch.float32)
        objective.model.recompute = recompute
        objective(inputs=rows[:1, :2], targets=rows[:1, 1:3])[0].backward()  # gradients, and what is imported
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far may be the parent's
        before = peak()
        objective(inputs=rows[:, :-1], targets=rows[:, 1:])[0].backward()
        return peak() - before

    (planned, measured), (planned_less, measured_less) = (
        [
            activation_bytes(GPTConfig(**{**SMALL, **GPT2_BLOCK, **shape}), 4, 256, recompute=recompute, sharded=True),
            fork(2, lambda ctx, recompute=recompute: grown(ctx, recompute), tmp_path)[0],
        ]
        for recompute in (False, True)
    )
    assert measured - measured_less == pytest.approx(planned - planned_less, rel=0.15)
