"""Checks of 01_information.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, number


@exercise("01.1")
def what_is_left(answer):
    """Bits missing of a card that is known to be a heart."""
    number(
        answer,
        math.log2(13),
        mistakes=[
            (math.log2(52), "That was missing before you were told. How many cards can it be now?"),
            (math.log2(4), "That is what the message brought: one suit of four. Asked is what is missing after it."),
            (13, "That is how many cards are left: how many bits does it take to tell so many apart?"),
            (4, "Not rounded up: information need not be a whole number of questions."),
            (math.log2(12), "Count the hearts again: the ace is among them."),
            (math.log2(39), "Those are the cards that are ruled out."),
            (math.log2(52) + 2, "The message takes away from what was missing; it does not add to it."),
            (math.log2(52) / 4, "A quarter of the cards is not a quarter of the information: take logarithms first."),
            (math.log(13), "That is in nats; bits are asked for."),
            (math.log(52), "That was missing before you were told, and it is in nats."),
            (math.log(4), "That is what the message brought, and it is in nats."),
            (math.log10(13), "A logarithm to the base 10. Which base has the bit?"),
            (1 / 13, "That is the probability of each card that is left. What is its information?"),
        ],
        hint="Of how many equally likely cards is it one, and what is the information of one of so many?",
    )


def _number(given, name):
    """What a function gave, as one float; NaN stays."""
    if isinstance(given, str | bool) or callable(given):
        raise Wrong(f"`{name}` should give a number, and gives a {type(given).__name__}.")
    try:
        given = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"`{name}` should give a number, and gives a {type(given).__name__}.") from None
    if given.numel() != 1:
        raise Wrong(f"`{name}` should give one number, and gives {given.numel()}, of shape {tuple(given.shape)}.")
    return given.item()


def _among(given, right, mistakes, where):
    """The hint of the first known mistake that gives what was given, and not what is right."""
    if math.isclose(given, right, rel_tol=1e-5, abs_tol=1e-7):
        return
    for wrong, hint in mistakes:
        told = not math.isclose(wrong, right, rel_tol=1e-4, abs_tol=1e-6)
        if told and math.isclose(given, wrong, rel_tol=1e-5, abs_tol=1e-7):
            raise Wrong(hint)
    raise Wrong(f"For {where} it gives {given:.4g}, which is too {'large' if given > right else 'small'}.")


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
            (right / math.log(2), "That is in bits; nats are asked for."),
            (right / math.log(10), "That is a logarithm to the base 10; the natural one is asked for."),
            (sum(y * math.log(y / x) for x, y in both), "That is KL(q ‖ p). Things happen as often as p says."),
            (
                sum(x * math.log(y / x) for y, x in both),
                "The weights are those of q. Which of the two says how often things happen?",
            ),
            (crossed, "That is the cross-entropy. The entropy of p is not part of what the wrong belief costs."),
            (own, "That is the entropy of p: nothing of q is in it."),
            (crossed + own, "Cross-entropy and entropy are both in it; the divergence is their difference."),
            (right / len(p), "That is a mean over the outcomes: the weights p sum to 1 already, so only sum."),
            (sum(math.log(x / y) for x, y in both), "The weights are missing: each logarithm counts as often as p."),
            (sum(math.log(x / y) for x, y in both) / len(p), "All outcomes count alike here: weigh each by its p."),
            (sum(abs(x * math.log(x / y)) for x, y in both), "A single term may be negative: leave out the abs."),
            (sum((x - y) ** 2 for x, y in both), "Those are squared differences; a logarithm is asked for."),
            (math.exp(right), "That is e to the power of it: leave the exponential out."),
        ]
        given = _number(called(answer, p, q), "kl")
        _among(given, right, mistakes, f"p = {p} and q = {q}")
    for p, q in (([1.0, 0.0], [0.5, 0.5]), ([0.0, 0.4, 0.6], [0.2, 0.2, 0.6]), ([1.0, 0.0], [1.0, 0.0])):
        right = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x)
        given = _zero(answer, p, q)
        if math.isnan(given):
            raise Wrong("Right without zeros. With p = 0 it is NaN: 0 times the logarithm of 0. Treat p = 0 by itself.")
        if math.isinf(given) and not any(q[i] == 0 for i in range(len(p)) if p[i] == 0):
            raise Wrong("Right without zeros, but infinite for a p of 0. What happens never adds nothing to a mean.")
        if not math.isclose(given, right, rel_tol=1e-7, abs_tol=1e-9):
            raise Wrong(
                f"Right without zeros, and off for p = {p}, q = {q}: is a small number added before the logarithm?"
                if math.isclose(given, right, abs_tol=1e-2)
                else f"Right without zeros, and wrong for p = {p}, q = {q}. What does an outcome with p = 0 add?"
            )
    for p, q in (([0.5, 0.5], [1.0, 0.0]), ([0.1, 0.2, 0.7], [0.0, 0.3, 0.7])):
        given = _zero(answer, p, q)
        if given != math.inf:
            raise Wrong(
                f"For p = {p} and q = {q} it gives {given:.4g}. What happens was believed impossible: what does that "
                "cost, and is it kept from costing that by a small number, or left out of the sum?"
            )


def _zero(answer, p, q):
    """What the function gives where there are zeros; a failure there has a hint of its own."""
    try:
        given = called(answer, p, q)
    except Wrong as failure:
        if "ZeroDivision" in str(failure) or "domain" in str(failure) or "positive input" in str(failure):
            raise Wrong(
                f"Right without zeros; for p = {p}, q = {q} it fails. Which cases must be looked at before dividing, "
                "and before the logarithm is taken?"
            ) from None
        raise
    return _number(given, "kl")


@exercise("01.3")
def perplexity_to_mend(answer):
    """exp of the mean of -ln p, for long texts too."""
    for p in ([0.5, 0.1, 0.4, 0.2, 0.9], [0.25, 0.01], [0.03], [1.0, 1.0, 1.0]):
        n, total = len(p), -sum(map(math.log, p))
        right = math.exp(total / n)
        mistakes = [
            (1 / right, "That is the geometric mean of p, a number below 1. What is missing in the exponent?"),
            (sum(1 / x for x in p) / n, "That is the arithmetic mean of 1/p: average the logarithms instead."),
            (n / sum(p), "That is 1 over the mean probability: average the logarithms instead."),
            (total / n, "That is the mean surprise, the loss. Which power makes a number of choices of it?"),
            (total / n / math.log(2), "That is the mean surprise in bits. Which power makes choices of it?"),
            (total, "That is the surprise of the whole text: a mean and a power are missing."),
            (math.exp(min(total, 700)), "That is 1 over the probability of the whole text: it grows with its length."),
            (math.exp(total / n / math.log(2)), "e to the power of bits: base and unit must go together."),
            (2 ** (total / n), "2 to the power of nats: base and unit must go together."),
            (10 ** (total / n), "10 to the power of nats: base and unit must go together."),
            (math.exp(min(total * n, 700)), "The exponent is n where a mean needs 1/n."),
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
                    f"Right for short texts; for one of {len(p):,} tokens it fails: the product is rounded to 0. Which "
                    "sum can stand in its place?"
                ) from None
            raise
        given = _number(given, "text_perplexity")
        if math.isinf(given) or math.isnan(given) or given in (0.0, 1.0):
            raise Wrong(
                f"Right for short texts; for one of {len(p):,} tokens it gives {given:g}: the product is rounded to 0. "
                "Which sum can stand in its place?"
            )
        if not math.isclose(given, right, rel_tol=1e-4):
            raise Wrong(f"Right for short texts; for one of {len(p):,} tokens it is off: is something clamped?")
    try:
        given = _number(called(answer, [0.5, 0.0, 0.5]), "text_perplexity")
    except Wrong as failure:
        if "fails at" not in str(failure):
            raise
        raise Wrong("Right so far. A token with probability 0 makes it fail: look at that case by itself.") from None
    if given != math.inf:
        raise Wrong(f"Right so far. But with a token of probability 0 it gives {given:.4g}, and should be infinite.")


@exercise("01.4")
def letters_that_depend(answer):
    """Entropy rate of a -> b, b -> a or b."""
    share = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)  # of a, of b
    rate = float(share[1])  # 1 bit behind each b, none behind an a
    number(
        answer,
        rate,
        mistakes=[
            (1 / 2, "Both rows count alike here. But a's and b's are not equally frequent: weigh by their shares."),
            (1 / 3, "That is the share of the a's. Behind which letter is there something to learn?"),
            (1, "That is what is learnt behind a b. How many of the letters stand behind a b?"),
            (
                float(-(share * share.log2()).sum()),
                "That is the entropy of the shares, for someone who does not look back. The rate is for one who does.",
            ),
            (0, "Behind an a nothing is learnt, but behind a b something is."),
            (3 / 4, "Half of the letters behind a b are b; that does not make three quarters of all b: balance them."),
            (1 / 4, "In the long run the share of the a's is not a quarter: as many letters turn from a as to a."),
            (
                rate * math.log(2),
                "That is in nats per letter; bits are asked for.",
            ),
            (
                float(-(share * share.log()).sum()),
                "That is the entropy of the shares, and in nats. The rate is for someone who looks back.",
            ),
        ],
        hint="The entropy behind each letter, weighted by the share of that letter.",
    )


@exercise("01.5")
def below_the_floor(answer):
    """What a loss below the entropy on a small sample means."""
    choice(
        answer,
        "b",
        {
            "a": "A divergence is never negative, so nothing is better than the true probabilities, on average over p.",
            "c": "Over-fitting raises the loss on a text that the model has not seen. This one has not been seen.",
            "d": "The entropy is a mean over all texts. Look at the first points of the curve of the tales' estimate.",
        },
    )
