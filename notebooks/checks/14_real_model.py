"""Checks of 14_real_model.ipynb."""

import torch
from exercises import Wrong, called, choice, exercise, number, tensor


@exercise("14.1")
def quantize(answer):
    """One scale per row: the largest absolute weight becomes 127."""
    draw = torch.Generator().manual_seed(141)
    for shape in ((4, 6), (3, 3), (2, 5)):
        weight = torch.randn(shape, generator=draw) * torch.tensor([1.0, 5.0, 0.2, 9.0])[: shape[0], None]
        right = weight.abs().amax(dim=1) / 127
        given = called(answer, weight)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise Wrong("Return a pair: the integers and the scales.")
        integers, scale = given
        if integers is ... or scale is ...:
            raise Wrong("The dots are still there: replace them with the two tensors.")
        if isinstance(scale, torch.Tensor) and scale.shape == (shape[0], 1):
            raise Wrong("The scales have the shape (out, 1). Return them as (out,).")
        signed = weight.amax(dim=1) / 127
        tensor(
            scale,
            right,
            [
                (weight.abs().amax(dim=0) / 127, "The scales run along the wrong axis: one for each row, an output."),
                (weight.abs().amax() / 127, "One scale for the whole matrix: give each row its own."),
                (right * 127 / 128, "128 has no positive int8: the largest is 127."),
                (right * 127 / 255, "255 values reach from -127 to 127. What does the largest weight become?"),
                (1 / right, "That is the inverse: an integer times the scale should be the weight."),
                (right * 127, "That is the largest weight. What is the scale if it becomes 127?"),
                (signed, "Negative weights can be the largest too: take the absolute value first."),
                (weight.abs().mean(dim=1) / 127, "You divide by the mean: larger weights would not fit into int8."),
            ],
            hint="The largest absolute weight of a row, divided by 127.",
        )
        exact = weight / right[:, None]
        tensor(
            integers,
            exact.round(),
            [
                (
                    exact.trunc(),
                    "The scales are right. Round to the nearest integer: a conversion cuts the fraction off.",
                ),
                (exact.floor(), "The scales are right. Round to the nearest integer, not down."),
                ((weight * right[:, None]).round(), "The scales are right. Divide the weights by them, not multiply."),
                (
                    weight.round(),
                    "The scales are right, but the integers are the weights themselves, rounded.",
                ),
            ],
            hint="The scales are right; the integers are the weights divided by them, rounded.",
        )
        if not isinstance(integers, torch.Tensor) or integers.dtype != torch.int8:
            raise Wrong("The values are right. The integers should be a tensor of the type torch.int8.")


@exercise("14.2")
def sink_share(answer):
    """The mean over queries 1, 2, ... of the weight of key 0."""
    draw = torch.Generator().manual_seed(142)
    for heads, n in ((3, 6), (2, 4), (5, 3)):
        scores = torch.randn(heads, n, n, generator=draw).masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf)
        weights = scores.softmax(dim=-1)
        mistakes = [
            (weights[:, :, 0].mean(dim=-1), "The first query is still there: it can only look at itself."),
            (weights[:, 0, 1:].mean(dim=-1), "That is what the first query gives. Rows are queries, columns are keys."),
            (weights[:, 0].mean(dim=-1), "That is what the first query gives. Rows are queries, columns are keys."),
            (weights[:, 1:, 0].sum(dim=-1), "That is the sum over the queries: take their mean."),
            (weights[:, 1:, 0].mean(), "That is one number for all heads."),
            (weights[:, 1:, 0].mean(dim=0), "You average over the heads and keep the queries."),
            (
                weights[:, 1:, 0].sum(dim=-1) / n,
                "You leave the first query out, and still divide by the number of all.",
            ),
            (weights[:, -1, 0], "That is the last query alone."),
            (weights[:, 1:, 1].mean(dim=-1), "That is the second token. The first has the number 0."),
        ]
        tensor(called(answer, weights), weights[:, 1:, 0].mean(dim=-1), mistakes, hint="Which row, which column?")


@exercise("14.3")
def parameters_of_a_block(answer):
    """4 D² + 3 D F + 2 D."""
    d, f = 2048, 8192
    right = 4 * d * d + 3 * d * f + 2 * d
    number(
        answer,
        right,
        mistakes=[
            (right - 2 * d, "The two norms are missing."),
            (right - d, "There are two norms."),
            (right + 2 * d, "An RMSNorm has no shift."),
            (4 * d * d + 2 * d * f + 2 * d, "Attention is missing, or one of the three matrices of the gated layer."),
            (3 * d * d + 3 * d * f + 2 * d, "Attention has four matrices: one mixes the heads at the end."),
            (4 * d * d + 2 * d, "The feed-forward layer is missing."),
            (4 * d * d + 3 * f * f + 2 * d, "The matrices of the feed-forward layer lead from one width to the other."),
            (2 * d * d + 2 * d * d // 3 + 3 * d * f + 2 * d, "Here keys and values have as many heads as queries."),
            (right * 24, "That is for all blocks."),
        ],
        hint="Four matrices of attention, three of the feed-forward layer, two norms.",
        tolerance=1e-7,
    )


@exercise("14.4")
def characters(answer):
    """8192 / 0.84."""
    number(
        answer,
        8192 / 0.84,
        mistakes=[
            (8192 * 0.84, "More tokens per character, or fewer characters per token?"),
            (8192 / 0.21, "That is English."),
            (8192 * 0.21 / 0.84, "The figure for English is not needed."),
            (8192 * 0.84 / 0.21, "The figure for English is not needed."),
            (8192, "That is the number of tokens."),
        ],
        hint="How many characters has one token?",
        tolerance=2e-3,
    )


@exercise("14.5")
def cut(answer):
    """Keep the sink."""
    choice(
        answer,
        "b",
        {
            "a": "The numbers in the cache were fine. What is no longer there?",
            "c": "It is the logits that are wrong, not how they are drawn.",
            "d": "It would have to learn to do without. What has been taken from it?",
        },
    )
