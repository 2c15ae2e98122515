"""Checks of 12_scale.ipynb."""

import math

import numpy as np
import torch
from exercises import Wrong, called, choice, exercise, number


@exercise("12.1")
def week(answer):
    """GPUs for 6 N tokens in a week."""
    right = 6 * 1.5e9 * 30e9 / (0.4 * 300e12 * 7 * 86400)
    number(
        answer,
        right,
        mistakes=[
            (math.ceil(right), "Not rounded, please."),
            (round(right), "Not rounded, please."),
            (right / 3, "2 N is the forward pass alone; training goes back, too."),
            (right / 6, "Each weight takes more than one operation per token."),
            (right * 0.4, "Training uses 40% of what a GPU states."),
            (right * 0.4 * 0.4, "Training uses 40% of what a GPU states, so more GPUs are needed, not fewer."),
            (right * 0.4 / 0.6, "40% are used, not lost."),
            (right * 7, "That is for one day."),
            (right * 7 * 24, "That is for one hour."),
            (right * 7 * 86400, "That is for one second."),
            (right / 1000, "Mind the thousand: a TFLOP is 10¹² operations."),
            (right * 1000, "Mind the thousand: a billion is 10⁹, a TFLOP 10¹²."),
            (right * 2 / 3, "The backward pass costs twice the forward pass, not as much as it."),
            (1 / right, "The other way round: that is how much of it one GPU does in a week."),
        ],
        hint="FLOPs of the training, divided by those that one GPU does in a week.",
    )


@exercise("12.2")
def power_law(answer):
    """(a, b) of y = a x^-b by least squares on the logarithms."""
    draw = np.random.default_rng(122)
    x = np.array([1e3, 4e3, 2e4, 9e4, 5e5])
    for a, b, noise in ((5.0, 0.2, 0.0), (40.0, 0.5, 0.0), (3.0, 0.1, 0.05), (2.0, -0.3, 0.02)):
        y = a * x**-b * np.exp(noise * draw.standard_normal(5))
        slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
        given = called(answer, x.copy(), y.copy())
        if not isinstance(given, tuple | list | np.ndarray) or len(given) != 2:
            raise Wrong("A pair is asked for: return a, b.")
        if any(value is ... or value is None for value in given):
            raise Wrong("The dots are still there: put the two numbers in their place.")
        log10 = np.polyfit(np.log10(x), np.log10(y), 1)[1]
        number(
            given[1],
            -slope,
            [
                (slope, "b has the wrong sign: y = a·x to the power of minus b."),
                (
                    -np.polyfit(x, y, 1)[0],
                    "That is a line through x and y. A power law is a line through their logarithms.",
                ),
                (-np.polyfit(x, np.log(y), 1)[0], "The logarithm of y alone makes an exponential; take that of x too."),
                (-np.polyfit(np.log(x), y, 1)[0], "The logarithm of x alone: take that of y too."),
                (intercept, "That is the height of the line, not its slope. polyfit gives the slope first."),
                (-1 / slope, "Is x fitted by y? It should be y by x."),
                (np.exp(intercept), "a and b have changed places."),
            ],
            hint="This is b.",
        )
        number(
            given[0],
            np.exp(intercept),
            [
                (intercept, "That is ln a. Which power makes a of it?"),
                (log10, "That is the logarithm of a to the base 10."),
                (np.exp(log10), "The logarithms were to the base 10, the power is one of e."),
                (10**intercept, "The logarithms were natural, the power is one of 10."),
            ],
            hint="This is a.",
        )


@exercise("12.3")
def grad_accum_steps(answer):
    """Mean over tokens from the pieces' means."""
    cases = ([2.0, 5.0, 3.0], [900, 100, 50]), ([4.0], [7]), ([1.0, 2.0], [3, 3]), ([3.0, 9.0, 1.0], [10, 0, 30])
    for losses, counts in cases:
        losses, counts = torch.tensor(losses), torch.tensor(counts)
        right = (losses * counts).sum() / counts.sum()
        number(
            called(answer, losses, counts),
            right.item(),
            [
                (losses.mean().item(), "A mean of means: a small piece weighs as much as a large one."),
                ((losses * counts).sum().item(), "That is the sum of all nats; divide it by all tokens."),
                ((losses * counts).mean().item(), "Divide by the tokens, not by the pieces."),
                (losses.sum().item(), "That is the sum of the means."),
                ((losses.sum() / counts.sum()).item(), "Those are means: make sums of them first, by their tokens."),
                (
                    (losses / counts.clamp(min=1)).sum().item(),
                    "The losses are means already: multiply by the tokens rather than divide.",
                ),
            ],
            hint=f"That is for pieces of {counts.tolist()} tokens.",
            tolerance=1e-4,
        )


@exercise("12.4")
def not_smaller(answer):
    """DDP replicates the model."""
    choice(
        answer,
        "b",
        {
            "a": "They belong to the windows that a GPU reads; and each reads an eighth of the batch.",
            "c": "Each reads an eighth of the batch.",
            "d": "It falls nearly to an eighth, as long as the gradients are exchanged fast enough.",
        },
    )
