"""Check answers to the exercises: check("06.2", answer) gives a hint for a wrong answer, never the answer itself.

The exercises are in the notebooks; their checks are in checks/, one file per notebook, and in exam.py. A check is a
function of the answer. It returns if the answer is right, in the exam with an explanation, and raises Wrong with a hint
if not. The functions below compare answers: `number`, `tensor`, `choice`, and `called` for functions. They take known
mistakes with their hints, and have a general hint for other mistakes.
"""

import importlib
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from language import join, say, translate
from torch import Tensor

CHECKS: dict[str, Callable[[Any], str | None]] = {}  # keyed by exercise, "06.2" or "exam.07"


class Wrong(Exception):  # noqa: N818 - not an error
    """A wrong answer; the arguments are the sentences of the hint for the reader."""

    def __str__(self) -> str:
        return " ".join(filter(None, self.args))


class Result:
    """The result of `check`: true if the answer is right. A notebook displays its sentence."""

    def __init__(self, right: bool, sentence: str):
        self.right, self.sentence = right, sentence

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.sentence


def check(exercise: str, answer: Any = ...) -> Result:
    """Check the answer to an exercise, such as "06.2". Return a Result, with a hint if it is wrong, of whatever type.

    ValueError if there is no such exercise.
    """
    asked, exercise = exercise, str(exercise).zfill(4)  # 6.2 is 06.2
    if exercise not in _load(exercise):
        raise ValueError(
            say(
                "there is no exercise {0}: give the number of the notebook and of the exercise, such as '06.2'",
                repr(asked),
            )
        )
    if answer is ... or answer is None:
        return Result(False, say("{0}: not answered yet. Replace the dots with your answer.", exercise))
    try:
        explanation = CHECKS[exercise](answer)
    except Wrong as hint:
        return Result(False, say("{0}: not yet. {1}", exercise, join(*map(translate, hint.args))))
    except Exception as error:  # an answer of an unexpected type
        kind = type(answer).__name__
        return Result(False, say("{0}: not yet. This {1} cannot be compared ({2}).", exercise, kind, _short(error)))
    return Result(True, join(say("{0}: right.", exercise), translate(explanation or "")))


