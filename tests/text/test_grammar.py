"""Grammars against brute force: every text that a small grammar writes, with its probability counted in fractions."""

import math
import random
import re
import sys
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt.text import tales
from gpt.text.grammar import Grammar
from gpt.text.notation import Table, pairs, table, words

TOLERANCE = 1000 * sys.float_info.epsilon  # relative: at most 1,000 additions, of numbers of one sign

PEOPLE = table(
    "Ann: she: her, Bob: he: his", "she", "her", rule="name", she="pronoun", her="pronoun"
)  # a name, and its pronouns under another rule
ANIMALS = table("fox: barked, owl: hooted, hen: clucked, elk: roared", "deed", rule="order", deed="deed")
NOTATION = """
tale:
  3x {n:=few.one}{opening} {meet first} {middle} {close}
  {n:=few.two}{opening} {meet first} {meet second} {middle} {close}

opening:
  {hero=name} sought {n} {=weather}.
  {=Weather}, {n} met {hero=name}.

meet x:
  {hero.She} met {x=animal.a}. {nod x}

nod y:
  The {y} and {hero.her} dog {y.deed}.

middle:
  {hero} lost {extra=animal.a}.
  2x {=animal.A} ran.
  3x Rain.

close:
  {hero} and the {first} saw {last=animal.a}: it {last.deed}.
"""
SMALL = Grammar(
    NOTATION,
    {
        "few": table("one, two", rule="count"),
        "name": PEOPLE,
        "animal": ANIMALS,
        "weather": table("in fog, at dusk"),
    },
)


def odometer(write):
    """Yield all that `write(choose)` can return, each with its probability, by the options that it asks for."""
    dial, sizes = [], []

    def choose(options):
        if len(sizes) == len(dial):
            dial.append(0)
        sizes.append(options)
        return dial[len(sizes) - 1]

    while True:
        sizes.clear()
        yield write(choose), Fraction(1, math.prod(sizes))
        while dial and dial[-1] + 1 == sizes[len(dial) - 1]:
            dial.pop()
        if not dial:
            return
        dial[-1] += 1


def enumerated(grammar):
    """Each text that a grammar writes and its probability."""
    found = defaultdict(Fraction)
    for text, p in odometer(grammar.write):
        found[text] += p
    return found


def ln(fraction):
    return math.log(fraction.numerator) - math.log(fraction.denominator)


def agrees_with_enumeration(grammar):
    """The figures of a grammar in which no text has two derivations; returns how many texts it has."""
    truth = enumerated(grammar)
    assert sum(truth.values()) == 1
    total = []
    for text, p in truth.items():
        (derivation,) = grammar.derivations(text)
        assert derivation.broken == ()
        assert (
            derivation.log_probability
            == grammar.log_probability(text)
            == pytest.approx(ln(p), rel=TOLERANCE, abs=TOLERANCE)
        )
        total.append(math.exp(derivation.log_probability))
    assert math.fsum(total) == pytest.approx(1, rel=TOLERANCE, abs=TOLERANCE)
    assert grammar.entropy() == pytest.approx(
        -math.fsum(p * ln(p) for p in truth.values()), rel=TOLERANCE, abs=TOLERANCE
    )
    assert grammar.size() == len(truth)
    return len(truth)


# --- exact figures ----------------------------------------------------------------------------------------------------


def test_all_notations_agree_with_enumeration():
    """Counted by hand: two names, two weathers and two openings. `first` takes one of four animals, `second` another;
    `extra` and `last` differ from these, whereas the animal that ran, in a draw not remembered, may be any."""
    one = 8 * 4 * (3 * 2 + 4 * 3 + 3)
    two = 8 * (4 * 3) * (2 * 1 + 4 * 2 + 2)
    assert agrees_with_enumeration(SMALL) == one + two


def cut_down(seed):
    """The grammar of the tales with one alternative per rule, two of some, and tables of one entry to three."""
    draw = random.Random(seed)
    rules = tales.RULES.strip().split("\n\n")
    double = {rules[0], *draw.sample(rules[2:], 2)}
    for n, rule in enumerate(rules):
        name, *alternatives = rule.split("\n")
        rules[n] = "\n".join([name, *draw.sample(alternatives, min(len(alternatives), 1 + (rule in double)))])
    sizes = {"few": 2, "name": 2, "animal": 3} | dict.fromkeys(draw.sample([*tales.TABLES], 2), 3)
    tables = {
        name: Table(full.rule, draw.sample(full.entries, min(len(full.entries), sizes.get(name, 1))), full.rules)
        for name, full in tales.TABLES.items()
    }
    return Grammar("\n\n".join(rules), tables)


