"""gpt/text/sources.py: where text comes from, and how it is cut into pieces."""

import encodings.aliases
import gzip
import io
import itertools
import json
import os
import pydoc_data.topics
import re
import sys
import tempfile
import tracemalloc
from pathlib import Path
from unittest.mock import patch

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gpt.text.sources
from gpt.system.paths import find_path
from gpt.text import tales, tasks
from gpt.text.grammar import table
from gpt.text.sources import (
    BUNDLED,
    DOWNLOADABLE,
    KNOWN,
    SEPARATORS,
    Corpus,
    find_encoding,
    known_texts,
    open_corpus,
    read_fields,
    read_pieces,
    split_at,
)

# The rule as OpenAI published it: https://github.com/openai/gpt-2/blob/master/src/encoder.py
PUBLISHED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
STORY = Path(__file__).parents[2] / "data" / "story.txt"

thorough = settings(deadline=None, derandomize=True, max_examples=250)


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
def test_split_at_is_the_split_of_the_whole(pieces, separator):
    """Wherever the pieces end: within a document, or within a separator."""
    texts = [text.strip() for text in "".join(pieces).split(separator)]
    assert list(split_at(iter(pieces), separator)) == [text for text in texts if text]


def test_split_at_by_hand():
    pieces = ["  one<|end", "oftext|><|endoftext|>\n two", " and\nmore <|endoftext", "|>\n\n<|endoftext|>thr", "ee\n"]
    assert list(split_at(pieces, "<|endoftext|>")) == ["one", "two and\nmore", "three"]


def test_split_at_takes_an_endless_document():
    """In 200,000 pieces: a search that begins anew with each would take hours."""
    pieces = ["some words <", "|"] * 100_000
    assert list(split_at([*pieces, ">end"], "<|>")) == ["some words <|" * 99_999 + "some words", "end"]


def test_split_at_reads_no_further_than_it_has_to():
    read = []

    def pieces():
        for piece in ("a|b|c", "d|", "e"):
            read.append(piece)
            yield piece

    texts = split_at(pieces(), "|")
    assert [next(texts), next(texts), read] == ["a", "b", ["a|b|c"]]
    assert [next(texts), read] == ["cd", ["a|b|c", "d|"]]
    assert list(texts) == ["e"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_loop_of_links_is_read_once(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "texts" / "b.txt").write_text("b")
    (tmp_path / "texts" / "loop").symlink_to(tmp_path / "texts")
    for source in (tmp_path / "texts", tmp_path / "texts" / "**" / "*.txt"):
        assert [path.name for path in open_corpus(str(source)).paths] == ["a.txt", "b.txt"]


# --- reading ----------------------------------------------------------------------------------------------------------


@thorough
@given(text=st.text(st.sampled_from("abc1. \n\r\ufeffé中😀"), max_size=120), piece=st.integers(1, 8))
@example(text="\ufeff\ufeffa", piece=1)
@example(text="a\r\nb\r\rc\n\r", piece=1)
def test_read_pieces_join_to_the_text_of_the_file(tmp_path_factory, text, piece):
    """One byte order mark is dropped, line ends become \\n, GPT-2's words stay where there are word breaks."""
    path = tmp_path_factory.getbasetemp() / "read_pieces.txt"
    path.write_bytes(text.encode())
    with patch.object(gpt.text.sources, "PIECE", piece):
        pieces = list(read_pieces(path))
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(pieces) == expected
    assert all(0 < len(p) <= 17 * piece for p in pieces)
    if all(len(p) <= 16 * piece for p in pieces):  # a longer one may have been cut within a word
        assert gpt2_words(*pieces) == gpt2_words(expected)


@pytest.mark.parametrize("start", range(8189, 8194))
@pytest.mark.parametrize("piece", [7, 8192, 1 << 20])
def test_a_character_or_line_end_across_a_block_border_is_whole(tmp_path, monkeypatch, start, piece):
    """Python reads text files in blocks of 8,192 bytes."""
    monkeypatch.setattr(gpt.text.sources, "PIECE", piece)
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * (start - 2) + b" y" + "😀中\r\né".encode() + b" z" * 5000)
    assert "".join(read_pieces(path)) == "x" * (start - 2) + " y😀中\né" + " z" * 5000


def test_a_long_file_comes_in_several_pieces_cut_where_words_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.sources, "PIECE", 1000)
    text = STORY.read_text(encoding="utf-8")
    pieces = list(read_pieces(STORY))
    assert "".join(pieces) == text
    assert len(pieces) >= len(text) / 1000 - 1
    assert max(map(len, pieces)) < 2000
    assert gpt2_words(*pieces) == gpt2_words(text)


