"""Short tales from a grammar whose entropy is known exactly, so that a loss can be compared with its minimum.

    generate(2, seed=0)         # two tales
    log_probability(tale)       # ln p(tale) in nats, from the text alone; -inf if the grammar cannot write it
    entropy()                   # -sum p ln p over all tales, in nats per tale, by recursion
    first_broken_rule(text)     # None for a tale, else its first error: "pronoun", "thing", "order", "count", ...

The beginning of a tale determines its end: the hero's name fixes the pronouns, the thing lost in the first sentence is
found in the last, friends help in the order in which they were met, and a trial to be done four times is done four
times. A model has to look back to get any of it right.

RULES has the sentences and TABLES the words, in the notation of gpt/text/notation.py. To add a helper, a villain or a
trial, add an entry to its table; to add a sentence, add a line to its rule. The entropy and all other figures follow.
No text may have two derivations; a test checks that.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from gpt.text.grammar import Grammar
from gpt.text.notation import pairs, table, words

RULES = """
tale:
  2x {friends:=few.two}{start} {second_meeting} {arrival} {two_help} {victory} {two_thanks} {found}
  {friends:=few.three}{start} {second_meeting} {third_meeting} {arrival} {three_help} {victory} {three_thanks} {found}

start:
  {lost} {advice} {first_meeting}

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
  {hero} told the {first} about the {villain}.
  "Why so {=mood}, {hero}?" asked the {first}. "The {villain} has my {thing}," said {hero.she}.

tell_second:
  "The {first} and I are looking for the {villain}," said {hero}.
  The {first} told the {second} about {hero.her} {thing}.
  "Where is the {first} taking you?" asked the {second}. "To the {villain}," said {hero.she}.

tell_third:
  "The {first}, the {second} and I seek my {thing}," said {hero}.
  The {first} and the {second} told the {third} about the {villain}.

promise x:
  "I fear no {villain}," said the {x}.
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

GIRLS = """Anna, Bella, Clara, Dora, Ella, Fanny, Greta, Hanna, Ida, Julia, Kate, Lucy, Mina, Nora, Olga, Polly, Rosa,
Sara, Tilda, Vera"""
BOYS = """Adam, Ben, Carl, David, Erik, Felix, Georg, Hugo, Ivan, Jacob, Karl, Leo, Martin, Nils, Otto, Paul, Robin,
Simon, Tom, Victor"""
COUNT = ["one", "two", "three", "four", "five"]

# Words after a colon are further forms of an entry. A text that recalls a wrong entry breaks the rule named like the
# table, or the one given as `rule`.
TABLES = {
    "name": table(
        [f"{girl}: girl: she: her: her" for girl in words(GIRLS)]
        + [f"{boy}: boy: he: his: him" for boy in words(BOYS)],
        "girl", "she", "her", "him", girl="pronoun", she="pronoun", her="pronoun", him="pronoun",
    ),
    "thing": table(
        pairs(
            "silver, golden, wooden, red, blue, green, white, black, little, old, round, shiny",
            """bell, key, ball, cup, ring, drum, kite, lamp, spoon, whistle, basket, boat, hat, comb, flute, mirror,
            button, ribbon, candle, clock""",
        )
    ),
    "animal": table(
        """fox: barked, owl: hooted, bee: buzzed, frog: croaked, horse: neighed, donkey: brayed, cat: mewed,
        goose: hissed, rooster: crowed, bear: growled, wolf: howled, mouse: squeaked, pig: grunted, sheep: bleated,
        cow: mooed, duck: quacked, raven: cawed, cricket: chirped, lion: roared, squirrel: chattered, dove: cooed,
        hen: clucked, turkey: gobbled, parrot: squawked""",
        "deed", rule="order", deed="deed",
    ),
    "villain": table("giant, witch, troll, ogre, dragon, wizard, goblin, robber, pirate, ghost, miser, magician"),
    "trial": table(
        """knock at the gate: knocked at the gate, ring at the door: rang at the door,
        blow into the horn: blew into the horn, stamp on the bridge: stamped on the bridge,
        tap on the window: tapped on the window, call from the hill: called from the hill,
        clap before the cave: clapped before the cave, walk around the tower: walked around the tower""",
        "did",
    ),
    "few": table("two, three", rule="count"),
    "number": table([f"{COUNT[n]}: {', '.join(COUNT[: n + 1])}." for n in range(1, 5)], "counted", rule="count"),
    "nature": table(
        """clever, brave, merry, shy, curious, gentle, cheerful, stubborn, kind, bold, poor, lazy, polite, modest,
        dreamy, nimble"""
    ),
    "home": table(
        """by the sea, by the lake, in the mountains, in a small village, near the forest, on a farm, in a lighthouse,
        near the harbour, in a windmill, on an island, in a great city, behind the church, under a steep roof,
        in the valley, beside the market, above a bakery"""
    ),
    "elder": table("grandmother, grandfather, mother, father, aunt, uncle, teacher, neighbour, sister, brother"),
    "place": table(
        pairs(
            "by the, near the, behind the",
            "old, quiet, dark, hidden, lonely, snowy, mossy, sunny",
            "mill, well, bridge, pond, wall, barn, oak, fence, river, meadow, garden, chapel, rock, road",
        )
    ),
    "way": table(
        pairs(
            "across, through, past, beyond",
            """the fields, the woods, the hills, the swamp, the meadows, the heath, the dunes, the vineyards,
            the orchards, the moors, the marshes, the pastures""",
        )
    ),
    "mood": table("sad, pale, quiet, tired, angry, restless, worried, silent, gloomy, upset"),
    "lair": table("castle, cave, tower, palace, fortress, hut, ruin, dungeon, mansion, den, cellar, cottage"),
    "hour": table("at midnight, at noon, at dawn, at sunset, towards evening, that night, before daybreak, at last"),
    "fled": table(
        """ran away, fled into the forest, leapt into the river, hid under the table, ran for the hills,
        fell down the stairs, sailed away, vanished like smoke"""
    ),
    "frightened": table("frightened, terrified, amazed, alarmed, confused, startled, ashamed, dizzy"),
    "mercy": table("mercy, help, spare me, monsters, stop it, go away"),
    "hidden": table(
        pairs(
            "under, behind, beside",
            """the bed, the stove, the carpet, the cupboard, a barrel, a chest, the stairs, the curtain, a bench,
            some straw, old bones, the throne, the chimney, empty bottles, dusty books, an anvil""",
        )
    ),
    "ever_after": table(
        """and never lost it again, and all danced for joy, and everyone went to supper, and all feasted for a week,
        and slept well that night, and all stayed friends for ever, and sang all the way, and told the tale for years,
        and laughed until morning"""
    ),
}  # fmt: skip

