"""gpt/text/requests.py: requests read by regular expressions, tales given requests against enumeration in fractions."""

import json
import math
import random
import re
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_grammar import beginnings, cut_down, odometer, viable_by_hand
from test_tales import ANNA, TOM, WRONG

from gpt.text import requests, tales, tasks
from gpt.text.grammar import Grammar
from gpt.text.sources import open_corpus

ANNAS = {"hero": "Anna", "thing": "silver bell", "trial": "knock at the gate", "times": "three", "villain": "giant"}
ANNAS |= {"friends": "two"}


@pytest.fixture(scope="module")
def sampled():
    return [json.loads(line)["messages"] for line in requests.generate(3000, seed=4)]


# --- requests ---------------------------------------------------------------------------------------------------------


def read_by_hand(request):
    """What a request asks for, found by the words of each table."""
    found = {}
    for name, table in (("hero", "name"), ("villain", "villain"), ("thing", "thing"), ("trial", "trial")):
        for entry in tales.TABLES[table].entries:
            forms = {entry[""], entry["did"]} if name == "trial" else {entry[""]}
            if re.search(rf"\b({'|'.join(forms)})\b", request):
                assert name not in found
                found[name] = entry[""]
    for name, word in (("friends", "friends"), ("times", "times")):
        if number := re.search(rf"(\w+) {word}\b", request):
            found[name] = number[1].lower()
    return found


def test_what_is_read_is_what_is_asked_for(sampled):
    """Thousands of requests, each with one derivation; one to four constraints, as often; each of them as often."""
    shapes, numbers, names = Counter(), Counter(), Counter()
    for request, *_ in sampled:
        request = request["content"]
        constraints = requests.parse(request)
        assert constraints == read_by_hand(request)
        assert len(list(requests.grammar().derivations(request))) == 1
        numbers[len(constraints)] += 1
        names.update([*constraints])
        shapes[re.sub("|".join(filter(None, constraints.values())), "_", request)] += 1
    assert set(numbers) == {1, 2, 3, 4} and max(numbers.values()) < 1.2 * min(numbers.values())
    assert set(names) == set(requests.CONSTRAINTS) and max(names.values()) < 1.2 * min(names.values())
    assert len(shapes) > 100


def test_requests_by_hand():
    assert requests.parse("Tell me a tale about Mina, who lost a red hat and tried three times, with an ogre.") == {
        "hero": "Mina", "thing": "red hat", "times": "three", "villain": "ogre",
    }  # fmt: skip
    assert requests.parse("Will you tell me a tale with a giant and two friends?") == {
        "villain": "giant", "friends": "two",
    }  # fmt: skip
    assert requests.parse("Write a tale: Tom.") == {"hero": "Tom"}
    assert requests.parse("I want a tale. Two friends came too. Ida lost an old key.") == {
        "friends": "two", "hero": "Ida", "thing": "old key",
    }  # fmt: skip


@given(st.text() | st.sampled_from([*tasks.answers(ANNA), ANNA, "Tell me a tale.", "Tell me a tale about Mina"]))
def test_other_texts_are_no_requests(text):
    with pytest.raises(ValueError, match="is no request for a tale"):
        requests.parse(text)


def test_a_changed_request_is_none_or_asks_for_something_else(sampled):
    rng = random.Random(1)
    for request, *_ in sampled[:300]:
        request = request["content"]
        words = request.split(" ")
        i, j = rng.sample(range(len(words)), 2)
        for changed in (" ".join(words[:i] + words[i + 1 :]), request + " ", f"{request} {words[j]}", request[:-1]):
            try:
                found = requests.parse(changed)
            except ValueError:
                continue
            assert found == read_by_hand(changed)


# --- tales given requests ---------------------------------------------------------------------------------------------

ASKED = """
request:
  A tale with {friends=few} friends and {times=number} times.
  2x A tale with {friends=few} friends.
  {hero=name}!
  The {villain=villain}: {hero=name}, {thing=thing}.
"""


@pytest.mark.parametrize("seed", [1, 3])
def test_a_tale_given_its_request_has_the_grammars_renormalised_probability(seed, monkeypatch):
    """All conversations of small grammars: p(tale | request) = p(tale) / sum of p over the tales that obey, exactly."""
    small = cut_down(seed)
    asked = Grammar(ASKED, small.tables, "request")
    monkeypatch.setattr(tales, "grammar", lambda: small)
    monkeypatch.setattr(requests, "grammar", lambda: asked)
    monkeypatch.setattr(tasks, "answers", lambda tale: {"Who?": "He.", "What?": "It."})
    joint, alone = defaultdict(Fraction), defaultdict(Fraction)
    for messages, p in odometer(requests.conversation):
        joint[messages[0]["content"], messages[1]["content"]] += p
        alone[messages[1]["content"]] += p
    assert sum(joint.values()) == 1 and len(alone) == small.size() > 100
    for tale, p in alone.items():  # asking does not change which tales there are
        assert float(p) == pytest.approx(math.exp(small.log_probability(tale)), rel=1e-12)
    for request in {request for request, _ in joint}:
        constraints = requests.parse(request)
        kept = [tale for tale in alone if requests.obeys(constraints, tale)]
        assert {tale for asked_for, tale in joint if asked_for == request} == set(kept)
        share, total = sum(joint[request, tale] for tale in kept), sum(alone[tale] for tale in kept)
        assert all(joint[request, tale] / share == alone[tale] / total for tale in kept)


