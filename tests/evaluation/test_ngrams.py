"""n-grams against the paper's definition in plain dictionaries, and against a source of known entropy."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from numerics import tolerance

from gpt.evaluation.ngrams import ngram_log_probabilities
from gpt.text.sources import KNOWN

STORY = list(KNOWN["story"].path.read_bytes())


class KneserNey:
    """Interpolated modified Kneser-Ney by its definition: Chen and Goodman 1999, section 3 and equations 24 to 26.

    c(h w) counts the occurrences of an n-gram of the highest order; for a lower order, the different tokens that occur
    before it. Equation 26 does not define the discount of a count i that no n-gram has: it is i · Y here.
    """

    def __init__(self, train, n, vocab_size):
        self.vocab_size = vocab_size
        self.levels = []  # of contexts of 0, 1, ... n - 1 tokens: context -> token -> c
        self.discounts = []
        for order in range(1, n + 1):
            count = defaultdict(lambda: defaultdict(int))
            if order == n:
                for i in range(len(train) - n + 1):
                    count[tuple(train[i : i + n - 1])][train[i + n - 1]] += 1
            else:
                for gram in {tuple(train[i : i + order + 1]) for i in range(len(train) - order)}:
                    count[gram[1:-1]][gram[-1]] += 1
            having = defaultdict(int)  # i -> number of n-grams with c = i
            for followers in count.values():
                for c in followers.values():
                    having[c] += 1
            y = having[1] / (having[1] + 2 * having[2])
            discounts = [i - (i + 1) * y * having[i + 1] / having[i] if having[i] else i * y for i in (1, 2, 3)]
            assert all(0 < d <= i for i, d in enumerate(discounts, start=1)), "a text that the paper's formula suits"
            self.levels.append(count)
            self.discounts.append([0, *discounts])

    def probability(self, token, context):
        """Return p(token | context) for a context of at most n - 1 tokens."""
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        followers = self.levels[len(context)].get(tuple(context))
        if followers is None:
            return lower
        discounts = self.discounts[len(context)]
        total = sum(followers.values())
        freed = sum(discounts[i] * sum(min(c, 3) == i for c in followers.values()) for i in (1, 2, 3))
        count = followers.get(token, 0)
        return (count - discounts[min(count, 3)] + freed * lower) / total


def rounding(train, n, log_probabilities):
    """Return the tolerance of ln p: at each order a sum of discounts over at most all different tokens."""
    return tolerance(n * len(set(train)), 1, torch.tensor(log_probabilities))


def zipf_text(n_words, vocab_size, seed):
    """Return random words of one to four tokens, some frequent and some unique, as in a language.

    The first words occur at the end again.
    """
    draw = np.random.default_rng(seed)

    def zipf(n_options, n):
        p = 1 / np.arange(1, n_options + 1)
        return draw.choice(n_options, n, p=p / p.sum()).tolist()

    words = [zipf(vocab_size, draw.integers(1, 5)) for _ in range(2 * vocab_size)]
    chosen = zipf(len(words), n_words)
    return [token for word in [*chosen, *chosen[:4]] for token in words[word]]


def assert_follows_the_definition(train, text, n, vocab_size):
    """Compare ln p of all tokens with a whole context: the first n - 2 after the first token have a shorter one."""
    model = KneserNey(train, n, vocab_size)
    places = range(max(1, n - 1), len(text))
    truth = [math.log(model.probability(text[i], text[i - n + 1 : i])) for i in places]
    found = ngram_log_probabilities(np.array(train), np.array(text), n, vocab_size)
    assert found.shape == (len(text) - 1,)
    np.testing.assert_allclose(found[places[0] - 1 :], truth, rtol=0, atol=rounding(train, n, truth))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ngrams_of_random_text_equal_the_definition(n, seed):
    """The text has contexts and tokens that the training text lacks."""
    train = zipf_text(1000, 200, seed)
    text = [*train[500:800], *zipf_text(200, 220, seed + 10)]
    assert_follows_the_definition(train, text, n, 220)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngrams_of_a_story_equal_the_definition(n):
    assert_follows_the_definition(STORY[:20_000], STORY[40_000:41_000], n, 256)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngrams_of_a_large_vocabulary_do_not_overflow(n):
    """50257^4 is two thirds of the largest int64; the ids here are the vocabulary's last."""
    train = [50256 - token for token in zipf_text(1000, 200, 3)]
    text = [*train[500:800], *(50256 - token for token in zipf_text(200, 220, 4))]
    assert_follows_the_definition(train, text, n, 50257)
    found = ngram_log_probabilities(np.array(train, np.uint16), np.array(text, np.uint16), n, 50257)
    assert np.array_equal(found, ngram_log_probabilities(train, text, n, 50257))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_first_tokens_have_shorter_contexts(n):
    """Token i < n - 1 has a context of i tokens. No padding precedes it, such as the first token, frequent here."""
    train = [*zipf_text(1000, 200, 0), *[0] * 20, *zipf_text(100, 200, 1)]
    text = [0, 0, 1, 0, 2]
    model = KneserNey(train, n, 200)
    truth = [math.log(model.probability(text[i], text[max(0, i - n + 1) : i])) for i in range(1, len(text))]
    np.testing.assert_allclose(
        ngram_log_probabilities(train, text, n, 200), truth, rtol=0, atol=rounding(train, n, truth)
    )
    for length in range(2, 5):  # shorter than the context, too
        found = ngram_log_probabilities(train, text[:length], n, 200)
        np.testing.assert_allclose(found, truth[: length - 1], rtol=0, atol=rounding(train, n, truth))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_ngrams_at_the_start_of_the_training_text_count(n):
    """201 occurs before 202 once, at the very start, and no other token does."""
    train, text = [201, 202, 203, *zipf_text(1000, 200, 5)], [5, 202, 203, 202, 6, 7, 201, 202, 203]
    assert_follows_the_definition(train, text, n, 204)


