"""Where text comes from: a text known by name, your own files in any encoding, standard input, or a URL.

A `Corpus` is a sequence of documents; each is read as a stream of pieces, so that a file may be larger than memory.
"""

import atexit
import codecs
import difflib
import encodings.aliases
import glob
import gzip
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpt.bpe import last_word_break
from gpt.system import files
from gpt.system.paths import PROJECT
from gpt.text import tales, tasks
from gpt.text.download import ARCHIVES, check_form, check_sum, download, file_name, unpack

BUNDLED = {"story": PROJECT / "data" / "story.txt"}  # texts that ship with the project
DOWNLOADS = Path("data/downloads")  # seen from the working folder
TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4"
DOWNLOADABLE = {  # texts that are downloaded by name: their URL, their SHA-256, and their name in DOWNLOADS
    "shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "shakespeare.txt",
    ),
    "tinystories": (f"{TINYSTORIES}-train.txt", "", "TinyStoriesV2-GPT4-train.txt"),
    "tinystories-valid": (f"{TINYSTORIES}-valid.txt", "", "TinyStoriesV2-GPT4-valid.txt"),
}
SEPARATORS = dict.fromkeys(("tinystories", "tinystories-valid"), "<|endoftext|>")  # of texts that bring their own
KNOWN = {  # the texts known by name: size, what it is, licence or origin
    "story": ("52 KB", "a story in fifteen chapters", "written for this project, CC0 1.0"),
    "tales": ("24 MB", "30,000 tales of a grammar; tales:N:SEED are others", "made here, by gpt/text/tales.py"),
    "summaries": ("28 MB", "pairs of such a tale and what happens in it", "made here, by gpt/text/tasks.py"),
    "questions": ("25 MB", "pairs of such a tale with a question, and the answer", "made here, by gpt/text/tasks.py"),
    "kinds": ("25 MB", "pairs of such a tale and its class, by who comes first", "made here, by gpt/text/tasks.py"),
    "python-docs": ("0.46 MB", "the reference inside every Python, by topics", "in this Python, PSF licence"),
    "shakespeare": ("1.1 MB", "scenes of Shakespeare's plays", "public domain, by way of karpathy/char-rnn"),
    "tinystories": ("2.2 GB", "small stories in a small child's words", "made by GPT-4, CDLA-Sharing 1.0"),
    "tinystories-valid": ("22.5 MB", "stories held out of these", "made by GPT-4, CDLA-Sharing 1.0"),
}
SUFFIXES = (".txt", ".md")  # what is taken from a folder, or .gz of it; a file named by itself may have any name
PIECE = 1 << 20  # bytes read at once
TALES = 30_000  # as many as "tales" stands for
HALF = re.compile("[\ud800-\udfff]")  # of a character that UTF-16 writes in two
ENCODINGS = "utf-8, latin-1, utf-16, gb18030, shift_jis, cp1256"
ADVICE = "name its encoding, as in --encoding latin-1 (or utf-16, gb18030, shift_jis, cp1256), or convert it to UTF-8"
OTHERWISE = "it is another file, or the checksum is mistyped"


@dataclass(frozen=True)
class Corpus:
    """Documents on disk: a file each or, with a separator, as many as stand between separators in each file.

    With `fields` each line of a file is a JSON object, and the texts of these fields are documents, one after the
    other; with a single field, .txt and .md files stay plain text. `name` says in words where they came from.
    """

    name: str
    paths: list[Path]
    separator: str = ""
    fields: tuple[str, ...] = ()
    encoding: str = "utf-8"

    def documents(self) -> Iterator[Iterable[str]]:
        """The documents, each as the pieces that its text is read in. Each is used up before the next is asked for.
        An empty one is left out, unless it is half of a pair."""
        for path in self.paths:
            if len(self.fields) > 1 or (self.fields and _suffix(path) not in SUFFIXES):
                texts = read_fields(path, self.fields, self.encoding)
                yield from ([text] for text in texts if text or len(self.fields) > 1)
            elif self.separator:
                yield from ([text] for text in split_at(read_pieces(path, self.encoding), self.separator))
            elif first := next(pieces := read_pieces(path, self.encoding), ""):
                yield itertools.chain([first], pieces)

    def pieces(self) -> Iterator[str]:
        """All of the text, document after document, piece by piece."""
        for document in self.documents():
            yield from document


