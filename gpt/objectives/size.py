"""Model size, context, dropout and length of training by the amount of text, where a config leaves them out."""

import math
from dataclasses import replace

from gpt.config import GPTConfig, TrainConfig
from gpt.token_files import PreparedData

CHARACTER_BYTES = 1.5  # bytes per token below which tokens are characters
STEPS, TOKENS = 600, 120_000  # so many steps for so many training tokens; with more they grow with the root
MIN_STEPS, MAX_STEPS = 200, 3000


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
    steps = config.max_steps
    if steps == defaults.max_steps:
        steps = min(max(round(STEPS * math.sqrt(n_tokens / TOKENS) / 100) * 100, MIN_STEPS), MAX_STEPS)
    if _is_left_out(model, "drop_rate"):
        epochs = steps * config.batch_size * config.grad_accum_steps * model.context_length / n_tokens
        model = replace(model, drop_rate=0.2 if epochs > 6 else 0.1 if epochs > 3 else 0.0)
    return replace(config, model=model, max_steps=steps)


def _is_left_out(model: GPTConfig, name: str) -> bool:
    return getattr(model, name) == getattr(GPTConfig(), name)
