"""Model size, context and length of training by the amount of text, where a config leaves them out."""

import math
from dataclasses import replace

from gpt.config import GPTConfig, TrainConfig
from gpt.token_files import PreparedData

CHARACTER_BYTES = 1.5  # bytes per token up to which tokens are about characters


def fit_to_text(config: TrainConfig, data: PreparedData) -> TrainConfig:
    """Return the config with context_length, emb_dim, n_layers, drop_rate and max_steps chosen by the training text.

    Those that the config sets are kept; a value that is the default counts as left out. Measured on texts of 0.1 to 10
    MB, in minutes on two CPU cores: docs/training.md has the figures. Steps grow with the root of the text, so that a
    longer text is read fewer times and needs less dropout.
    """
    n_tokens, default = len(data.train.tokens), TrainConfig()
    characters = data.bytes_per_token < CHARACTER_BYTES
    model = {"context_length": 256 if characters else 128, "emb_dim": 128, "n_layers": 4}
    model = {name: value for name, value in model.items() if getattr(config.model, name) == getattr(GPTConfig(), name)}
    config = replace(config, model=replace(config.model, **model))
    if config.max_steps == default.max_steps:
        steps = 600 * math.sqrt(n_tokens / 120_000)
        config = replace(config, max_steps=min(max(round(steps, -2), 200), 3000))
    if config.model.drop_rate == GPTConfig().drop_rate:
        step_tokens = config.batch_size * config.grad_accum_steps * config.model.context_length
        epochs = config.max_steps * step_tokens / n_tokens
        drop_rate = 0.2 if epochs > 6 else 0.1 if epochs > 2 else 0.0
        config = replace(config, model=replace(config.model, drop_rate=drop_rate))
    return config
