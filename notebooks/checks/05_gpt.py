"""Checks of 05_gpt.ipynb."""

import torch
from exercises import Wrong, called, exercise, number, tensor
from torch.nn import functional as F


@exercise("05.1")
def layer_norm(answer):
    """Mean 0, biased variance 1, scale, shift."""
    draw = torch.Generator().manual_seed(51)
    for shape in ((2, 3, 6), (1, 4), (5,)):
        d = shape[-1]
        x = 2 + 3 * torch.randn(*shape, generator=draw)
        scale, shift = torch.rand(2, d, generator=draw) + 0.5
        right = F.layer_norm(x, (d,), scale, shift)
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        normed = (x - mean) / torch.sqrt(var + 1e-5)
        unbiased = (x - mean) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5)
        whole = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        mistakes = [
            (normed, "The vectors are normalised; what about scale and shift?"),
            (scale * normed, "The shift is missing."),
            (normed + shift, "The scale is missing."),
            (scale * (normed + shift), "Apply scale and shift in the other order."),
            (scale * unbiased + shift, "You divide the variance by D − 1; use the biased one."),
            (scale * (x - mean) / (var + 1e-5) + shift, "You divide by the variance. Is that the standard deviation?"),
            (scale * x / torch.sqrt(var + 1e-5) + shift, "The mean is not subtracted."),
            (scale * whole + shift, "You take mean and variance over the whole tensor; each vector has its own."),
        ]
        if len(shape) == 3:
            batch = (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)
            mistakes.append(
                (
                    scale * batch + shift,
                    "You take mean and variance over the batch; take them over the last dimension.",
                )
            )
        tensor(called(answer, x, scale, shift), right, mistakes, hint=f"That is for x of the shape {shape}.")
    constant = called(answer, torch.full((1, 4), 3.0), torch.ones(4), torch.zeros(4))
    if not torch.isfinite(torch.as_tensor(constant)).all():
        raise Wrong("Right, except for a constant vector, where it divides 0 by 0. What is eps for?")
    small = torch.tensor([[1e-3, -1e-3, 2e-3, -2e-3]])
    hint = "Right for large vectors; for very small ones it matters where you add eps. Look at the formula again."
    tensor(called(answer, small, torch.ones(4), torch.zeros(4)), F.layer_norm(small, (4,)), [], hint)


@exercise("05.2")
def count(answer):
    """Parameters of a small tied GPT."""
    d, n, v, t = 32, 3, 1000, 64
    matrices, biases, norms = 12 * d * d, 6 * d, 4 * d
    right = (v + t) * d + n * (matrices + biases + norms) + 2 * d
    number(
        answer,
        right,
        mistakes=[
            (right + v * d, "You count the head separately: it is the token embedding, used twice."),
            (right - 2 * d, "One norm is missing: the one after the last block."),
            (right - t * d, "The position embedding is missing."),
            (right - v * d, "The tie saves one of two matrices, not both."),
            (right - n * norms - 2 * d, "The norms are missing."),
            (right - n * norms, "Each block lacks 4·D numbers: are its norms missing, or the bias of the wide layer?"),
            (right - n * biases, "The biases are missing."),
            (right - n * biases - n * norms - 2 * d, "The matrices are right; biases and norms are missing."),
            (right + n * 3 * d, "Query, key and value have no bias here."),
            (right - n * (2 * d) - d, "A norm has a scale and a shift, D numbers each."),
            (right - n * d * d, "Each block lacks one D·D matrix. How many does attention have?"),
            (right + n * 3 * (matrices + biases + norms), "Heads split the width; they do not multiply anything."),
            (right - (n - 1) * (matrices + biases + norms), "You count one block. There are three."),
        ],
        hint="Two embeddings; per block four matrices of attention, two of the feed-forward, their biases, two "
        "norms; a last norm.",
        tolerance=1e-9,
    )


@exercise("05.3")
def block(answer):
    """Pre-norm: x + a(n1(x)), then x + f(n2(x))."""
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(53))

    def a(x):
        return torch.sin(x) + x.cumsum(1) / 3

    def f(x):
        return 0.7 * x.relu() - 0.2

    def n1(x):
        return F.layer_norm(x, (4,)) * 1.3

    def n2(x):
        return F.layer_norm(x, (4,)) + 0.4

    first = x + a(n1(x))
    right = first + f(n2(first))
    mistakes = [
        (n2(n1(x + a(x)) + f(n1(x + a(x)))), "That is post-norm: the norms are on the stream itself."),
        (
            n2(x + f(n1(x + a(x)))),
            "The norms are on the stream itself, and the second sum loses what the first added.",
        ),
        (first + f(first), "The second norm is missing."),
        (x + a(x) + f(n2(x + a(x))), "The first norm is missing."),
        (x + a(x) + f(x + a(x)), "Both norms are missing."),
        (a(n1(x)) + f(n2(a(n1(x)))), "The first sum is missing: attention should add to x, not replace it."),
        (f(n2(first)), "The second sum is missing: the feed-forward should add to the stream, not replace it."),
        (f(n2(a(n1(x)))), "Both sums are missing: each half should add to the stream, not replace it."),
        (x + a(n1(x)) + f(n2(x)), "Both halves read the same x. What should the second half read?"),
        (x + f(n2(first)), "The second sum starts from the x before attention, so the output of attention is lost."),
        (first + f(n1(first)), "Both halves use the first norm."),
        (x + f(n1(x)) + a(n2(x + f(n1(x)))), "Attention comes first, then the feed-forward."),
        (
            n1(x) + a(n1(x)) + f(n2(n1(x) + a(n1(x)))),
            "You add to the normalised x; the sum is with x itself.",
        ),
    ]
    mine = x.clone()
    given = called(answer, mine, a, f, n1, n2)
    if isinstance(given, torch.Tensor) and given.shape == right.shape:
        tensor(given, right, mistakes)
        probe = x.clone()
        answer(probe, a, f, n1, n2)
        if not torch.equal(probe, x):
            raise Wrong("Right, but you change x in place (+=), and the caller still needs it.")
        return
    tensor(given, right)


@exercise("05.4")
def twice_as_wide(answer):
    """Matrices grow by 4."""
    number(
        answer,
        4,
        mistakes=[
            (2, "Each matrix has D rows and D columns (or 4·D): what if both double?"),
            (8, "Is that three factors of two? The number of blocks stays the same."),
            (16, "The 4 in 4·D is there before and after."),
            (1, "They do grow: their width is D."),
        ],
        hint="How many numbers does a D·D matrix have, and a 2D·2D matrix?",
        tolerance=1e-6,
    )


@exercise("05.5")
def night(answer):
    """10 h · 1 TFLOP/s / 6 N, in millions."""
    right = 10 * 3600 * 1e12 / (6 * 100e6) / 1e6
    number(
        answer,
        right,
        mistakes=[
            (right * 1e6, "Give the answer in millions of tokens."),
            (right * 3, "2 N is the forward pass alone; training has a backward pass too."),
            (right * 2, "Training uses only half of the machine's speed."),
            (
                right * 6,
                "That is six times too many. Do you count one operation for each weight, or the forward pass alone at "
                "the machine's full speed?",
            ),
            (right * 1.5, "The backward pass costs more than the forward pass."),
            (right / 60, "An hour has 3,600 seconds."),
            (right / 3600, "An hour has 3,600 seconds."),
            (right / 1000, "You are off by a thousand: a TFLOP is 10¹² operations."),
            (right * 1000, "You are off by a thousand: a TFLOP is 10¹² operations."),
        ],
        hint="Divide the available FLOPs by the FLOPs per token.",
    )
