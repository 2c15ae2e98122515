"""Examples cut from token files, and their order.

An example is T+1 tokens: the first T are the inputs, the last T the targets, at each position the next token.

    loader = create_dataloader(text, tokenizer="gpt2", batch_size=8, context_length=256)
    for inputs, targets in loader: ...        # (8, 256) and (8, 256), int64

A span (start, end) names an example within a text: inputs tokens[start:end], targets tokens[start+1:end+1].

Notebook: 03_batches.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gpt.ops.reference import IGNORE_INDEX
from gpt.system.permutation import shuffled
from gpt.system.shards import ShardedArray, find_all
from gpt.tokenizer import Tokenizer, load_tokenizer

Tokens = np.ndarray | ShardedArray | Tensor | Sequence[int]


def packed_spans(n_tokens: int, context_length: int, stride: int = 0) -> np.ndarray:
    """Return spans that cover a text of two tokens or more, int64, rows of (start, end, first new target).

    They start every `stride` tokens (0: context_length) and hold context_length inputs; the last may be shorter. Of
    overlapping spans, targets before token `first` belong to earlier spans, so that each token is predicted once.
    """
    stride, last = stride or context_length, n_tokens - 1
    starts = np.arange(0, max(1, last - context_length + stride), stride)
    ends = np.minimum(starts + context_length, last)
    return np.stack([starts, ends, np.append(1, ends[:-1] + 1)], axis=1)


def document_spans(tokens: np.ndarray, eot_id: int, context_length: int, stride: int = 0) -> np.ndarray:
    """Return spans that each lie within one document, int64, rows of (start, end, first new target, document).

    Documents are separated by end-of-text tokens. The first input of a document is the end-of-text token before it, the
    last target the one after it. A document of more than context_length targets continues in further spans, which start
    and overlap as those of `packed_spans` do. All tokens are read, and the spans held in memory.
    """
    stride, separators = stride or context_length, find_all(tokens, lambda part: part == eot_id)
    lengths = np.diff(separators)  # in targets
    n_spans = 1 + np.maximum(0, -((max(stride, context_length) - lengths) // stride))  # a quotient rounded up
    documents = np.repeat(np.arange(len(lengths)), n_spans)
    nth = np.arange(len(documents)) - np.repeat(np.cumsum(n_spans) - n_spans, n_spans)  # within its document
    starts = separators[documents] + nth * stride
    ends = np.minimum(starts + context_length, separators[documents + 1])
    return np.stack([starts, ends, starts + 1 + (nth > 0) * max(0, context_length - stride), documents], axis=1)


def padded_batch(tokens: np.ndarray, spans: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of several spans, int64, (B, T) each, where T is the length of the longest.

    Shorter rows are padded on the right with targets of IGNORE_INDEX; a causal model cannot see that padding.
    """
    spans = list(spans)
    inputs = np.zeros((len(spans), max(end - start for start, end in spans)), np.int64)
    targets = np.full_like(inputs, IGNORE_INDEX)
    for row, (start, end) in enumerate(spans):
        inputs[row, : end - start] = tokens[start:end]
        targets[row, : end - start] = tokens[start + 1 : end + 1]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class Examples:
    """A map-style dataset of spans of a text: item i is the (inputs, targets) of span i, int64, (T,) each."""

    def __init__(self, tokens: np.ndarray, starts: Sequence[int] | np.ndarray, ends: Sequence[int] | np.ndarray):
        self.tokens, self.starts, self.ends = tokens, starts, ends
        # how many of them start before the end of each of the tokens' files
        self.shard_ends = [bisect_left(starts, end) for end in getattr(tokens, "ends", [len(tokens)])]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    def batch(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of several examples, padded to the longest, (B, T) each."""
        return padded_batch(self.tokens, ((self.starts[index], self.ends[index]) for index in indices))


class PackedExamples(Examples):
    """Examples of context_length + 1 tokens that start every `stride` tokens (0: context_length).

    They run across document boundaries, and need no memory each. A remainder too short for an example is dropped.
    ValueError for fewer than context_length + 1 tokens.
    """

    def __init__(self, tokens: Tokens, context_length: int, stride: int = 0):
        if context_length < 1 or stride < 0:
            raise ValueError(f"context_length must be above 0, stride 0 or above: not {context_length} and {stride}")
        tokens, stride = tokens if isinstance(tokens, ShardedArray) else np.asarray(tokens), stride or context_length
        if len(tokens) <= context_length:
            raise ValueError(
                f"{len(tokens)} tokens are too few for one example: context_length {context_length} needs "
                f"{context_length + 1}; use a longer text or a smaller context_length"
            )
        starts, ends = range(0, len(tokens) - context_length, stride), range(context_length, len(tokens), stride)
        super().__init__(tokens, starts, ends)


class DocumentExamples(Examples):
    """One document per example, or context_length tokens of a longer one: the spans of `document_spans`.

    ValueError if no document lies between two end-of-text tokens.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, eot_id: int, stride: int = 0):
        starts, ends, _, _ = document_spans(tokens, eot_id, context_length, stride).T
        if not len(starts):
            raise ValueError(f"{len(tokens)} tokens hold no document between two end-of-text tokens")
        super().__init__(tokens, starts.copy(), ends.copy())  # without the other columns


