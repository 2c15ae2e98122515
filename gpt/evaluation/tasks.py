"""Tasks that models are compared by, such as HellaSwag: questions with choices, of which one is right.

    task_file("hellaswag")                 # data/tasks/hellaswag.jsonl, downloaded if it is missing
    read_questions("hellaswag", path)      # each question as the texts whose probabilities are compared

Files, contexts and choices are those of EleutherAI's lm-evaluation-harness (Gao et al. 2021), whose names the tasks
have, without solved examples in the context. gpt/evaluation/ranking.py lets a model answer.
"""

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from gpt.system.errors import did_you_mean
from gpt.system.paths import find_path
from gpt.text.download import BY_OTHER_MEANS, download
from gpt.text.readers import describe_value, read_records

FOLDER = Path("data/tasks")  # relative to the working folder
SUFFIXES = (".jsonl", ".parquet")  # of a task's file
KINDS = {str: "text", list: "list", dict: "object", int: "number"}


class Question(NamedTuple):
    """The texts that a model compares, and the index of the right one. A single text is right if it is what the model
    itself writes at temperature 0."""

    texts: list[tuple[str, str]]  # context, and the continuation whose probability counts
    answer: int


class Task(NamedTuple):
    """A task of the table TASKS."""

    fields: dict[str, tuple[type, ...]]  # of each record that are read, with their types
    question: Callable[[dict[str, Any]], Question]
    url: str
    acc_norm: bool = True  # accuracy is also reported with choices compared per character
    sha256: str = ""  # of the file at the URL, where it is published


# --- how a record becomes a question ----------------------------------------------------------------------------------


def _choices(context: str, choices: list[str], answer: int) -> Question:
    """Return the question whose choices continue one context, each after a space."""
    if any(not isinstance(choice, str) for choice in choices):
        raise TypeError
    return Question([(context, f" {choice}") for choice in choices], answer)


def _hellaswag(record: dict[str, Any]) -> Question:
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return _choices(_without_marks(context), [_without_marks(text) for text in record["endings"]], int(record["label"]))


def _without_marks(text: str) -> str:
    """Return a text without the marks in brackets that WikiHow's part of HellaSwag has; a title ends as a sentence."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _labelled(context: str, record: dict[str, Any]) -> Question:
    """Return a question of ARC or OpenBookQA: the choices are two lists, of texts and of their labels, A to E."""
    choices = record["choices"]
    return _choices(context, choices["text"], choices["label"].index(record["answerKey"].lstrip()))


def _winogrande(record: dict[str, Any]) -> Question:
    """Return both sentences, each with an option in the place of _; what comes after it is compared (Trinh and Le
    2018, "A simple method for commonsense reasoning")."""
    before, blank, after = record["sentence"].partition("_")
    if not blank:
        raise ValueError
    texts = [(before + record[option], f" {after.strip()}") for option in ("option1", "option2")]
    return Question(texts, ["1", "2"].index(record["answer"]))


def _boolq(record: dict[str, Any]) -> Question:
    context = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
    return _choices(context, ["no", "yes"], int(record["label"]))


def _lambada(record: dict[str, Any]) -> Question:
    """Return the last word of a text, after the others."""
    context, _, word = record["text"].rpartition(" ")
    return Question([(context, f" {word}")], 0)


# --- the table --------------------------------------------------------------------------------------------------------


def _hub(name: str, config: str, split: str) -> str:
    """Return the URL of a split of a data set on Hugging Face's hub, which keeps each as Parquet in this place."""
    return f"https://huggingface.co/datasets/{name}/resolve/refs%2Fconvert%2Fparquet/{config}/{split}/0000.parquet"


