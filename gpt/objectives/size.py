"""Model size, context, dropout and length of training by the amount of text, where a config leaves them out."""

import math
from dataclasses import replace

from gpt.config import GPTConfig, TrainConfig
from gpt.token_files import PreparedData

CHARACTER_BYTES = 1.5  # bytes per token below which tokens are characters
TEXT_TOKENS, READ_TOKENS = 120_000, 1_200_000  # a text of so many tokens is read for so many; more with the root
MAX_READ_TOKENS = 6_000_000  # some minutes on two CPU cores


def fit_to_text(config: TrainConfig, data: PreparedData) -> TrainConfig:
    """Return the config with context_length, emb_dim, n_layers, drop_rate and max_steps chosen by the training text.

    Those that the config sets are kept; a default value counts as left out. The rules were measured on texts of 0.1 to
    7 MB (docs/training.md has the figures): a longer text is read fewer times, and then needs less dropout. With
    init_from the model keeps the size of its source.
    """
    n_tokens = len(data.train.tokens)
    chosen = {"context_length": 256 if data.bytes_per_token < CHARACTER_BYTES else 128, "emb_dim": 128, "n_layers": 4}
    model, defaults = config.model, TrainConfig()
    if not config.init_from:
        model = replace(model, **{name: value for name, value in chosen.items() if _is_left_out(model, name)})
        if model.feed_forward == "swiglu" and not model.ffn_dim:  # 8/3 of the width: as many weights as GELU's at 4
            model = replace(model, ffn_dim=round(8 / 3 * model.emb_dim / 32) * 32)
    steps, step_tokens = config.max_steps, config.batch_size * config.grad_accum_steps * model.context_length
    if steps == defaults.max_steps:
        read_tokens = min(READ_TOKENS * math.sqrt(n_tokens / TEXT_TOKENS), MAX_READ_TOKENS)
        steps = max(round(read_tokens / step_tokens / 100) * 100, 100)
    if _is_left_out(model, "drop_rate"):
        epochs = steps * step_tokens / n_tokens
        model = replace(model, drop_rate=0.2 if epochs > 6 else 0.1 if epochs > 3 else 0.0)
    return replace(config, model=model, max_steps=steps)


def _is_left_out(model: GPTConfig, name: str) -> bool:
    return getattr(model, name) == getattr(GPTConfig(), name)
