"""Where text comes from: a text that ships with the project or with Python, tales that are made up, your own files,
standard input, or a URL.

A `Corpus` is a sequence of documents; each is read as a stream of pieces, so that a file may be larger than memory.
"""

import atexit
import codecs
import difflib
import glob
import gzip
import importlib
import io
import itertools
import json
import platform
import re
import reprlib
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import regex

from gpt import files, tales, tasks
from gpt.download import ARCHIVES, check_form, check_sum, download, file_name, unpack
from gpt.places import PROJECT

BUNDLED = {"story": PROJECT / "data" / "story.txt"}  # texts that ship with the project
DOWNLOADS = Path("data/downloads")  # seen from the working folder
TINY_STORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-"
DOWNLOADABLE = {  # texts that are downloaded by name: URL, SHA-256 where one is published, name in DOWNLOADS, separator
    "shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "shakespeare.txt",
        "",
    ),
    "tinystories": (f"{TINY_STORIES}train.txt", "", "tinystories.txt", "<|endoftext|>"),
    "tinystories-valid": (f"{TINY_STORIES}valid.txt", "", "tinystories-valid.txt", "<|endoftext|>"),
}
KNOWN = {  # what --list says of each text that is known by name: size, and what it is
    "story": ("0.05 MB", "a short story, made for this project (CC0)"),
    "tales": ("24 MB", "30,000 tales of a grammar whose entropy is known; tales:N are N of them, tales:N:SEED others"),
    "summaries": ("27 MB", "pairs: such a tale, and what happens in it in short; summaries:N:SEED"),
    "questions": ("24 MB", "pairs: such a tale with one of seven questions, and the answer; questions:N:SEED"),
    "verdicts": ("24 MB", "pairs: such a tale, or one with a wrong word, and whether it is sound; verdicts:N:SEED"),
    "python-docs": ("0.46 MB", "the language reference that comes with every Python (PSF licence)"),
    "shakespeare": ("1.1 MB", "40,000 lines of his plays, as char-rnn has them (public domain)"),
    "tinystories": ("2.2 GB", "small stories written by GPT-4, Eldan and Li 2023, arXiv:2305.07759 (CDLA-Sharing-1.0)"),
    "tinystories-valid": ("22 MB", "their validation split"),
}
PLAIN = (".txt", ".md")  # what is taken from a folder as it is; a file named by itself may have any name
LINES = (".jsonl",)  # each line a JSON object
PIECE = 1 << 20  # bytes read at once
GENERATED = ("tales", *tasks.TASKS)  # made up when they are asked for
TALES = 30_000  # as many as "tales" stands for


@dataclass(frozen=True)
class Corpus:
    """Documents on disk: a file each or, with a separator, as many as stand between separators in each file.

    With `fields` each line of a file is a JSON object, and the texts of these fields are documents, one after the
    other: of each file where there are two, a pair; of each but .txt and .md where there is one. `name` says in words
    where they came from.
    """

    name: str
    paths: list[Path]
    separator: str = ""
    fields: tuple[str, ...] = ()
    encoding: str = ""  # of the files; "": UTF-8, with or without a byte order mark

    def documents(self) -> Iterator[Iterable[str]]:
        """The documents, each as the pieces that its text is read in. Each is used up before the next is asked for.
        An empty one is left out, unless it is a field's."""
        for path in self.paths:
            if len(self.fields) == 2 or (self.fields and _kind(path) not in PLAIN):
                yield from ([text] for text in read_fields(path, self.fields, self.encoding))
            elif self.separator:
                yield from ([text] for text in split_at(read_pieces(path, self.encoding), self.separator))
            elif first := next(pieces := read_pieces(path, self.encoding), ""):
                yield itertools.chain([first], pieces)

    def pieces(self) -> Iterator[str]:
        """All of the text, document after document, piece by piece."""
        for document in self.documents():
            yield from document


