"""Windows of tokens: inputs, and targets one position later. In memory or in memory-mapped files on disk.

A window is T+1 tokens; its first T are the inputs (T,), its last T the targets (T,): at each position the target is
the token that comes next.

    loader = create_dataloader(text, tokenizer="gpt2", batch_size=8, context_length=256)
    for inputs, targets in loader: ...        # (8, 256) and (8, 256), int64
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gpt.config import TrainConfig
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer, get_tokenizer

Tokens = np.ndarray | Tensor | Sequence[int]

# --- windows ----------------------------------------------------------------------------------------------------------


def padded_batch(tokens: np.ndarray, spans: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Inputs tokens[start:end] and targets tokens[start+1:end+1] of each span (start, end), int64, (B, T) with T the
    longest. Shorter ones are filled up on the right, where a causal model sees nothing of it, with targets of -100."""
    spans = list(spans)
    inputs = np.zeros((len(spans), max(end - start for start, end in spans)), np.int64)
    targets = np.full_like(inputs, IGNORE_INDEX)
    for row, (start, end) in enumerate(spans):
        inputs[row, : end - start] = tokens[start:end]
        targets[row, : end - start] = tokens[start + 1 : end + 1]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class Examples(Dataset):
    """Windows over a text of token ids: item i is (inputs, targets), int64, (T,) each.

    Which they are, a subclass says: window i has the inputs start .. end-1 and the targets start+1 .. end, where
    (start, end) = _span(i).
    """

    tokens: np.ndarray
    _span: Callable[[int], tuple[int, int]]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of several windows, (B, T) each, where T is the longest one's length."""
        return padded_batch(self.tokens, map(self._span, indices))


class PackedExamples(Examples):
    """Windows of context_length + 1 tokens that begin every `stride` tokens (0: context_length).

    A rest too short for a whole window is left out.
    """

    def __init__(self, tokens: Tokens, context_length: int, stride: int = 0):
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, not {context_length}")
        if stride < 0:
            raise ValueError(f"stride must be at least 0, not {stride}")
        self.tokens = np.asarray(tokens)
        if self.tokens.ndim != 1 or (len(self.tokens) and self.tokens.dtype.kind not in "iu"):
            raise ValueError(
                f"tokens are a sequence of whole numbers, not {self.tokens.dtype} of shape {self.tokens.shape}"
            )
        self.context_length = context_length
        self.stride = stride or context_length
        if len(self.tokens) <= context_length:
            raise ValueError(
                f"{len(self.tokens)} tokens are too few for one window: context_length {context_length} takes "
                f"{context_length + 1}; a longer text or a shorter context_length is needed"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.context_length - 1) // self.stride + 1

    def _span(self, index: int) -> tuple[int, int]:
        return index * self.stride, index * self.stride + self.context_length


def document_spans(tokens: np.ndarray, eot_id: int, context_length: int) -> np.ndarray:
    """Windows that begin where documents begin, rows of (start, end, document), int64, for a text whose documents stand
    between end-of-text tokens.

    The inputs of a window are tokens start .. end-1, the targets start+1 .. end. The first input is the end-of-text
    token before the document, the last target the one after it. A document of more tokens than context_length goes on
    in further windows, so that each of its tokens is a target once.
    """
    marks = np.flatnonzero(np.asarray(tokens) == eot_id)
    lengths = np.diff(marks)  # in targets
    n_examples = -(-lengths // context_length)
    documents = np.repeat(np.arange(len(lengths)), n_examples)
    nth = np.arange(len(documents)) - np.repeat(np.cumsum(n_examples) - n_examples, n_examples)  # within its document
    starts = marks[documents] + nth * context_length
    return np.stack([starts, np.minimum(starts + context_length, marks[documents + 1]), documents], axis=1)


class DocumentExamples(Examples):
    """One document per window, or context_length tokens of a longer one: the windows of `document_windows`.

    ValueError where the tokens hold no document between two end-of-text tokens.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, eot_id: int):
        self.tokens = tokens
        self.examples = document_spans(tokens, eot_id, context_length)
        if not len(self.examples):
            raise ValueError(f"{len(tokens)} tokens hold no document that stands between two end-of-text tokens")

    def __len__(self) -> int:
        return len(self.examples)

    def _span(self, index: int) -> tuple[int, int]:
        start, end, _ = self.examples[index]
        return int(start), int(end)


@lru_cache(maxsize=2)  # a step may straddle two epochs
def _permutation(n_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_examples)


class ExampleSampler(Sampler[list[int]]):
    """Which windows come when: one endless sequence, epoch after epoch, each a permutation keyed by (seed, epoch).

    `step(k)` is its k-th stretch of batch_size windows: a pure function, so that a resumed run has nothing to restore
    and asks for the next k. Iterating gives one epoch's batches, the next epoch's the next time.
    """

    def __init__(self, n_examples: int, batch_size: int, shuffle: bool = True, seed: int = 0, drop_last: bool = True):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.n_examples, self.batch_size = n_examples, batch_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = 0

    def window(self, index: int) -> int:
        """The window at place `index` of the endless sequence."""
        epoch, place = divmod(index, self.n_examples)
        return int(_permutation(self.n_examples, self.seed, epoch)[place]) if self.shuffle else place

    def step(self, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """The windows of step `step`, counted from 0; of several processes, the share of the one with number `rank`."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to world_size - 1, {world_size - 1}, not {rank}")
        first, end = step * self.batch_size, (step + 1) * self.batch_size
        return [self.window(index) for index in range(first + rank, end, world_size)]

    def __len__(self) -> int:
        return self.n_examples // self.batch_size if self.drop_last else math.ceil(self.n_examples / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        first, self.epoch = self.epoch * self.n_examples, self.epoch + 1
        for batch in range(len(self)):
            start, end = batch * self.batch_size, min((batch + 1) * self.batch_size, self.n_examples)
            yield [self.window(first + index) for index in range(start, end)]


