"""The notation of grammars: rules and tables, read into elements.

A rule is a name and its alternatives, one per line, equally probable unless a line begins with a weight ("3x "). In a
line, {rule} stands for one of that rule's alternatives, and these slots write entries of tables:

    {hero=name}    draw an entry, all equally probable; write it and remember it as `hero`. Two variables of one table
                   never hold the same entry.
    {=weather}     draw an entry without remembering it; {=Weather} writes it with a capital
    {hero}         the entry remembered as `hero`; {hero.she} is another of its forms, {hero.She} with a capital
    {pet=animal.a} draw an entry and write it in another form; every entry has the form `a`, "an owl"
    {n:=few.two}   remember the entry "two" of the table `few` as `n` without writing it
    {meet first}   the rule declared as "meet x:", with `first` for `x` in every slot
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

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
class Choices:
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
class Literal:
    """A text that stands as it is."""

    text: str


@dataclass(frozen=True, eq=False)
class Expand:
    """One of the alternatives of a rule."""

    rule: str  # with its argument: "meet first"


@dataclass(frozen=True, eq=False)
class Draw:
    """An entry of a table, drawn here."""

    variable: str  # "" if not remembered
    table: str
    choices: Choices
    rule: str  # broken if the entry is already taken


@dataclass(frozen=True, eq=False)
class Recall:
    """The entry that a variable holds."""

    variable: str
    choices: Choices
    rule: str  # broken if another entry's text is found


@dataclass(frozen=True, eq=False)
class Remember:
    """An entry that a variable holds from here on; nothing is written."""

    variable: str
    entry: int


Element = Literal | Expand | Draw | Recall | Remember
Alternative = tuple[int, tuple[Element, ...]]  # weight, elements
_SLOT = re.compile(
    r"\{(?:(?P<variable>\w*)(?P<how>:?=)(?P<table>\w+)|(?P<name>\w+)(?: (?P<argument>\w+))?)(?:\.(?P<form>\w+))?\}"
)

# --- rules ------------------------------------------------------------------------------------------------------------


def parse(rules: str, tables: dict[str, Table], start: str) -> tuple[dict[str, list[Alternative]], dict[str, str]]:
    """Return the rules reachable from `start`, by their names with arguments, and each variable's table.

    ValueError for a rule without a line, and for a slot that names an unknown rule, table, entry or form.
    """
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
    table_of: dict[str, str] = {}
    for slot in slots:
        name = (slot["table"] or "").lower()
        if slot["variable"] and table_of.setdefault(slot["variable"], name) != name:
            raise ValueError(f"{slot[0]}: {slot['variable']} is already a variable of another table")
    read = {key: [_line(line, lines, tables, table_of) for line in some] for key, some in lines.items()}
    return read, table_of


def _line(line: str, rules: dict, tables: dict[str, Table], table_of: dict[str, str]) -> Alternative:
    """Return the weight and the elements of a line."""
    weight = 1
    if found := re.match(r"(\d+)x ", line):
        weight, line = int(found[1]), line[found.end() :]
    if re.search("[{}]", _SLOT.sub("", line)):
        raise ValueError(f"{line!r} has a brace that belongs to no slot")
    elements: list[Element] = []
    position = 0
    for slot in _SLOT.finditer(line):
        elements += [Literal(line[position : slot.start()])] if slot.start() > position else []
        elements.append(_slot(slot, rules, tables, table_of))
        position = slot.end()
    elements += [Literal(line[position:])] if position < len(line) else []
    return weight, tuple(elements)


def _slot(slot: re.Match, rules: dict, tables: dict[str, Table], table_of: dict[str, str]) -> Element:
    """Return the element that a slot stands for."""
    written, form = slot[0][1:-1], slot["form"] or ""
    if written in rules:
        return Expand(written)
    name = slot["table"] or table_of.get(slot["name"], "")
    table = tables.get(name.lower())
    if table is None or slot["argument"]:
        raise ValueError(f"{slot[0]} names no rule, table or variable of the grammar")
    if slot["how"] == ":=":
        plain = [entry[""] for entry in table.entries]
        if form not in plain:
            raise ValueError(f"{slot[0]}: the table {name} has no entry {form!r}")
        return Remember(slot["variable"], plain.index(form))
    if any(form.lower() not in entry for entry in table.entries):
        raise ValueError(f"{slot[0]}: the table {name} has no form {form.lower()!r}")
    texts = [entry[form.lower()] for entry in table.entries]
    if name[0].isupper() or form[:1].isupper():
        texts = [text[0].upper() + text[1:] for text in texts]
    rule = table.rule or name.lower()
    if slot["how"] == "=":
        return Draw(slot["variable"], name.lower(), Choices(tuple(texts)), rule)
    return Recall(slot["name"], Choices(tuple(texts)), table.rules.get(form.lower(), rule))


def _replace(line: str, parameter: str, argument: str) -> str:
    """Replace the parameter by the argument in the slots of a line."""
    return re.sub(r"\{.*?\}", lambda slot: re.sub(rf"\b{parameter}\b", argument, slot[0]), line)
