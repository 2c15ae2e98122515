"""Where text comes from: a known text by name, your own files in any encoding, standard input, or a URL.

A `Corpus` is a sequence of documents. Each is read in chunks, so a file may be larger than memory.
"""

import argparse
import atexit
import glob
import io
import itertools
import json
import platform
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from gpt.system.files import sha256 as sha256_of
from gpt.system.text import unescape
from gpt.text.conversations import FORMATS, read_conversations
from gpt.text.download import ARCHIVES, check_sha256, download, file_name, parse_sha256, unpack
from gpt.text.formats import PLAIN, RECORDS, suffix_of
from gpt.text.hub import HubFiles, find_files, parse_source
from gpt.text.known import DEFAULT_TALES, DOWNLOADS, GENERATED, GRAMMARS, KNOWN
from gpt.text.readers import (
    conversation_advice,
    find_encoding,
    form,
    parse_template,
    read_chunks,
    read_fields,
    read_records,
    refuse_records,
    split_at,
)

CHECKSUM_ADVICE = "it is another file, or the checksum is mistyped"


@dataclass(frozen=True)
class Corpus:
    """Documents on disk: one per file or, with a separator, one between separators in each file.

    With `fields` a file holds records, and the texts of these fields are documents, in turn; with a single field, .txt
    and .md files remain plain text. With a `format`, one of FORMATS, a record holds a conversation, which is a
    document, or two as preferences. `name` describes the source. `left_out` says which files of a folder were not
    taken, or which of the hub are.
    """

    name: str
    paths: list[Path] | HubFiles
    separator: str = ""
    fields: tuple[str, ...] = ()
    encoding: str = "utf-8"
    left_out: str = ""
    format: str = ""

    @property
    def unit(self) -> int:
        """The number of documents that stay together: a prompt and its target, a chosen and a rejected conversation."""
        return 2 if len(self.fields) == 2 or self.format == "preferences" else 1

    @property
    def noun(self) -> str:
        """What one unit is called."""
        return {"preferences": "preference", "": ("document", "pair")[self.unit - 1]}.get(self.format, "conversation")

    @property
    def names(self) -> list[Path]:
        """The names of the files, whether they are on disk yet or not."""
        return self.paths.names if isinstance(self.paths, HubFiles) else self.paths

    def versions(self) -> list[tuple[str, int, int]]:
        """Return the name, the size in bytes and the time of each file."""
        if isinstance(self.paths, HubFiles):
            return self.paths.versions()
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]

    def advice(self) -> str:
        """Return how the records are read better if fields are read of what looks like conversations, or ""."""
        if not self.fields or (len(self.fields) < 2 and suffix_of(self.names[0]) in PLAIN):
            return ""
        return conversation_advice(next(read_records(self.paths[0], {}.keys(), self.encoding), None))

    def documents(self) -> Iterator[Iterable[str]]:
        """Yield each document as its chunks of text. Exhaust one before asking for the next.

        Empty documents are skipped, except in a pair. With a `format` each is a Conversation.
        """
        for path in self.paths:
            if self.format:
                yield from read_conversations(path, self.format, self.encoding)
            elif len(self.fields) > 1 or (self.fields and suffix_of(path) not in PLAIN):
                texts = read_fields(path, self.fields, self.encoding)
                yield from ([text] for text in texts if text or len(self.fields) > 1)
            elif self.separator:
                yield from ([text] for text in split_at(read_chunks(path, self.encoding), self.separator))
            elif first := next(chunks := read_chunks(path, self.encoding), ""):
                yield itertools.chain([first], chunks)

    def chunks(self) -> Iterator[str]:
        """Yield the text of all documents, chunk by chunk; of conversations with the roles, once all of them."""
        if not self.format:
            yield from itertools.chain.from_iterable(self.documents())
            return
        yield "system\nuser\nassistant\n"
        for conversation in self.documents():
            yield from (f"{message['role']}\n{message['content']}\n" for message in conversation.messages)


