"""Grammars with a memory: texts are generated, parsed and counted, and their entropy follows exactly.

A rule is a name and its alternatives, a line each, equally probable unless a line begins with a weight ("3x "). In them
{rule} stands for one of that rule's alternatives, and entries of tables are written by

    {hero=name}    a draw, all entries equally probable: written, and remembered as `hero`. Two variables of one table
                   never hold the same entry.
    {=weather}     a draw that nothing will recall; {=Weather} writes it with a capital
    {hero}         the entry remembered as `hero`; {hero.she} is another of its forms, {hero.She} with a capital
    {pet=animal.a} a draw written in another form; every entry has the form `a`, "an owl"
    {n:=few.two}   the entry "two" of the table `few`, remembered as `n` without being written
    {meet first}   the rule that is declared as "meet x:", with `x` replaced by `first` wherever it stands in a slot

What is drawn carries the information; what is recalled carries none, for whoever looks back. So probabilities multiply
along a derivation, and sums over all derivations need no list of them.
"""

import heapq
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

UNKNOWN = "unknown sentence"  # what a text breaks where recalling wrongly does not explain it

# --- tables -----------------------------------------------------------------------------------------------------------

TensorMapping = dict[str, str]  # a form's name -> its text; "" is the plain form, "a" the one with an article


@dataclass(frozen=True)
class Table:
    """The entries that a variable can hold, and the name of the rule that a text breaks which recalls a wrong one."""

    rule: str
    entries: list[TensorMapping]
    rules: dict[str, str]  # of forms for which it is another


def words(text: str) -> list[str]:
    """The words, or groups of words, of a list with commas."""
    return [word.strip() for word in re.split(r",\s+", text)]


def pairs(*lists: str) -> list[str]:
    """Each word of the first list, followed by each of the second, and so on."""
    return [" ".join(chosen) for chosen in itertools.product(*map(words, lists))]


def table(entries: str | list[str], *forms: str, rule: str = "", **rules: str) -> Table:
    """A table from a list with commas, or from a list of entries. An entry such as "fox: barked" has its further
    `forms` after a colon each. `rule` names what a text breaks that recalls a wrong entry: left out, the table's
    name; `rules` are those of single forms."""
    read = []
    for entry in words(entries) if isinstance(entries, str) else entries:
        plain, *others = (part.strip() for part in entry.split(":"))
        if not plain or len(others) != len(forms):
            raise ValueError(f"the entry {entry!r} is not of the form '{': '.join(('word', *forms))}'")
        article = "an" if plain[0] in "aeiou" else "a"
        read.append({"": plain, "a": f"{article} {plain}", **dict(zip(forms, others, strict=True))})
    return Table(rule, read, rules)


# --- elements ---------------------------------------------------------------------------------------------------------


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


Totals = tuple[int, float, float]  # number of derivations, sum of p, sum of -p ln p


