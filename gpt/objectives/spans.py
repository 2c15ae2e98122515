"""Spans of text for objectives that read from both sides."""

import numpy as np

from gpt.config import TrainConfig
from gpt.data import document_spans, packed_spans
from gpt.objectives.unigram import MAX_TOKENS
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer


class SpanExamples:
    """The examples of a split: documents without their end-of-text tokens, or the whole text if it is packed, cut into
    spans of at most `max_length` tokens, of which those for training start every data.stride tokens. Spans of one token
    are left out. ValueError if none is left."""

    def __init__(self, config: TrainConfig, data: PreparedData, split: TokenFile, max_length: int):
        self.tokens, self.tokenizer = split.tokens, data.tokenizer
        stride = config.data.stride if split is data.train else 0
        if config.data.packing == "document":
            spans = document_spans(split.tokens, data.tokenizer.eot_id, max_length, stride)[:, :2] + 1  # of the targets
            spans[:, 1] -= split.tokens[spans[:, 1] - 1] == data.tokenizer.eot_id
        else:
            spans = packed_spans(len(split.tokens) + 1, max_length, stride)[:, :2]
        self.spans = spans[spans[:, 1] - spans[:, 0] >= 2]  # (examples, 2): start, end
        if not len(self.spans):
            raise ValueError(f"{split.path} holds no text of at least two tokens, so none can be masked")

    def __len__(self) -> int:
        return len(self.spans)

    def text(self, index: int) -> np.ndarray:
        """Return the token ids of an example, int64, (T,)."""
        start, end = self.spans[index]
        return np.asarray(self.tokens[start:end], np.int64)


def encode_masked_prompt(prompt: str, tokenizer: Tokenizer, mask: str) -> list[int]:
    """Return the token ids of a prompt in which `mask` stands for the special token of that name.

    A space before it is dropped unless the tokenizer is "char": in byte pairs it belongs to the missing word.
    """
    if tokenizer.name != "char":
        prompt = prompt.replace(f" {mask}", mask)
    return tokenizer.encode(prompt, special=True)


def text_tokens(data: PreparedData, split: TokenFile) -> np.ndarray:
    """Return the tokens of a split without its end-of-text tokens, (N,); of a large split the first MAX_TOKENS."""
    tokens = split.tokens[:MAX_TOKENS]
    return tokens[tokens != data.tokenizer.eot_id]
