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
            (0.5, "That is the inverse: at this temperature the gap between the logits is doubled."),
            (1, "At temperature 1 the ratio is e to the power of the difference of the logits. How large is it?"),
            (math.e, "The ratio should be e, not the temperature."),
            (3, "3 is the first logit. The ratio depends on the difference of the two."),
            (math.log(2), "Take the logarithm of the ratio of the probabilities, not of the difference of the logits."),
        ],
        hint="Write the ratio of the two probabilities: the denominators cancel.",
    )


@exercise("08.2")
def nucleus(answer):
    """The smallest set of likeliest tokens that holds top_p, renormalised."""
    cases = [
        ([0.1, 0.5, 0.25, 0.15], 0.7, "four unsorted tokens"),
        ([0.9, 0.06, 0.04], 0.5, "one token that alone holds more than top_p"),
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
            (raw, "You keep the right tokens, but their probabilities no longer sum to 1."),
            (
                short[0],
                "You drop the token that reaches top_p, so the rest holds too little. And the rest does not sum to 1.",
            ),
            (short[1], "You drop the token that reaches top_p, so the rest holds too little."),
            (
                torch.softmax(raw, 0),
                "Do not apply a softmax to make probabilities sum to 1: a 0 would get a share too.",
            ),
            (
                kept(torch.ones_like(before, dtype=torch.bool))[0].sort(descending=True).values,
                "You remove nothing, and the order is lost.",
            ),
            (
                right.sort(descending=True).values,
                "The values are right, but in sorted order: put each back at its token's index.",
            ),
            (
                raw.sort(descending=True).values,
                "They are in sorted order: put each back at its token's index. And they do not sum to 1.",
            ),
            (unsorted, "You accumulate in the order of the vocabulary. With which token should you start?"),
            (
                unsorted / unsorted.sum(),
                "You accumulate in the order of the vocabulary. With which token should you start?",
            ),
            (
                torch.where(p >= top_p, p, torch.zeros_like(p)),
                "You compare each token with top_p separately; compare their sum.",
            ),
        ]
        if not torch.allclose(p, right):
            mistakes.append((p, "You remove nothing."))
        if isinstance(given, torch.Tensor) and given.isnan().any():
            raise Wrong(
                f"NaN for {what}: nothing is left to divide by its sum. Do you keep the token that reaches top_p?"
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
                "That is the greedy text, which starts with the likeliest word. What can follow the other word?",
            ),
            (0.6, "That is the first word alone; the text has two."),
            (0.9, "That is the second word alone; how probable is the first?"),
            (0.54, "0.9 applies after B; then the text cannot start with A."),
            (0.04, "That is the least likely text."),
            (0.2, "After B the words are not equally likely."),
            (0.66, "Multiply the probabilities of consecutive words."),
            (1.3, "Multiply the probabilities of consecutive words, do not add them."),
        ],
        hint="There are four texts. Compute the probability of each; they sum to 1.",
    )


@exercise("08.4")
def cache(answer):
    """2 · 12 · 768 · 1024 · 4 bytes in MB."""
    right = 2 * 12 * 768 * 1024 * 4 / 1e6
    number(
        answer,
        right,
        mistakes=[
            (right / 2, "You count keys or values, but the cache holds both."),
            (right / 4, "Those are millions of numbers. Each takes four bytes."),
            (right / 8, "You count keys or values alone, and numbers instead of bytes."),
            (right * 1e6, "Give the answer in megabytes."),
            (right / 12, "That is one layer."),
            (right * 12, "The heads split the 768 numbers: D already includes them."),
            (right / 1024, "That is one token."),
            (right * 1e6 / 2**20, "Use megabytes of 10⁶ bytes; yours have 2²⁰."),
            (right * 1.5, "Does the cache need the queries?"),
        ],
        hint="A key and a value of D numbers, in each layer, for each token.",
        tolerance=5e-3,
    )