_ARC = (
    {"question": (str,), "choices": (dict,), "answerKey": (str,)},
    lambda record: _labelled(f"Question: {record['question']}\nAnswer:", record),
)
_OPENBOOKQA = (
    {"question_stem": (str,), "choices": (dict,), "answerKey": (str,)},
    lambda record: _labelled(record["question_stem"], record),
)
_PIQA = (
    {"goal": (str,), "sol1": (str,), "sol2": (str,), "label": (int,)},
    lambda record: _choices(f"Question: {record['goal']}\nAnswer:", [record["sol1"], record["sol2"]], record["label"]),
)
TASKS = {
    "hellaswag": Task(
        {"activity_label": (str,), "ctx_a": (str,), "ctx_b": (str,), "endings": (list,), "label": (int, str)},
        _hellaswag,
        "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    ),
    "arc_easy": Task(*_ARC, _hub("allenai/ai2_arc", "ARC-Easy", "test")),
    "arc_challenge": Task(*_ARC, _hub("allenai/ai2_arc", "ARC-Challenge", "test")),
    "piqa": Task(*_PIQA, _hub("baber/piqa", "default", "validation")),
    "winogrande": Task(
        dict.fromkeys(("sentence", "option1", "option2", "answer"), (str,)),
        _winogrande,
        _hub("allenai/winogrande", "winogrande_xl", "validation"),
        acc_norm=False,
    ),
    "openbookqa": Task(*_OPENBOOKQA, _hub("allenai/openbookqa", "main", "test")),
    "boolq": Task(
        {"passage": (str,), "question": (str,), "label": (int,)},
        _boolq,
        _hub("aps/super_glue", "boolq", "validation"),
        acc_norm=False,
    ),
    "lambada_openai": Task(
        {"text": (str,)},
        _lambada,
        "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        acc_norm=False,
        sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",  # by EleutherAI's data set card
    ),
}
GROUPS = {"lambada": ("lambada_openai",), "core": tuple(TASKS)}  # those of DCLM's CORE that are here


# --- from the command line --------------------------------------------------------------------------------------------


def find_tasks(names: list[str]) -> list[str]:
    """Return the tasks that a person names, each once, separated by spaces or commas. ValueError for an unknown one."""
    found = [name for text in names for name in text.split(",") if name]
    if not found:
        raise ValueError(f"no task is named: there are {', '.join((*TASKS, *GROUPS))}")
    if unknown := [name for name in found if name not in TASKS and name not in GROUPS]:
        raise ValueError(f"unknown task {unknown[0]!r}: {did_you_mean(unknown[0], [*TASKS, *GROUPS])}")
    return list(dict.fromkeys(name for group in found for name in GROUPS.get(group, (group,))))


def task_file(name: str) -> Path:
    """Return the file of a task, data/tasks/NAME.jsonl or .parquet, downloaded once. ValueError if it cannot be."""
    for suffix in SUFFIXES:
        if (path := find_path(FOLDER / f"{name}{suffix}")).exists():
            return path
    task = TASKS[name]
    path = FOLDER / f"{name}{Path(task.url).suffix}"
    try:
        return download(task.url, path, task.sha256)
    except ValueError as error:
        if not str(error).endswith(BY_OTHER_MEANS):
            raise
        fields = ", ".join(task.fields)
        raise ValueError(f"{error} {path} (a record for each question, with the fields {fields})") from None


def read_questions(name: str, path: Path, limit: int | None = None) -> list[Question]:
    """Return the questions of a task's file, the first `limit` of them if it is given.

    ValueError names the record that is none, or lacks a field.
    """
    task, questions = TASKS[name], []
    for n, record in enumerate(islice(read_records(path, task.fields.keys(), "utf-8"), limit), start=1):
        where = f"record {n} of {path}"
        found = record if isinstance(record, dict) else {}
        for field, kinds in task.fields.items():
            if field not in found:
                has = describe_value(record).removeprefix("the fields ")
                raise ValueError(f"{where} is no question of {name}, since it has no field {field!r}, but: {has}")
            if not isinstance(value := found[field], kinds):
                wanted = " or ".join(KINDS[kind] for kind in kinds)
                raise ValueError(f"{where} has no {wanted} in {field!r}, but {describe_value(value)}")
        try:
            questions.append(question := task.question(found))
            if not 0 <= question.answer < len(question.texts):
                raise IndexError
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            advice = "its choices are of another form, or none is the right one"
            raise ValueError(f"{where} is no question of {name}: {advice}") from None
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions
