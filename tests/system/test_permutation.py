"""gpt/system/permutation.py: a bijection that looks random, computed place by place."""

import math
from itertools import permutations, product

import numpy as np
import pytest

from gpt.system import permutation
from gpt.system.permutation import permute, permute_blocks, shuffled

POWERS = [2**k + d for k in range(8, 15) for d in (-1, 0, 1)]


def chi_square_bound(cells):
    """Six standard deviations above the mean of a chi-square of so many cells."""
    return cells - 1 + 6 * math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("sizes", [range(1, 500), range(500, 1000), range(1000, 2001, 3), POWERS], ids=str)
def test_each_number_comes_once(sizes):
    for n in sizes:
        assert np.array_equal(np.sort(permute(np.arange(n), n, (n, 7))), np.arange(n)), n


@pytest.mark.parametrize("n", [2**24 + 1, 10**9, 10**12 + 39, 2**40, 2**62 - 1, 2**62])
def test_numbers_of_a_long_sequence_are_distinct_and_within_it(n):
    indices = np.random.default_rng(0).choice(min(n, 2**40), 20_000, replace=False)
    indices = np.unique([*indices, 0, n - 1])
    found = permute(indices, n, (5, 1))
    assert found.dtype == np.int64
    assert 0 <= found.min() < n / 100 and n * 0.99 < found.max() < n
    assert len(np.unique(found)) == len(indices)


def test_a_place_does_not_depend_on_those_asked_with_it():
    whole = permute(np.arange(1000), 1000, (1, 2))
    assert [int(permute(np.array([i]), 1000, (1, 2))[0]) for i in range(0, 1000, 50)] == whole[::50].tolist()
    assert permute(np.arange(6).reshape(2, 3), 1000, (1, 2)).tolist() == whole[:6].reshape(2, 3).tolist()


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_each_number_is_as_likely_at_each_place(n):
    counts = np.zeros((n, n))
    for seed in range(2000):
        counts[np.arange(n), permute(np.arange(n), n, (seed, 0))] += 1
    expected = 2000 / n
    for row in counts:
        assert ((row - expected) ** 2 / expected).sum() < chi_square_bound(n)


def test_each_order_of_three_is_as_likely():
    """A wrong number of rounds would leave some of the six out."""
    orders = [tuple(permute(np.arange(3), 3, (seed,)).tolist()) for seed in range(3000)]
    counts = np.array([orders.count(order) for order in permutations(range(3))])
    assert ((counts - 500) ** 2 / 500).sum() < chi_square_bound(6)


def test_neighbours_are_led_apart():
    """Of a long sequence the pairs (place, place of the next) fill an 8 x 8 grid evenly, and so do four low bits."""
    n = 10**9
    found = permute(np.arange(64_001), n, (11, 3))
    cells = np.bincount(found[:-1] * 8 // n * 8 + found[1:] * 8 // n, minlength=64)
    assert ((cells - 1000) ** 2 / 1000).sum() < chi_square_bound(64)
    low = np.bincount(found[:-1] % 16, minlength=16)
    assert ((low - 4000) ** 2 / 4000).sum() < chi_square_bound(16)


def test_keys_give_unrelated_orders():
    """Of two orders of 1,000 about one number keeps its place."""
    keys = [(0, 0), (0, 1), (1, 0), (0, 1, 1), (0, 1, 2), (2**63 - 1, 0)]
    orders = [permute(np.arange(1000), 1000, key) for key in keys] + [np.arange(1000)]
    for i, j in product(range(len(orders)), repeat=2):
        assert i == j or (orders[i] == orders[j]).sum() < 10


# --- blocks -----------------------------------------------------------------------------------------------------------

LENGTHS = [5, 1, 40, 0, 17, 200]
ENDS = np.cumsum(LENGTHS).tolist()


def test_blocks_come_one_after_the_other_each_shuffled():
    blocks = [list(range(end - n, end)) for n, end in zip(LENGTHS, ENDS, strict=True)]
    firsts = set()
    for epoch in range(30):
        found = permute_blocks(np.arange(ENDS[-1]), ENDS, (4, epoch)).tolist()
        assert sorted(found) == list(range(ENDS[-1]))
        while found:
            block = next(block for block in blocks if found[0] in block)
            here, found = found[: len(block)], found[len(block) :]
            assert sorted(here) == block
            assert len(block) < 17 or here != block
            firsts.add(here[0])
    assert len(firsts) > 60, "the order of a block does not change with the epoch"


def test_a_part_of_a_sequence_of_blocks_is_what_the_whole_has_there():
    whole = permute_blocks(np.arange(ENDS[-1]), ENDS, (9, 9))
    for start in range(0, ENDS[-1] - 20, 7):
        assert permute_blocks(np.arange(start, start + 20), ENDS, (9, 9)).tolist() == whole[start : start + 20].tolist()


def test_the_order_is_numpys_up_to_a_number_of_items(monkeypatch):
    """Published runs have that order."""
    expected = np.random.default_rng([3, 8]).permutation(263)
    assert np.array_equal(shuffled(np.arange(263), ENDS, (3, 8)), expected)
    monkeypatch.setattr(permutation, "MAX_IN_MEMORY", 262)
    assert np.array_equal(shuffled(np.arange(263), ENDS, (3, 8)), permute_blocks(np.arange(263), ENDS, (3, 8)))
