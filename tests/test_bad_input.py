"""A person's mistake: a line or two on stderr that name it and the way out, status 2, and nothing on disk touched.

The scripts run in this process, in a working folder that holds what `workshop` makes: texts, a prepared folder
data/tiny, a config tiny.toml, and the finished run runs/tiny.
"""

import contextlib
import functools
import gzip
import io
import json
import os
import pickle
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gpt.checkpoint import RunFolder
from gpt.config import DataConfig, OptimConfig, TrainConfig, check_resumable, from_dict
from gpt.data import DocumentExamples, create_dataloader
from gpt.exchange.models import load_model
from gpt.generation import generate
from gpt.loss import calc_loss_batch, calc_loss_loader, evaluate
from gpt.model import GPTModel
from gpt.run.training import resume_run
from gpt.system import paths
from gpt.system.files import checksummed, sha256
from gpt.text import sources
from gpt.token_files import load_data
from gpt.tokenizer import get_tokenizer, load_tokenizer

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TEXT = "the cat sat on the mat, and the dog sat on the cat; so the mat had the dog and the cat.\n" * 12
TINY = """\
# python scripts/train.py --config tiny.toml
max_steps = 4
batch_size = 2
eval_every = 0
device = "cpu"

[model]
vocab_size = 0
context_length = 8
emb_dim = 16
n_heads = 2
n_layers = 1

[data]
path = "data/tiny"
"""
FILES = {
    "text.txt": TEXT.encode(),
    "tiny.toml": TINY.encode(),
    "empty.txt": b"",
    "one.txt": b"x",
    "foreign.txt": "the cat sat on the \N{GREEK SMALL LETTER OMEGA}".encode(),
    "latin1.txt": "caf\N{LATIN SMALL LETTER E WITH ACUTE} au lait".encode("latin-1"),
    "binary.bin": bytes(range(32)) * 4,
    "binary.toml": b"max_steps = 1\n\xff\xfe\x00\x01",
    "pairs.jsonl": b'{"q": "1 + 1?", "a": "2"}\n' * 9,
    "broken.jsonl": b'{"q": "1 + 1?", "a": "2"}\n{"q": "1 + 1?"\n',
    "unanswered.jsonl": b'{"q": "1 + 1?", "a": "2"}\n{"q": "1 + 2?", "a": ""}\n',
    "whole.txt.gz": gzip.compress(TEXT.encode()),
    "cut.txt.gz": gzip.compress(TEXT.encode())[:-20],
    "named.gz": TEXT.encode(),
    "garbage.txt.gz": gzip.compress(TEXT.encode()) + b"garbage",
    "notes/todo.doc": b"a folder that holds neither texts, nor prepared data, nor a run",
    "runs/strange/todo.doc": b"another",
}


# --- running a script -------------------------------------------------------------------------------------------------


def execute(command: str) -> int:
    """Run a script of scripts/ in this process as the shell would, and return its exit status."""
    name, *arguments = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        patch.setattr(paths, "PROJECT", Path.cwd())  # the project's own runs and data stay out of sight
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.delenv("GPT_TRACEBACK", raising=False)
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        except Exception:  # as the interpreter would
            traceback.print_exc()
            return 1
    return 0


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder, with a file's bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def one_thread():
    """Threads that share out so little work wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def workshop(one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with contextlib.chdir(folder):
        assert execute("prepare_data --input text.txt --tokenizer char --out data/tiny") == 0
        assert execute("train --config tiny.toml --run tiny") == 0
    return folder


@pytest.fixture
def work(workshop, tmp_path, monkeypatch):
    """The working folder: a copy of the workshop."""
    folder = shutil.copytree(workshop, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def assert_mistake(work, capfd):
    """Run a command that holds a mistake, and check all that is the same for all of them. Pieces of `words`, which
    " ... " divides, must be in the message."""

    def check(command: str, words: str) -> str:
        before = contents(work)
        capfd.readouterr()
        status = execute(command)
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        assert status == 2, f"status {status}: {out}{err}"
        lines = err.splitlines()
        assert 1 <= len(lines) <= 2, err
        assert lines[-1].startswith(f"{command.split()[0]}.py: error: "), err
        assert "usage:" not in out + err
        said = err.replace("\\\\", "/").replace("\\", "/")  # the paths of Windows
        for piece in words.split(" ... "):
            assert piece in said, f"{piece!r} is not in: {err}"
        assert contents(work) == before
        return err

    return check


def table(rows):
    """Parametrize by (command, words), the command being the test's name."""
    return pytest.mark.parametrize("command, words", rows, ids=[command[:100] for command, _ in rows])


# --- train.py ---------------------------------------------------------------------------------------------------------

TRAIN = "train --config tiny.toml"
RESUME = "train --run tiny --resume"


