"""Tasks: questions as texts, by hand; log-probabilities by brute force from all logits; intervals as scipy has them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import tolerance
from questions import LONG, RECORDS, write_tasks
from scipy.stats import binomtest

from gpt.config import GPTConfig
from gpt.evaluation.metrics import wilson_interval
from gpt.evaluation.ranking import (
    TaskResult,
    answer_questions,
    encode_pair,
    mean_above_chance,
    score_continuations,
)
from gpt.evaluation.tasks import GROUPS, TASKS, Question, find_tasks, read_questions, task_file
from gpt.exchange.models import LoadedModel
from gpt.generation import generate
from gpt.objectives import NextToken
from gpt.text.bpe import train_bpe
from gpt.tokenizer import CharTokenizer
from gpt.variants import create_model

EXPECTED = {  # the first question of each task, as its texts and the index of the right one
    "hellaswag": ("Sailing: A man is on a boat. He", [" pulls the sail.", " eats the sail.", " is a sail.",
                  " sleeps in it"], 0),
    "arc_easy": ("Question: Where does a sailor sleep?\nAnswer:", [" a boat", " a boat and a dog", " the sea",
                 " a house"], 0),
    "piqa": ("Question: To open a jar,\nAnswer:", [" turn the lid.", " turn the lid. Then eat it."], 0),
    "openbookqa": ("A sailor sleeps in", [" a boat", " a boat and a dog", " the sea", " a house"], 0),
    "boolq": ("Hens lay eggs.\nQuestion: do hens lay eggs?\nAnswer:", [" no", " yes"], 1),
    "lambada_openai": ("the cat sat on the mat and the dog sat on the", [" mat"], 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a file for each task."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def loaded():
    """A small random model of 40 tokens of context, in float64, whose texts have no start."""
    tokenizer = train_bpe([json.dumps(RECORDS, ensure_ascii=False)], 400)
    torch.manual_seed(0)
    shape = {"context_length": 40, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "init": "gpt2"}
    model = create_model(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return LoadedModel("a model", NextToken(model).eval(), tokenizer, False, None)


def read(name, limit=None):
    return read_questions(name, task_file(name), limit)


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_a_record_becomes_these_texts(here, name):
    context, choices, answer = EXPECTED[name]
    assert read(name, 1) == [([(context, choice) for choice in choices], answer)]


def test_what_the_tasks_do_to_their_texts(here):
    """Marks of WikiHow, options in a blank, labels that are numbers, or texts, or begin with a space."""
    texts, answer = read("hellaswag")[2]
    assert answer == 2
    context = "Sports games: How to row. Sit down. Take the oars."
    assert texts == [(context, f" {ending}") for ending in (" Row. Then rest.", " Row back Rest.",
                                                            "Take three  oars.", "Sit down.")]  # fmt: skip
    assert read("winogrande", 1) == [
        ([("Ann thanked Beth because Ann", " had helped."), ("Ann thanked Beth because Beth", " had helped.")], 1)
    ]
    assert read("winogrande")[4].texts[0] == ("Ann and not Beth named the snakeAnn", " case file, so _ knew.")
    assert read("arc_easy")[5].answer == 1
    assert read("openbookqa")[2].answer == 0
    assert read("lambada_openai")[3].texts == [("it ends with a space", " ")]
    assert read("lambada_openai")[4].texts == [("", " alone")]


def test_other_forms_of_a_file(here, tmp_path, monkeypatch):
    """The labels of HellaSwag are texts on the hub; a .parquet holds the same; `limit` takes the first."""
    import pyarrow
    import pyarrow.parquet

    expected = read("arc_easy"), read("hellaswag", 3)
    assert len(expected[1]) == 3
    monkeypatch.chdir(tmp_path)
    Path("data/tasks").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS["arc_easy"]), "data/tasks/arc_easy.parquet")
    lines = [json.dumps(record | {"label": str(record["label"])}) for record in RECORDS["hellaswag"][:3]]
    Path("data/tasks/hellaswag.jsonl").write_text("\n".join(lines))
    assert (read("arc_easy"), read("hellaswag")) == expected


def test_tasks_by_name():
    assert find_tasks(["piqa,lambada", "piqa"]) == ["piqa", "lambada_openai"]
    assert find_tasks(["core"]) == [*TASKS] == [*GROUPS["core"]]
    with pytest.raises(ValueError, match=r"unknown task 'helaswag': did you mean hellaswag\?"):
        find_tasks(["piqa", "helaswag"])
    with pytest.raises(ValueError, match=r"no task is named: there are hellaswag, .*, core"):
        find_tasks([","])


ARC = {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("hellaswag", ARC, "record 2 of .*hellaswag.jsonl is no question of .* no field 'activity_label', but"),
        ("hellaswag", RECORDS["hellaswag"][0] | {"label": 4}, "record 2 of .* or none is the right one"),
        ("hellaswag", RECORDS["hellaswag"][0] | {"label": -1}, "or none is the right one"),
        ("hellaswag", RECORDS["hellaswag"][0] | {"label": ""}, "or none is the right one"),
        ("hellaswag", RECORDS["hellaswag"][0] | {"endings": [1, 2]}, "its choices are of another form"),
        ("arc_easy", ARC | {"answerKey": "C"}, "or none is the right one"),
        ("arc_easy", ARC | {"choices": ["a", "b"]}, "record 2 of .* has no object in 'choices', but a list of 2 texts"),
        ("arc_easy", ARC | {"choices": {"text": ["a", "b"]}}, "its choices are of another form"),
        ("winogrande", {"sentence": "x", "option1": "a", "option2": "b", "answer": "1"}, "its choices are of another"),
        ("piqa", ["a list"], "record 2 of .* has no field 'goal', but: a list of 1 text"),
        ("lambada_openai", {"text": None}, "has no text in 'text', but null"),
    ],
)  # fmt: skip
def test_what_is_no_question(tmp_path, name, record, message):
    path = tmp_path / f"{name}.jsonl"
    path.write_text(f"{json.dumps(RECORDS[name][0])}\n{json.dumps(record)}\n")
    with pytest.raises(ValueError, match=message):
        read_questions(name, path)
    assert len(read_questions(name, path, limit=1)) == 1


def test_an_empty_file(tmp_path):
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"piqa.jsonl holds no questions"):
        read_questions("piqa", tmp_path / "piqa.jsonl")


# --- answers ----------------------------------------------------------------------------------------------------------


def brute_force(loaded, context, text):
    """ln p of a text after a context, from the logits of one row: the product rule, nothing else."""
    context, spaces = context.rstrip(), context[len(context.rstrip()) :]
    ids = loaded.tokenizer.encode(context + spaces + text)
    n = len(ids) - len(loaded.tokenizer.encode(context))
    ids = ids if context else [loaded.tokenizer.eot_id, *ids]
    ids = ids[-41:]  # 40 tokens of context, and the last one
    with torch.no_grad():
        logits = loaded.objective.model(torch.tensor([ids[:-1]]))[0]
    return sum(float(logits[i].softmax(0)[ids[i + 1]].log()) for i in range(len(ids) - 1 - n, len(ids) - 1))


@pytest.mark.parametrize("name", TASKS)
def test_each_choice_has_its_log_probability(here, loaded, name):
    """Whatever stands in its batch. The right answer is the likeliest; by acc_norm, per character."""
    questions = read(name)
    result = answer_questions(loaded, name, questions, batch_size=5)
    for question, found in zip(questions, result.log_probabilities, strict=True):
        expected = np.array([brute_force(loaded, *text) for text in question.texts])
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(1000, torch.from_numpy(expected)))
    cut = [any(len(loaded.tokenizer.encode(a + b)) > 41 for a, b in question.texts) for question in questions]
    assert result.n_cut == sum(cut) > 0
    if name == "lambada_openai":
        assert result.chance == 0
        losses = [-brute_force(loaded, *question.texts[0]) for question in questions]
        assert result.perplexity()[0] == pytest.approx(math.exp(sum(losses) / len(losses)))
        return
    best = [max(range(len(q.texts)), key=lambda i: brute_force(loaded, *q.texts[i])) for q in questions]
    assert result.correct.tolist() == [i == q.answer for i, q in zip(best, questions, strict=True)]
    assert result.chance == pytest.approx(sum(1 / len(q.texts) for q in questions) / len(questions))
    assert (result.correct_norm is None) == (name in ("winogrande", "boolq"))


def test_the_answer_by_length(loaded):
    """Characters of the choice count, not bytes, tokens, or its space."""
    names = [("tale", "tale tale tale"), ("é" * 8, "the sea"), ("a", "abc"), ("熊", "x")]
    questions = [asked(*choices) for choices in names]
    result = answer_questions(loaded, "piqa", questions, 1)
    for (first, second), (p, q), right in zip(names, result.log_probabilities, result.correct_norm, strict=True):
        assert right == (p / len(first) > q / len(second))
    assert result.correct[0]
    assert not result.correct_norm[0]


def asked(*choices):
    return Question([("Question: x\nAnswer:", f" {choice}") for choice in choices], 0)


def test_what_the_model_writes_itself(loaded):
    """A continuation counts as written if each of its tokens is the likeliest, not only the last."""
    model, start = loaded.objective.model, loaded.tokenizer.encode("the cat sat")
    written = generate(model, torch.tensor([start]), 4, temperature=0)[0].tolist()
    others = [[*written[:-4], *(i ^ (j == k) for k, i in enumerate(written[-4:]))] for j in range(4)]
    found, greedy = score_continuations(model, [(ids, 4) for ids in (written, *others)], batch_size=2)
    assert greedy.tolist() == [True, False, False, False, False]
    for ids, value in zip((written, *others), found, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([ids[:-1]]))[0, -4:].log_softmax(-1)
        assert value == pytest.approx(float(log_p[range(4), ids[-4:]].sum()), abs=1e-4)


def test_tokens_at_the_border(loaded):
    """Spaces of the context go to the continuation. The token that starts a text is there with prepend_eot, and where
    there is no context."""
    tokenizer = loaded.tokenizer
    for context, text in [("the cat", " sat"), ("the cat ", "sat"), ("the cat\n", " sat")]:
        ids, n = encode_pair(context, text, tokenizer, prepend_eot=False)
        assert ids == tokenizer.encode(context + text)
        assert tokenizer.decode(ids[-n:]) == (context + text).removeprefix("the cat")
        assert encode_pair(context, text, tokenizer, prepend_eot=True) == ([tokenizer.eot_id, *ids], n)
    for prepend_eot in (True, False):
        ids, n = encode_pair("", " sat", tokenizer, prepend_eot)
        assert (ids[0], n) == (tokenizer.eot_id, len(ids) - 1)
    with pytest.raises(ValueError, match="no context, and the tokenizer no token that begins a text"):
        encode_pair("", " sat", CharTokenizer("sat "), False)


def test_what_cannot_be_asked(here, loaded):
    with pytest.raises(ValueError, match=r"question 1 of piqa cannot be put to a model: .* \d+ tokens, .* holds 40"):
        answer_questions(loaded, "piqa", [asked(LONG, "x")], 1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        answer_questions(loaded, "piqa", [asked("y", "x")], 0)
    letters = LoadedModel("letters", loaded.objective, CharTokenizer("Question: x\nAnswer:y"), False, None)
    with pytest.raises(ValueError, match="question 2 of piqa cannot be put to letters: the character 'é'"):
        answer_questions(letters, "piqa", [asked("y", "x"), asked("é", "x")], 1)


# --- how sure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 10), (1, 10), (10, 10), (1, 1), (2967, 10042)])
def test_the_interval_is_scipys(right, n):
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson_interval(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def result_of(right, n, chance, losses=(1.0,)):
    correct = np.arange(n) < right
    return TaskResult("x", [np.array([-loss]) for loss in losses], correct, None, chance, 0, 0.0)


def test_the_mean_above_chance():
    """40% of 25% is a fifth of the way to 100%, 75% of 50% a half. Its interval, by sampling."""
    results = [result_of(400, 1000, 0.25), result_of(1500, 2000, 0.5)]
    mean, half = mean_above_chance(results)
    assert mean == pytest.approx((0.2 + 0.5) / 2)
    rng = np.random.default_rng(0)
    shares = rng.binomial([1000, 2000], [0.4, 0.75], (100_000, 2)) / [1000, 2000]
    sampled = ((shares - [0.25, 0.5]) / [0.75, 0.5]).mean(1)
    assert half == pytest.approx(1.96 * sampled.std(), rel=0.01)


@pytest.mark.parametrize("right", [0, 10])
def test_all_or_nothing_of_a_few_is_not_sure(right):
    """By hand, of 10 answers: 1.92 of 13.84 is 0.1388, and 1.96 (0.1388 * 0.8612 / 13.84)^(1/2) is 0.1822."""
    assert mean_above_chance([result_of(right, 10, 0)]) == (right / 10, pytest.approx(0.1822, abs=1e-3))


def test_the_interval_of_a_perplexity():
    losses = np.random.default_rng(0).normal(3, 2, 400)
    middle, low, high = result_of(0, 400, 0, losses).perplexity()
    assert math.log(middle) == pytest.approx(losses.mean())
    half = 1.96 * losses.std(ddof=1) / 20
    assert [math.log(low), math.log(high)] == pytest.approx([losses.mean() - half, losses.mean() + half], abs=1e-4)
    assert math.isnan(result_of(0, 1, 0).perplexity()[1])