@pytest.mark.parametrize("seed", [1, 3])
def test_viable_beginnings_agree_with_enumeration(seed, monkeypatch):
    """The longest beginning that a text has in common with a tale that keeps the constraints."""
    small, rng = cut_down(seed), random.Random(seed)
    monkeypatch.setattr(tales, "grammar", lambda: small)
    requests._tales_that_keep.cache_clear()
    memories = {text: memory for (text, memory), _ in odometer(small.compose)}
    texts = sorted(memories)
    for _ in range(6):
        memory = memories[rng.choice(texts)]
        constraints = {name: memory[name] for name in rng.sample(requests.CONSTRAINTS, rng.randint(1, 4))}
        kept = [text for text in texts if requests.obeys(constraints, text)]
        viable = beginnings(kept)
        for text in rng.sample(texts, 20):
            for changed in (text, text[:99] + "#" + text[99:]):
                assert requests.viable_prefix(constraints, changed) == viable_by_hand(changed, viable)
    requests._tales_that_keep.cache_clear()


def test_what_is_not_asked_for_stays_free(sampled):
    """Chi-square of the villain where another thing is asked for: below the 0.9999 quantile for 11 degrees, 37.4."""
    counts = Counter(
        tales.facts(tale["content"]).villain
        for request, tale, *_ in sampled
        if "villain" not in requests.parse(request["content"])
    )
    mean = sum(counts.values()) / 12
    assert len(counts) == 12 and sum((n - mean) ** 2 / mean for n in counts.values()) < 37.4


def test_conversations_obey_and_answer(sampled):
    lengths = Counter()
    for messages in sampled:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        request, tale, *rest = (message["content"] for message in messages)
        assert requests.kinds_of_failure(requests.parse(request), tale) == []
        answers = tasks.answers(tale)
        assert [answers[question] for question in rest[::2]] == rest[1::2]
        assert len(set(rest[::2])) == len(rest) // 2
        lengths[len(rest) // 2] += 1
    for n in range(3):
        assert lengths[n] / len(sampled) == pytest.approx(1 / 3, abs=0.035)


def test_the_seed_determines_the_conversations():
    one = list(requests.generate(20, seed=1))
    assert one == list(requests.generate(20, seed=1)) == list(requests.generate(30, seed=1))[:20]
    assert not set(one) & set(requests.generate(20, seed=2))
    alone = [json.loads(line)["messages"] for line in open_corpus("single-requests:20:1").paths[0].open()]
    for request, tale in alone:
        assert requests.obeys(requests.parse(request["content"]), tale["content"])
    corpus = open_corpus("requests:20:1")
    assert corpus.name == f"requests:20:1 of grammar {requests.fingerprint()}"
    assert corpus.paths[0].read_text().splitlines(keepends=True) == one


# --- failures ---------------------------------------------------------------------------------------------------------


def test_each_failure_is_named():
    assert requests.obeys(ANNAS, ANNA) and requests.obeys({}, TOM)
    others = {"hero": "Tom", "thing": "silver key", "trial": "clap before the cave", "times": "two", "villain": "ogre"}
    for name, other in (others | {"friends": "three"}).items():
        assert requests.kinds_of_failure(ANNAS | {name: other}, ANNA) == [name]
    assert requests.kinds_of_failure(ANNAS, TOM) == list(ANNAS)
    for tale, said, wrong, rule in WRONG:
        changed = tale.replace(said, wrong)
        assert requests.kinds_of_failure(ANNAS, changed) == [f"grammar: {rule}"]
        assert not requests.obeys({}, changed)


def test_any_other_request_or_tale_changes_the_fingerprint(monkeypatch):
    found = {requests.fingerprint.__wrapped__()}
    with monkeypatch.context() as patch:
        patch.setattr(requests, "RULES", requests.RULES.replace("Write", "Make"))
        found.add(requests.fingerprint.__wrapped__())
    monkeypatch.setattr(tales, "RULES", tales.RULES + "\n  Amen.")
    assert len(found | {requests.fingerprint.__wrapped__()}) == 3
