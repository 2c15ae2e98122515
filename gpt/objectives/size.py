"""Model size, context, dropout and length of training by the amount of text, where a config leaves them out."""

import math
from dataclasses import replace

import numpy as np

from gpt.config import GPTConfig, TrainConfig
from gpt.system.shards import find_all
from gpt.token_files import START, PreparedData

SHORT_TEXT = 80_000  # tokens up to which two layers learn more than four
TEXT_TOKENS = 120_000
MIN_READ_TOKENS, MAX_READ_TOKENS = 1_200_000, 6_000_000  # over all steps: for a text of TEXT_TOKENS, and at most
DROP_RATES = {15: 0.3, 6: 0.2, 4: 0.1, 0: 0.0}  # by the number of times that a text is read


def fit_to_text(config: TrainConfig, data: PreparedData) -> TrainConfig:
    """Return the config with context_length, emb_dim, n_layers, drop_rate and max_steps chosen by the training text.

    Those that the config sets are kept; a default value counts as left out. The rules were measured on texts of 0.1 to
    5 MB (docs/training.md has the figures): a longer text is read fewer times, and then needs less dropout. With
    init_from the model keeps the size of its source.
    """
    n_tokens = len(data.train.tokens)
    context_length = _context_for_documents(data) if config.data.packing == "document" else 128
    chosen = {"context_length": context_length, "emb_dim": 128, "n_layers": 2 if n_tokens < SHORT_TEXT else 4}
    model, defaults = config.model, TrainConfig()
    if not config.init_from:
        model = replace(model, **{name: value for name, value in chosen.items() if _is_left_out(model, name)})
        if model.feed_forward == "swiglu" and not model.ffn_dim:  # 8/3 of the width: as many weights as GELU's at 4
            model = replace(model, ffn_dim=round(8 / 3 * model.emb_dim / 32) * 32)
    steps, step_tokens = config.max_steps, config.batch_size * config.grad_accum_steps * model.context_length
    if steps == defaults.max_steps:
        read_tokens = MIN_READ_TOKENS * math.sqrt(max(n_tokens / TEXT_TOKENS, 1))
        steps = max(round(min(read_tokens, MAX_READ_TOKENS) / step_tokens / 100) * 100, 100)
    if _is_left_out(model, "drop_rate"):
        epochs = steps * step_tokens / n_tokens
        model = replace(model, drop_rate=next(rate for most, rate in DROP_RATES.items() if epochs > most))
    return replace(config, model=model, max_steps=steps)


def _context_for_documents(data: PreparedData) -> int:
    """Return the power of two, from 32 to 512, that holds nine of ten documents, pairs or conversations, or comes
    closest."""
    if data.train.flags is not None:
        ends = np.append(find_all(data.train.flags, lambda part: part & START), len(data.train.flags))
    else:
        ends = find_all(data.train.tokens, lambda part: part == data.tokenizer.eot_id)[:: 1 + data.paired]
    length = float(np.quantile(np.diff(ends), 0.9)) if len(ends) > 1 else 1.0
    return 2 ** min(max(math.ceil(math.log2(length)), 5), 9)


def _is_left_out(model: GPTConfig, name: str) -> bool:
    return getattr(model, name) == getattr(GPTConfig(), name)