class Grammar:
    """Texts with a memory, and their probabilities. No rule may lead back to itself.

    ValueError for a slot that names a rule, table, entry or form that there is not.
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
        empty = [name for name, (_, alternatives) in definitions.items() if not alternatives]
        if empty or start not in definitions:
            raise ValueError(f"the rule {empty[0]!r} has no line" if empty else f"there is no rule {start!r}")
        lines: dict[str, list[str]] = {}  # of each rule with its argument
        todo = [start]
        while todo:
            name, _, argument = (key := todo.pop()).partition(" ")
            parameter, alternatives = definitions[name]
            if parameter:
                alternatives = [_replace(line, parameter, argument) for line in alternatives]
            lines[key] = alternatives
            for slot in _SLOT.finditer("".join(alternatives)):
                if slot["name"] in definitions and not slot["form"] and (inner := slot[0][1:-1]) not in lines:
                    todo.append(inner)
        slots = [slot for alternatives in lines.values() for slot in _SLOT.finditer("".join(alternatives))]
        self.table_of: dict[str, str] = {}
        for slot in slots:
            name = (slot["table"] or "").lower()
            if slot["variable"] and self.table_of.setdefault(slot["variable"], name) != name:
                raise ValueError(f"{slot[0]}: {slot['variable']} is already a variable of another table")
        self._known: dict = {}
        self._rules = {key: [self._read(line, lines) for line in alternatives] for key, alternatives in lines.items()}
        self._totals(_Expand(start), frozenset())  # an error for what is recalled where nothing was drawn

    def _read(self, line: str, rules: dict) -> _Alternative:
        weight = 1
        if found := re.match(r"(\d+)x ", line):
            weight, line = int(found[1]), line[found.end() :]
        if re.search("[{}]", _SLOT.sub("", line)):
            raise ValueError(f"{line!r} has a brace of no slot")
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
        if table is None or slot["argument"]:
            raise ValueError(f"{slot[0]} names no rule, table or variable of the grammar")
        if slot["how"] == ":=":
            plain = [entry[""] for entry in table.entries]
            if form not in plain:
                raise ValueError(f"{slot[0]}: the table {name} has no entry {form!r}")
            return _Remember(slot["variable"], plain.index(form))
        if any(form.lower() not in entry for entry in table.entries):
            raise ValueError(f"{slot[0]}: the table {name} has no form {form.lower()!r}")
        texts = [entry[form.lower()] for entry in table.entries]
        if name[0].isupper() or form[:1].isupper():
            texts = [text[0].upper() + text[1:] for text in texts]
        rule = table.rule or name.lower()
        if slot["how"] == "=":
            return _Draw(slot["variable"], name.lower(), _Choices(tuple(texts)), rule)
        return _Recall(slot["name"], _Choices(tuple(texts)), table.rules.get(form.lower(), rule))

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
                    for weight, parts in alternatives:
                        option -= weight
                        if option < 0:
                            agenda += reversed(parts)
                            break
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

    def _totals(self, element: _Element, bound: frozenset[str]) -> dict[frozenset[str], Totals]:
        """(number, sum of p, sum of -p ln p) of an element's derivations, by the variables bound after it.

        Which variables are bound before is all that matters, never to what: a draw has as many options whatever its
        table's other variables hold. Sums of this kind add over alternatives and multiply along a sequence as in the
        expectation semiring of Eisner 2002.
        """
        if (element, bound) in self._known:
            if self._known[element, bound] is None:
                raise ValueError(f"the rule {element.rule!r} leads back to itself")
            return self._known[element, bound]
        self._known[element, bound] = None  # being worked out
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
            case _Recall(variable, _, _) if variable not in bound:
                raise ValueError(f"{{{variable}}} is recalled where nothing was remembered as {variable}")
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
        return min(0.0, best + math.log(sum(math.exp(p - best) for p in found))) if found else best

    def first_broken_rule(self, text: str) -> str | None:
        """None for a text that the grammar can write. Otherwise the first rule broken in the reading that breaks the
        fewest: "pronoun", "thing", "order", ...; "unknown sentence" where recalling wrongly does not explain it."""
        for derivation in self.derivations(text, strict=False):
            return derivation.broken[0][1] if derivation.broken else None
        return UNKNOWN

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


def _replace(line: str, parameter: str, argument: str) -> str:
    """A line in whose slots the argument stands for the parameter."""
    return re.sub(r"\{.*?\}", lambda slot: re.sub(rf"\b{parameter}\b", argument, slot[0]), line)


def _product(first: Totals, second: Totals) -> Totals:
    """Of all pairs of a derivation of the first kind with one of the second."""
    return first[0] * second[0], first[1] * second[1], first[1] * second[2] + first[2] * second[1]


def _sums(found: Iterable[tuple[frozenset[str], Totals]]) -> dict[frozenset[str], Totals]:
    """Totals added up where the same variables are bound."""
    sums: dict[frozenset[str], Totals] = {}
    for bound, totals in found:
        sums[bound] = tuple(map(sum, zip(sums.get(bound, (0, 0.0, 0.0)), totals, strict=True)))
    return sums
