"""gpt/text/sources.py: where text comes from, and how it is cut into pieces."""

import argparse
import gzip
import io
import json
import pydoc_data.topics
import re
import sys
import tempfile
from pathlib import Path

import pytest

import gpt.text.readers
import gpt.text.sources
from gpt.text import tales, tasks
from gpt.text.prepare import prepare_data
from gpt.text.readers import read_fields
from gpt.text.sources import KNOWN, Corpus, add_text_options, known_texts, open_corpus, open_texts

STORY = Path(__file__).parents[2] / "data" / "story.txt"


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
@pytest.mark.parametrize("piece", [3, 1 << 20])
def test_a_text_reads_the_same_in_any_encoding(tmp_path, monkeypatch, encoding, text, piece):
    """Characters, escapes and line ends may run across two blocks."""
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
    (tmp_path / "text.txt").write_bytes(text.encode(encoding))
    (tmp_path / "text.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
    corpus = open_corpus(str(tmp_path / "text.txt"), encoding=encoding)
    expected = [text.replace("\r\n", "\n").replace("\r", "\n")]
    assert documents(corpus) == expected
    assert documents(open_corpus(str(tmp_path / "text.jsonl"), encoding=encoding, fields=("text",))) == expected


@pytest.mark.parametrize("piece", [5, 1 << 20])
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
def test_a_byte_that_cannot_be_decoded_is_named(tmp_path, monkeypatch, encoding, data, place, byte, piece):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
    (tmp_path / "named.txt").write_bytes(data)
    words = rf"named\.txt is not (?i:{encoding}) text \(byte {byte} at {place}\): name its encoding, as in --encoding"
    with pytest.raises(ValueError, match=words):
        list(open_corpus(str(tmp_path / "named.txt"), encoding=encoding).chunks())


@pytest.mark.parametrize(
    ("encoding", "data", "message"),
    [
        ("utf-16", "no mark".encode("utf-16-le"), "is not utf-16 text .*BOM"),
        ("utf-16", "cut off".encode("utf-16")[:-1], "is not utf-16 text"),
        ("utf-16-le", "a\0b".encode("utf-16-le"), "holds NUL bytes"),
        ("utf-8", "unmarked".encode("utf-16-le"), "holds NUL bytes, .* UTF-16 .*--encoding"),
    ],
)
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, encoding, data, message):
    (tmp_path / "named.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"named\.txt {message}"):
        list(open_corpus(str(tmp_path / "named.txt"), encoding=encoding).chunks())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latn-1", "unknown encoding 'latn-1': did you mean latin"),
        ("zz", "unknown encoding 'zz': Python knows utf-8, latin-1"),
        ("", "unknown encoding '': Python knows"),
        ("base64", "unknown encoding 'base64'"),
        ("rot13", "unknown encoding 'rot13'"),
    ],
)
def test_an_unknown_encoding_is_refused(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_corpus("story", encoding=name)


def test_a_known_text_is_utf8_whatever_the_encoding():
    assert documents(open_corpus("story", encoding="utf-16")) == [STORY.read_text(encoding="utf-8")]
    assert documents(open_corpus("tales:2", encoding="utf-16")) == tales.generate(2)


# --- .gz files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_a_gz_is_decompressed_in_one_member_or_several(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
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


COMPRESSED = gzip.compress(b"some words that are long enough " * 99, mtime=0)


@pytest.mark.parametrize(
    "data",
    [b"plain text", COMPRESSED[:5], COMPRESSED[:-9], COMPRESSED + b"garbage", COMPRESSED[:-6] + b"x" + COMPRESSED[-5:]],
    ids=["not gzip", "cut in the header", "cut in the text", "garbage after it", "wrong checksum"],
)
def test_a_damaged_gz_is_named(tmp_path, data):
    (tmp_path / "named.txt.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"named\.txt\.gz is damaged"):
        list(open_corpus(str(tmp_path / "named.txt.gz")).chunks())


def test_a_folder_includes_its_gz_files(tmp_path):
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
    assert documents(open_corpus("python-docs", fields=("body",))) == documents(corpus)  # a field of the other inputs
    with pytest.raises(ValueError, match="has no field 'q', but: text"):
        documents(open_corpus("python-docs", fields=("q", "a")))


def test_tinystories_have_their_own_separator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("data/downloads/TinyStoriesV2-GPT4-valid.txt")
    path.parent.mkdir(parents=True)
    path.write_text("Once.\n<|endoftext|>\nTwice,\n\nsaid the cat.\n<|endoftext|>\n")
    corpus = open_corpus("tinystories-valid")
    assert (corpus.name, corpus.paths) == ("tinystories-valid", [path])
    assert documents(corpus) == ["Once.", "Twice,\n\nsaid the cat."]
    assert documents(open_corpus("tinystories-valid", "cat", encoding="utf-16"))[1] == ".\n<|endoftext|>"


def test_the_list_of_known_texts_says_which_need_a_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = known_texts()
    assert [line.split()[0] for line in lines] == [*KNOWN]
    downloads = [line.split()[0] for line in lines if line.endswith("; needs the network")]
    assert downloads == ["shakespeare", "tinystories", "tinystories-valid"]
    assert all(line.endswith("; here") for line in lines if line.split()[0] not in downloads)
    Path("data/downloads").mkdir(parents=True)
    Path("data/downloads/shakespeare.txt").touch()
    assert [line.split()[0] for line in known_texts() if line.endswith("; needs the network")] == downloads[1:]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", [*tasks.TASKS, "tales", "python-docs", "story"])
def test_every_known_text_without_a_url_can_be_opened(name):
    assert KNOWN[name].url == ""
    assert documents(open_corpus(f"{name}:2" if name in (*tasks.TASKS, "tales") else name))


# --- finding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    """A folder with texts at several depths, and other files."""
    for name in ("b.txt", "a.md", "0/deep/z.TXT", "0/c.txt", "notes.rst", "0/data.log", "x.txt/inside.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    return tmp_path


def test_the_bundled_story():
    corpus = open_corpus("story")
    assert corpus.name == "story"
    assert "".join(corpus.chunks()) == STORY.read_text(encoding="utf-8")


def test_the_bundled_story_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sum(map(len, open_corpus("story").chunks())) == len(STORY.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["b.txt", "notes.rst", "0/data.log"])
def test_a_file_may_have_any_name(library, name):
    corpus = open_corpus(str(library / name))
    assert (corpus.name, corpus.paths) == (Path(name).name, [library / name])
    assert "".join(corpus.chunks()) == f"text of {name}\n"


def test_a_file_name_that_looks_like_a_glob(tmp_path):
    path = tmp_path / "what[1].txt"
    path.write_text("this one")
    (tmp_path / "what1.txt").write_text("not this one")
    assert "".join(open_corpus(str(path)).chunks()) == "this one"


def test_a_folder_is_its_txt_and_md_files_sorted(library):
    corpus = open_corpus(str(library))
    names = ["0/c.txt", "0/deep/z.TXT", "a.md", "b.txt", "x.txt/inside.txt"]
    assert corpus.name == library.name
    assert corpus.paths == [library / name for name in names]
    assert "".join(corpus.chunks()) == "".join(f"text of {name}\n" for name in names)


def test_what_a_folder_leaves_out_is_said(library, tmp_path):
    """With the way to the most frequent kind that is text; hidden files do not count."""
    for name, data in {".git/x": b"", "a.png": b"\x89PNG", "b.png": b"\x89PNG", "c.jsonl": b'{"t": "x"}'}.items():
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_bytes(data)
    line = open_corpus(str(library)).left_out
    assert line.startswith(f"{library}: left out: 2 .png, 1 .log, 1 .jsonl, 1 .rst; ")
    assert line.endswith(f'--input "{library}/**/*.log" takes those')
    assert ".jsonl" not in open_corpus(str(library), fields=("t",)).left_out
    (library / "0/data.log").unlink()
    (library / "notes.rst").unlink()
    assert open_corpus(str(library)).left_out.endswith("1 .jsonl; --field NAME reads files of records too")
    (library / "only").mkdir()
    (library / "only" / "a.md").write_text("text")
    assert open_corpus(str(library / "only")).left_out == open_corpus("story").left_out == ""


def test_a_folder_without_a_text_says_why(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.txt or \.md file$"):
        open_corpus(str(tmp_path / "in"))
    (tmp_path / "in/a.pdf").write_bytes(b"%PDF-1.5")
    with pytest.raises(ValueError, match=r"but 1 \.pdf; .*a\.pdf is a PDF, not plain text: pdftotext"):
        open_corpus(str(tmp_path / "in"))
    (tmp_path / "in/README").write_text("a text")
    with pytest.raises(ValueError, match=r'--input ".*/in/\*\*/README" takes those'):
        open_corpus(str(tmp_path / "in"))
    prepare_data(open_corpus(str(tmp_path / "in/README")), "char", tmp_path / "out", 0.5)
    with pytest.raises(ValueError, match="out holds prepared data, not text"):
        open_corpus(str(tmp_path / "out"))


def test_a_field_of_plain_text_is_refused(tmp_path):
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "some words"}')
    parser = argparse.ArgumentParser()
    add_text_options(parser)
    arguments = parser.parse_args(["--field", "text"])
    with pytest.raises(ValueError, match=r"--field has no effect on .*a\.txt.*: rename it to \.jsonl"):
        open_texts([str(tmp_path / "a.txt")], arguments)
    plain, records = open_texts([str(tmp_path / name) for name in ("a.txt", "b.jsonl")], arguments)
    assert documents(plain) == ['{"text": "some words"}']
    assert documents(records) == ["some words"]


def test_the_working_folder_has_its_own_name(library, monkeypatch):
    monkeypatch.chdir(library)
    assert open_corpus(".").name == library.name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["b.txt"]),  # x.txt is a folder
        ("?.*", ["a.md", "b.txt"]),
        ("*.rst", ["notes.rst"]),
        ("**/*.txt", ["0/c.txt", "b.txt", "x.txt/inside.txt"]),
        ("0/*", ["0/c.txt", "0/data.log"]),
    ],
)
def test_a_glob_is_its_files_sorted(library, pattern, names):
    corpus = open_corpus(str(library / pattern))
    assert corpus.paths == [library / name for name in names]
    assert corpus.name == str(library / pattern)


