"""What a run's page shows of the inside of its model: surprises of tokens, attention, calibration.

All of it is computed on validation text, cut into texts as the model reads it.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import nn

from gpt.config import TrainConfig
from gpt.data import document_spans, packed_spans
from gpt.evaluation import inspection
from gpt.objectives import Objective
from gpt.run.page_data import rounded, visible
from gpt.token_files import START, PreparedData
from gpt.tokenizer import Tokenizer

TEXT_TOKENS, SENTENCE_TOKENS = 400, 40  # of the validation text, and of the sentence whose attention is shown
MAX_WEIGHTS = 400_000  # attention weights on a page, a byte each
CALIBRATION_FLOPS, MAX_CALIBRATION_TOKENS = 2e11, 8192  # about a second on a CPU
LIKELIEST = 5


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text of a token; the bytes of one that holds no whole character, as ⟨E2 82⟩."""
    content = tokenizer.decode_bytes([token_id])
    try:
        return visible(content.decode())
    except UnicodeDecodeError:
        return f"⟨{content.hex(' ').upper()}⟩"


def validation_texts(config: TrainConfig, data: PreparedData, n_tokens: int = 10**6) -> Iterator[np.ndarray]:
    """Yield texts of the validation split as the model reads them: token ids, the first one only read, not predicted.

    They are conversations (of preferences the chosen ones), documents or, with packing "packed", pieces of
    context_length tokens and one. Longer ones are cut to that length.
    """
    tokens, length = data.val.tokens[:n_tokens], config.model.context_length
    if data.val.flags is not None:
        starts = np.flatnonzero(data.val.flags[:n_tokens] & START)
        spans = [*zip(starts, [*(starts[1:] - 1), len(tokens) - 1], strict=True)]
        spans = spans[:: 1 + data.preferences]  # of two answers the chosen one
    elif config.data.packing == "document":
        spans = document_spans(tokens, data.tokenizer.eot_id, length)[:, :2]
    else:
        spans = packed_spans(len(tokens), length)[:, :2]
    for start, end in spans:
        text = np.array(tokens[start : min(end, start + length) + 1], np.int64)
        if len(text) > 1:
            yield text


def look_inside(objective: Objective, config: TrainConfig, data: PreparedData) -> dict[str, Any]:
    """Return what a model makes of validation text: "surprises", "calibration", "attention"; a "note" says what is
    left out, and why."""
    if not objective.left_to_right or data.paired:
        return {"note": "This objective does not predict every next token of a text, so none is looked into."}
    model, texts = objective.model, list(islice(validation_texts(config, data), 2000))
    if not texts:
        return {"note": "The validation split holds no text to look into."}
    found: dict[str, Any] = {"surprises": surprises(model, texts, data.tokenizer)}
    found["calibration"] = calibration(model, texts)
    try:
        found["attention"] = attention(model, texts[0], data.tokenizer)
    except ValueError as error:  # an LSTM, a prefix
        found["note"] = f"Attention is left out: {error}."
    return found


def surprises(model: nn.Module, texts: Sequence[np.ndarray], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the first TEXT_TOKENS tokens of texts: each one's text, its surprise in bits, its rank from 1, and the
    likeliest in its place with their probabilities; of a token that is only read, no surprise."""
    found: dict[str, Any] = {"texts": [], "bits": [], "ranks": [], "likeliest": []}
    last = None
    for text in texts:
        ids = text[: TEXT_TOKENS - len(found["texts"])]
        if len(ids) < 2:
            break
        seen = inspection.token_surprises(model, ids, LIKELIEST)
        names = [[token_text(tokenizer, i) for i in row] for row in seen.ids.tolist()]
        pairs = [
            [*zip(row, rounded(p), strict=True)] for row, p in zip(names, seen.probabilities.tolist(), strict=True)
        ]
        columns = [[token_text(tokenizer, i) for i in ids.tolist()], [None, *rounded(seen.bits.tolist())]]
        columns += [[None, *(rank + 1 for rank in seen.ranks.tolist())], [[], *pairs]]
        for column, values in zip(found.values(), columns, strict=True):
            column += values[int(text[0] == last) :]  # the token that ends a text can start the next one
        last = text[-1]
    known = [bits for bits in found["bits"] if bits is not None]
    special = {token_text(tokenizer, i) for i in tokenizer.special_tokens.values()}
    eot = None if tokenizer.eot_id is None else token_text(tokenizer, tokenizer.eot_id)
    scale = {"mean": sum(known) / len(known), "most": math.log2(tokenizer.vocab_size)}  # a uniform guess
    return {**found, **scale, "special": sorted(special & {*found["texts"]}), "eot": eot}


def attention(model: nn.Module, text: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the attention weights of the first SENTENCE_TOKENS tokens, fewer if there are many heads: layers, heads,
    and a byte per weight, 255 for 1, in base64."""
    config = model.config
    n = min(
        SENTENCE_TOKENS, len(text), config.context_length, math.isqrt(MAX_WEIGHTS // (config.n_layers * config.n_heads))
    )
    weights = inspection.attention_weights(model, text[:n])  # (n_layers, H, n, n)
    content = (weights.float().cpu() * 255).round().numpy().astype(np.uint8).tobytes()
    return {
        "tokens": [token_text(tokenizer, int(i)) for i in text[:n]],
        "layers": config.n_layers,
        "heads": config.n_heads,
        "weights": base64.b64encode(content).decode(),
    }


def calibration(model: nn.Module, texts: Sequence[np.ndarray], bins: int = 10) -> dict[str, Any]:
    """Return the reliability diagram over the first validation tokens, as many as take about a second."""
    n_parameters = sum(p.numel() for p in model.parameters())
    budget = max(TEXT_TOKENS, min(MAX_CALIBRATION_TOKENS, int(CALIBRATION_FLOPS / (2 * n_parameters))))
    lengths = np.cumsum([len(text) - 1 for text in texts])
    found = inspection.calibration(model, texts[: int(np.searchsorted(lengths, budget)) + 1], bins)
    columns = (found.confidence.tolist(), found.accuracy.tolist(), found.count.tolist())
    rows = [
        {"confidence": p, "accuracy": accuracy, "count": count} for p, accuracy, count in zip(*columns, strict=True)
    ]
    return {"bins": rows, "error": found.expected_calibration_error, "count": int(found.count.sum())}