def test_a_text_without_white_space_comes_whole_and_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.sources, "PIECE", 100)
    path = tmp_path / "text.txt"
    path.write_text("中" * 10_000, encoding="utf-8")
    pieces = list(read_pieces(path))
    assert "".join(pieces) == "中" * 10_000
    assert max(map(len, pieces)) <= 1700


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a byte order mark"])
def test_an_empty_file_has_no_pieces(tmp_path, data):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    assert list(read_pieces(path)) == []


@pytest.mark.parametrize(
    "data",
    [b"caf\xe9 au lait", b"good \xff", b"ends within \xe4\xb8", "utf-16".encode("utf-16"), b"surrogate \xed\xa0\x80"],
    ids=["latin-1", "0xff", "cut off", "utf-16", "surrogate"],
)
@pytest.mark.parametrize("lead", [0, 20_000])
def test_a_file_that_is_not_utf8_is_named(tmp_path, data, lead):
    path = tmp_path / "named.txt"
    path.write_bytes(data if lead == 0 else b"fine " * (lead // 5) + data)
    with pytest.raises(ValueError, match=r"named\.txt (is not UTF-8 text|holds NUL bytes)"):
        list(read_pieces(path))


@pytest.mark.parametrize("data", [b"\0", b"a\0b", b"ends with\0", b"fine " * 4000 + b"\0"])
def test_a_file_with_nul_bytes_is_named(tmp_path, data):
    path = tmp_path / "named.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"named\.txt holds NUL bytes"):
        list(read_pieces(path))


# --- encodings --------------------------------------------------------------------------------------------------------

MIXED = "中文 é 😀\r\nعربي a\u0301 \u200d end"
UNICODE = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "UTF8", "U16")
ENCODED = [
    ("latin-1", "Füße, café\r\nund «Öl» \xa0ß"),
    ("cp1256", "كان يا ما كان\nفي قديم الزمان"),
    ("gb18030", "从前有一只猫。\r\n它叫 Mimi 😀\U00020000"),
    ("shift_jis", "むかしむかし、\n猫がいました。ｱｲｳ"),
    ("iso2022_jp", "むかし A むかし\n猫"),
    ("koi8-r", "Жил да был\rкот"),
    *((name, MIXED) for name in UNICODE),
]


@pytest.mark.parametrize(("encoding", "text"), ENCODED, ids=[name for name, _ in ENCODED])
@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_a_text_in_any_encoding_is_the_same_text(tmp_path, monkeypatch, encoding, text, piece):
    """Characters, escapes and line ends may go on across a border of pieces."""
    monkeypatch.setattr(gpt.text.sources, "PIECE", piece)
    (tmp_path / "text.txt").write_bytes(text.encode(encoding))
    (tmp_path / "text.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
    corpus = open_corpus(str(tmp_path / "text.txt"), encoding=encoding)
    assert documents(corpus) == [text.replace("\r\n", "\n").replace("\r", "\n")]
    assert documents(open_corpus(str(tmp_path / "text.jsonl"), encoding=encoding, fields=("text",))) == [text]


def test_every_encoding_that_is_taken_reads_what_python_writes(tmp_path, monkeypatch):
    """Of all that Python ships; what is refused is no encoding of text, or reads otherwise piece by piece."""
    monkeypatch.setattr(gpt.text.sources, "PIECE", 1)
    path, taken, text = tmp_path / "text.txt", set(), "one two\nthree. " * 10
    for name in {*encodings.aliases.aliases.values()}:
        try:
            found = find_encoding(name)
        except ValueError:
            continue
        path.write_bytes(text.encode(name))
        assert "".join(read_pieces(path, found)) == text
        taken.add(name)
    assert len(taken) > 80
    assert taken.isdisjoint({"base64_codec", "rot_13", "hex_codec", "idna", "punycode", "bz2_codec"})


NO_TEXT = ("base64", "rot13", "hex", "zip", "idna", "punycode", "undefined")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("latn-1", "unknown encoding 'latn-1': did you mean latin"),
        ("shift-jiss", "unknown encoding 'shift-jiss': did you mean shift"),
        ("zz", "unknown encoding 'zz': Python knows utf-8, latin-1"),
        ("", "unknown encoding '': Python knows"),
        ("a\0b", "unknown encoding"),
        ("x" * 9999, "unknown encoding"),
        *((name, f"'{name}' is no encoding that a text") for name in NO_TEXT),
    ],
    ids=lambda value: value[:20].encode("unicode_escape").decode(),
)
def test_what_is_no_encoding_is_refused(name, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        open_corpus("story", encoding=name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("encoding", "data", "place", "byte"),
    [
        ("utf-8", b"\xef\xbb\xbffine caf\xe9 au lait", 11, "0xe9"),
        ("ascii", b"fine caf\xe9 au lait", 8, "0xe9"),
        ("shift_jis", "猫がい fine ".encode("shift_jis") + b"\xff end", 12, "0xff"),
        ("gb18030", "猫 fine ".encode("gb18030") + b"\xff end", 8, "0xff"),
        ("cp1252", b"fine \x81", 5, "0x81"),
    ],
)
def test_a_byte_that_is_not_of_the_encoding_is_named(tmp_path, monkeypatch, encoding, data, place, byte, piece):
    monkeypatch.setattr(gpt.text.sources, "PIECE", piece)
    (tmp_path / "named.txt").write_bytes(data)
    words = rf"named\.txt is not (?i:{encoding}) text \(byte {byte} at {place}\): name its encoding, as in --encoding"
    with pytest.raises(ValueError, match=words):
        list(open_corpus(str(tmp_path / "named.txt"), encoding=encoding).pieces())


@pytest.mark.parametrize(
    ("encoding", "data", "words"),
    [
        ("utf-16", "no mark".encode("utf-16-le"), "is not utf-16 text .*BOM"),
        ("utf-16", "cut off".encode("utf-16")[:-1], "is not utf-16 text"),
        ("utf-16-le", "a\0b".encode("utf-16-le"), "holds NUL bytes"),
        ("utf-8", "unmarked".encode("utf-16-le"), "holds NUL bytes, .* UTF-16 .*--encoding"),
        ("utf-7", b"+2AA- half", "holds half a character"),
    ],
)
def test_a_file_that_its_encoding_cannot_read_is_named(tmp_path, encoding, data, words):
    (tmp_path / "named.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"named\.txt {words}"):
        list(open_corpus(str(tmp_path / "named.txt"), encoding=encoding).pieces())


def test_a_text_known_by_name_is_utf8_beside_others_of_another_encoding():
    assert documents(open_corpus("story", encoding="utf-16")) == [STORY.read_text(encoding="utf-8")]
    assert documents(open_corpus("tales:2", encoding="utf-16")) == tales.generate(2)


# --- .gz files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_a_gz_is_what_is_in_it_in_one_member_or_several(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(gpt.text.sources, "PIECE", piece)
    text = "Ein Bär.\n\n中文 😀 and more " * 20
    for name, encoding in (("a.txt.gz", "utf-8"), ("b.gz", "utf-16"), ("C.MD.GZ", "gb18030")):
        data = text.encode(encoding)
        for n in (1, 3, 50):
            size = -(-len(data) // n)
            members = [data[start : start + size] for start in range(0, len(data), size)]
            (tmp_path / name).write_bytes(b"".join(map(gzip.compress, members)))
            assert documents(open_corpus(str(tmp_path / name), encoding=encoding)) == [text]
    lines = [text.strip()] * 2
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps({"t": line}) for line in lines).encode()))
    assert documents(open_corpus(str(tmp_path / "d.jsonl.gz"), fields=("t",))) == lines


