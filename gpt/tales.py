"""A grammar of small tales whose entropy is known exactly: text on which a loss can be watched falling to its floor.

    generate(2, seed=0)         # two tales
    log_probability(tale)       # ln p(tale) in nats, from the text alone; -inf for what the grammar cannot write
    entropy()                   # -sum p ln p over all tales, in nats per tale, by recursion
    first_broken_rule(text)     # None for a tale; else what it gets wrong: "pronoun", "thing", "order", "count", ...

No code that reads a language model's text knows more than the grammar below: RULES says which sentences there are, and
TABLES which words. A tale remembers who and what it is about, so what its beginning says binds its end: a slot that
recalls costs no information, but only a reader who looks back at the beginning can know what it holds.

To add a helper, a villain or a kind of trial, add a line to its table; to add a sentence, add a line to its rule. All
figures follow by themselves. One thing must hold, and a test holds it: no text may have two derivations.
"""

import heapq
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

# A rule is a name and its alternatives, a line each, equally probable unless a line begins with a weight ("3x "). In
# them, {rule} stands for one of that rule's alternatives, and a table's entries are written by
#   {hero=name}   a draw, all entries equally probable: written, and remembered as `hero`. Two variables of one table
#                 never hold the same entry.
#   {=weather}    a draw that nothing will recall
#   {hero}        the entry remembered as `hero`; {hero.she} is another of its forms, {hero.She} with a capital
#   {friends:=few.two}    remembered without being written
#   {meet first}  the rule "meet x", with `x` replaced by `first` in its slots
RULES = """
tale:
  2x {friends:=few.two}{lost} {advice} {first_meeting} {second_meeting} {arrival} {two_help} {victory} {two_thanks} {found}
  {friends:=few.three}{lost} {advice} {first_meeting} {second_meeting} {third_meeting} {arrival} {three_help} {victory} \
{three_thanks} {found}

lost:
  Once upon a time {hero=name}, a {=nature} {hero.girl} who lived {=home}, lost {hero.her} {thing=thing}.
  Once there was a {=nature} child named {hero=name} who lived {=home} and lost {hero.her} {thing=thing}.
  Long ago, {=home}, a {=nature} child named {hero=name} lost {hero.her} {thing=thing}.

advice:
  "The {villain=villain} has your {thing}," said {hero.her} {=elder}. "{advise}
  "Do not cry, {hero}," said {hero.her} {=elder}. "The {villain=villain} took it. {advise}

advise:
  Find {friends} friends and {trial=trial} {times=number} times."
  Take {friends} friends and {trial=trial} {times=number} times."

first_meeting:
  {meet first} {tell_first} {promise first}

second_meeting:
  {meet second} {tell_second} {promise second}

third_meeting:
  {meet third} {tell_third} {promise third}

meet x:
  2x {=Place} {hero.she} met {x=animal.a}.
  {=Place} sat {x=animal.a}.
  {hero} went {=way} and met {x=animal.a}.

tell_first:
  "The {villain} has my {thing}," said {hero}.
  {hero} told the {first} about {hero.her} {thing}.
  "Why so {=mood}, {hero}?" asked the {first}. "I want my {thing}," said {hero.she}.

tell_second:
  "The {first} and I are looking for my {thing}," said {hero}.
  The {first} told the {second} about the {thing}.
  "Where is the {first} taking you?" asked the {second}. "To the {villain}," said {hero.she}.

tell_third:
  "The {first}, the {second} and I are looking for my {thing}," said {hero}.
  The {first} and the {second} told the {third} about the {thing}.

promise x:
  "I will help you," said the {x}.
  "I will come too," said the {x}.
  The {x} went with {hero.him}.

arrival:
  They came to the {=lair} of the {villain} {=hour}, and {hero} {trial.did}: {times.counted}
  {=Hour} they stood before the {=lair} of the {villain}. {hero} {trial.did}: {times.counted}
  The {villain} lived in a {=lair}. There {hero} {trial.did}: {times.counted}

two_help:
  First the {first} {first.deed}, then the {second} {second.deed}.
  The {first} {first.deed}, and the {second} {second.deed}.

three_help:
  First the {first} {first.deed}, then the {second} {second.deed}, and last the {third} {third.deed}.
  The {first} {first.deed}, the {second} {second.deed}, and the {third} {third.deed}.

victory:
  The {villain} {=fled}.
  The {villain} was {=frightened} and {=fled}.
  "{=Mercy}!" cried the {villain}, and {=fled}.

two_thanks:
  {hero} thanked the {first} and the {second}.
  "Thank you, {first}! Thank you, {second}!" cried {hero}.

three_thanks:
  {hero} thanked the {first}, the {second} and the {third}.
  "Thank you, {first}! Thank you, {second}! Thank you, {third}!" cried {hero}.

found:
  {=Hidden} {hero.she} found {hero.her} {thing}, {=ever_after}.
  And {hero} found {hero.her} {thing} {=hidden}, {=ever_after}.
"""

