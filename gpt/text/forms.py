"""Records in a fixed form: a sentence about a person, whose name, date and place are wanted as one line of JSON.

    generate(1, seed=0)            # a line of JSON: {"messages": [{"role": "user", "content": ...}, {...}]}
    preferences(1, seed=0)         # a line with "prompt", "chosen" and "rejected"
    parse(prompt)                  # {"name": "Clara Weber", "date": "1998-05-03", "place": "Lisbon"}
    is_right(prompt, completion)   # whether the completion is this record

A date is written in one of four ways, so that a model has to learn a rule; name and place are copied. Names, places and
dates are for training or for testing: no sentence for testing shares any of them with training.
"""

import datetime
import json
import random
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

KEYS = ("name", "date", "place")
PROMPT = "Write name, date and place as one line of JSON: {sentence}"
SENTENCES = (
    "{name} was born in {place} on {date}.",
    "{name} left {place} on {date}.",
    "On {date} {name} was married in {place}.",
    "On {date}, {name} opened a bakery in {place}.",
    "In {place} {name} won a race on {date}.",
    "It was in {place} that {name} was last seen, on {date}.",
    "The letter that {name} wrote in {place} is dated {date}.",
)
DATES = (
    "the {ordinal} of {month} {year}",  # the third of May 1998
    "the {day}{ending} of {month} {year}",
    "{month} {day}, {year}",
    "{day} {month} {year}",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
UNITS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
ORDINALS = (
    *UNITS, "tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth", *(f"twenty-{unit}" for unit in UNITS), "thirtieth", "thirty-first",
)  # fmt: skip
NAMES = (
    "Ada Amir Anna Aron Bela Bruno Clara Dario Dora Elias Emma Erik Flora Frida Georg Hanna Hugo Ines Ivan Jana Jonas "
    "Karin Klaus Lea Leo Lina Luca Maja Marco Mila Nora Olga Oskar Paula Rosa Samir Simon Tara Viktor Yara"
)
SURNAMES = (
    "Abel Adler Banks Bauer Berg Blanc Brandt Carter Costa Diaz Engel Falk Fischer Garcia Haas Horvat Ito Jansen "
    "Keller Kim Koch Lang Lopez Marin Meyer Moreau Nagy Novak Okafor Park Petrov Reyes Rossi Sato Silva Stein Toth "
    "Vogel Weber Wolf"
)
PLACES = (
    "Accra Athens Basel Bergen Berlin Bogota Boston Cairo Chicago Dakar Delhi Dublin Geneva Graz Hamburg Hanoi "
    "Houston Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid Miami Milan Nairobi Osaka Oslo Paris Prague Quito Rome "
    "Seoul Sofia Tunis Turin Vienna Warsaw"
)
DAYS = range(datetime.date(1900, 1, 1).toordinal(), datetime.date(2025, 1, 1).toordinal())
TEST_SHARE = 5  # one name, surname, place and date in five is for testing


# --- sentences --------------------------------------------------------------------------------------------------------


def generate(n: int, seed: int = 0, test: bool = False) -> Iterator[str]:
    """Yield n conversations, each a line of JSON with "messages"; the seed determines them.

    With `test` their names, places and dates are none that training ever has.
    """
    rng = random.Random(f"forms:{seed}:{test}")  # a string seed is the same on every machine
    for _ in range(n):
        prompt, record, _ = _draw(rng, test)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": json.dumps(record)}]
        yield json.dumps({"messages": messages}) + "\n"


def preferences(n: int, seed: int = 0) -> Iterator[str]:
    """Yield n lines of JSON with "prompt", "chosen" and "rejected"; the seed determines them.

    A rejected answer is one that a model writes before it knows the form, or, three times in four, the right form with
    one wrong value. Names, places and dates are those for training.
    """
    rng = random.Random(f"forms-preferences:{seed}")
    for _ in range(n):
        prompt, record, written = _draw(rng, test=False)
        wrong = record
        while wrong == record:
            wrong = _mistaken(rng, record)
        rejected = json.dumps(wrong)
        if rng.randrange(4) == 0:  # what SmolLM2 writes
            free = {"name": record["name"], "date": written, rng.choice(("place", "location")): record["place"]}
            rejected = rng.choice((json.dumps(free, indent=2), json.dumps(free), prompt.partition(": ")[2]))
        yield json.dumps({"prompt": prompt, "chosen": json.dumps(record), "rejected": rejected}) + "\n"


def _draw(rng: random.Random, test: bool) -> tuple[str, dict[str, str], str]:
    """Return a prompt, its record, and the date as the prompt writes it."""
    name, place = f"{_choose(rng, NAMES, test)} {_choose(rng, SURNAMES, test)}", _choose(rng, PLACES, test)
    date = datetime.date.fromordinal(int(_choose(rng, DAYS, test)))
    ending = "th" if date.day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
    written = rng.choice(DATES).format(
        ordinal=ORDINALS[date.day - 1],
        day=date.day,
        ending=ending,
        month=MONTHS[date.month - 1],
        year=date.year,
    )
    sentence = rng.choice(SENTENCES).format(name=name, place=place, date=written)
    return PROMPT.format(sentence=sentence), {"name": name, "date": date.isoformat(), "place": place}, written


def _choose(rng: random.Random, items: str | range, test: bool) -> str:
    """Return one of the words of a text, or a number, from those for testing or from those for training."""
    items = items.split() if isinstance(items, str) else items
    while ((i := rng.randrange(len(items))) % TEST_SHARE == 0) != test:
        pass
    return str(items[i])


def _mistaken(rng: random.Random, record: dict[str, str]) -> dict[str, str]:
    """Return a record with one value that is perhaps wrong: mostly the day, which a model has to know, not to copy."""
    year, month, day = record["date"].split("-")
    wrong = [{"date": f"{year}-{month}-{rng.randint(1, 31):02}"}] * 4
    wrong += [{"date": f"{year}-{rng.randint(1, 12):02}-{day}"}, {"date": f"{rng.randint(1900, 2024)}-{month}-{day}"}]
    wrong += [{"name": f"{_choose(rng, NAMES, False)} {record['name'].split()[1]}"}]
    wrong += [{"place": _choose(rng, PLACES, False)}]
    return record | rng.choice(wrong)


# --- checks -----------------------------------------------------------------------------------------------------------


def parse(prompt: str) -> dict[str, str]:
    """Return the record that a prompt asks for. ValueError if it is none of PROMPT with a sentence of SENTENCES."""
    for pattern in _patterns():
        if found := pattern.fullmatch(prompt.strip()):
            parts = found.groupdict()
            ordinal = parts.get("ordinal")
            day = ORDINALS.index(ordinal) + 1 if ordinal else int(parts["day"])
            with suppress(ValueError):  # no such day
                date = datetime.date(int(parts["year"]), MONTHS.index(parts["month"]) + 1, day)
                return {"name": parts["name"], "date": date.isoformat(), "place": parts["place"]}
    example = PROMPT.format(sentence="Clara Weber left Lisbon on the third of May 1998.")
    raise ValueError(f"{prompt[:60]!r} asks for no record, as {example!r} does")


@cache
def _patterns() -> list[re.Pattern[str]]:
    """Return a pattern for each of SENTENCES with each of DATES, within PROMPT."""
    groups = {
        "name": r"[^\W\d_]+ [^\W\d_]+",
        "place": r"[^\W\d_]+",
        "ordinal": "|".join(ORDINALS),
        "day": "[0-9]{1,2}",
        "month": "|".join(MONTHS),
        "year": "[0-9]{4}",
    }
    groups = {key: f"(?P<{key}>{pattern})" for key, pattern in groups.items()} | {"ending": "(?:st|nd|rd|th)"}
    templates = (PROMPT.format(sentence=s.replace("{date}", date)) for s in SENTENCES for date in DATES)
    return [re.compile(re.escape(t).replace(r"\{", "{").replace(r"\}", "}").format(**groups)) for t in templates]


def read(completion: str) -> dict[str, str] | None:
    """Return the record of a completion, or None: one line of JSON with KEYS and no others, in any order, each once,
    texts, the date as YYYY-MM-DD."""
    try:
        found = json.loads(completion, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != set(KEYS) or "\n" in completion.strip():
        return None
    if not all(isinstance(value, str) for value in found.values()):
        return None
    return found if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", found["date"]) else None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object] | None:
    found = dict(pairs)
    return found if len(found) == len(pairs) else None


def is_right(prompt: str, completion: str) -> bool:
    """Return whether a completion is the record that the prompt asks for. ValueError if it asks for none."""
    return read(completion) == parse(prompt)
