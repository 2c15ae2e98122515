"""notebooks/exercises.py and the checks: the solutions are right, and each hint in the checks is shown for its mistake.

The answers are derived from the checks: a check runs with the notebook's solution while the values that it compares are
recorded. Each foreseen mistake is then made on purpose, by a function that returns the recorded wrong value.
"""

import ast
import contextlib
import functools
import importlib
import itertools
import json
import math
import operator
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
from exercises import CHECKS, Wrong, check  # noqa: E402

FILES = sorted((FOLDER / "checks").glob("[0-9]*.py"))
MODULES = {path.stem: importlib.import_module(f"checks.{path.stem}") for path in FILES}
each_file = pytest.mark.parametrize("name", MODULES)


def exercises_of(name: str) -> list[str]:
    return sorted(number for number in CHECKS if number.startswith(name[:2]))


@functools.cache
def solutions(name: str) -> dict[str, Any]:
    """Return the right answers of a notebook: what its solutions pass to `check`. No loop runs, so nothing trains."""
    cells = json.loads((FOLDER / "solutions" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    found = {}
    for cell in cells:
        code = re.sub(r"(?m)^( *)[!%].*", r"\1pass", "".join(cell["source"])) if cell["cell_type"] == "code" else ""
        for node in ast.parse(code).body:
            source = ast.unparse(node)
            if source.startswith(("os.environ", "sys.path")):  # where a notebook runs, and in which language
                continue
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Assign):
                with contextlib.suppress(NameError):  # of what a loop computes
                    exec(source, names)
            elif isinstance(node, ast.Assert) and source.startswith("assert check("):
                number, answer = node.test.args
                found[number.value] = eval(ast.unparse(answer), names)
    return found


WRONG = [None, ..., "", "abc", math.nan, math.inf, -1e9, 1e9, True, [], [1, 2], {}, object(), torch.zeros(2, 3)]
WRONG += [torch.tensor(torch.nan), int, torch.softmax, math, np.zeros(3), b"x", {1}, 1j, 10**400, (..., ...)]
WRONG += [lambda: 1, lambda *a: None, lambda *a: ..., lambda *a: "x", lambda *a: 1 / 0, lambda *a: a[0], lambda *a: a]
WRONG += [lambda *a: torch.zeros(2, 3), lambda *a: torch.tensor(math.nan), lambda *a, **k: [], lambda *a: 1j]
WRONG += [lambda *a: {"query": 1}, lambda *a: (None, None), lambda *a: object(), lambda *a: int, lambda *a: True]


class Comparison(NamedTuple):
    """A value that a check compares: part `path` of what the answer returned in its call number `call`, with the
    mistakes that are foreseen there. call is -1 for an answer that is no function."""

    call: int
    path: tuple
    mistakes: list[tuple[Any, str]]


def path_of(result: Any, part: Any) -> tuple | None:
    """Return the keys that lead to a part of a result, None if it is not there."""
    if result is part:
        return ()
    keys = result if isinstance(result, dict) else range(len(result)) if isinstance(result, tuple | list) else ()
    found = ((key, path_of(result[key], part)) for key in keys)
    return next(((key, *rest) for key, rest in found if rest is not None), None)


def put(result: Any, path: tuple, value: Any) -> Any:
    """Return the result with another value at a path."""
    if not path:
        return value
    changed = dict(result) if isinstance(result, dict) else list(result)
    changed[path[0]] = put(result[path[0]], path[1:], value)
    return changed if isinstance(result, dict | list) else tuple(changed)


class Recorder:
    """A run of a check with the solution: what the answer returned, and what was compared with which mistakes."""

    def __init__(self, name: str, number: str, monkeypatch):
        self.answer, self.results, self.comparisons, self.options = solutions(name)[number], [], [], {}
        module = MODULES[name]
        with monkeypatch.context() as patch:
            for function in {"number", "tensor", "_among"} & vars(module).keys():
                patch.setattr(module, function, self.recording(getattr(module, function)))
            if hasattr(module, "choice"):
                patch.setattr(module, "choice", lambda given, right, hints: self.options.update(hints))
            CHECKS[number](self.recorded if callable(self.answer) else self.answer)

    def recorded(self, *arguments):
        self.results.append(self.answer(*arguments))
        return self.results[-1]

    def recording(self, function):
        def compare(given, right, mistakes=(), *rest, **options):
            path = path_of(self.results[-1], given) if self.results else ()
            self.comparisons.append(Comparison(len(self.results) - 1, path or (), [*mistakes]))
            function(given, right, mistakes, *rest, **options)

        return compare

    def mistaken(self):
        """Yield (answer, hint) for each mistake. A function makes it in each call for which it is foreseen."""
        yield from self.options.items()
        numbered = [(c, count_each([hint for _, hint in c.mistakes])) for c in self.comparisons]
        for key in sorted({key for _, keys in numbered for key in keys}):
            made = [(c.call, c.path, c.mistakes[keys.index(key)][0]) for c, keys in numbered if key in keys]
            yield (self.changed(made) if callable(self.answer) else made[0][2]), key[0]

    def changed(self, changes):
        """Return the solution with other parts of its results, [(call, path, value)]."""
        calls = itertools.count()

        def answer(*arguments):
            number, result = next(calls), self.answer(*arguments)
            for call, path, value in changes:
                if call == number:
                    part = functools.reduce(operator.getitem, path, result)
                    result = put(result, path, value(part) if callable(value) else value)
            return result

        return answer

    def careless(self):
        """Yield functions that are wrong in a single call, in one way or another."""
        paths = {(c.call, c.path) for c in self.comparisons} | {(call, ()) for call in range(len(self.results))}
        for call, path in sorted(paths, key=str):
            yield from (self.changed([(call, path, change)]) for change in CHANGES)


def count_each(hints: list[str]) -> list[tuple[str, int]]:
    """Number the mistakes that share a hint."""
    return [(hint, hints[:i].count(hint)) for i, hint in enumerate(hints)]


def carefully(change):
    """Return the result itself where a change does not suit it."""

    def changed(result):
        try:
            return change(result)
        except Exception:  # of any kind, for a result of any kind
            return result

    return changed


CHANGES = [
    carefully(change)
    for change in (
        lambda x: x + 0.37,
        lambda x: x - 0.37,
        lambda x: x * 1.003,
        lambda x: x[:-1],
        lambda x: [*x, 7],
        lambda x: x * math.nan,
        lambda x: x + torch.eye(*x.shape[-2:]),
        lambda x: (x, x),
        lambda x: str(x),
        lambda x: (..., x[1]),
        lambda x: x[::-1],
    )
]


def said(number: str, answer: Any) -> str:
    """Return the hint for a wrong answer, "" for a right one. Errors pass."""
    try:
        CHECKS[number](answer)
    except Wrong as hint:
        return str(hint)
    return ""


def foreseen(name: str, monkeypatch) -> list[tuple[str, Any, str]]:
    """Return (exercise, answer, hint) for each mistake that the checks of a file foresee in their lists."""
    return [
        (number, answer, hint)
        for number in exercises_of(name)
        for answer, hint in Recorder(name, number, monkeypatch).mistaken()
    ]


@each_file
def test_solutions_are_right(name):
    assert sorted(solutions(name)) == exercises_of(name)
    for number, answer in solutions(name).items():
        assert check(number, answer), number


@each_file
def test_each_foreseen_mistake_gets_its_own_hint(name, monkeypatch):
    mistakes = foreseen(name, monkeypatch)
    assert mistakes
    wrong = [(number, hint, found) for number, answer, hint in mistakes if hint not in (found := said(number, answer))]
    assert not wrong, "\n".join(map(str, wrong))


def solved(number: str) -> Any:
    """Return the right answer of an exercise."""
    return solutions(next(name for name in MODULES if name.startswith(number[:2])))[number]


def overlapping(tokens, pair, new):
    found = [tuple(tokens[i : i + 2]) == pair for i in range(len(tokens))]
    return [new if found[i] else token for i, token in enumerate(tokens) if found[i] or not (i and found[i - 1])]


def in_place(tokens, pair, new):
    tokens[:] = solved("02.2")(tokens, pair, new)
    return tokens


def merged(tokens, merges):
    for new, pair in merges:
        tokens = solved("02.2")(tokens, pair, 256 + new)
    return tokens


def one_too_many(tokens, length, stride):
    padded = torch.cat([tokens, tokens[:1]])
    starts = range(0, len(tokens) - length + 1, stride)
    return tuple(torch.stack([padded[s + i : s + i + length] for s in starts]) for i in (0, 1))


def residual_in_place(x, a, f, n1, n2):
    x += a(n1(x))
    x += f(n2(x))
    return x


def two_steps(model, optimizer, inputs, targets):
    for _ in range(2):
        solved("07.2")(model, optimizer, inputs, targets)
    return 0.0


def tensor_of_the_loss(model, optimizer, inputs, targets):
    return torch.tensor(solved("07.2")(model, optimizer, inputs, targets))


def decay(step, low=0.001, begin=10, end=100, curve=lambda x: x, floor=-1.0):
    share = (step - begin) / (end - begin)
    return 0.01 * (step + 1) / 10 if step < 10 else max(floor, 0.01 + (low - 0.01) * curve(share))


def held(**changes):
    """The same, constant from step 100 on."""
    return lambda step: decay(min(step, 100), **changes)


def spans_of(input_of=lambda tokens, spans: None, target_of=lambda tokens, spans: None):
    """T5's spans with another input or target than the right one."""

    def corrupt(tokens, spans, sentinels):
        inputs, target = solved("10.1")(tokens, spans, sentinels)
        return input_of(tokens, spans) or inputs, target_of(inputs, target) or target

    return corrupt


def clearing(tokens, spans, sentinels):
    given = solved("10.1")(tokens, spans, sentinels)
    tokens.clear()
    return given


def each(weights, period, rows=None):
    second = torch.arange(period, weights.size(-1))
    return weights[..., second, second - period + 1]  # (B, H, S)


CORRUPTED = MODULES["10_objectives"]._corrupted
SENTINELS = MODULES["10_objectives"].SENTINELS
TRAINING = MODULES["07_training"]
RUNS = MODULES["16_run_taken_apart"]
EXAMPLES = [  # (exercise, answer, words of the hint) of mistakes that are no value in a list
    ("01.2", lambda p, q: math.inf if 0 in p else solved("01.2")(p, q), "but infinite for a p of 0"),
    ("01.2", lambda p, q: sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)), "it fails. Which cases"),
    ("01.3", lambda p: 1 / math.prod(p) ** (1 / len(p)), "tokens it fails: the product underflows to 0"),
    ("01.3", lambda p: math.exp(-sum(map(math.log, p)) / len(p)), "A token with probability 0 makes it fail"),
    ("02.2", in_place, "changes its argument"),
    ("02.2", overlapping, "you merge too often"),
    ("02.3", lambda word, merges: list(word.encode()), "the merges are not applied"),
    ("02.3", lambda word, merges: merged(list(map(ord, word)), enumerate(merges)), "use its UTF-8 bytes"),
    ("02.3", lambda word, m: merged(list(word.encode()), reversed([*enumerate(m)])), "from the last to the first"),
    ("02.3", lambda word, merges: [i + 1 for i in solved("02.3")(word, merges)], "numbered wrongly"),
    ("03.1", one_too_many, "one example too many"),
    ("03.1", lambda *a: tuple(part[:-1] for part in solved("03.1")(*a)), "one example is missing"),
    ("03.1", lambda *a: tuple(part.flatten() for part in solved("03.1")(*a)), "should have the shape"),
    ("04.2", lambda x, h: x.unflatten(-1, (h, -1)), "Now move the heads in front of the positions"),
    ("05.3", residual_in_place, "you change x in place (+=)"),
    ("06.2", lambda logits, targets: torch.log_softmax(logits, -1), "doing it by hand: leave out log_softmax"),
    *(("07.2", TRAINING.recipe(order), hint) for order, hint in TRAINING.ORDERS.items()),
    ("07.2", TRAINING.uphill, "uphill: check the sign"),
    ("07.2", two_steps, "The weights differ from those after"),
    ("07.2", tensor_of_the_loss, "you return a tensor, which keeps its graph"),
    ("07.2", lambda *a: int(solved("07.2")(*a)), "not as a int"),
    ("07.2", lambda *a: solved("07.2")(*a) + 1, "the returned loss is not that of the batch"),
    ("07.3", lambda step: solved("07.3")(step) * (step > 0), "At step 0 the rate is 0"),
    ("07.3", lambda step: min(0.01 * (step + 1) / 11, held()(step)), "one step too many"),
    ("07.3", lambda step: solved("07.3")(max(step, 9)), "The warm-up is wrong"),
    ("07.3", held(curve=lambda x: (1 - math.cos(math.pi * x)) / 2), "That is a cosine decay"),
    ("07.3", held(low=0.0), "The decay goes to 0"),
    ("07.3", held(begin=0), "The rate jumps where the warm-up ends"),
    ("07.3", held(curve=math.sqrt), "the decay is not a straight line"),
    ("07.3", decay, "keeps falling, below 0."),
    ("07.3", lambda step: decay(step, floor=5e-4), "keeps falling."),
    ("07.3", lambda step: solved("07.3")(step) + (step > 100), "The tested steps are"),
    ("09.1", lambda *a: each(*a).mean(-1), "the mean over the texts is missing"),
    ("09.1", lambda *a: each(*a).mean((1, 2)), "you average over the heads and keep the texts"),
    ("09.1", lambda *a: each(*a).mean(), "that is one number for all heads"),
    ("09.1", lambda *a: each(*a).mean(0), "the mean over the positions is missing"),
    ("09.1", each, "the mean over texts and positions is missing"),
    ("09.1", lambda weights, period: weights[:, :, : -period or None].mean((0, 2)), "as blocks, not in pairs"),
    ("10.1", clearing, "changes its arguments"),
    ("10.1", lambda *a: solved("10.1")(*a)[::-1], "input and target are right but swapped"),
    ("10.1", spans_of(target_of=lambda inputs, target: target[:-1]), "lacks the sentinel that closes it"),
    ("10.1", spans_of(target_of=lambda _, target: [*target[:-1], SENTINELS[-1]]), "not with the next unused one"),
    ("10.1", spans_of(target_of=lambda _, target: sorted(target)), "the sentinels are in the wrong place"),
    ("10.1", lambda t, s, e: (solved("10.1")(t, s, e)[0], CORRUPTED(t, s, 1)[1]), "the spans are one token too long"),
    ("10.1", spans_of(target_of=lambda _, target: [*target, 8]), "the input is right, the target is not"),
    ("10.1", spans_of(lambda tokens, spans: CORRUPTED(tokens, spans)[0][: -(tokens[-1] == 7) or None]), "is missing"),
    (
        "10.1",
        spans_of(lambda tokens, spans: CORRUPTED(tokens, spans, same=True)[0]),
        "all spans have the same sentinel",
    ),
    ("10.1", lambda tokens, spans, _: CORRUPTED(tokens, spans, 1), "tokens are lost, or the spans are too long"),
    (
        "10.1",
        spans_of(lambda tokens, spans: [t for t in CORRUPTED(tokens, spans)[0] if t < 900]),
        "there is no sentinel",
    ),
    ("10.1", spans_of(lambda tokens, spans: [*CORRUPTED(tokens, spans)[0], 1]), "the input is too long"),
    ("10.1", spans_of(lambda tokens, spans: CORRUPTED(tokens, spans)[0][::-1]), "the input is not right"),
    ("11.1", lambda *a: dict.fromkeys(("query", "key", "value"), 1), "return a pair: its weight and its bias"),
    ("11.2", lambda x, w, a, b, alpha: x @ (w + alpha / len(a) * b @ a).T, "a matrix as large as W"),
    ("16.1", lambda *a: math.nan, "it returns NaN; it should be a step, or -1"),
    ("16.2", lambda *a: math.nan, "it returns NaN; it should be a share from 0 to 1"),
    ("16.2", lambda *a: solved("16.2")(*a) + 0.05, "Bring all texts into one form, then look up each"),
    ("16.1", lambda *a: solved("16.1")(*a) + 3, "Keep the lowest loss seen so far"),
    ("16.5", {"run-a": "leak"}, "There is no word yet for run-b"),
    ("16.5", RUNS.RIGHT | {"run-b": "overfit"}, "The word for run-b is none of 'leak'"),
    *(
        ("16.5", RUNS.RIGHT | {run: word}, RUNS.CONFUSED.get((run, word), RUNS.HINTS[word]))
        for run in RUNS.RIGHT
        for word in RUNS.HINTS
        if word != RUNS.RIGHT[run]
    ),
    ("15.2", lambda *a: solved("15.2")(*a) * len(a[0]), "You return the sum"),
    ("15.2", lambda c, r, c0, r0, b: -(b * (c - c0 - r + r0)).sigmoid().log().mean(), "wrong for large ones"),
    (
        "15.2",
        lambda *a: solved("15.2")(*(x[:, None] for x in a[:4]), a[4])[None].expand(len(a[0])),
        "one number for each",
    ),
    ("15.4", "Long ago, by the sea, a lazy child named Greta lost her shiny button.", "a right sentence"),
    ("15.4", "Long ago, Anna and Ben lost their hats.", "can grow beyond 1"),
    ("14.1", lambda w: (solved("14.1")(w)[0], solved("14.1")(w)[1][:, None]), "Return them as (out,)"),
    ("14.1", lambda w: (solved("14.1")(w)[0].float(), solved("14.1")(w)[1]), "of the type torch.int8"),
]


