"""gpt/text/prepare.py: the content of the token files, written whole or not at all."""

import gzip
import hashlib
import json
import math
import runpy
import sys
import tempfile
import tracemalloc
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import corpus_of, pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt.text.encode
import gpt.text.prepare
import gpt.text.tales
from gpt.system.files import checksummed
from gpt.system.text import spell
from gpt.text.prepare import describe, prepare_data
from gpt.text.sources import open_corpus
from gpt.text.tokenizers import get_tokenizer
from gpt.token_files import load_data
from gpt.tokenizer import CharTokenizer

STORY = (Path(__file__).parents[2] / "data" / "story.txt").read_text(encoding="utf-8")
PREPARE = Path(__file__).parents[2] / "scripts" / "prepare_data.py"
FILES = ["train.bin", "val.bin", "tokenizer.json", "meta.json"]
BYTES, EOT = "bpe:257", 256  # a tokenizer without merges: its ids are the UTF-8 bytes, and 256 ends a text
quick = settings(deadline=None, derandomize=True, max_examples=40)


def snapshot(folder):
    """Every file below a folder with its content."""
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def gpt2():
    return get_tokenizer("gpt2")


@pytest.mark.parametrize("wrong", [{"tokenizer_name": "gpt5"}, {"tokenizer_name": "bpe:x"}, {"special_tokens": [""]}])
def test_a_wrong_name_is_told_before_a_text_is_read(tmp_path, monkeypatch, wrong):
    """It may be one of many files on the hub."""
    corpus = corpus_of(tmp_path / "in", STORY)
    monkeypatch.setattr(type(corpus), "documents", None)
    with pytest.raises(ValueError, match=r"tokenizer 'gpt5'|tokenizer 'bpe:x'|special_tokens '' names no token"):
        prepare_data(corpus, **{"tokenizer_name": "char", "out": tmp_path / "out", **wrong})


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val_fraction", [0.1, 0.05, 0.5])
def test_a_single_text_is_split_at_a_character(tmp_path, gpt2, val_fraction):
    """As by hand: encode text[:n] and text[n:]."""
    data = prepare_data(open_corpus("story"), "gpt2", tmp_path / "out", val_fraction)
    n = int(len(STORY) * (1 - Fraction(str(val_fraction))))
    assert data.train.tokens.tolist() == gpt2.encode(STORY[:n])
    assert data.val.tokens.tolist() == gpt2.encode(STORY[n:])
    assert (data.train.characters, data.val.characters) == (n, len(STORY) - n)
    assert (data.train.documents, data.val.documents) == (1, 1)
    assert data.tokenizer.name == "gpt2"


@pytest.mark.parametrize("name", ["char", "bpe:300"])
def test_chunks_do_not_change_the_tokens(tmp_path, monkeypatch, name):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 700)
    data = prepare_data(open_corpus("story"), name, tmp_path / "out", 0.3)
    n = int(len(STORY) * Fraction("0.7"))
    tokenizer = get_tokenizer(name, [STORY])
    assert data.train.tokens.tolist() == tokenizer.encode(STORY[:n])
    assert data.val.tokens.tolist() == tokenizer.encode(STORY[n:])


@quick
@given(
    texts=st.lists(st.text("ab 1.\né中😀", min_size=1, max_size=12), min_size=1, max_size=9),
    percent=st.integers(1, 99),
    chunk=st.sampled_from([5, 1 << 20]),
    separator=st.sampled_from(["", "|", "<|endoftext|>"]),
)
def test_fewer_than_ten_documents_are_split_by_characters(texts, percent, chunk, separator):
    """The last percent, rounded up, is for validation. Each document, or part of one, is between EOTs."""
    files = [separator.join(texts)] if separator else texts
    if separator:
        texts = [text.strip() for text in texts if text.strip()]
    total = sum(map(len, texts))
    n = total - -(-total * percent // 100)
    train, val, place = [], [], 0
    for text in texts:
        head, tail = text[: max(n - place, 0)], text[max(n - place, 0) :]
        train += [head] if head else []
        val += [tail] if tail else []
        place += len(text)
    mark = [EOT] if len(texts) > 1 else []
    expected = [[*mark, *(i for part in parts for i in [*part.encode(), *mark])] for parts in (train, val)]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt.text.readers, "CHUNK_BYTES", chunk)
        corpus, out = corpus_of(Path(folder, "in"), *files, separator=separator), Path(folder, "out")
        if total < 2 or min(map(len, expected)) < 2 + len(mark):
            with pytest.raises(ValueError, match=r"too short|no text to learn from"):
                prepare_data(corpus, BYTES, out, percent / 100)
            return
        data = prepare_data(corpus, BYTES, out, percent / 100)
        assert [data.train.tokens.tolist(), data.val.tokens.tolist()] == expected
        assert [data.train.documents, data.val.documents] == [len(train), len(val)]
        assert [data.train.characters, data.val.characters] == [n, total - n]
        assert data.has_eot == (len(texts) > 1)


@pytest.mark.parametrize(("n", "val_fraction", "n_val"), [(50, 0.14, 7), (25, 0.28, 7), (100, 0.07, 7), (51, 0.14, 8)])
def test_the_split_does_not_suffer_from_rounding(tmp_path, n, val_fraction, n_val):
    """In floating point 50 * 0.14 is a little more than 7, which must not round up to 8."""
    assert (n * val_fraction > n_val) == (n != 51)
    data = prepare_data(corpus_of(tmp_path / "in", "a" * n), "char", tmp_path / "out", val_fraction)
    assert (data.train.characters, data.val.characters) == (n - n_val, n_val)