def test_a_gz_is_never_held_whole(tmp_path):
    with gzip.open(tmp_path / "long.txt.gz", "wb") as file:
        for _ in range(40):
            file.write(b"some words " * 100_000)
    tracemalloc.start()
    assert sum(map(len, open_corpus(str(tmp_path / "long.txt.gz")).pieces())) == 44_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000


WHOLE = gzip.compress(b"some words that are long enough " * 99, mtime=0)


DAMAGED = {
    "empty": b"",
    "not gzip": b"plain text",
    "magic alone": WHOLE[:2],
    "cut in the header": WHOLE[:5],
    "cut in the sizes": WHOLE[:-1],
    "cut in the text": WHOLE[:-9],
    "garbage after it": WHOLE + b"garbage",
    "a second one cut": WHOLE + WHOLE[:9],
    "checksum": WHOLE[:-6] + bytes([WHOLE[-6] ^ 1]) + WHOLE[-5:],
    "damaged": WHOLE[:12] + b"\xff\xff" + WHOLE[14:],
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_gz_that_is_not_whole_is_named(tmp_path, data):
    for name in ("named.txt.gz", "named.gz"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"named\S*\.gz is (damaged|not UTF-8 text)") as caught:
            list(open_corpus(str(tmp_path / name)).pieces())
        assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_a_gz_is_found_or_does_not_matter(tmp_path):
    text = "some words"
    data, path = gzip.compress(text.encode(), mtime=0), tmp_path / "named.txt.gz"
    refused = 0
    for n, bit in itertools.product(range(len(data)), range(8)):
        path.write_bytes(data[:n] + bytes([data[n] ^ 1 << bit]) + data[n + 1 :])
        try:
            assert documents(open_corpus(str(path))) == [text]
        except ValueError as error:
            assert "named.txt.gz" in str(error)
            refused += 1
    assert refused > len(data) * 8 - 10 * 8  # of the header's ten bytes most say nothing of the text


def test_a_folder_gives_what_is_packed_in_it_too(tmp_path):
    for name in ("a.txt", "b.md.gz", "c.TXT.GZ", "d.jsonl", "e.jsonl.gz", "f.tar.gz", "g.gz", "h.rst.gz"):
        data = (json.dumps({"t": name}) if "jsonl" in name else name).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert documents(open_corpus(str(tmp_path))) == ["a.txt", "b.md.gz", "c.TXT.GZ"]
    names = ["a.txt", "b.md.gz", "c.TXT.GZ", "d.jsonl", "e.jsonl.gz"]
    assert documents(open_corpus(str(tmp_path), fields=("t",))) == names
    assert documents(open_corpus(str(tmp_path), fields=("t", "t"))) == [name for name in names[3:] for _ in "12"]


# --- texts known by name ----------------------------------------------------------------------------------------------


def test_python_docs_are_the_topics_of_this_python():
    corpus = open_corpus("python-docs")
    topics = pydoc_data.topics.topics
    assert corpus.name == f"python-docs of Python {sys.version.split()[0]}"
    assert documents(corpus) == [topics[name] for name in sorted(topics)]
    assert documents(open_corpus("python-docs", fields=("body",))) == documents(corpus)  # which others may have
    with pytest.raises(ValueError, match="has no text 'q', but: text"):
        documents(open_corpus("python-docs", fields=("q", "a")))


def test_a_python_without_its_docs_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="this Python lacks pydoc_data"):
        open_corpus("python-docs")