def open_corpus(
    source: str, separator: str = "", sha256: str = "", fields: tuple[str, ...] = (), encoding: str = "utf-8"
) -> Corpus:
    """Return the corpus that `source` names.

    A source is a text of KNOWN, a file, a folder (its .txt and .md files at any depth; with a field also records), a
    glob such as "books/*.txt", a URL, "hub:OWNER/DATASET[:CONFIG][:FIELD]" of gpt/text/hub.py, or "-" for standard
    input. "tales:N:SEED" are N tales of gpt/text/tales.py;
    "summaries:N:SEED", "questions", "questions7" and "kinds" are pairs made of such tales by gpt/text/tasks.py,
    "requests" and "single-requests" are conversations of gpt/text/requests.py, "countdown" and "countdown-test" pairs
    of gpt/text/countdown.py, "forms", "forms-test" and "forms-preferences" conversations of gpt/text/forms.py.

    A URL is downloaded to DOWNLOADS once. An archive, downloaded or not, is unpacked there once and read as a folder; a
    .gz, .bz2, .xz or .zst is decompressed while it is read. `sha256` is the checksum of a file or a download. Each file
    is a document; a `separator` ends a document within a file, or `fields` (names or templates) of the records of a
    .jsonl, .json, .csv, .tsv or .parquet are documents. KNOWN texts are UTF-8 whatever the `encoding`, and may have
    their own separator. ValueError if nothing can be read, if a file is no text, or if the checksum differs.
    """
    if not source:
        raise ValueError("no text is named: '' is neither a file, a folder nor a glob")
    sha256, encoding = parse_sha256(sha256), find_encoding(encoding)
    for name in fields:
        parse_template(name)
    if source.startswith("hub:"):
        return _from_hub(source, separator, sha256, fields, encoding)
    known = KNOWN.get(source)
    if known and known.path and not (known.url and Path(source).exists()):
        if known.url:
            download(known.url, known.path, sha256 or known.sha256)
        else:
            check_sha256(known.path, sha256, str(known.path), CHECKSUM_ADVICE)
        return Corpus(source, [known.path], separator or known.separator, fields)
    path, left_out = _find_file(source, sha256), ""
    if path is None and sha256:
        raise ValueError(f"a SHA-256 is that of a file or a download, and {source!r} is neither")
    if path is not None and path.name.lower().endswith(ARCHIVES):
        folder = DOWNLOADS / f"{path.name}-{sha256_of(path)[:16]}"  # one folder per content
        name = path.name
        paths, left_out = _texts_of(folder if folder.is_dir() else unpack(path, folder), fields)
    elif path is not None:
        name, paths = path.name, [path]
    elif source == "-":
        name, paths = "standard input", [_spool(_stdin())]
    elif Path(source).is_dir():
        name = Path(source).resolve().name
        paths, left_out = _texts_of(Path(source), fields)
    elif source == "python-docs":
        return _python_docs(fields)
    elif source.partition(":")[0] in GENERATED:
        return _generated(source, fields)
    else:
        name, paths = source, _files(map(Path, glob.glob(source, recursive=True)))
        if not paths:
            hub = f"; a data set of the hub is hub:{source}" if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else ""
            raise ValueError(f"no file, folder or glob {source!r}, and no text of that name ({', '.join(KNOWN)}){hub}")
    _check_forms(source, paths, fields, encoding)
    return Corpus(name, paths, separator, fields, encoding, left_out)


def _check_forms(source: str, paths: list[Path], fields: tuple[str, ...], encoding: str) -> None:
    """Raise ValueError for a file that is no text, or that holds records without a field of theirs."""
    try:
        for path in paths:
            if form(path, encoding) and not fields:
                raise refuse_records(path, encoding)
    except ValueError as error:
        if source == "-":
            raise ValueError("standard input: " + str(error).replace(str(path), "FILE")) from None
        raise


def known_texts() -> list[str]:
    """Return a line for each text of KNOWN: its name, size, description, origin, and whether it needs a download."""
    lines = []
    for name, text in KNOWN.items():
        here = "here" if not text.url or text.path.exists() else "needs the network"
        lines.append(f"{name:17} {text.size:>7}  {text.description} ({text.origin}); {here}")
    return lines


