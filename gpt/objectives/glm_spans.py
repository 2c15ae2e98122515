"""A text with blanks, and behind it what fills them: how GLM reads."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt.ops.reference import IGNORE_INDEX

MASK, START, END = "[MASK]", "[SOP]", "[EOP]"  # a blank, and the beginning and the end of what fills it


class GLMSpans(NamedTuple):
    """A text with blanks, and behind it what fills them: what `cut_spans` returns, int64, (T,) each."""

    inputs: np.ndarray  # the context, with one [MASK] for each span; then each span behind its [SOP]
    targets: np.ndarray  # -100 in the context; each span and its [EOP]
    positions: np.ndarray  # in the context, 0, 1, ...; in a span, that of its [MASK]
    span_positions: np.ndarray  # 0 in the context; in each span, 1, 2, ...
    n_context: int


def cut_spans(
    tokens: np.ndarray, spans: Sequence[tuple[int, int]], order: Sequence[int], ids: dict[str, int]
) -> GLMSpans:
    """Cut spans (start, end), in ascending order, out of a text (T,), and write them behind it in `order`.

    Spans may touch: each leaves a [MASK] of its own. Both positions are those of section 2.1 and figure 2 in Du et al.
    2022, "GLM", arXiv:2103.10360. ValueError for no span, for one that is empty or beyond the text, for two that
    overlap, and for an order that does not name each of them once.
    """
    if not spans:
        raise ValueError("a text without a blank has nothing to be filled in: name at least one span")
    previous = 0
    for start, end in spans:
        if not previous <= start < end <= len(tokens):
            raise ValueError(
                f"the span {start} .. {end} is empty, overlaps the one before, or leaves the {len(tokens)} tokens"
            )
        previous = end
    if sorted(order) != list(range(len(spans))):
        raise ValueError(f"the order {list(order)} does not name each of {len(spans)} spans once")
    context, places, last = [], [], 0
    for start, end in spans:
        context += tokens[last:start].tolist()
        places.append(len(context))
        context.append(ids[MASK])
        last = end
    context += tokens[last:].tolist()
    inputs, targets = list(context), [IGNORE_INDEX] * len(context)
    positions, span_positions = list(range(len(context))), [0] * len(context)
    for span in order:
        start, end = spans[span]
        filling = tokens[start:end].tolist()
        inputs += [ids[START], *filling]
        targets += [*filling, ids[END]]
        positions += [places[span]] * (len(filling) + 1)
        span_positions += range(1, len(filling) + 2)
    return GLMSpans(*map(np.array, (inputs, targets, positions, span_positions)), len(context))


def draw_spans(n: int, rate: float, mean_length: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Spans of a text of n tokens that hold round(rate · n) of them, at least one: lengths from a Poisson distribution,
    at least 1, the last cut short; any arrangement is as probable as any other."""
    n_cut = max(1, round(rate * n))
    lengths: list[int] = []
    while sum(lengths) < n_cut:
        lengths.append(min(max(1, int(rng.poisson(mean_length))), n_cut - sum(lengths)))
    # of so many things in a row, the tokens that stay and the spans, these are spans
    places = np.sort(rng.choice(n - n_cut + len(lengths), len(lengths), replace=False))
    starts = places + np.cumsum([0, *lengths[:-1]]) - np.arange(len(lengths))
    return [(int(start), int(start) + length) for start, length in zip(starts, lengths, strict=True)]


def infilling_mask(n_context: Tensor, n_tokens: int) -> Tensor:
    """Who sees whom, (B, T, T), True where query t may see key s: the context all of itself, a token of a span all of
    the context and what stands behind it up to itself; for contexts of n_context (B,) tokens."""
    place = torch.arange(n_tokens, device=n_context.device)
    return (place < n_context[:, None, None]) | (place <= place[:, None])