@pytest.mark.parametrize("seed", range(4))
def test_small_tales_agree_with_enumeration(seed):
    assert agrees_with_enumeration(cut_down(seed)) > 100


def test_probabilities_and_entropy_by_hand():
    """Two different pets in 3 of 4 texts: 3/4 · 1/3 · 1/2 = 1/8 for each of six. One pet: 1/4 · 1/3 = 1/12."""
    grammar = Grammar("tale:\n  3x {x=pet} and {y=pet}\n  {x=pet.A}, {x}!", {"pet": table("cat, dog, owl")})
    assert grammar.size() == 6 + 3
    assert grammar.log_probability("cat and dog") == pytest.approx(-math.log(8), rel=TOLERANCE, abs=TOLERANCE)
    assert grammar.log_probability("owl and cat") == pytest.approx(-math.log(8), rel=TOLERANCE, abs=TOLERANCE)
    assert grammar.log_probability("An owl, owl!") == pytest.approx(-math.log(12), rel=TOLERANCE, abs=TOLERANCE)
    assert grammar.entropy() == pytest.approx(0.75 * math.log(8) + 0.25 * math.log(12), rel=TOLERANCE, abs=TOLERANCE)
    for text in ("cat and cat", "An owl, cat!", "A owl, owl!", "an owl, owl!", "cat and dog ", "cat", ""):
        assert grammar.log_probability(text) == -math.inf


def test_independent_draws_add_their_entropies():
    grammar = Grammar("tale:\n  {=coin} {=die}", {"coin": table("heads, tails"), "die": table("low, middle, high")})
    assert grammar.entropy() == pytest.approx(math.log(2) + math.log(3), rel=TOLERANCE, abs=TOLERANCE)
    assert grammar.log_probability("tails high") == pytest.approx(
        -math.log(2) - math.log(3), rel=TOLERANCE, abs=TOLERANCE
    )
    assert set(enumerated(grammar)) == {
        "heads low", "heads middle", "heads high", "tails low", "tails middle", "tails high",
    }  # fmt: skip


def test_a_grammar_of_one_text_has_no_entropy():
    grammar = Grammar("tale:\n  It is {=time}.", {"time": table("noon")})
    assert (grammar.size(), grammar.entropy(), grammar.log_probability("It is noon.")) == (1, 0.0, 0.0)
    assert grammar.generate(2) == ["It is noon."] * 2


def test_a_variable_bound_in_one_alternative_removes_an_entry_only_there():
    """-ln p is ln 2 + ln 3 + ln 2 where a pet was remembered before the draw, else ln 2 + ln 3."""
    grammar = Grammar(
        "tale:\n  {before} {y=pet}\n\nbefore:\n  my {x=pet}\n  no", {"pet": table("cat, dog, owl", rule="order")}
    )
    assert grammar.log_probability("my cat owl") == pytest.approx(-math.log(2 * 3 * 2), rel=TOLERANCE, abs=TOLERANCE)
    assert grammar.log_probability("no owl") == pytest.approx(-math.log(2 * 3), rel=TOLERANCE, abs=TOLERANCE)
    assert grammar.size() == 3 * 2 + 3
    assert grammar.entropy() == pytest.approx(math.log(12) / 2 + math.log(6) / 2, rel=TOLERANCE, abs=TOLERANCE)


def test_an_entry_remembered_silently_cannot_be_drawn():
    grammar = Grammar("tale:\n  {x:=pet.dog}{y=pet} and {z=pet}, no {x}", {"pet": table("cat, dog, owl, hen")})
    assert agrees_with_enumeration(grammar) == 3 * 2
    assert grammar.log_probability("hen and cat, no dog") == pytest.approx(
        -math.log(3 * 2), rel=TOLERANCE, abs=TOLERANCE
    )
    assert grammar.log_probability("hen and dog, no dog") == -math.inf