def _from_hub(source: str, separator: str, sha256: str, fields: tuple[str, ...], encoding: str) -> Corpus:
    """Return a data set of the Hugging Face hub; its text is in the field "text" unless another is named."""
    if sha256:
        raise ValueError(f"a SHA-256 is that of a file or a download, and {source!r} has many files")
    files, (_, _, field) = find_files(source), parse_source(source)
    if field and fields:
        raise ValueError(f"{source} names the field {field!r} itself: leave --field and the like out, or that name")
    name = f"{source} at {files.revision[:12]}"
    return Corpus(name, files, separator, fields or (field or "text",), encoding, files.listing())


def _find_file(source: str, sha256: str) -> Path | None:
    """Return the path of a URL's download or of a file, checked; None if the source is neither."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):  # two letters at least: C:// is a drive
        return download(source, DOWNLOADS / file_name(source), sha256)
    if not Path(source).is_file():
        return None
    check_sha256(Path(source), sha256, source, CHECKSUM_ADVICE)
    return Path(source)


def _texts_of(folder: Path, fields: tuple[str, ...]) -> tuple[list[Path], str]:
    """Return the files of a folder to read, and a line about the others, hidden ones apart. ValueError if none fits."""
    suffixes = RECORDS if len(fields) > 1 else (*PLAIN, *RECORDS) if fields else PLAIN
    files = _files(folder.rglob("*"))
    found = [path for path in files if suffix_of(path) in suffixes]
    others = [path for path in files if suffix_of(path) not in suffixes and not _is_hidden(path.relative_to(folder))]
    kinds = Counter(path.suffix.lower() or path.name for path in others).most_common()
    named = [f"{n:,} {kind}" for kind, n in kinds[:5]] + [f"{len(kinds) - 5} other kinds"] * (len(kinds) > 5)
    if not found:
        names = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        there = f", but {', '.join(named)}" if named else ""
        archive = next((path for path in others if path.name.lower().endswith(ARCHIVES)), None)
        if {"meta.json", "tokenizer.json"} <= {path.name for path in others}:
            raise ValueError(f"{folder} holds prepared data, not text: name the text that it was made of")
        advice = f"--input {archive} unpacks that one" if archive else _way_to(others, folder, fields)
        raise ValueError(f"the folder {folder} holds no {names} file{there}{advice and f'; {advice}'}")
    advice = _way_to(others, folder, fields)
    return found, f"{folder}: left out: {', '.join(named)}{advice and f'; {advice}'}" if others else ""


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _way_to(paths: list[Path], folder: Path, fields: tuple[str, ...]) -> str:
    """Return how the most frequent kind of these files that can be read is read; if none can, why not."""
    refusal = ""
    for kind, _ in Counter(path.suffix.lower() or path.name for path in paths).most_common(5):
        path = next(path for path in paths if kind in (path.suffix.lower(), path.name))
        try:
            if (records := form(path)) and not fields:
                return "--field NAME reads files of records too"
            if records or (len(fields) < 2 and next(read_chunks(path), "")):
                return f'--input "{folder}/**/{"*" * bool(path.suffix)}{kind}" takes those'
        except ValueError as error:  # no text
            refusal = refusal or str(error)
        except OSError:
            pass
    return refusal


def _files(paths: Iterable[Path]) -> list[Path]:
    """Return the files among the paths, sorted; macOS's metadata files ._NAME are left out."""
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("._"))


def _generated(source: str, fields: tuple[str, ...]) -> Corpus:
    """Return the corpus "tales:N:SEED", or another of GENERATED, as lines of a temporary file."""
    kind, _, numbers = source.partition(":")
    found = re.fullmatch(r"(?:(\d{1,6})(?::(\d{1,9}))?)?", numbers, re.ASCII)
    n, seed = (int(found[1] or DEFAULT_TALES), int(found[2] or 0)) if found else (0, 0)
    if not n or source.endswith(":"):
        raise ValueError(f"{source!r}: {kind}:N are N {kind}, from 1 to 999999; {kind}:N:SEED are others")
    generate, how = GENERATED[kind]
    path = _spool(io.BytesIO("".join(generate(n, seed)).encode()), ".jsonl" if how else ".txt")
    name = f"{kind}:{n}:{seed}" + (f" of grammar {GRAMMARS[kind].fingerprint()}" if kind in GRAMMARS else "")
    if how in FORMATS:
        return Corpus(name, [path], format=how)
    return Corpus(name, [path], "\n", fields or how)


