"""check("06.2", answer) says whether an answer to an exercise is right, and if not what is wrong with it: a hint, never
the answer. What each exercise asks is in its notebook; what its check looks at is in checks/, a file per notebook.

A check is a function of the answer that returns where it is right, and raises Wrong with a hint where it is not. The
functions below compare: `number`, `tensor`, `choice`, and `called` for answers that are functions. Each takes known
mistakes with the hint that goes with them, and says something useful about the others.
"""

import importlib
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHECKS: dict[str, Callable[[Any], None]] = {}  # by the number of the exercise, "06.2"


class Wrong(Exception):  # noqa: N818 - it is not an error
    """An answer that is not right; the message is the hint that its author reads."""


class GrammarReport:
    """What `check` gives back: true where the answer is right; a notebook shows its sentence."""

    def __init__(self, right: bool, sentence: str):
        self.right, self.sentence = right, sentence

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.sentence


def check(exercise: str, answer: Any = ...) -> GrammarReport:
    """Whether `answer` is right for the exercise of that number; else what is wrong. Never raises for an answer."""
    if exercise not in _load(exercise):
        raise ValueError(
            f"there is no exercise {exercise!r}: it is the notebook's number, a dot, the exercise's: '06.2'"
        )
    if answer is ... or answer is None:
        return GrammarReport(False, f"{exercise}: not answered yet. Put your answer in place of the dots.")
    try:
        CHECKS[exercise](answer)
    except Wrong as hint:
        return GrammarReport(False, f"{exercise}: not yet. {hint}")
    except Exception as error:  # an answer of a kind that no check expects
        kind = type(answer).__name__
        return GrammarReport(False, f"{exercise}: not yet. A {kind} like yours cannot be compared ({_short(error)}).")
    return GrammarReport(True, f"{exercise}: right.")


