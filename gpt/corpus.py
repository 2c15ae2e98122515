"""Where text comes from: a text that ships with the project, tales that are made up, your own files, standard input,
or a URL.

A `Corpus` is a sequence of documents; each is read as a stream of pieces, so that a file may be larger than memory.
"""

import atexit
import codecs
import glob
import io
import itertools
import json
import re
import reprlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import regex

from gpt import files, tales
from gpt.download import ARCHIVES, check_form, check_sum, download, file_name, unpack
from gpt.places import PROJECT

BUNDLED = {"story": PROJECT / "data" / "story.txt"}  # texts that ship with the project
DOWNLOADS = Path("data/downloads")  # seen from the working folder
DOWNLOADABLE = {  # texts that are downloaded by name: their URL, their SHA-256, and their name in DOWNLOADS
    "shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "shakespeare.txt",
    )
}
SUFFIXES = (".txt", ".md")  # what is taken from a folder; a file named by itself may have any name
PIECE = 1 << 20  # bytes read at once
TALES = 30_000  # as many as "tales" stands for


@dataclass(frozen=True)
class Corpus:
    """Documents on disk: a file each or, with a separator, as many as stand between separators in each file.

    With `fields` each line of a file is a JSON object, and the texts of these fields are documents, one after the
    other. `name` says in words where they came from.
    """

    name: str
    paths: list[Path]
    separator: str = ""
    fields: tuple[str, ...] = ()

    def documents(self) -> Iterator[Iterable[str]]:
        """The documents, each as the pieces that its text is read in. Each is used up before the next is asked for.
        An empty one is left out, unless it is a field's."""
        for path in self.paths:
            if self.fields:
                yield from ([text] for text in read_fields(path, self.fields))
            elif self.separator:
                yield from ([text] for text in split_at(read_pieces(path), self.separator))
            elif first := next(pieces := read_pieces(path), ""):
                yield itertools.chain([first], pieces)

    def pieces(self) -> Iterator[str]:
        """All of the text, document after document, piece by piece."""
        for document in self.documents():
            yield from document


def open_corpus(source: str, separator: str = "", sha256: str = "", fields: tuple[str, ...] = ()) -> Corpus:
    """The corpus that `source` names: a bundled text ("story"), a file, a folder (its .txt and .md files, at any
    depth), a glob such as "books/*.txt", or "-" for standard input, which is copied to a temporary file first; or
    "tales:N:SEED", N tales of gpt/tales.py: TALES of them with seed 0, where both are left out. "summaries:N:SEED" are
    JSON objects whose prompt is such a tale, and whose target says in short what happens in it.

    A URL, or "shakespeare" of DOWNLOADABLE, is downloaded to DOWNLOADS unless it is there. An archive, downloaded or
    not, is unpacked there once and read as a folder. `sha256` is the checksum of a file or a download. Several files
    are several documents, in the order of their names; `separator` ends a document within a file, or each line is a
    JSON object and `fields` of it are documents.
    ValueError where there is nothing to read, or not what the checksum says.
    """
    if not source:
        raise ValueError("no text is named: '' is neither a file, a folder nor a glob")
    sha256 = check_form(sha256)
    name, path = _find_file(source, sha256)
    if path is not None and not path.name.lower().endswith(ARCHIVES):
        return Corpus(name, [path], separator, fields)
    if path is not None:
        folder = DOWNLOADS / f"{path.name}-{files.sha256(path)[:16]}"  # another content, another folder
        return _open_folder(folder if folder.is_dir() else unpack(path, folder), name, separator, fields)
    if sha256:
        raise ValueError(f"a SHA-256 is that of a file or a download, and {reprlib.repr(source)} is neither")
    if source == "-":
        return Corpus("standard input", [_spool(_stdin())], separator, fields)
    path = Path(source)
    try:
        is_folder = path.is_dir()
    except OSError:  # a name longer than a file's may be
        is_folder = False
    if is_folder:
        return _open_folder(path, path.resolve().name, separator, fields)
    if source.partition(":")[0] in GENERATED:
        return _generated(source, fields)
    found = _files(map(Path, glob.glob(source, recursive=True)))
    if not found:
        names = ", ".join([*BUNDLED, *DOWNLOADABLE, *GENERATED])
        raise ValueError(f"no file, folder or glob {source!r}, and no text of that name ({names})")
    return Corpus(source, found, separator, fields)


