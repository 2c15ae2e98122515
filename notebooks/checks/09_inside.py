"""Checks of 09_inside.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch import Tensor


def _given(answer, *arguments) -> Tensor:
    """Call the answer and return its result as a tensor."""
    given = called(answer, *arguments)
    if not isinstance(given, Tensor):
        try:
            given = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            raise Wrong(f"Your function returns a {type(given).__name__}; return a tensor.") from None
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
            """Average over pairs (i, i - shift) from `start` on, one by one."""
            pairs = [(i, i - shift) for i in range(max(start, shift), n_tokens)]
            return sum((weights[:, :, i, j] for i, j in pairs), 0 * weights[:, :, 0, 0]) / max(1, len(pairs))

        each = mean(period - 1, period)  # (B, H)
        right = each.mean(0)
        given = _given(answer, weights, period)
        where = f"For weights of shape {tuple(weights.shape)} and period {period}: "
        if given.shape != right.shape:
            hints = {
                (n_batch, n_heads): "the mean over the texts is missing.",
                (n_batch,): "you average over the heads and keep the texts. Which of them should remain?",
                (): "that is one number for all heads: return one for each head.",
                (n_heads, n_tokens - period): "the mean over the positions is missing.",
                (n_batch, n_heads, n_tokens - period): "the mean over texts and positions is missing.",
                (n_heads, n_tokens): "you index rows and columns as blocks, not in pairs: use two index tensors.",
            }
            hint = hints.get(tuple(given.shape), f"it should be {tuple(right.shape)}.")
            raise Wrong(f"{where}yours has the shape {tuple(given.shape)}; {hint}")
        rows = torch.arange(period, n_tokens)
        everything = weights[:, :, rows][:, :, :, rows - period + 1].mean((0, 2, 3))
        mistakes = [
            (
                mean(period, period).mean(0),
                "That is the attention to the earlier occurrence of the same token. Where is the token that followed "
                "it?",
            ),
            (
                mean(period + 1, period).mean(0),
                "You look one position before the earlier occurrence. In which direction is the token that followed "
                "it?",
            ),
            (
                mean(period - 1, 0).mean(0),
                "The mean starts one position too early: the first repeated token is at position `period`.",
            ),
            (mean(1).mean(0), "That is the previous-token score."),
            (each.mean(0) * len(rows), "That is the sum over the positions; return the mean."),
            (
                each.mean(0) * len(rows) / n_tokens,
                "The sum is right, but you divide by all positions: count only those from `period` on.",
            ),
            (everything, "You index a block, each row with each column; use pairs."),
            (
                weights[:, :, rows - period + 1, rows].mean((0, 2)),
                "It is 0 everywhere: you look where the mask hides everything. Rows are queries, columns are keys.",
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
                hint=f"That is for T = {n_tokens} and period {period}. Does the function contain a fixed length from "
                "the notebook?",
            )


@exercise("09.2")
def one_layer(answer):
    """The loss that one layer reaches."""
    choice(
        answer,
        "c",
        {
            "a": "A head of the first layer makes its keys from single tokens. How would it know which token came "
            "before one?",
            "b": "Something is known in the second half even without order: which tokens have occurred in this text "
            "at all?",
        },
    )


@exercise("09.3")
def removed(answer):
    """What zeroing sixteen outputs of out_proj removes."""
    choice(
        answer,
        "c",
        {
            "a": "Head 2 owns these numbers in the input of `out_proj`. This hook is on the module that contains "
            "`out_proj`. What has its output been through?",
            "b": "The return value of a hook replaces the output, unless it is None.",
            "d": "The hook changes what attention adds to the stream. The block adds the previous stream afterwards.",
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
            (math.log(1.5), "That is the cost of one of the two words. What is the average over both?"),
            (math.log(3), "That is the cost of one of the two words. What is the average over both?"),
            (math.log(2), "That would be right if both were equally likely."),
            (
                (math.log(1.5) + math.log(3)) / 2,
                "That is the plain mean of both costs, but one of them occurs more often.",
            ),
            (math.log(1.5) / 3 + math.log(3) * 2 / 3, "The weights are swapped: the expensive word is the rare one."),
            (math.exp(right), "That is the perplexity; the question is about nats."),
            (-math.log(5 / 9), "That is the logarithm of a mean probability. Which mean do you need?"),
            (0.75 * math.log(4 / 3) + 0.25 * math.log(4), "You use three times as often; the grammar says twice."),
            (1 / 3, "That is a probability; the answer should be in nats."),
            (2 / 3, "That is a probability; the answer should be in nats."),
        ],
        hint="What are the two probabilities, what does each word cost, and how often does it occur?",
    )


@exercise("09.5")
def contributions(answer):
    """The contribution of each part of the stream to a logit, through the final norm."""
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
                    f"Yours is {tuple(given.shape)}, one number for each part and dimension. The dot product with w "
                    "sums over the dimensions."
                )
            if given.dim() == 0 and n_parts > 1:
                raise Wrong("Yours is one number, the whole logit: return one for each part.")
            raise Wrong(
                f"Return one number for each part, of shape {tuple(right.shape)}; yours is {tuple(given.shape)}."
            )
        mistakes = [
            (
                (centred / torch.sqrt(own + 1e-5) * scale) @ w,
                "You divide each part by the root of its own variance. Which variance does the norm use?",
            ),
            ((parts / s * scale) @ w, "The norm subtracts the mean as well. What is each part's share of that mean?"),
            (
                ((parts - x.mean()) / s * scale) @ w,
                "You subtract the mean of the whole x from each part, so it is subtracted P times.",
            ),
            (
                ((parts - x.mean() / n_parts) / s * scale) @ w,
                "You give each part the same share of the mean. But the parts have different means.",
            ),
            ((centred / (variance + 1e-5) * scale) @ w, "You divide by the variance. What is s?"),
            ((centred / s) @ w, "The scale is missing."),
            ((centred / s * scale).sum(-1), "Where is w, the token's row of `out_head`?"),
            (
                ((parts - parts.mean(0)) / s * scale) @ w,
                "You subtract the mean over the parts. The norm's mean runs over the D numbers of one vector.",
            ),
            ((centred * scale) @ w, "You do not divide: where is s?"),
            ((parts * scale) @ w, "Where are the mean and s? The norm subtracts one and divides by the other."),
            (parts @ w, "These are the logits without the norm, which is between the stream and `out_head`."),
            (
                (centred / torch.sqrt(x.var() + 1e-5) * scale) @ w,
                "Almost: PyTorch's `var` divides by D - 1 by default, LayerNorm by D.",
            ),
            (
                (centred / torch.sqrt(parts.var(unbiased=False) + 1e-5) * scale) @ w,
                "You take the variance over all parts and dimensions; take that of their sum x.",
            ),
        ]
        if spread < 0.1:
            mistakes += [
                (
                    (centred / torch.sqrt(variance) * scale) @ w,
                    "Right for a stream of usual size, not for a tiny one: eps is missing.",
                ),
                (
                    (centred / (torch.sqrt(variance) + 1e-5) * scale) @ w,
                    "Right for a stream of usual size, not for a tiny one. Where does the norm add eps?",
                ),
            ]
        tensor(
            given,
            right,
            mistakes,
            hint="The sum over the parts plus w · shift must be the logit: compare with "
            "`torch.nn.functional.layer_norm`.",
        )
