"""Generate text from the command line: print samples as they are generated, and notices on stderr."""

import sys
from collections.abc import Iterable

import torch

from gpt.config import GPTConfig
from gpt.exchange.models import LoadedModel
from gpt.generation import check_sampling
from gpt.objectives.documents import generate_ids
from gpt.system.device import choose_device
from gpt.text.chat import encode_chat
from gpt.text.tokenizers import decode_stream
from gpt.variants.int8 import Int8GPTModel, weight_bytes


def use_int8(loaded: LoadedModel) -> None:
    """Round the weights of a loaded model to int8, and print the bytes saved."""
    before = weight_bytes(loaded.objective.model)
    loaded.objective.model = Int8GPTModel(loaded.objective.model)
    after = weight_bytes(loaded.objective.model)
    print(f"int8 weights: {after / 1e6:,.1f} MB, float32 {before / 1e6:,.1f} MB", file=sys.stderr)


def print_samples(
    loaded: LoadedModel, prompt: str, n_samples: int, max_new_tokens: int | None, seed: int, device: str, **sampling
) -> None:
    """Print `n_samples` texts, token by token. `sampling`: temperature, top_k and top_p of `generate`."""
    check_sampling(max_new_tokens or 0, **sampling)
    device = choose_device(device)
    objective, tokenizer, prepend_eot = loaded.objective.to(device), loaded.tokenizer, loaded.prepend_eot
    if objective.continues_prompts:
        n_prompt = prepend_eot + len(tokenizer.encode(prompt))
        _notice_context(objective.model.config, n_prompt, max_new_tokens, prepend_eot)
    generator = torch.Generator(device).manual_seed(seed)
    _print_pieces(
        objective.generate_text(prompt, tokenizer, prepend_eot, max_new_tokens, **sampling, generator=generator)
        for _ in range(n_samples)
    )


def print_answers(
    loaded: LoadedModel,
    messages: list[dict[str, str]],
    n_answers: int,
    max_new_tokens: int | None,
    seed: int,
    device: str,
    **sampling,
) -> None:
    """Print `n_answers` to a conversation, by the model's chat template. Arguments as for `print_samples`.

    Without max_new_tokens an answer ends after 1,000. ValueError if the model has no chat template.
    """
    check_sampling(max_new_tokens or 0, **sampling)
    device = choose_device(device)
    model, tokenizer = loaded.objective.to(device).model, loaded.tokenizer
    ids = encode_chat(tokenizer, messages)
    generator = torch.Generator(device).manual_seed(seed)
    answers = (
        generate_ids(model, ids, tokenizer, False, max_new_tokens or 1000, **sampling, generator=generator)
        for _ in range(n_answers)
    )
    _print_pieces(decode_stream(tokenizer, answer) for answer in answers)


def _print_pieces(texts: Iterable[Iterable[str]]) -> None:
    """Print texts, each piece as it comes."""
    for n, pieces in enumerate(texts):
        if n:
            print("\n---")
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def _notice_context(model: GPTConfig, n_prompt: int, max_new_tokens: int | None, prepend_eot: bool) -> None:
    """Print a notice if prompt and new tokens exceed the model's context."""
    context, n_new = model.context_length, 200 if max_new_tokens is None else max_new_tokens
    if prepend_eot and max_new_tokens is None:
        n_new = context
    if model.backbone == "gpt" and 0 < n_prompt <= context < n_prompt + n_new:
        effect = "generation slows down: each new token reads the whole context again"
        if model.position == "rope":
            effect = "the model forgets the oldest ones, a quarter of them at a time"
        print(f"beyond {context} tokens {effect}", file=sys.stderr)
    if n_prompt > context:
        print(f"the prompt has {n_prompt} tokens; the model sees the last {context} of them", file=sys.stderr)
