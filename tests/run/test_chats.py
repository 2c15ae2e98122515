"""A run on conversations from the terminal: prepared, trained, asked and judged."""

import json
import re

import pytest

from gpt.text.chat import CHATML
from gpt.token_files import load_data
from scripts import run_script

CONFIG = """\
max_steps = 250
batch_size = 8
eval_every = 0
sample_every = 0
device = "cpu"
[model]
vocab_size = 0
context_length = 96
emb_dim = 32
n_heads = 2
n_layers = 2
drop_rate = 0.0
[data]
path = "data"
packing = "document"
[objective]
name = "sft"
[optim]
lr = 5e-3
"""
NUMBERS = {"1": "one", "2": "two", "3": "three"}


def chat(*questions):
    """A conversation in which each number is answered by its name."""
    return [
        {"role": role, "content": text}
        for question in questions
        for role, text in (("user", question), ("assistant", NUMBERS[question]))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run `chats`, which knows three numbers, and with its data."""
    folder = tmp_path_factory.mktemp("chats")
    chats = [chat(a, b) for a in NUMBERS for b in NUMBERS] * 3
    for name, part in (("all", chats), ("val", chats[-3:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in part))
    (folder / "chats.toml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_script("prepare_data --input all.jsonl --format messages --tokenizer char --out data") == 0
        assert run_script("train --config chats.toml --run chats") == 0
    return folder


@pytest.fixture
def ask(folder, monkeypatch, capsys):
    """Return a function that runs a script in the folder: what it prints, and what it says on stderr."""
    monkeypatch.chdir(folder)

    def call(command, status=0):
        capsys.readouterr()
        assert run_script(command) == status
        return capsys.readouterr()

    return call


@pytest.mark.parametrize("number", NUMBERS)
def test_it_answers_and_stops(ask, number):
    out, err = ask(f"generate --run chats --chat --temperature 0 --prompt {number}")
    assert out == f"{NUMBERS[number]}\n"
    assert "beyond" not in err


def test_answers_in_a_batch_say_why_they_ended(ask, folder):
    (folder / "prompts.txt").write_text("\n".join(NUMBERS))
    lines = ask("generate --run chats --chat --temperature 0 --prompts prompts.txt --format jsonl").out.splitlines()
    results = [json.loads(line) for line in lines]
    assert [(each["text"], each["finish_reason"]) for each in results] == [(n, "stop") for n in NUMBERS.values()]


def test_the_run_has_the_template(folder):
    tokenizer = json.loads((folder / "runs" / "chats" / "tokenizer.json").read_text())
    assert tokenizer["chat_template"] == CHATML
    assert tokenizer["special_tokens"] == ["<|im_start|>", "<|im_end|>"]


def test_a_test_file_is_judged_like_the_data(ask, folder):
    """The same conversations, once as the run's validation split and once from the file."""

    def figures(command):
        out = ask(command).out
        return re.search(r"text .*: ([\d,]+) tokens predicted", out)[1], re.search(r"loss +([\d.]+)", out)[1]

    own = figures("evaluate --run chats")
    assert own == figures("evaluate --run chats --text val.jsonl --format messages")
    data = load_data(folder / "data")
    assert own[0] == str(int((data.val.flags & 1).sum()))


@pytest.mark.parametrize(("options", "words"), [
    ("--text val.jsonl", "val.jsonl holds conversations: --format messages reads them whole"),
    ("--text val.jsonl --format alpaca", "record 1 of val.jsonl has no field 'instruction'"),
    ("--text all.jsonl --field messages.0.content", "answers prompts: name the fields of pairs, --prompt_field and"),
    ("--format messages", "--format says how a text is read, and none is named"),
])  # fmt: skip
def test_what_cannot_be_judged(ask, options, words):
    assert words in ask(f"evaluate --run chats {options}", status=2).err


def test_a_run_on_text_learns_to_answer(ask, folder):
    """The model of a run without a template gets rows for the template's two tokens."""
    (folder / "text.txt").write_text("systemuserassistant\n123 one two three. " * 40)
    ask("prepare_data --input text.txt --tokenizer char --out text")
    text = CONFIG.replace('"data"', '"text"').replace('"document"', '"packed"').replace('"sft"', '"next_token"')
    (folder / "base.toml").write_text(text.replace("250", "2"))
    ask("train --config base.toml --run base")
    prepare = "prepare_data --input all.jsonl --format messages --tokenizer runs/base/tokenizer.json --out more"
    said = ask(prepare).err
    assert "base/tokenizer.json has no chat template: conversations are written as ChatML" in said
    tuned = CONFIG.replace("max_steps = 250", 'max_steps = 2\ninit_from = "base"').replace('"data"', '"more"')
    (folder / "tuned.toml").write_text(re.sub(r"\[model\].*?\[data\]", "[data]", tuned, flags=re.DOTALL))
    said = ask("train --config tuned.toml --run tuned")
    assert "base has no token <|im_start|> <|im_end|>: a new row starts as the mean" in said.out + said.err
    again = ask(
        "prepare_data --input all.jsonl --format messages --tokenizer runs/tuned/tokenizer.json --out again"
    ).err
    assert "no chat template" not in again
    assert (folder / "again" / "train.bin").read_bytes() == (folder / "more" / "train.bin").read_bytes()


def test_transformers_answers_the_same(ask, folder):
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    ask("export --run chats --out exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported")
    for question, answer in NUMBERS.items():
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        written = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.size(1) :]
        assert tokenizer.decode(written).replace(" ", "") == f"{answer}<|im_end|>"
