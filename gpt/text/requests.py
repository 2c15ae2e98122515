"""Conversations about tales: a user asks for one with some things in it, gets it, and asks about it.

    generate(1, seed=0)                    # a line of JSON: {"messages": [{"role": "user", "content": ...}, ...]}
    parse("Tell me a tale about Mina.")    # {"hero": "Mina"}: what it asks for
    obeys({"hero": "Mina"}, tale)          # whether the text is a tale, and about Mina

The tale is drawn first. The request then names one to four of its parts, chosen without looking at the tale. So given
the request, each tale that obeys it has the probability p(tale) / (sum of p over all tales that obey): the tales'
grammar, renormalised. No tale is written that is thrown away.

Requests come from a grammar of their own, whose variables are those of the tales: reading a request gives back what it
asks for, exactly.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache

from gpt.text import tales, tasks
from gpt.text.grammar import UNKNOWN, Grammar

CONSTRAINTS = ("hero", "thing", "trial", "times", "villain", "friends")  # variables of the tales' grammar
SHARES = {1: 10, 2: 4, 3: 3, 4: 4}  # number of constraints -> weight of a choice: C(6, k) times it is 60 for each
RULES = """
request:
  4x {ask} a tale {about}.
  2x {can} a tale {about}?
  3x {ask} a tale: {list}.
  3x {ask} a tale. {sentences}

ask:
  Tell me
  Please tell me
  Write
  Give me
  I want

can:
  Will you tell me
  Can you write
  Do you know
"""


@cache
def grammar() -> Grammar:
    """Return the grammar of the requests."""
    return Grammar(_rules(), tales.TABLES, "request")


@cache
def fingerprint() -> str:
    """Return eight hexadecimal digits that change with any rule of the requests or of the tales."""
    return hashlib.sha256(repr((_rules(), tales.RULES, tales.TABLES)).encode()).hexdigest()[:8]


def _rules() -> str:
    """Return RULES with a line, or two, for each choice of constraints in each of three manners."""
    choices = [set(c) for k in SHARES for c in itertools.combinations(CONSTRAINTS, k)]
    rules = RULES
    for name, manner in (("about", _about), ("list", _list), ("sentences", _sentences)):
        rules += f"\n{name}:\n"
        for chosen in choices:
            lines = dict.fromkeys(manner(chosen))  # its own reverse, if one thing is listed
            rules += "".join(f"  {SHARES[len(chosen)] * 2 // len(lines)}x {line}\n" for line in lines)
    return rules


def _about(chosen: set[str]) -> list[str]:
    """Return one sentence: about Mina, who lost a red hat and knocked at the gate, with two friends and a giant."""
    times = " {times=number} times" if "times" in chosen else ""
    deeds = ["lost {thing=thing.a}"] if "thing" in chosen else []
    deeds += [("{trial=trial.did}" if "trial" in chosen else "tried") + times] if chosen & {"trial", "times"} else []
    company = ["{friends=few} friends"] if "friends" in chosen else []
    company += ["{villain=villain.a}"] if "villain" in chosen else []
    with_them = [" and ".join(company), " and ".join(reversed(company))]
    if not deeds and "hero" not in chosen:
        return [f"with {them}" for them in with_them]
    comma = "," if "hero" in chosen and deeds else ""
    who = "about " + ("{hero=name}" if "hero" in chosen else "a child")
    who += f"{comma} who {' and '.join(deeds)}" if deeds else ""
    return [f"{who}{comma} with {them}" if company else who for them in with_them]


def _list(chosen: set[str]) -> list[str]:
    """Return a list: Mina, a red hat, knock at the gate, three times, a giant, two friends."""
    forms = {"thing": "{thing=thing.a}", "times": "{times=number} times", "friends": "{friends=few} friends"}
    forms |= {"hero": "{hero=name}", "trial": "{trial=trial}", "villain": "{villain=villain.a}"}
    listed = [forms[name] for name in CONSTRAINTS if name in chosen]
    return [", ".join(listed), ", ".join(reversed(listed))]


def _sentences(chosen: set[str]) -> list[str]:
    """Return sentences: Mina lost a red hat. The child knocked at the gate. The giant took it. Two friends came too."""
    said = []
    if "thing" in chosen:
        said.append(("{hero=name}" if "hero" in chosen else "The child") + " lost {thing=thing.a}.")
    elif "hero" in chosen:
        said.append("The child is named {hero=name}.")
    if chosen & {"trial", "times"}:
        trial = "{trial=trial.did}" if "trial" in chosen else "tried"
        said.append(f"The child {trial}{' {times=number} times' if 'times' in chosen else ''}.")
    said += ["The {villain=villain} took it."] if "villain" in chosen else []
    said += ["{friends=Few} friends came too."] if "friends" in chosen else []
    return [" ".join(said), " ".join(reversed(said))]


# --- conversations ----------------------------------------------------------------------------------------------------


def generate(n: int, seed: int = 0, follow_ups: int = 2) -> Iterator[str]:
    """Yield n conversations, each a line of JSON with "messages"; the seed determines them."""
    for messages in itertools.islice(conversations(f"requests:{seed}", follow_ups), n):
        yield json.dumps({"messages": messages}) + "\n"


def conversations(seed: str, follow_ups: int = 2) -> Iterator[list[dict[str, str]]]:
    """Yield conversations without end; the seed determines them."""
    uniform = random.Random(seed).random  # a string seed is the same on every machine
    while True:
        yield conversation(lambda options: int(uniform() * options), follow_ups)


def conversation(choose: Callable[[int], int], follow_ups: int = 2) -> list[dict[str, str]]:
    """Return the messages that `choose` determines (see `Grammar.write`): request, tale, and up to `follow_ups` of the
    questions of gpt/text/tasks.py with their answers, each number as often."""
    tale, memory = tales.grammar().compose(choose)
    request, _ = grammar().compose(choose, given=memory)
    contents, questions = [request, tale], list(tasks.answers(tale).items())
    for _ in range(choose(1 + follow_ups)):
        contents += questions.pop(choose(len(questions)))
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


# --- checks -----------------------------------------------------------------------------------------------------------


def parse(request: str) -> dict[str, str]:
    """Return the constraints of a request: names of CONSTRAINTS and the words that the tale must have for them.

    ValueError if no request of this grammar reads like that.
    """
    for derivation in grammar().derivations(request):
        return derivation.memory
    raise ValueError(f"{request[:60]!r} is no request for a tale, as 'Tell me a tale about Mina with two friends.' is")


def kinds_of_failure(constraints: Mapping[str, str], tale: str) -> list[str]:
    """Return the names of the constraints that a tale does not keep; ["grammar: RULE"] for a text that is no tale."""
    for derivation in tales.grammar().derivations(tale, strict=False):
        if derivation.broken:
            return [f"grammar: {derivation.broken[0][1]}"]
        return [name for name, word in constraints.items() if derivation.memory[name] != word]
    return [f"grammar: {UNKNOWN}"]


def viable_prefix(constraints: Mapping[str, str], text: str) -> int:
    """Return the number of leading characters of a text with which some tale that keeps all constraints begins."""
    return _tales_that_keep(frozenset(constraints.items())).viable_prefix(text)


@lru_cache(maxsize=64)
def _tales_that_keep(constraints: frozenset[tuple[str, str]]) -> Grammar:
    return tales.grammar().given(dict(constraints))


def obeys(constraints: Mapping[str, str], tale: str) -> bool:
    """Return whether the text is a tale and keeps all constraints."""
    return not kinds_of_failure(constraints, tale)