def test_a_text_with_two_derivations_has_their_summed_probability():
    """ "abc" is a+bc and ab+c, 1/4 each; "hey" is 3/4 of one alternative and half of the other's 1/4."""
    grammar = Grammar("tale:\n  {=x}{=y}", {"x": table("a, ab"), "y": table("bc, c")})
    assert [d.log_probability for d in grammar.derivations("abc")] == pytest.approx(
        [-math.log(4)] * 2, rel=TOLERANCE, abs=TOLERANCE
    )
    assert grammar.log_probability("abc") == pytest.approx(-math.log(2), rel=TOLERANCE, abs=TOLERANCE)
    assert len(list(grammar.derivations("abbc"))) == len(list(grammar.derivations("ac"))) == 1
    assert (grammar.size(), grammar.entropy()) == (
        4,
        pytest.approx(math.log(4), rel=TOLERANCE, abs=TOLERANCE),
    )  # of derivations
    assert enumerated(grammar) == {"abc": Fraction(1, 2), "abbc": Fraction(1, 4), "ac": Fraction(1, 4)}
    grammar = Grammar("tale:\n  3x hey\n  {=word}", {"word": table("hey, bye")})
    assert sorted(d.log_probability for d in grammar.derivations("hey")) == pytest.approx(
        [math.log(1 / 8), math.log(3 / 4)], rel=TOLERANCE, abs=TOLERANCE
    )
    assert grammar.log_probability("hey") == pytest.approx(math.log(7 / 8), rel=TOLERANCE, abs=TOLERANCE)


def test_another_start_is_another_grammar():
    rules = "tale:\n  {part} {part}\n\npart:\n  {=pet}"
    whole, part = (Grammar(rules, {"pet": table("cat, dog")}, start) for start in ("tale", "part"))
    assert (whole.size(), part.size()) == (4, 2)
    assert part.log_probability("cat") == pytest.approx(-math.log(2), rel=TOLERANCE, abs=TOLERANCE)
    assert part.log_probability("cat dog") == -math.inf


# --- viable prefixes --------------------------------------------------------------------------------------------------


def beginnings(texts):
    return {text[:n] for text in texts for n in range(len(text) + 1)}


def viable_by_hand(text, viable):
    """The length of the longest beginning that is one of all texts' beginnings."""
    return max(n for n in range(len(text) + 1) if text[:n] in viable)


def mutations(texts, rng, alphabet):
    """Each text with a character changed, left out, put in, cut off, or with the end of another."""
    for text in texts:
        i, other = rng.randrange(len(text)), rng.choice(texts)
        yield from (text[:i] + rng.choice(alphabet) + text[i + 1 :], text[:i] + text[i + 1 :], text[:i])
        yield from (text[:i] + rng.choice(alphabet) + text[i:], text[:i] + other[i:], other[: i + 1] + text[i:])


@pytest.mark.parametrize("grammar", [SMALL, cut_down(1), cut_down(2)], ids=["notation", "tales", "other tales"])
def test_viable_prefixes_agree_with_enumeration(grammar):
    texts, rng = sorted(enumerated(grammar)), random.Random(0)
    viable, alphabet = beginnings(texts), sorted(set("".join(texts)))
    chosen = rng.sample(texts, 60)
    for text in [*chosen, *mutations(chosen, rng, alphabet), "", "?", chosen[0] + " "]:
        assert grammar.viable_prefix(text) == viable_by_hand(text, viable), text


@given(st.text(alphabet="ab c", max_size=12))
def test_viable_prefixes_of_ambiguous_entries(text):
    """Entries that begin others, a taken entry that another begins with, and an alternative that is another's start."""
    grammar = Grammar(
        "tale:\n  {x=w} {y=w}{=v}\n  ab c{x=w}{x}\n  {=v}", {"w": table("a, ab, aba, cab"), "v": table("b, bc, bca b")}
    )
    assert grammar.viable_prefix(text) == viable_by_hand(text, beginnings(enumerated(grammar)))


# --- given entries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "variables"),
    [(SMALL, ["hero", "n"]), *((cut_down(n), ["hero", "thing", "villain", "friends"]) for n in range(4))],
)
def test_given_entries_agree_with_enumeration(grammar, variables):
    """All texts that hold these entries, and no others, are read and written; a beginning is viable if one of these
    texts has it."""
    held = {text: memory for (text, memory), _ in odometer(grammar.compose)}
    rng = random.Random(2)
    for _ in range(8):
        memory = held[rng.choice(sorted(held))]
        words = {name: memory[name] for name in rng.sample(variables, rng.randint(0, len(variables)))}
        given = grammar.given(words)
        kept = {text for text, memory in held.items() if words.items() <= memory.items()}
        assert {text for text, _ in odometer(given.write)} == kept
        assert all((given.log_probability(text) > -math.inf) == (text in kept) for text in rng.sample(sorted(held), 60))
        viable, alphabet = beginnings(kept), sorted(set("".join(kept)))
        chosen = rng.sample(sorted(held), 20)
        for text in [*chosen, *mutations(chosen, rng, alphabet), ""]:
            assert given.viable_prefix(text) == viable_by_hand(text, viable), text


