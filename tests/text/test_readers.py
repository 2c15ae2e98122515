"""gpt/text/readers.py and gpt/text/formats.py: files of any kind as texts or records, or refused with the way out."""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import pickle
import random
import sqlite3
import sys
import tarfile
import zipfile
from pathlib import Path
from unittest.mock import patch

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gpt.text.readers
from gpt.text.readers import read_chunks, read_fields, split_at
from gpt.text.sources import open_corpus

TEXTS = [
    "plain",
    'He said "no", and left.\nA second line, with; several\tdelimiters|',
    "中文 é 😀 \u2028 \x85",
    " spaces stay ",
    "x" * 200_000,
    '"quoted"',
    "last",
]
ROWS = [{"id": n, "q": text, "label": n % 2} for n, text in enumerate(TEXTS)]


def documents(path, *fields, **options):
    return ["".join(chunks) for chunks in open_corpus(str(path), fields=fields, **options).documents()]


def table(delimiter=",", newline="\r\n"):
    """ROWS as csv writes them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "q", "label"], delimiter=delimiter, lineterminator=newline)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


# The rule as OpenAI published it: https://github.com/openai/gpt-2/blob/master/src/encoder.py
PUBLISHED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
STORY = Path(__file__).parents[2] / "data" / "story.txt"
thorough = settings(deadline=None, derandomize=True, max_examples=120)


def gpt2_words(*texts):
    """The words within which GPT-2 merges: where they are the same, so are the tokens."""
    return [word for text in texts for word in regex.findall(PUBLISHED_PATTERN, text)]


# --- cutting ----------------------------------------------------------------------------------------------------------


@thorough
@given(
    pieces=st.lists(st.text("ab-|> \n", max_size=8), max_size=8),
    separator=st.sampled_from(["-", "--", "-|-", "|", "\n", "\n\n", " ", "a", "aba", "<|>", "ab-|> "]),
)
@example(pieces=["a-", "-b-", "--", "c"], separator="--")
@example(pieces=["x", "-", "|", "-", "y", ""], separator="-|-")
@example(pieces=[], separator="-")
def test_split_at_matches_splitting_the_whole_text(pieces, separator):
    """Wherever the pieces end: within a document, or within a separator."""
    texts = [text.strip() for text in "".join(pieces).split(separator)]
    assert list(split_at(iter(pieces), separator)) == [text for text in texts if text]


def test_split_at_by_hand():
    pieces = ["  one<|end", "oftext|><|endoftext|>\n two", " and\nmore <|endoftext", "|>\n\n<|endoftext|>thr", "ee\n"]
    assert list(split_at(pieces, "<|endoftext|>")) == ["one", "two and\nmore", "three"]


def test_split_at_takes_linear_time_for_a_long_document():
    """In 200,000 pieces: a search that starts again with each would take hours."""
    pieces = ["some words <", "|"] * 100_000
    assert list(split_at([*pieces, ">end"], "<|>")) == ["some words <|" * 99_999 + "some words", "end"]


def test_split_at_is_lazy():
    read = []

    def pieces():
        for piece in ("a|b|c", "d|", "e"):
            read.append(piece)
            yield piece

    texts = split_at(pieces(), "|")
    assert [next(texts), next(texts), read] == ["a", "b", ["a|b|c"]]
    assert [next(texts), read] == ["cd", ["a|b|c", "d|"]]
    assert list(texts) == ["e"]


# --- reading ----------------------------------------------------------------------------------------------------------


@thorough
@given(text=st.text(st.sampled_from("abc1. \n\r\ufeffé中😀"), max_size=120), piece=st.integers(1, 8))
@example(text="\ufeff\ufeffa", piece=1)
@example(text="a\r\nb\r\rc\n\r", piece=1)
def test_read_chunks_join_to_the_text_of_the_file(tmp_path_factory, text, piece):
    """One byte order mark is dropped, line ends become \\n, GPT-2's words stay where there are word breaks."""
    path = tmp_path_factory.getbasetemp() / "read_chunks.txt"
    path.write_bytes(text.encode())
    with patch.object(gpt.text.readers, "CHUNK_BYTES", piece):
        pieces = list(read_chunks(path))
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(pieces) == expected
    assert all(0 < len(p) <= 17 * piece for p in pieces)
    if all(len(p) <= 16 * piece for p in pieces):  # a longer one may have been cut within a word
        assert gpt2_words(*pieces) == gpt2_words(expected)


