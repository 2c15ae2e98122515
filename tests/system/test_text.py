"""gpt/system/text.py: places where a text may be cut without changing the words of any published model."""

import itertools
from unicodedata import category

import pytest
import regex
from families import LLAMA3, QWEN2, SENTENCES, TEKKEN
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.system.text import chunk_text, escape, last_word_break, unescape

# The rule as OpenAI published it: https://github.com/openai/gpt-2/blob/master/src/encoder.py
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
SPACED = st.text("ab1.,/'\"!$s   \n\n\t\r\u00a0\u3000é中😀\u0301", max_size=60)
quick = settings(deadline=None, derandomize=True, max_examples=100)


def smollm2_words(text):
    """Each digit alone, and GPT-2's words between digits."""
    parts = regex.split(r"(\p{N})", text)
    return list(itertools.chain.from_iterable(regex.findall(GPT2, part) for part in parts))


WORDS = {name: regex.compile(pattern).findall for name, pattern in {
    "gpt2": GPT2, "llama3": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN,
}.items()} | {"smollm2": smollm2_words}  # fmt: skip
EVERY_MODEL = pytest.mark.parametrize("model", WORDS)


def words(model, *texts):
    """The words within which a model merges."""
    return [word for text in texts for word in WORDS[model](text)]


def is_break(text, i):
    """A letter or digit, then a space or line end; another sign or a mark, then a space; or the start of a line."""
    before, after = category(text[i - 1])[0], text[i]
    starts_line = (
        text[i - 1] == "\n" and not (text[i - 2 : i - 1] or " ").isspace() and not (after.isspace() or after == "/")
    )
    return (before in "LN" and after in " \n") or (before in "PSM" and after == " ") or starts_line


def breaks(text):
    """All places where `text` may be cut, by hand."""
    return [i for i in range(1, len(text)) if is_break(text, i)]


def only_gpt2_breaks(text):
    return [i for i in range(1, len(text)) if category(text[i - 1])[0] in "PSM" and text[i] == "\n"]


@quick
@given(text=SPACED)
def test_last_word_break_is_the_last_one(text):
    assert last_word_break(text) == max(breaks(text) or only_gpt2_breaks(text), default=0)


@EVERY_MODEL
@quick
@given(text=SPACED)
def test_a_cut_at_a_word_break_keeps_the_words(model, text):
    for i in breaks(text) + (only_gpt2_breaks(text) if model == "gpt2" else []):
        assert words(model, text[:i], text[i:]) == words(model, text)


@EVERY_MODEL
def test_a_cut_at_a_word_break_keeps_the_words_of_sentences(model):
    for text in SENTENCES.values():
        for i in breaks(text):
            assert words(model, text[:i], text[i:]) == words(model, text)


@quick
@given(before=SPACED, after=SPACED)
def test_a_word_break_holds_whatever_text_follows(before, after):
    """A stream is cut before the rest of it is known."""
    if cut := last_word_break(before):
        text = before + after
        assert words("gpt2", text[:cut], text[cut:]) == words("gpt2", text)
        if cut in breaks(before):
            for model in WORDS:
                assert words(model, text[:cut], text[cut:]) == words(model, text)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("", 0), ("word", 0), (" word", 0), ("   ", 0), ("a ", 1), ("one two three", 7), ("a\tb", 0),
        ("Stop.\n\nGo", 5), ("Stop.\nGo", 6), ("Stop\n\nGo", 4), ("a b.\n/", 1),
    ],
)  # fmt: skip
def test_last_word_break_of_examples(text, cut):
    assert last_word_break(text) == cut


@quick
@given(text=SPACED, max_length=st.integers(1, 20))
def test_chunks_join_to_the_text_and_keep_the_words(text, max_length):
    """At most `max_length` characters each. The words stay the same unless a chunk contains no word break."""
    pieces = list(chunk_text(text, max_length))
    assert "".join(pieces) == text
    assert all(len(piece) <= max_length for piece in pieces)
    starts = [sum(map(len, pieces[:n])) for n in range(len(pieces))]
    within = [last_word_break(text[start : start + max_length]) for start in starts[:-1]]
    assert [len(piece) for piece in pieces[:-1]] == [found or max_length for found in within]
    if all(within):
        assert words("gpt2", *pieces) == words("gpt2", text)


def test_chunk_text_cuts_a_word_that_is_too_long():
    assert list(chunk_text("abcdefgh ij kl", 4)) == ["abcd", "efgh", " ij", " kl"]
    assert list(chunk_text("", 4)) == [""]


def test_unescape_reads_line_ends_tabs_and_backslashes():
    assert unescape(r"Long ago,\n\tand \\n is \d") == "Long ago,\n\tand \\n is \\d"
    assert unescape("Long ago,\n") == "Long ago,\n"


@quick
@given(text=SPACED | st.text("\\nt\n\t"))
def test_escape_writes_one_line_that_unescape_reads(text):
    assert "\n" not in escape(text)
    assert unescape(escape(text)) == text