def exercise(number: str) -> Callable:
    """Register the check of an exercise."""

    def register(function: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        CHECKS[number] = function
        return function

    return register


Mistakes = Sequence[tuple[Any, str]]  # (result of a known mistake, its hint)


def as_number(given: Any, what: str = "The answer is one number; yours") -> float:
    """Return a number of any type as a float, NaN included. For anything else raise Wrong: `what` "is a list"."""
    kind = Wrong(f"{what} is a {type(given).__name__}.")
    if isinstance(given, bool | str | bytes) or callable(given):
        raise kind
    try:
        if hasattr(given, "shape"):
            given = torch.as_tensor(given)
            if given.numel() != 1:
                raise Wrong(f"{what} has the shape {tuple(given.shape)}.")
        return float(given)
    except OverflowError:
        raise Wrong(f"{what} is too large for a float.") from None
    except (TypeError, ValueError, RuntimeError):
        raise kind from None


def number(answer: Any, right: float, mistakes: Mistakes = (), hint: str = "", tolerance: float = 1e-3) -> None:
    """Compare one number, within a relative `tolerance`. `hint` is for answers that no known mistake explains."""
    answer = as_number(answer)
    if math.isnan(answer):
        raise Wrong("It is NaN. Do you multiply 0 by infinity, or take the logarithm of a negative number?")
    if _close(answer, right, tolerance):
        return
    for wrong, its_hint in mistakes:
        if _close(answer, wrong, tolerance):
            raise Wrong(its_hint)
    if right and _close(answer, -right, tolerance):
        raise Wrong("Only the sign is wrong.")
    for factor, its_hint in (
        (
            1 / math.log(2),
            "That looks like bits instead of nats (or a double conversion). Check the unit.",
        ),
        (math.log(2), "That looks like nats instead of bits. Check the unit."),
        (100, "It is a hundred times too large: give a share between 0 and 1, not percent."),
        (0.01, "It is a hundred times too small. Should the answer be in percent?"),
    ):
        if right and _close(answer, right * factor, tolerance):
            raise Wrong(its_hint)
    if _close(answer, right, 30 * tolerance):
        raise Wrong("Very close, but not close enough: do not round intermediate results.", hint)
    size = "large" if answer > right else "small"
    raise Wrong(f"Yours is too {size}.", hint)


def tensor(answer: Any, right: Tensor, mistakes: Mistakes = (), hint: str = "", tolerance: float = 1e-4) -> None:
    """Compare a tensor, list or array, each number within `tolerance`, relative or absolute. A known mistake may have
    another shape."""
    try:
        answer = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"The answer is a tensor or a list of numbers; yours is a {type(answer).__name__}.") from None
    answer, right = answer.detach().double(), right.detach().double()
    if answer.shape == right.shape and _all_close(answer, right, tolerance):
        return
    for wrong, its_hint in mistakes:
        wrong = torch.as_tensor(wrong)
        if wrong.shape == answer.shape and _all_close(answer, wrong.double(), tolerance):
            raise Wrong(its_hint)
    if answer.shape != right.shape:
        raise Wrong(f"The shape should be {tuple(right.shape)}; yours is {tuple(answer.shape)}.")
    if answer.isnan().any() and not right.isnan().any():
        where = tuple(answer.isnan().nonzero()[0].tolist())
        raise Wrong(f"It is NaN at {where}: infinity minus infinity, 0 / 0, or the logarithm of a negative number.")
    off = ~torch.isclose(answer, right, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not right.dim():
        raise Wrong("The number is wrong.", hint)
    if off.all():
        raise Wrong(f"The shape is right, but none of the {off.numel()} values is.", hint)
    where = tuple(off.nonzero()[0].tolist())
    raise Wrong(
        f"{int(off.sum())} of {off.numel()} values are wrong, the first at {where if len(where) > 1 else where[0]}, "
        f"where yours is {answer[where].item():.4g}.",
        hint,
    )


def choice(answer: Any, right: str, hints: dict[str, str]) -> None:
    """Compare a letter or word; `hints` has a hint for each wrong option."""
    options = sorted([right, *hints])
    if not isinstance(answer, str) or answer.strip().lower() not in {option.lower() for option in options}:
        raise Wrong(f"The answer is one of {', '.join(map(repr, options))}.")
    answer = answer.strip().lower()
    if answer != right.lower():
        raise Wrong(next(hint for option, hint in hints.items() if option.lower() == answer))


def called(function: Any, *arguments: Any) -> Any:
    """Call the answer, a function. If it fails, raise Wrong with the line and the error."""
    if not callable(function):
        raise Wrong(
            f"The answer is a function; yours is a {type(function).__name__}. Give its name, without parentheses."
        )
    copies = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    try:
        given = function(*copies)
    except TypeError as error:
        try:
            inspect.signature(function).bind(*arguments)
        except (TypeError, ValueError):
            raise Wrong(f"Your function must take {len(arguments)} argument(s): {error}.") from None
        raise Wrong(_failure(error, arguments)) from None
    except Exception as error:
        raise Wrong(_failure(error, arguments)) from None
    if given is None:
        raise Wrong("Your function returns None. Is a `return` missing, or are the dots still there?")
    if given is ...:
        raise Wrong("The dots are still there: replace them with the result.")
    return given


def _failure(error: Exception, arguments: Sequence[Any]) -> str:
    line = traceback.extract_tb(error.__traceback__)[-1]
    shown = ", ".join(_shown(argument) for argument in arguments)
    return f"For ({shown}) your function fails at `{(line.line or line.name)[:80]}`: {_short(error)}."


def _shown(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"Tensor{tuple(argument.shape)}"
    text = repr(argument)
    return text if len(text) <= 40 else f"<{type(argument).__name__}>"


def _short(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:120]}".rstrip(": .")


def _close(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def _all_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _load(exercise: str) -> dict[str, Callable[[Any], str | None]]:
    """Import the checks of the notebook that the exercise belongs to, or the exam, and return all checks."""
    if exercise.startswith("exam."):
        importlib.import_module("exam")
    for path in sorted((Path(__file__).parent / "checks").glob(f"{exercise.split('.')[0]}_*.py")):
        importlib.import_module(f"checks.{path.stem}")
    return CHECKS