@table(
    [
        ("train", "name a config (--config configs/story.toml)"),
        ("train --resume", "--resume needs the name of the run"),
        (f"{TRAIN} extra", "'extra' ... quotes"),
        ("train --config", "--config"),
        (f"{TRAIN} --max_steps", "--max_steps"),
        (f"{TRAIN} --model.n_layer 2", "--model.n_layer: did you mean ... model.n_layers"),
        (f"{TRAIN} --n_layers 2", "--n_layers: did you mean ... model.n_layers"),
        (f"{TRAIN} --lr=1", "--lr: did you mean ... optim.lr"),
        (f"{TRAIN} --batch-size 2", "--batch-size: did you mean ... batch_size"),
        (f"{TRAIN} --zzz 2", "--zzz ... max_steps"),
        (f"{TRAIN} --model.n_heads 3", "model.emb_dim 16 is not divisible by n_heads 3"),
        (f"{TRAIN} --model.n_heads 0", "model.n_heads must be at least 1, not 0"),
        (f"{TRAIN} --model.drop_rate 1.5", "model.drop_rate must be at most 0.99, not 1.5"),
        (f"{TRAIN} --model.drop_rate nan", "model.drop_rate must be a finite number, not nan"),
        (f"{TRAIN} --model.drop_rate inf", "model.drop_rate must be a finite number, not inf"),
        (f"{TRAIN} --model.init zeros", "model.init must be one of 'pytorch', 'gpt2' ... not 'zeros'"),
        (f"{TRAIN} --model.qkv_bias maybe", "--model.qkv_bias takes true or false, not 'maybe'"),
        (f"{TRAIN} --compile maybe", "--compile takes true or false, not 'maybe'"),
        (f"{TRAIN} --optim.lr -1", "optim.lr must be at least 0, not -1"),
        (f"{TRAIN} --optim.lr fast", "--optim.lr takes a number, not 'fast'"),
        (f"{TRAIN} --optim.lr 1e-4 --optim.min_lr 1e-3", "optim.min_lr 0.001 is above lr 0.0001"),
        (f"{TRAIN} --max_steps 0", "max_steps must be at least 1, not 0"),
        (f"{TRAIN} --max_steps many", "--max_steps takes a whole number, not 'many'"),
        (f"{TRAIN} --max_steps 1.5", "--max_steps takes a whole number, not '1.5'"),
        (f"{TRAIN} --max_steps ''", "--max_steps takes a whole number, not ''"),
        (f"{TRAIN} --max_steps 1{'0' * 400}", "max_steps must be at most"),
        (f"{TRAIN} --batch_size 0", "batch_size must be at least 1, not 0"),
        (f"{TRAIN} --seed -1", "seed must be at least 0, not -1"),
        (f"{TRAIN} --seed {2**70}", f"seed must be at most ... not {2**70}"),
        (f"{TRAIN} --device tpu9", "unknown device 'tpu9' ... cpu"),
        (f"{TRAIN} --device cuda", "'cuda' is not available on this machine ... cpu"),
        (f"{TRAIN} --device cuda:7", "'cuda:7' is not available on this machine ... cpu"),
        (f"{TRAIN} --dtype float16", "dtype must be one of ... 'bfloat16' ... 'float16'"),
        ("train --config none.toml", "no config file none.toml"),
        ("train --config tiny.toml/x.toml", "no config file ... x.toml"),
        ("train --config notes", "notes is a folder ... .toml"),
        ("train --config ''", "config"),
        ("train --config binary.toml", "binary.toml is not valid TOML"),
        (f"{TRAIN} --data.path data/none", "data/none ... python scripts/prepare_data.py ... --out data/none"),
        (f"{TRAIN} --data.path notes", "no prepared data in notes ... python scripts/prepare_data.py"),
        (f"{TRAIN} --data.path text.txt", "text.txt ... scripts/prepare_data.py --input text.txt"),
        (f"{TRAIN} --data.packing book", "data.packing must be one of 'packed', 'document', not 'book'"),
        (f"{TRAIN} --data.packing document", "data/tiny is not divided into documents ... 'packed' ... --separator"),
        (f"{TRAIN} --data.packing document --data.stride 4", "data.stride is 4, but windows of documents ... 0"),
        (f"{TRAIN} --model.context_length 5000", "too few ... context_length 5000 ... a longer text"),
        (f"{TRAIN} --model.vocab_size 5", "vocab_size is 5 ... data/tiny ... set model.vocab_size to 0"),
        (f"{TRAIN} --model.vocab_size 50257", "vocab_size is 50257 ... data/tiny ... set model.vocab_size to 0"),
        (f"{TRAIN} --model.emb_dim {10**15}", "model.emb_dim must be at most"),
        (f"{TRAIN} --batch_size 2000000000", "a training step needs about ... batch_size ... with grad_accum_steps"),
        (f"{TRAIN} --model.emb_dim 131072", "a training step needs about ... model.emb_dim ... needs"),
        (f"{TRAIN} --max_steps 1000000000 --save_every 1 --keep 1000000000", "checkpoints ... of disk ... keep"),
        (f"{TRAIN} --sample_prompt 'the \N{GREEK SMALL LETTER OMEGA}'", "sample_prompt ... U+03C9 ... gpt2 or bpe"),
        (f"{TRAIN} --run tiny", "tiny ... has a checkpoint ... --resume"),
        (f"{TRAIN} --run runs/tiny", "tiny ... has a checkpoint ... --resume"),
        (f"{TRAIN} --run ''", "a run needs a name, not ''"),
        (f"{TRAIN} --run .", "a run needs a name, not '.'"),
        (f"{TRAIN} --run text.txt/mine", "text.txt"),
        (f"{TRAIN} --run data/tiny/meta.json", "data/tiny/meta.json"),
        (f"{TRAIN} --run data/tiny", "data/tiny ... run"),
        (f"{TRAIN} --run strange", "runs/strange ... run"),
        ("train --run tinny --resume", "unknown run 'tinny' ... did you mean tiny?"),
        ("train --run '' --resume", "a run needs a name, not ''"),
        ("train --run notes/x --resume", "unknown run 'notes/x'"),
        (f"{RESUME} --model.n_layers 2", "model.n_layers is 1 in this run, not 2"),
        (f"{RESUME} --seed 8", "seed is 1337 in this run, not 8"),
        (f"{RESUME} --batch_size 3", "batch_size is 2 in this run, not 3"),
        (f"{RESUME} --optim.beta1 0.5", "optim.beta1 is 0.9 in this run, not 0.5"),
        (f"{RESUME} --max_steps 3", "at step 4 already: max_steps 3 lies behind it"),
        (f"{TRAIN} --run strange --resume", "runs/strange exists and is not a run"),
        (f"{RESUME} --data.stride 3", "data.stride is 0 in this run, not 3"),
        (f"{RESUME} --data.packing document", "data.packing is 'packed' in this run, not 'document'"),
        (f"{RESUME} --data.path data/none", "data/none ... prepare_data.py"),
        (f"{RESUME} --config none.toml", "no config file none.toml"),
        (f"{TRAIN} --objective.name next", "objective.name must be one of 'next_token' ... not 'next'"),
        (f"{TRAIN} --objective.label_smoothing 1", "objective.label_smoothing must be at most 0.99, not 1.0"),
        (f"{TRAIN} --objective.name sft", "needs pairs, and data/tiny holds none ... --target_field"),
        (f"{TRAIN} --objective.name distill", "objective.teacher is empty"),
        (f"{TRAIN} --objective.name distill --objective.teacher tinny", "unknown run 'tinny' ... did you mean tiny?"),
        (f"{TRAIN} --objective.name distill --objective.teacher tiny:step-000009", "no checkpoint 'step-000009' in"),
        (f"{TRAIN} --objective.teacher tiny", "objective.teacher is a setting of distill, not of 'next_token'"),
        (f"{RESUME} --objective.name reverse", "objective.name is 'next_token' in this run, not 'reverse'"),
    ]
)
def test_train(assert_mistake, command, words):
    assert_mistake(command, words)