def test_tinystories_bring_their_separator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/downloads").mkdir(parents=True)
    for name, file in (("tinystories", "train"), ("tinystories-valid", "valid")):
        path = Path(f"data/downloads/TinyStoriesV2-GPT4-{file}.txt")
        path.write_text("Once.\n<|endoftext|>\nTwice,\n\nsaid the cat.\n<|endoftext|>\n")
        assert (open_corpus(name).name, open_corpus(name).paths) == (name, [path])
        assert documents(open_corpus(name)) == ["Once.", "Twice,\n\nsaid the cat."]
        assert documents(open_corpus(name, "cat", encoding="utf-16"))[1] == ".\n<|endoftext|>"
        url, known, _ = DOWNLOADABLE[name]
        assert url == (
            f"https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-{file}.txt"
        )
        assert known == ""


def test_the_list_names_every_text_and_says_whether_it_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {*KNOWN} == {*BUNDLED, *DOWNLOADABLE, "tales", *tasks.TASKS, "python-docs"}
    assert {*SEPARATORS} <= {*DOWNLOADABLE}
    lines = known_texts()
    assert [line.split()[0] for line in lines] == [*KNOWN]
    assert [line.rpartition("; ")[2] for line in lines] == ["here"] * 6 + ["needs the network"] * 3
    Path("data/downloads").mkdir(parents=True)
    Path("data/downloads/shakespeare.txt").touch()
    assert [line.split()[0] for line in known_texts() if line.endswith("; here")] == [*KNOWN][:7]
    assert max(map(len, lines)) <= 120
    with pytest.raises(ValueError, match=re.escape(f"no text of that name ({', '.join(KNOWN)})")):
        open_corpus("nothing")