def open_corpus(
    source: str, separator: str = "", sha256: str = "", fields: tuple[str, ...] = (), encoding: str = "utf-8"
) -> Corpus:
    """The corpus that `source` names: a text of KNOWN, a file, a folder (its .txt and .md files, at any depth, and
    with a field its .jsonl files), a glob such as "books/*.txt", or "-" for standard input, which is copied to a
    temporary file first. "tales:N:SEED" are N tales of gpt/text/tales.py: TALES of them with seed 0, where both are left
    out; "summaries:N:SEED", "questions" and "kinds" are pairs made from such tales by gpt/text/tasks.py.

    A URL, or a name of DOWNLOADABLE, is downloaded to DOWNLOADS unless it is there. An archive, downloaded or not, is
    unpacked there once and read as a folder; a .gz is read as what is in it. `sha256` is the checksum of a file or a
    download. Several files are several documents, in the order of their names; `separator` ends a document within a
    file, or each line is a JSON object and `fields` of it, names or templates, are documents. Texts of KNOWN are in
    UTF-8 whatever the `encoding`, and may have a separator of their own.
    ValueError where there is nothing to read, or not what the checksum says.
    """
    if not source:
        raise ValueError("no text is named: '' is neither a file, a folder nor a glob")
    sha256, encoding = check_form(sha256), find_encoding(encoding)
    for field in fields:
        _template(field)
    if source in BUNDLED or (source in DOWNLOADABLE and not Path(source).exists()):
        return Corpus(source, [_known_file(source, sha256)], separator or SEPARATORS.get(source, ""), fields)
    path = _find_file(source, sha256)
    if path is not None and path.name.lower().endswith(ARCHIVES):
        folder = DOWNLOADS / f"{path.name}-{files.sha256(path)[:16]}"  # another content, another folder
        found = _texts_of(folder if folder.is_dir() else unpack(path, folder), fields)
        return Corpus(path.name, found, separator, fields, encoding)
    if path is not None:
        return Corpus(path.name, _prose([path], fields), separator, fields, encoding)
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
        return Corpus(path.resolve().name, _texts_of(path, fields), separator, fields, encoding)
    if source == "python-docs":
        return _python_docs(fields)
    if source.partition(":")[0] in ("tales", *tasks.TASKS):
        return _generated(source, fields)
    found = _files(map(Path, glob.glob(source, recursive=True)))
    if not found:
        raise ValueError(f"no file, folder or glob {source!r}, and no text of that name ({', '.join(KNOWN)})")
    return Corpus(source, _prose(found, fields), separator, fields, encoding)


def known_texts() -> list[str]:
    """A line for each text of KNOWN: its name, size, what it is, where it comes from, and whether it is here."""
    lines = []
    for name, (size, what, origin) in KNOWN.items():
        here = name not in DOWNLOADABLE or (DOWNLOADS / DOWNLOADABLE[name][2]).exists()
        lines.append(f"{name:17} {size:>7}  {what} ({origin}); {'here' if here else 'needs the network'}")
    return lines


def _known_file(name: str, sha256: str) -> Path:
    """The file of a text of BUNDLED or DOWNLOADABLE, downloaded if need be, and checked."""
    if name in DOWNLOADABLE:
        url, known, file = DOWNLOADABLE[name]
        return download(url, DOWNLOADS / file, sha256 or known)
    check_sum(BUNDLED[name], sha256, str(BUNDLED[name]), OTHERWISE)
    return BUNDLED[name]