class ExampleSampler:
    """The order of examples: one endless sequence of epochs, each a permutation keyed by (seed, epoch).

    Up to 2^24 examples it is NumPy's; of more it needs no memory, and shuffles the shards, which end at `shard_ends`
    (left out: one shard), then the examples within each.

    `step(k)` is a pure function of k, so a resumed run has no sampler state to restore. As a batch sampler for a
    DataLoader, each iteration yields one epoch's batches, then the next epoch's.
    """

    def __init__(
        self, n_examples: int, batch_size: int, shuffle: bool = True, seed: int = 0, drop_last: bool = True,
        shard_ends: Sequence[int] = (),
    ):  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.n_examples, self.batch_size, self.drop_last = n_examples, batch_size, drop_last
        self.shuffle, self.seed, self.epoch, self.shard_ends = shuffle, seed, 0, shard_ends or [n_examples]

    def step(self, step: int) -> list[int]:
        """Return the indices of the batch_size examples of step `step`, counted from 0."""
        return self._examples(step * self.batch_size, (step + 1) * self.batch_size)

    def __len__(self) -> int:
        return self.n_examples // self.batch_size if self.drop_last else math.ceil(self.n_examples / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        first, self.epoch = self.epoch * self.n_examples, self.epoch + 1
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._examples(first + start, first + min(start + self.batch_size, self.n_examples))

    def _examples(self, start: int, end: int) -> list[int]:
        """Positions start .. end-1 of the endless sequence."""
        epochs, indices = np.divmod(np.arange(start, end), self.n_examples)
        for epoch in range(epochs[0], epochs[-1] + 1) if self.shuffle else ():
            indices[epochs == epoch] = shuffled(indices[epochs == epoch], self.shard_ends, (self.seed, epoch))
        return indices.tolist()


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
    """Return a DataLoader of (inputs, targets), int64, (batch_size, context_length) each.

    `text_or_tokens` is a list of token ids, or a string to encode with `tokenizer` (an object, or what `load_tokenizer`
    takes). `stride` is the distance between examples in tokens; 0 means context_length, so that each token is a target
    once. ValueError if the text is too short for one example or for one batch.
    """
    if isinstance(text_or_tokens, str):
        tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        text_or_tokens = tokenizer.encode(text_or_tokens)
    examples = PackedExamples(text_or_tokens, context_length, stride)
    sampler = ExampleSampler(len(examples), batch_size, shuffle, seed, drop_last)
    if not len(sampler):
        raise ValueError(
            f"{len(examples)} examples fill no batch of {batch_size}: lower batch_size, or drop_last=False"
        )
    return DataLoader(examples, batch_sampler=sampler, num_workers=num_workers)