def discounts(counts):
    """Return D(c) for each count c of a unigram model: p(w) - p(an unseen token) = (c(w) - D(c(w))) / N."""
    train = np.repeat(np.arange(len(counts)), counts)
    new = len(counts)
    p = np.exp(ngram_log_probabilities(train, [0, *range(new + 1)], 1, new + 1))
    return {c: c - len(train) * (p[token] - p[new]) for token, c in enumerate(counts)}


def test_discounts_by_hand():
    """Counts of counts 4, 3, 2, 1: Y = 4 / (4 + 2·3) = 0.4, and D1 = 1 - 2Y·3/4, D2 = 2 - 3Y·2/3, D3 = 3 - 4Y·1/2."""
    counts = [1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 9]
    truth = {1: 0.4, 2: 1.2, 3: 2.2, 4: 2.2, 9: 2.2}
    assert discounts(counts) == pytest.approx(truth, abs=tolerance(len(counts), sum(counts)))


@pytest.mark.parametrize(
    ("counts", "truth"),
    [([4, 4, 4, 4], {4: 1.5}), ([1, 1, 1, 1, 2, 3, 3, 3], {1: 2 / 3, 2: 4 / 3, 3: 3.0})],
    ids=["no count of 3", "formula below 0"],
)
def test_discounts_that_the_formula_does_not_give_are_multiples_of_y(counts, truth):
    """Y is 1/2 without a count of 1. In the second case Y = 4 / (4 + 2), but D2 = 2 - 3Y · 3/1 would be -4."""
    assert discounts(counts) == pytest.approx(truth, abs=tolerance(len(counts), sum(counts)))


@pytest.mark.parametrize(
    "counts",
    [[100], [1], [1, 1, 1, 1], [2, 2], [3, 3, 3], [4, 4, 4, 4], [50, 50], [1, 2, 2, 2, 3, 3, 3, 3], [2, 3, 3, 3, 3],
     [1, 2, 3, 4, 4, 4, 4, 4, 4, 4], [1, 5, 9]],
    ids=str,
)  # fmt: skip
def test_discounts_of_degenerate_counts_are_valid(counts):
    """Above 0, or unseen tokens would have probability 0; at most the count, or others would have less than 0."""
    for count, discount in discounts(counts).items():
        assert 0 < discount <= min(count, 3) + tolerance(len(counts), sum(counts))


TEXTS = {
    "zipf": zipf_text(300, 7, 0),
    "one token repeated": [3] * 50,
    "two in turn": [0, 1] * 25,
    "every n-gram once": [0, 1, 2, 3, 4, 5, 6],
    "no rare token": [0, 1, 2, 3, 4, 5, 6] * 8,
    "two tokens": [0, 1],
}


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("train", TEXTS.values(), ids=TEXTS)
def test_probabilities_are_positive_and_sum_to_1(train, n):
    """For every context of n - 1 tokens out of 9; tokens 7 and 8 are in no training text."""
    contexts = np.stack(np.meshgrid(*[range(9)] * (n - 1), indexing="ij"), -1).reshape(-1, n - 1) if n > 1 else [[]]
    ends = [[*context, token] for context in contexts for token in range(9)]
    text = np.array([0, *np.concatenate(ends)]).astype(int)
    p = np.exp(ngram_log_probabilities(np.array(train), text, n, 9))[n - 1 :: n].reshape(-1, 9)
    assert len(p) == 9 ** (n - 1)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=0, atol=tolerance(9 * (n + 1), np.log(p.min())))


@pytest.fixture(scope="module")
def chain():
    """Return a second-order Markov chain over 5 tokens, p(next | before, last), and a text sampled from it."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.full(5, 0.4), (5, 5))
    ends, uniform = p.cumsum(-1), draw.random(60_000)
    text = [0, 1]
    for u in uniform:
        text.append(min(4, int(np.searchsorted(ends[text[-2], text[-1]], u))))
    return p, np.array(text)


def test_ngrams_reach_the_exact_entropies_of_a_markov_chain(chain):
    """Order n reaches H(X | n - 1 tokens before), computed from the stationary distribution of pairs."""
    p, text = chain
    pairs = np.full((5, 5), 1 / 25)
    for _ in range(2000):
        pairs = np.einsum("ab,abc->bc", pairs, p)
    np.testing.assert_allclose(pairs, np.einsum("ab,abc->bc", pairs, p), rtol=0, atol=tolerance(5))
    joint = pairs[:, :, None] * p
    last_two = joint.sum(0)

    def entropy(q):
        return -(q[q > 0] * np.log(q[q > 0])).sum()

    truth = [entropy(pairs.sum(0)), entropy(last_two) - entropy(last_two.sum(1)), entropy(joint) - entropy(pairs)]
    assert truth[0] > 1.05 * truth[1] > 1.05 * 1.05 * truth[2]  # the chain has structure of both orders
    train, val = text[:45_000], text[45_000:]
    losses = [-ngram_log_probabilities(train, val, n, 5).mean() for n in (1, 2, 3)]
    assert losses == pytest.approx(truth, rel=0.02)
    assert losses[1] > 1.1 * truth[2]
    # The chain has no longer memory than two tokens: a longer context neither helps nor, thanks to back-off, harms
    assert -ngram_log_probabilities(train, val, 4, 5).mean() == pytest.approx(truth[2], rel=0.02)


def test_longer_contexts_help_in_a_story():
    losses = [-ngram_log_probabilities(STORY[:45_000], STORY[45_000:], n, 256).mean() for n in (1, 2, 3)]
    assert math.log(256) > losses[0] > losses[1] + 0.3 > losses[2] + 0.6
