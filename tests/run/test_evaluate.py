"""scripts/evaluate.py: what a model is evaluated on, and what a person is told."""

import csv
import http.server
import json
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
from scipy.stats import binomtest

from gpt.evaluation import tasks
from gpt.evaluation.ranking import answer_questions
from gpt.exchange.models import open_model
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


# --- tasks ------------------------------------------------------------------------------------------------------------

SUMS = [
    {
        "question_stem": q,
        "choices": {"text": [str(n), a, f"{a}0"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    for n, (q, a) in enumerate(PAIRS)
]


@pytest.fixture
def sums(evaluate):
    """Write questions whose characters the runs know, as OpenBookQA and LAMBADA have them; return `evaluate`."""
    Path("data/tasks").mkdir()
    Path("data/tasks/openbookqa.jsonl").write_text("\n".join(map(json.dumps, SUMS)))
    Path("data/tasks/lambada_openai.jsonl").write_text("\n".join(json.dumps({"text": f"{q} {a}"}) for q, a in PAIRS))
    return evaluate


@pytest.mark.parametrize("objective", ["next_token", "sft"])
def test_the_table_of_tasks(sums, objective, monkeypatch):
    """A row for each task: questions, chance, both accuracies with Wilson's intervals; LAMBADA's perplexity; a mean of
    all tasks that says what it is not."""
    monkeypatch.setitem(tasks.GROUPS, "core", ("openbookqa", "lambada_openai"))
    status, out, err = sums(f"{objective} --tasks openbookqa,lambada --limit 15")
    assert (status, err) == (0, "")
    loaded, rows = open_model(f"runs/{objective}"), {line.split()[0]: line.split() for line in out.splitlines() if line}
    for name in tasks.GROUPS["core"]:
        result = answer_questions(loaded, name, tasks.read_questions(name, tasks.task_file(name), 15), 4)
        expected = ["15", *["33.3%"] * (name == "openbookqa")]
        for correct in filter(lambda found: found is not None, (result.correct, result.correct_norm)):
            ends = binomtest(int(correct.sum()), 15).proportion_ci(method="wilson")
            expected += [f"{correct.mean():.1%}", f"{ends.low:.1%}", "to", f"{ends.high:.1%}"]
        assert rows[name][1:-1] == expected
    assert f"perplexity of the last word {result.perplexity()[0]:,.2f}, 95% interval" in out
    assert "This covers 2 of the 22 tasks of DCLM's CORE" in out
    assert "mean above chance" not in sums(f"{objective} --tasks openbookqa")[1]


def test_texts_beyond_the_context_are_counted(sums):
    long = [SUMS[0] | {"question_stem": " 1 +" * n} for n in (3, 30)]
    Path("data/tasks/openbookqa.jsonl").write_text("\n".join(map(json.dumps, long)))
    status, _, err = sums("next_token --tasks openbookqa")
    assert status == 0
    assert err.startswith("1 of 2 questions of openbookqa exceed the model's context of 48 tokens")


def test_a_task_is_downloaded_once(sums, tmp_path, monkeypatch):
    shutil.move("data/tasks/openbookqa.jsonl", tmp_path / "test.jsonl")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/test.jsonl"
        monkeypatch.setitem(tasks.TASKS, "openbookqa", tasks.TASKS["openbookqa"]._replace(url=url))
        status, out, _ = sums("next_token --tasks openbookqa")
        server.shutdown()
    assert status == 0
    assert Path("data/tasks/openbookqa.jsonl").read_bytes() == (tmp_path / "test.jsonl").read_bytes()
    again = sums("next_token --tasks openbookqa")[1]  # the server is gone
    assert again.splitlines()[-1].split()[:-1] == out.splitlines()[-1].split()[:-1]  # but for the seconds
    Path("data/tasks/openbookqa.jsonl").unlink()
    status, _, err = sums("next_token --tasks openbookqa")
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith(
        "without a network, download it by other means and name the file data/tasks/openbookqa.jsonl (a record for "
        "each question, with the fields question_stem, choices, answerKey)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("masked --tasks openbookqa", "--tasks is for models that predict the next token; runs/masked, step 2 was"),
        ("next_token --tasks openbok", "unknown task 'openbok': did you mean openbookqa?"),
        ("next_token --tasks openbookqa --text val.txt", "--text cannot be combined with --tasks"),
        ("next_token --tasks openbookqa --reward exact_match", "--reward cannot be combined with --tasks"),
        ("next_token --tasks openbookqa --weights int8", "--weights cannot be combined with --tasks"),
        ("next_token --tasks openbookqa --checkpoint all", "--tasks cannot be combined with --checkpoint all"),
        ("next_token --tasks openbookqa --field q", "--field says how a text is read, and --tasks reads"),
        ("next_token --tasks openbookqa --limit 0", "--limit must be at least 1, not 0"),
        ("next_token --limit 3", "--limit needs --tasks: it is the number of questions asked of each"),
        ("next_token --tasks openbookqa --batch_size 0", "batch_size must be at least 1, not 0"),
        ("next_token --tasks piqa", "question 1 of piqa cannot be put to runs/next_token, step 2: the character 'Q'"),
    ],
)
def test_mistakes_with_tasks(sums, arguments, message):
    Path("data/tasks/piqa.jsonl").write_text('{"goal": "1", "sol1": "1", "sol2": "2", "label": 0}')
    status, _, err = sums(arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


# --- mistakes ---------------------------------------------------------------------------------------------------------


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