@pytest.mark.parametrize(
    ("n", "val_fraction", "n_val"), [(10, 0.1, 1), (10, 0.01, 1), (12, 0.25, 3), (25, 0.2, 5), (10, 0.9, 9)]
)
@pytest.mark.parametrize("separator", ["", "\n", "\n\n"])
def test_ten_or_more_documents_are_split_by_documents(tmp_path, monkeypatch, n, val_fraction, n_val, separator):
    """One per file, or all in one file, read in chunks that end within documents and separators."""
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 50)
    texts = [" ".join([f"text {i}."] * (i + 1)) for i in range(n)]
    files = [separator.join(texts)] if separator else texts
    data = prepare_data(corpus_of(tmp_path / "in", *files, separator=separator), BYTES, tmp_path / "out", val_fraction)
    assert data.has_eot
    for split, part in ((data.train, texts[:-n_val]), (data.val, texts[-n_val:])):
        assert split.tokens.tolist() == [EOT, *(i for text in part for i in [*text.encode(), EOT])]
        assert (split.documents, split.characters) == (len(part), sum(map(len, part)))


@pytest.mark.parametrize("texts", [["", "abcd", "", "efgh", ""], ["", *["ab"] * 9, ""], ["", "abcdefgh" * 2]], ids=str)
def test_empty_files_are_ignored(tmp_path, texts):
    """Wherever they are: a model must not learn that documents may be empty."""
    full = [text for text in texts if text]
    for n in (1, 4, 7):
        data, expected = (
            prepare_data(
                corpus_of(tmp_path / f"{n} {len(some)}", *some), BYTES, tmp_path / f"{n} {len(some)} out", n / 8
            )
            for some in (texts, full)
        )
        assert data.checksums == expected.checksums
        assert (data.has_eot, data.train.documents) == (expected.has_eot, expected.train.documents)


def test_a_split_that_leaves_no_document_to_train_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too short"):
        prepare_data(corpus_of(tmp_path / "in", *["a text"] * 10), BYTES, tmp_path / "out", 0.99)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["char", "bpe:300"])
def test_documents_are_separated_by_end_of_text_tokens(tmp_path, name):
    texts = ["One fine day.", "Two geese <|endoftext|> flew.", "Three \nmen.", "Four: é"]
    lengths = [13, 29, 11, 7]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), name, tmp_path / "out", (7 + 8) / sum(lengths))
    tokenizer, eot = data.tokenizer, data.tokenizer.eot_id
    assert list(map(len, texts)) == lengths
    assert eot == tokenizer.vocab_size - 1
    assert data.has_eot
    first, second, head, tail, last = map(tokenizer.encode, [*texts[:2], "Thr", "ee \nmen.", "Four: é"])
    assert data.train.tokens.tolist() == [eot, *first, eot, *second, eot, *head, eot]
    assert data.val.tokens.tolist() == [eot, *tail, eot, *last, eot]
    assert (data.train.documents, data.val.documents) == (3, 2)
    assert load_data(tmp_path / "out", verify=True).tokenizer.eot_id == eot