def open_corpus(
    source: str, separator: str = "", sha256: str = "", fields: tuple[str, ...] = (), encoding: str = ""
) -> Corpus:
    """The corpus that `source` names: a text of KNOWN, a file, a folder (its .txt and .md files and, with `fields`, its
    .jsonl files, at any depth, compressed by gzip or not), a glob such as "books/*.txt", or "-" for standard input,
    which is copied to a temporary file first. "tales:N:SEED" are N tales of gpt/tales.py: TALES of them with seed 0,
    where both are left out. "summaries:N:SEED" are JSON objects whose prompt is such a tale, and whose target says in
    short what happens in it.

    A URL, or a name of DOWNLOADABLE, is downloaded to DOWNLOADS unless it is there. An archive, downloaded or not, is
    unpacked there once and read as a folder. `sha256` is the checksum of a file or a download. Several files are
    several documents, in the order of their names; `separator` ends a document within a file, or each line is a JSON
    object and `fields` of it are documents: names, or templates such as "Question: {question}".
    ValueError where there is nothing to read, or not what the checksum says, and for an unknown encoding.
    """
    if not source:
        raise ValueError("no text is named: '' is neither a file, a folder nor a glob")
    check_encoding(encoding)
    sha256 = check_form(sha256)
    name, path = _find_file(source, sha256)
    if not separator and not fields and source in DOWNLOADABLE:
        separator = DOWNLOADABLE[source][3]
    if path is not None and not path.name.lower().endswith(ARCHIVES):
        if _kind(path) in LINES and not fields:
            raise ValueError(
                f"{path} holds a JSON object in each line: name the one of its fields that is the text (--field text), "
                f"or two (--prompt_field and --target_field)"
            )
        return Corpus(name, [path], separator, fields, encoding)
    if path is not None:
        folder = DOWNLOADS / f"{path.name}-{files.sha256(path)[:16]}"  # another content, another folder
        folder = folder if folder.is_dir() else unpack(path, folder)
        return Corpus(name, _in_folder(folder, fields), separator, fields, encoding)
    if sha256:
        raise ValueError(f"a SHA-256 is that of a file or a download, and {reprlib.repr(source)} is neither")
    if source == "-":
        return Corpus("standard input", [_spool(_stdin())], separator, fields, encoding)
    path = Path(source)
    try:
        is_folder = path.is_dir()
    except OSError:  # a name longer than a file's may be
        is_folder = False
    if is_folder:
        return Corpus(path.resolve().name, _in_folder(path, fields), separator, fields, encoding)
    if source.partition(":")[0] in GENERATED:
        return _generated(source, fields)
    if source == "python-docs":
        return _python_docs()
    found = _files(map(Path, glob.glob(source, recursive=True)))
    if not found:
        raise ValueError(f"no file, folder or glob {source!r}, and no text of that name ({', '.join(KNOWN)})")
    return Corpus(source, found, separator, fields, encoding)


def list_texts() -> str:
    """The texts that are known by name, a line each."""
    lines = []
    for name, (size, what) in KNOWN.items():
        where = "no network"
        if name in DOWNLOADABLE:
            there = (DOWNLOADS / DOWNLOADABLE[name][2]).exists()
            where = f"in {DOWNLOADS}" if there else "download"
        lines.append(f"{name:<18} {size:>8}   {where:<{len(str(DOWNLOADS)) + 3}}   {what}")
    return "\n".join(lines)


def check_encoding(name: str) -> None:
    """ValueError unless Python knows a text encoding of this name that can be read piece by piece; "" is UTF-8."""
    try:
        codec = codecs.lookup(name or "utf-8")
        if codec._is_text_encoding and codec.incrementaldecoder and codec.name not in ("idna", "punycode", "undefined"):
            return
    except (LookupError, ValueError):
        pass
    near = difflib.get_close_matches(
        name.lower(), ("utf-8", "utf-16", "utf-32", "latin-1", "cp1252", "gb18030", "big5")
    )
    hint = f"did you mean {near[0]}?" if near else "such as latin-1, cp1252, utf-16, gb18030, shift_jis or cp1256"
    raise ValueError(f"unknown text encoding {reprlib.repr(name)}: {hint}")