def exercise(number: str) -> Callable:
    """Registers the check of the exercise of that number."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        CHECKS[number] = function
        return function

    return register


Mistakes = Sequence[tuple[Any, str]]  # what a known mistake gives, and the hint that goes with it


def number(answer: Any, right: float, mistakes: Mistakes = (), hint: str = "", tolerance: float = 1e-3) -> None:
    """One number, within a relative `tolerance`. `hint` is for what no known mistake explains."""
    if isinstance(answer, bool | str) or callable(answer):
        raise Wrong(f"One number is asked for, and yours is a {type(answer).__name__}.")
    if isinstance(answer, Tensor) or hasattr(answer, "shape"):
        answer = torch.as_tensor(answer)
        if answer.numel() != 1:
            raise Wrong(f"One number is asked for, and yours has the shape {tuple(answer.shape)}.")
    try:
        answer = float(answer)
    except (TypeError, ValueError):
        raise Wrong(f"One number is asked for, and yours is a {type(answer).__name__}.") from None
    if math.isnan(answer):
        raise Wrong("It is NaN: somewhere 0 is multiplied by infinity, or a negative number has been given to log.")
    hint = f" {hint}" if hint else ""
    if _close(answer, right, tolerance):
        return
    for wrong, its_hint in mistakes:
        if _close(answer, wrong, tolerance):
            raise Wrong(its_hint)
    if right and _close(answer, -right, tolerance):
        raise Wrong("Only the sign is the wrong way round.")
    for factor, its_hint in (
        (
            1 / math.log(2),
            "It looks like bits where nats are asked for (or the square of a conversion): mind the unit.",
        ),
        (math.log(2), "It looks like nats where bits are asked for: mind the unit."),
        (100, "It is a hundred times too large: a share between 0 and 1 is asked for, not percent."),
        (0.01, "It is a hundred times too small: is percent asked for?"),
    ):
        if right and _close(answer, right * factor, tolerance):
            raise Wrong(its_hint)
    if _close(answer, right, 30 * tolerance):
        raise Wrong("Very near, but not near enough: do not round on the way." + hint)
    size = "large" if answer > right else "small"
    raise Wrong(f"Yours is too {size}." + hint)


def tensor(answer: Any, right: Tensor, mistakes: Mistakes = (), hint: str = "", tolerance: float = 1e-4) -> None:
    """Numbers of a given shape, each within `tolerance`, relative or absolute; lists and arrays will do. A known
    mistake may have another shape."""
    try:
        answer = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"A tensor is asked for (or a list of numbers), and yours is a {type(answer).__name__}.") from None
    answer, right = answer.detach().double(), right.detach().double()
    if answer.shape == right.shape and _all_close(answer, right, tolerance):
        return
    for wrong, its_hint in mistakes:
        wrong = torch.as_tensor(wrong)
        if wrong.shape == answer.shape and _all_close(answer, wrong.double(), tolerance):
            raise Wrong(its_hint)
    if answer.shape != right.shape:
        raise Wrong(f"The shape {tuple(right.shape)} is asked for, and yours is {tuple(answer.shape)}.")
    if answer.isnan().any() and not right.isnan().any():
        where = tuple(answer.isnan().nonzero()[0].tolist())
        raise Wrong(f"At {where} it is NaN: infinity minus infinity, 0 / 0, or the logarithm of something negative.")
    hint = f" {hint}" if hint else ""
    off = ~torch.isclose(answer, right, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not right.dim():
        raise Wrong("Yours is another number." + hint)
    if off.all():
        raise Wrong(f"The shape is right, and none of the {off.numel()} values is." + hint)
    where = tuple(off.nonzero()[0].tolist())
    raise Wrong(
        f"{int(off.sum())} of {off.numel()} values are off, the first at {where if len(where) > 1 else where[0]}, "
        f"where yours is {answer[where].item():.4g}." + hint
    )


def choice(answer: Any, right: str, hints: dict[str, str]) -> None:
    """One of several letters or words; `hints` has a hint for each of those that are wrong."""
    options = sorted([right, *hints])
    if not isinstance(answer, str) or answer.strip().lower() not in {option.lower() for option in options}:
        raise Wrong(f"One of {', '.join(map(repr, options))} is asked for.")
    answer = answer.strip().lower()
    if answer != right.lower():
        raise Wrong(next(hint for option, hint in hints.items() if option.lower() == answer))


def called(function: Any, *arguments: Any) -> Any:
    """What the answer, a function, gives for these arguments; where it fails, Wrong names the line and the error."""
    if not callable(function):
        raise Wrong(
            f"A function is asked for, and yours is a {type(function).__name__}: give its name, without brackets."
        )
    copies = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    try:
        given = function(*copies)
    except TypeError as error:
        try:
            inspect.signature(function).bind(*arguments)
        except (TypeError, ValueError):
            raise Wrong(f"Your function has to take {len(arguments)} argument(s): {error}.") from None
        raise Wrong(_failure(error, arguments)) from None
    except Exception as error:
        raise Wrong(_failure(error, arguments)) from None
    if given is None:
        raise Wrong("Your function gives None: is a `return` missing, or are the dots still there?")
    if given is ...:
        raise Wrong("The dots are still there: put what the function returns in their place.")
    return given


def _failure(error: Exception, arguments: Sequence[Any]) -> str:
    line = traceback.extract_tb(error.__traceback__)[-1]
    shown = ", ".join(_shown(argument) for argument in arguments)
    return f"For ({shown}) your function fails in `{(line.line or line.name)[:80]}`: {_short(error)}."


def _shown(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"a tensor of shape {tuple(argument.shape)}"
    text = repr(argument)
    return text if len(text) <= 40 else f"a {type(argument).__name__}"


def _short(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:120]}".rstrip(": .")


def _close(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def _all_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _load(exercise: str) -> dict[str, Callable[[Any], None]]:
    """The checks, with those of the exercise's notebook among them."""
    for path in sorted((Path(__file__).parent / "checks").glob(f"{exercise.split('.')[0]}_*.py")):
        importlib.import_module(f"checks.{path.stem}")
    return CHECKS