@pytest.mark.parametrize("start", range(8189, 8194))
@pytest.mark.parametrize("piece", [7, 8192])
def test_a_character_or_line_end_across_two_blocks_is_kept(tmp_path, monkeypatch, start, piece):
    """Python reads text files in blocks of 8,192 bytes."""
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * (start - 2) + b" y" + "😀中\r\né".encode() + b" z" * 5000)
    assert "".join(read_chunks(path)) == "x" * (start - 2) + " y😀中\né" + " z" * 5000


def test_a_long_file_is_read_in_chunks_cut_at_word_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 1000)
    text = STORY.read_text(encoding="utf-8")
    pieces = list(read_chunks(STORY))
    assert "".join(pieces) == text
    assert len(pieces) >= len(text) / 1000 - 1
    assert max(map(len, pieces)) < 2000
    assert gpt2_words(*pieces) == gpt2_words(text)


def test_chunks_are_bounded_without_white_space(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 100)
    path = tmp_path / "text.txt"
    path.write_text("中" * 10_000, encoding="utf-8")
    pieces = list(read_chunks(path))
    assert "".join(pieces) == "中" * 10_000
    assert max(map(len, pieces)) <= 1700


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a byte order mark"])
def test_an_empty_file_has_no_chunks(tmp_path, data):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    assert list(read_chunks(path)) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9 au lait", "is not UTF-8 text"),
        (b"fine " * 4000 + b"ends within \xe4\xb8", "is not UTF-8 text"),
        (b"surrogate \xed\xa0\x80", "is not UTF-8 text"),
        ("text".encode("utf-16"), "is not UTF-8 text"),
        (b"fine " * 4000 + b"\0", "holds NUL bytes"),
    ],
)
def test_a_file_that_is_not_utf8_is_named(tmp_path, data, message):
    path = tmp_path / "named.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"named\.txt {message}"):
        list(read_chunks(path))


# --- records ----------------------------------------------------------------------------------------------------------

FORMS = {
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "a.ndjson": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "a.json": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "inside.json": json.dumps({"version": 1, "data": ROWS}),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "array.jsonl": json.dumps(ROWS, indent=1),
    "a.csv": table(),
    "german.csv": table(";", "\n"),
    "a.tsv": table("\t"),
    "CAPITALS.CSV": table(),
    "noname": json.dumps(ROWS),
    "noname2": table("\t"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("name", FORMS)
def test_records_of_every_form_give_the_same_texts(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(FORMS[name].encode(encoding))
    assert documents(tmp_path / name, "q", encoding=encoding) == TEXTS
    pairs = documents(tmp_path / name, "{id}: {q}", "label", encoding=encoding)
    assert pairs == [text for n, row in enumerate(TEXTS) for text in (f"{n}: {row}", str(n % 2))]
    with pytest.raises(ValueError, match=r"fields id, q, label: name the field .*--field q"):
        documents(tmp_path / name, encoding=encoding)


@pytest.mark.parametrize("piece", [7, 1000])
def test_records_across_blocks(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
    for name, text in FORMS.items():
        (tmp_path / name).write_text(text.replace("x" * 200_000, "x" * 2_000), encoding="utf-8", newline="")
        assert documents(tmp_path / name, "q") == [text.replace("x" * 200_000, "x" * 2_000) for text in TEXTS]


def test_parquet_gives_the_same_texts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="an extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [row | {"translation": {"en": row["q"], "de": None}} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "noname").write_bytes((tmp_path / "a.parquet").read_bytes())
    for name in ("a.parquet", "noname"):
        assert documents(tmp_path / name, "q") == TEXTS
        assert documents(tmp_path / name, "{label}", "translation.en")[:4] == ["0", TEXTS[0], "1", TEXTS[1]]
        with pytest.raises(ValueError, match=r"record 1 of .* has no field 'z', but: id, q, label, translation"):
            documents(tmp_path / name, "z")
        with pytest.raises(ValueError, match=r"has no text in 'translation\.de', but null"):
            documents(tmp_path / name, "translation.de")
        with pytest.raises(ValueError, match="fields id, q, label, translation: name the field"):
            documents(tmp_path / name)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is damaged")
    with pytest.raises(ValueError, match=r"a\.parquet is not a \.parquet file that can be read here"):
        documents(tmp_path / "a.parquet", "q")


@pytest.mark.parametrize("library, name", [("pyarrow", "a.parquet"), ("zstandard", "a.txt.zst")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, library, name):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"PAR1" if library == "pyarrow" else b"\x28\xb5\x2f\xfd")
    with pytest.raises(ValueError, match=rf"needs the library {library}: pip install -e"):
        documents(tmp_path / name, "q")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-3.5, "-3.5"),
        (10**20, str(10**20)),
        (True, "true"),
        (False, "false"),
        ("", ""),
        ("a\r\nb\rc", "a\nb\nc"),
    ],
)
def test_numbers_and_truth_are_written_as_in_json(tmp_path, value, text):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": value, "b": {"c": [{"d": value}]}}))
    assert list(read_fields(path, ("a", "{b.c.0.d}"))) == [text, text]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "b\nHello, world\n", r"record 1 .* has 2 fields, its first line 1 \(b\): .*','.* needs quotes"),
        ("a.csv", 'text,b\n"a",b\n"say "no" now",b\n', r"record 2 .* has wrong quotes"),
        ("a.csv", 'text,b\n"never closed,b\nx,y\n', r"record 1 .* has wrong quotes"),
        ("a.csv", "text,b\none\n", r"record 1 .* has no field 'b', but: text"),
        ("a.csv", "one,two\n", r"a\.csv has no field 'b', but in its first line: one, two"),
        ("a.json", '{"a": [{"x": 1}], "c": [{"x": 1}]}', r"holds several arrays \(a, c\)"),
        ("a.csv", "b,b\none,two\n", r"a\.csv has the field 'b' twice in its first line"),
        ("a.json", '{"b": {"0": "x", "1": "y"}}', r"a\.json holds columns, not records: .*orient='records'"),
        ("a.json", '[{"b": "x"}, ', r"a\.json is not JSON"),
        ("a.json", '["x", "y"]', r"record 1 .* has no field 'b', but: a text"),
    ],
    ids=lambda value: value[:24],
)
def test_records_that_cannot_be_read_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_text(data)
    with pytest.raises(ValueError, match=message) as caught:
        documents(tmp_path / name, "b")
    assert "\n" not in str(caught.value)