def test_an_alternative_that_needs_another_entry_further_down_begins_no_text():
    rules = "tale:\n  Oh {inner}!\n  {n:=few.two}Ah {n}.\n\ninner:\n  no {n:=few.one}{n}"
    given = Grammar(rules, {"few": table("one, two")}).given({"n": "two"})
    assert (given.viable_prefix("Oh no one!"), given.viable_prefix("Ah one.")) == (0, 3)
    assert given.generate(9) == ["Ah two."] * 9


def test_a_given_entry_that_another_variable_could_take_is_refused():
    with pytest.raises(AssertionError):
        SMALL.given({"last": "hen"})


# --- writing ----------------------------------------------------------------------------------------------------------


def test_each_notation_writes_its_text():
    """The first option everywhere, and the last."""
    assert SMALL.write(lambda options: 0) == (
        "Ann sought one in fog. She met a fox. The fox and her dog barked. Ann lost an owl. "
        "Ann and the fox saw a hen: it clucked."
    )
    assert SMALL.write(lambda options: options - 1) == (
        "At dusk, two met Bob. He met an elk. The elk and his dog roared. He met a hen. The hen and his dog clucked. "
        "Rain. Bob and the elk saw an owl: it hooted."
    )


def test_an_alternative_of_weight_three_is_three_options():
    grammar = Grammar("tale:\n  one\n  3x two\n  2x three", {})
    asked = []
    texts = [grammar.write(lambda options, n=n: asked.append(options) or n) for n in range(6)]
    assert texts == ["one", "two", "two", "two", "three", "three"]
    assert set(asked) == {6}


def test_tables_have_words_forms_and_articles():
    assert words("a fox,\n  two owls,  ten, or") == ["a fox", "two owls", "ten", "or"]
    assert pairs("red, old", "hat, cup", "here") == ["red hat here", "red cup here", "old hat here", "old cup here"]
    assert table("owl: hooted: flew, fox: barked: ran", "did", "moved", rule="order", did="deed") == Table(
        "order",
        [
            {"": "owl", "a": "an owl", "did": "hooted", "moved": "flew"},
            {"": "fox", "a": "a fox", "did": "barked", "moved": "ran"},
        ],
        {"did": "deed"},
    )
    with pytest.raises(ValueError):
        table("owl: hooted, fox", "did")


def test_the_seed_determines_the_texts():
    assert SMALL.generate(50, seed=3) == SMALL.generate(50, seed=3) == SMALL.generate(80, seed=3)[:50]
    assert SMALL.generate(50, seed=3) != SMALL.generate(50, seed=4)
    assert SMALL.generate(0) == []


def test_sampled_frequencies_match_the_probabilities():
    """4,000 texts; each of nine within four standard errors, and chi-square below the 0.9999 quantile, 31.8."""
    grammar = Grammar("tale:\n  3x {x=pet} and {y=pet}\n  {x=pet.A}, {x}!", {"pet": table("cat, dog, owl")})
    counts = Counter(grammar.generate(4000, seed=1))
    expected = {text: 4000 * float(p) for text, p in enumerated(grammar).items()}
    assert set(counts) == set(expected)
    for text, mean in expected.items():
        assert abs(counts[text] - mean) < 4 * math.sqrt(mean * (1 - mean / 4000))
    assert sum((counts[text] - mean) ** 2 / mean for text, mean in expected.items()) < 31.8