def test_documents_of_characters_by_hand(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", "abab", "baba"), "char", tmp_path / "out", 0.25)
    assert (data.tokenizer.characters, data.tokenizer.eot_id, data.tokenizer.vocab_size) == (["a", "b"], 2, 3)
    assert data.train.tokens.tolist() == [2, 0, 1, 0, 1, 2, 1, 0, 2]
    assert data.val.tokens.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize("name", ["char", "bpe:300"])
@pytest.mark.parametrize("separator", ["", "|"])
def test_a_single_document_has_no_end_of_text(tmp_path, name, separator):
    corpus = corpus_of(tmp_path / "in", "one document alone", separator=separator)
    data = prepare_data(corpus, name, tmp_path / "out", 0.5)
    assert not data.has_eot
    assert data.train.tokens.tolist() == data.tokenizer.encode("one docum")
    assert data.val.tokens.tolist() == data.tokenizer.encode("ent alone")
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["has_eot"] is False
    assert name != "char" or data.tokenizer.eot_id is None


SPELLED = {spell(bytes([byte])): byte for byte in range(256)}


@pytest.mark.parametrize(
    ("saved", "eot", "size", "named"),
    [
        ({"kind": "char", "characters": "abc"}, 3, 4, "<|endoftext|>, token 3"),
        ({"kind": "char", "characters": "abc", "end_of_text": True}, 3, 4, None),
        ({"kind": "char", "characters": "abc", "special_tokens": ["[MASK]"]}, 4, 5, "<|endoftext|>, token 4"),
        ({"kind": "byte_pairs", "tokens": SPELLED, "named": {"<s>": 256, "</s>": 257}}, 257, 258, "</s>, token 257"),
        ({"kind": "byte_pairs", "tokens": SPELLED, "named": {"[BEGIN]": 256}}, 257, 258, "<|endoftext|>, token 257"),
        ({"kind": "byte_pairs", "tokens": SPELLED, "named": {"</s>": 256}, "eot": "</s>"}, 256, 257, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_no_documents_are_glued(tmp_path, saved, eot, size, named):
    """A saved tokenizer that names no end-of-text token gets one: its own, or <|endoftext|>."""
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    texts, said = ["abc", "cba"], []
    out, path = tmp_path / "out", str(tmp_path / "saved.json")
    data = prepare_data(corpus_of(tmp_path / "in", *texts), path, out, 0.5, log=said.append)
    first, second = ([ord(c) - ord("a") * (saved["kind"] == "char") for c in text] for text in texts)
    assert data.train.tokens.tolist() == [eot, *first, eot]
    assert data.val.tokens.tolist() == [eot, *second, eot]
    assert [[*data.documents(split)] for split in (data.train, data.val)] == [["abc"], ["cba"]]
    assert (data.tokenizer.eot_id, data.tokenizer.vocab_size) == (eot, size)
    assert [line for line in said if "separates the documents" in line] == (
        [f"{path} names no end-of-text token: {named}, separates the documents"] if named else []
    )
    pairs = prepare_data(pairs_of(tmp_path / "pairs", [("a", "b"), ("c", "")[::-1]]), path, tmp_path / "paired", 0.5)
    assert [*pairs.documents(pairs.train)] == ["a", "b"]


def test_a_validation_corpus_leaves_the_whole_corpus_for_training(tmp_path):
    corpus, val_corpus = corpus_of(tmp_path / "in", "the training text"), corpus_of(tmp_path / "val", "Zoë")
    data = prepare_data(corpus, "char", tmp_path / "out", val_corpus=val_corpus)
    assert data.tokenizer.decode(data.train.tokens) == "the training text"
    assert data.tokenizer.decode(data.val.tokens) == "Zoë"
    assert data.tokenizer.characters == sorted({*"the training text", *"Zoë"})
    assert (data.val.characters, data.val.bytes) == (3, 4)


@pytest.mark.parametrize("files", [["ab", "cd"], ["ab|cd"]])
def test_several_validation_documents_put_end_of_text_in_both_splits(tmp_path, files):
    corpus = corpus_of(tmp_path / "in", "the training text")
    data = prepare_data(corpus, BYTES, tmp_path / "out", val_corpus=corpus_of(tmp_path / "val", *files, separator="|"))
    assert (data.train.documents, data.val.documents) == (1, 2)
    assert data.train.tokens.tolist() == [EOT, *b"the training text", EOT]
    assert data.val.tokens.tolist() == [EOT, *b"ab", EOT, *b"cd", EOT]


@pytest.mark.parametrize(
    ("typed", "separator"),
    [("\\n", "\n"), ("\\n\\n", "\n\n"), ("<|endoftext|>", "<|endoftext|>"), ("\\t", "\t"), ("#", "#")],
)
def test_a_separator_is_typed_with_escapes(tmp_path, monkeypatch, capsys, typed, separator):
    """Both the text and the validation text are divided by it."""
    monkeypatch.chdir(tmp_path)
    texts = [f"text {n}{' and' if separator == chr(10) else chr(10)} its end" for n in range(4)]
    (tmp_path / "texts.txt").write_text(separator.join(texts), encoding="utf-8")
    (tmp_path / "more.txt").write_text(f"{separator}one{separator} {separator}two\n", encoding="utf-8")
    command = ["prepare_data.py", "--input", "texts.txt", "--val_input", "more.txt", "--separator", typed]
    monkeypatch.setattr(sys, "argv", [*command, "--tokenizer", BYTES, "--out", "out"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PREPARE), run_name="__main__")
    assert not end.value.code
    data = load_data(tmp_path / "out", verify=True)
    assert list(data.documents(data.train)) == texts
    assert list(data.documents(data.val)) == ["one", "two"]
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith("documents: 4")
    assert said[2].endswith("documents: 2")


def test_tales_are_documents(tmp_path):
    data = prepare_data(open_corpus("tales:20"), "char", tmp_path / "out", 0.25)
    assert (data.source, data.has_eot) == (f"tales:20:0 of grammar {gpt.text.tales.fingerprint()}", True)
    assert [*data.documents(data.train)] == gpt.text.tales.generate(20)[:15]
    assert [*data.documents(data.val)] == gpt.text.tales.generate(20)[15:]


def test_tokenizers_are_learned_from_both_splits(tmp_path):
    corpus = corpus_of(tmp_path / "in", "a" * 90 + "xy" * 5)
    assert prepare_data(corpus, "char", tmp_path / "char").tokenizer.characters == ["a", "x", "y"]
    merges = prepare_data(corpus, "bpe:1000", tmp_path / "bpe").tokenizer.saved["merges"]
    assert [ord("x"), ord("y")] in merges


def test_a_saved_tokenizer_can_prepare_other_data(tmp_path):
    first = prepare_data(corpus_of(tmp_path / "1", STORY), "bpe:300", tmp_path / "first")
    again = prepare_data(corpus_of(tmp_path / "2", STORY[:500]), str(tmp_path / "first/tokenizer.json"), tmp_path / "b")
    assert again.tokenizer.saved["merges"] == first.tokenizer.saved["merges"]
    assert again.train.tokens.tolist() == first.tokenizer.encode(STORY[:450])


def test_meta_json_has_the_counts_of_the_files(tmp_path):
    texts = ["Ein Bär\r\nging. ", "中文 😀", "the end"]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), "bpe:260", tmp_path / "out", 0.4)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    whole = "".join(texts).replace("\r\n", "\n")
    assert meta["train"]["characters"] + meta["val"]["characters"] == len(whole)
    assert meta["train"]["bytes"] + meta["val"]["bytes"] == len(whole.encode())
    assert {key: meta[key] for key in ("format", "source", "tokenizer", "vocab_size", "dtype", "has_eot")} == {
        "format": 3,
        "has_eot": True,
        "source": "a corpus",
        "tokenizer": data.tokenizer.name,
        "vocab_size": data.tokenizer.vocab_size,
        "dtype": "uint16",
    }
    for split in ("train", "val"):
        content = (tmp_path / "out" / f"{split}.bin").read_bytes()
        ids = np.frombuffer(content, np.uint16)
        text = data.tokenizer.decode(ids[ids != data.tokenizer.eot_id])
        counted = {
            "documents": int((ids == data.tokenizer.eot_id).sum()) - 1,
            "characters": len(text),
            "bytes": len(text.encode()),
            "tokens": len(ids),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        assert meta[split] == counted
        loaded = getattr(data, split)
        assert loaded.tokens.tolist() == ids.tolist()
        assert all(getattr(loaded, key) == counted[key] for key in ("documents", "characters", "bytes", "sha256"))


@pytest.mark.parametrize(("n_characters", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_are_uint16_up_to_65536_tokens(tmp_path, n_characters, dtype):
    text = "".join(map(chr, range(0x10000, 0x10000 + n_characters)))
    data = prepare_data(corpus_of(tmp_path / "in", text), "char", tmp_path / "out")
    assert (data.tokenizer.vocab_size, data.train.tokens.dtype, data.val.tokens.dtype) == (n_characters, dtype, dtype)
    assert [*data.train.tokens, *data.val.tokens] == list(range(n_characters))


def test_describe_shows_the_counts(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", "é" * 30), BYTES, tmp_path / "out")
    lines = describe(data).splitlines()
    assert "257 tokens" in lines[0]
    assert "54 tokens, 27 characters, 54 bytes (1.00 per token), documents: 1" in lines[1]
    assert "6 tokens, 3 characters, 6 bytes (1.00 per token), documents: 1" in lines[2]


@pytest.mark.parametrize("separator", ["", "\n"])
def test_memory_stays_bounded(tmp_path, monkeypatch, separator):
    """A file of 2 MB is prepared in a fraction of that: nothing holds the whole text or all of its ids."""
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 5_000)
    monkeypatch.setattr(gpt.text.encode, "WORKERS", 2)
    corpus = corpus_of(tmp_path / "in", ("some words " * 100 + "\n") * 1800, separator=separator)
    prepare_data(corpus_of(tmp_path / "warm-up", "some words "), "char", tmp_path / "warm")
    tracemalloc.start()
    prepare_data(corpus, "char", tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


# --- pairs ------------------------------------------------------------------------------------------------------------

PAIRS = [(f"what is {n}? é中"[: 3 * n], f"{n * n}, I say") for n in range(12)]  # the first prompt is empty


@pytest.mark.parametrize("tokenizer", [BYTES, "char"])
@pytest.mark.parametrize(
    ("n", "val_fraction", "n_val"), [(2, 0.1, 1), (2, 0.5, 1), (3, 0.3, 1), (5, 0.5, 2), (12, 0.1, 1), (12, 0.25, 3)]
)
def test_pairs_are_kept_together(tmp_path, tokenizer, n, val_fraction, n_val):
    data = prepare_data(pairs_of(tmp_path / "in", PAIRS[:n]), tokenizer, tmp_path / "out", val_fraction)
    assert data.paired
    assert data.has_eot
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["paired"] is True
    encode, eot_id = data.tokenizer.encode, data.tokenizer.eot_id
    for split, pairs in ((data.train, PAIRS[: n - n_val]), (data.val, PAIRS[n - n_val : n])):
        texts = [text for pair in pairs for text in pair]
        assert split.tokens.tolist() == [eot_id, *(i for text in texts for i in (*encode(text), eot_id))]
        assert [*data.documents(split)] == texts
        assert (split.documents, split.characters) == (2 * len(pairs), sum(map(len, texts)))
    again = load_data(tmp_path / "out", verify=True)
    assert again.paired
    assert again.checksums == data.checksums


def test_documents_without_fields_are_not_paired(tmp_path):
    data = prepare_data(corpus_of(tmp_path / "in", *["one", "two"] * 6), "char", tmp_path / "out")
    assert not data.paired
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta.pop("paired") is False
    (tmp_path / "out" / "meta.json").write_text(checksummed(meta))  # as an older version wrote it
    assert load_data(tmp_path / "out", verify=True).paired is False


def test_pairs_validate_on_pairs(tmp_path):
    train, val = pairs_of(tmp_path / "1", PAIRS[:1]), pairs_of(tmp_path / "2", PAIRS[1:4])
    data = prepare_data(train, BYTES, tmp_path / "out", val_corpus=val)
    assert [*data.documents(data.train)] == [*PAIRS[0]]
    assert [*data.documents(data.val)] == [text for pair in PAIRS[1:4] for text in pair]
    assert data.paired
    plain = corpus_of(tmp_path / "3", "a text", "another")
    for one, other in ((train, plain), (plain, val)):
        with pytest.raises(ValueError, match="one holds pairs, the other does not"):
            prepare_data(one, BYTES, tmp_path / "new", val_corpus=other)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="the target of pair 1 is empty"):
        prepare_data(train, BYTES, tmp_path / "new", val_corpus=pairs_of(tmp_path / "4", [("x", "")] * 2 + PAIRS))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("a prompt", "a target")], "one pair cannot be split"),
        ([("a prompt", "a target"), ("another", ""), ("third", "")], "the target of pair 2 is empty"),
        ([("", "")] * 3, "no text to learn from"),
        ([], "no text to learn from"),
    ],
    ids=["one", "empty target", "empty", "none"],
)
def test_pairs_that_cannot_be_learned_are_refused(tmp_path, pairs, words):
    corpus = pairs_of(tmp_path / "in", pairs)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=words):
        prepare_data(corpus, BYTES, tmp_path / "out", 0.5)
    assert snapshot(tmp_path) == before


