"""A file's bytes as text or as records: decompressed, decoded, in chunks, so that a text may be larger than memory."""

import bz2
import codecs
import csv
import difflib
import encodings.aliases
import gzip
import itertools
import json
import lzma
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, KeysView
from pathlib import Path
from typing import Any, BinaryIO

from gpt.system.text import last_word_break
from gpt.text.formats import DELIMITERS, form_of

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 12  # tell what a file is
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which UTF-8 cannot write
ENCODING_ADVICE = (
    "name its encoding, as in --encoding latin-1 (or utf-16, gb18030, shift_jis, cp1256), or convert it to UTF-8"
)
JSON_TYPES = {str: "a text", int: "a number", float: "a number", bool: "true or false"}
csv.field_size_limit(2**31 - 1)  # characters; a document may be longer than csv's 131,072


# --- bytes ------------------------------------------------------------------------------------------------------------

COMPRESSIONS = {  # suffix: first bytes, how it is opened
    ".gz": (b"\x1f\x8b\x08", gzip.open),
    ".bz2": (b"BZh91AY&SY", bz2.open),
    ".xz": (b"\xfd7zXZ\0", lzma.open),
    ".zst": (b"\x28\xb5\x2f\xfd", None),
}


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed if its name or its first bytes say so, about CHUNK_BYTES at a time."""
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        named = (kind for kind, (magic, _) in COMPRESSIONS.items() if start.startswith(magic))
        kind = next(named, path.suffix.lower() if start else "")
        try:
            if kind == ".zst":
                yield from _zst_blocks(path, file)
                return
            opened = COMPRESSIONS[kind][1](file) if kind in COMPRESSIONS else file
            while block := opened.read(CHUNK_BYTES):
                yield block
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno:  # such as a failing disk
                raise
            raise ValueError(f"{path} is damaged, cut short, or not a {kind} file ({error}): get it again") from None


def _zst_blocks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of a .zst, of one frame or several. EOFError if it is damaged or cut short."""
    try:
        import zstandard
    except ImportError:
        raise ValueError(f'{path} needs the library zstandard: pip install -e ".[zstd]"') from None
    frame, whole = None, True
    while data := file.read(CHUNK_BYTES // 16 or 1):
        while data:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise EOFError(error) from None
            whole, data = frame.eof, frame.unused_data
            frame = None if whole else frame
    if not whole:
        raise EOFError("it ends within a frame")


def form(path: Path, encoding: str = "utf-8") -> str:
    """Return how a file is read, as `formats.form_of` says of its first bytes. ValueError for no plain text."""
    head = b""
    for block in _blocks(path):
        head += block
        if len(head) >= HEAD_BYTES:
            break
    return form_of(path, head[:HEAD_BYTES], encoding)


# --- text -------------------------------------------------------------------------------------------------------------


def find_encoding(name: str) -> str:
    """Return Python's name of a text encoding. ValueError for an unknown one, or one that is not of text (base64)."""
    try:
        codec = codecs.lookup(name)
        "text".encode(codec.name)
        return codec.name
    except (LookupError, ValueError):
        names = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()} - {name}
        near = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(names), n=1)
        advice = f"did you mean {near[0]}?" if near else "Python knows utf-8, latin-1, utf-16, gb18030 and many more"
        raise ValueError(f"unknown encoding {name!r}: {advice}") from None