def _find_file(source: str, sha256: str) -> tuple[str, Path | None]:
    """The name and the path, downloaded if need be and checked, of the one file that `source` names, if it does."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):  # two letters at least: C:// is a drive
        path = DOWNLOADS / file_name(source)
        return path.name, download(source, path, sha256)
    path = BUNDLED.get(source, Path(source))
    if source in DOWNLOADABLE and not path.exists():
        url, known, name = DOWNLOADABLE[source]
        return source, download(url, DOWNLOADS / name, sha256 or known)
    try:
        if not path.is_file():
            return source, None
    except OSError:  # a name longer than a file's may be
        return source, None
    check_sum(path, sha256, str(path), "it is another file, or the checksum is mistyped")
    return source if source in BUNDLED else path.name, path


def _open_folder(path: Path, name: str, separator: str, fields: tuple[str, ...]) -> Corpus:
    suffixes = (".jsonl",) if fields else SUFFIXES
    found = _files(p for p in path.rglob("*") if p.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f"the folder {path} holds no {' or '.join(suffixes)} file; a glob takes other names")
    return Corpus(name, found, separator, fields)


def _files(paths: Iterable[Path]) -> list[Path]:
    """The files among paths in the order of their names, each once, by whatever links it was reached."""
    return list({path.resolve(): path for path in sorted(paths, reverse=True) if path.is_file()}.values())[::-1]


def _generated(source: str, fields: tuple[str, ...]) -> Corpus:
    """The corpus "tales:N:SEED" or "summaries:N:SEED": always the same N lines of a temporary file."""
    kind, _, numbers = source.partition(":")
    found = re.fullmatch(r"(?:(\d{1,6})(?::(\d{1,9}))?)?", numbers, re.ASCII)
    n, seed = (int(found[1] or TALES), int(found[2] or 0)) if found else (0, 0)
    if not n or source.endswith(":"):
        raise ValueError(f"{reprlib.repr(source)}: {kind}:N are N {kind}, from 1 to 999999; {kind}:N:SEED are others")
    line, own_fields = GENERATED[kind]
    text = "".join(f"{line(tale)}\n" for tale in tales.generate(n, seed))
    name = f"{kind}:{n}:{seed} of grammar {tales.fingerprint()}"
    return Corpus(name, [_spool(io.BytesIO(text.encode()))], "\n", fields or own_fields)


def _summary(tale: str) -> str:
    """A tale and what happens in it, as one line of JSON."""
    return json.dumps({"prompt": tale, "target": f" {tales.summary(tale)}"})


# texts made up when they are asked for: what makes a line of a tale, and the fields that a line has
GENERATED = {"tales": (str, ()), "summaries": (_summary, ("prompt", "target"))}


def _stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("standard input is a terminal: pipe a text into it, as in `cat book.txt | ... --input -`")
    return sys.stdin.buffer


def _spool(stream: BinaryIO) -> Path:
    """A stream as a file, gone when the program ends: a corpus is read more than once, and may not fit memory."""
    with tempfile.NamedTemporaryFile(suffix=".txt", delete=False) as spool:
        atexit.register(Path(spool.name).unlink, missing_ok=True)
        shutil.copyfileobj(stream, spool)
    return Path(spool.name)


def read_pieces(path: Path) -> Iterator[str]:
    """A UTF-8 text file as strings of about PIECE bytes, each cut where a word ends, line ends as \\n.

    ValueError names the file where it cannot be read as text. In text mode Python would decode blocks of 8 KB and look
    at each character for its line ends, in three times the time.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # a byte order mark is dropped
    rest = held = ""
    with path.open("rb") as file:
        while True:
            block = file.read(PIECE)
            try:
                read = held + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}): {_advice()}"
                ) from None
            if b"\0" in block:
                raise ValueError(f"{path} holds NUL bytes, as binary files do: {_advice()}")
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


def read_fields(path: Path, fields: tuple[str, ...]) -> Iterator[str]:
    """The texts of these fields of each line of a file, a JSON object each; empty lines are left out. ValueError names
    the line's number among the others where it is none, or a field that it has not as a string."""
    for n, line in enumerate(split_at(read_pieces(path), "\n"), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"record {n} of {path} is not JSON: {reprlib.repr(line)} ({error})") from None
        for field in fields:
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                there = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise ValueError(f"record {n} of {path} has no text {field!r}, but: {there[:200]}")
            if re.search("[\ud800-\udfff]", record[field]):  # as JSON may write it, and no UTF-8 file
                raise ValueError(f"record {n} of {path} has half a character, a lone surrogate, in {field!r}")
            yield record[field]


def _advice() -> str:
    return "convert it to UTF-8 text first"


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