def test_a_text_with_given_entries_asks_for_the_other_choices_only():
    """The memory of each text, written with the same choices where nothing is given, gives that text again."""
    rng = random.Random(3)
    for _ in range(200):
        text, memory = SMALL.compose(lambda options: rng.randrange(options))
        (derivation,) = SMALL.derivations(text)
        assert derivation.memory == memory
        assert memory["hero"] in text and f"a {memory['first']}" in text.replace("an ", "a ")
    text, memory = SMALL.compose(lambda options: 0, {"hero": "Bob", "first": "elk", "last": "hen"})
    assert text == (
        "Bob sought one in fog. He met an elk. The elk and his dog barked. Bob lost a fox. "
        "Bob and the elk saw a hen: it clucked."
    ).replace("barked", "roared")
    assert memory == {"n": "one", "hero": "Bob", "first": "elk", "extra": "fox", "last": "hen"}


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "slot"),
    [
        ("{nosuch}", "{nosuch}"),
        ("{meet first}", "{meet first}"),
        ("{x=nosuch}", "{x=nosuch}"),
        ("{=nosuch}", "{=nosuch}"),
        ("{x:=nosuch.cat}", "{x:=nosuch.cat}"),
        ("{x:=pet.cow}", "{x:=pet.cow}"),
        ("{x=pet.deed}", "{x=pet.deed}"),
        ("{=pet.deed}", "{=pet.deed}"),
        ("{x=pet} {x.deed}", "{x.deed}"),
        ("{x=pet} {y}", "{y}"),
        ("{x=pet} {y.a}", "{y.a}"),
        ("{x=pet} {X}", "{X}"),
    ],
)
def test_a_slot_with_an_unknown_name_is_an_error(line, slot):
    with pytest.raises(ValueError, match=re.escape(slot)):
        Grammar(f"tale:\n  fine\n  {line}", {"pet": table("cat, dog")})
    with pytest.raises(ValueError, match=re.escape(slot)):  # in a rule that another one uses
        Grammar(f"tale:\n  {{inner}}\n\ninner:\n  {line}", {"pet": table("cat, dog")})


# --- broken rules -----------------------------------------------------------------------------------------------------

BROKEN = Grammar(
    """
tale:
  {n:=few.two}{opening} {x=animal} and {y=animal}. {close}
  {n:=few.three}{opening} {x=animal}, {y=animal} and {z=animal}. {close}

opening:
  {hero=name} with {n} friends and {toy=thing}:

close:
  The {x} {x.deed}. {hero} kept {hero.her} {toy}, {hero.she} did.
""",
    {
        "few": table("two, three", rule="count"),
        "name": PEOPLE,
        "thing": table("hat, cup", rule="thing"),
        "animal": ANIMALS,
    },
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Ann with two friends and hat: fox and owl. The fox barked. Ann kept her hat, she did.", None),
        ("Bob with three friends and cup: elk, hen and owl. The elk roared. Bob kept his cup, he did.", None),
        ("Ann with three friends and hat: fox and owl. The fox barked. Ann kept her hat, she did.", "count"),
        ("Ann with two friends and hat: fox, hen and owl. The fox barked. Ann kept her hat, she did.", "count"),
        ("Ann with two friends and hat: fox and fox. The fox barked. Ann kept her hat, she did.", "order"),
        ("Ann with two friends and hat: fox and owl. The owl barked. Ann kept her hat, she did.", "order"),
        ("Ann with two friends and hat: fox and owl. The fox hooted. Ann kept her hat, she did.", "deed"),
        ("Ann with two friends and hat: fox and owl. The fox barked. Bob kept her hat, she did.", "name"),
        ("Ann with two friends and hat: fox and owl. The fox barked. Ann kept his hat, she did.", "pronoun"),
        ("Ann with two friends and hat: fox and owl. The fox barked. Ann kept her hat, he did.", "pronoun"),
        ("Ann with two friends and hat: fox and owl. The fox barked. Ann kept her cup, she did.", "thing"),
        # two rules broken: the earlier one
        ("Ann with two friends and hat: fox and owl. The fox hooted. Ann kept her cup, she did.", "deed"),
        ("Ann with two friends and hat: fox and owl. The fox barked. Ann kept his cup, she did.", "pronoun"),
        ("Ann with three friends and hat: fox and owl. The fox barked. Ann kept her cup, he did.", "count"),
        ("Ann with two friends and hat: fox and owl. The owl hooted. Ann kept her hat, she did.", "order"),
        # what no table has, and what is no sentence
        ("Ann with two friends and hat: fox and ant. The fox barked. Ann kept her hat, she did.", "unknown sentence"),
        ("Ann with four friends and hat: fox and owl. The fox barked. Ann kept her hat, she did.", "unknown sentence"),
        ("Ann with two friends and hat: fox and owl. The fox barked. Ann kept her pin, she did.", "unknown sentence"),
        ("Ann with two friends and hat: fox and owl. The fox barked. Ann kept her hat, he did. ", "unknown sentence"),
        ("Ann with two friends and hat: fox and owl. The fox barked.", "unknown sentence"),
        ("", "unknown sentence"),
    ],
)
def test_the_first_broken_rule(text, rule):
    assert BROKEN.first_broken_rule(text) == rule
    assert math.isfinite(BROKEN.log_probability(text)) == (rule is None)