def test_summaries_are_pairs(tmp_path):
    data = prepare_data(open_corpus("summaries:6"), "char", tmp_path / "out", 0.3)
    tales = gpt.text.tales.generate(6)
    assert data.paired
    assert [*data.documents(data.val)] == [
        text for tale in tales[4:] for text in (tale, f" {gpt.text.tales.summary(tale)}")
    ]


# --- several inputs ---------------------------------------------------------------------------------------------------


def by_hand(texts, val_fraction):
    """The training and validation documents of one input."""
    if len(texts) >= 10:
        n = len(texts) - max(1, round(len(texts) * val_fraction))
        return texts[:n], texts[n:]
    total = sum(map(len, texts))
    n, train, val = total - math.ceil(total * Fraction(str(val_fraction))), [], []
    for text in texts:
        train += [text[:n]] if n > 0 else []
        val += [text[max(n, 0) :]] if n < len(text) else []
        n -= len(text)
    return train, val


def repeats_by_hand(i, weight):
    weight = Fraction(str(weight))
    return math.floor((i + 1) * weight) - math.floor(i * weight)


@quick
@given(
    inputs=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 3, 0.5, 0.1, 0.3, 1.5, 2.29, 1 / 3])),
        min_size=1,
        max_size=4,
    ),
    percent=st.sampled_from([10, 25, 50]),
)
def test_weights_repeat_training_documents_only(inputs, percent):
    texts = [[f"{chr(97 + k)}, text {i} of {n} texts" for i in range(n)] for k, (n, _) in enumerate(inputs)]
    weights = [weight for _, weight in inputs]
    parts = [by_hand(some, percent / 100) for some in texts]
    counts = [[repeats_by_hand(i, w) for i in range(len(train))] for (train, _), w in zip(parts, weights, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        corpora = [corpus_of(Path(folder, str(k)), "|".join(some), separator="|") for k, some in enumerate(texts)]
        out = Path(folder, "out")
        if any(
            (len(n) < 10 and Fraction(str(w)).denominator > 1) or not sum(n)
            for n, w in zip(counts, weights, strict=True)
        ):
            with pytest.raises(ValueError, match=r"fewer than ten|takes none"):
                prepare_data(corpora, BYTES, out, percent / 100, weights=weights)
            return
        data = prepare_data(corpora, BYTES, out, percent / 100, weights=weights)
        assert data.has_eot == (len(texts) > 1 or len(texts[0]) > 1 or weights[0] > 1)
        train, val = (list(data.documents(split)) for split in (data.train, data.val))
    expected = Counter()
    for (some, _), n in zip(parts, counts, strict=True):
        expected.update(dict(zip(some, n, strict=True)))
    assert Counter(train) == +expected
    assert val == [text for _, some in parts for text in some]
    whole = {text for some in texts for text in some}
    assert not ({*train} & whole) & {*val}
    order = []  # input after input, pass after pass, the fraction's last
    for (some, _), n in zip(parts, counts, strict=True):
        order += [text for p in range(max(n)) for text, times in zip(some, n, strict=True) if times > p]
    assert train == order


def test_a_half_weight_takes_every_other_document(tmp_path):
    texts = [f"text {n}" for n in range(20)]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), BYTES, tmp_path / "out", weights=[2.5])
    assert list(data.documents(data.train)) == [*texts[:18], *texts[:18], *texts[1:18:2]]
    assert list(data.documents(data.val)) == texts[18:]
    assert data.source == "a corpus x 2.5"


