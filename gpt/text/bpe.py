"""Train byte-pair encoding: the most frequent pair of neighbouring tokens becomes a new token, over and over.

Sennrich et al. 2016, arXiv:1508.07909, on bytes and within words, as in GPT-2. All distinct words lie in one array of
tokens. A merge is a few array operations at the positions of its pair.
"""

import heapq
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import regex
from tqdm import tqdm

from gpt.system.text import check_text, chunk_text
from gpt.tokenizer import GPT2_PATTERN, BytePairTokenizer

MAX_WORD_LENGTH = 256  # characters; a longer word, such as a text without spaces, is split
BOUNDARY = 0xFF  # a byte that UTF-8 never uses: it separates words, and replaces the right token of a merged pair
SHIFT = 32  # bits: a pair of tokens is stored as one integer, left << 32 | right


def train_bpe(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Learn byte pairs from texts, with a progress bar on a terminal.

    `vocab_size` counts the 256 bytes, the merges and the end-of-text token. The vocabulary is smaller if too few pairs
    occur twice. Raises ValueError for a lone surrogate.
    """
    n_merges = vocab_size - 257
    merges = itertools.islice(learn_merges(count_words(map(check_text, texts))), n_merges)
    bar = tqdm(merges, "merging", n_merges, unit="pairs", unit_scale=True, disable=not sys.stderr.isatty())
    return BytePairTokenizer.from_merges(list(bar))


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count each word of the texts. A word of more than MAX_WORD_LENGTH characters is counted in parts."""
    words = Counter()
    for text in texts:
        for piece in chunk_text(text):
            words.update(regex.findall(GPT2_PATTERN, piece))
    for word in [word for word in words if len(word) > MAX_WORD_LENGTH]:
        count = words.pop(word)
        for i in range(0, len(word), MAX_WORD_LENGTH):
            words[word[i : i + MAX_WORD_LENGTH]] += count
    return words


def learn_merges(words: Counter[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs to merge, in order, until no pair occurs twice. The k-th pair, from 0, becomes token 256 + k.

    Of equally frequent pairs the one with the smaller ids comes first: the same text gives the same tokens.
    """
    text = _Words(words)
    counts: dict[int, int] = {}  # current count of each pair that occurred at least twice
    positions: dict[int, np.ndarray] = {}  # where a pair occurred when its newer token was made; it never gains any
    heap: list[tuple[int, int]] = []  # (-count, pair); the count may have fallen since

    def add(at: np.ndarray) -> None:
        for pair, count, found in text.pairs(at):
            if count > 1:
                counts[pair], positions[pair] = count, found
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
        at = text.find(left, right, positions.pop(pair))
        for other, count, _ in text.pairs(np.unique(np.concatenate([text.previous[at], at, text.next[at]]))):
            if other in counts:
                counts[other] -= count
        text.merge(at, new_id)
        add(np.unique(np.concatenate([text.previous[at], at])))
        new_id += 1
        yield left, right


class _Words:
    """The tokens of all distinct words in one array, doubly linked. A pair has the position of its left token."""

    def __init__(self, words: Counter[str]):
        encoded = [word.encode() for word in words]
        end = bytes([BOUNDARY])
        self.tokens = np.frombuffer(end + end.join(encoded) + end, np.uint8).astype(np.int32)
        self.next = np.arange(1, len(self.tokens) + 1, dtype=np.int32)
        self.previous = np.arange(-1, len(self.tokens) - 1, dtype=np.int32)
        lengths = np.array([1, *(len(word) + 1 for word in encoded)])
        self.counts = np.repeat(np.array([0, *words.values()]), lengths)  # of the word at each position

    def pairs(self, at: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield each distinct pair at these positions, its count in the text, and its positions among them."""
        left, right = self.tokens[at], self.tokens[self.next[at]]
        inside = (left != BOUNDARY) & (right != BOUNDARY)
        at, pairs = at[inside], (left[inside].astype(np.int64) << SHIFT) | right[inside]
        order = np.argsort(pairs, kind="stable")
        at, pairs = at[order], pairs[order]
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        counts = np.add.reduceat(self.counts[at], starts) if len(starts) else starts
        bounds = [*starts.tolist(), len(pairs)]
        for pair, count, (start, end) in zip(pairs[starts].tolist(), counts.tolist(), pairwise(bounds), strict=True):
            yield pair, count, at[start:end]

    def find(self, left: int, right: int, at: np.ndarray) -> np.ndarray:
        """Return those of the ascending positions where the pair still is, without overlaps: in aaa, the first."""
        at = at[(self.tokens[at] == left) & (self.tokens[self.next[at]] == right)]
        if left != right:
            return at
        index = np.arange(len(at))
        starts_run = np.append(True, at[1:] != self.next[at[:-1]])[: len(at)]
        nth = index - np.maximum.accumulate(np.where(starts_run, index, 0))  # within its run of adjacent positions
        return at[nth % 2 == 0]

    def merge(self, at: np.ndarray, new_id: int) -> None:
        """Replace the pair at each position by the token `new_id`."""
        removed = self.next[at]
        self.tokens[at], self.tokens[removed] = new_id, BOUNDARY
        self.next[at] = self.next[removed]
        self.previous[self.next[at]] = at