def test_lists_of_texts_and_lines_of_lists(tmp_path):
    (tmp_path / "a.json").write_text('["x", "y"]')
    with pytest.raises(ValueError, match="is a list of texts, not of records: write each as an object"):
        documents(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_text('["x", "y"]\n["z", 1]\n')
    assert list(read_fields(tmp_path / "b.jsonl", ("1", "0"))) == ["y", "x", "1", "z"]
    (tmp_path / "c.csv").write_text("0,several words\n1,of it\n")
    with pytest.raises(ValueError, match="--field 'several words'"):
        documents(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("name", "data"), [("a.json", ""), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "b,c\n"), ("a.jsonl", " ")]
)
def test_no_records_are_no_texts(tmp_path, name, data):
    (tmp_path / name).write_text(data)
    assert documents(tmp_path / name, "b") == []
    with pytest.raises(ValueError, match="holds no records: there is nothing to read"):
        documents(tmp_path / name)


def test_a_folder_of_single_objects_and_tables(tmp_path):
    (tmp_path / "1.json").write_text(json.dumps({"text": "one", "notes": [{"x": 1}], "tags": ["a"]}))
    (tmp_path / "2.csv").write_text("text\ntwo\n")
    (tmp_path / "3.md").write_text("three")
    assert documents(tmp_path, "text") == ["one", "two", "three"]


# --- compression ------------------------------------------------------------------------------------------------------


def zst(data):
    zstandard = pytest.importorskip("zstandard", reason="an extra")
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_is_read_by_name_or_first_bytes(tmp_path, monkeypatch, suffix):
    text, compress = "Ein Bär.\n\n中文 😀 and more " * 2000, COMPRESS[suffix]
    members = compress(text[:99].encode()) + compress(text[99:].encode())
    for piece, name in itertools.product((97, 1 << 20), (f"a.txt{suffix}", f"B.MD{suffix.upper()}", "a.txt", "noname")):
        monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
        (tmp_path / name).write_bytes(members)
        assert documents(tmp_path / name) == [text]
    (tmp_path / f"a.csv{suffix}").write_bytes(compress(table().encode("utf-16")))
    assert documents(tmp_path / f"a.csv{suffix}", "q", encoding="utf-16") == TEXTS
    (tmp_path / f"empty.txt{suffix}").write_bytes(b"")
    assert documents(tmp_path / f"empty.txt{suffix}") == []


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_damaged_compressed_file_is_named(tmp_path, suffix):
    whole = COMPRESS[suffix](random.Random(0).randbytes(5000).hex().encode())
    changed = whole[:2000] + bytes(byte ^ 255 for byte in whole[2000:2100]) + whole[2100:]
    for data in (b"plain text", whole[:20], whole[:-9], changed):
        (tmp_path / f"named.txt{suffix}").write_bytes(data)
        with pytest.raises(ValueError, match=rf"named\.txt\{suffix} is damaged, cut short, or not a \{suffix} file"):
            documents(tmp_path / f"named.txt{suffix}")


