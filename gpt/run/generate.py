"""Generate text from the command line: print samples as they are generated, and notices on stderr."""

import sys

import torch

from gpt.config import GPTConfig
from gpt.exchange.models import LoadedModel
from gpt.generation import check_sampling
from gpt.system.device import choose_device
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
    for sample in range(n_samples):
        if sample:
            print("\n---")
        pieces = objective.generate_text(
            prompt, tokenizer, prepend_eot, max_new_tokens, **sampling, generator=generator
        )
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def _notice_context(model: GPTConfig, n_prompt: int, max_new_tokens: int | None, prepend_eot: bool) -> None:
    """Print a notice if prompt and new tokens exceed the model's context."""
    context, n_new = model.context_length, 200 if max_new_tokens is None else max_new_tokens
    if prepend_eot and max_new_tokens is None:
        n_new = context
    if model.backbone == "gpt" and 0 < n_prompt <= context < n_prompt + n_new:
        print(
            f"generation slows down beyond {context} tokens: each new token reads the whole context again",
            file=sys.stderr,
        )
    if n_prompt > context:
        print(f"the prompt has {n_prompt} tokens; the model sees the last {context} of them", file=sys.stderr)
