"""Any tokenizer by name: GPT-2's, one learned from texts, or a file of this project or of Hugging Face."""

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path

from gpt.text.bpe import train_bpe
from gpt.text.gguf_tokenizer import from_gguf
from gpt.text.hf_tokenizer import END_OF_TEXT
from gpt.text.tokenizer_files import load_any_tokenizer
from gpt.tokenizer import EOT, CharTokenizer, Tokenizer, from_dict, load_tokenizer, with_special_tokens

END_NAMES = (*END_OF_TEXT, "<eos>", "<EOS>", "[EOS]", "<|eos|>")  # of tokens that end a text


def get_tokenizer(name: str, texts: Iterable[str] | None = None) -> Tokenizer:
    """Return the tokenizer called `name`: "gpt2", "smollm2", "char", "bpe:N" (N tokens), or a path to a saved one.

    "char" and "bpe:N" are learned from `texts`, strings that are read once, in order (pass [text] for a single one).
    A path leads to a tokenizer.json of this project or of Hugging Face, to a folder that holds one, or to a .gguf file.
    Raises ValueError for an unknown name, for missing texts and for a damaged file.
    """
    if is_learned(name):
        if texts is None or isinstance(texts, str):
            raise ValueError(f"tokenizer {name!r} is learned from a corpus: get_tokenizer({name!r}, [text])")
        size = name.partition(":")[2]
        return train_bpe(texts, int(size)) if size else CharTokenizer(itertools.chain.from_iterable(texts))
    if name == "gpt2":
        return load_tokenizer(name)
    if name == "smollm2" or name.endswith(".gguf"):
        from gpt.system.gguf import GGUFFile, smollm2_file  # which import PyTorch

        file = GGUFFile(smollm2_file() if name == "smollm2" else name)
        try:
            return from_gguf(file.metadata)
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from None
    with contextlib.suppress(OSError):  # a text in place of a name is too long for a path
        if name.endswith(".json") or Path(name).exists():
            return load_any_tokenizer(name)
    raise ValueError(f"unknown tokenizer {name!r}: gpt2, smollm2, char, bpe:N, or a path to a tokenizer.json")


def is_learned(name: str) -> bool:
    """Return whether the tokenizer of this name is learned from texts. ValueError for "bpe" without a number."""
    kind, _, size = name.partition(":")
    if kind == "bpe" and (not size.isdecimal() or int(size) < 257):
        raise ValueError(f"tokenizer {name!r}: bpe takes the number of tokens, at least 257, as in bpe:4096")
    return kind == "bpe" or name == "char"


def with_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that can end a text: by a token that it has, or by <|endoftext|>, added after its tokens."""
    if tokenizer.eot_id is not None:
        return tokenizer
    if own := next((name for name in END_NAMES if name in tokenizer.special_tokens), None):
        return from_dict(tokenizer.to_dict() | {"eot": own})
    if isinstance(tokenizer, CharTokenizer) and not tokenizer.added_tokens:
        return CharTokenizer(tokenizer.characters, end_of_text=True)
    return from_dict(with_special_tokens(tokenizer, [EOT]).to_dict())  # as load_tokenizer will read it


def without_unused(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer without the last of its tokens that are named as unused, so that new ones take their ids."""
    added = tokenizer.added_tokens
    while added and added[-1] == f"<|unused {tokenizer.base_vocab_size + len(added) - 1}|>":
        added.pop()
    return from_dict(tokenizer.to_dict() | {"special_tokens": added}) if tokenizer.added_tokens else tokenizer
