"""A user's mistakes: one or two lines on stderr that name the mistake and the way out, status 2, and no file changed.

One row per kind of mistake. The scripts run in this process, in a working folder made by `workshop`: texts, prepared
data in data/tiny, a config tiny.toml, and the finished run runs/tiny.
"""

import contextlib
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt.checkpoint import RunFolder
from gpt.config import TrainConfig, from_dict
from gpt.data import create_dataloader
from gpt.exchange.models import load_model
from gpt.generation import generate
from gpt.loss import calc_loss_batch, calc_loss_loader, evaluate
from gpt.model import GPTModel
from gpt.system.files import checksummed
from gpt.text.tokenizers import get_tokenizer
from gpt.token_files import load_data
from gpt.tokenizer import load_tokenizer
from scripts import SCRIPTS, run_script

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
    "pairs.jsonl": b'{"q": "1 + 1?", "a": "2"}\n' * 9,
    "broken.jsonl": b'{"q": "1 + 1?", "a": "2"}\n{"q": "1 + 1?"\n',
    "unanswered.jsonl": b'{"q": "1 + 1?", "a": "2"}\n{"q": "1 + 2?", "a": ""}\n',
    "notes/todo.doc": b"a folder that holds neither texts, nor prepared data, nor a run",
    "runs/strange/todo.doc": b"another",
}


# --- running a script -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every path under a folder, with the bytes of files."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with contextlib.chdir(folder):
        assert run_script("prepare_data --input text.txt --tokenizer char --out data/tiny") == 0
        assert run_script("train --config tiny.toml --run tiny") == 0
    return folder


