"""Text as its tokens arrive, against the whole text cut at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.text.streams import TextStream, decode_stream
from gpt.tokenizer import CharTokenizer, load_tokenizer

TEXT = st.text("abé", max_size=12)


@given(TEXT, st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_the_first_stop(text, stops):
    """The first to be complete; of those that are at the same character, the one that begins first."""
    tokenizer = CharTokenizer("abé")
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    expected = text
    if ends:
        expected = text[: min(ends[0] - len(stop) for stop in stops if text[: ends[0]].endswith(stop))]
    asked = []

    def ids():
        for i in tokenizer.encode(text):
            asked.append(i)
            yield i

    pieces = list(decode_stream(tokenizer, ids(), stops))
    assert "".join(pieces) == expected
    assert all(pieces)
    assert len(asked) == (ends[0] if ends else len(text)), "nothing is asked after a stop"


@given(TEXT, st.text("abé", min_size=1, max_size=4))
def test_only_the_beginning_of_a_stop_is_held_back(text, stop):
    tokenizer, given_back = CharTokenizer("abé"), ""
    stream = TextStream(tokenizer, [stop])
    for n, i in enumerate(tokenizer.encode(text), start=1):
        given_back += stream.push(i)
        if stream.stopped:
            return
        waiting = next(k for k in range(min(n, len(stop) - 1), -1, -1) if text[:n].endswith(stop[:k]))
        assert given_back == text[: n - waiting]
    assert given_back + stream.finish() == text


@pytest.mark.parametrize("stop", ["😀", "!", "o 😀", "lo"])
def test_a_stop_across_tokens_and_bytes(stop):
    """GPT-2 has three tokens for an emoji, none of them a character."""
    tokenizer, text = load_tokenizer("gpt2"), "Hello 😀!"
    assert "".join(decode_stream(tokenizer, tokenizer.encode(text), [stop])) == text.partition(stop)[0]
    stream = TextStream(tokenizer, ["😀"])
    assert [stream.push(i) for i in tokenizer.encode("a😁")][-1] == "😁"
    assert stream.finish() == ""