# --- finding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    """A folder with texts at several depths, and other files."""
    for name in ("b.txt", "a.md", "0/deep/z.TXT", "0/c.txt", "notes.rst", "0/data.json", "x.txt/inside.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    return tmp_path


def test_the_bundled_story():
    corpus = open_corpus("story")
    assert corpus.name == "story"
    assert "".join(corpus.pieces()) == STORY.read_text(encoding="utf-8")


def test_the_bundled_story_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sum(map(len, open_corpus("story").pieces())) == len(STORY.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["b.txt", "notes.rst", "0/data.json"])
def test_a_file_may_have_any_name(library, name):
    corpus = open_corpus(str(library / name))
    assert (corpus.name, corpus.paths) == (Path(name).name, [library / name])
    assert "".join(corpus.pieces()) == f"text of {name}\n"


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    path = tmp_path / "what[1].txt"
    path.write_text("this one")
    (tmp_path / "what1.txt").write_text("not this one")
    assert "".join(open_corpus(str(path)).pieces()) == "this one"


def test_a_folder_gives_its_txt_and_md_files_sorted_at_any_depth(library):
    corpus = open_corpus(str(library))
    names = ["0/c.txt", "0/deep/z.TXT", "a.md", "b.txt", "x.txt/inside.txt"]
    assert corpus.name == library.name
    assert corpus.paths == [library / name for name in names]
    assert "".join(corpus.pieces()) == "".join(f"text of {name}\n" for name in names)


def test_the_working_folder_has_a_name(library, monkeypatch):
    monkeypatch.chdir(library)
    assert open_corpus(".").name == library.name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["b.txt"]),  # x.txt is a folder
        ("?.*", ["a.md", "b.txt"]),
        ("*.rst", ["notes.rst"]),
        ("**/*.txt", ["0/c.txt", "b.txt", "x.txt/inside.txt"]),
        ("0/*", ["0/c.txt", "0/data.json"]),
    ],
)
def test_a_glob_gives_its_files_sorted(library, pattern, names):
    corpus = open_corpus(str(library / pattern))
    assert corpus.paths == [library / name for name in names]
    assert corpus.name == str(library / pattern)


def test_a_relative_glob(library, monkeypatch):
    monkeypatch.chdir(library)
    assert open_corpus("0/*.txt") == Corpus("0/*.txt", [Path("0/c.txt")])


@pytest.mark.parametrize("source", ["stroy", "missing.txt", "missing/*.txt", "a\0b"])
def test_an_unknown_name_is_refused_and_the_bundled_ones_are_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="story"):
        open_corpus(source)


def test_a_text_in_place_of_a_name_is_refused():
    """Longer than a file name may be."""
    with pytest.raises(ValueError):
        open_corpus("Once upon a time there was a text. " * 200)


def test_an_empty_name_is_refused(library, monkeypatch):
    """As from --input "$UNSET": it must not become the working folder."""
    monkeypatch.chdir(library)
    with pytest.raises(ValueError):
        open_corpus("")


def test_a_folder_without_texts_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match=r"holds no \.txt or \.md file"):
        open_corpus(str(tmp_path))


class Stdin:
    """Standard input as a pipe, or as a terminal."""

    def __init__(self, data: bytes, terminal: bool = False):
        self.buffer = io.BytesIO(data)
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    ("source", "name", "texts"),
    [
        ("-", "standard input", ["piped café\n"]),
        ("tales:3", f"tales:3:0 of grammar {tales.fingerprint()}", tales.generate(3)),
    ],
)
def test_standard_input_and_tales_are_copied_to_a_file_that_goes_at_the_end(tmp_path, monkeypatch, source, name, texts):
    at_exit = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", Stdin("\ufeffpiped café\r\n".encode()))
    monkeypatch.setattr("atexit.register", lambda function, **options: at_exit.append(lambda: function(**options)))
    corpus = open_corpus(source)
    assert corpus.name == name
    assert corpus.paths == list(tmp_path.iterdir())
    for _ in range(2):  # a corpus is read more than once
        assert documents(corpus) == texts
    for function in at_exit * 2:  # the second time, the file is gone already
        function()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stdin", [None, Stdin(b"", terminal=True)], ids=["closed", "terminal"])
def test_standard_input_without_a_pipe_is_refused(monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(ValueError, match="pipe a text into it"):
        open_corpus("-")


# --- documents --------------------------------------------------------------------------------------------------------


def documents(corpus):
    return ["".join(pieces) for pieces in corpus.documents()]


def test_a_file_is_a_document_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.sources, "PIECE", 4)
    texts = [" one two \n", "three\n\nfour", "  five "]
    for n, text in enumerate(texts):
        (tmp_path / f"{n}.txt").write_text(text)
    corpus = open_corpus(str(tmp_path))
    assert corpus.separator == ""
    for _ in range(2):  # a corpus is read more than once
        assert documents(corpus) == texts
        assert "".join(corpus.pieces()) == "".join(texts)


