"""scripts/evaluate.py: what a model is evaluated on, and what a person is told."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from gpt.token_files import load_data
from scripts import run_script

CONFIG = """\
max_steps = 2
batch_size = 4
eval_every = 0
device = "cpu"
[model]
vocab_size = 0
context_length = 48
emb_dim = 16
n_heads = 2
n_layers = 1
[data]
path = "data"
packing = "document"
[objective]
name = "OBJECTIVE"
"""
PAIRS = [(f"{n} + 1 =", str(n + 1)) for n in range(20)]
FIELDS = "--prompt_field q --target_field a"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run for each of four objectives, trained on PAIRS, and the last pairs in files of their own."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, pairs in (("all", PAIRS), ("val", PAIRS[15:])):
            lines = [json.dumps({"q": q, "a": int(a)}) for q, a in pairs]
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
        (folder / "val.txt").write_text("\n".join(text for pair in PAIRS[15:] for text in pair))
        with (folder / "val.csv").open("w", encoding="utf-16", newline="") as file:
            csv.writer(file).writerows([("q", "a"), *PAIRS[15:]])
        prepare = f"prepare_data --input all.jsonl {FIELDS} --tokenizer char --val_fraction 0.25 --out data"
        assert run_script(prepare) == 0
        for objective in ("sft", "next_token", "reverse", "masked"):
            (folder / f"{objective}.toml").write_text(CONFIG.replace("OBJECTIVE", objective))
            assert run_script(f"train --config {objective}.toml --run {objective}") == 0
    return folder


@pytest.fixture
def evaluate(runs, tmp_path, monkeypatch, capsys):
    """Return a function that evaluates a run in a copy of the folder: status, stdout and stderr."""
    monkeypatch.chdir(shutil.copytree(runs, tmp_path / "work"))

    def call(arguments):
        capsys.readouterr()
        return run_script(f"evaluate --continuations 0 --run {arguments}"), *capsys.readouterr()

    return call


def loss(out):
    (line,) = [line for line in out.splitlines() if line.startswith("loss ")]
    return line


@pytest.mark.parametrize("objective", ["sft", "next_token", "reverse", "masked"])
def test_new_texts_are_read_as_prepare_data_reads_them(evaluate, objective):
    """The validation pairs, in files of their own, give the loss of the validation split: no data are needed."""
    _, own, _ = evaluate(objective)
    shutil.rmtree("data")
    for text in (f"val.jsonl {FIELDS}", f"val.csv {FIELDS} --encoding utf-16", f"val.csv --encoding utf_16 {FIELDS}"):
        status, out, err = evaluate(f"{objective} --text {text}")
        assert (status, err) == (0, "")
        assert loss(out) == loss(own)
        assert "validation split" not in out
    if objective != "sft":
        assert loss(evaluate(rf"{objective} --text val.txt --separator '\n'")[1]) == loss(own)


@pytest.mark.parametrize(("objective", "text"), [("sft", f"one.jsonl {FIELDS}"), ("next_token", "one.txt")])
def test_a_single_example_has_no_standard_error(evaluate, objective, text):
    """Its place stays empty, and a metric is not that of the validation split."""
    Path("one.jsonl").write_text(json.dumps({"q": "1 + 1 =", "a": 2}))
    Path("one.txt").write_text("1 + 1 =2")
    status, out, _ = evaluate(f"{objective} --text {text}")
    assert status == 0
    assert not {"nan", "nan%", "val"} & {*out.split()}
    assert loss(out).endswith(" nats per token")
    assert "standard error" in evaluate("next_token")[1]


def test_without_its_data_a_run_names_its_own_tokenizer(evaluate, capsys):
    """By the command that is named the data are prepared again, to the same bytes."""
    before = load_data("data").checksums
    shutil.rmtree("data")
    status, _, err = evaluate("sft")
    assert status == 2
    command = err.partition("(python scripts/")[2].partition(".py ")[2].partition(")")[0]
    assert command == "--input TEXT --tokenizer runs/sft/tokenizer.json --out data"
    assert "no prepared data in data, on which this run was trained" in err
    assert "--text FILE" in err
    assert run_script("train --run sft --resume --max_steps 3") == 2  # training them on needs them too
    assert command in capsys.readouterr().err
    assert run_script(f"prepare_data {command.replace('TEXT', 'all.jsonl')} {FIELDS} --val_fraction 0.25") == 0
    assert load_data("data").checksums == before
    assert evaluate("sft")[0] == 0
    assert run_script(f"prepare_data {command.replace('TEXT', 'all.jsonl')} {FIELDS} --overwrite") == 0
    assert "data has changed since this run started" in evaluate("sft")[2]


def test_pairs_that_the_model_cannot_see_whole_are_counted(evaluate, tmp_path):
    (tmp_path / "long.csv").write_text("q,a\n" + f"{'1' * 500},1\n" + "1,1\n")
    status, out, err = evaluate(f"sft --text {tmp_path}/long.csv {FIELDS}")
    assert status == 0
    assert "of 2 pairs exceed the model's context of" in err
    assert err.startswith("1 of 2")
    assert "nan" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sft --text val.txt", "runs/sft, step 2 answers prompts: name the fields of pairs, --prompt_field and"),
        ("sft --text val.jsonl", "fields q, a: name the field that is the text (--field q), or two of a pair"),
        ("sft --field q", "--field says how a text is read, and none is named: --text FILE"),
        ("sft --special_tokens", "--special_tokens says how a text is read, and none is named"),
        ("next_token --text val.jsonl --prompt_field q", "--prompt_field and --target_field name the two halves"),
        ("next_token --text val.txt --special_tokens '<|user|>'", "has no special token '<|user|>'"),
        (f"sft --text val.jsonl {FIELDS} --stride 4", "--stride is for models that predict the next token"),
    ],
)
def test_mistakes(evaluate, arguments, message):
    status, _, err = evaluate(arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
