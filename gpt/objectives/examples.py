"""Conversations and pairs as examples: which tokens the model reads, and which of them count in the loss.

A prepared split holds pairs, separated by end-of-text tokens, or conversations, whose flags say where each begins and
which tokens count (gpt/token_files.py). An example is read whole, alone or in one row with others.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpt.objectives.documents import complete
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.shards import find_all
from gpt.text.chat import encode_chat
from gpt.token_files import COUNTED, START, PreparedData, TokenFile
from gpt.tokenizer import Tokenizer


class WholeExamples:
    """Examples of whole texts. A subclass cuts those that exceed context_length + 1 tokens.

    `lengths` are the tokens that each example feeds to the model before it is cut: all but its last.
    """

    def __init__(self, context_length: int, lengths: np.ndarray):
        self.context_length, self.lengths = context_length, lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of an example, (T+1,), and whether each counts in the loss as a target."""
        raise NotImplementedError

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64, (B, T) each; targets are -100 in padding and where they do not count."""
        return self.rows([[index] for index in indices])[:2]

    def rows(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, targets and positions of rows of examples, int64, (B, T) each.

        In each example positions start at 0; each token of the padding on the right has position 0.
        """
        examples = [[self.example(index) for index in row] for row in rows]
        width = max(sum(len(ids) - 1 for ids, _ in row) for row in examples)
        inputs, positions = np.zeros((2, len(rows), width), np.int64)
        targets = np.full_like(inputs, IGNORE_INDEX)
        for number, row in enumerate(examples):
            start = 0
            for ids, counted in row:
                place = (number, slice(start, start := start + len(ids) - 1))
                inputs[place], positions[place] = ids[:-1], np.arange(len(ids) - 1)
                targets[place] = np.where(counted[1:], ids[1:], IGNORE_INDEX)
        return torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(positions)

    def target_tokens(self) -> np.ndarray:
        """Return the tokens of all examples that count in the loss, (N,)."""
        return np.concatenate([ids[1:][counted[1:]] for ids, counted in map(self.example, range(len(self)))])


class PairExamples(WholeExamples):
    """The pairs of a split: prompts and responses in turn, separated by end-of-text tokens.

    An example is end-of-text, prompt x, response y, end-of-text. If it exceeds context_length + 1 tokens, the prompt
    loses its beginning. ValueError for a response that does not fit by itself.
    """

    def __init__(self, tokens: np.ndarray, eot_id: int, context_length: int):
        self.tokens, self.eot_id = tokens, eot_id
        self.ends = find_all(tokens, lambda part: part == eot_id)
        super().__init__(context_length, np.diff(self.ends[::2]) - 1)
        longest = int(np.diff(self.ends)[1::2].max())  # response, with its end-of-text token
        if longest > context_length:
            raise ValueError(
                f"a response has {longest} tokens with its end, but model.context_length is {context_length}: "
                f"raise it, or leave such pairs out"
            )

    def pair(self, index: int) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of its response, without end-of-text tokens."""
        before, between, after = self.ends[2 * index : 2 * index + 3].tolist()
        return self.tokens[before + 1 : between].tolist(), self.tokens[between + 1 : after].tolist()

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `WholeExamples.example`."""
        prompt, response = self.pair(index)
        prompt = prompt[max(0, 1 + len(prompt) + len(response) - self.context_length) :]
        ids = np.array([self.eot_id, *prompt, *response, self.eot_id])
        return ids, np.arange(len(ids)) > len(prompt)


