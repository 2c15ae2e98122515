"""Puzzles with many right answers: reach a number with three others, by +, - and *, as in the game Countdown.

    generate(1, seed=0)                           # a line of JSON with "prompt" and "target"
    is_right("Reach 24 with 3 8 1:", " 3*8*1")    # True; " 3*8" is wrong, since each number is used once
    solutions((3, 8, 1), 24)                      # all right answers

A puzzle is for training or for testing, by a hash of its numbers, whatever their order: no number of puzzles, and no
seed, gives the same one for both.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import permutations

NUMBERS = range(1, 13)  # that the three are drawn from
TARGETS = range(1, 101)
PROMPT = "Reach {target} with {numbers}:"
TEST_SHARE = 10  # one puzzle in ten is for testing
MAX_LENGTH = 100  # characters of an answer; it bounds the depth of parentheses


def generate(n: int, seed: int = 0, test: bool = False) -> Iterator[str]:
    """Yield n pairs, each a line of JSON with "prompt" and "target", a right answer; the seed determines them.

    Every answer to a puzzle is as probable as the others. With `test` they are puzzles that training never has.
    """
    rng = random.Random(f"countdown:{seed}:{test}")  # a string seed is the same on every machine
    while n:
        numbers = [rng.choice(NUMBERS) for _ in range(3)]
        answer, target = rng.choice(_expressions(tuple(sorted(numbers))))
        if target in TARGETS and is_test(numbers, target) == test:
            prompt = PROMPT.format(target=target, numbers=" ".join(map(str, numbers)))
            yield json.dumps({"prompt": prompt, "target": f" {answer}"}) + "\n"
            n -= 1


def is_test(numbers: list[int], target: int) -> bool:
    """Return whether a puzzle is for testing."""
    return int(hashlib.sha256(f"{target}: {sorted(numbers)}".encode()).hexdigest(), 16) % TEST_SHARE == 0


# --- answers ----------------------------------------------------------------------------------------------------------


def solutions(numbers: tuple[int, ...], target: int) -> list[str]:
    """Return all expressions that use each number once and have the value `target`, without needless parentheses."""
    return [text for text, value in _expressions(tuple(sorted(numbers))) if value == target]


@cache
def _expressions(numbers: tuple[int, ...]) -> list[tuple[str, int]]:
    """Return all expressions that use each number once, with their values, sorted."""
    orders = set(permutations(map(str, numbers)))
    return sorted({(text, value) for order in orders for text, value, _ in _trees(order)})


def _trees(order: tuple[str, ...]) -> Iterator[tuple[str, int, str]]:
    """Yield all expressions over numbers in this order: text, value, and the operator that is applied last."""
    if len(order) == 1:
        yield order[0], int(order[0]), ""
    for i in range(1, len(order)):
        for left, a, before in _trees(order[:i]):
            for right, b, after in _trees(order[i:]):
                for operator, value in (("+", a + b), ("-", a - b), ("*", a * b)):
                    first = f"({left})" if operator == "*" and before in ("+", "-") else left
                    last = f"({right})" if operator != "+" and after in ("+", "-") else right
                    yield first + operator + last, value, operator


def is_right(prompt: str, completion: str) -> bool:
    """Return whether a completion answers a prompt: an expression with the target's value that uses each number once.

    Spaces and needless parentheses are allowed. ValueError if the prompt is none of PROMPT.
    """
    found = re.fullmatch(r"Reach ([0-9]+) with ([0-9]+(?: [0-9]+)*):", prompt.strip())
    if not found:
        raise ValueError(f"{prompt[:60]!r} is no puzzle such as 'Reach 24 with 3 8 1:'")
    if sorted(re.findall("[0-9]+", completion)) != sorted(found[2].split()):
        return False
    try:
        return evaluate(completion) == int(found[1])
    except ValueError:
        return False


def evaluate(expression: str) -> int:
    """Return the value of an expression of numbers, +, -, * and parentheses. ValueError for anything else."""
    tokens = re.findall(r"[0-9]+|\S", expression)[::-1]  # the next one is the last
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"an expression of {len(expression)} characters is too long")
    value = _sum(tokens)
    if tokens:
        raise ValueError(f"an expression ends before {tokens[-1]!r}")
    return value


def _sum(tokens: list[str]) -> int:
    value = _product(tokens)
    while tokens and tokens[-1] in ("+", "-"):
        value += _product(tokens) if tokens.pop() == "+" else -_product(tokens)
    return value


def _product(tokens: list[str]) -> int:
    value = _factor(tokens)
    while tokens and tokens[-1] == "*":
        tokens.pop()
        value *= _factor(tokens)
    return value


def _factor(tokens: list[str]) -> int:
    token = tokens.pop() if tokens else "the end"
    if token == "(":
        value = _sum(tokens)
        if tokens and tokens.pop() == ")":
            return value
        raise ValueError("a parenthesis is not closed")
    if re.fullmatch("[0-9]+", token):
        return int(token)
    raise ValueError(f"a number is expected, not {token}")