def test_weights_of_one_change_nothing(tmp_path):
    for source in ("story", "tales:30", "summaries:12"):
        for out, weights in (("plain", ()), ("weighted", (1.0,))):
            prepare_data(open_corpus(source), "bpe:300", tmp_path / out, weights=weights, overwrite=True)
        assert snapshot(tmp_path / "plain") == snapshot(tmp_path / "weighted")


def test_the_same_input_may_come_several_times(tmp_path):
    corpus = corpus_of(tmp_path / "in", "abcdefghij")
    data = prepare_data([corpus, corpus, corpus], BYTES, tmp_path / "out", weights=(1, 2, 1))
    assert data.has_eot
    assert list(data.documents(data.train)) == ["abcdefghi"] * 4
    assert list(data.documents(data.val)) == ["j"] * 3


def test_weights_repeat_whole_pairs(tmp_path):
    one, other = [(f"q{n}", f"a{n}") for n in range(24)], [("", f"alone {n}") for n in range(4)]
    corpora = [pairs_of(tmp_path / "1", one), pairs_of(tmp_path / "2", other)]
    data = prepare_data(corpora, BYTES, tmp_path / "out", 0.25, weights=(1.5, 2))
    chosen = [*one[:18], *one[1:18:2], *other[:3], *other[:3]]
    assert list(data.documents(data.train)) == [text for pair in chosen for text in pair]
    assert list(data.documents(data.val)) == [text for pair in (*one[18:], *other[3:]) for text in pair]
    with pytest.raises(ValueError, match="has fewer than ten training documents, 3"):
        prepare_data(corpora, BYTES, tmp_path / "new", 0.25, weights=(1, 1.5))