# --- what is no plain text --------------------------------------------------------------------------------------------


def zipped(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "some text")
    return data.getvalue()


def database():
    connection = sqlite3.connect(":memory:")
    connection.execute("create table a (b text)")
    return connection.serialize()


def tar():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return data.getvalue()


FOREIGN = [
    ("paper.pdf", b"%PDF-1.7\n1 0 obj", r"is a PDF, not plain text: pdftotext .*paper\.pdf .*paper\.txt$"),
    ("note.rtf", b"{\\rtf1\\ansi text}", r"is RTF, .*: pandoc -t plain .*note\.rtf -o .*note\.txt$"),
    ("letter.docx", zipped("[Content_Types].xml", "word/document.xml"), r"is a Word document, .*: pandoc"),
    ("letter.odt", zipped("mimetype", "content.xml"), r"is an OpenDocument file, .*: libreoffice"),
    ("book.epub", zipped("mimetype", "META-INF/container.xml"), r"is an EPUB book, .*: pandoc"),
    ("sheet.xlsx", zipped("xl/workbook.xml"), r"is a spreadsheet, .*convert-to csv"),
    ("talk.pptx", zipped("ppt/presentation.xml"), r"is a presentation, .*pdftotext"),
    ("model.pt", zipped("archive/data.pkl"), r"a model's weights"),
    ("noname", zipped("a.txt"), r"is a zip archive, .*\.zip, and it is unpacked"),
    ("noname", tar(), r"is a tar archive"),
    ("data.pkl", pickle.dumps(["text"]), r"is a pickle"),
    ("data.db", database(), r"is an SQLite database, .*sqlite3 .*\.csv"),
    ("photo.jpg", b"\xff\xd8\xff\xe0", r"is an image, .*tesseract"),
    ("program", b"\x7fELF\x02\x01\0", r"is a program"),
    ("twice.txt.gz", gzip.compress(gzip.compress(b"text")), r"is compressed twice"),
    ("page.html", b"<p>text", r"is HTML, .*pandoc .*\.txt, or rename it"),
    ("page.HTM", b"text", r"is HTML"),
    ("saved", b"\n<!DOCTYPE html><html>", r"is HTML"),
    ("saved", b"\xef\xbb\xbf<html lang='en'>", r"is HTML"),
    ("feed.xml", b"<feed>", r"is XML"),
    ("noname", b"<?xml version='1.0'?>", r"is XML"),
    ("notebook.ipynb", b'{"cells": []}', r"is a notebook, .*jupyter nbconvert --to markdown"),
]


@pytest.mark.parametrize(
    ("name", "data", "message"), FOREIGN, ids=[f"{name} {n}" for n, (name, *_) in enumerate(FOREIGN)]
)
def test_what_is_no_plain_text_is_refused_with_the_way_out(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    for fields in ((), ("text",)):
        with pytest.raises(ValueError, match=message) as caught:
            documents(tmp_path / name, *fields)
        assert "\n" not in str(caught.value)
    if not name.endswith(".gz"):
        (tmp_path / f"{name}.xz").write_bytes(lzma.compress(data))
        with pytest.raises(ValueError, match="is a zip archive" if data[:2] == b"PK" else message.partition(",")[0]):
            documents(tmp_path / f"{name}.xz")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1} begins a text',
        "<html> begins a text",
        "[{}]",
        "a,b\nc,d\ne,f\ng,h\n",
        "PKZIP",
        "MZ",
        "BZhen",
        "# <p>",
        "GIF89a",
    ],
)
def test_a_txt_is_prose_unless_its_bytes_say_otherwise(tmp_path, text):
    for name in ("a.txt", "a.md", "a.TXT.gz"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        assert documents(tmp_path / name) == documents(tmp_path / name, "field") == [text]
    (tmp_path / "a.txt").write_bytes(b"%PDF-1.4 inside")
    with pytest.raises(ValueError, match="is a PDF"):
        documents(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "text", ["Once, twice.\nOne, two\nThree, four\nFive, six\n", "if (a) { b }", "a | b\nc | d", "int a, b;\n" * 9]
)
def test_prose_without_a_name_is_prose(tmp_path, text):
    (tmp_path / "noname").write_text(text)
    assert documents(tmp_path / "noname") == [text]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text".encode("utf-16"), "it begins as UTF-16 does: --encoding utf-16"),
        ("é".encode() + b" \xe9", "what comes before is UTF-8, so it mixes encodings: .* iconv -c"),
        (b"caf\xe9", "name its encoding"),
    ],
)
def test_the_advice_for_other_encodings(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        documents(tmp_path / "a.txt")