def _find_file(source: str, sha256: str) -> Path | None:
    """The path, downloaded if need be and checked, of the one file that `source` names, if it does."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):  # two letters at least: C:// is a drive
        return download(source, DOWNLOADS / file_name(source), sha256)
    path = Path(source)
    try:
        if not path.is_file():
            return None
    except OSError:  # a name longer than a file's may be
        return None
    check_sum(path, sha256, str(path), OTHERWISE)
    return path


def _texts_of(folder: Path, fields: tuple[str, ...]) -> list[Path]:
    suffixes = (".jsonl",) if len(fields) > 1 else (*SUFFIXES, ".jsonl") if fields else SUFFIXES
    found = _files(path for path in folder.rglob("*") if _suffix(path) in suffixes)
    if not found:
        raise ValueError(f"the folder {folder} holds no {' or '.join(suffixes)} file; a glob takes other names")
    return found


def _prose(paths: list[Path], fields: tuple[str, ...]) -> list[Path]:
    """The paths, unless JSON would be read as prose."""
    if found := [path for path in paths if _suffix(path) == ".jsonl" and not fields]:
        advice = "name the field that is the text (--field text), or two (--prompt_field and --target_field)"
        raise ValueError(f"{found[0]} holds a JSON object in each line: {advice}")
    return paths


def _suffix(path: Path) -> str:
    """What a file holds by its name: the suffix, of a .gz the one before."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _files(paths: Iterable[Path]) -> list[Path]:
    """The files among paths in the order of their names, each once, by whatever links it was reached."""
    return list({path.resolve(): path for path in sorted(paths, reverse=True) if path.is_file()}.values())[::-1]


def _generated(source: str, fields: tuple[str, ...]) -> Corpus:
    """The corpus "tales:N:SEED", or pairs such as "summaries:N:SEED": always the same N lines of a temporary file."""
    kind, _, numbers = source.partition(":")
    found = re.fullmatch(r"(?:(\d{1,6})(?::(\d{1,9}))?)?", numbers, re.ASCII)
    n, seed = (int(found[1] or TALES), int(found[2] or 0)) if found else (0, 0)
    if not n or source.endswith(":"):
        raise ValueError(f"{reprlib.repr(source)}: {kind}:N are N {kind}, from 1 to 999999; {kind}:N:SEED are others")
    paired = kind in tasks.TASKS
    lines = tasks.generate(kind, n, seed) if paired else (f"{tale}\n" for tale in tales.generate(n, seed))
    path = _spool(io.BytesIO("".join(lines).encode()), ".jsonl" if paired else ".txt")
    name = f"{kind}:{n}:{seed} of grammar {tales.fingerprint()}"
    return Corpus(name, [path], "\n", fields or (("prompt", "target") if paired else ()))