@pytest.mark.parametrize(
    "toml, words",
    [
        ("max_step = 1", "unknown setting max_step: did you mean max_steps?"),
        ("n_layer = 1", "unknown setting n_layer: did you mean model.n_layers?"),
        ("lr = 1", "unknown setting lr: did you mean optim.lr?"),
        ("[model]\nn_layer = 1", "unknown setting model.n_layer: did you mean model.n_layers?"),
        ("[modell]\nn_layers = 1", "unknown setting modell: did you mean model"),
        ("[model.deep]\nn_layers = 1", "unknown setting model.deep"),
        ("max_steps = 1\nbatch_size == 2", "not valid TOML ... line 2"),
        ("max_steps = 1\nmax_steps = 2", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("max_steps = 1" + "0" * 5000, "broken.toml"),
        ("model = 3", "model is a table of settings, [model], not a value: 3"),
        ("[[model]]\nn_layers = 1", "model is a table of settings, [model], not a value"),
        ("[max_steps]\nx = 1", "max_steps must be a whole number"),
        ("max_steps = '5'", "max_steps must be a whole number, not '5'"),
        ("max_steps = true", "max_steps must be a whole number, not True"),
        ("max_steps = 5.0", "max_steps must be a whole number, not 5.0"),
        ("compile = 1", "compile must be true or false, not 1"),
        ("device = 1", "device must be a string, not 1"),
        ("dtype = ['float32']", "dtype must be one of"),
        ("[model]\ndrop_rate = nan", "model.drop_rate must be a finite number, not nan"),
        ("[model]\ndrop_rate = true", "model.drop_rate must be a finite number, not True"),
        ("[optim]\nlr = 1" + "0" * 400, "optim.lr"),
        ("[optim]\nlr = 2020-01-01", "optim.lr must be a finite number"),
        ("[optim]\nmin_lr = 1.0", "optim.min_lr 1.0 is above lr 0.001"),
        ('"a\\nb\\nc\\nd" = 1', "unknown setting"),
    ],
    ids=lambda value: value[:40].encode("unicode_escape").decode(),
)
def test_config_file(work, assert_mistake, toml, words):
    (work / "broken.toml").write_text(toml, encoding="utf-8")
    assert "broken.toml" in assert_mistake("train --config broken.toml", words)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << 7
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json", "tokenizer.json"])
def test_damaged_data(work, assert_mistake, name, damage):
    damage(work / "data/tiny" / name)
    assert_mistake(TRAIN, "data/tiny" if name == "meta.json" else name)


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "state.json"])
def test_damaged_checkpoint(work, assert_mistake, name, damage):
    """The run's only one."""
    damage(work / "runs/tiny/checkpoints/step-000004" / name)
    assert_mistake(RESUME, f"tiny ... {name}")
    assert_mistake("generate --run tiny --prompt the", name)
    assert_mistake("evaluate --run tiny", name)


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("tokenizer.json", flip_bit, "tokenizer.json is not a saved tokenizer"),
        ("tokenizer.json", truncate, "tokenizer.json is not a saved tokenizer"),
        ("tokenizer.json", Path.unlink, "no tokenizer file ... tokenizer.json"),
    ],
)
def test_damaged_run(work, assert_mistake, name, damage, words):
    damage(work / "runs/tiny" / name)
    assert_mistake("generate --run tiny --prompt the", words)


def test_a_run_without_a_checkpoint(work, assert_mistake):
    shutil.rmtree(work / "runs/tiny/checkpoints")
    assert_mistake("generate --run tiny --prompt the", "no checkpoint 'best' in ... tiny ... none")
    flip_bit(work / "runs/tiny/config.toml")
    assert_mistake(RESUME, "config.toml is not valid TOML")


def test_another_tokenizer_of_the_same_size(work, assert_mistake):
    """It would turn the same tokens into other text."""
    path = work / "runs/tiny/tokenizer.json"
    path.write_text(path.read_text().replace("c", "k", 1).replace("k", "c", 1).replace(" ", "_", 1))
    assert_mistake("generate --run tiny --prompt the", "tokenizer.json")


def test_a_checkpoint_from_before(work, assert_mistake):
    """Its format is said, and nothing is written."""
    file = work / "runs/tiny/checkpoints/step-000004/state.json"
    file.write_text(checksummed({**json.loads(file.read_text()), "format": 1}))
    for command in (RESUME, "generate --run tiny --prompt the"):
        assert_mistake(command, "step-000004 has checkpoint format 1, this version reads 2")


def test_a_run_at_which_another_process_is_at_work(work, assert_mistake):
    with RunFolder(work / "runs/tiny").lock_or_fail():
        assert_mistake(RESUME, "runs/tiny is being written by this process")


def test_resume_with_a_config_starts_a_run_that_is_not_there(work, capfd):
    assert execute(f"{TRAIN} --run fresh --resume") == 0
    assert "runs/fresh has no checkpoint yet: starting at step 0" in capfd.readouterr().out.replace("\\", "/")
    assert execute(f"{TRAIN} --run fresh --resume --max_steps 6") == 0
    assert "max_steps is 6 from here on, before 4" in capfd.readouterr().out
    assert RunFolder(work / "runs/fresh").state("last")["step"] == 6


def test_a_stray_folder_among_the_checkpoints_is_passed_over(work, assert_mistake):
    (work / "runs/tiny/checkpoints/step-backup").mkdir()
    assert RunFolder(work / "runs/tiny").steps() == ["step-000004"]
    assert_mistake(f"{TRAIN} --run tiny", "has a checkpoint ... --resume")


def test_a_model_that_does_not_fit_memory(assert_mistake, monkeypatch):
    def no_memory(config):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("gpt.objectives.create_model", no_memory)
    assert_mistake(TRAIN, "memory ... model.n_layers")


@pytest.mark.parametrize("how", ["--tokenizer bpe:270", "--tokenizer char --val_fraction 0.3"])
def test_data_prepared_anew(work, assert_mistake, how):
    """Neither a resumed run nor its evaluation may use it."""
    assert execute(f"prepare_data --input text.txt {how} --out data/tiny") == 0
    assert_mistake(RESUME, "data/tiny ... prepare")
    assert_mistake("evaluate --run tiny", "data/tiny was prepared anew ... --text FILE")


# --- forged files -----------------------------------------------------------------------------------------------------
# What has right checksums and is wrong all the same: refused in words, nothing touched, nothing run.

LAST = "runs/tiny/checkpoints/step-000004"


@pytest.mark.parametrize(
    "name, value",
    [("step", "x"), ("step", -4), ("step", 1.5), ("step", True), ("step", 5), ("machine", None), ("elapsed_s", "x"),
     ("loss_sum", []), ("best_loss", {}), ("best", 5), ("tokens_seen", None), ("config", {"junk": 1}), ("sha256", {}),
     ("sha256", {"../../../../text.txt": "0"})],
)  # fmt: skip
def test_a_forged_state(work, assert_mistake, name, value):
    file = work / LAST / "state.json"
    file.write_text(checksummed({**json.loads(file.read_text()), name: value}))
    assert_mistake(f"{RESUME} --max_steps 6", "step-000004")
    assert_mistake("generate --run tiny --prompt the", "step-000004")


@pytest.mark.parametrize("name", ["step", "machine", "tokenizer", "data", "best", "config", "loss_tokens", "sha256"])
def test_a_state_that_lacks_something(work, assert_mistake, name):
    file = work / LAST / "state.json"
    state = json.loads(file.read_text())
    del state[name]
    file.write_text(checksummed(state))
    assert_mistake(f"{RESUME} --max_steps 6", f"state.json is damaged: its {name} is 'missing'")


def test_a_checkpoint_under_another_name(work, assert_mistake):
    """It would hide those between its own step and that of its name."""
    (work / LAST).rename(work / LAST.replace("4", "9"))
    assert_mistake(f"{RESUME} --max_steps 12", "step-000009 is damaged, or was renamed: it holds step 4")


def reseal(work, name):
    file = work / LAST / "state.json"
    state = json.loads(file.read_text())
    state["sha256"][name] = sha256(work / LAST / name)
    file.write_text(checksummed(state))


def of_another_shape(state):
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(1)  # PyTorch's fused AdamW would write beyond it


