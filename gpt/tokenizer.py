"""Text to token ids and back: GPT-2's tokens, characters, byte pairs, or a published model's tokens.

    tokenizer = load_tokenizer("gpt2")               # 50,257 tokens, no download
    tokenizer = CharTokenizer(text)                  # one token per distinct character of the text

gpt/text/bpe.py learns byte pairs from a corpus; gpt/text/tokenizers.py has `get_tokenizer`, which knows all of them.
`<|endoftext|>` inside a text is ordinary text unless the caller passes `special=True`.

Notebook: 02_tokens.
"""

import copy
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from gpt.system.errors import import_extra
from gpt.system.text import check_text, chunk_text, gpt2_vocabulary, normalize, piece_bytes, split_at_names, unspell

EOT = "<|endoftext|>"

# GPT-2's rule for splitting text into words before any merge (Radford et al. 2019, section 2.2): English contractions,
# then letters, digits or other signs, each with one leading space, then runs of white space.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class Tokenizer:
    """Base class: ordinary tokens, which are byte strings, and special tokens, which no text contains by accident.

    `special_tokens` maps names to ids. `eot_id` ends a text (None: there is no such token), and `bos_id` comes before
    one: the same token, unless the model has its own. `chat_template` is read by gpt/text/chat.py. Ids from
    `base_vocab_size` on were added by `with_special_tokens`; `saved` is the content of tokenizer.json without them.
    """

    def __init__(self, name: str, tokens: Iterable[tuple], special_tokens: dict[str, int], saved: dict[str, Any]):
        tokens = list(tokens)
        used = {i for _, i in tokens} | set(special_tokens.values())
        special_tokens = special_tokens | {f"<|unused {i}|>": i for i in range(max(used)) if i not in used}
        tokens += [(name.encode(), i) for name, i in special_tokens.items()]
        self.name, self.saved, self.special_tokens = name, {}, special_tokens
        self.vocab_size = self.base_vocab_size = len(tokens)
        if len(tokens) != max(used) + 1:
            raise ValueError(f"the ids of the tokenizer {name} are not 0 to {max(used)}, each of one token")
        self._bytes = [token for token, _ in sorted(tokens, key=lambda token: token[1])]
        self._add_to_saved(saved)

    def _add_to_saved(self, content: dict[str, Any]) -> None:
        self.saved = self.saved | content
        self.eot_id = self.special_tokens.get(self.saved.get("eot", EOT))
        self.bos_id = self.special_tokens.get(self.saved.get("bos"), self.eot_id)
        self.chat_template: str | None = self.saved.get("chat_template")

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the token ids. With `special`, the names of special tokens in the text become these tokens.

        Raises ValueError for text that the vocabulary cannot express: an unknown character, a lone surrogate.
        """
        parts = split_at_names(text, self.special_tokens, self.saved) if special else [text]
        ids = ([part] if isinstance(part, int) else self.encode_to_numpy(part).tolist() for part in parts)
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
        super().__init__("char", tokens.items(), eot, {"kind": "char", "characters": "".join(self.characters), **flag})
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
            raise ValueError(f"{named} is not among the characters of this tokenizer: leave it out, or use gpt2 or bpe")
        return ids


class BytePairTokenizer(Tokenizer):
    """Byte pairs, encoded by tiktoken's engine: GPT-2's merges, our own, or another model's.

    `ranks` maps the bytes of each token to its id, in the order of the merges. Bytes without a token of their own are
    dropped from a text, as by published models. `saved` may name another `pattern` of words and a Unicode `normalizer`.
    """

    def __init__(self, name: str, ranks: dict[bytes, int], special_tokens: dict[str, int], saved: dict[str, Any]):
        super().__init__(name, ranks.items(), special_tokens, saved)
        self.ranks = ranks
        every_byte = {bytes([byte]): self.vocab_size + byte for byte in range(256)}  # tiktoken needs them all
        pattern = saved.get("pattern", GPT2_PATTERN)
        self._engine = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=every_byte | ranks, special_tokens={})

    @classmethod
    def from_merges(cls, merges: list[tuple[int, int]]) -> "BytePairTokenizer":
        """Return the tokenizer whose ids 0-255 are the bytes and whose id 256 + k is the k-th merged pair."""
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        ranks, saved = {token: i for i, token in enumerate(tokens)}, {"kind": "bpe", "merges": [*map(list, merges)]}
        return cls(f"bpe:{len(tokens) + 1}", ranks, {EOT: len(ranks)}, saved)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Return the token ids, uint32. Raises ValueError for a lone surrogate. Other threads run meanwhile."""
        text = normalize(check_text(text), self.saved.get("normalizer"))
        # in pieces: tiktoken's matcher backtracks over white space and takes quadratic time over one endless word
        ids = np.concatenate([self._engine.encode_to_numpy(part, disallowed_special=()) for part in chunk_text(text)])
        return ids[ids < self.base_vocab_size]