@pytest.mark.parametrize("order", [1, -1])
def test_the_derivation_with_the_fewest_errors_counts(order):
    """Read by one alternative, "a b c" breaks a rule early and late; by the other, one only, late."""
    grammar = Grammar(
        "tale:\n" + "\n".join(["  {x=letter} {x} {x}", "  {=letter} {y=sign} {y}"][::order]),
        {"letter": table("a, b, c", rule="early"), "sign": table("b, c", rule="late")},
    )
    assert grammar.first_broken_rule("a b c") == "late"
    assert grammar.first_broken_rule("a a b") == "early"
    assert grammar.first_broken_rule("a b b") is None
    assert [len(derivation.broken) for derivation in grammar.derivations("a b c", strict=False)] == [1, 2]


def test_a_broken_rule_has_its_position():
    grammar = Grammar("tale:\n  {x=pet}, {y=pet}: {x} {y}", {"pet": table("cat, dog, owl", rule="order")})
    (derivation,) = grammar.derivations("cat, dog: dog cat", strict=False)
    assert derivation.broken == ((10, "order"), (14, "order"))
    (derivation,) = grammar.derivations("cat, cat: cat cat", strict=False)
    assert derivation.broken == ((5, "order"),)
    assert list(grammar.derivations("cat, dog: dog cat")) == []


# --- any text ---------------------------------------------------------------------------------------------------------

SAMPLES = SMALL.generate(40, seed=5)
TRUTH = enumerated(SMALL)


@st.composite
def spoiled(draw):
    """A text of the grammar in which a piece was replaced by a piece of another, or by anything."""
    text, other = draw(st.sampled_from(SAMPLES)), draw(st.sampled_from(SAMPLES))
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    first, last = sorted(draw(st.tuples(*[st.integers(0, len(other))] * 2)))
    piece = draw(st.sampled_from([other[first:last], other[start:end], ""]) | st.text(max_size=5))
    return text[:start] + piece + text[end:]


@settings(max_examples=100, deadline=None)
@given(st.text() | st.sampled_from(SAMPLES) | spoiled())
@example("")
@example(SAMPLES[0] + SAMPLES[0])
@example(SAMPLES[0] + "\n")
def test_any_text_has_a_probability_and_a_first_broken_rule(text):
    log_p, rule = SMALL.log_probability(text), SMALL.first_broken_rule(text)
    assert (
        log_p == pytest.approx(ln(TRUTH[text]), rel=TOLERANCE, abs=TOLERANCE) if text in TRUTH else log_p == -math.inf
    )
    assert (rule is None) == (text in TRUTH)
    assert rule in {None, "count", "name", "pronoun", "order", "deed", "unknown sentence"}
    assert log_p <= 0


def test_a_table_without_a_rule_breaks_the_rule_of_its_own_name():
    grammar = Grammar("tale:\n  {x=pet} {y=pet}: {x}", {"pet": table("cat, dog, owl")})
    for text in ("cat dog: dog", "cat cat: cat"):
        assert grammar.log_probability(text) == -math.inf
        assert grammar.first_broken_rule(text) == "pet"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{x=pet} {x}\n  {x=toy} {x}", "{x=toy}"),
        ("{x} {x=pet}", "{x}"),
        ("{x=pet} {x}\n  no {x}", "{x}"),
        ("{x=pet} {x a}", "{x a}"),
        ("{x=pet} {x-a}", "{x-a}"),
        ("{x=pet", "{x=pet"),
        ("{inner.a}\n\ninner:\n  fine", "{inner.a}"),
    ],
)
def test_a_slot_that_cannot_be_filled_is_an_error(lines, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar(f"tale:\n  {lines}", {"pet": table("cat, dog"), "toy": table("hat, cup")})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("tale:\n  {one}\n\none:\n  a {one}\n  b", "'one' leads back to itself"),
        ("tale:\n  {one}\n\none:\n  a {two}\n\ntwo:\n  {one}", "leads back to itself"),
        ("story:\n  a", "no rule 'tale'"),
        ("tale:\n\nother:\n  a", "'tale' has no line"),
    ],
)
def test_endless_rules_are_errors(rules, message):
    with pytest.raises(ValueError, match=message):
        Grammar(rules, {})


@pytest.mark.parametrize("entries", ["fox: barked, seal", "fox: barked, ", "fox: barked: twice"])
def test_an_entry_without_its_forms_is_an_error(entries):
    with pytest.raises(ValueError, match="is not of the form 'word: deed'"):
        table(entries, "deed")