def create_dataloader(
    text_or_tokens: str | Tokens,
    tokenizer: str | Tokenizer = "gpt2",
    batch_size: int = 4,
    context_length: int = 256,
    stride: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """A DataLoader of (inputs, targets), int64, (batch_size, context_length) each, targets one position later.

    `text_or_tokens` is a string, which `tokenizer` (one, or a name for `get_tokenizer`) encodes, or token ids.
    `stride` is the distance between windows in tokens; 0 means context_length, so that each token is a target once.
    ValueError where the text is too short for one window, or for one batch.
    """
    if isinstance(text_or_tokens, str):
        if isinstance(tokenizer, str):
            tokenizer = get_tokenizer(tokenizer, [text_or_tokens])
        text_or_tokens = tokenizer.encode(text_or_tokens)
    examples = PackedExamples(text_or_tokens, context_length, stride)
    sampler = ExampleSampler(len(examples), batch_size, shuffle, seed, drop_last)
    if not len(sampler):
        raise ValueError(f"{len(examples)} windows make no batch of {batch_size}: lower batch_size, or drop_last=False")
    return DataLoader(examples, batch_sampler=sampler, num_workers=num_workers)


def encode_documents(texts: Iterable[str], tokenizer: Tokenizer, has_eot: bool) -> np.ndarray:
    """The token ids of texts, one after the other; `separated`, each between two end-of-text tokens."""
    mark = [tokenizer.eot_id] if has_eot else []
    return np.array(mark + [i for text in texts for i in (*tokenizer.encode(text), *mark)], np.int64)


# --- a run's data -----------------------------------------------------------------------------------------------------


def create_examples(config: TrainConfig, data: PreparedData, split: TokenFile | None = None) -> Examples:
    """The windows of the training split, or of another one, that a config asks for."""
    tokens = (split or data.train).tokens
    if config.data.packing == "document":
        return DocumentExamples(tokens, config.model.context_length, data.tokenizer.eot_id)
    return PackedExamples(tokens, config.model.context_length, config.data.stride)


def fit_to_data(config: TrainConfig, data: PreparedData) -> TrainConfig:
    """The config with vocab_size and decay_steps filled in. ValueError where it does not fit the data."""
    model, n_tokens = config.model, data.tokenizer.vocab_size
    if model.vocab_size not in (0, n_tokens):
        raise ValueError(
            f"model.vocab_size is {model.vocab_size}, but {data.folder} was prepared with the tokenizer "
            f"{data.tokenizer.name} of {n_tokens} tokens: set model.vocab_size to 0, or prepare the data anew"
        )
    if config.data.packing == "document" and not data.has_eot:
        raise ValueError(
            f"data.packing is 'document', but the text of {data.folder} is not divided into documents: set it to "
            f"'packed', or prepare several files, or a file with a --separator"
        )
    if config.data.packing == "packed" and len(data.train.tokens) <= model.context_length:
        raise ValueError(
            f"the training split of {data.folder} has {len(data.train.tokens)} tokens, too few for one window of "
            f"context_length {model.context_length} and a target: lower model.context_length or take a longer text"
        )
    if len(data.val.tokens) < 2 + data.has_eot:
        raise ValueError(f"the validation split of {data.folder} holds nothing to predict: prepare the data anew")
    if config.data.packing == "document":
        DocumentExamples(data.val.tokens, model.context_length, data.tokenizer.eot_id)  # ValueError where there is none
    try:
        data.tokenizer.encode(config.sample_prompt)
    except ValueError as error:  # a char tokenizer may not know the prompt's characters
        raise ValueError(f"sample_prompt: {error}") from None
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, vocab_size=model.vocab_size or n_tokens),
        optim=dataclasses.replace(config.optim, decay_steps=config.decay_steps),
    )