def _find_file(source: str, sha256: str) -> tuple[str, Path | None]:
    """The name and the path, downloaded if need be and checked, of the one file that `source` names, if it does."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):  # two letters at least: C:// is a drive
        path = DOWNLOADS / file_name(source)
        return path.name, download(source, path, sha256)
    path = BUNDLED.get(source, Path(source))
    if source in DOWNLOADABLE and not path.exists():
        url, known, name, _ = DOWNLOADABLE[source]
        return source, download(url, DOWNLOADS / name, sha256 or known)
    try:
        if not path.is_file():
            return source, None
    except OSError:  # a name longer than a file's may be
        return source, None
    check_sum(path, sha256, str(path), "it is another file, or the checksum is mistyped")
    return source if source in BUNDLED else path.name, path


def _kind(path: Path) -> str:
    """The suffix that says what a file holds: .txt of book.txt and of book.txt.gz."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _in_folder(path: Path, fields: tuple[str, ...]) -> list[Path]:
    kinds = LINES if len(fields) == 2 else (*PLAIN, *LINES) if fields else PLAIN
    found = _files(p for p in path.rglob("*") if _kind(p) in kinds)
    if not found:
        raise ValueError(f"the folder {path} holds no {' or '.join(kinds)} file; a glob takes other names")
    return found


def _files(paths: Iterable[Path]) -> list[Path]:
    """The files among paths in the order of their names, each once, by whatever links it was reached."""
    return list({path.resolve(): path for path in sorted(paths, reverse=True) if path.is_file()}.values())[::-1]


def _generated(source: str, fields: tuple[str, ...]) -> Corpus:
    """The corpus "tales:N:SEED", or one of pairs such as "summaries:N:SEED": always the same N lines of a temporary
    file."""
    kind, _, numbers = source.partition(":")
    found = re.fullmatch(r"(?:(\d{1,6})(?::(\d{1,9}))?)?", numbers, re.ASCII)
    n, seed = (int(found[1] or TALES), int(found[2] or 0)) if found else (0, 0)
    if not n or source.endswith(":"):
        raise ValueError(f"{reprlib.repr(source)}: {kind}:N are N {kind}, from 1 to 999999; {kind}:N:SEED are others")
    paired = kind in tasks.TASKS
    lines = tasks.generate(kind, n, seed) if paired else (f"{tale}\n" for tale in tales.generate(n, seed))
    spool = _spool(io.BytesIO("".join(lines).encode()), ".jsonl" if paired else ".txt")
    own_fields = ("prompt", "target") if paired else ()
    return Corpus(f"{kind}:{n}:{seed} of grammar {tales.fingerprint()}", [spool], "\n", fields or own_fields)


