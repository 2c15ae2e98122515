"""Checks of 04_attention.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch.nn import functional as F


@exercise("04.1")
def causal_attention(answer):
    """softmax(Q K^T / sqrt(K), causal) V for (T, K)."""
    draw = torch.Generator().manual_seed(41)
    for n, d in ((5, 4), (1, 3), (3, 16)):
        q, k, v = torch.randn(3, n, d, generator=draw)
        right = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        raw, allowed = q @ k.T, torch.ones(n, n, dtype=torch.bool).tril()
        scores = raw / math.sqrt(d)
        hidden = scores.masked_fill(~allowed, -torch.inf)
        given = called(answer, q, k, v)
        if n == 1:
            tensor(given, right, hint="That is for a text of one token.")
            continue
        mistakes = [
            (raw.softmax(-1) @ v, "Both the root and the mask are missing."),
            (scores.softmax(-1) @ v, "The root is right, but each position sees what comes after it."),
            (raw.masked_fill(~allowed, -torch.inf).softmax(-1) @ v, "The mask is right; the scores are not divided."),
            (
                (raw / d).masked_fill(~allowed, -torch.inf).softmax(-1) @ v,
                "You divide by the width. Is that what the formula says?",
            ),
            (
                (raw / math.sqrt(n)).masked_fill(~allowed, -torch.inf).softmax(-1) @ v,
                "You divide by the root of the number of tokens; use the width of a vector.",
            ),
            (
                scores.softmax(-1).tril() @ v,
                "The mask comes after the softmax, so the weights no longer sum to 1, and they depend on the future.",
            ),
            (
                scores.tril().softmax(-1) @ v,
                "A score of 0 is not masked: e to the power of 0 is 1. Which score has a softmax of 0?",
            ),
            (hidden.softmax(-1), "These are the weights. What do they weight?"),
            (
                scores.masked_fill(allowed, -torch.inf).softmax(-1) @ v,
                "The mask is inverted: masked_fill fills where it is True.",
            ),
            (
                scores.masked_fill(~allowed.T, -torch.inf).softmax(-1) @ v,
                "The mask is mirrored: each position sees itself and what comes after. Rows are queries, columns are "
                "keys.",
            ),
            (
                scores.masked_fill(~allowed.tril(-1), -torch.inf).softmax(-1) @ v,
                "Each position should see itself too, not only those before it. (The first would see nothing at all.)",
            ),
            (
                hidden.softmax(0) @ v,
                "The softmax runs over the queries; it should run over the keys, the last dimension.",
            ),
            (
                (k @ q.T / math.sqrt(d)).masked_fill(~allowed, -torch.inf).softmax(-1) @ v,
                "Query and key are swapped.",
            ),
            (hidden.softmax(-1) @ k, "You average the keys. Which of the three should you average?"),
        ]
        tensor(given, right, mistakes, hint="Scores, root, mask, softmax, mean: which of them differs?")
    with torch.no_grad():
        big = called(answer, torch.full((2, 4), 60.0), torch.full((2, 4), 60.0), torch.eye(2, 4))
    if not torch.isfinite(big).all():
        raise Wrong(
            "Right for small scores, NaN for large ones. Do you take exp without subtracting the largest score first?"
        )


@exercise("04.2")
def split_heads(answer):
    """(B, T, D) to (B, H, T, K)."""
    for b, t, h, k in ((2, 3, 4, 5), (1, 1, 2, 3), (3, 4, 1, 6)):
        x = torch.arange(b * t * h * k, dtype=torch.float32).view(b, t, h * k)
        right = torch.stack([x[..., i * k : (i + 1) * k] for i in range(h)], dim=1)
        given = called(answer, x, h)
        if isinstance(given, torch.Tensor) and given.shape == (b, t, h, k) != right.shape:
            raise Wrong("The width is split into heads. Now move the heads in front of the positions: (B, H, T, K).")
        mistakes = [
            (
                x.reshape(b, h, t, k),
                "The shape is right, but this splits the text into heads: `view` keeps the order in memory. Split "
                "the width first.",
            ),
            (
                x.view(b, t, k, h).permute(0, 3, 1, 2),
                "Head h has every H-th number; it should have K neighbours, h·K to (h+1)·K.",
            ),
        ]
        tensor(given, right, mistakes)


@exercise("04.3")
def equal_keys(answer):
    """Equal keys: the mean of the visible values, (3 + 5 + 10) / 3."""
    number(
        answer,
        18 / 3,
        mistakes=[
            (48 / 4, "That is the mean of all four values. Which of them may the third position see?"),
            (8 / 2, "That is the mean of the first two. May a position see itself?"),
            (10, "That is its own value alone. With equal keys, what are the weights?"),
            (18, "That is the sum. The weights of a softmax sum to 1."),
            (
                18 / 4,
                "You divide by four, but the sum has fewer values: the weights sum to 1 over the visible positions.",
            ),
        ],
        hint="Equal keys have equal scores, whatever the query. What are the weights then?",
    )


@exercise("04.4")
def order(answer):
    """Attention without mask and positions is permutation-equivariant."""
    choice(
        answer,
        "b",
        {
            "a": "The set of results is the same, but the words have moved. Where is each word's result now?",
            "c": "Follow one word: which scores does it have with the others, and does their order enter a sum?",
        },
    )


@exercise("04.5")
def weights(answer):
    """12 · 1024²."""
    number(
        answer,
        12 * 1024**2,
        mistakes=[
            (1024**2, "That is the number for one head."),
            (12 * 1024**2 / 2, "About half of them are 0, but count them too."),
            (12 * 1024 * 1025 / 2, "Those are the ones on and below the diagonal. Count the others too."),
            (768 * 1024**2, "Each dot product sums over the width of a head, so the width adds no weights."),
            (768 * 1024, "That is the size of the queries. A weight belongs to a pair of positions."),
            (12 * 1024, "A weight belongs to a pair: a query position and a key position."),
            (
                4 * 768**2,
                "Those are the learned weights of the matrices. The attention weights are computed for each text.",
            ),
            (12 * 1024**2 * 4, "That is their size in bytes. How many are there?"),
        ],
        hint="Each head has a weight for each pair of positions.",
        tolerance=1e-6,
    )
