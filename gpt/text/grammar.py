"""Grammars with a memory: generate and parse texts, count them, and compute their entropy exactly.

A rule is a name and its alternatives, one per line, equally probable unless a line begins with a weight ("3x "). In a
line, {rule} stands for one of that rule's alternatives, and these slots write entries of tables:

    {hero=name}    draw an entry, all equally probable; write it and remember it as `hero`. Two variables of one table
                   never hold the same entry.
    {=weather}     draw an entry without remembering it; {=Weather} writes it with a capital
    {hero}         the entry remembered as `hero`; {hero.she} is another of its forms, {hero.She} with a capital
    {pet=animal.a} draw an entry and write it in another form; every entry has the form `a`, "an owl"
    {n:=few.two}   remember the entry "two" of the table `few` as `n` without writing it
    {meet first}   the rule declared as "meet x:", with `first` for `x` in every slot

Draws carry all the information; what is recalled carries none. So probabilities multiply along a derivation, and sums
over all derivations can be computed without listing them.
"""

import heapq
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

UNKNOWN = "unknown sentence"  # the rule broken by a text that no wrong recall explains

# --- tables -----------------------------------------------------------------------------------------------------------

Entry = dict[str, str]  # a form's name -> its text; "" is the plain form, "a" the one with an article


@dataclass(frozen=True)
class Table:
    """The entries that a variable can hold, and the name of the rule that a wrong recall breaks."""

    rule: str
    entries: list[Entry]
    rules: dict[str, str]  # form -> its own rule, if it has one


def words(text: str) -> list[str]:
    """Split a comma-separated list of words or phrases."""
    return [word.strip() for word in re.split(r",\s+", text)]


def pairs(*lists: str) -> list[str]:
    """Return all combinations of a word from each list, joined by spaces."""
    return [" ".join(chosen) for chosen in itertools.product(*map(words, lists))]


def table(entries: str | list[str], *forms: str, rule: str = "", **rules: str) -> Table:
    """Return a table from a comma-separated list, or from a list of entries.

    An entry such as "fox: barked" has its further `forms` after colons. `rule` is the rule that a wrong recall breaks
    (default: the table's name); `rules` name it for single forms.
    """
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
    """The texts of a table's entries in one form, and a lookup of those found at a position of a text."""

    texts: tuple[str, ...]

    def __post_init__(self):
        entries: dict[str, list[int]] = {}
        for entry, text in enumerate(self.texts):
            entries.setdefault(text, []).append(entry)
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "lengths", sorted(set(map(len, self.texts))))

    def at(self, text: str, position: int) -> Iterator[tuple[int, int]]:
        """Yield (end, entry) for each entry whose text is found at `position`."""
        for length in self.lengths:
            for entry in self.entries.get(text[position : position + length], ()):
                yield position + length, entry


@dataclass(frozen=True, eq=False)
class _Literal:
    text: str


@dataclass(frozen=True, eq=False)
class _Expand:
    rule: str  # with its argument: "meet first"


@dataclass(frozen=True, eq=False)
class _Draw:
    variable: str  # "" if not remembered
    table: str
    choices: _Choices
    rule: str  # broken if the entry is already taken


@dataclass(frozen=True, eq=False)
class _Recall:
    variable: str
    choices: _Choices
    rule: str  # broken if another entry's text is found


@dataclass(frozen=True, eq=False)
class _Remember:
    variable: str
    entry: int


_Element = _Literal | _Expand | _Draw | _Recall | _Remember
_Alternative = tuple[int, tuple[_Element, ...]]  # weight, elements
_SLOT = re.compile(
    r"\{(?:(?P<variable>\w*)(?P<how>:?=)(?P<table>\w+)|(?P<name>\w+)(?: (?P<argument>\w+))?)(?:\.(?P<form>\w+))?\}"
)


@dataclass(frozen=True)
class Derivation:
    """A way to write a text: its ln p in nats, and the rules it breaks as (position, rule)."""

    log_probability: float
    broken: tuple[tuple[int, str], ...]


Totals = tuple[int, float, float]  # number of derivations, sum of p, sum of -p ln p


