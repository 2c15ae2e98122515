"""How a file is read, by its name and first bytes: as plain text, as records, or not at all, with the way to a text."""

import csv
import re
import shlex
import zipfile
from pathlib import Path

PLAIN = (".txt", ".md")  # always plain text, unless the bytes say otherwise
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
DELIMITERS = ",;\t|"  # of the fields in a .csv

PANDOC = "pandoc -t plain {file} -o {stem}.txt"
OFFICE = "libreoffice --headless --convert-to {kind} {{file}}"
BY_HAND = "save its texts as .jsonl or .parquet with the program that wrote it"
UNPACK = "unpack it by other means and name the folder"
WEIGHTS = "a model's weights are no text"
NO_TEXT = "it holds no text"
AS_IT_IS = ", or rename it to .txt to train on it as it is"

SIGNATURES = [  # first bytes, what such a file is, the way to a text
    (b"%PDF-", "a PDF", "pdftotext {file} {stem}.txt"),
    (b"{\\rtf", "RTF", PANDOC),
    (b"%!PS", "PostScript", "ps2ascii {file} {stem}.txt"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", OFFICE.format(kind="txt:Text")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a", "a RAR archive", UNPACK),
    (b"SQLite format 3\0", "an SQLite database", 'sqlite3 -header -csv {file} "select * from TABLE" > {stem}.csv'),
    (b"\x93NUMPY", "a NumPy array", BY_HAND),
    (b"\x89HDF", "an HDF5 file", BY_HAND),
    (b"ARROW1", "an Arrow file", BY_HAND),
    (b"Obj\x01", "an Avro file", BY_HAND),
    (b"GGUF", "a GGUF file", WEIGHTS),
    *((b"\x80" + bytes([n]), "a pickle", BY_HAND) for n in (2, 3, 4, 5)),
    *((start, "an image", "tesseract {file} {stem}") for start in (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0")),
    *((start, "sound or video", NO_TEXT) for start in (b"ID3", b"OggS", b"fLaC", b"RIFF", b"\x1aE\xdf\xa3")),
    *((start, "a program", NO_TEXT) for start in (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")),
    *((start, "compressed twice", "decompress it once") for start in (b"\x1f\x8b\x08", b"\xfd7zXZ", b"(\xb5/\xfd")),
]  # fmt: skip
WRITTEN = (b"%PDF-", b"{\\rtf", b"%!PS")  # of ASCII, but no words that begin a text
IN_ZIP = [  # a name in a zip file that tells what it is
    (r"word/", "a Word document", PANDOC),
    (r"xl/", "a spreadsheet", OFFICE.format(kind="csv")),
    (r"ppt/", "a presentation", f"{OFFICE.format(kind='pdf')}, then pdftotext {{stem}}.pdf {{stem}}.txt"),
    (r"META-INF/container\.xml", "an EPUB book", PANDOC),
    (r"content\.xml", "an OpenDocument file", OFFICE.format(kind="txt:Text")),
    (r".*\.npy", "NumPy arrays", BY_HAND),
    (r".*/?data\.pkl", "PyTorch's", WEIGHTS),
    (r"", "a zip archive", "give it a name in .zip, and it is unpacked"),
]
MARKUP = {  # suffix: what it is, the way to a text
    ".html": ("HTML", PANDOC + AS_IT_IS),
    ".xml": ("XML", f"take the text out of its tags{AS_IT_IS}"),
    ".ipynb": ("a notebook", f"jupyter nbconvert --to markdown {{file}}{AS_IT_IS}"),
}
ALIASES = {".htm": ".html", ".xhtml": ".html", ".svg": ".xml", ".ndjson": ".jsonl"}
CONTENT = {  # how a file without a telling name begins
    r"\s*<(!doctype html|html\b)": ".html",
    r"\s*<\?xml\b": ".xml",
    r'\s*\{\s*"[^"\n]*"\s*:': ".json",
    r'\s*\[\s*\{\s*"[^"\n]*"\s*:': ".json",
}


def suffix_of(path: Path) -> str:
    """Return the suffix in lower case, without that of a compression such as .gz."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def form_of(path: Path, head: bytes, encoding: str = "utf-8") -> str:
    """Return how a file is read whose content, decompressed, begins with `head`: as one of RECORDS, or "" as text.

    ValueError for a file that is neither: it names the command that makes a text of it.
    """
    for start, kind, advice in SIGNATURES:
        if head.startswith(start) and (start in WRITTEN or not start.isascii() or b"\0" in head):
            raise _refusal(path, kind, advice)
    if head.startswith(b"PK\x03\x04"):
        raise _refusal(path, *_kind_of_zip(path))
    if head[257:262] == b"ustar":
        raise _refusal(path, "a tar archive", "give it a name in .tar, and it is unpacked")
    if head.startswith(b"MZ") and b"\0" in head:
        raise _refusal(path, "a program", NO_TEXT)
    if head.startswith(b"PAR1"):
        return ".parquet"
    suffix = suffix_of(path)
    suffix = ALIASES.get(suffix, suffix)
    if suffix not in (*PLAIN, *RECORDS, *MARKUP):
        text = head.decode(encoding, errors="ignore").removeprefix("\ufeff")
        suffix = next((found for start, found in CONTENT.items() if re.match(start, text, re.I)), "")
        if not suffix_of(path) and not suffix and _is_table(text):
            suffix = ".csv"
    if suffix in MARKUP:
        raise _refusal(path, *MARKUP[suffix])
    return suffix if suffix in RECORDS else ""


def _is_table(text: str) -> bool:
    """Return whether a text begins as a .csv or .tsv does: a line of names, then lines of as many fields."""
    lines = [f"{line}\n" for line in text.replace("\r", "").split("\n")[:-1]]  # the last one may be cut
    for delimiter in DELIMITERS:
        rows = list(csv.reader(lines, delimiter=delimiter))
        names = rows[0] if len(rows) > 3 else []
        if len(names) > 1 and all(re.fullmatch(r"\w+([ .-]\w+)?", name) for name in names):
            return {len(row) for row in rows[1:-1]} == {len(names)}
    return False


def _refusal(path: Path, kind: str, advice: str) -> ValueError:
    advice = advice.format(file=shlex.quote(str(path)), stem=shlex.quote(str(path.with_suffix(""))))
    return ValueError(f"{path} is {kind}, not plain text: {advice}")


def _kind_of_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    for start, kind, advice in IN_ZIP:
        if any(re.match(start, name) for name in names):
            return kind, advice
    return IN_ZIP[-1][1:]