class HuggingFaceTokenizer(Tokenizer):
    """Byte pairs by other rules, such as SentencePiece's, run by Hugging Face's library `tokenizers`.

    `saved["file"]` is the content of its tokenizer.json. SentencePiece writes a space before a text; `decode` drops it.
    """

    def __init__(self, saved: dict[str, Any]):
        Engine = import_extra("tokenizers", "it needs the library tokenizers", "tokenizers").Tokenizer
        file = saved["file"]
        special = {token["content"]: token["id"] for token in file["added_tokens"]}
        self._byte_level = "ByteLevel" in json.dumps(file["decoder"])
        as_bytes = unspell if self._byte_level else piece_bytes
        tokens = [(as_bytes(token), i) for token, i in file["model"]["vocab"].items() if token not in special]
        super().__init__("hugging_face", tokens, special, saved)
        self._with_special, self._names = Engine.from_str(json.dumps(file)), self.special_tokens
        self._engine = Engine.from_str(json.dumps(file | {"added_tokens": []}))  # their names are ordinary text to it

    def encode(self, text: str, special: bool = False) -> list[int]:
        """As in the base class, but a text has one space before it, however many special tokens divide it."""
        if not special:
            return super().encode(text)
        if self._names is not self.special_tokens:  # with_special_tokens has added some to this copy
            self._names, self._with_special = self.special_tokens, copy.deepcopy(self._with_special)
            self._with_special.add_special_tokens(self.added_tokens)
        return self._with_special.encode(check_text(text), add_special_tokens=False).ids

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Return the token ids, uint32. Raises ValueError for a lone surrogate."""
        return np.array(self._engine.encode(check_text(text), add_special_tokens=False).ids, np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text, as in the base class."""
        return super().decode(ids).removeprefix("" if self._byte_level else " ")


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
    """Return the tokenizer of a run or of prepared data, or GPT-2's for "gpt2". ValueError for a damaged file."""
    if path == "gpt2":
        return from_dict({"kind": "gpt2"})
    if not Path(path).is_file():
        raise ValueError(f"no tokenizer file {path}")
    try:
        tokenizer = from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        tokenizer.bos_id = tokenizer.eot_id  # the token before each document in the data
        return tokenizer
    except Exception as error:  # a damaged file may raise any
        raise ValueError(
            f"{path} is not a saved tokenizer: {error if type(error) is ValueError else 'it is damaged'}"
        ) from None


def from_dict(saved: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer whose `to_dict` is `saved`."""
    kind = saved["kind"]
    if kind == "gpt2":
        tokens = gpt2_vocabulary()
        special_tokens = {EOT: tokens.pop(EOT)}
        ranks = {unspell(token): i for token, i in tokens.items()}
        tokenizer = BytePairTokenizer("gpt2", ranks, special_tokens, saved)
    elif kind == "char":
        tokenizer = CharTokenizer(saved["characters"], saved.get("end_of_text", False))
    elif kind == "bpe":
        tokenizer = BytePairTokenizer.from_merges([tuple(merge) for merge in saved["merges"]])
    elif kind == "byte_pairs":
        ranks = {unspell(token): i for token, i in saved["tokens"].items()}
        tokenizer = BytePairTokenizer(kind, ranks, saved["named"], saved)
    elif kind == "hugging_face":
        tokenizer = HuggingFaceTokenizer(saved)
    else:
        raise ValueError(f"unknown kind {kind!r}")
    tokenizer = with_special_tokens(tokenizer, saved.get("special_tokens", []))
    tokenizer._add_to_saved({key: value for key, value in saved.items() if key != "special_tokens"})
    return tokenizer