def _python_docs() -> Corpus:
    """What `help()` shows of the language, a document for each topic, in the order of their names."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise ValueError("this Python comes without its reference (pydoc_data): python.org's has it") from None
    lines = "".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics))
    name = f"python-docs of Python {platform.python_version()}"
    return Corpus(name, [_spool(io.BytesIO(lines.encode()), ".jsonl")], fields=("text",))


def _stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("standard input is a terminal: pipe a text into it, as in `cat book.txt | ... --input -`")
    return sys.stdin.buffer


def _spool(stream: BinaryIO, suffix: str = ".txt") -> Path:
    """A stream as a file, gone when the program ends: a corpus is read more than once, and may not fit memory."""
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as spool:
        atexit.register(Path(spool.name).unlink, missing_ok=True)
        shutil.copyfileobj(stream, spool)
    return Path(spool.name)


def read_pieces(path: Path, encoding: str = "") -> Iterator[str]:
    """A text file as strings of about PIECE bytes, each cut where a word ends, line ends as \\n; unpacked on the way
    where its name ends in .gz.

    ValueError names the file where it cannot be read as text. In text mode Python would decode blocks of 8 KB and look
    at each character for its line ends, in three times the time.
    """
    decoder = codecs.getincrementaldecoder(encoding or "utf-8-sig")()  # utf-8-sig: a byte order mark is dropped
    rest = held = ""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        while True:
            block = _read(file, path)
            try:
                read = held + decoder.decode(block, final=not block)
            except (UnicodeError, ValueError) as error:
                raise ValueError(f"{path} is not {encoding or 'UTF-8'} text ({_wrong(error)}): {_advice()}") from None
            if "\0" in read:
                raise ValueError(f"{path} holds NUL characters, as binary files do: {_advice()}")
            held = "\r" if block and read.endswith("\r") else ""  # its \n may be yet to come
            if "\r" in read:
                read = read.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n")
            rest += read
            cut = last_word_break(rest) if block else len(rest)
            if len(rest) > 16 * PIECE:  # not one space in 16 million characters
                cut = cut or len(rest)
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
            if not block:
                return


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(PIECE)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}): fetch or pack it again") from None


def _wrong(error: ValueError) -> str:
    """The byte that could not be decoded."""
    if isinstance(error, UnicodeDecodeError) and error.start < len(error.object):
        return f"byte {error.object[error.start]:#04x}"
    return str(error)


def _advice() -> str:
    return "prepare_data.py reads others by --encoding latin-1, utf-16, gb18030, ...; or convert it to UTF-8 text first"


def read_fields(path: Path, fields: tuple[str, ...], encoding: str = "") -> Iterator[str]:
    """The texts of these fields of each line of a file, a JSON object each; empty lines are left out.
    A field with {names} in it is a template, in which each {name} stands for that field's text; {{ and }} are braces.

    ValueError names the line's number among the others where it is none, or a field that it has not as a string.
    """
    texts = [_template(field) for field in fields]
    for n, line in enumerate(split_at(read_pieces(path, encoding), "\n"), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"record {n} of {path} is not JSON: {reprlib.repr(line)} ({error})") from None

        def text_of(field: str, n: int = n, record: object = record) -> str:
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                there = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise ValueError(f"record {n} of {path} has no text {field!r}, but: {there[:200]}")
            if re.search("[\ud800-\udfff]", record[field]):  # as JSON may write it, and no UTF-8 file
                raise ValueError(f"record {n} of {path} has half a character, a lone surrogate, in {field!r}")
            return record[field]

        for text in texts:
            yield text(text_of)


def _template(field: str) -> Callable[[Callable[[str], str]], str]:
    """What makes a text of a record's texts by name: the one of that name, or all that a template names."""
    parts = re.split(r"(\{\{|\}\}|\{[^{}]+\})", field)
    if len(parts) == 1:
        return lambda text_of: text_of(field)
    return lambda text_of: "".join(
        part[0] if part in ("{{", "}}") else text_of(part[1:-1]) if i % 2 else part for i, part in enumerate(parts)
    )


# --- cutting text -----------------------------------------------------------------------------------------------------


def last_word_break(text: str) -> int:
    """The last index at which `text` can be cut without changing its GPT-2 tokens; 0 where there is none.

    That is between a letter, digit, mark or sign and a space or line end after it: no word of
    GPT-2's pattern goes on across such a place, and none looks across it.
    """
    found = regex.search(r"(?r)(?<=[\p{L}\p{N}\p{P}\p{S}\p{M}])[ \n]", text)  # (?r): searched from the end
    return found.start() if found else 0


def cut_pieces(text: str, longest: int = 100_000) -> Iterator[str]:
    """`text` cut where words end, into pieces of at most `longest` characters; a longer word is cut all the same."""
    start = 0
    while len(text) - start > longest:
        piece = text[start : start + longest]
        cut = last_word_break(piece) or longest
        yield piece[:cut]
        start += cut
    yield text[start:]


def split_at(pieces: Iterable[str], separator: str) -> Iterator[str]:
    """The texts between separators, without the white space around them; empty ones are left out."""
    parts = [""]  # of the text at hand; the last one holds the characters in which a separator may have begun
    for piece in pieces:
        *texts, rest = (parts.pop() + piece).split(separator)
        if texts:
            texts[0] = "".join([*parts, texts[0]])
            parts = []
            yield from (text.strip() for text in texts if text.strip())
        cut = max(len(rest) - len(separator) + 1, 0)
        parts += [rest[:cut], rest[cut:]]
    if text := "".join(parts).strip():
        yield text
