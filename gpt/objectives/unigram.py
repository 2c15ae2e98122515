"""The unigram model: a token's probability is its frequency, whatever comes before it."""

import numpy as np

MAX_TOKENS = 10_000_000  # of a split that baselines count and score


def discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts D(0) .. D(3) of modified Kneser-Ney for the counts of n-grams; 3 stands for 3 or more.

    Where the formula gives 0 or less, or no n-gram has the count i, D(i) is i · Y: with a discount of 0, unseen tokens
    would have no probability. Chen and Goodman 1999, equation 26.
    """
    n1, n2, n3, n4 = (int((counts == i).sum()) for i in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.5
    found = [i - (i + 1) * y * n_next / n if n else 0.0 for i, n, n_next in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
    return np.array([0.0, *(d if d > 0 else i * y for i, d in enumerate(found, start=1))])


def unigram_probabilities(counts: np.ndarray) -> np.ndarray:
    """Return p of each token, (V,), from its count, (V,): discounted counts, interpolated with 1 / V."""
    discounted = discounts(counts)[np.minimum(counts, 3)]
    return (counts - discounted + discounted.sum() * (1 / len(counts))) / counts.sum()


def unigram_loss(train: np.ndarray, val: np.ndarray, vocab_size: int) -> float:
    """Return the mean -ln p in nats per token of `val` under the unigram model of `train`, both token ids."""
    train_counts, val_counts = (np.bincount(tokens, minlength=vocab_size) for tokens in (train, val))
    return float(-np.log(unigram_probabilities(train_counts)) @ val_counts / val_counts.sum())