def read_chunks(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield a text file, decompressed, as strings of about CHUNK_BYTES, cut at word ends, with \\n as line end.

    ValueError names the file if it is not text. (Python's text mode takes three times as long: it decodes blocks of
    8 KB and searches them for line ends.)
    """
    utf8 = encoding == "utf-8"
    decoder = codecs.getincrementaldecoder("utf-8-sig" if utf8 else encoding)()  # drops a byte order mark
    pending = carriage_return = ""
    n_bytes, is_ascii = 0, True
    for block in itertools.chain(_blocks(path), [b""]):
        n_bytes += len(block)
        try:
            text = carriage_return + decoder.decode(block, final=not block)
        except UnicodeError as error:
            raise _not_text(path, encoding, error, n_bytes, is_ascii) from None
        if "\0" in text:
            raise ValueError(f"{path} holds NUL bytes, like a binary file or UTF-16 read as UTF-8: {ENCODING_ADVICE}")
        carriage_return = "\r" if block and text.endswith("\r") else ""  # its \n may come with the next block
        if "\r" in text:
            text = text.removesuffix(carriage_return).replace("\r\n", "\n").replace("\r", "\n")
        is_ascii = is_ascii and text.isascii()
        pending += text
        cut = last_word_break(pending) if block else len(pending)
        if len(pending) > 16 * CHUNK_BYTES:  # no space in 16 million characters
            cut = cut or len(pending)
        if cut:
            yield pending[:cut]
            pending = pending[cut:]


def _not_text(path: Path, encoding: str, error: UnicodeError, end: int, is_ascii: bool) -> ValueError:
    """Return the error for bytes that cannot be decoded, in a file read up to `end`, of ASCII so far or not."""
    where, advice = str(error), ENCODING_ADVICE
    if isinstance(error, UnicodeDecodeError):  # not UTF-16 without a byte order mark
        before, place = error.object[: error.start], end - len(error.object) + error.start
        where = f"byte {error.object[error.start]:#04x} at {place:,}"
        if place == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            advice = "it begins as UTF-16 does: --encoding utf-16"
        elif encoding == "utf-8" and not (is_ascii and before.removeprefix(codecs.BOM_UTF8).isascii()):
            advice = "what comes before is UTF-8, so it mixes encodings: repair it, or drop what is not UTF-8 by "
            advice += f"iconv -c -f utf-8 -t utf-8 {path} > repaired.txt"
    return ValueError(f"{path} is not {'UTF-8' if encoding == 'utf-8' else encoding} text ({where}): {advice}")


def split_at(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """Yield the texts between separators, stripped of white space; empty ones are skipped."""
    parts = [""]  # of the current text; the last one holds characters that may begin a separator
    for chunk in chunks:
        *texts, rest = (parts.pop() + chunk).split(separator)
        if texts:
            texts[0] = "".join([*parts, texts[0]])
            parts = []
            yield from (text.strip() for text in texts if text.strip())
        cut = max(len(rest) - len(separator) + 1, 0)
        parts += [rest[:cut], rest[cut:]]
    if text := "".join(parts).strip():
        yield text


# --- records ----------------------------------------------------------------------------------------------------------


def read_fields(path: Path, fields: tuple[str, ...], encoding: str = "utf-8") -> Iterator[str]:
    """Yield the texts of `fields` (names, or templates with {name}) of each record of a file.

    A name with dots leads into objects and lists: "translation.en", "turns.0.value". Numbers, true and false are
    written as in JSON; line ends become \\n. ValueError names the record that lacks a field, or the type of one that is
    no text.
    """
    templates = [parse_template(field) for field in fields]
    names = {name: "" for template in templates for _, name in template if name}.keys()
    for n, record in enumerate(read_records(path, names, encoding), start=1):
        texts = {name: _text(record, name, f"record {n} of {path}") for name in names}
        for template in templates:
            yield "".join(texts[name] if name else text for text, name in template)


def parse_template(field: str) -> list[tuple[str, str]]:
    """Parse a field into parts, each (text, "") or ("", name of a field). Without any {name} it is a name itself."""
    parts = re.findall(r"(\{\{|\}\}|[^{}]+)|\{([^{}]+)\}|([{}])", field)
    if not any(name for _, name, _ in parts):
        return [("", field)]
    if any(lone for *_, lone in parts):
        raise ValueError(f"the template {field!r} has a lone brace: {{{{ and }}}} stand for braces")
    return [(text.replace("{{", "{").replace("}}", "}"), name) for text, name, _ in parts]


def refuse_records(path: Path, encoding: str = "utf-8") -> ValueError:
    """Return the error for a file of records without a field: it names the fields and the options."""
    record = next(read_records(path, {}.keys(), encoding), {})
    if isinstance(record, str):
        return ValueError(
            f'{path} is a list of texts, not of records: write each as an object, {{"text": ...}}, and add --field text'
        )
    if isinstance(record, list) and record:
        record = {str(i): value for i, value in enumerate(record)}
    if not isinstance(record, dict) or not record:
        return ValueError(f"{path} holds no records: there is nothing to read")
    if advice := conversation_advice(record):
        return ValueError(f"{path} holds conversations: {advice}")
    name = "text" if "text" in record else max(record, key=lambda name: len(str(record[name])))
    return ValueError(
        f"{path} holds records with the fields {', '.join(record)[:200]}: name the field that is the text "
        f"(--field {shlex.quote(name[:200])}), or two of a pair (--prompt_field and --target_field)"
    )


def conversation_advice(record: Any) -> str:
    """Return how a record is read that looks like a conversation, or ""."""
    found = record if isinstance(record, dict) else {}
    forms = [
        form for form, key in {"messages": "messages", "sharegpt": "conversations"}.items() if _is_turns(found, key)
    ]
    forms += ["preferences"] * ({"chosen", "rejected"} <= found.keys())
    return f"--format {forms[0]} reads them whole, and only what the assistant says is learned" if forms else ""


def _is_turns(record: dict[str, Any], key: str) -> bool:
    turns = record.get(key)
    return _is_array(turns) and ({"role", "content"} <= turns[0].keys() or {"from", "value"} <= turns[0].keys())


def _text(record: Any, name: str, where: str) -> str:
    """Return the text of a record's field."""
    value, there = record, record
    for key in [name] if isinstance(record, dict) and name in record else name.split("."):
        there = value
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise ValueError(f"{where} has no field {name!r}, but: {describe_value(there).removeprefix('the fields ')}")
    if isinstance(value, bool | int | float) and value == value:  # not NaN
        return json.dumps(value)
    if not isinstance(value, str):
        advice = conversation_advice(record) or _way_out(name, value)
        raise ValueError(f"{where} has no text in {name!r}, but {describe_value(value)}: {advice}")
    if LONE_SURROGATE.search(value):
        raise ValueError(f"{where} has half a character, a lone surrogate, in {name!r}")
    return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value


def describe_value(value: Any) -> str:
    """Return a value in words: its type, and the fields of an object."""
    if isinstance(value, dict):
        return f"the fields {', '.join(map(str, value))[:200]}" if value else "no fields at all"
    if isinstance(value, list):
        kinds = {"turns" if isinstance(item, dict) else "texts" if isinstance(item, str) else "" for item in value}
        return f"a list of {len(value)} {kinds.pop() if len(kinds) == 1 else ''}".rstrip()
    return "null" if value is None or value != value else JSON_TYPES.get(type(value), f"a {type(value).__name__}")


def _way_out(name: str, value: Any) -> str:
    if isinstance(value, list) and value:
        inner = [key for key, text in value[0].items() if isinstance(text, str)] if isinstance(value[0], dict) else []
        return f"name one of them, as in {'.'.join([name, '0', *inner[-1:]])}, or join them to a text beforehand"
    if isinstance(value, dict) and value:
        return f"name one of these, as in {name}.{next(iter(value))}"
    return "leave such records out, or give them a text"


def read_records(path: Path, names: KeysView[str], encoding: str, others: bool = False) -> Iterator[Any]:
    """Yield the records of a file, dictionaries unless the file is wrong; `names` are those that will be read, and with
    `others` further ones where there are any."""
    kind = form(path, encoding)
    if kind == ".parquet":
        return _parquet_rows(path, {}.keys() if others else names)
    if not kind:  # standard input, or a .txt of pairs: by its content
        first = next(read_chunks(path, encoding), "").lstrip()[:1]
        kind = ".json" if first in ("{", "[") else ".csv"
    if kind in (".csv", ".tsv"):
        return _table_rows(path, kind, names, encoding)
    return _json_records(path, kind, names, encoding)


def _json_records(path: Path, kind: str, names: KeysView[str], encoding: str) -> Iterator[Any]:
    """Yield the records of JSON lines, or of one JSON text: an array, an object that holds one, or a single object."""
    lines = split_at(read_chunks(path, encoding), "\n")
    first, second = next(lines, ""), next(lines, "")
    if not first:
        return
    if (first.startswith("[") or kind == ".json") and not (second and _is_json(first)):
        whole = _parse("\n".join(itertools.chain([first, second], lines)), path)
        if isinstance(whole, dict) and all(isinstance(value, dict) and "0" in value for value in whole.values()):
            raise ValueError(f"{path} holds columns, not records: write it by to_json(orient='records') of pandas")
        arrays = [value for value in whole.values() if _is_array(value)] if isinstance(whole, dict) else [whole]
        if len(arrays) > 1 and names.isdisjoint(whole):
            there = ", ".join(key for key, value in whole.items() if _is_array(value))
            raise ValueError(f"{path} holds several arrays ({there[:200]}): save the one to read by itself")
        yield from arrays[0] if arrays and names.isdisjoint(whole if isinstance(whole, dict) else ()) else [whole]
        return
    for n, line in enumerate(itertools.chain(filter(None, [first, second]), lines), start=1):
        yield _parse(line, path, f"record {n} of ")


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_json(line: str) -> bool:
    try:
        _parse(line, Path())
    except ValueError:
        return False
    return True


def _parse(text: str, path: Path, record: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{record}{path} is not JSON: {text[:40]!r} ({error})") from None


def _table_rows(path: Path, kind: str, names: KeysView[str], encoding: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a .csv or .tsv by the names in its first line. ValueError if a row does not fit them."""
    lines = _lines(read_chunks(path, encoding))
    first = next(lines, "")
    rows_by = {delimiter: csv.reader([first], delimiter=delimiter) for delimiter in DELIMITERS}
    delimiter = "\t" if kind == ".tsv" else max(DELIMITERS, key=lambda delimiter: len(next(rows_by[delimiter], ())))
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    n = 0
    try:
        header = [name.strip() for name in next(rows, [])]
        if twice := [name for name in names if header.count(name) > 1]:
            raise ValueError(f"{path} has the field {twice[0]!r} twice in its first line: rename one of them")
        if header and (missing := [name for name in names if name not in header]):
            raise ValueError(f"{path} has no field {missing[0]!r}, but in its first line: {', '.join(header)[:200]}")
        for row in filter(None, rows):
            n += 1
            if len(row) > len(header):
                raise ValueError(
                    f"record {n} of {path} has {len(row)} fields, its first line {len(header)} "
                    f"({', '.join(header)[:200]}): a text that holds {delimiter!r} needs quotes around it"
                )
            yield dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise ValueError(
            f"record {n + 1} of {path} has wrong quotes ({error}): a text that begins with a quote needs quotes around "
            f"it, and those inside doubled"
        ) from None


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield lines with their \\n."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _parquet_rows(path: Path, names: KeysView[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .parquet file, only the columns that `names` need, or all."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'{path} needs the library pyarrow: pip install -e ".[parquet]"') from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            needed = {name if name in there else name.partition(".")[0] for name in names}
            for batch in file.iter_batches(1024, columns=sorted(needed) if needed and needed <= {*there} else None):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a .parquet file that can be read here ({str(error)[:80]})") from None
