"""Text that a model writes: the rest of a document, of several in a batch, or new documents."""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import nn

from gpt.generation import generate_stream
from gpt.tokenizer import Tokenizer


class Completion(NamedTuple):
    """The ids that continue a prompt, without the token that ends them, and whether it came: otherwise they are cut."""

    ids: list[int]
    ended: bool


def with_start(ids: list[int], tokenizer: Tokenizer, prepend_eot: bool) -> list[int]:
    """Return the ids of a prompt, after the token that begins a text if `prepend_eot` or if the prompt is empty.

    `prepend_eot` is for models trained on one document at a time. ValueError if there is neither prompt nor such token.
    """
    if ids and not prepend_eot:
        return ids
    if tokenizer.bos_id is None:
        raise ValueError("the prompt is empty, and the tokenizer has no token that begins a text: write --prompt TEXT")
    return [tokenizer.bos_id, *ids]


def default_length(model: nn.Module, prepend_eot: bool) -> int:
    """Return the most tokens to generate if nobody says how many: a document's, or 200."""
    return model.config.context_length if prepend_eot else 200


def generate_rows(
    model: nn.Module,
    prompts: list[list[int]],
    stop_ids: Collection[int | None],
    max_new_tokens: int,
    on_overflow: Callable[[], None] | None = None,
    is_over: Callable[[int, int], bool] | None = None,
    **sampling,
) -> Iterator[list[int]]:
    """Yield the next id of each prompt, step by step, until all have ended; then one of `stop_ids` again and again.

    A row ends with one of `stop_ids`, or where `is_over` says so for its number and next id. `sampling` is passed to
    `generate_stream`. `on_overflow` is called once if a text grows beyond the model's context."""
    room = [model.config.context_length - len(ids) for ids in prompts]  # below 0: cut before it is read
    growing = {row for row, n in enumerate(room) if n >= 0}
    rows, ended = [torch.tensor(ids) for ids in prompts], {}
    for n, tokens in enumerate(generate_stream(model, rows, max_new_tokens, **sampling)):
        if on_overflow and any(n > room[row] for row in growing - ended.keys()):
            on_overflow()
            on_overflow = None
        ids = [ended.get(row, i) for row, i in enumerate(tokens.tolist())]
        ended |= {row: i for row, i in enumerate(ids) if i in stop_ids}
        if is_over:
            others = [row for row in range(len(ids)) if row not in ended]
            ended |= {row: next(iter(stop_ids)) for row in others if is_over(row, ids[row])}
        yield ids
        if len(ended) == len(rows):
            return


def generate_ids(
    model: nn.Module,
    ids: list[int],
    tokenizer: Tokenizer,
    prepend_eot: bool,
    max_new_tokens: int | None = None,
    stop_ids: Collection[int] | None = None,
    **sampling,
) -> Iterator[int]:
    """Yield the ids that continue a prompt, one by one, up to one of `stop_ids` (default: the end-of-text token), which
    is left out.

    An empty prompt, or any with `prepend_eot`, starts a document: see `with_start`. Without max_new_tokens there are at
    most 200, or context_length with prepend_eot. `sampling` is passed to `generate_rows`.
    """
    prompt = with_start(ids, tokenizer, prepend_eot)
    if max_new_tokens is None:
        max_new_tokens = default_length(model, prepend_eot)
    stop_ids = stop_ids or {tokenizer.eot_id}
    for (i,) in generate_rows(model, [prompt], stop_ids, max_new_tokens, **sampling):
        if i not in stop_ids:
            yield i


def complete(
    model: nn.Module, prompts: list[list[int]], stop_ids: Collection[int | None], max_new_tokens: int, **sampling
) -> list[Completion]:
    """Continue prompts of any lengths, none empty, in one batch. Arguments as for `generate_rows`."""
    steps = list(generate_rows(model, prompts, stop_ids, max_new_tokens, **sampling))
    rows = zip(*steps, strict=True) if steps else [()] * len(prompts)
    return [Completion([i for i in row if i not in stop_ids], any(i in stop_ids for i in row)) for row in rows]


def sample_documents(model: nn.Module, eot_id: int, n: int, seed: int = 0, batch_size: int = 100) -> list[list[int]]:
    """Sample n documents at temperature 1, each with the probability that the model gives it. Return their token ids.

    A document that does not end is cut at the model's context_length.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    documents = []
    while len(documents) < n:
        prompts = [[eot_id]] * min(batch_size, n - len(documents))
        written = complete(model, prompts, {eot_id}, model.config.context_length, generator=generator)
        documents += [text.ids for text in written]
    return documents
