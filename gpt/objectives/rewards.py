"""Rewards: how good is what a model wrote after a prompt, by rules that can be checked.

    reward = find_reward("tales")
    score(reward, "tales", prompt, completion, answer)    # 1.0 if the text is a tale, else 0.0

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

from gpt.text import countdown, requests, tales

Reward = Callable[[str, str, str], float]
USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)  # a message of a prompt in ChatML


def is_tale(prompt: str, completion: str, answer: str = "") -> float:
    """Return 1.0 if the completion is a tale, or the end of one that the prompt begins, else 0.0."""
    begun = tales.viable_prefix(prompt) == len(prompt)
    return float(tales.log_probability(prompt + completion if begun else completion) > -math.inf)


def exact_match(prompt: str, completion: str, answer: str) -> float:
    """Return 1.0 if the completion is the answer, without white space around both, else 0.0."""
    return float(completion.strip() == answer.strip())


def keeps_request(prompt: str, completion: str, answer: str) -> float:
    """Return 1.0 for a tale with what the last message asks for, and for the answer to any other message, else 0.0."""
    try:
        constraints = requests.parse(_last_message(prompt))
    except ValueError:  # a question about the tale
        return exact_match(prompt, completion, answer)
    return float(requests.obeys(constraints, completion))


def is_right(prompt: str, completion: str, answer: str = "") -> float:
    """Return 1.0 if the completion solves the puzzle of the last message, else 0.0. ValueError if that is none."""
    return float(countdown.is_right(_last_message(prompt), completion))


def _last_message(prompt: str) -> str:
    """Return the user's last message of a conversation in ChatML; another prompt is the message."""
    return (USER.findall(prompt) or [prompt.strip()])[-1]


REWARDS: dict[str, Reward] = {
    "tales": is_tale,
    "exact_match": exact_match,
    "requests": keeps_request,
    "countdown": is_right,
}


def find_reward(name: str) -> Reward:
    """Return a reward of REWARDS, or the function of a module, by "module:function"; modules are looked for in the
    working folder, too. ValueError if there is none."""
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
    return found


def score(reward: Reward, name: str, prompt: str, completion: str, answer: str = "") -> float:
    """Return reward(prompt, completion, answer). ValueError, naming the reward, if it raises or is no finite number."""
    try:
        value = reward(prompt, completion, answer)
        number = float(value) if isinstance(value, Real) else math.nan
    except Exception as error:  # a reward of one's own may raise anything
        problem = f"raised {type(error).__name__} ({error})"
    else:
        if math.isfinite(number):
            return number
        problem = f"returned {value!r:.60}, which is no finite number,"
    raise ValueError(f"the reward {name!r} {problem} for the completion {completion[:60]!r}")


# --- tales: what they are like, and where they go wrong ---------------------------------------------------------------


def kind(text: str) -> str:
    """Return how many friends a tale says are needed, "two" or "three", to group texts by; "" if it does not say."""
    found = re.search(r"\b(?:Find|Take) (two|three) friends\b", text)
    return found[1] if found else ""


def first_error(text: str) -> int:
    """Return the number of leading characters with which a tale can begin; len(text) if all of the text can."""
    return tales.viable_prefix(text)