def test_a_relative_glob(library, monkeypatch):
    monkeypatch.chdir(library)
    assert open_corpus("0/*.txt") == Corpus("0/*.txt", [Path("0/c.txt")])


@pytest.mark.parametrize("source", ["stroy", "missing.txt", "missing/*.txt", "a\0b"])
def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="story"):
        open_corpus(source)


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
def test_temporary_files_are_deleted_at_exit(tmp_path, monkeypatch, source, name, texts):
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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%PDF-1.4", "standard input: FILE is a PDF, not plain text: pdftotext FILE FILE.txt"),
        (b'{"t": "x"}\n{"t": "y"}', "standard input: FILE holds records with the fields t: name the field"),
        (gzip.compress(b"t\tu\n" + b"x\ty\n" * 9, mtime=0), "standard input: FILE holds records with the fields t, u"),
    ],
)
def test_standard_input_that_is_no_plain_text_is_refused(monkeypatch, data, message):
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    with pytest.raises(ValueError, match=re.escape(message)):
        open_corpus("-")


@pytest.mark.parametrize("stdin", [None, Stdin(b"", terminal=True)], ids=["closed", "terminal"])
def test_standard_input_without_a_pipe_is_refused(monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(ValueError, match="pipe a text into it"):
        open_corpus("-")


# --- documents --------------------------------------------------------------------------------------------------------


def documents(corpus):
    return ["".join(pieces) for pieces in corpus.documents()]


def test_each_file_is_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 4)
    texts = [" one two \n", "three\n\nfour", "  five "]
    for n, text in enumerate(texts):
        (tmp_path / f"{n}.txt").write_text(text)
    corpus = open_corpus(str(tmp_path))
    assert corpus.separator == ""
    for _ in range(2):  # a corpus is read more than once
        assert documents(corpus) == texts
        assert "".join(corpus.chunks()) == "".join(texts)


