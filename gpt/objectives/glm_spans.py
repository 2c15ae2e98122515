"""The input of GLM: a text with blanks, followed by the spans that fill them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt.ops.reference import IGNORE_INDEX

MASK, START, END = "[MASK]", "[SOP]", "[EOP]"  # a blank; the start and the end of the span that fills it


class GLMExample(NamedTuple):
    """A text with blanks, the context, followed by the spans that fill them; arrays are int64, (T,)."""

    inputs: np.ndarray  # the context with one [MASK] for each span; then [SOP] and the tokens of each span
    targets: np.ndarray  # -100 in the context; then the tokens of each span and [EOP]
    positions: np.ndarray  # in the context 0, 1, ...; in a span the position of its [MASK]
    span_positions: np.ndarray  # in the context 0; in each span 1, 2, ...
    n_context: int


def cut_spans(
    tokens: np.ndarray, spans: Sequence[tuple[int, int]], order: Sequence[int], ids: dict[str, int]
) -> GLMExample:
    """Return a text (T,) with each span (start, end) replaced by [MASK], followed by the spans in the given order.

    Spans are in ascending order and may touch. Du et al. 2022, "GLM", arXiv:2103.10360, section 2.1 and figure 2.
    ValueError if there is no span, a span is empty, overlaps another or exceeds the text, or `order` is not a
    permutation of the spans.
    """
    if not spans:
        raise ValueError("a text without a blank has nothing to fill in: name at least one span")
    previous = 0
    for start, end in spans:
        if not previous <= start < end <= len(tokens):
            raise ValueError(
                f"the span {start} .. {end} is empty, overlaps the one before, or leaves the {len(tokens)} tokens"
            )
        previous = end
    if sorted(order) != list(range(len(spans))):
        raise ValueError(f"the order {list(order)} is not a permutation of {len(spans)} spans")
    context, mask_positions, last = [], [], 0
    for start, end in spans:
        context += tokens[last:start].tolist()
        mask_positions.append(len(context))
        context.append(ids[MASK])
        last = end
    context += tokens[last:].tolist()
    inputs, targets = list(context), [IGNORE_INDEX] * len(context)
    positions, span_positions = list(range(len(context))), [0] * len(context)
    for span in order:
        start, end = spans[span]
        span_tokens = tokens[start:end].tolist()
        inputs += [ids[START], *span_tokens]
        targets += [*span_tokens, ids[END]]
        positions += [mask_positions[span]] * (len(span_tokens) + 1)
        span_positions += range(1, len(span_tokens) + 2)
    return GLMExample(*map(np.array, (inputs, targets, positions, span_positions)), len(context))


def sample_spans(n: int, rate: float, mean_length: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return random spans that hold round(rate · n) of n tokens, and at least one token.

    Lengths follow a Poisson distribution, but are at least 1; the last span is cut to size. All arrangements of spans
    of these lengths have the same probability.
    """
    n_cut = max(1, round(rate * n))
    lengths: list[int] = []
    while sum(lengths) < n_cut:
        lengths.append(min(max(1, int(rng.poisson(mean_length))), n_cut - sum(lengths)))
    # tokens that stay and spans form a sequence; choose which of its items are spans
    items = np.sort(rng.choice(n - n_cut + len(lengths), len(lengths), replace=False))
    starts = items + np.cumsum([0, *lengths[:-1]]) - np.arange(len(lengths))
    return [(int(start), int(start) + length) for start, length in zip(starts, lengths, strict=True)]


def infilling_mask(n_context: Tensor, n_tokens: int) -> Tensor:
    """Return the attention mask (B, T, T), True where query t sees key s, for contexts of n_context (B,) tokens.

    All tokens see the context; a token of a span also sees the spans before it and its own span up to itself.
    """
    position = torch.arange(n_tokens, device=n_context.device)
    return (position < n_context[:, None, None]) | (position <= position[:, None])
