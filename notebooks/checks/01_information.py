"""Checks of 01_information.ipynb."""

import math

import torch
from exercises import Wrong, as_number, called, choice, exercise, number


@exercise("01.1")
def what_is_left(answer):
    """Bits still missing about a card that is known to be a heart."""
    number(
        answer,
        math.log2(13),
        mistakes=[
            (math.log2(52), "That was missing before you were told. How many cards can it be now?"),
            (
                math.log2(4),
                "That is the information of the message, one suit of four. The question is what is still missing "
                "after it.",
            ),
            (13, "That is how many cards are left. How many bits does it take to tell them apart?"),
            (4, "Do not round up: information need not be a whole number of questions."),
            (math.log2(12), "Count the hearts again: the ace is among them."),
            (math.log2(39), "Those are the cards that are ruled out."),
            (math.log2(52) + 2, "The message reduces what is missing; it does not add to it."),
            (math.log2(52) / 4, "A quarter of the cards is not a quarter of the information: take logarithms first."),
            (math.log(13), "That is in nats; bits are asked for."),
            (math.log(52), "That was missing before you were told, and it is in nats."),
            (math.log(4), "That is the information of the message, and it is in nats."),
            (math.log10(13), "That is a logarithm to base 10. Which base do bits use?"),
            (1 / 13, "That is the probability of each card that is left. What is its information?"),
        ],
        hint="How many equally likely cards are left? What is the information of a draw among them?",
    )


def _number(given, name):
    """Return the function's result as one float, NaN included."""
    return as_number(given, f"`{name}` should return one number; what it returns")


def _among(given, right, mistakes, where):
    """Raise the hint of the first known mistake that matches a wrong result."""
    if math.isclose(given, right, rel_tol=1e-5, abs_tol=1e-7):
        return
    for wrong, hint in mistakes:
        distinct = not math.isclose(wrong, right, rel_tol=1e-4, abs_tol=1e-6)
        if distinct and math.isclose(given, wrong, rel_tol=1e-5, abs_tol=1e-7):
            raise Wrong(hint)
    raise Wrong(f"For {where} it returns {given:.4g}, which is too {'large' if given > right else 'small'}.")


@exercise("01.2")
def wrong_belief(answer):
    """sum p ln(p/q), 0 where p is 0, infinite where only q is."""
    pairs = [
        ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4]),
        ([0.5, 0.5], [0.9, 0.1]),
        ([0.25] * 4, [0.5, 0.25, 0.125, 0.125]),
        ([0.3, 0.7], [0.3, 0.7]),
    ]
    for p, q in pairs:
        both = list(zip(p, q, strict=True))
        right = sum(x * math.log(x / y) for x, y in both)
        crossed, own = -sum(x * math.log(y) for x, y in both), -sum(x * math.log(x) for x in p)
        mistakes = [
            (-right, "The sign is the wrong way round: the divergence is never below 0. Which of p and q is on top?"),
            (right / math.log(2), "That is in bits; the answer should be in nats."),
            (right / math.log(10), "That is a logarithm to base 10; use the natural one."),
            (sum(y * math.log(y / x) for x, y in both), "That is KL(q ‖ p). Things happen as often as p says."),
            (
                sum(x * math.log(y / x) for y, x in both),
                "The weights are those of q. Which of the two says how often things happen?",
            ),
            (crossed, "That is the cross-entropy. The entropy of p is not part of the cost of the wrong belief."),
            (own, "That is the entropy of p: q plays no part in it."),
            (crossed + own, "You add cross-entropy and entropy; the divergence is their difference."),
            (right / len(p), "That is a mean over the outcomes. The weights p sum to 1 already, so just sum."),
            (sum(math.log(x / y) for x, y in both), "The weights are missing: weight each logarithm by its p."),
            (sum(math.log(x / y) for x, y in both) / len(p), "All outcomes count equally here: weight each by its p."),
            (sum(abs(x * math.log(x / y)) for x, y in both), "A single term may be negative: leave out the abs."),
            (sum((x - y) ** 2 for x, y in both), "Those are squared differences; the divergence uses logarithms."),
            (math.exp(right), "That is e to the power of the divergence: leave the exponential out."),
        ]
        given = _number(called(answer, p, q), "kl")
        _among(given, right, mistakes, f"p = {p} and q = {q}")
    for p, q in (([1.0, 0.0], [0.5, 0.5]), ([0.0, 0.4, 0.6], [0.2, 0.2, 0.6]), ([1.0, 0.0], [1.0, 0.0])):
        right = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x)
        given = _zero(answer, p, q)
        if math.isnan(given):
            raise Wrong(
                "Right without zeros. With p = 0 it is NaN: 0 times the logarithm of 0. Treat p = 0 separately."
            )
        if math.isinf(given) and not any(q[i] == 0 for i in range(len(p)) if p[i] == 0):
            raise Wrong("Right without zeros, but infinite for a p of 0. An event that never happens adds nothing.")
        if not math.isclose(given, right, rel_tol=1e-7, abs_tol=1e-9):
            raise Wrong(
                f"Right without zeros, but off for p = {p}, q = {q}. Do you add a small number before the logarithm?"
                if math.isclose(given, right, abs_tol=1e-2)
                else f"Right without zeros, but wrong for p = {p}, q = {q}. What does an outcome with p = 0 add?"
            )
    for p, q in (([0.5, 0.5], [1.0, 0.0]), ([0.1, 0.2, 0.7], [0.0, 0.3, 0.7])):
        given = _zero(answer, p, q)
        if given != math.inf:
            raise Wrong(
                f"For p = {p} and q = {q} it returns {given:.4g}. Something happens that was believed impossible. "
                "What does that cost? Does a small number hide it, or is it left out of the sum?"
            )