def test_mistakes_of_no_list_get_their_own_hints():
    wrong = [
        (number, words, found) for number, answer, words in EXAMPLES if words not in (found := said(number, answer))
    ]
    assert not wrong, "\n".join(map(str, wrong))


def strings_in(tree: ast.Module) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def sentences(path: Path) -> list[str]:
    """Return the sentences that a file of checks can show: its strings of some length, but for docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef))]
    docstrings = {ast.get_docstring(node, clean=False) for node in documented}
    return [text.strip() for text in strings_in(tree) if len(text.strip()) > 18 and text not in docstrings]


def all_said(name: str, monkeypatch) -> list[str]:
    """Return what the checks of a file say to every mistake that the tests know."""
    shown = [repr(check(number, answer)) for number, answer, _ in foreseen(name, monkeypatch)]
    for number in exercises_of(name):
        recorder = Recorder(name, number, monkeypatch)
        answers = itertools.chain(recorder.careless(), WRONG, [example for n, example, _ in EXAMPLES if n == number])
        shown += [repr(check(number, answer)) for answer in answers]
    return shown


@each_file
def test_hints_are_chinese_in_a_chinese_notebook(name, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_LANGUAGE", "zh")
    # Python's own sentences, and the reader's code
    quoted = re.compile(r"(?<=个参数\uff1a).*|`[^`]*`|'[^']*'|\w+Error(: [^\u4e00-\u9fff]*)?")
    english = {text for text in all_said(name, monkeypatch) if re.search("[a-z]+ [a-z]+ [a-z]+", quoted.sub("", text))}
    assert not english, "\n".join(sorted(english))


@pytest.mark.parametrize("name", [*MODULES, "exercises", "exam"])
def test_the_chinese_hints_are_those_of_the_checks(name):
    file = FOLDER / f"{name}.py" if name in ("exercises", "exam") else FOLDER / "checks" / f"{name}.py"
    strings = set(strings_in(ast.parse(file.read_text(encoding="utf-8"))))
    hints = json.loads((FOLDER / "zh" / "hints" / f"{name}.json").read_text(encoding="utf-8"))
    for english, chinese in hints.items():
        assert english in strings or {part for part in re.split(r"\{\d\}", english) if part} <= strings, english
        assert sorted(re.findall(r"\{\d\}", english)) == sorted(set(re.findall(r"\{\d\}", chinese))), chinese
        assert chinese != english


@each_file
def test_each_sentence_of_the_checks_is_shown_for_some_answer(name, monkeypatch):
    shown = all_said(name, monkeypatch)
    never = [text for text in sentences(FOLDER / "checks" / f"{name}.py") if not any(text in said for said in shown)]
    assert not never, "\n".join(never)


@each_file
def test_any_wrong_answer_gets_a_sentence(name):
    for number in exercises_of(name):
        for answer in WRONG:
            result = check(number, answer)
            sentence = repr(result)
            assert not result, (number, answer)
            assert sentence.startswith(f"{number}: not ") and sentence.endswith((".", "?")), sentence
            assert "Traceback" not in sentence and len(sentence) < 500
            assert "cannot be compared" not in sentence, sentence
            assert callable(answer) or "Error" not in sentence, sentence


@pytest.mark.parametrize("number", ["4.1", "04.1", 4.1])
def test_an_exercise_is_found_by_its_number_however_it_is_written(number):
    assert check(number, solved("04.1"))
    assert repr(check(number, 3)).startswith("04.1: not yet. The answer is a function")


@pytest.mark.parametrize("number", ["99.1", "4.9", 7, None, "", solved, "*", "../x"])
def test_an_unknown_exercise_is_an_error(number):
    with pytest.raises(ValueError, match="there is no exercise"):
        check(number, 1)
