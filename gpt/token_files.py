"""Prepared data: the folder that gpt/text/prepare.py writes, with memory-mapped token files and their tokenizer.

This file must not import PyTorch, which takes longer to import than a book takes to prepare.

Notebook: 03_batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from gpt.system.files import read_checksummed, sha256
from gpt.system.shards import ADVICE, ShardedArray, find, open_split
from gpt.tokenizer import Tokenizer, load_tokenizer

FORMAT, SHARDED = 3, 4  # version of the folder's layout: with one file per split, with several of a split
COUNTED, START = 1, 2  # bits of a token's flags: it is a target that counts in the loss; a conversation begins with it


@dataclass(frozen=True)
class TokenFile:
    """One split: its memory-mapped tokens, and the number of documents, characters and UTF-8 bytes they encode."""

    path: Path  # of several files the one that they are parts of, which is not there
    tokens: np.ndarray | ShardedArray
    documents: int
    characters: int
    bytes: int  # of conversations those of the text that counts
    sha256: str
    flags: np.ndarray | ShardedArray | None = None  # of conversations: COUNTED and START of each token, uint8


@dataclass(frozen=True)
class PreparedData:
    """A training split, a validation split and their tokenizer."""

    folder: Path
    source: str
    tokenizer: Tokenizer
    has_eot: bool  # an end-of-text token before and after each document
    train: TokenFile
    val: TokenFile
    paired: bool = False  # documents alternate between prompt and target
    preferences: bool = False  # conversations alternate between one whose last answer is chosen and one rejected
    reversed: bool = False  # tokens are in reverse order
    sources: tuple[dict, ...] = ()  # with several inputs: name, weight and training characters of each

    @property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of each split."""
        return {"train": self.train.sha256, "val": self.val.sha256}

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the validation text per predicted token; it converts a loss per token to one per byte."""
        if self.val.flags is not None:
            return self.val.bytes / np.count_nonzero(self.val.flags & COUNTED)
        return self.val.bytes / (len(self.val.tokens) - self.has_eot)  # the first end-of-text token is not predicted

    def documents(self, split: TokenFile) -> Iterator[str]:
        """Yield the text of each document of a split, in file order; the whole text if has_eot is False."""
        tokens, order, starts = split.tokens, -1 if self.reversed else 1, iter([0])
        if split.flags is not None:
            starts = find(split.flags, lambda flags: flags & START)
        elif self.has_eot:
            starts = (place + 1 for place in find(tokens, lambda part: part == self.tokenizer.eot_id))
        for start, end in pairwise(chain(starts, [len(tokens)] * (not self.has_eot))):
            yield self.tokenizer.decode(tokens[start : end - self.has_eot][::order].tolist())


def load_data(folder: str | Path, verify: bool = False) -> PreparedData:
    """Load a prepared folder; its tokens stay on disk, memory-mapped.

    ValueError if the folder or a file is missing, if meta.json or the tokenizer has changed, or if a token file
    does not have the length in meta.json. `verify` also checks the SHA-256 of the token files: of a small split now, of
    a large one once on this machine, of its shards when they are first read.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file, not prepared data: python scripts/prepare_data.py --input {folder} --out data/NAME, "
            f"then data.path is data/NAME"
        )
    if not (folder / "meta.json").is_file():
        raise ValueError(
            f"no prepared data in {folder}: python scripts/prepare_data.py --input TEXT --tokenizer NAME --out {folder}"
        )
    meta = read_checksummed(folder / "meta.json", ADVICE)
    if meta["format"] not in (FORMAT, SHARDED):
        raise ValueError(f"{folder} has format {meta['format']}, this version reads {FORMAT} and {SHARDED}: {ADVICE}")
    tokenizer_path = folder / "tokenizer.json"
    if not tokenizer_path.is_file() or sha256(tokenizer_path) != meta["tokenizer_sha256"]:
        raise ValueError(f"{tokenizer_path} is missing or has changed since it was written: {ADVICE}")
    splits = []
    for name in ("train", "val"):
        (tokens, flags, digest), count = open_split(folder, name, meta, verify), meta[name]
        sizes = count["documents"], count["characters"], count["bytes"]
        splits.append(TokenFile(folder / f"{name}.bin", tokens, *sizes, digest, flags))
    return PreparedData(
        folder, meta["source"], load_tokenizer(tokenizer_path), meta["has_eot"], *splits,
        meta.get("paired", False), meta.get("preferences", False), sources=tuple(meta.get("sources", ())),
    )  # fmt: skip
