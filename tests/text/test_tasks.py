"""The pairs of gpt/text/tasks.py against tales written by hand, and against the tale read from its other end."""

import json
import random
import re
from collections import Counter

import pytest
from test_tales import ANNA, TOM

from gpt.text import tales, tasks
from gpt.text.sources import open_corpus

ANSWERS = {
    ANNA: ["Anna.", "The silver bell.", "The giant.", "The fox.", "Two."],
    TOM: ["Tom.", "The little drum.", "The witch.", "The bee.", "Three."],
}


@pytest.mark.parametrize("tale", [ANNA, TOM], ids=["Anna", "Tom"])
def test_answers_by_hand(tale):
    assert list(tasks.answers(tale).values()) == ANSWERS[tale]


def test_answers_agree_with_the_end_of_the_tale():
    """Whoever is thanked came along, in that order; the task's number says how many; what is found was lost."""
    for tale in tales.generate(2000, seed=4):
        found = tasks.answers(tale)
        thanked = re.search(r"thanked (the .*?)\. ", tale)
        friends = re.findall(r"the (\w+)", thanked[1]) if thanked else re.findall(r"Thank you, (\w+)!", tale)
        assert found["Who came along first?"] == f"The {friends[0]}."
        assert found["How many friends came?"].lower()[:-1] == re.search(r"(two|three) friends", tale)[1]
        thing = re.search(r"found (?:his|her) (\w+ \w+)", tale)[1]
        assert found["What was lost?"] == f"The {thing}."
        villain = re.search(r"of the (\w+)(?: at| towards| that| before|\.)|The (\w+) lived in a", tale)
        assert found["Who took it?"] == f"The {villain[1] or villain[2]}."
        assert found["Who lost something?"][:-1] in tale


def test_questions_are_drawn_evenly_and_answered():
    lines = [json.loads(line) for line in tasks.generate("questions", 3000, seed=2)]
    asked = Counter()
    for line, tale in zip(lines, tales.generate(3000, seed=2), strict=True):
        head, _, rest = line["prompt"].partition("\nQuestion: ")
        question = rest.removesuffix("\nAnswer:")
        assert head == tale
        assert line["target"] == f" {tasks.answers(tale)[question]}"
        asked[question] += 1
    assert len(asked) == 5
    assert max(asked.values()) < 1.3 * min(asked.values())


@pytest.mark.parametrize(
    ("end", "place"),
    [
        ("Behind old bones she found her silver bell, and all danced for joy.", "Behind old bones."),
        ("And Anna found her silver bell under the bed, and never lost it again.", "Under the bed."),
        ("Beside an anvil he found his little drum, and told the tale for years.", "Beside an anvil."),
    ],
)
def test_where_it_was_found_by_hand(end, place):
    tale = f"{ANNA[: ANNA.rindex('. ')]}. {end}"
    asked = dict(tasks.harder_question(tale, random.Random(seed)) for seed in range(60))
    by_question = {prompt.partition("Question: ")[2].partition("\n")[0]: answer for prompt, answer in asked.items()}
    assert len(by_question) == 7
    assert by_question["Where was it found?"] == f" {place}"
    friends = re.findall(r"(?:met|sat) an? (\w+)", tale)
    assert by_question["Who came along last?"] == f" The {friends[-1]}."
    assert by_question["Who came along first?"] == f" The {friends[0]}."


def test_every_tale_says_where_the_thing_was_found():
    places = {entry[""] for entry in tales.TABLES["hidden"].entries}
    found = Counter()
    for line in map(json.loads, tasks.generate("questions7", 3000, seed=5)):
        if "Where was it found?" in line["prompt"]:
            found[line["target"].strip(" .").lower()] += 1
            assert line["prompt"].lower().count(line["target"].strip(" .").lower()) == 1
    assert set(found) == places


def test_classes():
    lines = [json.loads(line) for line in tasks.generate("kinds", 3000)]
    animals = {entry[""] for entry in tales.TABLES["animal"].entries}
    assert tasks.BIRDS | tasks.BEASTS | {"bee", "frog", "cricket"} == animals
    assert not tasks.BIRDS & tasks.BEASTS
    counted = Counter(line["target"] for line in lines)
    for name, n in ((" bird", 9), (" beast", 12), (" neither", 3)):  # of 24 animals, all equally probable
        assert counted[name] / 3000 == pytest.approx(n / 24, abs=0.04)
    rng = random.Random(0)
    assert [tasks.kind(tale, rng)[1] for tale in (ANNA, TOM)] == [" beast", " neither"]
    assert tasks.kind(ANNA, rng)[0] == f"{ANNA}\nWho came along first: a bird, a beast or neither?"


@pytest.mark.parametrize("kind", tasks.TASKS)
def test_the_seed_determines_the_pairs(kind):
    one, again, other = (list(tasks.generate(kind, 20, seed)) for seed in (1, 1, 2))
    assert one == again
    assert not set(one) & set(other)
    corpus = open_corpus(f"{kind}:20:1")
    texts = ["".join(document) for document in corpus.documents()]
    assert texts == [text for line in map(json.loads, one) for text in (line["prompt"], line["target"])]