def test_empty_files_are_skipped(tmp_path):
    for n, text in enumerate(["", "one", "\ufeff", "\ufeff two", ""]):
        (tmp_path / f"{n}.txt").write_text(text, encoding="utf-8")
    assert documents(open_corpus(str(tmp_path))) == ["one", " two"]


@pytest.mark.parametrize("piece", [3, 1 << 20])
@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "\n--\n"])
def test_a_separator_ends_a_document(tmp_path, monkeypatch, separator, piece):
    """Documents end with their file and are stripped of white space."""
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
    texts = ["one, which\nhas two lines", "two", "three 中文 😀"]
    windows_lines = f"{separator} {texts[0]}{separator}\n{separator}{separator}".replace("\n", "\r\n")
    (tmp_path / "1.txt").write_bytes(f"\ufeff{windows_lines}{texts[1]}".encode())
    (tmp_path / "2.txt").write_bytes(f"{texts[2]}{separator}".encode())
    (tmp_path / "3.txt").write_bytes(separator.encode())
    for source in (tmp_path, tmp_path / "*.txt"):
        corpus = open_corpus(str(source), separator)
        for _ in range(2):
            assert documents(corpus) == texts
            assert "".join(corpus.chunks()) == "".join(texts)
    assert documents(open_corpus(str(tmp_path / "1.txt"), separator)) == texts[:2]


