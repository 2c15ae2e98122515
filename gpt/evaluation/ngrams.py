"""n-gram language models with interpolated Kneser-Ney smoothing."""

import numpy as np

from gpt.objectives.unigram import discounts, unigram_probabilities


class _Counts:
    """Counts of n-grams and the interpolated Kneser-Ney estimate from them.

    An n-gram is packed into one integer, context · V + token, so that counting is sorting.
    """

    def __init__(self, ngrams: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.ngrams, self.counts, self.vocab_size = ngrams, counts, vocab_size
        self.discounts = discounts(counts)
        contexts = ngrams // vocab_size
        self.contexts, first = np.unique(contexts, return_index=True)
        self.totals = np.add.reduceat(counts, first)  # of each context's counts
        self.freed = np.add.reduceat(self._discount(counts), first)  # what was subtracted from them

    def _discount(self, counts: np.ndarray) -> np.ndarray:
        return self.discounts[np.minimum(counts, 3)]

    def probability(self, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return p(token | context), given the estimate `lower` from a context shorter by one token.

        p = (c(context, token) - D) / c(context) + (sum of D in the context) / c(context) · lower; `lower` itself if the
        context is unseen.
        """
        counts = _look_up(self.ngrams, self.counts, contexts * self.vocab_size + tokens)
        totals = _look_up(self.contexts, self.totals, contexts)
        freed = _look_up(self.contexts, self.freed, contexts)
        seen = totals > 0
        totals = np.where(seen, totals, 1)
        return np.where(seen, (counts - self._discount(counts) + freed * lower) / totals, lower)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the values of some keys among sorted `keys`; 0 for a missing key."""
    indices = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[indices] == wanted, values[indices], 0)


def ngram_log_probabilities(train: np.ndarray, text: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """Return ln p in nats of each token of `text` after the first, given the n - 1 tokens before it: (len(text) - 1,).

    An interpolated modified Kneser-Ney model of order n, counted on `train`: lower orders count the different contexts
    of an n-gram, not its occurrences. Unseen tokens have a probability above 0. Kneser and Ney 1995; Chen and Goodman
    1999, "An empirical study of smoothing techniques for language modeling".
    """
    train, text = np.asarray(train, np.int64), np.asarray(text, np.int64)
    n = min(n, len(train))
    for order in range(1, n + 1):  # from contexts of order - 1 tokens
        ngrams = _pack_ngrams(train, min(order + 1, n), vocab_size)
        if order < n:  # drop the first token: each distinct longer n-gram counts once
            ngrams = np.unique(ngrams) % vocab_size**order
        if order == 1:
            estimate = unigram_probabilities(np.bincount(ngrams, minlength=vocab_size))[text[1:]]
            continue
        level = _Counts(*np.unique(ngrams, return_counts=True), vocab_size)
        first = order - 1  # tokens before it have shorter contexts: they keep their estimate
        contexts = _pack_ngrams(text[first - order + 1 : -1], order - 1, vocab_size)[: len(text) - first]
        estimate[first - 1 :] = level.probability(contexts, text[first:], estimate[first - 1 :])
    return np.log(estimate)


def _pack_ngrams(tokens: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """Return all n-grams of a text, each packed into one integer."""
    packed = np.zeros(max(0, len(tokens) - n + 1), np.int64)
    for i in range(n):
        packed = packed * vocab_size + tokens[i : i + len(packed)]
    return packed