@pytest.mark.parametrize(
    "forge",
    [of_another_shape, lambda s: s.clear(), lambda s: s["random"][0].update(cpu="x"), lambda s: s["random"].clear(),
     lambda s: s["optimizer"].update(state={}), lambda s: s["optimizer"]["state"].pop(0),
     lambda s: s["optimizer"]["param_groups"].pop(),
     lambda s: s["random"][0].update(cpu=torch.zeros(3, dtype=torch.uint8))],
    ids=range(8),
)  # fmt: skip
def test_a_forged_training_state(work, assert_mistake, forge):
    file = work / LAST / "training_state.pt"
    state = torch.load(file, weights_only=True)
    forge(state)
    torch.save(state, file)
    reseal(work, "training_state.pt")
    assert_mistake(f"{RESUME} --max_steps 6", "training_state.pt does not fit the run")


def test_settings_in_a_training_state_are_not_believed(work):
    """The config says how AdamW decays, and what is saved says what it has seen."""
    file = work / LAST / "training_state.pt"
    state = torch.load(file, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group.update(weight_decay=5.0, maximize=True)
    torch.save(state, file)
    reseal(work, "training_state.pt")
    trainer = resume_run(work / "runs/tiny")
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    assert not any(group["maximize"] for group in trainer.optimizer.param_groups)


@pytest.mark.parametrize("content", [pickle.dumps(print, 2), b"", b"PK", b"\x80"], ids=repr)
def test_code_in_a_training_state_is_not_run_and_not_recommended(work, assert_mistake, content):
    (work / LAST / "training_state.pt").write_bytes(content)
    reseal(work, "training_state.pt")
    assert "weights_only" not in assert_mistake(RESUME, "step-000004 ... damaged")


@pytest.mark.parametrize(
    "change", [{"pos_emb.weight": None}, {"more": torch.zeros(2)}, {"pos_emb.weight": torch.zeros(2)}]
)
def test_forged_weights(work, assert_mistake, change):
    file = work / LAST / "model.safetensors"
    weights = {**safetensors.torch.load_file(file), **change}
    safetensors.torch.save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, file)
    reseal(work, "model.safetensors")
    for command in (f"{RESUME} --max_steps 6", "generate --run tiny --prompt the"):
        assert_mistake(command, f"the weights do not fit the model in 1 tensors, the first {next(iter(change))}")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_token_beyond_the_vocabulary(work, assert_mistake, split):
    file, meta = work / f"data/tiny/{split}.bin", work / "data/tiny/meta.json"
    tokens = np.fromfile(file, np.uint16)
    tokens[5] = 60_000
    tokens.tofile(file)
    facts = json.loads(meta.read_text())
    facts[split]["sha256"] = sha256(file)
    meta.write_text(checksummed(facts))
    assert_mistake(TRAIN, f"{split}.bin holds the token id 60000")


@pytest.mark.parametrize(
    "change",
    [{"source": 5}, {"has_eot": "yes"}, {"vocab_size": True}, {"val": []}, {"tokenizer_sha256": None}],
    ids=str,
)
def test_forged_meta(work, assert_mistake, change):
    meta = work / "data/tiny/meta.json"
    meta.write_text(checksummed({**json.loads(meta.read_text()), **change}))
    assert_mistake(TRAIN, "meta.json is damaged")


def test_a_link_in_place_of_a_checkpoint_is_not_followed(work):
    (work / "mine").mkdir()
    (work / "mine/thesis.txt").write_text("years of work")
    (work / "runs/tiny/checkpoints/step-000005").symlink_to(work / "mine")
    assert execute(f"{RESUME} --max_steps 5") == 0
    assert contents(work / "mine") == {"thesis.txt": b"years of work"}
    assert RunFolder(work / "runs/tiny").load("last").state["step"] == 5


@pytest.mark.parametrize(
    "command",
    [f"{TRAIN} --run new/../notes", f"{TRAIN} --run runs/../new/../runs/strange",
     "prepare_data --input text.txt --tokenizer char --out new/../notes",
     "prepare_data --input text.txt --tokenizer char --out new/../text.txt"],
    ids=range(4),
)  # fmt: skip
def test_a_path_that_leads_back_is_what_it_leads_to(assert_mistake, command):
    """Also where there is no folder `new`: what is looked at is what would be replaced."""
    assert_mistake(command, "exists and is not a" if ".txt/" not in command else "text.txt")


@pytest.mark.skipif(os.name == "nt", reason="links need permission there")
@pytest.mark.parametrize("out", ["self", "self/deep"])
def test_a_link_that_leads_to_itself(work, assert_mistake, out):
    (work / "self").symlink_to("self")
    assert_mistake(f"prepare_data --input text.txt --tokenizer char --out {out}", "a link that leads to itself")