def test_the_story_and_standard_input_take_a_separator(monkeypatch):
    paragraphs = [text.strip() for text in STORY.read_text(encoding="utf-8").split("\n\n")]
    assert len(paragraphs) > 5
    assert documents(open_corpus("story", "\n\n")) == [text for text in paragraphs if text]
    monkeypatch.setattr(sys, "stdin", Stdin(b"one\r\ntwo\n\nthree"))
    assert documents(open_corpus("-", "\n")) == ["one", "two", "three"]


def test_tales_are_reproducible(monkeypatch):
    monkeypatch.setattr(gpt.text.sources, "DEFAULT_TALES", 7)
    truth = tales.generate(12)
    assert len({*truth}) == 12
    for source, n in (("tales:1", 1), ("tales:12", 12), ("tales", 7), ("tales:12:0", 12), ("tales:12", 12)):
        corpus = open_corpus(source)
        assert documents(corpus) == truth[:n]
        assert corpus.name == f"tales:{n}:0 of grammar {tales.fingerprint()}"
    assert documents(open_corpus("tales:5:3")) == tales.generate(5, seed=3)


@pytest.mark.parametrize(
    "source", ["tales:0", "tales:x", "tales:-1", "tales: 3", "tales:", "tales:1:2:3", "tales:1000000"]
)
def test_a_wrong_number_of_tales_is_refused(source):
    with pytest.raises(ValueError, match=f"'{source}': tales:N are N tales, from 1 to 999999"):
        open_corpus(source)


def test_a_file_or_folder_named_tales_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "mine.txt").write_text("of a folder")
    assert documents(open_corpus("tales")) == ["of a folder"]
    (tmp_path / "tales" / "mine.txt").rename(tmp_path / "mine")
    (tmp_path / "tales").rmdir()
    (tmp_path / "mine").rename(tmp_path / "tales")
    assert documents(open_corpus("tales")) == ["of a folder"]
    assert documents(open_corpus("tales:1")) == tales.generate(1)


def test_chunks_run_over_all_documents(tmp_path):
    for name, text in (("1", "one "), ("2", ""), ("3", "three")):
        (tmp_path / name).write_text(text)
    assert "".join(Corpus("three", [tmp_path / name for name in "123"]).chunks()) == "one three"


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


@pytest.mark.parametrize("piece", [7, 1 << 20])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n", "\n \t\r\n"], ids=repr)
@pytest.mark.parametrize("before", ["", "\ufeff", "\n\n"], ids=["", "byte order mark", "blank lines"])
def test_fields_of_each_line_are_documents(tmp_path, monkeypatch, piece, newline, before):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", piece)
    for ensure_ascii in (True, False):
        path = write_pairs(tmp_path / "pairs.jsonl", as_records(PAIRS), newline, ensure_ascii, before)
        corpus = open_corpus(str(path), fields=("q", "a"))
        for _ in range(2):
            assert documents(corpus) == [text for pair in PAIRS for text in pair]
        assert list(read_fields(path, ("a",))) == [target for _, target in PAIRS]
        assert list(read_fields(path, ("a", "q", "a"))) == [text for q, a in PAIRS for text in (a, q, a)]


def test_the_last_line_needs_no_line_end_and_may_be_huge(tmp_path):
    huge = "x" * 3_000_000
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": huge, "a": "one"}) + "\n" + json.dumps({"q": "two", "a": huge}))
    assert list(read_fields(path, ("q", "a"))) == [huge, "one", "two", huge]


