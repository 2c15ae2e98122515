"""Checkpoints are written whole or not at all, damage is detected, and old ones are deleted."""

import json
import math
import pickle
import signal

import pytest
import safetensors.torch
import torch
from conftest import saved_state
from crashes import Disk, Killed
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.checkpoint import RunFolder, read_state
from gpt.config import GPTConfig, TrainConfig
from gpt.exchange.models import load_model
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken
from gpt.objectives.weights import load_weights, named_weights
from gpt.run.training import truncate_logs
from gpt.system.files import checksummed
from gpt.text.tokenizers import get_tokenizer

MODEL = GPTConfig(5, 8, 8, 2, 1, 0.0, init="gpt2")


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(TrainConfig(model=MODEL), get_tokenizer("char", ["abcde"]))
    folder.metrics.write_text("step\n")
    folder.samples.write_text("")
    return folder


def save(run, step, is_best=False, keep_checkpoints=2, objective=None):
    training_state = {"optimizer": {"state": {0: {"exp_avg": torch.full((3,), float(step))}}}, "random": {}}
    state = saved_state(step, TrainConfig(model=MODEL))
    weights = named_weights(objective or NextToken(GPTModel(MODEL)))
    return run.save(weights, set(), training_state, state, is_best, keep_checkpoints)