@pytest.fixture
def work(workshop, tmp_path, monkeypatch):
    """The working folder: a copy of the workshop."""
    folder = shutil.copytree(workshop, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def assert_mistake(work, capfd):
    """Return a function that runs a command with a mistake and checks that it fails as described above.

    The message must contain each piece of `words`, which are separated by " ... ".
    """

    def check(command: str, words: str) -> str:
        before = contents(work)
        capfd.readouterr()
        status = run_script(command)
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
    """Parametrize by (command, words); the command is the test id."""
    return pytest.mark.parametrize("command, words", rows, ids=[command[:100] for command, _ in rows])


# --- train.py ---------------------------------------------------------------------------------------------------------

TRAIN = "train --config tiny.toml"
RESUME = "train --run tiny --resume"


@table(
    [
        ("train", "name a config (--config configs/story.toml)"),
        ("train --resume", "--resume needs the name of the run"),
        (f"{TRAIN} extra", "'extra' ... quotes"),
        ("train tiny.toml", "write --config tiny.toml"),
        (f"{TRAIN} --max_steps", "--max_steps"),
        (f"{TRAIN} --n_layers 2", "--n_layers: did you mean ... model.n_layers"),
        (f"{TRAIN} --zzz 2", "--zzz ... max_steps"),
        (f"{TRAIN} --model.n_heads 3", "model.emb_dim 16 is not divisible by n_heads 3"),
        (f"{TRAIN} --model.n_heads 0", "model.n_heads must be at least 1, not 0"),
        (f"{TRAIN} --model.drop_rate nan", "model.drop_rate must be a finite number, not nan"),
        (f"{TRAIN} --model.init zeros", "model.init must be one of 'pytorch', 'gpt2' ... not 'zeros'"),
        (f"{TRAIN} --compile maybe", "--compile takes true or false, not 'maybe'"),
        (f"{TRAIN} --optim.lr fast", "--optim.lr takes a number, not 'fast'"),
        (f"{TRAIN} --optim.lr 1e-4 --optim.min_lr 1e-3", "optim.min_lr 0.001 is above lr 0.0001"),
        (f"{TRAIN} --max_steps 1.5", "--max_steps takes a whole number, not '1.5'"),
        (f"{TRAIN} --device tpu9", "'tpu9' ... cpu"),
        (f"{TRAIN} --device cuda", "'cuda' is not available on this machine ... cpu"),
        ("train --config none.toml", "no config file none.toml"),
        (f"{TRAIN} --data.path data/none", "data/none ... python scripts/prepare_data.py ... --out data/none"),
        (f"{TRAIN} --data.path notes", "no prepared data in notes ... python scripts/prepare_data.py"),
        (f"{TRAIN} --data.path text.txt", "text.txt ... scripts/prepare_data.py --input text.txt"),
        (f"{TRAIN} --data.packing document", "data/tiny ... 'packed' ... --separator"),
        (f"{TRAIN} --model.context_length 5000", "too few ... context_length 5000 ... a longer text"),
        (f"{TRAIN} --model.vocab_size 5", "vocab_size is 5 ... data/tiny ... set model.vocab_size to 0"),
        (f"{TRAIN} --batch_size 2000000000", "a training step needs about ... batch_size ... with grad_accum_steps"),
        (f"{TRAIN} --model.emb_dim 131072", "a training step needs about ... model.emb_dim ... needs"),
        (f"{TRAIN} --max_steps 1000000000 --save_every 1 --keep_checkpoints 1000000000", "checkpoints ... of disk"),
        (f"{TRAIN} --sample_prompt 'the \N{GREEK SMALL LETTER OMEGA}'", "U+03C9 ... gpt2 or bpe"),
        (f"{TRAIN} --run tiny", "tiny ... has a checkpoint ... --resume"),
        (f"{TRAIN} --run ''", "a run needs a name, not ''"),
        (f"{TRAIN} --run data/tiny", "data/tiny ... run"),
        ("train --run tinny --resume", "unknown run 'tinny' ... did you mean tiny?"),
        (f"{RESUME} --model.n_layers 2", "model.n_layers is 1 in this run, not 2"),
        (f"{RESUME} --max_steps 3", "step 4 ... max_steps 3"),
        (f"{RESUME} --data.path data/none", "data/none ... prepare_data.py"),
        (f"{TRAIN} --objective.name next", "objective.name must be one of 'next_token' ... not 'next'"),
        (f"{TRAIN} --objective.name sft", "pairs ... data/tiny ... --target_field"),
        (f"{TRAIN} --objective.name distill", "objective.teacher is empty"),
        (f"{TRAIN} --objective.name distill --objective.teacher tinny", "unknown run 'tinny' ... did you mean tiny?"),
        (f"{TRAIN} --objective.teacher tiny", "objective.teacher is a setting of distill, not of 'next_token'"),
    ]
)
def test_train(assert_mistake, command, words):
    assert_mistake(command, words)


@pytest.mark.parametrize(
    "toml, words",
    [
        ("max_step = 1", "unknown setting max_step: did you mean max_steps?"),
        ("[model]\nn_layer = 1", "unknown setting model.n_layer: did you mean model.n_layers?"),
        ("[modell]\nn_layers = 1", "unknown table [modell]: did you mean [model]?"),
        ("max_steps = 1\nbatch_size == 2", "not valid TOML ... line 2"),
        ("model = 3", "model is a table of settings, [model], not a value: 3"),
        ("max_steps = '5'", "max_steps must be a whole number, not '5'"),
        ("max_steps = true", "max_steps must be a whole number, not True"),
        ("compile = 1", "compile must be true or false, not 1"),
        ("device = 1", "device must be a string, not 1"),
        ("[optim]\nmin_lr = 1.0", "optim.min_lr 1.0 is above lr 0.001"),
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


@pytest.mark.parametrize(
    ("name", "damage"),
    [("train.bin", flip_bit), ("val.bin", truncate), ("meta.json", flip_bit), ("tokenizer.json", Path.unlink)],
)
def test_damaged_data(work, assert_mistake, name, damage):
    damage(work / "data/tiny" / name)
    assert_mistake(TRAIN, "data/tiny" if name == "meta.json" else name)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", flip_bit), ("training_state.pt", truncate), ("state.json", flip_bit),
     ("model.safetensors", Path.unlink)],
)  # fmt: skip
def test_damaged_checkpoint(work, assert_mistake, name, damage):
    """The run's only checkpoint."""
    damage(work / "runs/tiny/checkpoints/step-000004" / name)
    assert_mistake(RESUME, f"tiny ... {name}")
    assert_mistake("generate --run tiny --prompt the", name)
    assert_mistake("evaluate --run tiny", name)


def test_a_run_without_a_checkpoint(work, assert_mistake):
    shutil.rmtree(work / "runs/tiny/checkpoints")
    assert_mistake("generate --run tiny --prompt the", "no checkpoint 'best' in ... tiny ... none")
    flip_bit(work / "runs/tiny/config.toml")
    assert_mistake(RESUME, "config.toml ... is not valid TOML")


def test_another_runs_tokenizer(work, assert_mistake):
    path = work / "runs/tiny/tokenizer.json"
    path.write_text(path.read_text().replace("c", "k", 1).replace("k", "c", 1).replace(" ", "_", 1))
    assert_mistake("generate --run tiny --prompt the", "tokenizer.json")


def test_a_checkpoint_of_another_format(work, assert_mistake):
    file = work / "runs/tiny/checkpoints/step-000004/state.json"
    file.write_text(checksummed({**json.loads(file.read_text()), "format": 1}))
    for command in (RESUME, "generate --run tiny --prompt the"):
        assert_mistake(command, "step-000004 has checkpoint format 1")


def test_a_run_that_another_process_trains(work, assert_mistake):
    with RunFolder(work / "runs/tiny").lock():
        assert_mistake(RESUME, "runs/tiny")


def test_data_prepared_again(work, assert_mistake):
    """Neither a resumed run nor its evaluation may use other data."""
    assert run_script(f"{PREPARE} text.txt --tokenizer char --val_fraction 0.3 --out data/tiny --overwrite") == 0
    assert_mistake(RESUME, "data/tiny ... prepare")
    assert_mistake("evaluate --run tiny", "data/tiny ... --text FILE")


# --- plan.py ----------------------------------------------------------------------------------------------------------

PLAN = "plan --config tiny.toml"


@table(
    [
        ("plan", "--config"),
        (f"{PLAN} --data.path data/none", "model.vocab_size is 0 ... --model.vocab_size 50257"),
        (f"{PLAN} --hardware h10", "unknown hardware 'h10': did you mean h100?"),
        (f"{PLAN} --sweep model.n_layer=1,2", "model.n_layer: did you mean model.n_layers?"),
        (f"{PLAN} --sweep batch_size", "--sweep takes a setting and its values"),
        (f"{PLAN} --batch_size 2000000000", "a training step needs about ... batch_size ... with grad_accum_steps"),
    ]
)
def test_plan(assert_mistake, command, words):
    assert_mistake(command, words)


# --- generate.py ------------------------------------------------------------------------------------------------------

GENERATE = "generate --run tiny --prompt the"


@table(
    [
        ("generate --run tiny", "--prompt"),
        ("generate --prompt the", "a run (--run NAME) or published weights"),
        ("generate --run tinny --prompt the", "unknown run 'tinny' ... did you mean tiny?"),
        ("generate --run tiny --prompt ''", "the prompt is empty"),
        ("generate --run tiny --prompt \N{GREEK SMALL LETTER OMEGA}", "U+03C9 ... gpt2 or bpe"),
        ("generate --run tiny --prompt -the", "--prompt: ... --prompt=-"),
        (f"{GENERATE} --temprature 1", "--temprature: did you mean ... temperature"),
        (f"{GENERATE} --temperature -1", "temperature must be at least 0 ... -1"),
        (f"{GENERATE} --top_k 0", "top_k must be at least 1, not 0"),
        (f"{GENERATE} --top_p 2", "top_p ... not 2.0"),
        (f"{GENERATE} --max_new_tokens -1", "max_new_tokens must be at least 0, not -1"),
        (f"{GENERATE} --num_samples 0", "num_samples must be at least 1, not 0"),
        (f"{GENERATE} --seed -1", "seed ... -1"),
        (f"{GENERATE} --checkpoint step-000123", "no checkpoint 'step-000123' ... step-000004"),
        (f"{GENERATE} --device cuda", "'cuda' is not available"),
        (f"{GENERATE} --chat", "no chat template ... not trained on conversations"),
        (f"{GENERATE} --system Briefly.", "--system ... --chat"),
    ]
)
def test_generate(assert_mistake, command, words):
    assert_mistake(command, words)


def test_a_prompt_longer_than_the_context_is_cropped(work, capfd):
    assert run_script("generate --run tiny --prompt 'the cat sat on the mat' --max_new_tokens 5") == 0
    out, err = capfd.readouterr()
    assert out.startswith("the cat sat on the mat")
    assert len(out) == len("the cat sat on the mat") + 5 + 1
    assert "the prompt has 22 tokens; the model sees the last 8 of them" in err


# --- evaluate.py ------------------------------------------------------------------------------------------------------

EVALUATE = "evaluate --run tiny"


@table(
    [
        ("evaluate", "--run"),
        (f"{EVALUATE} --text none.txt", "'none.txt'"),
        (f"{EVALUATE} --text latin1.txt", "latin1.txt is not UTF-8 text ... 0xe9"),
        (f"{EVALUATE} --text empty.txt", "0 tokens"),
        (f"{EVALUATE} --text foreign.txt", "U+03C9 ... gpt2 or bpe"),
        (f"{EVALUATE} --context 9", "context must be 1 to the model's 8 tokens, not 9"),
        (f"{EVALUATE} --context 4 --stride 5", "stride must be 1 to context_length, 4, not 5"),
        (f"{EVALUATE} --continuations -1", "--continuations must be at least 0, not -1"),
    ]
)
def test_evaluate(assert_mistake, command, words):
    assert_mistake(command, words)


def test_evaluate_without_the_data(work, assert_mistake):
    shutil.rmtree(work / "data/tiny")
    assert_mistake(EVALUATE, "no prepared data in ... tiny ... prepare_data.py")


# --- prepare_data.py --------------------------------------------------------------------------------------------------

PREPARE = "prepare_data --out data/new --tokenizer char --input"
FIELDS = "--prompt_field q --target_field a"


@table(
    [
        ("prepare_data", "--input ... --out"),
        (f"{PREPARE} stroy", "'stroy' ... story"),
        (f"{PREPARE} none.txt", "'none.txt'"),
        (f"{PREPARE} tales:0", "'tales:0'"),
        (f"{PREPARE} ftp://127.0.0.1/x.txt", "'ftp://127.0.0.1/x.txt' ... http:// and https://"),
        (f"{PREPARE} http://127.0.0.1:9/x.txt", "http://127.0.0.1:9/x.txt cannot be downloaded"),
        (f"{PREPARE} text.txt --sha256 {'0' * 64}", f"text.txt has the SHA-256 ... not {'0' * 64}"),
        (f"{PREPARE} notes", "the folder notes holds no .txt or .md file"),
        (f"{PREPARE} binary.bin", "binary.bin holds NUL bytes"),
        (f"{PREPARE} latin1.txt", "latin1.txt is not UTF-8 text ... 0xe9"),
        (f"{PREPARE} text.txt --encoding latn-1", "unknown encoding 'latn-1': did you mean latin"),
        (f"{PREPARE} empty.txt", "empty.txt holds 0 characters"),
        (f"{PREPARE} pairs.jsonl --prompt_field q", "--prompt_field and --target_field"),
        (f"{PREPARE} pairs.jsonl --prompt_field q --target_field b", "record 1 of pairs.jsonl ... 'b' ... q, a"),
        (f"{PREPARE} broken.jsonl {FIELDS}", "record 2 of broken.jsonl is not JSON"),
        (f"{PREPARE} unanswered.jsonl {FIELDS}", "pair 2 is empty"),
        (f"{PREPARE} pairs.jsonl", "pairs.jsonl ... --field q"),
        (f"{PREPARE} pairs.jsonl --field 'Q: {{q}} {{z}}'", "record 1 of pairs.jsonl ... 'z' ... q, a"),
        (f"{PREPARE} text.txt summaries:3", "pairs"),
        (f"{PREPARE} text.txt --weights 1 2", "weights ... 1 ... not 2"),
        (f"{PREPARE} text.txt tales:20 --weights 1 0", "weight ... not 0.0"),
        (f"{PREPARE} owner/name", "no file, folder or glob 'owner/name' ... a data set of the hub is hub:owner/name"),
        (f"{PREPARE} text.txt --tokenizer gpt5", "unknown tokenizer 'gpt5' ... gpt2, smollm2, char, bpe:N"),
        (f"{PREPARE} text.txt --tokenizer bpe:0", "'bpe:0' ... at least 257"),
        (f"{PREPARE} text.txt --tokenizer text.txt", "text.txt"),
        (f"{PREPARE} foreign.txt --tokenizer data/tiny/tokenizer.json", "U+03C9 ... gpt2 or bpe"),
        (f"{PREPARE} text.txt --val_fraction 2", "val_fraction must lie between 0 and 1, not 2.0"),
        (f"{PREPARE} text.txt --val_fraction 1e-9", "both splits need at least two tokens ... val_fraction"),
        (f"{PREPARE} text.txt --out runs/tiny", "tiny exists and is not a folder of prepared data"),
    ]
)
def test_prepare_data(assert_mistake, command, words):
    assert_mistake(command, words)


# --- separate processes -----------------------------------------------------------------------------------------------


def start(command: str, *flags: str) -> subprocess.Popen:
    name, *arguments = shlex.split(command)
    environment = {k: v for k, v in os.environ.items() if k not in ("GPT_TRACEBACK", "PYTHONUNBUFFERED")}
    return subprocess.Popen(
        [sys.executable, *flags, str(SCRIPTS / f"{name}.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_a_mistake_is_reported_before_pytorch_is_imported(work):
    process = start("train --config tiny.toml --model.n_heads 3", "-Ximporttime")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1
    assert said[0].startswith("train.py: error: model.emb_dim 16 is not divisible by n_heads 3")
    assert not any(line.split("|")[-1].strip() == "torch" for line in err.splitlines())


@pytest.mark.skipif(os.name == "nt", reason="Windows reports a closed pipe as another error")
def test_a_reader_that_leaves_early_is_no_error(work):
    """As in `... | head`."""
    process = start("train --help")
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
    "GPTModel: string for int": (lambda: GPTModel({**SHAPE, "emb_dim": "16"}), "emb_dim must be a whole number"),
    "GPTModel: vocab_size 0": (lambda: GPTModel({**SHAPE, "vocab_size": 0}), "vocab_size is 0"),
    "model: too many tokens": (lambda: model()(IDX.repeat(1, 3)), "9 tokens exceed ... context_length 8"),
    "calc_loss_batch: no target": (lambda: calc_loss_batch(IDX, IDX * 0 - 100, model()), "no target counts"),
    "generate: empty prompt": (lambda: generate(model(), IDX[:, :0], 3), "empty"),
    "generate: one dimension": (lambda: generate(model(), IDX[0], 3), "(B, T)"),
    "generate: id above": (lambda: generate(model(), torch.tensor([[11]]), 3), "vocabulary of 11"),
    "generate: temperature": (lambda: generate(model(), IDX, 3, temperature=-1), "temperature must be at least 0"),
    "create_dataloader: too short": (lambda: create_dataloader(TOKENS[:8], context_length=8), "8 tokens are too few"),
    "create_dataloader: batch_size 0": (
        lambda: list(create_dataloader(TOKENS, batch_size=0, context_length=8)),
        "batch_size must be at least 1, not 0",
    ),
    "create_dataloader: unknown tokenizer": (lambda: create_dataloader("abc", "words"), "no tokenizer file words"),
    "calc_loss_loader: empty loader": (lambda: calc_loss_loader([], model()), "the loader is empty"),
    "evaluate: one token": (lambda: evaluate(model(), TOKENS[:1], 8), "1 tokens"),
    "evaluate: long context": (lambda: evaluate(model(), TOKENS, 9), "1 to the model's 8 tokens, not 9"),
    "get_tokenizer: char without texts": (lambda: get_tokenizer("char"), "get_tokenizer('char', [text])"),
    "get_tokenizer: a text for texts": (lambda: get_tokenizer("char", "abc"), "get_tokenizer('char', [text])"),
    "load_tokenizer: no file": (lambda: load_tokenizer("none.json"), "no tokenizer file none.json"),
    "decode: id above": (lambda: get_tokenizer("char", ["abc"]).decode([3]), "token id 3"),
    "load_model: no run": (lambda: load_model("none"), "none"),
    "load_data: no data": (lambda: load_data("none"), "no prepared data in none"),
    "from_dict: unknown key": (lambda: from_dict(TrainConfig, {"model": {"width": 1}}), "unknown setting model.width"),
}


@pytest.mark.parametrize("call, words", CALLS.values(), ids=CALLS)
def test_library(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for piece in words.split(" ... "):
        assert piece in str(error.value)