def test_an_empty_file_is_no_document(tmp_path):
    for n, text in enumerate(["", "one", "\ufeff", "\ufeff two", ""]):
        (tmp_path / f"{n}.txt").write_text(text, encoding="utf-8")
    assert documents(open_corpus(str(tmp_path))) == ["one", " two"]


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "\n--\n"])
def test_documents_are_what_stands_between_separators_in_each_file(tmp_path, monkeypatch, separator, piece):
    """No document goes on from one file into the next, and white space around one does not count."""
    monkeypatch.setattr(gpt.text.sources, "PIECE", piece)
    texts = ["one, which\nhas two lines", "two", "three 中文 😀"]
    windows_lines = f"{separator} {texts[0]}{separator}\n{separator}{separator}".replace("\n", "\r\n")
    (tmp_path / "1.txt").write_bytes(f"\ufeff{windows_lines}{texts[1]}".encode())
    (tmp_path / "2.txt").write_bytes(f"{texts[2]}{separator}".encode())
    (tmp_path / "3.txt").write_bytes(separator.encode())
    for source in (tmp_path, tmp_path / "*.txt"):
        corpus = open_corpus(str(source), separator)
        for _ in range(2):
            assert documents(corpus) == texts
            assert "".join(corpus.pieces()) == "".join(texts)
    assert documents(open_corpus(str(tmp_path / "1.txt"), separator)) == texts[:2]


def test_the_story_and_standard_input_take_a_separator(monkeypatch):
    paragraphs = [text.strip() for text in STORY.read_text(encoding="utf-8").split("\n\n")]
    assert len(paragraphs) > 5
    assert documents(open_corpus("story", "\n\n")) == [text for text in paragraphs if text]
    monkeypatch.setattr(sys, "stdin", Stdin(b"one\r\ntwo\n\nthree"))
    assert documents(open_corpus("-", "\n")) == ["one", "two", "three"]


def test_tales_are_always_the_same(monkeypatch):
    monkeypatch.setattr(gpt.text.sources, "TALES", 7)
    truth = tales.generate(12)
    assert len({*truth}) == 12
    for source, n in (("tales:1", 1), ("tales:12", 12), ("tales", 7), ("tales:12:0", 12), ("tales:12", 12)):
        corpus = open_corpus(source)
        assert documents(corpus) == truth[:n]
        assert corpus.name == f"tales:{n}:0 of grammar {tales.fingerprint()}"
    assert documents(open_corpus("tales:5:3")) == tales.generate(5, seed=3)


def test_another_sentence_or_word_makes_another_grammar(monkeypatch):
    found = {tales.fingerprint.__wrapped__()}
    with monkeypatch.context() as patch:
        patch.setattr(tales, "RULES", tales.RULES.replace("ran", "walked") + "\n  Amen.")
        found.add(tales.fingerprint.__wrapped__())
    with monkeypatch.context() as patch:
        patch.setitem(tales.TABLES, "few", table("two, three, four", rule="count"))
        found.add(tales.fingerprint.__wrapped__())
    assert len(found) == 3
    assert tales.fingerprint.__wrapped__() == tales.fingerprint()


@pytest.mark.parametrize(
    "source",
    [
        "tales:0",
        "tales:x",
        "tales:-1",
        "tales:1.5",
        "tales:1e3",
        "tales: 3",
        "tales:",
        "tales:1:x",
        "tales:1:-2",
        "tales:1:2:3",
        "tales:1000000",
    ],
)
def test_tales_take_a_number(source):
    with pytest.raises(ValueError, match=f"'{source}': tales:N are N tales, from 1 to 999999"):
        open_corpus(source)


@pytest.mark.parametrize("source", ["tales:" + "1" * 300, "tales:" + "x" * 5000, "tales:a\0b"])
def test_tales_take_no_name_longer_than_a_files_may_be(source):
    with pytest.raises(ValueError, match="tales:N are N tales"):
        open_corpus(source)


def test_a_file_or_a_folder_named_tales_is_read_in_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "mine.txt").write_text("of a folder")
    assert documents(open_corpus("tales")) == ["of a folder"]
    (tmp_path / "tales" / "mine.txt").rename(tmp_path / "mine")
    (tmp_path / "tales").rmdir()
    (tmp_path / "mine").rename(tmp_path / "tales")
    assert documents(open_corpus("tales")) == ["of a folder"]
    assert documents(open_corpus("tales:1")) == tales.generate(1)