def test_a_validation_corpus_leaves_all_inputs_for_training(tmp_path):
    corpora = [corpus_of(tmp_path / "1", "one text"), corpus_of(tmp_path / "2", *"abcdefghijkl")]
    data = prepare_data(corpora, BYTES, tmp_path / "out", 0.5, corpus_of(tmp_path / "3", "to validate"), (2, 0.5))
    assert list(data.documents(data.train)) == ["one text", "one text", *"bdfhjl"]
    assert list(data.documents(data.val)) == ["to validate"]


def test_describe_shows_the_weights_and_shares_of_several_inputs(tmp_path):
    corpora = [open_corpus("story"), open_corpus("tales:100"), corpus_of(tmp_path / "in", "a text")]
    data = prepare_data(corpora, "char", tmp_path / "out", weights=(3, 0.5, 1))
    tales = f"tales:100:0 of grammar {gpt.text.tales.fingerprint()}"
    assert data.source == f"story x 3 + {tales} x 0.5 + a corpus"
    n = [3 * int(len(STORY) * 0.9), sum(map(len, gpt.text.tales.generate(100)[1:90:2])), 5]
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert [source["characters"] for source in meta["sources"]] == n
    assert sum(n) == data.train.characters
    lines = describe(data).splitlines()
    for line, name, weight, characters in zip(lines[1:4], ("story", tales, "a corpus"), (3, 0.5, 1), n, strict=True):
        assert line.strip() == f"{name}: weight {weight}, {characters / sum(n):.1%} of the training characters"
    assert lines[4].startswith("train: ")
    meta.pop("sources")  # as an older version wrote it
    (tmp_path / "out" / "meta.json").write_text(checksummed(meta))
    assert load_data(tmp_path / "out").sources == ()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1,), "one for each input: 2 of them, not 1"),
        ((1, 1, 1), "one for each input: 2 of them, not 3"),
        ((1, 0), "above 0"),
        ((-1, 1), "above 0"),
        ((math.nan, 1), "above 0"),
        ((1, math.inf), "above 0"),
        ((1, 1.5), "fewer than ten training documents, 1: its weight must be a whole number, not 1.5"),
        ((0.09, 1), "a weight of 0.09 takes none of the 11 training documents .* at least 0.0909"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, weights, words):
    corpora = [corpus_of(tmp_path / "1", *["a text"] * 12), corpus_of(tmp_path / "2", "another text")]
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=words):
        prepare_data(corpora, BYTES, tmp_path / "out", weights=weights)
    with pytest.raises(ValueError, match="no corpus is named"):
        prepare_data([], BYTES, tmp_path / "out")
    assert snapshot(tmp_path) == before


# --- any text ---------------------------------------------------------------------------------------------------------

WORLD = {
    "Chinese": "从前有一只猫，它住在山上。每天早晨，它都去河边看鱼。\n“你好！”鱼说。\n",
    "German": "Übermütige Füchse äßen gern Öltörtchen — „fünf Stück, bitte!“\n",
    "Arabic": "كانَ يا ما كان، في قديمِ الزمانِ، قِطٌّ صغيرٌ يعيشُ ٣ سنوات.\n",
    "Python": "def f(x: int) -> str:\n\treturn f'{x!r:>{10}}\\n'  # 100 %\n\n\nclass A:\n    pass\n",
    "emoji": "👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪 👍🏽 e\u0301 n\u0303 a\u0308\u0323 क्षि 한 ﬁ\n",
}


@pytest.mark.parametrize("tokenizer", ["gpt2", "char", "bpe:400"])
@pytest.mark.parametrize("language", WORLD)
def test_a_text_of_any_language_round_trips(tmp_path, tokenizer, language):
    text = WORLD[language] * 7
    data = prepare_data(corpus_of(tmp_path / "in", text), tokenizer, tmp_path / "out", 0.3)
    n = len(text) - math.ceil(len(text) * Fraction("0.3"))
    assert data.tokenizer.decode(data.train.tokens.tolist()) == text[:n]
    assert data.tokenizer.decode(data.val.tokens.tolist()) == text[n:]


@pytest.mark.parametrize("tokenizer", ["char", "bpe:400"])
def test_several_languages_round_trip_together(tmp_path, tokenizer):
    corpora = [corpus_of(tmp_path / language, *[text] * 10) for language, text in WORLD.items()]
    data = prepare_data(corpora, tokenizer, tmp_path / "out", weights=(1, 2, 1, 3, 1))
    counts = Counter(data.documents(data.train))
    assert counts == {text: 9 * n for text, n in zip(WORLD.values(), (1, 2, 1, 3, 1), strict=True)}
    assert [*data.documents(data.val)] == [*WORLD.values()]


