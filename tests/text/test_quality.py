"""gpt/text/quality.py: what is said about a corpus, against texts whose copies and tokens are counted by hand."""

import random

import numpy as np
import pytest
from conftest import corpus_of, pairs_of

import gpt.text.quality
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.text.tokenizers import get_tokenizer

WORDS = [f"{a}{b}" for a in "bcdfghjklm" for b in ("at", "ong", "ell", "ure", "ist", "oom", "ick", "and")]


def prose(rng, n):
    return " ".join(rng.choices(WORDS, k=n))


def said_about(corpus, tmp_path, tokenizer="char", val_fraction=0.1, **options):
    said = []
    prepare_data(corpus, tokenizer, tmp_path / "out", val_fraction, log=said.append, overwrite=True, **options)
    return said


# --- nothing to say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "tokenizer"),
    [("story", "gpt2"), ("story", "char"), ("tales:300", "bpe:700"), ("python-docs", "gpt2"), ("kinds:300", "bpe:700")],
)
def test_nothing_is_said_about_an_ordinary_text(tmp_path, source, tokenizer):
    assert said_about(open_corpus(source), tmp_path, tokenizer) == []


@pytest.mark.parametrize("separator", ["", "\n"])
def test_the_same_is_said_of_several_files(tmp_path, separator):
    """As of one: copies, and a tokenizer that does not fit."""
    rng = random.Random(1)
    corpus = corpus_of(tmp_path / "in", "\n".join([*(prose(rng, 30) for _ in range(40))] * 2), separator=separator)
    for tokenizer in ("char", "gpt2"):
        expected = said_about(corpus, tmp_path, tokenizer)
        assert expected
        assert said_about(corpus, tmp_path, tokenizer, shard_tokens=1000) == expected


# --- repeats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_copies_across_the_split_are_counted(tmp_path, paired):
    """Of 20 validation documents, 7 also stand in training; of the 180 there, 100 are distinct."""
    rng = random.Random(0)
    train = [prose(rng, 20) for _ in range(100)]
    texts = train + train[:80] + train[93:] + [prose(rng, 20) for _ in range(13)]
    if paired:
        corpus = pairs_of(tmp_path / "in", [(text[:9], text[9:]) for text in texts])
    else:
        corpus = corpus_of(tmp_path / "in", "\n".join(texts), separator="\n")
    noun = "pairs" if paired else "documents"
    copies, repeated = said_about(corpus, tmp_path, "bpe:300")[:2]
    assert copies.startswith(f"7 of 20 validation {noun} also stand in the training split, word for word:")
    assert repeated == f"of 180 training {noun} only 100 are distinct: the others are copies"
    assert not any("distinct" in line for line in said_about(corpus, tmp_path, "bpe:300", weights=(2,)))


@pytest.mark.parametrize("tokenizer", ["char", "gpt2", "bpe:300"])
def test_near_duplicates_are_counted(tmp_path, tokenizer):
    """Ten of 40 validation documents have one word changed, ten have half of their words from a training document."""
    rng = random.Random(0)
    train = [prose(rng, 80) for _ in range(360)]
    near = [text.replace(text.split()[40], "changed", 1) for text in train[:10]]
    half = [f"{text[: len(text) // 2]} {prose(rng, 40)}" for text in train[10:20]]
    texts = train + near + half + [prose(rng, 80) for _ in range(20)]
    corpus = corpus_of(tmp_path / "in", "\n".join(texts), separator="\n")
    (line,) = [line for line in said_about(corpus, tmp_path, tokenizer) if "60%" in line]
    assert line.startswith(
        "10 of 40 validation documents share 60% or more of their text with one training document (of 360 compared,"
    )


def test_what_was_compared_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.quality, "MAX_DOCUMENTS", 50)
    corpus = corpus_of(tmp_path / "in", "\n".join(f"line {n % 25} here" for n in range(200)), separator="\n")
    assert "(50 of 180 training documents were compared)" in said_about(corpus, tmp_path)[0]


def test_a_text_without_documents_that_repeats_itself(tmp_path):
    rng = random.Random(0)
    unit, other = prose(rng, 300), prose(rng, 3000)
    (line,) = said_about(corpus_of(tmp_path / "1", f"{unit}\n" * 20), tmp_path)
    assert line.startswith("100% of the validation text also stands in the training text")
    assert said_about(corpus_of(tmp_path / "2", other), tmp_path) == []
    mixed = f"{unit}\n{other}\n{unit}\n{prose(rng, 300)}"
    (line,) = said_about(corpus_of(tmp_path / "3", mixed), tmp_path, val_fraction=600 / 3900)
    assert 0.35 < int(line.partition("%")[0]) / 100 < 0.6


@pytest.mark.parametrize("length", [1, 3, 8, 30])
def test_runs_have_equal_hashes_where_their_tokens_are_equal(length):
    tokens = np.random.default_rng(0).integers(0, 3, 2000)
    n, hashes = gpt.text.quality._hash_runs(tokens, length)
    assert length <= n < 2 * length
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes.tolist(), strict=True))) == len(set(runs)) == len(set(hashes.tolist()))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_single_distinct_token_is_named(tmp_path):
    for texts in (["a" * 30], ["aaaa", "aaa", "a" * 30]):
        said = said_about(corpus_of(tmp_path / str(len(texts)), *texts), tmp_path)
        assert said == ["the training split holds a single distinct token: there is nothing to learn from it"]


def test_a_tokenizer_that_does_not_fit_is_named_with_what_byte_pairs_would_make(tmp_path):
    rng = random.Random(0)
    words = ["".join(chr(rng.randrange(0x4E00, 0x4F00)) for _ in range(rng.randrange(1, 4))) for _ in range(200)]
    text = "".join(f"{rng.choice(words)}{'。' * (n % 9 == 8)}" for n in range(40_000))
    (line,) = said_about(corpus_of(tmp_path / "in", text), tmp_path, "gpt2")
    gpt2 = len(get_tokenizer("gpt2").encode(text)) / len(text)
    assert line.startswith(f"gpt2 makes {gpt2:.2f} tokens of a character here; --tokenizer bpe:")
    name, promised = line.split("--tokenizer ")[1].split(",")[0], float(line.split()[-1])
    data = prepare_data(corpus_of(tmp_path / "in", text), name, tmp_path / "out", overwrite=True)
    assert len(data.train.tokens) / data.train.characters == pytest.approx(promised, rel=0.05)
    assert said_about(corpus_of(tmp_path / "in", text), tmp_path, name) == []
    get_tokenizer("bpe:300", ["an English text"] * 9).save(tmp_path / "other.json")  # byte pairs of another text
    (line,) = said_about(corpus_of(tmp_path / "in", text), tmp_path, str(tmp_path / "other.json"))
    assert "makes 3.0" in line or "makes 2.9" in line


def test_an_option_that_finds_nothing_is_named(tmp_path):
    words = prose(random.Random(0), 50)
    said = said_about(corpus_of(tmp_path / "a", words, separator="##"), tmp_path)
    assert said == ["the separator '##' divides nothing in a corpus: each file is one document"]
    said = said_about(corpus_of(tmp_path / "b", words + "<b>"), tmp_path, special_tokens=["<b>", "<a>,<b>"])
    assert said == ["the special token '<a>,<b>' does not occur in the text"]
