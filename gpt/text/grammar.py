"""Grammars with a memory: generate and parse texts, count them, and compute their entropy exactly.

gpt/text/notation.py explains how a grammar is written down. Draws carry all the information; what is recalled carries
none. So probabilities multiply along a derivation, and sums over all derivations can be computed without listing them.
"""

import copy
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from gpt.text.notation import Alternative, Draw, Element, Expand, Literal, Recall, Remember, Table, parse

UNKNOWN = "unknown sentence"  # the rule broken by a text that no wrong recall explains


@dataclass(frozen=True)
class Derivation:
    """A way to write a text: its ln p in nats, the rules it breaks as (position, rule), and the entry, in its plain
    form, that each variable holds at the end."""

    log_probability: float
    broken: tuple[tuple[int, str], ...]
    memory: dict[str, str]


Totals = tuple[int, float, float]  # number of derivations, sum of p, sum of -p ln p


class Grammar:
    """A grammar with a memory. No rule may lead back to itself.

    ValueError for a slot that names an unknown rule, table, entry or form.
    """

    def __init__(self, rules: str, tables: dict[str, Table], start: str = "tale"):
        self.tables, self.start = tables, start
        self._rules, self.table_of = parse(rules, tables, start)
        self._memo: dict = {}
        self._totals(Expand(start), frozenset())  # ValueError for a recall before its draw

    def _taken(self, draw: Draw, bound: Iterable[str]) -> list[str]:
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
        return self.compose(choose)[0]

    def compose(
        self, choose: Callable[[int], int], given: Mapping[str, str] | None = None
    ) -> tuple[str, dict[str, str]]:
        """Return a text as `write` does, and the entry that each variable holds at the end.

        A draw of a variable in `given` asks for no choice: it is that entry.
        """
        pieces: list[str] = []
        memory: dict[str, int] = {}
        agenda: list[Element] = [Expand(self.start)]  # a stack
        while agenda:
            element = agenda.pop()
            match element:
                case Literal(text):
                    pieces.append(text)
                case Expand(rule):
                    alternatives = self._rules[rule]
                    option = choose(sum(weight for weight, _ in alternatives)) if len(alternatives) > 1 else 0
                    for weight, parts in alternatives:
                        option -= weight
                        if option < 0:
                            agenda += reversed(parts)
                            break
                case Draw(variable, _, choices, _):
                    if given and variable in given:
                        entry = self._entry(variable, given[variable])
                    else:
                        taken = {memory[v] for v in self._taken(element, memory)}
                        entry = choose(len(choices.texts) - len(taken))
                        for other in sorted(taken):
                            entry += entry >= other
                    pieces.append(choices.texts[entry])
                    if variable:
                        memory[variable] = entry
                case Recall(variable, choices, _):
                    pieces.append(choices.texts[memory[variable]])
                case Remember(variable, entry):
                    memory[variable] = entry
        return "".join(pieces), self._named(memory)

    def _entry(self, variable: str, word: str) -> int:
        """Return which entry of a variable's table has this plain form."""
        return [entry[""] for entry in self.tables[self.table_of[variable]].entries].index(word)

    def _named(self, memory: dict[str, int]) -> dict[str, str]:
        """Return a memory with the entries' plain forms instead of their numbers."""
        return {v: self.tables[self.table_of[v]].entries[entry][""] for v, entry in memory.items()}

    def given(self, words: Mapping[str, str]) -> "Grammar":
        """Return the grammar of those texts in which each variable of `words` holds the entry of this plain form.

        It reads texts and writes them; its probabilities are not renormalised. No other variable may be of the table of
        one of these, or it could take the entry away.
        """
        assert all([*self.table_of.values()].count(self.table_of[variable]) == 1 for variable in words)
        held = {variable: self._entry(variable, word) for variable, word in words.items()}
        found = copy.copy(self)
        found._rules, found._memo = {}, {}

        def restrict(rule: str) -> list[Alternative]:
            """Fill in the alternatives of a rule with which such a text can be written."""
            if rule not in found._rules:
                alternatives = []
                for weight, parts in self._rules[rule]:
                    kept: list[Element] = []
                    for part in parts:
                        match part:
                            case Draw(variable, _, choices, _) if variable in held:
                                kept += [Remember(variable, held[variable]), Literal(choices.texts[held[variable]])]
                            case Remember(variable, entry) if entry != held.get(variable, entry):
                                break
                            case Expand(inner) if not restrict(inner):
                                break
                            case _:
                                kept.append(part)
                    else:
                        alternatives.append((weight, tuple(kept)))
                found._rules[rule] = alternatives
            return found._rules[rule]

        restrict(self.start)
        return found

    # --- exact figures ------------------------------------------------------------------------------------------------

    def entropy(self) -> float:
        """Return H = -sum p ln p over all derivations, in nats; it is that of the texts if each has one derivation."""
        return sum(h for _, _, h in self._totals(Expand(self.start), frozenset()).values())

    def size(self) -> int:
        """Return the number of derivations, which is the number of texts if each has one."""
        return sum(n for n, _, _ in self._totals(Expand(self.start), frozenset()).values())

    def _totals(self, element: Element, bound: frozenset[str]) -> dict[frozenset[str], Totals]:
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
            case Expand(rule):
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
            case Draw(variable, _, choices, _):
                options = len(choices.texts) - len(self._taken(element, bound))
                found = {bound | ({variable} - {""}): (options, 1.0, math.log(options))}
            case Remember(variable, _):
                found = {bound | {variable}: (1, 1.0, 0.0)}
            case Recall(variable, _, _) if variable not in bound:
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
        heap = [(0, next(newest), (Expand(self.start), None), 0, {}, 0.0, ())]
        while heap:
            _, _, agenda, position, memory, log_p, broken = heapq.heappop(heap)
            if agenda is None:
                if position == len(text):
                    yield Derivation(log_p, broken, self._named(memory))
                continue
            element, rest = agenda
            for parts, end, more, step, rule in self._match(element, text, position, memory, strict):
                agenda = rest
                for part in reversed(parts):
                    agenda = (part, agenda)
                now = (*broken, (position, rule)) if rule else broken
                heapq.heappush(heap, (len(now), next(newest), agenda, end, {**memory, **more}, log_p + step, now))

    def viable_prefix(self, text: str) -> int:
        """Return the number of leading characters of a text with which some text of the grammar begins, too."""
        viable = 0
        todo = [((Expand(self.start), None), 0, {})]  # elements to read (a linked list), position, memory
        while todo:
            agenda, position, memory = todo.pop()
            if agenda is None:
                continue
            element, rest = agenda
            for beginning in self._beginnings(element, memory):
                while viable < position + len(beginning) and text.startswith(
                    beginning[: viable + 1 - position], position
                ):
                    viable += 1
            for parts, end, more, _, _ in self._match(element, text, position, memory, strict=True):
                agenda = rest
                for part in reversed(parts):
                    agenda = (part, agenda)
                todo.append((agenda, end, {**memory, **more}))
        return viable

    def _beginnings(self, element: Element, memory: dict[str, int]) -> Iterable[str]:
        """Return the texts with which an element may begin here; none if another element begins in its place."""
        match element:
            case Literal(literal):
                return [literal]
            case Expand(rule):
                return [parts[0].text for _, parts in self._rules[rule] if isinstance(parts[0], Literal)]
            case Draw(_, _, choices, _):
                taken = {memory[v] for v in self._taken(element, memory)}
                return [text for entry, text in enumerate(choices.texts) if entry not in taken]
            case Recall(variable, choices, _):
                return [choices.texts[memory[variable]]]
        return []

    def _match(
        self, element: Element, text: str, position: int, memory: dict[str, int], strict: bool
    ) -> Iterator[tuple[tuple[Element, ...], int, dict[str, int], float, str]]:
        """Yield the ways to read an element at a position of a text: (elements that must follow, end, additions to the
        memory, ln p, the rule broken or "")."""
        match element:
            case Literal(literal):
                if text.startswith(literal, position):
                    yield (), position + len(literal), {}, 0.0, ""
            case Expand(rule):
                total = sum(weight for weight, _ in self._rules[rule])
                for weight, parts in self._rules[rule]:
                    first = parts[0]
                    if not isinstance(first, Literal) or text.startswith(first.text, position):
                        yield parts, position, {}, math.log(weight / total), ""
            case Draw(variable, _, choices, rule):
                taken = {memory[v] for v in self._taken(element, memory)}
                for end, entry in choices.at(text, position):
                    if entry not in taken or not strict:
                        more = {variable: entry} if variable else {}
                        yield (), end, more, -math.log(len(choices.texts) - len(taken)), rule if entry in taken else ""
            case Recall(variable, choices, rule):
                right = choices.texts[memory[variable]]
                if text.startswith(right, position):
                    yield (), position + len(right), {}, 0.0, ""
                if not strict:
                    for end in {end for end, entry in choices.at(text, position) if choices.texts[entry] != right}:
                        yield (), end, {}, 0.0, rule
            case Remember(variable, entry):
                yield (), position, {variable: entry}, 0.0, ""


def _product(first: Totals, second: Totals) -> Totals:
    """Return the totals of a sequence of two elements."""
    return first[0] * second[0], first[1] * second[1], first[1] * second[2] + first[2] * second[1]


def _sums(found: Iterable[tuple[frozenset[str], Totals]]) -> dict[frozenset[str], Totals]:
    """Add up the totals that have the same variables bound."""
    sums: dict[frozenset[str], Totals] = {}
    for bound, totals in found:
        sums[bound] = tuple(map(sum, zip(sums.get(bound, (0, 0.0, 0.0)), totals, strict=True)))
    return sums