def _zero(answer, p, q):
    """Return the function's result where there are zeros; a failure there has its own hint."""
    try:
        given = called(answer, p, q)
    except Wrong as failure:
        if "ZeroDivision" in str(failure) or "domain" in str(failure) or "positive input" in str(failure):
            raise Wrong(
                f"Right without zeros; for p = {p}, q = {q} it fails. Which cases must you check before dividing "
                "and taking the logarithm?"
            ) from None
        raise
    return _number(given, "kl")


@exercise("01.3")
def perplexity_to_fix(answer):
    """Exp of the mean of -ln p, for long texts too."""
    for p in ([0.5, 0.1, 0.4, 0.2, 0.9], [0.25, 0.01], [0.03], [1.0, 1.0, 1.0]):
        n, total = len(p), -sum(map(math.log, p))
        right = math.exp(total / n)
        mistakes = [
            (1 / right, "That is the geometric mean of p, a number below 1. What is missing in the exponent?"),
            (sum(1 / x for x in p) / n, "That is the arithmetic mean of 1/p: average the logarithms instead."),
            (n / sum(p), "That is 1 over the mean probability: average the logarithms instead."),
            (total / n, "That is the mean surprise, the loss. How do you turn it into a number of choices?"),
            (
                total / n / math.log(2),
                "That is the mean surprise in bits. How do you turn it into a number of choices?",
            ),
            (total, "That is the surprise of the whole text: the mean and the exponential are missing."),
            (math.exp(min(total, 700)), "That is 1 over the probability of the whole text: it grows with its length."),
            (math.exp(total / n / math.log(2)), "That is e to the power of bits: base and unit must match."),
            (2 ** (total / n), "That is 2 to the power of nats: base and unit must match."),
            (10 ** (total / n), "That is 10 to the power of nats: base and unit must match."),
            (math.exp(min(total * n, 700)), "Your exponent contains n; a mean needs 1/n."),
        ]
        given = _number(called(answer, list(p)), "text_perplexity")
        if math.isnan(given):
            raise Wrong(f"For {p} it is NaN.")
        _among(given, right, mistakes, p)
    for p in ([0.02] * 5000, [0.5, 1e-4] * 3000, [0.999] * 20_000):
        right = math.exp(-sum(map(math.log, p)) / len(p))
        try:
            given = called(answer, p)
        except Wrong as failure:
            if "ZeroDivision" in str(failure) or "Overflow" in str(failure) or "domain" in str(failure):
                raise Wrong(
                    f"Right for short texts; for one of {len(p):,} tokens it fails: the product underflows to 0. Which "
                    "sum can replace it?"
                ) from None
            raise
        given = _number(given, "text_perplexity")
        if math.isinf(given) or math.isnan(given) or given in (0.0, 1.0):
            raise Wrong(
                f"Right for short texts; for one of {len(p):,} tokens it returns {given:g}: the product underflows "
                "to 0. "
                "Which sum can replace it?"
            )
        if not math.isclose(given, right, rel_tol=1e-4):
            raise Wrong(f"Right for short texts; for one of {len(p):,} tokens it is off: is something clamped?")
    try:
        given = _number(called(answer, [0.5, 0.0, 0.5]), "text_perplexity")
    except Wrong as failure:
        if "fails at" not in str(failure):
            raise
        raise Wrong("Right so far. A token with probability 0 makes it fail: handle that case separately.") from None
    if given != math.inf:
        raise Wrong(
            f"Right so far. But with a token of probability 0 it returns {given:.4g} and should return infinity."
        )


@exercise("01.4")
def letters_that_depend(answer):
    """Entropy rate of a -> b, b -> a or b."""
    share = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)  # of a, of b
    rate = float(share[1])  # 1 bit after each b, none after an a
    number(
        answer,
        rate,
        mistakes=[
            (
                1 / 2,
                "Both letters count equally here. But a's and b's are not equally frequent: weight by their shares.",
            ),
            (1 / 3, "That is the share of the a's. After which letter is there something to learn?"),
            (1, "That is the information after a b. How many of the letters follow a b?"),
            (
                float(-(share * share.log2()).sum()),
                "That is the entropy of the shares, for someone who does not look back. The rate is for someone who "
                "does.",
            ),
            (0, "The letter after an a is certain, but the letter after a b is not."),
            (
                3 / 4,
                "Half of the letters after a b are b, but that does not make three quarters of all letters b: "
                "balance them.",
            ),
            (1 / 4, "In the long run the share of the a's is not a quarter: a turns into b as often as b into a."),
            (
                rate * math.log(2),
                "That is in nats per letter; the answer should be in bits.",
            ),
            (
                float(-(share * share.log()).sum()),
                "That is the entropy of the shares, and in nats. The rate is for someone who looks back.",
            ),
        ],
        hint="Take the entropy of the letter that follows each letter, weighted by the share of that letter.",
    )


@exercise("01.5")
def below_the_floor(answer):
    """The meaning of a loss below the entropy on a small sample."""
    choice(
        answer,
        "b",
        {
            "a": "A divergence is never negative, so nothing is better than the true probabilities, on average over p.",
            "c": "Overfitting raises the loss on text that the model has not seen. It has not seen this one.",
            "d": "The entropy is a mean over all texts. Look at the start of the curve of the tales' estimate.",
        },
    )
