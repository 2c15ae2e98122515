"""Sharded tensors are written by several processes while they change, and read by any number of them, bit for bit."""

import json
import signal
import sys
import threading

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import saved_state
from together import fork
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gpt.checkpoint import RunFolder, read_checkpoint
from gpt.config import GPTConfig, TrainConfig
from gpt.exchange.models import load_model
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken
from gpt.objectives.weights import load_weights, named_weights
from gpt.system import sharded_files
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.system.sharded_files import ShardedWriter, open_sharded, read_into, read_like, read_sharded
from gpt.text.tokenizers import get_tokenizer

MODEL = GPTConfig(5, 8, 8, 2, 1, 0.0, init="gpt2")


def whole_tensors():
    """Tensors whose rows four processes share evenly, unevenly and not at all, and some that are not sharded."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"even": (8, 3), "uneven": (7, 3), "few": (1, 5), "vector": (5,), "optimizer.0.exp_avg": (7, 3)}
    sharded = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sharded["half"] = torch.randn(3, 2, generator=generator).bfloat16()
    whole = {"optimizer.0.step": torch.tensor(3.0), "ids": torch.arange(4), "mask": torch.tensor([True, False])}
    return sharded, whole


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.fixture
def writer():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield ShardedWriter(SINGLE_PROCESS)
    dist.destroy_process_group()


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(TrainConfig(model=MODEL), get_tokenizer("char", ["abcde"]))
    folder.metrics.write_text("step\n")
    return folder


def save(run, step, writer=None, objective=None, frozen=frozenset()):
    """Save a checkpoint. With a writer it has begun to be written."""
    training_state = {
        "optimizer": {"state": {0: {"exp_avg": torch.full((3,), float(step))}}, "param_groups": [{"lr": 0.5}]},
        "random": [{"cpu": torch.arange(3)}],
    }
    weights = named_weights(objective or NextToken(GPTModel(MODEL)))
    return run.save(weights, set(frozen), training_state, saved_state(step, TrainConfig(model=MODEL)), False, 2, writer)


@pytest.fixture
def held_back(monkeypatch):
    """Files are written once this event is set."""
    event, write = threading.Event(), dcp.save

    def waiting(*arguments, **options):
        event.wait(30)
        return write(*arguments, **options)

    monkeypatch.setattr(dcp, "save", waiting)
    return event


def test_a_sharded_checkpoint_holds_what_a_whole_one_holds(run, writer):
    objective = NextToken(GPTModel(MODEL))
    save(run, 1, objective=objective)
    path = save(run, 2, writer, objective)
    assert writer.finish() == path.name
    assert sorted(p.name for p in path.iterdir()) == [
        "metrics.csv", "model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors", "samples.txt",
        "state.json", "training_state.pt",
    ]  # fmt: skip
    one, two = run.load("step-000001"), run.load("last")
    assert one.weights.keys() == two.weights.keys()
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert two.training_state["optimizer"]["state"][0]["exp_avg"].tolist() == [2, 2, 2]
    assert two.training_state["optimizer"]["param_groups"] == [{"lr": 0.5}]
    assert two.training_state["random"][0]["cpu"].tolist() == [0, 1, 2]
    assert one.state.keys() == two.state.keys()
    small = torch.load(path / "training_state.pt", weights_only=True)
    assert small["optimizer"]["state"] == {}
    ids = torch.tensor([[0, 3, 1]])
    assert torch.equal(load_model(run.path, "last")[0](ids), objective.model.eval()(ids))


def test_what_is_saved_is_that_of_the_step(run, writer, held_back):
    """Weights change and rows are written while the files are."""
    objective = NextToken(GPTModel(MODEL))
    before = {name: tensor.clone() for name, tensor in named_weights(objective).items()}
    save(run, 2, writer, objective)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.zero_()
    run.metrics.write_text("step\n3\n")
    held_back.set()
    writer.finish()
    after = run.load("last")
    assert all(torch.equal(after.weights[name], before[name]) for name in before)
    assert (after.path / "metrics.csv").read_text() == "step\n"


def test_large_shards_are_divided_among_files(run, writer, monkeypatch):
    monkeypatch.setattr(sharded_files, "FILE_BYTES", 1024)
    objective = NextToken(GPTModel(MODEL))
    path = save(run, 2, writer, objective)
    writer.finish()
    files = [path / f"model-00001-of-00001{part}.safetensors" for part in ("", "-2", "-3", "-4")]
    assert {*files} < {*path.glob("model-*")}
    names = [name for file in path.glob("model-*") for name in safetensors.torch.load_file(file)]
    assert sorted(names) == sorted(named_weights(objective))  # each once
    for file in path.glob("model-*"):
        tensors = safetensors.torch.load_file(file).values()
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors) <= 1024
    found = run.load("last").weights
    assert all(torch.equal(found[name], tensor) for name, tensor in named_weights(objective).items())


def test_there_is_no_checkpoint_before_it_is_sealed(run, writer, held_back):
    save(run, 1)
    path = save(run, 2, writer)
    assert writer.finish(wait=False) == ""
    assert run.steps() == ["step-000001"]
    assert run.load("last").state["step"] == 1
    held_back.set()
    assert writer.finish() == path.name
    assert writer.finish() == ""  # once
    assert run.load("last").state["step"] == 2
    assert not list(run.checkpoints.glob(".*"))


def test_remains_of_a_killed_save_are_removed(run, writer):
    save(run, 2, writer)
    writer._thread.join()  # written, but the process that would seal it is gone
    assert list(run.checkpoints.glob(".*"))
    with run.lock():
        assert run.steps() == []
        assert not list(run.checkpoints.glob(".*"))


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_named_and_the_checkpoint_skipped(run, writer, name, damage):
    save(run, 1, writer)
    writer.finish()
    file = save(run, 2, writer) / name
    writer.finish()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if damage == "delete" else file.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(
        ValueError, match=rf"step-000002 is incomplete: {name} is missing|step-000002/{name} is damaged"
    ):
        run.load("last", training=False)
    checkpoint, errors = run.load_newest_valid()
    assert checkpoint.state["step"] == 1
    assert len(errors) == 1


def test_processes_share_the_checking_and_fail_together(run, writer, monkeypatch):
    path = save(run, 2, writer)
    writer.finish()
    hashed = []
    monkeypatch.setattr("gpt.system.files.sha256", lambda file: hashed.append(file.name))
    for rank in range(2):
        ctx = DistContext(rank, 2)
        ctx.all_gather = lambda item: ["", "the other's file is damaged"]
        monkeypatch.setattr("gpt.system.files.check_sha256", lambda digests: hashed.extend(p.name for p in digests))
        with pytest.raises(ValueError, match="the other's file is damaged"):
            read_checkpoint(path, ctx=ctx)
    assert sorted(hashed) == sorted(json.loads((path / "state.json").read_text())["sha256"])  # each once


def test_a_full_disk_is_reported_and_leaves_the_previous_checkpoint(run, writer):
    resource = pytest.importorskip("resource", reason="file-size limits are POSIX")
    save(run, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))  # enough for training_state.pt
        save(run, 2, writer)
        with pytest.raises(OSError, match=r"step-000002 could not be written .*File too large.* is the disk full"):
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert run.load("last").state["step"] == 1
    assert [p.name for p in run.checkpoints.iterdir() if p.is_dir()] == ["step-000001"]
    save(run, 3, writer)
    assert writer.finish() == "step-000003"


def test_a_weight_that_is_not_finite_is_not_saved(run, writer):
    objective = NextToken(GPTModel(MODEL))
    objective.model.pos_emb.weight.data[3, 2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"pos_emb.weight is not finite, so step-000002 was not saved"):
        save(run, 2, writer, objective)
    assert not list(run.checkpoints.iterdir())


def test_frozen_weights_are_written_once(run, writer):
    objective = NextToken(GPTModel(MODEL))
    save(run, 1, writer, objective, frozen={"tok_emb.weight"})
    writer.finish()
    first = run.frozen.stat().st_mtime_ns
    path = save(run, 2, writer, objective, frozen={"tok_emb.weight"})
    writer.finish()
    assert run.frozen.stat().st_mtime_ns == first
    assert "tok_emb.weight" not in safetensors.torch.load_file(path / "model-00001-of-00001.safetensors")
    assert torch.equal(run.load("last").weights["tok_emb.weight"], objective.model.tok_emb.weight)


def test_unread_tensors_are_loaded_in_place_and_have_to_fit(run, writer):
    objective, other = NextToken(GPTModel(MODEL)), NextToken(GPTModel(MODEL))
    path = save(run, 2, writer, objective)
    writer.finish()
    training_state = {"optimizer": {}}
    weights = read_sharded(path, training_state, DistContext(0, 2))
    load_weights(other, weights)
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), other.parameters(), strict=True))
    assert read_like(training_state["optimizer"]["state"][0])["exp_avg"].tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"pos_emb.weight: expected \(9, 8\), found \(8, 8\)"):
        load_weights(GPTModel(GPTConfig(5, 9, 8, 2, 1, 0.0)), weights)


# --- several processes ------------------------------------------------------------------------------------------------


def shard(ctx, replicas=1):
    """The tensors as FSDP2 shards them or, with replicas, HSDP; and the whole ones."""
    mesh = init_device_mesh("cpu", (replicas, ctx.world_size // replicas))
    sharded, whole = whole_tensors()
    return {name: distribute_tensor(t, mesh, [Replicate(), Shard(0)]) for name, t in sharded.items()}, whole


def write(ctx, path, replicas):
    writer, (sharded, whole) = ShardedWriter(ctx), shard(ctx, replicas)
    writer.start(path, {**sharded, **whole}, lambda folder: None, lambda folder, digests: folder.rename(path))
    for tensor in (*(t.to_local() for t in sharded.values()), *whole.values()):
        tensor.zero_()
    assert writer.finish() == path.name


def read(ctx, path):
    expected, whole = shard(ctx)
    targets = {name: torch.zeros_like(tensor) for name, tensor in {**expected, **whole}.items()}
    read_into(open_sharded(path), targets)
    for name, tensor in expected.items():
        assert torch.equal(targets[name].to_local(), tensor.to_local()), name
    assert all(torch.equal(targets[name], tensor) for name, tensor in whole.items())
    (like,) = read_like({0: open_sharded(path)["uneven"]}, expected["uneven"]).values()
    assert torch.equal(like.to_local(), expected["uneven"].to_local())


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="needs a fork that can use PyTorch")
@pytest.mark.parametrize("replicas", [1, 2])
def test_four_write_what_one_two_and_four_read(tmp_path, replicas):
    path = tmp_path / "step-000001"
    fork(4, lambda ctx: write(ctx, path, replicas), tmp_path / "write")
    expected = {name: tensor for group in whole_tensors() for name, tensor in group.items()}
    found = read_like(open_sharded(path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    for n in (2, 4):
        fork(n, lambda ctx: read(ctx, path), tmp_path / str(n))