class Grammar:
    """A grammar with a memory. No rule may lead back to itself.

    ValueError for a slot that names an unknown rule, table, entry or form.
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
        lines: dict[str, list[str]] = {}  # rule with its argument -> alternatives
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
        self._memo: dict = {}
        self._rules = {
            key: [self._parse_line(line, lines) for line in alternatives] for key, alternatives in lines.items()
        }
        self._totals(_Expand(start), frozenset())  # ValueError for a recall before its draw

    def _parse_line(self, line: str, rules: dict) -> _Alternative:
        weight = 1
        if found := re.match(r"(\d+)x ", line):
            weight, line = int(found[1]), line[found.end() :]
        if re.search("[{}]", _SLOT.sub("", line)):
            raise ValueError(f"{line!r} has a brace that belongs to no slot")
        elements: list[_Element] = []
        position = 0
        for slot in _SLOT.finditer(line):
            elements += [_Literal(line[position : slot.start()])] if slot.start() > position else []
            elements.append(self._slot(slot, rules))
            position = slot.end()
        elements += [_Literal(line[position:])] if position < len(line) else []
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
        """Return the variables among `bound` whose entries a draw must avoid."""
        return [v for v in bound if self.table_of[v] == draw.table] if draw.variable else []

    # --- writing ------------------------------------------------------------------------------------------------------

    def generate(self, n: int, seed: int = 0) -> list[str]:
        """Return n texts, drawn independently; the seed determines them."""
        uniform = random.Random(seed).random
        return [self.write(lambda options: int(uniform() * options)) for _ in range(n)]

    def write(self, choose: Callable[[int], int]) -> str:
        """Return the text that `choose` determines: it maps a number of options to one of them, from 0.

        An alternative of weight w counts as w options.
        """
        pieces: list[str] = []
        memory: dict[str, int] = {}
        agenda: list[_Element] = [_Expand(self.start)]  # a stack
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
        """Return H = -sum p ln p over all derivations, in nats; it is that of the texts if each has one derivation."""
        return sum(h for _, _, h in self._totals(_Expand(self.start), frozenset()).values())

    def size(self) -> int:
        """Return the number of derivations, which is the number of texts if each has one."""
        return sum(n for n, _, _ in self._totals(_Expand(self.start), frozenset()).values())

    def _totals(self, element: _Element, bound: frozenset[str]) -> dict[frozenset[str], Totals]:
        """Return (number, sum of p, sum of -p ln p) of an element's derivations, by the variables bound after it.

        It depends on which variables are bound before, but not on their values: a draw has the same number of options
        whatever its table's other variables hold. The sums add over alternatives and multiply along a sequence as in
        the expectation semiring of Eisner 2002.
        """
        if (element, bound) in self._memo:
            if self._memo[element, bound] is None:
                raise ValueError(f"the rule {element.rule!r} leads back to itself")
            return self._memo[element, bound]
        self._memo[element, bound] = None  # in progress
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
        self._memo[element, bound] = found
        return found

    # --- reading ------------------------------------------------------------------------------------------------------

    def log_probability(self, text: str) -> float:
        """Return ln p(text) in nats, summed over its derivations; -inf if the grammar cannot write it."""
        found = [d.log_probability for d in self.derivations(text)]
        best = max(found, default=-math.inf)
        return min(0.0, best + math.log(sum(math.exp(p - best) for p in found))) if found else best

    def first_broken_rule(self, text: str) -> str | None:
        """Return None if the grammar can write the text, else the first rule broken in the derivation that breaks the
        fewest: "pronoun", "thing", "order", ..., or "unknown sentence" if no wrong recall explains the text."""
        for derivation in self.derivations(text, strict=False):
            return derivation.broken[0][1] if derivation.broken else None
        return UNKNOWN

    def derivations(self, text: str, strict: bool = True) -> Iterator[Derivation]:
        """Yield all derivations of a text, by exhaustive search.

        Unless `strict`, also those in which a slot recalls a wrong entry or draws one already taken; those that break
        the fewest rules come first.
        """
        newest = itertools.count(0, -1)
        # rules broken, order, elements to read (a linked list), position, memory, ln p so far, (position, rule) broken
        heap = [(0, next(newest), (_Expand(self.start), None), 0, {}, 0.0, ())]
        while heap:
            _, _, agenda, position, memory, log_p, broken = heapq.heappop(heap)
            if agenda is None:
                if position == len(text):
                    yield Derivation(log_p, broken)
                continue
            element, rest = agenda
            for parts, end, more, step, rule in self._match(element, text, position, memory, strict):
                agenda = rest
                for part in reversed(parts):
                    agenda = (part, agenda)
                now = (*broken, (position, rule)) if rule else broken
                heapq.heappush(heap, (len(now), next(newest), agenda, end, {**memory, **more}, log_p + step, now))

    def _match(
        self, element: _Element, text: str, position: int, memory: dict[str, int], strict: bool
    ) -> Iterator[tuple[tuple[_Element, ...], int, dict[str, int], float, str]]:
        """Yield the ways to read an element at a position of a text: (elements that must follow, end, additions to the
        memory, ln p, the rule broken or "")."""
        match element:
            case _Literal(literal):
                if text.startswith(literal, position):
                    yield (), position + len(literal), {}, 0.0, ""
            case _Expand(rule):
                total = sum(weight for weight, _ in self._rules[rule])
                for weight, parts in self._rules[rule]:
                    first = parts[0]
                    if not isinstance(first, _Literal) or text.startswith(first.text, position):
                        yield parts, position, {}, math.log(weight / total), ""
            case _Draw(variable, _, choices, rule):
                taken = {memory[v] for v in self._taken(element, memory)}
                for end, entry in choices.at(text, position):
                    if entry not in taken or not strict:
                        more = {variable: entry} if variable else {}
                        yield (), end, more, -math.log(len(choices.texts) - len(taken)), rule if entry in taken else ""
            case _Recall(variable, choices, rule):
                right = choices.texts[memory[variable]]
                if text.startswith(right, position):
                    yield (), position + len(right), {}, 0.0, ""
                if not strict:
                    for end in {end for end, entry in choices.at(text, position) if choices.texts[entry] != right}:
                        yield (), end, {}, 0.0, rule
            case _Remember(variable, entry):
                yield (), position, {variable: entry}, 0.0, ""


def _replace(line: str, parameter: str, argument: str) -> str:
    """Replace the parameter by the argument in the slots of a line."""
    return re.sub(r"\{.*?\}", lambda slot: re.sub(rf"\b{parameter}\b", argument, slot[0]), line)


def _product(first: Totals, second: Totals) -> Totals:
    """Return the totals of a sequence of two elements."""
    return first[0] * second[0], first[1] * second[1], first[1] * second[2] + first[2] * second[1]


def _sums(found: Iterable[tuple[frozenset[str], Totals]]) -> dict[frozenset[str], Totals]:
    """Add up the totals that have the same variables bound."""
    sums: dict[frozenset[str], Totals] = {}
    for bound, totals in found:
        sums[bound] = tuple(map(sum, zip(sums.get(bound, (0, 0.0, 0.0)), totals, strict=True)))
    return sums