# --- the words ---------------------------------------------------------------------------------------------------------

Entry = dict[str, str]  # a form's name -> its text; "" is the plain form, "a" the one with an article


@dataclass(frozen=True)
class Table:
    """The entries that a variable can hold, and the name of the rule that a text breaks which recalls a wrong one."""

    rule: str
    entries: list[Entry]
    rules: dict[str, str]  # of forms for which it is another


def table(rule: str, words: str | list[str], *forms: str, **rules: str) -> Table:
    """A table from a comma-separated list or a list of entries. An entry "fox: barked" has the further `forms`, in
    their order, after a colon each."""
    entries = []
    for entry in words.split(", ") if isinstance(words, str) else words:
        plain, *others = (part.strip() for part in entry.split(":"))
        article = "an" if plain[0] in "aeiou" else "a"
        entries.append({"": plain, "a": f"{article} {plain}", **dict(zip(forms, others, strict=True))})
    return Table(rule, entries, rules)


def pairs(*lists: str) -> list[str]:
    """Each word of the first list with each of the second, and so on, from comma-separated lists."""
    return [" ".join(words) for words in itertools.product(*(words.split(", ") for words in lists))]


GIRLS = "Anna, Bella, Clara, Dora, Ella, Fanny, Greta, Hanna, Ida, Julia, Kate, Lucy, Mina, Nora, Olga, Polly, Rosa, \
Sara, Tilda, Vera"
BOYS = "Adam, Ben, Carl, David, Erik, Felix, Georg, Hugo, Ivan, Jacob, Karl, Leo, Martin, Nils, Otto, Paul, Robin, \
Simon, Tom, Victor"
COUNT = ["one", "two", "three", "four", "five"]