def test_a_folder_of_pairs_is_its_files_of_records(tmp_path):
    for name in ("b.jsonl", "0/a.JSONL", "notes.txt", "other.json", "more.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_pairs(tmp_path / name, [{"q": name, "a": "x"}])
    found = ["0/a.JSONL", "x", "b.jsonl", "x", "other.json", "x"]
    assert documents(open_corpus(str(tmp_path), fields=("q", "a"))) == found
    assert documents(open_corpus(str(tmp_path / "*.log"), fields=("q", "a"))) == ["more.log", "x"]
    for name in ("b.jsonl", "0/a.JSONL", "other.json"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"holds no \.jsonl, .*, but 1 \.log, 1 \.txt; --input .*\.log"):
        open_corpus(str(tmp_path), fields=("q", "a"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": "x", "a": "y"', "is not JSON"),
        ("plain text", "is not JSON: 'plain text'"),
        ("[" * 100_000, "is not JSON"),
        ('["x", "y"]', "has no field 'q', but: a list of 2 texts"),
        ("7", "has no field 'q', but: a number"),
        ("{}", "has no field 'q', but: no fields at all"),
        ('{"q": "x", "b": "y"}', "has no field 'a', but: q, b"),
        ('{"q": "x", "a": null}', "has no text in 'a', but null: leave such records out"),
        ('{"q": "x", "a": NaN}', "has no text in 'a', but null"),
        ('{"q": "x", "a": [{"from": "gpt", "value": "y"}, {}]}', "has no text in 'a', but a list of 2 turns: name one"),
        ('{"q": "x", "a": {"en": "y"}}', "has no text in 'a', but the fields en: name one of these, as in a.en"),
        ('{"q": "x", "a": "\\ud83d"}', "has half a character, a lone surrogate, in 'a'"),
    ],
    ids=lambda value: value[:30],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line, message):
    good = json.dumps({"q": "x", "a": "\ud83d\ude00 whole"})
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{good}\n\n{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"record 3 of .*pairs\.jsonl " + re.escape(message)) as caught:
        list(read_fields(path, ("q", "a")))
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


def test_summaries_are_pairs_of_a_tale_and_its_summary():
    for source, n, seed in (("summaries:4", 4, 0), ("summaries:3:5", 3, 5)):
        corpus = open_corpus(source)
        assert corpus.name == f"summaries:{n}:{seed} of grammar {tales.fingerprint()}"
        assert len(corpus.fields) == 2
        prompts, targets = documents(corpus)[::2], documents(corpus)[1::2]
        assert prompts == tales.generate(n, seed)
        assert targets == [f" {tales.summary(tale)}" for tale in tales.generate(n, seed)]


@pytest.mark.parametrize("source", ["summaries:0", "summaries:", "summaries:x", "summaries:1:2:3"])
def test_a_wrong_number_of_summaries_is_refused(source):
    with pytest.raises(ValueError, match=f"'{source}': summaries:N are N summaries, from 1 to 999999"):
        open_corpus(source)


# --- a field, and templates -------------------------------------------------------------------------------------------


def test_a_single_field_leaves_txt_and_md_files_plain(tmp_path, monkeypatch):
    """Everything else holds records, whatever its name, and standard input too."""
    lines = "".join(json.dumps({"t": text, "u": "no"}) + "\n" for text in ("one\n", "", "two"))
    for name in ("a.txt", "b.md", "c.jsonl", "d.ndjson", "e"):
        (tmp_path / name).write_text("some prose" if name in ("a.txt", "b.md") else lines)
    found = ["some prose", "some prose", "one\n", "two", "one\n", "two"]
    assert documents(open_corpus(str(tmp_path), fields=("t",))) == found
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
def test_jsonl_without_a_field_is_refused(tmp_path, name):
    data = b'{"n": 5, "t": "some"}'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for source in (tmp_path / name, tmp_path / "*"):
        with pytest.raises(
            ValueError, match=r"fields n, t: name .* \(--field t\), .*--prompt_field and --target_field"
        ):
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


def test_a_wrong_template_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x"}\n{"b": "y"}')
    with pytest.raises(ValueError, match=r"record 2 of .*a\.jsonl has no field 'a', but: b"):
        documents(open_corpus(str(path), fields=("say {a}",)))
    for template in ("{a} {", "{a}}", "}{a}", "{{a}}} {a}", "{a} {}"):
        with pytest.raises(ValueError, match=r"has a lone brace: \{\{ and \}\} stand for braces"):
            open_corpus(str(path), fields=(template,))