def _python_docs(fields: tuple[str, ...]) -> Corpus:
    """The reference that help() shows, a document for each topic; one field, which others may need, means its own."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError("this Python lacks pydoc_data, its reference: install a whole one, or name a text") from None
    text = "".join(json.dumps({"text": topics[topic]}) + "\n" for topic in sorted(topics))
    path = _spool(io.BytesIO(text.encode()), ".jsonl")
    name = f"python-docs of Python {platform.python_version()}"
    return Corpus(name, [path], fields=fields if len(fields) > 1 else ("text",))


def _stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("standard input is a terminal: pipe a text into it, as in `cat book.txt | ... --input -`")
    return sys.stdin.buffer


def _spool(stream: BinaryIO, suffix: str = "") -> Path:
    """A stream as a file, gone when the program ends: a corpus is read more than once, and may not fit memory."""
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as spool:
        atexit.register(Path(spool.name).unlink, missing_ok=True)
        shutil.copyfileobj(stream, spool)
    return Path(spool.name)


# --- reading files ----------------------------------------------------------------------------------------------------


def find_encoding(name: str) -> str:
    """Python's name of an encoding of text; ValueError for one that it does not know, that is none of text (base64),
    or that cannot be read piece by piece (idna)."""
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        names = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()} - {name}  # mbcs is known on Windows
        near = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(names), n=1)
        advice = f"did you mean {near[0]}?" if near else f"Python knows {ENCODINGS} and many more"
        raise ValueError(f"unknown encoding {reprlib.repr(name)}: {advice}") from None
    sample = "text\n" * 20  # longer than the part of a host's name, which is all that idna takes
    try:
        decoder = codec.incrementaldecoder()
        read = "".join(decoder.decode(bytes([byte])) for byte in sample.encode(codec.name))
        read += decoder.decode(b"", final=True)
    except (LookupError, UnicodeError, TypeError):  # TypeError: there is no such decoder
        read = ""
    if read != sample:
        raise ValueError(f"{name!r} is no encoding that a text is read in piece by piece, as {ENCODINGS} are")
    return codec.name


def read_pieces(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """A text file, or a .gz of one, as strings of about PIECE bytes, each cut where a word ends, line ends as \\n.

    ValueError names the file where it cannot be read as text. In text mode Python would decode blocks of 8 KB and look
    at each character for its line ends, in three times the time.
    """
    utf8 = encoding == "utf-8"
    decoder = codecs.getincrementaldecoder("utf-8-sig" if utf8 else encoding)()  # a byte order mark is dropped
    rest = held = ""
    place = 0
    for block in itertools.chain(_blocks(path), [b""]):
        place += len(block)
        try:
            read = held + decoder.decode(block, final=not block)
        except UnicodeError as error:
            wanted = "UTF-8" if utf8 else encoding
            raise ValueError(f"{path} is not {wanted} text ({_where(error, place)}): {ADVICE}") from None
        if "\0" in read:
            raise ValueError(f"{path} holds NUL bytes, as binary files do, and UTF-16 read as UTF-8: {ADVICE}")
        if not utf8 and HALF.search(read):  # as utf-7 may write it
            raise ValueError(f"{path} holds half a character, a lone surrogate: {ADVICE}")
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


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, of a .gz those in it, PIECE at a time."""
    packed = path.name.lower().endswith(".gz")
    try:
        if packed and not path.stat().st_size:  # to gzip that is a file of no members
            raise EOFError("it is empty")
        with gzip.open(path) if packed else path.open("rb") as file:
            while block := file.read(PIECE):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, cut short, or not a whole .gz file ({error}): get it anew") from None


def _where(error: UnicodeError, end: int) -> str:
    """The byte that could not be decoded, and its place in a file that was read up to `end`."""
    if not isinstance(error, UnicodeDecodeError):  # UTF-16 without a byte order mark
        return str(error)
    return f"byte {error.object[error.start]:#04x} at {end - len(error.object) + error.start:,}"


def read_fields(path: Path, fields: tuple[str, ...], encoding: str = "utf-8") -> Iterator[str]:
    """The texts of these fields of each line of a file, a JSON object each; empty lines are left out. A field is a
    name, or a template that holds {name}. ValueError names the line's number among the others where it is none, or a
    field that it has not as a string."""
    templates = [_template(field) for field in fields]
    for n, line in enumerate(split_at(read_pieces(path, encoding), "\n"), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"record {n} of {path} is not JSON: {reprlib.repr(line)} ({error})") from None
        for name in (name for template in templates for _, name in template if name):
            if not isinstance(record, dict) or not isinstance(record.get(name), str):
                there = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise ValueError(f"record {n} of {path} has no text {name!r}, but: {there[:200]}")
            if HALF.search(record[name]):  # as JSON may write it, and no UTF-8 file
                raise ValueError(f"record {n} of {path} has half a character, a lone surrogate, in {name!r}")
        for template in templates:
            yield "".join(record[name] if name else text for text, name in template)


def _template(field: str) -> list[tuple[str, str]]:
    """The parts of a field's text: each is (text, "") or ("", name of a field). Without any {name} in it the field is
    a name as it stands."""
    parts = re.findall(r"(\{\{|\}\}|[^{}]+)|\{([^{}]+)\}|([{}])", field)
    if not any(name for _, name, _ in parts):
        return [("", field)]
    if any(lone for *_, lone in parts):
        raise ValueError(f"the template {reprlib.repr(field)} has a lone brace: {{{{ and }}}} stand for braces")
    return [(text.replace("{{", "{").replace("}}", "}"), name) for text, name, _ in parts]


# --- cutting text -----------------------------------------------------------------------------------------------------


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
