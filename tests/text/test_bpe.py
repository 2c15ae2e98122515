"""gpt/text/bpe.py against brute force, and GPT2_PATTERN against the published one."""

import itertools
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.text.bpe import MAX_WORD_LENGTH, count_words, learn_merges
from gpt.tokenizer import GPT2_PATTERN

STORY = (Path(__file__).parents[2] / "data" / "story.txt").read_text(encoding="utf-8")

# The rule as OpenAI published it: https://github.com/openai/gpt-2/blob/master/src/encoder.py
PUBLISHED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

COMMON = "aeAE019 \n\t\r'’.,!$_-sdtmrevl\u00a0\u3000é中😀\u0301"
MIXED = st.text(st.one_of(st.sampled_from(COMMON), st.characters(codec="utf-8")))
REPETITIVE = st.text("abs  '\n\té中1", max_size=80)
quick = settings(deadline=None, derandomize=True, max_examples=100)


def learned(texts, n_merges=None):
    return list(itertools.islice(learn_merges(count_words(texts)), n_merges))


def replaced(spelling, pair, new_id):
    result = []
    for i in spelling:
        if result and result[-1] == pair[0] and i == pair[1]:
            result[-1] = new_id
        else:
            result.append(i)
    return result


def brute_force_merges(texts, n_merges):
    """Recount all pairs before each merge; the highest count goes first, then the smallest pair."""
    words = [list(word.encode()) for text in texts for word in regex.findall(PUBLISHED_PATTERN, text)]
    merges = []
    while len(merges) < n_merges:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        words = [replaced(word, best, 256 + len(merges)) for word in words]
        merges.append(best)
    return merges


# --- learning merges --------------------------------------------------------------------------------------------------


@quick
@given(text=MIXED)
def test_gpt2_pattern_splits_as_the_published_one(text):
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(PUBLISHED_PATTERN, text)


@quick
@given(texts=st.lists(REPETITIVE, max_size=3), n_merges=st.integers(0, 33))
def test_merges_equal_brute_force(texts, n_merges):
    assert learned(texts, n_merges) == brute_force_merges(texts, n_merges)


def test_merges_of_prose_equal_brute_force():
    assert learned([STORY[:5000]], 63) == brute_force_merges([STORY[:5000]], 63)


def test_merges_of_a_worked_example():
    """From Wikipedia's article on byte pair encoding: aa, then ab as the smaller of two equals, then aaab."""
    a, b, aa, ab = 97, 98, 256, 257
    assert learned(["aaabdaaabac"]) == [(a, a), (a, b), (aa, ab)]


@pytest.mark.parametrize("texts", [[], [""], ["abc"]])
def test_no_merge_without_a_repeated_pair(texts):
    assert learned(texts) == []


def test_a_million_spaces_are_one_word_in_parts():
    assert learned([" " * 1_000_000], 3) == [(32, 32), (256, 256), (257, 257)]


def test_an_endless_word_is_counted_in_parts():
    """200,000 letters without a space take a second, not an hour."""
    words = count_words(["".join(random.Random(0).choices("abcdefgh", k=200_000))])
    assert max(map(len, words)) == MAX_WORD_LENGTH
    assert sum(len(word) * count for word, count in words.items()) == 200_000
    assert len(list(itertools.islice(learn_merges(words), 43))) == 43