def _python_docs(fields: tuple[str, ...]) -> Corpus:
    """Return the reference that help() shows, one document per topic. A single field, whatever its name, means the
    text, so that several inputs can share a --field."""
    from pydoc_data.topics import topics

    text = "".join(json.dumps({"text": topics[topic]}) + "\n" for topic in sorted(topics))
    path = _spool(io.BytesIO(text.encode()), ".jsonl")
    name = f"python-docs of Python {platform.python_version()}"
    return Corpus(name, [path], fields=fields if len(fields) > 1 else ("text",))


def _stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("standard input is a terminal: pipe a text into it, as in `cat book.txt | ...`")
    return sys.stdin.buffer


def _spool(stream: BinaryIO, suffix: str = "") -> Path:
    """Copy a stream to a temporary file, since a corpus is read more than once; it is deleted at exit."""
    with tempfile.NamedTemporaryFile(prefix="input-", suffix=suffix, delete=False) as spool:
        atexit.register(Path(spool.name).unlink, missing_ok=True)
        shutil.copyfileobj(stream, spool)
    return Path(spool.name)


# --- from the command line --------------------------------------------------------------------------------------------


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a text is read: --separator, --encoding, the fields of records, --special_tokens."""
    add = parser.add_argument
    # fmt: off
    add(
        "--separator", default="", type=unescape, metavar="TEXT",
        help="text between the documents of a file, such as '<|endoftext|>' or '\\n\\n' (default: none)",
    )
    add("--encoding", default="utf-8", metavar="NAME", help="of the text, any that Python knows (default: utf-8)")
    add(
        "--field", default="", type=unescape, metavar="NAME",
        help="the field of each record of a .jsonl, .json, .csv, .tsv or .parquet that is a document",
    )
    add(
        "--format", default="", choices=[*FORMATS], metavar="NAME",
        help=f"of conversations, one in each record: {', '.join(FORMATS)}",
    )
    add("--prompt_field", default="", type=unescape, metavar="NAME", help="the field of each record that is the prompt")
    add("--target_field", default="", type=unescape, metavar="NAME", help="the field of each record that is the target")
    add(
        "--special_tokens", nargs="*", metavar="NAME",
        help="read the names of special tokens in the text as these tokens (default: as ordinary text)",
    )
    # fmt: on


def given_text_options(arguments: argparse.Namespace) -> list[str]:
    """Return those of the options of `add_text_options` that are given."""
    named = ("separator", "field", "format", "prompt_field", "target_field")
    given = [name for name in named if getattr(arguments, name)]
    given += ["encoding"] * (arguments.encoding != "utf-8")
    return [f"--{name}" for name in given + ["special_tokens"] * (arguments.special_tokens is not None)]


def open_texts(sources: list[str], arguments: argparse.Namespace, sha256: str = "") -> list[Corpus]:
    """Return the corpora of these sources, read as the options say. ValueError if they contradict each other."""
    pair = tuple(filter(None, (arguments.prompt_field, arguments.target_field)))
    if len(pair) == 1:
        raise ValueError("--prompt_field and --target_field name the two halves of a pair: both are needed")
    if pair and arguments.field:
        raise ValueError("--field names a document, --prompt_field and --target_field a pair: one or the other")
    if pair and arguments.separator:
        raise ValueError("--separator means nothing with --prompt_field: each record is a pair")
    fields = pair or tuple(filter(None, [arguments.field]))
    if arguments.format:
        given = {option.lstrip("-") for option in given_text_options(arguments)} - {"format", "encoding"}
        if given:
            raise ValueError(f"--format reads whole conversations: it cannot be combined with --{min(given)}")
        both = ("", "")  # records only, as for pairs
        found = (open_corpus(source, "", sha256, both, arguments.encoding) for source in sources)
        return [replace(corpus, separator="", fields=(), format=arguments.format) for corpus in found]
    corpora = [open_corpus(source, arguments.separator, sha256, fields, arguments.encoding) for source in sources]
    if len(fields) == 1 and all(suffix_of(path) in PLAIN for corpus in corpora for path in corpus.names):
        raise ValueError(
            f"--field has no effect on {corpora[0].names[0]}, which is read as plain text because of its suffix: "
            f"rename it to .jsonl, .json, .csv or .tsv if it holds records, or leave the option out"
        )
    return corpora
