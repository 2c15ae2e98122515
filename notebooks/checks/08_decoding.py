"""Checks of 08_decoding.ipynb."""

import math

import torch
from exercises import Wrong, called, exercise, number, tensor


@exercise("08.1")
def temperature(answer):
    """exp((3 - 1) / T) = e."""
    number(
        answer,
        2,
        mistakes=[
            (0.5, "The other way round: at this temperature the gap between the logits has doubled, not halved."),
            (1, "At temperature 1 the ratio is e to the difference of the logits. Which is that?"),
            (math.e, "The temperature itself isn't e; the ratio is to be."),
            (3, "3 is the first logit. The ratio depends on the difference of the two."),
            (math.log(2), "Take the logarithm of the ratio of the probabilities, not of the logits' difference."),
        ],
        hint="Write the ratio of the two probabilities: the sums below the fraction cancel.",
    )


@exercise("08.2")
def nucleus(answer):
    """The smallest set of likeliest tokens that holds top_p, renormalised."""
    cases = [
        ([0.1, 0.5, 0.25, 0.15], 0.7, "four tokens in no order"),
        ([0.9, 0.06, 0.04], 0.5, "one token that alone has more than top_p"),
        ([0.4, 0.35, 0.25], 1.0, "top_p = 1, which keeps everything"),
        ([0.5, 0.25, 0.125, 0.125], 0.75, "two tokens that hold top_p exactly"),
        ([0.3, 0.25, 0.2, 0.15, 0.1], 0.6, "five tokens"),
    ]
    for values, top_p, what in cases:
        p = torch.tensor(values, dtype=torch.float64)
        ordered, order = p.sort(descending=True)
        before = ordered.cumsum(0) - ordered

        def kept(mask, ordered=ordered, order=order, p=p):
            chosen = torch.zeros_like(p).scatter(0, order, torch.where(mask, ordered, torch.zeros_like(p)))
            return chosen, chosen / chosen.sum()

        raw, right = kept(before < top_p - 1e-9)
        short = kept(before + ordered <= top_p + 1e-9)
        if not short[0].sum():
            short = (short[0], torch.full_like(p, math.nan))
        unsorted_before = p.cumsum(0) - p
        unsorted = torch.where(unsorted_before < top_p, p, torch.zeros_like(p))
        given = called(answer, p.clone(), top_p)
        mistakes = [
            (raw, "The right tokens are kept. But their probabilities no longer sum to 1."),
            (
                short[0],
                "The token that crosses the line is cut off, so the rest holds less than top_p; and they don't sum to 1.",
            ),
            (short[1], "The token that crosses the line is cut off, so the rest holds less than top_p."),
            (
                torch.softmax(raw, 0),
                "A softmax of probabilities isn't the way to make them sum to 1: a 0 would get a share too.",
            ),
            (
                kept(torch.ones_like(before, dtype=torch.bool))[0].sort(descending=True).values,
                "Nothing is cut off, and the order is lost.",
            ),
            (
                right.sort(descending=True).values,
                "The values are right, but in sorted order: each has to go back to its token's place.",
            ),
            (
                raw.sort(descending=True).values,
                "They are in sorted order: each has to go back to its token's place. And they don't sum to 1.",
            ),
            (unsorted, "The sum runs over the tokens in their own order: begin with the likeliest."),
            (unsorted / unsorted.sum(), "The sum runs over the tokens in their own order: begin with the likeliest."),
            (
                torch.where(p >= top_p, p, torch.zeros_like(p)),
                "Each token is compared with top_p on its own; it is their sum that counts.",
            ),
        ]
        if not torch.allclose(p, right):
            mistakes.append((p, "Nothing is cut off."))
        if isinstance(given, torch.Tensor) and given.isnan().any():
            raise Wrong(
                f"NaN for {what}: nothing is left to be divided by its sum. Is the token that crosses the line kept?"
            )
        tensor(given, right, mistakes, hint=f"That is for {what}.")


@exercise("08.3")
def likeliest(answer):
    """max over texts: 0.4 · 0.9."""
    number(
        answer,
        0.36,
        mistakes=[
            (
                0.3,
                "That is the greedy text, which begins with the likeliest word. Look at what comes behind the other.",
            ),
            (0.6, "That is the first word alone; the text has two."),
            (0.9, "That is the second word alone; how probable is the first?"),
            (0.54, "0.9 stands behind B; the text cannot begin with A then."),
            (0.04, "That is the least likely one."),
            (0.2, "Behind B the words are not equally likely."),
            (0.66, "Probabilities of words that follow one another are multiplied."),
            (1.3, "Probabilities of words that follow one another are multiplied, not added."),
        ],
        hint="There are four texts. Work out each one's probability; they sum to 1.",
    )


@exercise("08.4")
def cache(answer):
    """2 · 12 · 768 · 1024 · 4 bytes in MB."""
    right = 2 * 12 * 768 * 1024 * 4 / 1e6
    number(
        answer,
        right,
        mistakes=[
            (right / 2, "Keys and values: one of the two is missing."),
            (right / 4, "Those are millions of numbers. Each has four bytes."),
            (right / 8, "Keys or values alone, and in numbers: each has four bytes."),
            (right * 1e6, "In megabytes, please."),
            (right / 12, "That is one layer's."),
            (right * 12, "The heads share out the 768 numbers: they are in D already."),
            (right / 1024, "That is one token's."),
            (right * 1e6 / 2**20, "Megabytes of 10⁶ bytes are asked for; yours have 2²⁰."),
            (right * 1.5, "Queries needn't be kept: who asks again?"),
        ],
        hint="A key and a value of D numbers, in each layer, for each token.",
        tolerance=5e-3,
    )
