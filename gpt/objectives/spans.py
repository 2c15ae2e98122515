"""Stretches of text that are read from both sides."""

import numpy as np

from gpt.config import TrainConfig
from gpt.data import document_spans
from gpt.objectives.unigram import MAX_TOKENS
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer


class Spans:
    """Stretches of a split's text of at most `longest` tokens each, rows of (start, end): documents without the marks
    around them, cut where they are longer, or the whole text cut. ValueError where none has two tokens."""

    def __init__(self, config: TrainConfig, data: PreparedData, split: TokenFile, longest: int):
        self.tokens, self.tokenizer = split.tokens, data.tokenizer
        if config.data.packing == "document":
            spans = document_spans(split.tokens, data.tokenizer.eot_id, longest)[:, :2] + 1  # those of the targets
            spans[:, 1] -= split.tokens[spans[:, 1] - 1] == data.tokenizer.eot_id  # but for the mark
        else:
            starts = np.arange(0, len(split.tokens), longest)
            spans = np.stack([starts, np.minimum(starts + longest, len(split.tokens))], axis=1)
        self.spans = spans[spans[:, 1] - spans[:, 0] >= 2]
        if not len(self.spans):
            raise ValueError(f"{split.path} holds no text of two tokens, of which one could be masked")

    def __len__(self) -> int:
        return len(self.spans)

    def text(self, index: int) -> np.ndarray:
        """The tokens of a stretch, int64."""
        start, end = self.spans[index]
        return np.asarray(self.tokens[start:end], np.int64)


def encode_blanks(prompt: str, tokenizer: Tokenizer, mask: str) -> list[int]:
    """The token ids of a prompt with `mask` in it, which becomes the token of that name. Where words begin with their
    space, as byte pairs have it, a space before it belongs to what is missing."""
    if tokenizer.name != "char":
        prompt = prompt.replace(f" {mask}", mask)
    return tokenizer.encode(prompt, special=True)


def text_tokens(data: PreparedData, split: TokenFile) -> np.ndarray:
    """Return the tokens of a split without its end-of-text tokens, (N,), from the first MAX_TOKENS of them."""
    tokens = split.tokens[:MAX_TOKENS]
    return tokens[tokens != data.tokenizer.eot_id]