def test_a_saved_checkpoint_is_loaded(run):
    objective = NextToken(GPTModel(MODEL))
    path = save(run, 3, objective=objective)
    assert path.name == "step-000003"
    checkpoint = run.load("last")
    assert checkpoint.state["step"] == 3
    assert checkpoint.training_state["optimizer"]["state"][0]["exp_avg"].tolist() == [3, 3, 3]
    other = NextToken(GPTModel(MODEL))
    load_weights(other, checkpoint.weights)
    for a, b in zip(objective.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    """Draw tensors of any shape and dtype, with any finite values."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    data = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    if dtype == torch.bool:
        data = data % 2
    tensor = data.view(dtype) if size else torch.empty(0, dtype=dtype)
    return tensor.nan_to_num(0.0, 0.0, 0.0).reshape(shape) if dtype.is_floating_point else tensor.reshape(shape)


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).tolist()


NUMBERS = st.none() | st.integers(0, 2**62) | st.floats(0, allow_infinity=False, allow_nan=False)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    buffers=st.lists(tensors(), max_size=4),
    moments=st.dictionaries(st.integers(0, 9), st.dictionaries(st.text(max_size=5), tensors(), max_size=3), max_size=3),
    random=tensors(),
    best_loss=NUMBERS,
    grad_norm=NUMBERS,
    rows=st.binary(max_size=50),
    words=st.text(max_size=20),
)
def test_saved_tensors_and_counters_load_bit_for_bit(
    tmp_path_factory, buffers, moments, random, best_loss, grad_norm, rows, words
):
    run = RunFolder(tmp_path_factory.mktemp("any") / "run")
    run.create(TrainConfig(model=MODEL, sample_prompt=words), get_tokenizer("char", ["abcde"]))
    run.metrics.write_bytes(rows)
    objective = NextToken(GPTModel(MODEL))
    for n, buffer in enumerate(buffers):
        objective.register_buffer(f"buffer{n}", buffer)
    state = saved_state(3, TrainConfig(model=MODEL, sample_prompt=words))
    state |= {"best_loss": best_loss, "grad_norm": grad_norm}
    training_state = {"optimizer": {"state": moments}, "random": [{"cpu": random}]}
    run.save(named_weights(objective), set(), training_state, state, True, 1)
    found = run.load("best")
    assert {name: found.state[name] for name in state} == state
    assert found.config == TrainConfig(model=MODEL, sample_prompt=words)
    for name, tensor in objective.model.state_dict().items():
        assert bits(found.weights[name]) == bits(tensor)
    for n, buffer in enumerate(buffers):
        if buffer.numel():  # of empty ones one stands for all: they share their address, nowhere
            assert bits(found.weights[f"objective.buffer{n}"]) == bits(buffer)
    assert bits(found.training_state["random"][0]["cpu"]) == bits(random)
    for key, named in moments.items():
        saved = found.training_state["optimizer"]["state"][key]
        assert {name: bits(tensor) for name, tensor in saved.items()} == {name: bits(t) for name, t in named.items()}
    run.metrics.write_bytes(b"something else")
    truncate_logs(run, found)
    assert run.metrics.read_bytes() == rows


def test_the_saved_names_are_the_models_own(run):
    path = save(run, 1)
    assert set(safetensors.torch.load_file(path / "model.safetensors")) == set(GPTModel(MODEL).state_dict())


def test_the_newest_and_the_best_are_kept(run):
    for step, is_best in ((1, False), (2, True), (3, False), (4, False), (5, False)):
        save(run, step, is_best)
    assert run.steps() == ["step-000002", "step-000004", "step-000005"]
    assert (run.load("last").state["step"], run.load("best").state["step"]) == (5, 2)
    assert run.load("step-000004").state["step"] == 4


def test_without_a_best_the_newest_is_used(run):
    save(run, 1)
    assert run.load("best").state["step"] == 1


def test_steps_are_ordered_by_number(run):
    for step in (999_999, 1_000_000):
        save(run, step)
    assert run.steps()[-1] == "step-1000000"


@pytest.mark.parametrize("where", ["safetensors.torch.save_file", "torch.save", "gpt.system.files.flush", "json.dumps"])
def test_a_failed_save_leaves_the_previous_checkpoint(run, monkeypatch, where):
    save(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(where, lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            save(run, 2)
    assert [p.name for p in run.checkpoints.iterdir() if p.is_dir()] == ["step-000001"]
    assert run.load("last").state["step"] == 1
    assert save(run, 2).is_dir()


def test_a_full_disk_is_reported(run):
    resource = pytest.importorskip("resource", reason="file-size limits are POSIX")
    save(run, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        with pytest.raises(OSError, match=r"step-000002 could not be written .* is the disk full"):
            save(run, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert run.load("last").state["step"] == 1
    assert [p.name for p in run.checkpoints.iterdir() if p.is_dir()] == ["step-000001"]


def test_a_kill_between_the_two_renames_of_a_repeated_save_loses_nothing(run):
    """A reader finds the first one where it was set aside; the next writer moves it back."""
    save(run, 1)
    path = save(run, 2)
    path.rename(run.checkpoints / ".step-000002.old")
    assert run.steps() == ["step-000001", "step-000002"]
    assert run.load("last").state["step"] == run.load("step-000002").state["step"] == 2
    assert not path.exists()
    with run.lock():
        assert path.exists()
    assert run.load("last").path == path


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("keep_checkpoints", [1, 2])
def test_a_save_killed_at_any_call_loses_nothing(tmp_path, again, keep_checkpoints):
    """Kill at each call that changes the disk, while step 3 is saved for the first or second time."""
    deaths, newest = 0, set()
    for n in range(100):
        run = RunFolder(tmp_path / str(n))
        with run.folder_lock.held():
            run.create(TrainConfig(model=MODEL), get_tokenizer("char", ["abcde"]))
        for step in (1, 2, 3) if again else (1, 2):
            save(run, step, is_best=step == 1, keep_checkpoints=3)
        before = read_state(run.find())["step"]
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, last=n)
            try:
                save(run, 3, is_best=True, keep_checkpoints=keep_checkpoints)
                break
            except Killed:
                deaths += 1
        assert run.load("last").state["step"] >= before  # a reader, while nobody has cleared up
        with run.lock():
            checkpoint, errors = run.load_newest_valid()
            assert checkpoint.state["step"] >= before
            assert not errors
            run.update_pointers(checkpoint)
            assert run.find("best").name == checkpoint.state["best"]
            assert not [p for p in run.checkpoints.iterdir() if p.name.startswith(".step-")]
        newest.add(checkpoint.state["step"])
        save(run, 4, keep_checkpoints=keep_checkpoints)
        assert run.load("last").state["step"] == 4
    assert deaths > 15
    assert newest == ({3} if again else {2, 3})


def test_remains_of_a_killed_save_are_removed(run):
    remains = run.checkpoints / ".step-000002.x7.tmp"
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"half")
    assert run.steps() == []
    save(run, 3)
    assert run.steps() == ["step-000003"]
    with run.lock():
        assert not remains.exists()
    assert run.load("last").state["step"] == 3


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 0b100
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "state.json"])
@pytest.mark.parametrize("damage", ["flip first", "flip middle", "flip last", "truncate", "empty", "delete"])
def test_a_damaged_checkpoint_is_detected_and_skipped(run, name, damage):
    save(run, 1)
    file = save(run, 2) / name
    size = file.stat().st_size
    if damage.startswith("flip"):
        flip(file, {"first": 0, "middle": size // 2, "last": size - 1}[damage.split()[1]])
    elif damage == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else size // 2])
    if (name, damage) == ("state.json", "flip last"):  # the line end after the closing brace, now a "\x0e"
        assert file.read_bytes()[-1:] == b"\x0e"
    with pytest.raises(ValueError, match="step-000002"):
        run.load("last")
    checkpoint, errors = run.load_newest_valid()
    assert checkpoint.state["step"] == 1
    assert len(errors) == 1
    assert "step-000002" in errors[0]


def test_a_damaged_checkpoint_is_neither_counted_nor_deleted(run):
    """keep_checkpoints = 2 keeps two valid ones. A damaged one may be of a newer version, so it stays."""
    save(run, 1)
    flip(save(run, 2) / "model.safetensors", 1000)
    assert run.load_newest_valid()[0].state["step"] == 1
    save(run, 3)
    assert run.steps() == ["step-000001", "step-000002", "step-000003"]
    save(run, 4)
    assert run.steps() == ["step-000002", "step-000003", "step-000004"]
    save(run, 2)  # come to again, and whole now
    save(run, 5)
    assert run.steps() == ["step-000004", "step-000005"]


def test_a_flipped_bit_of_state_json_is_detected(run):
    file = save(run, 2) / "state.json"
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        for bit in (0, 6):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            file.write_bytes(data)
            with pytest.raises(ValueError, match="step-000002"):
                run.load("last")


def test_a_pickle_with_code_in_it_is_not_executed(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'boom')!r}, 'w')",))

    folder = save(run, 1)
    torch.save({"optimizer": Bomb()}, folder / "training_state.pt")
    digest = __import__("hashlib").sha256((folder / "training_state.pt").read_bytes()).hexdigest()
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["training_state.pt"] = digest
    state.pop("checksum", None)
    (folder / "state.json").write_text(checksummed(state))
    with pytest.raises(ValueError, match="damaged"):
        run.load("last")
    assert not (tmp_path / "boom").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "training_state.pt", weights_only=True)


def test_a_checkpoint_of_another_format_is_refused(run):
    folder = save(run, 1)
    state = json.loads((folder / "state.json").read_text()) | {"format": 99}
    (folder / "state.json").write_text(checksummed(state))
    with pytest.raises(ValueError, match="format 99, this version reads"):
        run.load("last")


def test_a_missing_checkpoint_is_named_with_those_available(run):
    with pytest.raises(ValueError, match=r"no checkpoint 'best' .* available: none"):
        run.load("best")
    save(run, 1)
    with pytest.raises(ValueError, match=r"no checkpoint 'step-7' .* available: step-000001"):
        run.load("step-7")


def test_a_tied_weight_is_saved_once_and_loaded_tied(run):
    tied = GPTConfig(5, 8, 8, 2, 1, 0.0, tie_embeddings=True)
    objective = NextToken(GPTModel(tied))
    weights = named_weights(objective)
    assert "out_head.weight" not in weights
    other = GPTModel(tied)
    load_weights(other, weights)
    assert torch.equal(other.out_head.weight, objective.model.tok_emb.weight)
    assert other.out_head.weight is other.tok_emb.weight


def test_an_objectives_own_tensors_have_a_prefix():
    objective = NextToken(GPTModel(MODEL))
    objective.head = torch.nn.Linear(8, 2)
    weights = named_weights(objective)
    assert {"objective.head.weight", "objective.head.bias"} == set(weights) - set(GPTModel(MODEL).state_dict())
    load_weights(objective, weights)
    with pytest.raises(ValueError, match=r"do not fit the model in 2 tensors, the first objective.head.bias"):
        load_weights(NextToken(GPTModel(MODEL)), weights)


def test_weights_of_another_shape_are_refused():
    other = GPTConfig(5, 9, 8, 2, 1, 0.0)
    with pytest.raises(ValueError, match=r"pos_emb.weight: expected \(9, 8\), found \(8, 8\)"):
        load_weights(GPTModel(other), named_weights(NextToken(GPTModel(MODEL))))


def test_load_model_gives_a_model_ready_to_use(run):
    objective = NextToken(GPTModel(MODEL))
    save(run, 4, objective=objective)
    model, tokenizer, checkpoint = load_model(run.path)
    assert not model.training
    assert tokenizer.decode([0, 1]) == "ab"
    assert checkpoint.state["step"] == 4
    ids = torch.tensor([[0, 3, 1]])
    assert torch.equal(model(ids), objective.model.eval()(ids))