@pytest.mark.parametrize("tokenizer", ["char", "bpe:400"])
def test_encodings_and_gz_do_not_change_the_tokens(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 101)
    text = "Déjà vu: «Öl», ½ naïve façade.\r\nSo it ends; or does it?\n" * 30
    found = []
    for encoding in ("utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-32-be", "gb18030"):
        for name, data in (("a.txt", text.encode(encoding)), ("a.txt.gz", gzip.compress(text.encode(encoding)))):
            (tmp_path / name).write_bytes(data)
            corpus = open_corpus(str(tmp_path / name), encoding=encoding)
            found.append(prepare_data(corpus, tokenizer, tmp_path / "out", overwrite=True).checksums)
    assert found == found[:1] * 14
    plain = prepare_data(corpus_of(tmp_path / "in", text), tokenizer, tmp_path / "plain")
    assert plain.checksums == found[0]


def prepare(monkeypatch, *arguments):
    """scripts/prepare_data.py with these arguments; its status."""
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PREPARE), run_name="__main__")
    return end.value.code or 0


def test_the_script_with_several_inputs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("café " * 20, encoding="latin-1")
    lines = "".join(json.dumps({"t": f"né {n}"}, ensure_ascii=False) + "\n" for n in range(12))
    Path("b.jsonl.gz").write_bytes(gzip.compress(lines.encode("latin-1")))
    how = ["--encoding", "latin-1", "--field", "t:\\n{t}{{}}", "--tokenizer", BYTES, "--out", "out"]
    assert (
        prepare(monkeypatch, "--input", "a.txt", "b.jsonl.gz", "--input", "tales:10", "--weights", 2, 0.5, 1, *how) == 0
    )
    data = load_data("out", verify=True)
    fields = [f"t:\nné {n}{{}}" for n in range(12)]
    assert [*data.documents(data.train)] == [("café " * 18)] * 2 + fields[1:11:2] + gpt.text.tales.generate(9)
    assert [*data.documents(data.val)] == ["café " * 2, fields[11], gpt.text.tales.generate(10)[9]]
    assert "b.jsonl.gz: weight 0.5" in capsys.readouterr().out


def test_the_script_with_templates_of_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [{"instruction": f"Count {n}\\n", "output": f"{{{n}}}"} for n in range(4)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)))
    how = ["--prompt_field", "### Task:\\n{instruction}\\n\\n", "--target_field", "{output}\\t"]
    assert prepare(monkeypatch, "--input", "a.jsonl", *how, "--tokenizer", "gpt2", "--out", "out") == 0
    data = load_data("out", verify=True)
    assert data.paired
    assert [*data.documents(data.val)] == ["### Task:\nCount 3\\n\n\n", "{3}\t"]


def test_the_script_prints_notices_apart_from_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for n in range(20):
        Path(f"in/{n}.txt").write_text(f"<|user|> one of {n % 2}")
    Path("in/code.py").write_text("print()")
    arguments = ["--input", "in", "--tokenizer", "char", "--out", "out"]
    assert prepare(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["in", "train:", "val:"]
    left_out, spelled, copies, repeated = err.splitlines()
    assert left_out == 'in: left out: 1 .py; --input "in/**/*.py" takes those'
    assert spelled.startswith("<|user|> (20 times) in the text stays ordinary text")
    assert copies.startswith("2 of 2 validation documents also stand in the training split")
    assert repeated == "of 18 training documents only 2 are distinct: the others are copies"
    Path("in/code.py").unlink()
    assert prepare(monkeypatch, *arguments, "--special_tokens", "<|user|>") == 0
    assert "<|user|>" not in capsys.readouterr().err
    assert prepare(monkeypatch, *arguments[:3], "bpe:300", *arguments[4:]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert prepare(monkeypatch, *arguments[:3], "bpe:300", *arguments[4:], "--overwrite") == 0


def test_the_script_lists_the_known_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare(monkeypatch, "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*gpt.text.sources.KNOWN]
    assert [*tmp_path.iterdir()] == []


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["", "\n\n"])
def test_the_number_of_threads_does_not_change_the_tokens(tmp_path, monkeypatch, gpt2, separator):
    """A thread gets parts of documents, or several at once; the expected ids come from whole documents."""
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 700)
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 500)
    files = [STORY, "one\r\nline \r\n\r\n\n  <|endoftext|> 中文 😀\r", *[f"{n} geese.\n\n" * n for n in range(1, 12)]]
    texts = [text.replace("\r\n", "\n").replace("\r", "\n") for text in files]
    if separator:
        texts = [part.strip() for text in texts for part in text.split(separator) if part.strip()]
    n_train = len(texts) - round(len(texts) * 0.1)
    corpus, found = corpus_of(tmp_path / "in", *files, separator=separator), []
    for workers in (1, 2, 5):
        monkeypatch.setattr(gpt.text.encode, "WORKERS", workers)
        data = prepare_data(corpus, "gpt2", tmp_path / "out")
        found.append({name: (tmp_path / "out" / name).read_bytes() for name in FILES})
        for split, part in ((data.train, texts[:n_train]), (data.val, texts[n_train:])):
            expected = [[*gpt2._engine.encode_ordinary(text), gpt2.eot_id] for text in part]
            assert split.tokens.tolist() == [gpt2.eot_id, *(i for ids in expected for i in ids)]
            counts = (len(part), sum(map(len, part)), sum(len(text.encode()) for text in part))
            assert (split.documents, split.characters, split.bytes) == counts
    assert found[0] == found[1] == found[2]


