"""Pairs of a prompt and a target made from tales, for fine-tuning: summaries, questions, and classes.

The tale alone determines the target, so every answer is right or wrong.
"""

import json
import random
import re
from collections.abc import Iterator

from gpt.text import tales

QUESTION = "{tale}\nQuestion: {question}\nAnswer:"
CLASS = "{tale}\nWho came along first: a bird, a beast or neither?"
BIRDS = {"owl", "goose", "rooster", "duck", "raven", "dove", "hen", "turkey", "parrot"}
BEASTS = {"fox", "horse", "donkey", "cat", "bear", "wolf", "mouse", "pig", "sheep", "cow", "lion", "squirrel"}


def generate(kind: str, n: int, seed: int = 0) -> Iterator[str]:
    """Yield n pairs of a kind of TASKS, each a line of JSON with "prompt" and "target"; the seed determines them."""
    rng = random.Random(f"{kind}:{seed}")  # a string seed is the same on every machine
    for tale in tales.generate(n, seed):
        prompt, target = TASKS[kind](tale, rng)
        yield json.dumps({"prompt": prompt, "target": target}) + "\n"


def summary(tale: str, rng: random.Random) -> tuple[str, str]:
    """Return a tale and its summary."""
    return tale, f" {tales.summary(tale)}"


def question(tale: str, rng: random.Random) -> tuple[str, str]:
    """Return a tale with one of five questions, and the answer: a few words of the tale, or a number."""
    asked, answer = rng.choice(list(answers(tale).items()))
    return QUESTION.format(tale=tale, question=asked), f" {answer}"


def answers(tale: str) -> dict[str, str]:
    """Return each question about a tale with its answer."""
    hero, _, thing, villain, friends = tales.facts(tale)
    return {
        "Who lost something?": f"{hero}.",
        "What was lost?": f"The {thing}.",
        "Who took it?": f"The {villain}.",
        "Who came along first?": f"The {friends[0]}.",
        "How many friends came?": f"{tales.COUNT[len(friends) - 1].capitalize()}.",
    }


def harder_question(tale: str, rng: random.Random) -> tuple[str, str]:
    """Return a tale with one of seven questions, and the answer: those of `answers`, who came last, and where the thing
    was found."""
    first, last = re.search(r"\. (?:(\w+ [\w ]+) s?he|And \w+) found h\w+ \w+ \w+ ?([\w ]*), [\w ]+\.$", tale).groups()
    asked, answer = rng.choice(
        [
            *answers(tale).items(),
            ("Who came along last?", f"The {tales.facts(tale).friends[-1]}."),
            ("Where was it found?", f"{(first or last).capitalize()}."),
        ]
    )
    return QUESTION.format(tale=tale, question=asked), f" {answer}"


def kind(tale: str, rng: random.Random) -> tuple[str, str]:
    """Return a tale and its class: whether the first friend is a bird, a beast or neither.

    The set of animals in the tale does not determine the class, since others come along later.
    """
    first = tales.facts(tale).friends[0]
    return CLASS.format(tale=tale), " bird" if first in BIRDS else " beast" if first in BEASTS else " neither"


TASKS = {"summaries": summary, "questions": question, "questions7": harder_question, "kinds": kind}
