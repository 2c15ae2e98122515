"""gpt/text/countdown.py against Python's own arithmetic, over all expressions."""

import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.text import countdown
from gpt.text.countdown import evaluate, is_right, solutions
from gpt.text.sources import open_corpus

SHAPES = ["{}{}{}{}{}", "({}{}{}){}{}", "{}{}({}{}{})"]
PUZZLE = "Reach 24 with 3 8 1:"


def all_strings(numbers):
    """Every string of three numbers, two operators and at most one pair of parentheses."""
    for a, b, c in set(itertools.permutations(numbers)):
        for one, two in itertools.product("+-*", repeat=2):
            for shape in SHAPES:
                yield shape.format(a, one, b, two, c)


def needed(text, names):
    """Whether parentheses change the value for numbers that no identity fits."""
    bare = text.replace("(", "").replace(")", "")
    return text == bare or eval(text, {}, names) != eval(bare, {}, names)


def test_solutions_are_all_strings_with_that_value_and_no_needless_parentheses():
    generic = {"a": 101, "b": 10_007, "c": 1_000_003}
    forms = [text for text in all_strings("abc") if needed(text, generic)]
    rng = random.Random(0)
    for numbers in [(1, 1, 1), (3, 8, 1), (2, 2, 5), (12, 12, 12)] + [
        rng.choices(range(1, 13), k=3) for _ in range(60)
    ]:
        values = dict(zip("abc", numbers, strict=True))
        truth = {}
        for form in forms:
            text = "".join(str(values.get(sign, sign)) for sign in form)
            truth.setdefault(eval(text), set()).add(text)
        for target in {*truth, 0, 17}:
            assert solutions(tuple(numbers), target) == sorted(truth.get(target, ()))


def test_solutions_by_hand():
    assert solutions((3, 8), 24) == ["3*8", "8*3"]
    assert solutions((2, 3), -1) == ["2-3"]
    assert solutions((1, 2, 3), 9) == ["(1+2)*3", "(2+1)*3", "3*(1+2)", "3*(2+1)"]
    assert solutions((5, 1, 3), 7) == sorted(["5-1+3", "5+3-1", "3+5-1", "3-1+5", "5-(1-3)", "3-(1-5)"])
    assert solutions((1, 1, 1), 99) == []


@pytest.mark.parametrize("test", [False, True])
def test_generated_answers_are_right_and_evenly_drawn(test):
    answers = {}
    for line in countdown.generate(3000, seed=2, test=test):
        pair = json.loads(line)
        assert is_right(pair["prompt"], pair["target"])
        target, numbers = pair["prompt"].removeprefix("Reach ").removesuffix(":").split(" with ")
        numbers = tuple(sorted(map(int, numbers.split())))
        assert eval(pair["target"]) == int(target) and 1 <= int(target) <= 100
        assert all(1 <= number <= 12 for number in numbers) and len(numbers) == 3
        assert pair["target"][1:] in solutions(numbers, int(target))
        answers.setdefault((numbers, target), Counter())[pair["target"]] += 1
    assert any(len(found) > 1 for found in answers.values())


def test_no_puzzle_is_in_training_and_test():
    """Whatever the seeds, and in whatever order the numbers come; a tenth of all puzzles is for testing."""

    def puzzles(test):
        pairs = (json.loads(line) for seed in range(3) for line in countdown.generate(3000, seed, test))
        halves = (pair["prompt"].split(" with ") for pair in pairs)
        return {(target, *sorted(numbers[:-1].split())) for target, numbers in halves}

    training, test = puzzles(False), puzzles(True)
    assert not training & test and len(training) > 2000 and len(test) > 200
    every = [(n, t) for n in itertools.combinations_with_replacement(range(1, 13), 3) for t in range(1, 101)]
    for_test = [countdown.is_test(list(numbers), target) for numbers, target in every]
    assert sum(for_test) / len(every) == pytest.approx(0.1, abs=0.01)
    assert all(countdown.is_test(list(n[::-1]), t) == is_for for (n, t), is_for in zip(every, for_test, strict=True))


@pytest.mark.parametrize("answer", ["3*8*1", " 3*8*1", "1*(8*3)", "((3)*8)*1", " 8 * 3 * 1 \n", "(3*8)*1", "3*8 *1"])
def test_right_answers(answer):
    assert is_right(PUZZLE, answer) and is_right(f" {PUZZLE}\n", answer)


@pytest.mark.parametrize(
    "answer",
    [
        *["", " ", "24", "3*8", "3*8*1*1", "3*8+1", "3*8*", "*3*8*1", "3*8*1)", "(3*8*1", "3**8*1", "3*8*+1"],
        *["-3*-8*1", "3*8*01", "3*8/1", "3*8*1=24", "3*8*1 24", "38*1", "3 8*1", "3*8*1.", "3(8)*1", "()3*8*1"],
        *["(3*8*1]", "٣*8*1", "3*8*1#", "3*8*1;", "__import__('os')", "3*8*1\0"],
        *["(" * 2000 + "3*8*1" + ")" * 2000, "(" * 50 + "3*8*1" + ")" * 50],
    ],
)  # fmt: skip
def test_wrong_answers(answer):
    assert not is_right(PUZZLE, answer)


@given(st.text() | st.text(alphabet="318+-*() ", max_size=14))
def test_any_answer_is_judged(answer):
    """What is right has the value that Python finds, with these numbers."""
    if is_right(PUZZLE, answer):
        assert eval(answer.strip()) == 24
        assert sorted(sign for sign in answer if sign.isdigit()) == ["1", "3", "8"]


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda part: st.tuples(part, st.sampled_from(["+", "-", "*", " - "]), part).map("".join) | part.map("({})".format),
    max_leaves=8,
)


@given(expressions)
def test_values_are_those_of_python(expression):
    assert evaluate(expression) == eval(expression)


@pytest.mark.parametrize("prompt", ["", "Reach 24 with 3 8 1", "Reach x with 3 8 1:", "Reach 24 with :"])
def test_another_prompt_is_an_error(prompt):
    with pytest.raises(ValueError, match="is no puzzle such as 'Reach 24 with 3 8 1:'"):
        is_right(prompt, "3*8*1")


@pytest.mark.parametrize(("name", "test"), [("countdown", False), ("countdown-test", True)])
def test_the_seed_determines_the_pairs(name, test):
    one, again, other = (list(countdown.generate(20, seed, test)) for seed in (1, 1, 2))
    assert one == again and not set(one) & set(other)
    corpus = open_corpus(f"{name}:20:1")
    assert corpus.name == f"{name}:20:1"
    texts = ["".join(document) for document in corpus.documents()]
    assert texts == [text for line in map(json.loads, one) for text in (line["prompt"], line["target"])]