# --- tales ------------------------------------------------------------------------------------------------------------


@cache
def grammar() -> Grammar:
    """Return the grammar of RULES and TABLES."""
    return Grammar(RULES, TABLES)


@cache
def fingerprint() -> str:
    """Return eight hexadecimal digits that identify this grammar: they change with any rule or table."""
    return hashlib.sha256(repr((RULES, TABLES)).encode()).hexdigest()[:8]


def generate(n: int, seed: int = 0) -> list[str]:
    """Return n tales, drawn independently; the seed determines them."""
    return grammar().generate(n, seed)


def log_probability(text: str) -> float:
    """Return ln p(text) in nats, from the text alone; -inf if the grammar cannot write it."""
    return grammar().log_probability(text)


def entropy() -> float:
    """Return H = -sum p ln p over all tales, in nats per tale, exactly. Shannon 1948, section 6."""
    return grammar().entropy()


def first_broken_rule(text: str) -> str | None:
    """Return None for a tale, else the first rule that it breaks; see `Grammar.first_broken_rule`."""
    return grammar().first_broken_rule(text)


def viable_prefix(text: str) -> int:
    """Return the number of leading characters of a text with which some tale begins, too: where its first error is."""
    return grammar().viable_prefix(text)


class Facts(NamedTuple):
    """Who and what a tale is about, in its own words."""

    hero: str
    owner: str  # "his" or "her"
    thing: str
    villain: str
    friends: list[str]  # in the order in which they are met


def facts(tale: str) -> Facts:
    """Return who lost what, who took it, and who helped. The text must be a tale."""
    hero, villain = (
        re.search(rf"\b({'|'.join(entry[''] for entry in TABLES[name].entries)})\b", tale)[1]
        for name in ("name", "villain")
    )
    owner, thing = re.search(r"lost (his|her) (\w+ \w+)\.", tale).groups()
    return Facts(hero, owner, thing, villain, re.findall(r"(?:met|sat) an? (\w+)\.", tale))


def summary(tale: str) -> str:
    """Return a tale in one sentence: who lost what, who took it, and who is thanked."""
    hero, owner, thing, villain, friends = facts(tale)
    *others, last = (f"the {friend}" for friend in friends)
    return f"{hero} lost {owner} {thing}, the {villain} took it, and {hero} thanked {', '.join(others)} and {last}."


@dataclass(frozen=True)
class GrammarReport:
    """How many of some texts are tales, and which rules the others break."""

    texts: int
    accepted: int  # texts that the grammar can write
    unseen: int  # accepted texts that are not in the training set
    log_probability: float  # mean over accepted texts, in nats per tale; NaN if there are none
    broken: dict[str, int]  # first rule broken -> number of rejected texts, most frequent first


def check_tales(texts: Iterable[str], known: Collection[str] = ()) -> GrammarReport:
    """Count which texts are tales; `known` are the training texts, to count the accepted ones that are new."""
    n, unseen, log_probabilities, broken = 0, 0, [], Counter()
    for text in texts:
        n += 1
        if rule := first_broken_rule(text):
            broken[rule] += 1
        else:
            log_probabilities.append(log_probability(text))
            unseen += text not in known
    mean = sum(log_probabilities) / len(log_probabilities) if log_probabilities else math.nan
    return GrammarReport(n, len(log_probabilities), unseen, mean, dict(broken.most_common()))
