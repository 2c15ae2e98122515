"""Rewards: how good is what a model wrote after a prompt, by rules that can be checked.

    reward = find_reward("tales")
    reward.score(prompt, completion, answer)    # 1.0 if the text is a tale, else 0.0

A reward is called with the prompt, the completion without its end token, and the answer of the data, "" if there is
none.
"""

import importlib
import math
import re
import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import NamedTuple

from gpt.text import countdown, forms, requests, tales

USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)  # a message of a prompt in ChatML


class Reward(NamedTuple):
    """A rule by its name. Only some rules tell `kind` and `viable`."""

    name: str
    function: Callable[[str, str, str], float]
    kind: Callable[[str], str] | None = None  # of a completion, so that it can be compared with its like
    viable: Callable[[str, str, str], int] | None = None  # leading characters with which a right completion can begin

    def score(self, prompt: str, completion: str, answer: str = "") -> float:
        """Return the reward. ValueError, naming it, if the function raises or returns no finite number."""
        try:
            value = self.function(prompt, completion, answer)
            number = float(value) if isinstance(value, Real) else math.nan
        except Exception as error:  # a function of one's own may raise anything
            problem = f"raised {type(error).__name__} ({error})"
        else:
            if math.isfinite(number):
                return number
            problem = f"returned {value!r:.60}, which is no finite number,"
        raise ValueError(f"the reward {self.name!r} {problem} for the completion {completion[:60]!r}")


def is_tale(prompt: str, completion: str, answer: str = "") -> float:
    """Return 1.0 if the completion is a tale, or the end of one that the prompt begins, else 0.0."""
    return float(tales.log_probability(_begun(prompt) + completion) > -math.inf)


def viable_tale(prompt: str, completion: str, answer: str = "") -> int:
    """Return the number of leading characters of the completion with which some tale goes on."""
    begun = _begun(prompt)
    return max(0, tales.viable_prefix(begun + completion) - len(begun))


def _begun(prompt: str) -> str:
    """Return the prompt if a tale can begin with it, else ""."""
    return prompt if tales.viable_prefix(prompt) == len(prompt) else ""


def friends(tale: str) -> str:
    """Return how many friends a tale says are needed, "two" or "three"; "" if it does not say."""
    found = re.search(r"\b(?:Find|Take) (two|three) friends\b", tale)
    return found[1] if found else ""


def exact_match(prompt: str, completion: str, answer: str) -> float:
    """Return 1.0 if the completion is the answer, without white space around both, else 0.0."""
    return float(completion.strip() == answer.strip())


def viable_answer(prompt: str, completion: str, answer: str) -> int:
    """Return the number of leading characters that completion and answer have in common."""
    return next(
        (n for n, (a, b) in enumerate(zip(completion, answer, strict=False)) if a != b),
        min(len(completion), len(answer)),
    )


def keeps_request(prompt: str, completion: str, answer: str) -> float:
    """Return 1.0 for a tale with what the last message asks for, and for the answer to any other message, else 0.0."""
    try:
        constraints = requests.parse(_last_message(prompt))
    except ValueError:  # a question about the tale
        return exact_match(prompt, completion, answer)
    return float(requests.obeys(constraints, completion))


def viable_tale_asked_for(prompt: str, completion: str, answer: str) -> int:
    """Return the number of leading characters with which some completion that `keeps_request` goes on."""
    try:
        constraints = requests.parse(_last_message(prompt))
    except ValueError:
        return viable_answer(prompt, completion, answer)
    return requests.viable_prefix(constraints, completion)


def is_right(prompt: str, completion: str, answer: str = "") -> float:
    """Return 1.0 if the completion solves the puzzle of the last message, else 0.0. ValueError if that is none."""
    return float(countdown.is_right(_last_message(prompt), completion))


def fills_form(prompt: str, completion: str, answer: str = "") -> float:
    """Return 0.0 for a completion that is no record of gpt/text/forms.py, else a quarter, and one for each right value.

    ValueError if the last message asks for none.
    """
    wanted, found = forms.parse(_last_message(prompt)), forms.read(completion)
    return (1 + sum(found[key] == wanted[key] for key in wanted)) / 4 if found else 0.0


def _last_message(prompt: str) -> str:
    """Return the user's last message of a conversation in ChatML; another prompt is the message."""
    return (USER.findall(prompt) or [prompt.strip()])[-1]


REWARDS = {
    reward.name: reward
    for reward in (
        Reward("tales", is_tale, friends, viable_tale),
        Reward("exact_match", exact_match, viable=viable_answer),
        Reward("requests", keeps_request, friends, viable_tale_asked_for),
        Reward("countdown", is_right),
        Reward("forms", fills_form),
    )
}


def find_reward(name: str) -> Reward:
    """Return a reward of REWARDS, or the function of a module by "module:function", also of one in the working folder.
    ValueError if there is none."""
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"no reward {name!r}: it is {', '.join(REWARDS)}, or 'module:function' for one of your own")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs code, which may raise anything
        raise ValueError(f"the reward {name!r} cannot be found: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise ValueError(f"the reward {name!r} is no function, but of type {type(found).__name__}")
    return Reward(name, found)
