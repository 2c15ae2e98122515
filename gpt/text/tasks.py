"""Pairs of a prompt and a target made from tales, to fine-tune on: summaries, questions, and classes.

Whatever is asked follows from the tale alone, so every answer is right or wrong, and n pairs cost nothing to make.
"""

import json
import random
from collections.abc import Iterator

from gpt.text import tales

QUESTION = "{tale}\nQuestion: {question}\nAnswer:"
CLASS = "{tale}\nWho came along first: a bird, a beast or neither?"
BIRDS = {"owl", "goose", "rooster", "duck", "raven", "dove", "hen", "turkey", "parrot"}
BEASTS = {"fox", "horse", "donkey", "cat", "bear", "wolf", "mouse", "pig", "sheep", "cow", "lion", "squirrel"}


def generate(kind: str, n: int, seed: int = 0) -> Iterator[str]:
    """n pairs of a kind of TASKS, each a line of JSON with "prompt" and "target"; the same seed makes the same."""
    rng = random.Random(f"{kind}:{seed}")  # a text of its own for each, the same on every machine
    for tale in tales.generate(n, seed):
        prompt, target = TASKS[kind](tale, rng)
        yield json.dumps({"prompt": prompt, "target": target}) + "\n"


def summary(tale: str, rng: random.Random) -> tuple[str, str]:
    """A tale, and what happens in it in short."""
    return tale, f" {tales.summary(tale)}"


def question(tale: str, rng: random.Random) -> tuple[str, str]:
    """An instruction and its answer: a tale with one of five questions, and a few words of the tale, or a number."""
    asked, answer = rng.choice(list(answers(tale).items()))
    return QUESTION.format(tale=tale, question=asked), f" {answer}"


def answers(tale: str) -> dict[str, str]:
    """Each question that can be asked of a tale, and its answer."""
    hero, _, thing, villain, friends = tales.facts(tale)
    return {
        "Who lost something?": f"{hero}.",
        "What was lost?": f"The {thing}.",
        "Who took it?": f"The {villain}.",
        "Who came along first?": f"The {friends[0]}.",
        "How many friends came?": f"{tales.COUNT[len(friends) - 1].capitalize()}.",
    }


def kind(tale: str, rng: random.Random) -> tuple[str, str]:
    """A text to be classified, and its class: a tale, and whether who came along first is a bird, a beast or neither.
    Which animals there are does not tell, since others come along after it."""
    first = tales.facts(tale).friends[0]
    return CLASS.format(tale=tale), " bird" if first in BIRDS else " beast" if first in BEASTS else " neither"


TASKS = {"summaries": summary, "questions": question, "kinds": kind}