TABLES = {
    "name": table(
        "name",
        [f"{girl}:girl:she:her:her" for girl in GIRLS.split(", ")]
        + [f"{boy}:boy:he:his:him" for boy in BOYS.split(", ")],
        "girl", "she", "her", "him", girl="pronoun", she="pronoun", her="pronoun", him="pronoun",
    ),  # fmt: skip
    "thing": table(
        "thing",
        pairs(
            "silver, golden, wooden, red, blue, green, white, black, little, old, round, shiny",
            "bell, key, ball, cup, ring, drum, kite, lamp, spoon, whistle, basket, boat, hat, comb, flute, mirror, \
button, ribbon, candle, clock",
        ),
    ),
    "animal": table(
        "order",
        "fox: barked, owl: hooted, bee: buzzed, frog: croaked, horse: neighed, donkey: brayed, cat: mewed, goose: \
hissed, rooster: crowed, bear: growled, wolf: howled, mouse: squeaked, pig: grunted, sheep: bleated, cow: mooed, duck: \
quacked, raven: cawed, cricket: chirped, lion: roared, snake: rattled, dove: cooed, hen: clucked, turkey: gobbled, \
parrot: shrieked",
        "deed",
        deed="deed",
    ),
    "villain": table(
        "villain", "giant, witch, troll, ogre, dragon, wizard, goblin, robber, pirate, ghost, miser, magician"
    ),
    "trial": table(
        "trial",
        "knock at the gate: knocked at the gate, ring at the door: rang at the door, blow into the horn: blew into the \
horn, stamp on the bridge: stamped on the bridge, tap on the window: tapped on the window, call from the hill: called \
from the hill, clap before the cave: clapped before the cave, turn around the tower: turned around the tower",
        "did",
    ),
    "few": table("count", "two, three"),
    "number": table("count", [f"{COUNT[n]}: {', '.join(COUNT[: n + 1])}." for n in range(1, 5)], "counted"),
    "nature": table("", "clever, brave, merry, shy, curious, gentle, cheerful, stubborn, kind, bold, poor, lazy, polite, honest, dreamy, nimble"),
    "home": table(
        "",
        "by the sea, by the lake, in the mountains, in a small village, near the forest, on a farm, in a \
lighthouse, near the harbour, in a windmill, on an island, in a great city, behind the church, under a steep roof, \
in the valley, beside the market, above a bakery",
    ),
    "elder": table("", "grandmother, grandfather, mother, father, aunt, uncle, teacher, neighbour, sister, brother"),
    "place": table(
        "",
        pairs(
            "by the, near the, behind the",
            "old, quiet, dark, broken, lonely, narrow, green, sunny",
            "mill, well, bridge, pond, wall, barn, oak, fence, river, meadow, garden, chapel, rock, road",
        ),
    ),
    "way": table(
        "",
        pairs(
            "along, across, through, past",
            "the fields, the woods, the hills, the swamp, the snow, the heath, the sand, the vineyards, the orchard, the thistles, the ferns, the gravel",
        ),
    ),
    "mood": table("", "sad, pale, quiet, tired, angry, restless, worried, silent, gloomy, upset"),
    "lair": table("", "castle, cave, tower, palace, fortress, hut, ruin, dungeon, mansion, den, cellar, cottage"),
    "hour": table("", "at midnight, at noon, at dawn, at sunset, towards evening, that night, before daybreak, at last"),
    "fled": table("", "ran away, fled into the forest, leapt into the river, hid under the table, begged for mercy, \
fell down the stairs, sailed away, vanished like smoke"),
    "frightened": table("", "frightened, terrified, amazed, alarmed, confused, startled, ashamed, dizzy"),
    "mercy": table("", "mercy, help, spare me, monsters, stop it, go away"),
    "hidden": table(
        "",
        pairs(
            "under, behind, beside",
            "the bed, the stove, the carpet, the cupboard, a barrel, a chest, the stairs, the curtain, a bench, some straw, \
old bones, the throne, the chimney, empty bottles, dusty books, an anvil",
        ),
    ),
    "ever_after": table(
        "", "and never lost it again, and they danced for joy, and everyone went to supper, and they \
feasted for a week, and slept well that night, and they stayed friends for ever, and sang all the way, and told the \
tale for years, and laughed until morning",
    ),
}  # fmt: skip

# --- the grammar, read ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Choices:
    """The texts of a table's entries in one form, and which of them stand at a place of a text."""

    texts: tuple[str, ...]

    def __post_init__(self):
        entries: dict[str, list[int]] = {}
        for entry, text in enumerate(self.texts):
            entries.setdefault(text, []).append(entry)
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "lengths", sorted(set(map(len, self.texts))))

    def at(self, text: str, place: int) -> Iterator[tuple[int, int]]:
        """(where it ends, entry) for each entry whose text stands at `place`."""
        for length in self.lengths:
            for entry in self.entries.get(text[place : place + length], ()):
                yield place + length, entry


@dataclass(frozen=True, eq=False)
class _Literal:
    text: str


@dataclass(frozen=True, eq=False)
class _Expand:
    rule: str  # with its argument: "meet first"


@dataclass(frozen=True, eq=False)
class _Draw:
    variable: str  # "" for what is not remembered
    table: str
    choices: _Choices
    rule: str  # that is broken where the entry is taken


@dataclass(frozen=True, eq=False)
class _Recall:
    variable: str
    choices: _Choices
    rule: str  # that is broken where another entry's text stands


@dataclass(frozen=True, eq=False)
class _Remember:
    variable: str
    entry: int