# --- all or nothing ---------------------------------------------------------------------------------------------------


def test_preparing_again_replaces_the_folder(tmp_path):
    out = tmp_path / "out"
    prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out)
    with pytest.raises(ValueError, match=r"out holds data of the tokenizer 'char', not 'bpe:257': .* --overwrite"):
        prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), BYTES, out)
    with pytest.raises(
        ValueError, match=r"out holds data of the source 'a corpus', not 'a corpus x 2': .* --overwrite"
    ):
        prepare_data(corpus_of(tmp_path / "in", "another text"), "char", out, weights=(2,))
    assert len(load_data(out, verify=True).train.tokens) == 1800
    with pytest.raises(ValueError, match=r"another text or split of 'a corpus', with 1,800 and 200 .* --overwrite"):
        prepare_data(corpus_of(tmp_path / "in", "the same name"), "char", out)
    with pytest.raises(ValueError, match=r"not 1,000 and 1,000: .* --overwrite"):
        prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out, val_fraction=0.5)
    assert prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out).train.characters == 1800
    data = prepare_data(corpus_of(tmp_path / "in", "another text"), BYTES, out, overwrite=True)
    assert bytes(data.train.tokens.tolist()) + bytes(data.val.tokens.tolist()) == b"another text"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json"])
def test_an_incomplete_folder_can_be_prepared_again(tmp_path, name):
    """As the complaint about it advises."""
    corpus = corpus_of(tmp_path / "in", STORY[:100])
    prepare_data(corpus, "char", tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(ValueError):
        load_data(tmp_path / "out")
    assert prepare_data(corpus, "char", tmp_path / "out").train.characters == 90


def test_an_empty_folder_can_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    assert prepare_data(corpus_of(tmp_path / "in", STORY[:100]), "char", tmp_path / "out").train.characters == 90


@pytest.mark.parametrize("names", [["thesis.txt"], ["thesis.txt", "train.bin"], ["thesis.txt", "meta.json"]], ids=str)
def test_a_folder_with_other_files_is_refused(tmp_path, names):
    """Even if one of them is called meta.json, as other programs' files are too."""
    out, corpus = tmp_path / "out", corpus_of(tmp_path / "in", STORY[:500])
    out.mkdir()
    for name in names:
        (out / name).write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="out exists and is not a folder of prepared data"):
        prepare_data(corpus, "char", out)
    assert snapshot(tmp_path) == before


def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the working folder itself"):
        prepare_data(open_corpus("story"), "char", Path())


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(ValueError, match="out exists and is not a folder of prepared data"):
        prepare_data(corpus_of(tmp_path / "in", STORY[:500]), "char", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "years of work"


@pytest.mark.parametrize(
    ("texts", "tokenizer", "val_fraction"),
    [
        ([""], "gpt2", 0.1),
        (["", "", ""], BYTES, 0.1),
        (["a"], "char", 0.5),
        (["ab"], "char", 0.5),  # one token each
        (["a" * 1000], "char", 0.001),  # one token to validate
        (["some text"], "bpe:9", 0.1),
        (["some text"], "unknown", 0.1),
        (["some text"] * 3, BYTES, 0.0),
        (["some text"] * 3, BYTES, 1.0),
        (["some text"] * 3, BYTES, -0.1),
        (["some text"] * 3, BYTES, math.nan),
        (["some text", "binary \0"], BYTES, 0.1),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, texts, tokenizer, val_fraction):
    corpus = corpus_of(tmp_path / "in", *texts)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError):
        prepare_data(corpus, tokenizer, tmp_path / "out", val_fraction)
    assert snapshot(tmp_path) == before


def test_an_unknown_character_leaves_nothing_behind(tmp_path):
    get_tokenizer("char", ["abc "]).save(tmp_path / "abc.json")
    corpus = corpus_of(tmp_path / "in", "abc cab bad")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="'d'"):
        prepare_data(corpus, str(tmp_path / "abc.json"), tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_an_interruption_keeps_the_old_data(tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out)
    corpus = corpus_of(tmp_path / "new", *["another text"] * 3)
    before = snapshot(tmp_path)

    class Interrupted(CharTokenizer):
        calls = 0

        def encode_to_numpy(self, text):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().encode_to_numpy(text)

    monkeypatch.setattr(gpt.text.prepare, "get_tokenizer", lambda *args: Interrupted("another text", end_of_text=True))
    with pytest.raises(KeyboardInterrupt):
        prepare_data(corpus, "interrupted", out, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_failed_rename_keeps_the_old_data(tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare_data(corpus_of(tmp_path / "in", STORY[:2000]), "char", out)
    corpus = corpus_of(tmp_path / "new", "another text")
    before, rename, refused = snapshot(tmp_path), Path.rename, []

    def refuse_once(self, target):
        if Path(target).name == "out" and not refused:
            refused.append(self)
            raise PermissionError("the file is open in another program")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_once)
    with pytest.raises(PermissionError):
        prepare_data(corpus, "char", out, overwrite=True)
    assert refused
    assert snapshot(tmp_path) == before