@pytest.mark.parametrize("source", ["tale", "tales.txt", "tales/1", "Tales:3", "my tales:3"])
def test_another_name_than_tales_is_a_file(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no file, folder or glob '{source}'"):
        open_corpus(source)


def test_several_documents_are_read_one_after_the_other(tmp_path):
    for name, text in (("1", "one "), ("2", ""), ("3", "three")):
        (tmp_path / name).write_text(text)
    assert "".join(Corpus("three", [tmp_path / name for name in "123"]).pieces()) == "one three"


def test_find_path_looks_at_the_working_folder_then_at_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_path("data/story.txt").samefile(STORY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "story.txt").write_text("mine")
    assert find_path("data/story.txt").read_text() == "mine"
    assert find_path("nowhere/at/all") == Path("nowhere/at/all")


# --- fields of JSON ---------------------------------------------------------------------------------------------------

PAIRS = [
    ("What is 2 + 3?", "5"),
    ("", "an empty prompt"),
    ("an empty target", ""),
    ("中文 é 😀 \u2028 \x85", '"quoted",\n\ttwo lines\\'),
    (" spaces stay ", "  "),
]


def write_pairs(path, records, newline="\n", ensure_ascii=True, before=""):
    lines = (json.dumps(record, ensure_ascii=ensure_ascii) for record in records)
    path.write_bytes((before + "".join(line + newline for line in lines)).encode())
    return path


def as_records(pairs):
    return [{"id": n, "q": prompt, "a": target, "more": {"q": "not this"}} for n, (prompt, target) in enumerate(pairs)]


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n", "\n \t\r\n"], ids=repr)
@pytest.mark.parametrize("before", ["", "\ufeff", "\n\n"], ids=["", "byte order mark", "blank lines"])
def test_the_fields_of_each_line_are_documents(tmp_path, monkeypatch, piece, newline, before):
    monkeypatch.setattr(gpt.text.sources, "PIECE", piece)
    for ensure_ascii in (True, False):
        path = write_pairs(tmp_path / "pairs.jsonl", as_records(PAIRS), newline, ensure_ascii, before)
        corpus = open_corpus(str(path), fields=("q", "a"))
        for _ in range(2):
            assert documents(corpus) == [text for pair in PAIRS for text in pair]
        assert list(read_fields(path, ("a",))) == [target for _, target in PAIRS]
        assert list(read_fields(path, ("a", "q", "a"))) == [text for q, a in PAIRS for text in (a, q, a)]


def test_the_last_line_needs_no_end_and_a_huge_one_is_whole(tmp_path):
    huge = "x" * 3_000_000
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": huge, "a": "one"}) + "\n" + json.dumps({"q": "two", "a": huge}))
    assert list(read_fields(path, ("q", "a"))) == [huge, "one", "two", huge]


def test_a_folder_of_pairs_is_its_jsonl_files(tmp_path):
    for name in ("b.jsonl", "0/a.JSONL", "notes.txt", "other.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_pairs(tmp_path / name, [{"q": name, "a": "x"}])
    assert documents(open_corpus(str(tmp_path), fields=("q", "a"))) == ["0/a.JSONL", "x", "b.jsonl", "x"]
    assert documents(open_corpus(str(tmp_path / "*.json"), fields=("q", "a"))) == ["other.json", "x"]
    for name in ("b.jsonl", "0/a.JSONL"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"holds no \.jsonl file"):
        open_corpus(str(tmp_path), fields=("q", "a"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"q": "x", "a": "y"', "is not JSON"),
        ("plain text", "is not JSON: 'plain text'"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 5_000, "is not JSON"),
        ('{"q": "x"} {"a": "y"}', "is not JSON"),
        ('["x", "y"]', "has no text 'q', but: list"),
        ('"q a"', "has no text 'q', but: str"),
        ("7", "has no text 'q', but: int"),
        ("null", "has no text 'q', but: NoneType"),
        ("{}", "has no text 'q', but: "),
        ('{"Q": "x", "a": "y"}', "has no text 'q', but: Q, a"),
        ('{"q": "x", "b": "y"}', "has no text 'a', but: q, b"),
        ('{"q": "x", "a": 5}', "has no text 'a'"),
        ('{"q": "x", "a": null}', "has no text 'a'"),
        ('{"q": ["x"], "a": "y"}', "has no text 'q'"),
        ('{"q": "x", "a": "\\ud83d"}', "has half a character, a lone surrogate, in 'a'"),
    ],
    ids=lambda value: value[:30],
)
def test_a_line_that_holds_no_pair_is_named(tmp_path, line, words):
    good = json.dumps({"q": "x", "a": "\ud83d\ude00 whole"})
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{good}\n\n{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"record 3 of .*pairs\.jsonl " + re.escape(words)) as caught:
        list(read_fields(path, ("q", "a")))
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


def test_summaries_are_the_tales_of_that_number_and_seed_with_what_happens_in_them():
    for source, n, seed in (("summaries:4", 4, 0), ("summaries:3:5", 3, 5)):
        corpus = open_corpus(source)
        assert corpus.name == f"summaries:{n}:{seed} of grammar {tales.fingerprint()}"
        assert len(corpus.fields) == 2
        prompts, targets = documents(corpus)[::2], documents(corpus)[1::2]
        assert prompts == tales.generate(n, seed)
        assert targets == [f" {tales.summary(tale)}" for tale in tales.generate(n, seed)]


@pytest.mark.parametrize("source", ["summaries:0", "summaries:", "summaries:x", "summaries:1:2:3"])
def test_summaries_take_a_number(source):
    with pytest.raises(ValueError, match=f"'{source}': summaries:N are N summaries, from 1 to 999999"):
        open_corpus(source)


# --- a field, and templates -------------------------------------------------------------------------------------------


def test_a_single_field_leaves_txt_and_md_files_text(tmp_path, monkeypatch):
    """Everything else is lines of JSON, whatever its name, and standard input too."""
    lines = "".join(json.dumps({"t": text, "u": "no"}) + "\n" for text in ("one\n", "", "two"))
    for name in ("a.txt", "b.md", "c.jsonl", "d.ndjson", "e"):
        (tmp_path / name).write_text("some prose" if name in ("a.txt", "b.md") else lines)
    assert documents(open_corpus(str(tmp_path), fields=("t",))) == ["some prose", "some prose", "one\n", "two"]
    for name in "cde":
        assert documents(open_corpus(str(tmp_path / f"{name}*"), fields=("t",))) == ["one\n", "two"]
    assert documents(open_corpus(str(tmp_path / "a.txt"), " ", fields=("t",))) == ["some", "prose"]
    monkeypatch.setattr(sys, "stdin", Stdin(lines.encode()))
    assert documents(open_corpus("-", fields=("t",))) == ["one\n", "two"]
    assert documents(open_corpus("tales:3", fields=("t",))) == tales.generate(3)
    assert documents(open_corpus("story", fields=("t",))) == [STORY.read_text(encoding="utf-8")]
    assert documents(open_corpus("summaries:2", fields=("target",))) == [
        f" {tales.summary(tale)}" for tale in tales.generate(2)
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.jsonl.gz"])
def test_json_is_not_read_as_prose(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"t": "x"}')
    for source in (tmp_path / name, tmp_path / "*"):
        with pytest.raises(ValueError, match=r"name the field .*\(--field text\), .*--prompt_field and --target_field"):
            open_corpus(str(source))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a}", "A"),
        ("{a}{b c}{a}", "ABA"),
        ("### Task:\n{a}\n\n### Answer:\n", "### Task:\nA\n\n### Answer:\n"),
        ("{{{a}}} {{a}} }}{{", "{A} {a} }{"),
        ("{b c}: {x.y} {d:5}{0}", "B: C {a}"),
        ("a", "A"),
        ("b c", "B"),
        ("{}", "braces"),
        ("{{a}}", "a name of braces"),
    ],
)
def test_a_template_is_filled_from_each_record(tmp_path, template, text):
    record = {"a": "A", "b c": "B", "x.y": "C", "d:5": "{a}", "0": "", "{}": "braces", "{{a}}": "a name of braces"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    assert documents(open_corpus(str(tmp_path / "a.jsonl"), fields=(template, "a"))) == [text, "A"]


def test_a_template_that_cannot_be_filled_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x"}\n{"b": "y"}')
    with pytest.raises(ValueError, match=r"record 2 of .*a\.jsonl has no text 'a', but: b"):
        documents(open_corpus(str(path), fields=("say {a}",)))
    for template in ("{a} {", "{a}}", "}{a}", "{{a}}} {a}", "{a} {}"):
        with pytest.raises(ValueError, match=r"has a lone brace: \{\{ and \}\} stand for braces"):
            open_corpus(str(path), fields=(template,))