_Element = _Literal | _Expand | _Draw | _Recall | _Remember
_Alternative = tuple[int, tuple[_Element, ...]]  # weight, what it is made of
_SLOT = re.compile(
    r"\{(?:(?P<variable>\w*)(?P<how>:?=)(?P<table>\w+)|(?P<name>\w+)(?: (?P<argument>\w+))?)(?:\.(?P<form>\w+))?\}"
)


@dataclass(frozen=True)
class Derivation:
    """A way in which the grammar writes a text: ln p in nats, and where it was let break a rule: (character, rule)."""

    log_probability: float
    broken: tuple[tuple[int, str], ...]


class Grammar:
    """Texts with a memory, and their probabilities. The notation is that of RULES and TABLES.

    ValueError for a slot that names no rule, table, entry, form or variable that there is.
    """

    def __init__(self, rules: str, tables: dict[str, Table], start: str = "tale"):
        self.tables, self.start = tables, start
        definitions: dict[str, tuple[str, list[str]]] = {}  # name -> (parameter, lines)
        for line in rules.strip().splitlines():
            if line.endswith(":") and not line.startswith(" "):
                name, _, parameter = line[:-1].partition(" ")
                definitions[name] = (parameter, [])
            elif line.strip():
                definitions[name][1].append(line.strip())
        lines: dict[str, list[str]] = {}  # of each rule with its argument
        todo = [start]
        while todo:
            name, _, argument = (key := todo.pop()).partition(" ")
            parameter, alternatives = definitions[name]
            if parameter:
                alternatives = [
                    re.sub(r"\{.*?\}", lambda slot: re.sub(rf"\b{parameter}\b", argument, slot[0]), line)
                    for line in alternatives
                ]
            lines[key] = alternatives
            for slot in _SLOT.finditer("".join(alternatives)):
                if slot["name"] in definitions and (inner := slot[0][1:-1]) not in lines:
                    todo.append(inner)
        slots = [slot for alternatives in lines.values() for slot in _SLOT.finditer("".join(alternatives))]
        self.table_of = {slot["variable"]: slot["table"].lower() for slot in slots if slot["variable"]}
        self._known: dict = {}
        self._rules = {key: [self._read(line, lines) for line in alternatives] for key, alternatives in lines.items()}

    def _read(self, line: str, rules: dict) -> _Alternative:
        weight = 1
        if found := re.match(r"(\d+)x ", line):
            weight, line = int(found[1]), line[found.end() :]
        elements: list[_Element] = []
        place = 0
        for slot in _SLOT.finditer(line):
            elements += [_Literal(line[place : slot.start()])] if slot.start() > place else []
            elements.append(self._slot(slot, rules))
            place = slot.end()
        elements += [_Literal(line[place:])] if place < len(line) else []
        return weight, tuple(elements)

    def _slot(self, slot: re.Match, rules: dict) -> _Element:
        written, form = slot[0][1:-1], slot["form"] or ""
        if written in rules:
            return _Expand(written)
        name = slot["table"] or self.table_of.get(slot["name"], "")
        table = self.tables.get(name.lower())
        if table is None:
            raise ValueError(f"{slot[0]} names no rule, table or variable of the grammar")
        if slot["how"] == ":=":
            return _Remember(slot["variable"], [entry[""] for entry in table.entries].index(form))
        texts = [entry[form.lower()] for entry in table.entries]
        if name[0].isupper() or form[:1].isupper():
            texts = [text[0].upper() + text[1:] for text in texts]
        if slot["how"] == "=":
            return _Draw(slot["variable"], name.lower(), _Choices(tuple(texts)), table.rule)
        return _Recall(slot["name"], _Choices(tuple(texts)), table.rules.get(form.lower(), table.rule))

    def _taken(self, draw: _Draw, bound: Iterable[str]) -> list[str]:
        """The variables among `bound` whose entries a draw must avoid."""
        return [v for v in bound if self.table_of[v] == draw.table] if draw.variable else []

    # --- writing ------------------------------------------------------------------------------------------------------

    def generate(self, n: int, seed: int = 0) -> list[str]:
        """n texts, drawn independently. The same seed draws the same texts."""
        uniform = random.Random(seed).random
        return [self.write(lambda options: int(uniform() * options)) for _ in range(n)]

    def write(self, choose: Callable[[int], int]) -> str:
        """The text that comes of the choices of `choose`: a number of equally probable options -> one of them, from 0.

        An alternative of weight w is w options."""
        pieces: list[str] = []
        memory: dict[str, int] = {}
        agenda: list[_Element] = [_Expand(self.start)]  # the next element is the last
        while agenda:
            element = agenda.pop()
            match element:
                case _Literal(text):
                    pieces.append(text)
                case _Expand(rule):
                    alternatives = self._rules[rule]
                    option = choose(sum(weight for weight, _ in alternatives)) if len(alternatives) > 1 else 0
                    for weight, elements in alternatives:
                        if option < weight:
                            break
                        option -= weight
                    agenda += reversed(elements)
                case _Draw(variable, _, choices, _):
                    taken = {memory[v] for v in self._taken(element, memory)}
                    entry = choose(len(choices.texts) - len(taken))
                    for other in sorted(taken):
                        entry += entry >= other
                    pieces.append(choices.texts[entry])
                    if variable:
                        memory[variable] = entry
                case _Recall(variable, choices, _):
                    pieces.append(choices.texts[memory[variable]])
                case _Remember(variable, entry):
                    memory[variable] = entry
        return "".join(pieces)

    # --- exact figures ------------------------------------------------------------------------------------------------

    def entropy(self) -> float:
        """H = -sum p ln p over all derivations, in nats, exactly; that of the texts, where each has one derivation."""
        return sum(h for _, _, h in self._totals(_Expand(self.start), frozenset()).values())

    def size(self) -> int:
        """How many derivations there are: how many texts, where each has one."""
        return sum(n for n, _, _ in self._totals(_Expand(self.start), frozenset()).values())

    def _totals(self, element: _Element, bound: frozenset[str]) -> "dict[frozenset[str], Totals]":
        """(number, sum of p, sum of -p ln p) of an element's derivations, by the variables bound after it.

        Which variables are bound before is all that matters, never to what: a draw has as many options whatever its
        table's other variables hold. Sums of this kind add over alternatives and multiply along a sequence as in the
        expectation semiring of Eisner 2002.
        """
        if (element, bound) in self._known:
            return self._known[element, bound]
        match element:
            case _Expand(rule):
                total = sum(weight for weight, _ in self._rules[rule])
                found: dict[frozenset[str], Totals] = {}
                for weight, elements in self._rules[rule]:
                    share = weight / total
                    states = {bound: (1, share, -share * math.log(share))}
                    for part in elements:
                        states = _sums(
                            (after, _product(sums, more))
                            for before, sums in states.items()
                            for after, more in self._totals(part, before).items()
                        )
                    found = _sums([*found.items(), *states.items()])
            case _Draw(variable, _, choices, _):
                options = len(choices.texts) - len(self._taken(element, bound))
                found = {bound | ({variable} - {""}): (options, 1.0, math.log(options))}
            case _Remember(variable, _):
                found = {bound | {variable}: (1, 1.0, 0.0)}
            case _:
                found = {bound: (1, 1.0, 0.0)}
        self._known[element, bound] = found
        return found

    # --- reading ------------------------------------------------------------------------------------------------------

    def log_probability(self, text: str) -> float:
        """ln p(text) in nats, by parsing; -inf where the grammar cannot write it. A text with several derivations has
        their summed probability."""
        found = [d.log_probability for d in self.derivations(text)]
        best = max(found, default=-math.inf)
        return best + math.log(sum(math.exp(p - best) for p in found)) if found else best

    def first_broken_rule(self, text: str) -> str | None:
        """None for a text that the grammar can write. Otherwise the first rule broken in the reading that breaks the
        fewest: "pronoun", "thing", "order", ...; "unknown sentence" where recalling wrongly does not explain it."""
        for derivation in self.derivations(text, strict=False):
            return derivation.broken[0][1] if derivation.broken else None
        return "unknown sentence"

    def derivations(self, text: str, strict: bool = True) -> Iterator[Derivation]:
        """All derivations of a text, by exhaustive search. Not `strict`, also those in which a slot holds another entry
        of its table than the one it has to recall, or one already taken; those that break the fewest rules first."""
        newest = itertools.count(0, -1)
        # what is still to be read, as a linked list; from where; with what remembered; ln p so far; rules broken so far
        heap = [(0, next(newest), (_Expand(self.start), None), 0, {}, 0.0, ())]
        while heap:
            _, _, agenda, place, memory, log_p, broken = heapq.heappop(heap)
            if agenda is None:
                if place == len(text):
                    yield Derivation(log_p, broken)
                continue
            element, rest = agenda
            for parts, end, more, step, rule in self._read_on(element, text, place, memory, strict):
                agenda = rest
                for part in reversed(parts):
                    agenda = (part, agenda)
                now = (*broken, (place, rule)) if rule else broken
                heapq.heappush(heap, (len(now), next(newest), agenda, end, {**memory, **more}, log_p + step, now))

    def _read_on(
        self, element: _Element, text: str, place: int, memory: dict[str, int], strict: bool
    ) -> Iterator[tuple[tuple[_Element, ...], int, dict[str, int], float, str]]:
        """The ways in which an element can stand at a place of a text: (what must follow it, where it ends, what it
        adds to the memory, ln p, the rule that it breaks or "")."""
        match element:
            case _Literal(literal):
                if text.startswith(literal, place):
                    yield (), place + len(literal), {}, 0.0, ""
            case _Expand(rule):
                total = sum(weight for weight, _ in self._rules[rule])
                for weight, parts in self._rules[rule]:
                    first = parts[0]
                    if not isinstance(first, _Literal) or text.startswith(first.text, place):
                        yield parts, place, {}, math.log(weight / total), ""
            case _Draw(variable, _, choices, rule):
                taken = {memory[v] for v in self._taken(element, memory)}
                for end, entry in choices.at(text, place):
                    if entry not in taken or not strict:
                        more = {variable: entry} if variable else {}
                        yield (), end, more, -math.log(len(choices.texts) - len(taken)), rule if entry in taken else ""
            case _Recall(variable, choices, rule):
                right = choices.texts[memory[variable]]
                if text.startswith(right, place):
                    yield (), place + len(right), {}, 0.0, ""
                if not strict:
                    for end in {end for end, entry in choices.at(text, place) if choices.texts[entry] != right}:
                        yield (), end, {}, 0.0, rule
            case _Remember(variable, entry):
                yield (), place, {variable: entry}, 0.0, ""


