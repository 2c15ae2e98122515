"""The random order of a sequence: of a long one without memory, each place computed by itself.

Such a place comes from a generalized Feistel network with cycle-walking: Black and Rogaway 2002, "Ciphers with
Arbitrary Finite Domains", CT-RSA. Its round function, the finalizer of SplitMix64, is fast and mixes well, but keeps no
secret.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MAX_IN_MEMORY = 2**24  # items, 134 MB: the order of every published run
ROUNDS = 8  # an even number; Luby and Rackoff 1988 need four for numbers so large that none of them repeats


def permute(indices: np.ndarray, n: int, key: Sequence[int]) -> np.ndarray:
    """Return where the permutation of 0 .. n-1 under a key takes these indices, int64, of the same shape.

    n is at most 2^62. Different keys, each of integers from 0, give unrelated permutations.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)  # n <= a · b < n + a, so that few results fall outside
    round_keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    found = _network(np.asarray(indices).astype(np.uint64), a, b, round_keys)
    while (outside := found >= n).any():  # a walk along its cycle leads back inside
        found[outside] = _network(found[outside], a, b, round_keys)
    return found.astype(np.int64)


def _network(x: np.ndarray, a: int, b: int, round_keys: np.ndarray) -> np.ndarray:
    """Return a permutation of 0 .. a·b-1: each round adds a function of one half to the other, modulo its size."""
    right, left = np.divmod(x, np.uint64(a))
    for i, round_key in enumerate(round_keys):
        left, right = right, (left + _mix(right ^ round_key)) % np.uint64(b if i % 2 else a)
    return right * np.uint64(a) + left


def _mix(x: np.ndarray) -> np.ndarray:
    """Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators". A quarter stays free: sums fit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(2)


def shuffled(positions: np.ndarray, ends: Sequence[int], key: Sequence[int]) -> np.ndarray:
    """Return the items at these positions, (N,), of a shuffled sequence of ends[-1] items: by NumPy's permutation up to
    MAX_IN_MEMORY, else by `permute_blocks`."""
    if ends[-1] <= MAX_IN_MEMORY:
        return _permutation(ends[-1], tuple(key))[positions]
    return permute_blocks(positions, ends, key)


@lru_cache(maxsize=2)  # a step may straddle two epochs
def _permutation(n: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).permutation(n)


def permute_blocks(positions: np.ndarray, ends: Sequence[int], key: Sequence[int]) -> np.ndarray:
    """Return the items at these positions, (N,), of a sequence of blocks in random order, each shuffled within.

    Block i holds the items ends[i-1] .. ends[i]-1. So what is read in a row lies in one block.
    """
    order, lengths = _block_order(tuple(ends), tuple(key))
    stops = lengths[order].cumsum()
    places = np.searchsorted(stops, positions, side="right")  # of each position's block in the order
    found = np.empty(len(positions), np.int64)
    for place in np.unique(places):
        block, here = order[place], places == place
        length = int(lengths[block])
        within = permute(positions[here] - (stops[place] - length), length, (*key, 1 + int(block)))
        found[here] = within + (ends[block] - length)
    return found


@lru_cache(maxsize=2)
def _block_order(ends: tuple[int, ...], key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the shuffled numbers of the blocks, and the length of each block."""
    return permute(np.arange(len(ends)), len(ends), key), np.diff(ends, prepend=0)
