"""Pairs of a prompt and a target made from tales, to fine-tune on: summaries, questions, and whether a tale is sound.

Whatever is asked follows from the tale alone, so every answer is right or wrong, and n pairs cost nothing to make.
"""

import json
import random
import re
from collections.abc import Iterator

from gpt import tales

QUESTION = "{tale}\nQuestion: {question}\nAnswer:"
SOUND_OR_FAULTY = "{tale}\nSound or faulty?"
FAULTS = ("name", "thing", "animal", "villain", "number")  # tables whose words a tale has to recall


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
    """An instruction and its answer: a tale with one of seven questions, and a few words of the tale, or a number."""
    asked, answer = rng.choice(list(answers(tale).items()))
    return QUESTION.format(tale=tale, question=asked), f" {answer}"


def answers(tale: str) -> dict[str, str]:
    """Each question that can be asked of a tale, and its answer."""
    hero, villain = (re.search(rf"\b({_any(name)})\b", tale)[1] for name in ("name", "villain"))
    thing = re.search(r"lost (?:his|her) (\w+ \w+)\.", tale)[1]
    friends = re.findall(r"(?:met|sat) an? (\w+)\.", tale)
    found = re.search(rf"(\w+ [\w ]+) (?:he|she) found \w+ {thing}|found \w+ {thing} ([\w ]+),", tale)
    return {
        "Who lost something?": f"{hero}.",
        "What was lost?": f"The {thing}.",
        "Who took it?": f"The {villain}.",
        "Who came along first?": f"The {friends[0]}.",
        "Who came along last?": f"The {friends[-1]}.",
        "How many friends came?": f"{tales.COUNT[len(friends) - 1].capitalize()}.",
        "Where was it found?": f"{(found[1] or found[2]).capitalize()}.",
    }


def verdict(tale: str, rng: random.Random) -> tuple[str, str]:
    """A text to be classified, and its class: a tale as it is, or with one word that should be another."""
    sound = rng.random() < 0.5
    return SOUND_OR_FAULTY.format(tale=tale if sound else spoil(tale, rng)), " sound" if sound else " faulty"


def spoil(tale: str, rng: random.Random) -> str:
    """A tale in which one word of a table of FAULTS, at its second place or later, is another of that table, so that
    the grammar refuses it."""
    while True:
        table = rng.choice(FAULTS)
        places = list(re.finditer(rf"\b(?:{_any(table)})\b", tale))[1:]
        if not places:
            continue
        place = rng.choice(places)
        other = rng.choice([entry[""] for entry in tales.TABLES[table].entries if entry[""] != place[0]])
        spoilt = tale[: place.start()] + other + tale[place.end() :]
        if tales.first_broken_rule(spoilt) is not None:
            return spoilt


def _any(table: str) -> str:
    return "|".join(entry[""] for entry in tales.TABLES[table].entries)


TASKS = {"summaries": summary, "questions": question, "verdicts": verdict}
