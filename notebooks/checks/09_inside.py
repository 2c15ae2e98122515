"""Checks of 09_inside.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch import Tensor


def _given(answer, *arguments) -> Tensor:
    """What the function gives for these arguments, as a tensor."""
    given = called(answer, *arguments)
    if not isinstance(given, Tensor):
        try:
            given = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            raise Wrong(f"Your function gives a {type(given).__name__}; a tensor is asked for.") from None
    return given


@exercise("09.1")
def induction_score(answer):
    """Mean attention from i >= period to i - period + 1, for each head."""
    draw = torch.Generator().manual_seed(9)
    for n_batch, n_heads, n_tokens, period in ((3, 4, 12, 6), (1, 2, 9, 2), (2, 3, 10, 7), (2, 1, 8, 7)):
        scores = torch.randn(n_batch, n_heads, n_tokens, n_tokens, generator=draw)
        future = torch.ones(n_tokens, n_tokens).triu(1).bool()
        weights = scores.masked_fill(future, -math.inf).softmax(-1)

        def mean(shift, start=0, weights=weights, period=period, n_tokens=n_tokens):
            """Over pairs (i, i - shift) from `start` on, added up one by one."""
            pairs = [(i, i - shift) for i in range(max(start, shift), n_tokens)]
            return sum((weights[:, :, i, j] for i, j in pairs), 0 * weights[:, :, 0, 0]) / max(1, len(pairs))

        each = mean(period - 1, period)  # (B, H)
        right = each.mean(0)
        given = _given(answer, weights, period)
        where = f"For weights of shape {tuple(weights.shape)} and period {period}: "
        if given.shape != right.shape:
            hints = {
                (n_batch, n_heads): "the mean over the texts is missing.",
                (n_batch,): "the mean runs over the heads, and the texts are left. It should be the other way round.",
                (): "one number for all heads together: a number for each head is asked for.",
                (n_heads, n_tokens - period): "the mean over the positions is missing.",
                (n_batch, n_heads, n_tokens - period): "the mean over texts and positions is missing.",
                (n_heads, n_tokens): "rows and columns are taken as blocks, and not in pairs: index with two tensors.",
            }
            hint = hints.get(tuple(given.shape), f"the shape {tuple(right.shape)} is asked for.")
            raise Wrong(f"{where}yours has the shape {tuple(given.shape)}; {hint}")
        rows = torch.arange(period, n_tokens)
        everything = weights[:, :, rows][:, :, :, rows - period + 1].mean((0, 2, 3))
        mistakes = [
            (
                mean(period, period).mean(0),
                "That is the attention to the same token's earlier occurrence. What came after it stands elsewhere.",
            ),
            (
                mean(period + 1, period).mean(0),
                "You look one place before the earlier occurrence. In which direction is the token that came after it?",
            ),
            (
                mean(period - 1, 0).mean(0),
                "The mean begins one position too early: the first token that repeats is at position `period`.",
            ),
            (mean(1).mean(0), "That is the previous-token score."),
            (each.mean(0) * len(rows), "That is the sum over the positions; the mean is asked for."),
            (
                each.mean(0) * len(rows) / n_tokens,
                "The sum is right, but it is divided by all positions: only those from `period` on are counted.",
            ),
            (everything, "Rows and columns are taken as a block, each row with each column, where pairs are meant."),
            (
                weights[:, :, rows - period + 1, rows].mean((0, 2)),
                "It is 0 everywhere, so you look where the mask hides all. The row is the token that looks, the column what it looks at.",
            ),
        ]
        if n_tokens == 12:
            tensor(
                given, right, mistakes, hint="Look at the pairs (i, where i should look) for a short text, on paper."
            )
        else:
            tensor(
                given,
                right,
                mistakes,
                hint=f"That is for T = {n_tokens} and period {period}: is a length of the notebook written into the function?",
            )


@exercise("09.2")
def one_layer(answer):
    """What one layer reaches."""
    choice(
        answer,
        "c",
        {
            "a": "A head of the first layer makes its keys of single tokens. What would tell it which token stood before one?",
            "b": "Something is known in the second half even without order: which tokens have occurred in this text at all?",
        },
    )


@exercise("09.3")
def left_out(answer):
    """What is blank if sixteen numbers behind out_proj are."""
    choice(
        answer,
        "c",
        {
            "a": "Head 2 owns these numbers in what `out_proj` reads. This hook is on the module that contains `out_proj`: what does its output have behind it?",
            "b": "A hook that returns something puts it in the place of the output. (One that returns None only looks.)",
            "d": "The hook changes what attention adds to the stream. What the stream held before is added in the block, afterwards.",
        },
    )


@exercise("09.4")
def friends(answer):
    """The entropy of 2/3 and 1/3."""
    right = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    number(
        answer,
        right,
        mistakes=[
            (math.log(1.5), "That is what one of the two words costs. On average it is the one or the other."),
            (math.log(3), "That is what one of the two words costs. On average it is the one or the other."),
            (math.log(2), "So much would it be if both were equally likely."),
            (
                (math.log(1.5) + math.log(3)) / 2,
                "The mean of both costs; but one of them is paid more often than the other.",
            ),
            (math.log(1.5) / 3 + math.log(3) * 2 / 3, "The weights are swapped: the dear word is the rare one."),
            (math.exp(right), "That is the perplexity, e to the power of what is asked."),
            (-math.log(5 / 9), "That is the logarithm of a mean probability; the mean of the logarithms is asked for."),
            (0.75 * math.log(4 / 3) + 0.25 * math.log(4), "Twice as often: that is not three times as often."),
            (1 / 3, "A share or a probability; nats are asked for."),
            (2 / 3, "A share or a probability; nats are asked for."),
        ],
        hint="Which are the two probabilities, what does each word cost, and how often is it paid?",
    )


@exercise("09.5")
def contributions(answer):
    """What each part of the stream adds to a logit behind the final norm."""
    draw = torch.Generator().manual_seed(10)
    for n_parts, width, spread in ((5, 16, 1.0), (1, 8, 3.0), (7, 6, 0.003)):
        parts = torch.randn(n_parts, width, generator=draw) * spread + 0.5
        scale, w = torch.rand(width, generator=draw) + 0.5, torch.randn(width, generator=draw)
        x = parts.sum(0)
        centred, own = parts - parts.mean(-1, keepdim=True), parts.var(-1, unbiased=False, keepdim=True)
        variance = x.var(unbiased=False)
        s = torch.sqrt(variance + 1e-5)
        right = torch.stack([(part / s * scale * w).sum() for part in centred])
        given = _given(answer, parts, scale, w)
        if given.shape != right.shape:
            if given.shape == parts.shape:
                raise Wrong(
                    f"Yours is {tuple(given.shape)}, a number for each part and dimension: the product with w sums over the last."
                )
            if given.dim() == 0 and n_parts > 1:
                raise Wrong("Yours is one number, the whole logit: a number for each part is asked for.")
            raise Wrong(
                f"One number for each part is asked for, the shape {tuple(right.shape)}; yours is {tuple(given.shape)}."
            )
        mistakes = [
            (
                (centred / torch.sqrt(own + 1e-5) * scale) @ w,
                "Each part is divided by a root of its own variance. Which variance is the norm's?",
            ),
            ((parts / s * scale) @ w, "The norm subtracts the mean as well. What share of that mean is each part's?"),
            (
                ((parts - x.mean()) / s * scale) @ w,
                "From each part the mean of the whole x is subtracted, so that it is subtracted P times.",
            ),
            (
                ((parts - x.mean() / n_parts) / s * scale) @ w,
                "Each part is given the same share of the mean. But some parts have a mean of their own.",
            ),
            ((centred / (variance + 1e-5) * scale) @ w, "You divide by the variance: the norm divides by its root."),
            ((centred / s) @ w, "The scale is missing."),
            ((centred / s * scale).sum(-1), "Where is w, the token's row of `out_head`?"),
            (
                ((parts - parts.mean(0)) / s * scale) @ w,
                "You subtract the mean over the parts. The norm's mean runs over the D numbers of one vector.",
            ),
            ((centred * scale) @ w, "Nothing is divided: where is s?"),
            ((parts * scale) @ w, "Where are the mean and s? The norm subtracts the one and divides by the other."),
            (parts @ w, "These are the logits without the norm: it stands between the stream and `out_head`."),
            (
                (centred / torch.sqrt(x.var() + 1e-5) * scale) @ w,
                "Nearly: PyTorch's `var` divides by D - 1 if it is not told otherwise, and LayerNorm by D.",
            ),
            (
                (centred / torch.sqrt(parts.var(unbiased=False) + 1e-5) * scale) @ w,
                "The variance is taken over all parts and dimensions; it is that of their sum x.",
            ),
        ]
        if spread < 0.1:
            mistakes += [
                (
                    (centred / torch.sqrt(variance) * scale) @ w,
                    "Right for a stream of usual size, not for a tiny one: eps is missing under the root.",
                ),
                (
                    (centred / (torch.sqrt(variance) + 1e-5) * scale) @ w,
                    "Right for a stream of usual size, not for a tiny one: eps stands under the root, not beside it.",
                ),
            ]
        tensor(
            given,
            right,
            mistakes,
            hint="The sum over the parts, and w · shift, must be the logit: compare with `torch.nn.functional.layer_norm`.",
        )
