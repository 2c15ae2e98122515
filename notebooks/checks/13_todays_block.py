"""Checks of 13_todays_block.ipynb."""

import torch
from exercises import called, exercise, number, tensor

from gpt.ops import reference


def _turned(x, angles, by_neighbours=False):
    """Turn the pairs of x (T, K) by angles (T, K/2)."""
    first, second = (x[:, ::2], x[:, 1::2]) if by_neighbours else x.chunk(2, dim=-1)
    turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
    return torch.stack(turned, dim=-1).flatten(-2) if by_neighbours else torch.cat(turned, dim=-1)


@exercise("13.1")
def rotate(answer):
    """Rotary positions by halves."""
    draw = torch.Generator().manual_seed(131)
    for n, k, start, theta in ((4, 8, 3, 10_000.0), (1, 2, 5, 100.0), (5, 6, 0, 500.0)):
        x, positions = torch.randn(n, k, generator=draw), torch.arange(start, start + n)
        place = torch.arange(k // 2)
        angles = positions[:, None] * theta ** (-2 * place / k)
        right = reference.rotate(x, *reference.rotary_tables(positions, k, theta))
        given = called(answer, x, positions, theta)
        if k == 2:
            tensor(given, right, [(_turned(x, -angles), "It turns the other way: check the signs of the two sines.")])
            continue
        first, second = x.chunk(2, dim=-1)
        mistakes = [
            (_turned(x, angles, by_neighbours=True), "Your pairs are neighbours, 0 and 1. Which numbers are a pair?"),
            (_turned(x, -angles), "It turns the other way: check the signs of the two sines."),
            (
                _turned(x, positions[:, None] * theta ** (-place / k)),
                "The frequencies fall too slowly: look at the exponent once more.",
            ),
            (
                _turned(x, positions[:, None] * theta ** (2 * place / k)),
                "The frequencies rise. Is the exponent positive or negative?",
            ),
            (
                _turned(x, positions[:, None] * theta ** (-2 * place.flip(0) / k)),
                "The frequencies are in reverse order: the first pair is the fastest.",
            ),
            (_turned(x, positions[:, None].expand(n, k // 2)), "All pairs turn equally fast."),
            (
                _turned(x, (positions[:, None] + 1) * theta ** (-2 * place / k)),
                "Every row is turned by one position too many.",
            ),
            (
                _turned(x, (positions[:, None] - start) * theta ** (-2 * place / k)),
                "You count the rows; use the positions that are given.",
            ),
            (
                torch.cat([first * angles.cos() - second * angles.sin(), second], dim=-1),
                "Only the first half is turned.",
            ),
            (
                torch.cat([angles.cos(), angles.cos()], dim=-1) * x,
                "The sines are missing: that shrinks the numbers and turns nothing.",
            ),
            (torch.cat([angles.cos(), angles.sin()], dim=-1) * x, "A rotation mixes the two numbers of a pair."),
            (
                torch.stack(_turned(x, angles).chunk(2, dim=-1), dim=-1).flatten(-2),
                "The numbers are right but in another order: the halves stay halves.",
            ),
        ]
        tensor(given, right, mistakes, hint="Split x in two halves, and turn pair i by its angle.")


@exercise("13.2")
def rms_norm(answer):
    """x / sqrt(mean(x^2) + eps) * gain."""
    draw = torch.Generator().manual_seed(132)
    for shape, size, eps in (((3, 8), 0.1, 1e-3), ((2, 4, 6), 1.0, 1e-5), ((5, 4), 1e-3, 1e-5)):
        x = size * (torch.randn(shape, generator=draw) + 0.5)
        gain = torch.rand(shape[-1], generator=draw) + 0.5
        square = x.square().mean(dim=-1, keepdim=True)
        centred = x - x.mean(dim=-1, keepdim=True)
        mistakes = [
            (gain * x / (square.sqrt() + eps), "The epsilon stands outside the root."),
            (gain * x / square.sqrt(), "The epsilon is missing."),
            (
                gain * centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt(),
                "You subtract the mean: that is LayerNorm.",
            ),
            (
                gain * x / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt(),
                "You divide by the standard deviation, which subtracts a mean inside.",
            ),
            (
                gain * x / (x.square().sum(dim=-1, keepdim=True) + eps).sqrt(),
                "You divide by the length of the vector: take the mean of the squares, not their sum.",
            ),
            (gain * x / (x.square().mean() + eps).sqrt(), "One number divides all rows: each has its own."),
            (
                gain * x / (x.square().mean(dim=0, keepdim=True) + eps).sqrt(),
                "The mean runs over the first dimension; it should run over the last.",
            ),
            (gain * x / (square + eps), "The root is missing."),
            (x / (square + eps).sqrt(), "The gain is missing."),
            (gain * x * (square + eps).sqrt(), "You multiply by the root. Which size should the result have?"),
            (gain * x / (x.abs().mean(dim=-1, keepdim=True) + eps), "That is the mean of the absolute values."),
            (
                gain + x / (square + eps).sqrt(),
                "You add the gain.",
            ),
        ]
        right = reference.rms_norm(x, gain, eps)
        tensor(called(answer, x, gain, eps), right, mistakes, hint="Square, mean, epsilon, root, divide, gain.")


@exercise("13.3")
def key_head(answer):
    """7 // (12 / 4)."""
    number(
        answer,
        7 // 3,
        mistakes=[
            (3, "That is dealing out in turn, 0 1 2 3 0 1 2 3. Neighbours share. (Or do you count from 1?)"),
            (1, "How many query heads share a head of keys: three, or four?"),
            (7, "There are only four heads of keys."),
            (7 / 3, "The number of a head is whole."),
            (0, "Query heads 0, 1 and 2 use that one."),
        ],
        hint="How many query heads share a head of keys?",
        tolerance=1e-6,
    )


@exercise("13.4")
def cache_of_70b(answer):
    """2 · 80 · 8 · 128 · 8192 · 2."""
    right = 2 * 80 * 8 * 128 * 8192 * 2
    number(
        answer,
        right,
        mistakes=[
            (right * 8, "Query heads are not cached. Which heads are?"),
            (right / 2, "Keys and values are both cached, and a number in bfloat16 takes more than one byte."),
            (right / 4, "Keys and values are both cached, and a number in bfloat16 takes more than one byte."),
            (right * 2, "That is with four bytes per number. How many has bfloat16?"),
            (right / 80, "That is one layer."),
            (right / 8192, "That is one token."),
            (right / 8, "There is more than one head of keys and values."),
            (right / 128, "Each head has many numbers per token."),
            (right / 2**30, "That is in GiB; give bytes."),
            (right / 1e9, "That is in GB; give bytes."),
            (right / 2**20, "That is in MiB; give bytes."),
            (right / 1e6, "That is in MB; give bytes."),
        ],
        hint="Multiply: two kinds, layers, heads, numbers per head, tokens, bytes per number.",
        tolerance=1e-6,
    )


@exercise("13.5")
def new_token(answer):
    """10 + 2."""
    number(
        answer,
        12,
        mistakes=[
            (13, "Where is the first written token read? Count on from there."),
            (11, "Which of the written tokens is read there?"),
            (10, "Which of the written tokens is read there?"),
            (9, "That is the last token of the prompt."),
            (2, "The prompt takes up positions too."),
            (3, "The prompt takes up positions too."),
            (0, "It comes alone, but not first."),
        ],
        hint="The prompt ends at position 9. Which positions come after it?",
        tolerance=1e-6,
    )
