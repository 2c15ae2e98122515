"""Conversations and pairs as examples: what is read, what counts, and how rows are packed."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt.objectives.examples import ConversationExamples, PackedRows, attention_of_rows, pack
from gpt.token_files import COUNTED, START, TokenFile


def by_hand(context_length=8):
    """Conversations 1 2 [3 4] 5 [6], 7 0 [0] and 8 [9]. What is in brackets counts; 0, which ends texts, ends none."""
    ids = [1, 2, 3, 4, 5, 6, 7, 0, 0, 8, 9]
    counted = [0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1]
    starts = [1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0]
    flags = np.array([START * s + COUNTED * c for s, c in zip(starts, counted, strict=True)], np.uint8)
    split = TokenFile(Path("train.bin"), np.array(ids, np.uint16), 3, 11, 11, "", flags)
    return ConversationExamples(split, context_length)


def test_conversations_by_hand():
    examples = by_hand()
    assert len(examples) == 3
    assert examples.lengths.tolist() == [5, 2, 1]
    inputs, targets = examples.batch([0, 2, 1])
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [[1, 2, 3, 4, 5], [8, 0, 0, 0, 0], [7, 0, 0, 0, 0]]
    assert targets.tolist() == [[-100, 3, 4, -100, 6], [9, -100, -100, -100, -100], [-100, 0, -100, -100, -100]]
    assert examples.target_tokens().tolist() == [3, 4, 6, 0, 9]


def test_long_conversations_lose_their_beginning():
    assert by_hand(3).batch([0])[0].tolist() == [[3, 4, 5]]
    assert by_hand(3).batch([0])[1].tolist() == [[4, -100, 6]], "3 is read, but nothing is left that predicts it"
    assert by_hand(1).batch([0])[0].tolist() == [[5]]
    examples = by_hand()
    flags = examples.flags.copy()
    flags[5] = 0  # 6 does not count
    split = TokenFile(Path("train.bin"), examples.tokens, 3, 11, 11, "", flags)
    assert ConversationExamples(split, 3).batch([0])[1].tolist() == [[4, -100, -100]]
    for number, place in ((1, 0), (2, 8)):
        flags[place] &= START
        words = f"conversation {number} of train.bin has no token that counts in the loss among its last {3 - number}"
        with pytest.raises(ValueError, match=f"{words}, model.context_length: raise it, or leave such"):
            ConversationExamples(TokenFile(Path("train.bin"), examples.tokens, 3, 11, 11, "", flags), 3 - number)
        flags[5] = COUNTED


def test_packed_rows_by_hand():
    rows = PackedRows(by_hand(6))
    assert rows.rows == [[0, 2], [1]]
    inputs, targets, positions = rows.batch([0, 1])
    assert inputs.tolist() == [[1, 2, 3, 4, 5, 8], [7, 0, 0, 0, 0, 0]]
    assert targets.tolist() == [[-100, 3, 4, -100, 6, 9], [-100, 0, -100, -100, -100, -100]]
    assert positions.tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 0, 0, 0, 0]]
    assert PackedRows(by_hand(3)).rows == [[0], [1, 2]]


def test_attention_of_rows_by_hand():
    mask = attention_of_rows(torch.tensor([[0, 1, 0, 1, 2, 0, 0]]))
    assert mask.int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0, 0],
            [0, 0, 1, 1, 0, 0, 0],
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0, 1],
        ]
    ]


def fewest_rows(lengths, size):
    """The fewest rows that hold all items, by trying every division into them."""
    for n in itertools.count(1):
        for rows in itertools.product(range(n), repeat=len(lengths)):
            if np.bincount(rows, lengths, n).max() <= size:
                return n


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_packed_rows_hold_every_item_once_and_are_few(lengths):
    """Best fit decreasing needs at most 11/9 of the fewest rows, and a few more. Johnson et al. 1974."""
    rows = pack(np.array(lengths), 9)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert max(sum(lengths[item] for item in row) for row in rows) <= 9
    assert len(rows) <= 11 / 9 * fewest_rows(lengths, 9) + 1


def test_packing_puts_each_item_into_the_fullest_row_with_room():
    """Against best fit decreasing by a loop over all rows."""
    lengths = np.random.default_rng(0).integers(1, 40, 300)
    rows, room = [], []
    for item in sorted(range(300), key=lambda item: -lengths[item]):
        fitting = [row for row in range(len(rows)) if room[row] >= lengths[item]]
        if not fitting:
            rows.append([])
            room.append(64)
        row = min(fitting, key=lambda row: (room[row], -row), default=len(rows) - 1)
        rows[row].append(item)
        room[row] -= lengths[item]
    found = pack(lengths, 64)
    filled = lambda rows: sorted(sum(lengths[item] for item in row) for row in rows)  # noqa: E731
    assert filled(found) == filled(rows)
    assert found == pack(lengths, 64)