class ConversationExamples(WholeExamples):
    """The conversations of a split with flags. One of more than context_length + 1 tokens loses its beginning.

    ValueError for one in which no token is left that counts.
    """

    def __init__(self, split: TokenFile, context_length: int):
        self.tokens, self.flags = split.tokens, split.flags
        self.starts = find_all(split.flags, lambda part: part & START)
        self.ends = np.append(self.starts[1:], len(split.tokens))
        super().__init__(context_length, self.ends - self.starts - 1)
        counted = np.append(-1, find_all(split.flags, _ends_of_answers))  # -1: none
        last = counted[np.searchsorted(counted, self.ends) - 1]
        if len(lost := np.flatnonzero(last <= np.maximum(self.starts, self.ends - context_length - 1))):
            raise ValueError(
                f"conversation {lost[0] + 1} of {split.path} has no token that counts in the loss among its last "
                f"{context_length}, model.context_length: raise it, or leave such conversations out"
            )

    def conversation(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return all ids of a conversation, and whether each counts in the loss."""
        place = slice(self.starts[index], self.ends[index])
        return np.asarray(self.tokens[place], np.int64), (self.flags[place] & COUNTED).astype(bool)

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `WholeExamples.example`."""
        ids, counted = self.conversation(index)
        return ids[-self.context_length - 1 :], counted[-self.context_length - 1 :]


class PackedRows:
    """Rows of up to context_length tokens, each with several examples. `lengths` are the tokens in each row, (N,)."""

    def __init__(self, examples: WholeExamples):
        self.examples = examples
        lengths = np.minimum(examples.lengths, examples.context_length)
        self.rows = pack(lengths, examples.context_length)
        self.lengths = np.array([lengths[row].sum() for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, targets and positions as `WholeExamples.rows` does."""
        return self.examples.rows([self.rows[index] for index in indices])


def _ends_of_answers(flags: np.ndarray) -> np.ndarray:
    """Return whether a token is the last of a run that counts in the loss, within its conversation."""
    goes_on = np.append(flags[1:] & (COUNTED | START) == COUNTED, False)
    return (flags & COUNTED > 0) & ~goes_on


def whole_examples(data: PreparedData, split: TokenFile, context_length: int) -> WholeExamples:
    """Return the conversations or the pairs of a split."""
    if split.flags is not None:
        return ConversationExamples(split, context_length)
    return PairExamples(split.tokens, data.tokenizer.eot_id, context_length)


def pack(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Return rows of the numbers of items whose lengths, (N,), sum to at most `size` in each row.

    Best fit decreasing: the longest item first, each into the fullest row that has room for it. No length exceeds
    `size`. Ding et al. 2024, arXiv:2404.10830, section 3.

    >>> pack(np.array([2, 5, 3, 1]), 6)
    [[1, 3], [2, 0]]
    """
    rows: list[list[int]] = []
    with_room, rooms = defaultdict(list), []  # rows by the room that is left in them; those numbers in order
    for item in np.argsort(-lengths, kind="stable").tolist():
        room, length = size, int(lengths[item])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row = len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                rooms.pop(place)
        rows[row].append(item)
        if left := room - length:
            if not with_room[left]:
                insort(rooms, left)
            with_room[left].append(row)
    return rows


def attention_of_rows(positions: Tensor) -> Tensor:
    """Return the mask (B, T, T) of packed rows, True where query t sees key s: both are of one example, s not after t.

    An example begins at each position 0 of `positions` (B, T), so that each token of the padding sees only itself.
    """
    number = (positions == 0).cumsum(1)  # (B, T)
    return (number[:, :, None] == number[:, None, :]).tril()


def last_answer(counted: np.ndarray) -> tuple[int, int]:
    """Return where the last answer of an example starts and ends: a run of tokens that count in the loss, (T+1,)."""
    end = int(np.flatnonzero(counted)[-1]) + 1
    return max(1, end - int(np.argmin(np.append(counted[:end][::-1], False)))), end


def sample_answer(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    conversation: tuple[np.ndarray, np.ndarray],
    message: str = "",
    **sampling,
) -> str:
    """Return the prompt of a conversation, the answer that a model writes, and below it the true one.

    `conversation` is as of `ConversationExamples.conversation`; its last answer is the true one, whose last token ends
    an answer. A `message` takes the prompt's place, in the tokenizer's chat template if it has one, and has no true
    answer. `sampling` as in `complete`.
    """
    ids, counted = conversation
    start, end = last_answer(counted)
    prompt, answer, stop_id = ids[:start].tolist(), ids[start:end].tolist(), int(ids[end - 1])
    if message:
        has_template = tokenizer.chat_template is not None
        messages = [{"role": "user", "content": message}]
        prompt = encode_chat(tokenizer, messages) if has_template else tokenizer.encode(message, special=True)
    (written,) = complete(model, [prompt], {stop_id}, model.config.context_length, **sampling)
    text = tokenizer.decode([*prompt, *written.ids])
    return text if message else f"{text}\n(true: {tokenizer.decode(answer).strip()})"