@pytest.mark.skipif(os.name == "nt", reason="links need permission there")
def test_links_where_leftovers_would_be_are_not_followed(work):
    (work / "mine").mkdir()
    (work / "mine/thesis.txt").write_text("years of work")
    run = work / "runs/tiny"
    (run / ".loss.png.tmp.png").symlink_to(work / "mine")
    for name in (".last.tmp", ".step-000009.x.tmp", ".step-000004.old"):
        (run / "checkpoints" / name).symlink_to(work / "mine")
    assert execute(f"{RESUME} --max_steps 5") == 0
    assert contents(work / "mine") == {"thesis.txt": b"years of work"}
    assert not list(run.rglob(".*"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Unix alone has named pipes")
@pytest.mark.parametrize("name", ["metrics.csv", "state.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(work, assert_mistake, name):
    (work / LAST / name).unlink()
    os.mkfifo(work / LAST / name)
    execute("generate --run tiny --prompt the")  # it returns
    with pytest.raises(ValueError, match=r"cannot be read: A pipe is not a file"):
        RunFolder(work / "runs/tiny").load("last")


@pytest.mark.parametrize("name", ["metrics.csv", "tokenizer.json", "checkpoints/last"])
def test_a_folder_where_a_file_belongs(work, capfd, name):
    (work / "runs/tiny" / name).unlink()
    (work / "runs/tiny" / name).mkdir()
    assert execute(f"{RESUME} --max_steps 5") == 2
    said = capfd.readouterr().err
    assert "A folder is where a file belongs, so move it away" in said
    assert name.rpartition("/")[2] in said


def test_a_tokenizer_with_half_a_character(work, assert_mistake):
    path = work / "half.json"
    path.write_text(json.dumps({"kind": "char", "characters": "ab\ud800"}))
    assert_mistake("prepare_data --input text.txt --tokenizer half.json --out data/new", "half.json")


@pytest.mark.parametrize("option", ["--seed=--", "--run=--", "--optim.lr=--"])
def test_two_dashes_are_no_value(assert_mistake, option):
    assert_mistake(f"{TRAIN} {option}", "'--' is no value")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Unix alone has a file without an end")
def test_an_endless_config(assert_mistake):
    assert_mistake("train --config /dev/zero", "longer than 1,000,000 bytes")


def test_a_message_shows_no_control_characters_and_has_an_end(work, assert_mistake):
    (work / "odd.toml").write_text(f'"\\u001b[31m\\u202e{"x" * 10_000}" = 1', encoding="utf-8")
    said = assert_mistake("train --config odd.toml", "unknown setting ... save_every, seed")
    assert said.strip().isprintable()
    assert len(said) < 3000


# --- plan.py ----------------------------------------------------------------------------------------------------------

PLAN = "plan --config tiny.toml"


@table(
    [
        ("plan", "--config"),
        ("plan --config none.toml", "no config file none.toml"),
        (f"{PLAN} --modle.n_layers 2", "--modle.n_layers: did you mean --model.n_layers?"),
        (f"{PLAN} --model.n_heads 3", "model.emb_dim 16 is not divisible by n_heads 3"),
        (f"{PLAN} --data.path data/none", "model.vocab_size is 0 ... --model.vocab_size 50257"),
        (f"{PLAN} --data.path notes", "no prepared data in notes"),
        (f"{PLAN} --device cuda", "'cuda' is not available"),
        (f"{PLAN} --run ''", "a run needs a name"),
        (f"{PLAN} --batch_size 2000000000", "a training step needs about ... batch_size ... with grad_accum_steps"),
    ]
)
def test_plan(assert_mistake, command, words):
    assert_mistake(command, words)


# --- generate.py ------------------------------------------------------------------------------------------------------

GENERATE = "generate --run tiny --prompt the"


@table(
    [
        ("generate", "--prompt"),
        ("generate --run tiny", "--prompt"),
        ("generate --prompt the", "name a run (--run NAME) or published weights"),
        ("generate --run tinny --prompt the", "unknown run 'tinny' ... did you mean tiny?"),
        ("generate --run ./notes --prompt the", "unknown run './notes'"),
        ("generate --run '' --prompt the", "a run needs a name, not ''"),
        ("generate --run tiny --prompt ''", "the prompt is empty"),
        ("generate --run tiny --prompt \N{GREEK SMALL LETTER OMEGA}", "U+03C9 ... gpt2 or bpe"),
        ("generate --run tiny --prompt -the", "--prompt: ... --prompt=-"),
        (f"{GENERATE} cat", "'cat' ... quotes"),
        (f"{GENERATE} --temprature 1", "--temprature: did you mean ... temperature"),
        (f"{GENERATE} --temperature -1", "temperature must be at least 0 ... -1"),
        (f"{GENERATE} --temperature nan", "temperature must be at least 0 ... nan"),
        (f"{GENERATE} --temperature inf", "temperature ... inf"),
        (f"{GENERATE} --temperature warm", "--temperature ... 'warm'"),
        (f"{GENERATE} --top_k 0", "top_k must be at least 1, not 0"),
        (f"{GENERATE} --top_k 1.5", "--top_k ... '1.5'"),
        (f"{GENERATE} --top_p 2", "top_p must lie in (0, 1], not 2.0"),
        (f"{GENERATE} --top_p 0", "top_p must lie in (0, 1], not 0.0"),
        (f"{GENERATE} --top_p nan", "top_p must lie in (0, 1], not nan"),
        (f"{GENERATE} --max_new_tokens -1", "max_new_tokens must be at least 0, not -1"),
        (f"{GENERATE} --max_new_tokens", "--max_new_tokens"),
        (f"{GENERATE} --num_samples 0", "num_samples must be at least 1, not 0"),
        (f"{GENERATE} --seed abc", "--seed ... 'abc'"),
        (f"{GENERATE} --seed {2**70}", f"seed ... {2**70}"),
        (f"{GENERATE} --seed -1", "seed ... -1"),
        (f"{GENERATE} --checkpoint step-000123", "no checkpoint 'step-000123' ... there are: step-000004"),
        (f"{GENERATE} --checkpoint ''", "no checkpoint '' ... there are: step-000004"),
        (f"{GENERATE} --checkpoint ../../tiny", "no checkpoint '../../tiny' ... there are: step-000004"),
        (f"{GENERATE} --device tpu9", "unknown device 'tpu9' ... cpu"),
        (f"{GENERATE} --device cuda", "'cuda' is not available"),
    ]
)
def test_generate(assert_mistake, command, words):
    assert_mistake(command, words)


def test_a_prompt_longer_than_the_context_is_cropped_and_says_so(work, capfd):
    assert execute("generate --run tiny --prompt 'the cat sat on the mat' --max_new_tokens 5") == 0
    out, err = capfd.readouterr()
    assert out.startswith("the cat sat on the mat")
    assert len(out) == len("the cat sat on the mat") + 5 + 1
    assert "the prompt has 22 tokens; the model sees the last 8 of them" in err


@pytest.mark.parametrize("option", ["--temperature 1e-40", "--temperature 1e-300", "--top_p 1e-300"])
def test_a_tiny_temperature_or_top_p_is_all_but_greedy(work, capfd, option):
    assert execute(f"{GENERATE} --max_new_tokens 20 {option}") == 0
    written = capfd.readouterr().out
    assert execute(f"{GENERATE} --max_new_tokens 20 --temperature 0") == 0
    assert capfd.readouterr().out == written


# --- evaluate.py ------------------------------------------------------------------------------------------------------

EVALUATE = "evaluate --run tiny"


@table(
    [
        ("evaluate", "--run"),
        ("evaluate --run tinny", "unknown run 'tinny' ... did you mean tiny?"),
        (f"{EVALUATE} --text none.txt", "'none.txt'"),
        (f"{EVALUATE} --text ''", "''"),
        (f"{EVALUATE} --text notes", "the folder notes holds no .txt or .md file"),
        (f"{EVALUATE} --text binary.bin", "binary.bin holds NUL bytes"),
        (f"{EVALUATE} --text latin1.txt", "latin1.txt is not UTF-8 text ... 0xe9"),
        (f"{EVALUATE} --text empty.txt", "0 tokens ... two are needed"),
        (f"{EVALUATE} --text one.txt", "'x' (U+0078)"),
        (f"{EVALUATE} --text foreign.txt", "U+03C9 ... gpt2 or bpe"),
        (f"{EVALUATE} --context 0", "context must be 1 to the model's 8 tokens, not 0"),
        (f"{EVALUATE} --context 9", "context must be 1 to the model's 8 tokens, not 9"),
        (f"{EVALUATE} --context eight", "--context ... 'eight'"),
        (f"{EVALUATE} --stride 0", "stride must be 1 to the context's 8 tokens, not 0"),
        (f"{EVALUATE} --stride -1", "stride must be 1 to the context's 8 tokens, not -1"),
        (f"{EVALUATE} --stride 9", "stride must be 1 to the context's 8 tokens, not 9"),
        (f"{EVALUATE} --context 4 --stride 5", "stride must be 1 to the context's 4 tokens, not 5"),
        (f"{EVALUATE} --batch_size 0", "batch_size must be at least 1, not 0"),
        (f"{EVALUATE} --continuations -1", "--continuations must be at least 0, not -1"),
        (f"{EVALUATE} --checkpoint none", "no checkpoint 'none'"),
        (f"{EVALUATE} --device tpu9", "unknown device 'tpu9'"),
    ]
)
def test_evaluate(assert_mistake, command, words):
    assert_mistake(command, words)


def test_evaluate_without_the_data(work, assert_mistake):
    shutil.rmtree(work / "data/tiny")
    assert_mistake(EVALUATE, "no prepared data in ... tiny ... prepare_data.py")


def test_evaluate_on_a_damaged_split(work, assert_mistake):
    flip_bit(work / "data/tiny/val.bin")
    assert_mistake(EVALUATE, "val.bin")


# --- prepare_data.py --------------------------------------------------------------------------------------------------

PREPARE = "prepare_data --out data/new --tokenizer char --input"
FIELDS = "--prompt_field q --target_field a"


@table(
    [
        ("prepare_data", "--input ... --out"),
        ("prepare_data --input text.txt", "--out"),
        ("prepare_data --out data/new", "--input"),
        (f"{PREPARE} none.txt", "'none.txt'"),
        (f"{PREPARE} stroy", "'stroy' ... story"),
        (f"{PREPARE} ''", "''"),
        (f"{PREPARE} '*.rst'", "'*.rst'"),
        (f"{PREPARE} tales:0", "'tales:0': tales:N are N tales, from 1 to 999999"),
        (f"{PREPARE} tales:many", "'tales:many': tales:N are N tales"),
        (f"{PREPARE} tales:-5", "'tales:-5': tales:N are N tales"),
        (f"{PREPARE} tale:5", "'tale:5'"),
        (f"{PREPARE} ftp://127.0.0.1/x.txt", "'ftp://127.0.0.1/x.txt' ... only http:// and https:// ... name the file"),
        (f"{PREPARE} file:///etc/passwd", "'file:///etc/passwd' ... only http:// and https:// ... name the file"),
        (f"{PREPARE} http://127.0.0.1:9/x.txt", "http://127.0.0.1:9/x.txt cannot be downloaded ... name the file"),
        (f"{PREPARE} http://127.0.0.1:9/", "'http://127.0.0.1:9/' does not end in the name of a file"),
        (f"{PREPARE} http://[/x.txt", "http://[/x.txt cannot be downloaded ... name the file"),
        (f"{PREPARE} text.txt --sha256 xyz", "a SHA-256 is 64 hexadecimal digits, not 'xyz'"),
        (f"{PREPARE} text.txt --sha256", "--sha256: a value is missing"),
        (f"{PREPARE} text.txt --sha256 {'0' * 64}", f"text.txt has the SHA-256 ... not {'0' * 64}"),
        (f"{PREPARE} notes --sha256 {'0' * 64}", "a SHA-256 is that of a file or a download, and 'notes' is neither"),
        (f"{PREPARE} text.txt --separator", "--separator: a value is missing"),
        (f"{PREPARE} text.txt --separator -*-", "--separator: a value is missing ... --separator=-"),
        (f"{PREPARE} text.txt --separator a --val_fraction 1e-9 --val_input one.txt", "one.txt holds 1 character"),
        (f"{PREPARE} notes", "the folder notes holds no .txt or .md file"),
        (f"{PREPARE} binary.bin", "binary.bin holds NUL bytes"),
        (f"{PREPARE} latin1.txt", "latin1.txt is not UTF-8 text ... 0xe9"),
        (f"{PREPARE} empty.txt", "empty.txt holds 0 characters"),
        (f"{PREPARE} one.txt", "one.txt holds 1 character"),
        (f"{PREPARE} text.txt --val_input none.txt", "'none.txt'"),
        (f"{PREPARE} text.txt --val_input ''", "''"),
        (f"{PREPARE} text.txt --val_input empty.txt", "empty.txt"),
        (f"{PREPARE} pairs.jsonl --prompt_field q", "--prompt_field and --target_field ... both are needed"),
        (f"{PREPARE} pairs.jsonl --target_field a", "--prompt_field and --target_field ... both are needed"),
        (f"{PREPARE} pairs.jsonl --target_field a --prompt_field ''", "both are needed"),
        (f"{PREPARE} pairs.jsonl {FIELDS} --separator x", "--separator means nothing with --prompt_field"),
        (
            f"{PREPARE} pairs.jsonl --prompt_field q --target_field b",
            "record 1 of pairs.jsonl has no text 'b', but: q, a",
        ),
        (f"{PREPARE} broken.jsonl {FIELDS}", "record 2 of broken.jsonl is not JSON"),
        (f"{PREPARE} unanswered.jsonl {FIELDS}", "the target of pair 2 is empty"),
        (f"{PREPARE} text.txt {FIELDS}", "record 1 of text.txt is not JSON"),
        (f"{PREPARE} tales:3 {FIELDS}", "is not JSON"),
        (f"{PREPARE} summaries:3 {FIELDS}", "has no text 'q', but: prompt, target"),
        (f"{PREPARE} summaries:1", "one pair cannot be split"),
        (f"{PREPARE} summaries:3 --val_input text.txt", "one holds pairs, the other does not"),
        (f"{PREPARE} text.txt --val_input summaries:3", "one holds pairs, the other does not"),
        (f"{PREPARE} pairs.jsonl {FIELDS} --tokenizer data/tiny/tokenizer.json", "has no end-of-text token"),
        (f"{PREPARE} notes {FIELDS}", "the folder notes holds no .jsonl file"),
        (f"{PREPARE} pairs.jsonl", "pairs.jsonl holds a JSON object in each line: name the field ... --field text"),
        (f"{PREPARE} pairs.jsonl --field q {FIELDS}", "--field names a document ... one or the other"),
        (f"{PREPARE} pairs.jsonl --field text", "record 1 of pairs.jsonl has no text 'text', but: q, a"),
        (f"{PREPARE} pairs.jsonl --field 'Q: {{q}} {{z}}'", "record 1 of pairs.jsonl has no text 'z', but: q, a"),
        (f"{PREPARE} pairs.jsonl --field 'Q: {{q}} }}'", "the template 'Q: {q} }' has a lone brace ... {{"),
        (f"{PREPARE} pairs.jsonl --field", "--field: a value is missing"),
        (f"{PREPARE} notes --field q", "the folder notes holds no .txt or .md or .jsonl file"),
        (f"{PREPARE} pairs.jsonl --field q --val_input summaries:3", "has no text 'q', but: prompt, target"),
        (f"{PREPARE} cut.txt.gz", "cut.txt.gz is damaged, cut short ... get it anew"),
        (f"{PREPARE} named.gz", "named.gz is damaged, cut short, or not a whole .gz file ... get it anew"),
        (f"{PREPARE} garbage.txt.gz", "garbage.txt.gz is damaged, cut short ... get it anew"),
        (f"{PREPARE} text.txt --val_input cut.txt.gz", "cut.txt.gz is damaged"),
        (f"{PREPARE} text.txt --encoding latn-1", "unknown encoding 'latn-1': did you mean latin"),
        (f"{PREPARE} text.txt --encoding klingon", "unknown encoding 'klingon'"),
        (f"{PREPARE} text.txt --encoding ''", "unknown encoding '': Python knows utf-8"),
        (f"{PREPARE} text.txt --encoding", "--encoding: a value is missing"),
        (f"{PREPARE} text.txt --encoding base64", "'base64' is no encoding that a text is read in ... utf-8"),
        (f"{PREPARE} text.txt --encoding rot13", "'rot13' is no encoding that a text"),
        (f"{PREPARE} text.txt --encoding idna", "'idna' is no encoding that a text"),
        (f"{PREPARE} latin1.txt --encoding ascii", "latin1.txt is not ascii text (byte 0xe9 at 3) ... --encoding"),
        (f"{PREPARE} text.txt --encoding utf-16", "text.txt is not utf-16 text"),
        (f"{PREPARE} text.txt none.txt", "'none.txt'"),
        (f"{PREPARE} text.txt empty.txt", "empty.txt holds 0 characters"),
        (f"{PREPARE} text.txt --input", "--input"),
        (f"{PREPARE} text.txt summaries:3", "one holds pairs, the other does not"),
        (f"{PREPARE} summaries:3 summaries:1", "one pair cannot be split ... summaries:1:0"),
        (f"{PREPARE} text.txt tales:20 --sha256 {'0' * 64}", "--sha256 is the checksum of a single input, not of 2"),
        (f"{PREPARE} text.txt tales:20 --weights 1", "weights are one for each input: 2 of them, not 1"),
        (f"{PREPARE} text.txt --weights 1 2", "weights are one for each input: 1 of them, not 2"),
        (f"{PREPARE} text.txt --weights", "--weights"),
        (f"{PREPARE} text.txt tales:20 --weights 1 0", "a weight must be above 0 and at most ... not 0.0"),
        (f"{PREPARE} text.txt tales:20 --weights -1 1", "a weight must be above 0 and at most ... not -1.0"),
        (f"{PREPARE} text.txt tales:20 --weights nan 1", "a weight must be above 0 and at most ... not nan"),
        (f"{PREPARE} text.txt tales:20 --weights inf 1", "a weight must be above 0 and at most ... not inf"),
        (f"{PREPARE} text.txt tales:20 --weights 1e300 1", "a weight must be above 0 and at most 1,000,000"),
        (f"{PREPARE} text.txt tales:20 --weights many 1", "--weights takes a number, not 'many'"),
        (f"{PREPARE} text.txt tales:20 --weights 1.5 1", "text.txt has fewer than ten ... a whole number, not 1.5"),
        (f"{PREPARE} text.txt tales:10 --weights 1 1.5", "fewer than ten training documents, 9 ... not 1.5"),
        (f"{PREPARE} text.txt tales:20 --weights 1 0.05", "takes none of the 18 ... at least 0.0556"),
        (f"{PREPARE} text.txt --tokenizer gpt5", "unknown tokenizer 'gpt5' ... gpt2, char, bpe:N"),
        (f"{PREPARE} text.txt --tokenizer ''", "unknown tokenizer '' ... gpt2, char, bpe:N"),
        (f"{PREPARE} text.txt --tokenizer bpe", "tokenizer 'bpe' ... at least 257 ... bpe:4096"),
        (f"{PREPARE} text.txt --tokenizer bpe:", "tokenizer 'bpe:' ... at least 257 ... bpe:4096"),
        (f"{PREPARE} text.txt --tokenizer bpe:0", "tokenizer 'bpe:0' ... at least 257 ... bpe:4096"),
        (f"{PREPARE} text.txt --tokenizer bpe:abc", "tokenizer 'bpe:abc' ... at least 257 ... bpe:4096"),
        (f"{PREPARE} text.txt --tokenizer none.json", "no tokenizer file none.json"),
        (f"{PREPARE} text.txt --tokenizer text.txt", "text.txt is not a saved tokenizer"),
        (f"{PREPARE} foreign.txt --tokenizer data/tiny/tokenizer.json", "U+03C9 ... gpt2 or bpe"),
        (f"{PREPARE} text.txt --val_fraction 0", "val_fraction must lie between 0 and 1, not 0.0"),
        (f"{PREPARE} text.txt --val_fraction 1", "val_fraction must lie between 0 and 1, not 1.0"),
        (f"{PREPARE} text.txt --val_fraction 2", "val_fraction must lie between 0 and 1, not 2.0"),
        (f"{PREPARE} text.txt --val_fraction -1", "val_fraction must lie between 0 and 1, not -1.0"),
        (f"{PREPARE} text.txt --val_fraction nan", "val_fraction must lie between 0 and 1, not nan"),
        (f"{PREPARE} text.txt --val_fraction half", "--val_fraction ... 'half'"),
        (f"{PREPARE} text.txt --val_fraction 1e-9", "both splits need at least two tokens ... val_fraction"),
        (f"{PREPARE} text.txt --val_fraction 0.999999 --out x/y", "both splits need at least two tokens"),
        (f"{PREPARE} text.txt --out tiny.toml", "tiny.toml exists and is not a folder of prepared data"),
        (f"{PREPARE} text.txt --out notes", "notes exists and is not a folder of prepared data"),
        (f"{PREPARE} text.txt --out runs/tiny", "tiny exists and is not a folder of prepared data"),
        (f"{PREPARE} text.txt --out tiny.toml/x", "tiny.toml is a file"),
        (f"{PREPARE} text.txt --out tiny.toml/x/y", "tiny.toml is a file"),
        (f"{PREPARE} text.txt --out ''", "not a folder of prepared data"),
    ]
)
def test_prepare_data(assert_mistake, command, words):
    assert_mistake(command, words)


@pytest.mark.parametrize("stdin", [io.TextIOWrapper(io.BytesIO()), None], ids=["empty", "closed"])
def test_no_standard_input(assert_mistake, monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    assert_mistake(f"{PREPARE} -", "standard input")


@pytest.mark.parametrize("out", [".", "", "../tiny"])
def test_the_working_folder_as_out_is_refused_or_works(work, monkeypatch, out):
    """It is replaced as a whole, which no program can do to the folder it stands in."""
    shutil.copy(work / "text.txt", work / "data")
    monkeypatch.chdir(work / "data/tiny")
    before = contents(work)
    status = execute(f"prepare_data --input ../text.txt --tokenizer char --out '{out}'")
    if status:
        assert (status, contents(work)) == (2, before)
    load_data(work / "data/tiny", verify=True)


# --- true processes ---------------------------------------------------------------------------------------------------


def start(command: str, *flags: str) -> subprocess.Popen:
    name, *arguments = shlex.split(command)
    environment = {k: v for k, v in os.environ.items() if k not in ("GPT_TRACEBACK", "PYTHONUNBUFFERED")}
    return subprocess.Popen(
        [sys.executable, *flags, str(SCRIPTS / f"{name}.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_a_mistake_in_a_true_process_is_answered_before_pytorch_is_imported(work):
    process = start("train --config tiny.toml --model.n_heads 3", "-Ximporttime")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1
    assert said[0].startswith("train.py: error: model.emb_dim 16 is not divisible by n_heads 3")
    assert not any(line.split("|")[-1].strip() == "torch" for line in err.splitlines())


@pytest.mark.skipif(os.name == "nt", reason="Windows reports a closed pipe as another error")
@pytest.mark.parametrize("command", ["train --help", "generate --help", f"{GENERATE} --max_new_tokens 3000"])
def test_a_reader_that_leaves_early_is_no_error(work, command):
    """As in `... | head`."""
    process = start(command)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, err
    assert "Error" not in err


# --- the library ------------------------------------------------------------------------------------------------------

SHAPE = {"vocab_size": 11, "context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0}
TOKENS = np.arange(40) % 11
IDX = torch.tensor([[1, 2, 3]])


@functools.cache
def model() -> GPTModel:
    return GPTModel(SHAPE)


CALLS = {
    "GPTModel: unknown key": (lambda: GPTModel({**SHAPE, "n_layer": 2}), "n_layer: did you mean n_layers?"),
    "GPTModel: key that is no string": (lambda: GPTModel({**SHAPE, 3: 2}), "3"),
    "GPTModel: string for int": (lambda: GPTModel({**SHAPE, "emb_dim": "16"}), "emb_dim must be a whole number"),
    "GPTModel: float for int": (lambda: GPTModel({**SHAPE, "emb_dim": 16.0}), "emb_dim must be a whole number"),
    "GPTModel: None": (lambda: GPTModel({**SHAPE, "n_heads": None}), "n_heads must be a whole number, not None"),
    "GPTModel: vocab_size 0": (lambda: GPTModel({**SHAPE, "vocab_size": 0}), "vocab_size 0"),
    "GPTModel: negative": (lambda: GPTModel({**SHAPE, "n_layers": -1}), "n_layers must be at least 1, not -1"),
    "GPTModel: no config": (lambda: GPTModel(None), "None"),
    "model: too many tokens": (lambda: model()(IDX.repeat(1, 3)), "9 tokens exceed ... context_length 8"),
    "model: no target": (lambda: model()(IDX, torch.full_like(IDX, -100)), "no target counts"),
    "calc_loss_batch: no target": (lambda: calc_loss_batch(IDX, IDX * 0 - 100, model()), "no target counts"),
    "generate: empty prompt": (lambda: generate(model(), IDX[:, :0], 3), "empty"),
    "generate: one empty of two": (lambda: generate(model(), [IDX[0], IDX[0, :0]], 3), "empty"),
    "generate: no prompt": (lambda: generate(model(), [], 3), "at least one"),
    "generate: one dimension": (lambda: generate(model(), IDX[0], 3), "(B, T)"),
    "generate: three dimensions": (lambda: generate(model(), IDX[None], 3), "(B, T)"),
    "generate: lists": (lambda: generate(model(), [[1, 2, 3]], 3), "(B, T)"),
    "generate: id above": (lambda: generate(model(), torch.tensor([[11]]), 3), "vocabulary of 11"),
    "generate: id below": (lambda: generate(model(), torch.tensor([[-1]]), 3), "vocabulary of 11"),
    "generate: temperature": (lambda: generate(model(), IDX, 3, temperature=-1), "temperature must be at least 0"),
    "create_dataloader: too short": (lambda: create_dataloader(TOKENS[:8], context_length=8), "8 tokens are too few"),
    "create_dataloader: short text": (
        lambda: create_dataloader("ab", "char", context_length=8),
        "2 tokens are too few",
    ),
    "create_dataloader: batch_size 0": (
        lambda: list(create_dataloader(TOKENS, batch_size=0, context_length=8)),
        "batch_size must be at least 1, not 0",
    ),
    "create_dataloader: context_length 0": (
        lambda: list(create_dataloader(TOKENS, context_length=0)),
        "context_length must be at least 1, not 0",
    ),
    "create_dataloader: stride -1": (
        lambda: list(create_dataloader(TOKENS, context_length=8, stride=-1)),
        "stride must be at least 0, not -1",
    ),
    "create_dataloader: unknown tokenizer": (lambda: create_dataloader("abc", "words"), "unknown tokenizer 'words'"),
    "calc_loss_loader: empty loader": (lambda: calc_loss_loader([], model()), "the loader is empty"),
    "calc_loss_loader: num_batches 0": (
        lambda: calc_loss_loader(create_dataloader(TOKENS, context_length=8), model(), num_batches=0),
        "num_batches is 0",
    ),
    "evaluate: one token": (lambda: evaluate(model(), TOKENS[:1], 8), "a text of 1 tokens"),
    "evaluate: long context": (lambda: evaluate(model(), TOKENS, 9), "model's 8 tokens, not 9"),
    "evaluate: a stride over documents": (
        lambda: evaluate(model(), TOKENS, 8, stride=4, eot_id=10),
        "windows of documents do not overlap",
    ),
    "evaluate: no document": (lambda: evaluate(model(), TOKENS[:15], 8, eot_id=10), "holds no document"),
    "DocumentWindows: no document": (lambda: DocumentExamples(TOKENS[:15], 8, 10), "15 tokens hold no document"),
    "DataConfig: a stride over documents": (lambda: DataConfig(packing="document", stride=8), "stride is 8"),
    "open_corpus: no tales": (lambda: sources.open_corpus("tales:0"), "'tales:0': tales:N are N tales"),
    "get_tokenizer: unknown": (lambda: get_tokenizer("words"), "unknown tokenizer 'words'"),
    "get_tokenizer: char without texts": (lambda: get_tokenizer("char"), "get_tokenizer('char', [text])"),
    "get_tokenizer: bpe without texts": (lambda: get_tokenizer("bpe:300"), "get_tokenizer('bpe:300', [text])"),
    "get_tokenizer: a text for texts": (lambda: get_tokenizer("char", "abc"), "get_tokenizer('char', [text])"),
    "get_tokenizer: bpe too small": (lambda: get_tokenizer("bpe:256", ["abc"]), "at least 257"),
    "load_tokenizer: no file": (lambda: load_tokenizer("none.json"), "no tokenizer file none.json"),
    "decode: id above": (lambda: get_tokenizer("char", ["abc"]).decode([3]), "token id 3"),
    "encode: lone surrogate": (lambda: get_tokenizer("bpe:300", ["abc"]).encode("a\ud800"), "U+D800"),
    "load_model: no run": (lambda: load_model("none"), "no run in none"),
    "load_data: no data": (lambda: load_data("none"), "no prepared data in none"),
    "from_dict: unknown key": (lambda: from_dict(TrainConfig, {"model": {"width": 1}}), "unknown setting model.width"),
    "from_dict: None for a table": (lambda: from_dict(TrainConfig, {"model": None}), "[model], not a value: None"),
    "from_dict: another table": (lambda: from_dict(TrainConfig, {"model": OptimConfig()}), "model must be a GPTConfig"),
    "from_dict: key that is no string": (lambda: from_dict(TrainConfig, {3: 4}), "3"),
    "from_dict: None": (lambda: from_dict(TrainConfig, None), "None"),
    "from_dict: list": (lambda: from_dict(TrainConfig, [1, 2]), "[1, 2]"),
    "resume: stride and path": (
        lambda: check_resumable(TrainConfig(), from_dict(TrainConfig, {"data": {"path": "elsewhere", "stride": 4}})),
        "data.stride is 0 in this run, not 4",
    ),
}


@pytest.mark.parametrize("call, words", CALLS.values(), ids=CALLS)
def test_library(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for piece in words.split(" ... "):
        assert piece in str(error.value)
