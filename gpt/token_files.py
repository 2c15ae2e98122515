"""A prepared folder as gpt/text/prepare.py wrote it: its token files, memory-mapped, and their tokenizer.

Nothing here needs PyTorch, whose import takes longer than a book takes to prepare.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from gpt.system.files import read_checksummed, sha256
from gpt.tokenizer import Tokenizer, load_tokenizer

FORMAT = 3  # of a prepared folder


@dataclass(frozen=True)
class TokenFile:
    """A memory-mapped split of a prepared folder, and how many documents, characters and bytes its tokens were."""

    path: Path
    tokens: np.ndarray
    documents: int
    characters: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PreparedData:
    """A folder that gpt/text/prepare.py wrote: tokenizer, training split and validation split."""

    folder: Path
    source: str
    tokenizer: Tokenizer
    has_eot: bool  # documents stand between end-of-text tokens
    train: TokenFile
    val: TokenFile
    paired: bool = False  # each two documents are a prompt and its target
    reversed: bool = False  # the tokens stand in reverse order
    sources: tuple[dict, ...] = ()  # of several inputs: name, weight, and characters written for training

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of both splits: two folders with the same sums hold the same tokens."""
        return {"train": self.train.sha256, "val": self.val.sha256}

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the validation text per token that is predicted: a loss over it gives the loss per byte."""
        return self.val.bytes / (len(self.val.tokens) - self.has_eot)  # the first end-of-text token is not predicted

    @cached_property
    def train_texts(self) -> frozenset[str]:
        """The training documents, to look up what is new."""
        return frozenset(self.documents(self.train))

    def documents(self, split: TokenFile) -> Iterator[str]:
        """The texts of a split's documents, each from its beginning, in the order of the tokens; of a split that is not
        separated, the one text."""
        tokens, order = split.tokens, -1 if self.reversed else 1
        if not self.has_eot:
            yield self.tokenizer.decode(tokens[::order].tolist())
            return
        for start, end in pairwise(np.flatnonzero(tokens == self.tokenizer.eot_id).tolist()):
            yield self.tokenizer.decode(tokens[start + 1 : end][::order].tolist())


def describe(data: PreparedData) -> str:
    """What a prepared folder holds, in a few lines."""
    lines = [f"{data.source} -> {data.folder}, tokenizer {data.tokenizer.name} of {data.tokenizer.vocab_size:,} tokens"]
    for source in data.sources:
        share = source["characters"] / sum(other["characters"] for other in data.sources)
        lines.append(f"  {source['name']}: weight {source['weight']:g}, {share:.1%} of the training characters")
    for split in (data.train, data.val):
        lines.append(
            f"{split.path.stem:>5}: {len(split.tokens):,} tokens, {split.characters:,} characters, {split.bytes:,} "
            f"bytes ({split.bytes / len(split.tokens):.2f} per token), documents: {split.documents:,}"
        )
    return "\n".join(lines)


def load_data(folder: str | Path, verify: bool = False) -> PreparedData:
    """The tokens and the tokenizer of a prepared folder, memory-mapped.

    ValueError where the folder or a file is missing, of another length than was written or, with `verify`, of other
    content (by SHA-256).
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file, not prepared data: python scripts/prepare_data.py --input {folder} --out data/NAME, "
            f"then data.path is data/NAME"
        )
    if not (folder / "meta.json").is_file():
        raise ValueError(
            f"no prepared data in {folder}: python scripts/prepare_data.py --input TEXT --tokenizer gpt2 --out {folder}"
        )
    try:
        meta = read_checksummed(folder / "meta.json", "prepare the data anew")
        if meta["format"] != FORMAT:
            raise ValueError(
                f"{folder} was prepared in format {meta['format']}, this version reads {FORMAT}: prepare the data anew"
            )
        meta = {"paired": False, "sources": [], **meta}  # older folders do not say
        _check_meta(meta)
        splits = {
            split: _load_split(folder / f"{split}.bin", meta[split], meta["dtype"], verify)
            for split in ("train", "val")
        }
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        if verify and sha256(folder / "tokenizer.json") != meta["tokenizer_sha256"]:
            raise ValueError(f"{folder / 'tokenizer.json'} is not what was written: prepare the data anew")
        if tokenizer.vocab_size != meta["vocab_size"]:
            raise ValueError(
                f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, but the token files were made with "
                f"{meta['vocab_size']}: prepare the data anew"
            )
        for split in splits.values() if verify else ():
            if len(split.tokens) and split.tokens.max() >= tokenizer.vocab_size:
                raise ValueError(
                    f"{split.path} holds the token id {split.tokens.max()}, but its tokenizer has "
                    f"{tokenizer.vocab_size} tokens: prepare the data anew"
                )
        return PreparedData(
            folder, meta["source"], tokenizer, meta["has_eot"], **splits,
            paired=meta["paired"], sources=tuple(meta["sources"]),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'meta.json'} is damaged ({type(error).__name__}): prepare the data anew") from None


def _check_meta(meta: dict) -> None:
    """TypeError unless a meta.json holds values of the kinds that `prepare_data` writes: a seal is no secret."""
    kinds = {"source": str, "has_eot": bool, "paired": bool, "vocab_size": int, "tokenizer_sha256": str}
    kinds |= {"train": dict, "val": dict, "sources": list}
    source = {"name": str, "weight": float, "characters": int}
    counts = dict.fromkeys(("tokens", "documents", "characters", "bytes"), int)
    places = [(meta, kinds), (meta["train"], counts), (meta["val"], counts)]
    for place, expected in itertools.chain(places, ((found, source) for found in meta["sources"])):
        for name, kind in expected.items():
            value = place[name]
            if type(value) is not kind or (kind is int and not 1 <= value < 2**63):
                raise TypeError(f"{name} {value!r}")


def _load_split(path: Path, meta: dict, dtype: str, verify: bool) -> TokenFile:
    if dtype not in ("uint16", "uint32"):
        raise TypeError(f"dtype {dtype!r}")
    size = meta["tokens"] * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != size:
        raise ValueError(f"{path} is missing or not {size} bytes long, as it was written: prepare the data anew")
    if verify and sha256(path) != meta["sha256"]:
        raise ValueError(f"{path} is not what was written (its SHA-256 differs): prepare the data anew")
    tokens = np.memmap(path, dtype, mode="r")
    return TokenFile(path, tokens, meta["documents"], meta["characters"], meta["bytes"], meta["sha256"])
