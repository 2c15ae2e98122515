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
            (math.ceil(right), "Do not round."),
            (round(right), "Do not round."),
            (right / 3, "2 N is the forward pass alone; training has a backward pass too."),
            (right / 6, "Each weight takes more than one operation per token."),
            (right * 0.4, "Training uses only 40% of the stated speed."),
            (right * 0.4 * 0.4, "Training uses only 40% of the stated speed. Does it then need more GPUs, or fewer?"),
            (
                right * 2 / 3,
                "That is a third too few. 40% of the speed are used, not lost; a backward pass costs twice a forward "
                "pass.",
            ),
            (right * 7, "That is for one day."),
            (right * 7 * 24, "That is for one hour."),
            (right * 7 * 86400, "That is for one second."),
            (right / 1000, "You are off by a thousand: a TFLOP is 10¹² operations."),
            (right * 1000, "You are off by a thousand: a billion is 10⁹, a TFLOP 10¹²."),
            (1 / right, "That is the inverse: the share that one GPU does in a week."),
        ],
        hint="Divide the training FLOPs by the FLOPs that one GPU does in a week.",
    )


@exercise("12.2")
def power_law(answer):
    """(a, b) of y = a x^-b by least squares on the logarithms."""
    draw = np.random.default_rng(122)
    x = np.array([2.0, 9.0, 30.0, 110.0, 400.0])
    for a, b, noise in ((7.0, 0.2, 0.0), (40.0, 0.5, 0.0), (3.0, 0.1, 0.05), (2.0, -0.3, 0.02)):
        y = a * x**-b * np.exp(noise * draw.standard_normal(5))
        slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
        given = called(answer, x.copy(), y.copy())
        if not isinstance(given, tuple | list | np.ndarray) or len(given) != 2:
            raise Wrong("Return a pair: a, b.")
        if any(value is ... or value is None for value in given):
            raise Wrong("The dots are still there: replace them with the two numbers.")
        log10 = np.polyfit(np.log10(x), np.log10(y), 1)[1]
        number(
            given[1],
            -slope,
            [
                (slope, "b has the wrong sign: the exponent is minus b."),
                (
                    -np.polyfit(x, y, 1)[0],
                    "That is a line through x and y. A power law is a line through their logarithms.",
                ),
                (
                    -np.polyfit(x, np.log(y), 1)[0],
                    "You take the logarithm of y alone, which fits an exponential. What about x?",
                ),
                (-np.polyfit(np.log(x), y, 1)[0], "You take the logarithm of x alone. What about y?"),
                (intercept, "That is the intercept of the line, not its slope. polyfit returns the slope first."),
                (-1 / slope, "Do you fit x as a function of y? Fit y as a function of x."),
                (np.exp(intercept), "a and b are swapped."),
            ],
            hint="This is b.",
        )
        number(
            given[0],
            np.exp(intercept),
            [
                (intercept, "That is ln a. How do you get a from it?"),
                (log10, "That is the logarithm of a to base 10."),
                (np.exp(log10), "The logarithms are to base 10, but the power is of e."),
                (10**intercept, "The logarithms are natural, but the power is of 10."),
            ],
            hint="This is a.",
        )


@exercise("12.3")
def mean_loss(answer):
    """Mean over tokens from the means of the pieces."""
    cases = ([2.0, 5.0, 3.0], [900, 100, 50]), ([4.0], [7]), ([1.0, 2.0], [3, 3]), ([3.0, 9.0, 1.0], [10, 0, 30])
    for losses, counts in cases:
        losses, counts = torch.tensor(losses), torch.tensor(counts)
        right = (losses * counts).sum() / counts.sum()
        number(
            called(answer, losses, counts),
            right.item(),
            [
                (losses.mean().item(), "That is a mean of means: a small piece has the weight of a large one."),
                ((losses * counts).sum().item(), "That is the sum of all nats; divide it by the number of tokens."),
                ((losses * counts).mean().item(), "Divide by the number of tokens, not of pieces."),
                (losses.sum().item(), "That is the sum of the means."),
                ((losses.sum() / counts.sum()).item(), "The losses are means. How do you turn each into a sum?"),
                (
                    (losses / counts.clamp(min=1)).sum().item(),
                    "The losses are means already. How do you turn each into a sum?",
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
            "a": "They belong to the examples that a GPU reads, and each reads an eighth of the batch.",
            "c": "Each GPU reads an eighth of the batch.",
            "d": "It falls nearly to an eighth if the gradients are exchanged fast enough.",
        },
    )
