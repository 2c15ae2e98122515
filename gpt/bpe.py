"""Byte pairs learned from text: again and again the most frequent pair of neighbouring tokens becomes a token.

Sennrich et al. 2016, arXiv:1508.07909, on bytes and within words, as in GPT-2. All distinct words stand in one array of
tokens, so that a merge is a few array operations at the places of its pair, wherever they are.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import regex

from gpt.text.sources import chunk_text

LONGEST_WORD = 256  # characters; longer words, such as a text without spaces, are learned from in parts
END = 0xFF  # a byte that UTF-8 never has: it stands around each word, and where a merge has taken a token away
SHIFT = 32  # bits: a pair of tokens is kept as one integer, left << 32 | right

# GPT-2's rule for cutting text into words before any merge (Radford et al. 2019, section 2.2): English contractions,
# then letters, digits or other signs, each with the one space before them, then runs of white space.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs in the texts. One of more than LONGEST_WORD characters is counted in parts."""
    words = Counter()
    for text in texts:
        for piece in chunk_text(text):
            words.update(regex.findall(GPT2_PATTERN, piece))
    for word in [word for word in words if len(word) > LONGEST_WORD]:
        count = words.pop(word)
        for i in range(0, len(word), LONGEST_WORD):
            words[word[i : i + LONGEST_WORD]] += count
    return words


def learn_merges(words: Counter[str]) -> Iterator[tuple[int, int]]:
    """The pairs to merge, in their order, until none occurs twice; the k-th, from 0, makes the token 256 + k.

    Of equally frequent pairs the one with the smaller ids goes first, so that the same text gives the same tokens.
    """
    text = _Words(words)
    counts: dict[int, int] = {}  # of the pairs that were worth a merge when their younger token came up
    places: dict[int, np.ndarray] = {}  # where they were then; a pair comes to no new place later
    heap: list[tuple[int, int]] = []  # (-count, pair), where the count may have fallen since

    def add(slots: np.ndarray) -> None:
        for pair, count, found in text.pairs(slots):
            if count > 1:
                counts[pair], places[pair] = count, found
                heapq.heappush(heap, (-count, pair))

    add(np.arange(len(text.tokens) - 1))
    new_id = 256
    while heap:
        negative_count, pair = heapq.heappop(heap)
        if counts[pair] < -negative_count:
            heapq.heappush(heap, (-counts[pair], pair))
            continue
        if counts[pair] < 2:
            return
        left, right = pair >> SHIFT, pair & ((1 << SHIFT) - 1)
        at = text.find(left, right, places.pop(pair))
        for other, count, _ in text.pairs(np.unique(np.concatenate([text.previous[at], at, text.next[at]]))):
            if other in counts:
                counts[other] -= count
        text.merge(at, new_id)
        add(np.unique(np.concatenate([text.previous[at], at])))
        new_id += 1
        yield left, right


class _Words:
    """Each distinct word as its current tokens: one array, in which every token knows where its neighbours are.

    A pair is at the place of its left token, which is also where the token that it becomes will be.
    """

    def __init__(self, words: Counter[str]):
        spellings = [word.encode() for word in words]
        end = bytes([END])
        self.tokens = np.frombuffer(end + end.join(spellings) + end, np.uint8).astype(np.int32)
        self.next = np.arange(1, len(self.tokens) + 1, dtype=np.int32)
        self.previous = np.arange(-1, len(self.tokens) - 1, dtype=np.int32)
        lengths = np.array([1, *(len(spelling) + 1 for spelling in spellings)])
        self.counts = np.repeat(np.array([0, *words.values()]), lengths)  # of the word that a place belongs to

    def pairs(self, places: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """The pairs at these places, each with how often it occurs there in the text, and at which of them."""
        left, right = self.tokens[places], self.tokens[self.next[places]]
        inside = (left != END) & (right != END)
        places, pairs = places[inside], (left[inside].astype(np.int64) << SHIFT) | right[inside]
        order = np.argsort(pairs, kind="stable")
        places, pairs = places[order], pairs[order]
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        counts = np.add.reduceat(self.counts[places], starts) if len(starts) else starts
        bounds = [*starts.tolist(), len(pairs)]
        for pair, count, (start, end) in zip(pairs[starts].tolist(), counts.tolist(), pairwise(bounds), strict=True):
            yield pair, count, places[start:end]

    def find(self, left: int, right: int, places: np.ndarray) -> np.ndarray:
        """At which of these places, ascending, the pair still is; of aaa, which holds it twice, the first counts."""
        at = places[(self.tokens[places] == left) & (self.tokens[self.next[places]] == right)]
        if left != right:
            return at
        index = np.arange(len(at))
        starts_run = np.append(True, at[1:] != self.next[at[:-1]])[: len(at)]
        nth = index - np.maximum.accumulate(np.where(starts_run, index, 0))  # in its run of places side by side
        return at[nth % 2 == 0]

    def merge(self, at: np.ndarray, new_id: int) -> None:
        """Have each of these places hold the token `new_id`, and the place after it nothing."""
        gone = self.next[at]
        self.tokens[at], self.tokens[gone] = new_id, END
        self.next[at] = self.next[gone]
        self.previous[self.next[at]] = at
