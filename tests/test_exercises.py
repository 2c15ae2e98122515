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
import sys
from pathlib import Path
from typing import Any, NamedTuple

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
        body = ast.parse("".join(cell["source"])).body if cell["cell_type"] == "code" else []
        for node in body:
            source = ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Assign):
                with contextlib.suppress(NameError):  # of what a loop computes
                    exec(source, names)
            elif isinstance(node, ast.Assert) and source.startswith("assert check("):
                number, answer = node.test.args
                found[number.value] = eval(ast.unparse(answer), names)
    return found


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
                    result = put(result, path, value(result) if callable(value) else value)
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