Totals = tuple[int, float, float]  # number of derivations, sum of p, sum of -p ln p


def _product(first: Totals, second: Totals) -> Totals:
    """Of all pairs of a derivation of the first kind with one of the second."""
    return first[0] * second[0], first[1] * second[1], first[1] * second[2] + first[2] * second[1]


def _sums(found: Iterable[tuple[frozenset[str], Totals]]) -> dict[frozenset[str], Totals]:
    """Totals added up where the same variables are bound."""
    sums: dict[frozenset[str], Totals] = {}
    for bound, totals in found:
        sums[bound] = tuple(map(sum, zip(sums.get(bound, (0, 0.0, 0.0)), totals, strict=True)))
    return sums


# --- tales ------------------------------------------------------------------------------------------------------------


@cache
def grammar() -> Grammar:
    """The grammar of RULES and TABLES."""
    return Grammar(RULES, TABLES)


def generate(n: int, seed: int = 0) -> list[str]:
    """n tales, drawn independently; the same seed draws the same tales."""
    return grammar().generate(n, seed)


def log_probability(text: str) -> float:
    """ln p(text) in nats, from the text alone; -inf for a text that the grammar cannot write."""
    return grammar().log_probability(text)


def entropy() -> float:
    """H = -sum p ln p over all tales, in nats per tale, exactly. Shannon 1948, section 6."""
    return grammar().entropy()


def first_broken_rule(text: str) -> str | None:
    """None for a tale, else the first rule that it breaks; see `Grammar.first_broken_rule`."""
    return grammar().first_broken_rule(text)
