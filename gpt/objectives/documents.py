"""Documents that a model writes: the rest of a given one, or new ones."""

from collections.abc import Iterator

import torch
from torch import nn

from gpt.generation import generate, generate_stream
from gpt.tokenizer import Tokenizer


def generate_ids(
    model: nn.Module,
    ids: list[int],
    tokenizer: Tokenizer,
    prepend_eot: bool,
    max_new_tokens: int | None = None,
    **sampling,
) -> Iterator[int]:
    """Yield the ids that continue a prompt, one by one, up to the end-of-text token, which is left out.

    `prepend_eot` is for models trained on one document at a time: the prompt then starts a document. Without
    max_new_tokens there are at most 200, or context_length with prepend_eot. `sampling` is passed to `generate_stream`.
    ValueError for a prompt without tokens.
    """
    ids = [tokenizer.bos_id] * prepend_eot + ids
    if not ids:
        raise ValueError("the prompt is empty: write at least one token")
    if max_new_tokens is None:
        max_new_tokens = model.config.context_length if prepend_eot else 200
    for tokens in generate_stream(model, torch.tensor([ids]), max_new_tokens, stop_id=tokenizer.eot_id, **sampling):
        (i,) = tokens.tolist()
        if i != tokenizer.eot_id:
            yield i


def sample_documents(model: nn.Module, eot_id: int, n: int, seed: int = 0, batch_size: int = 100) -> list[list[int]]:
    """Sample n documents at temperature 1, each with the probability that the model gives it. Return their token ids.

    A document that does not end is cut at the model's context_length.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    documents = []
    while len(documents) < n:
        prompts = [torch.tensor([eot_id])] * min(batch_size, n - len(documents))
        written = generate(model, prompts, model.config.context_length, stop_id=eot_id, generator=generator)
        documents += [[i for i in ids.tolist() if i != eot_id] for ids in written]
    return documents
