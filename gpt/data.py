"""Windows of tokens: inputs, and targets one position later. In memory or in memory-mapped files on disk.

A window is T+1 tokens; its first T are the inputs (T,), its last T the targets (T,): at each position the target is
the token that comes next.

    loader = create_dataloader(text, tokenizer="gpt2", batch_size=8, context_length=256)
    for inputs, targets in loader: ...        # (8, 256) and (8, 256), int64
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from gpt.corpus import Corpus, read_pieces
from gpt.tokenizer import Tokenizer, get_tokenizer, load_tokenizer

Tokens = np.ndarray | Tensor | Sequence[int]
FORMAT = 1  # of a prepared folder
FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json"}

# --- windows ----------------------------------------------------------------------------------------------------------


class TokenWindows(Dataset):
    """Windows of context_length + 1 tokens that begin every `stride` tokens (0: context_length).

    Item i is (inputs, targets), int64, (T,) each. A rest too short for a whole window is left out.
    """

    def __init__(self, tokens: Tokens, context_length: int, stride: int = 0):
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, not {context_length}")
        if stride < 0:
            raise ValueError(f"stride must be at least 0, not {stride}")
        self.tokens = np.asarray(tokens)
        self.context_length = context_length
        self.stride = stride or context_length
        if len(self.tokens) <= context_length:
            raise ValueError(
                f"{len(self.tokens)} tokens are too few for one window: context_length {context_length} takes "
                f"{context_length + 1}; a longer text or a shorter context_length is needed"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.context_length - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of several windows, (B, T) each."""
        starts = [index * self.stride for index in indices]
        windows = np.stack([self.tokens[start : start + self.context_length + 1] for start in starts])  # (B, T+1)
        windows = torch.from_numpy(windows.astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


@lru_cache(maxsize=2)  # a step may straddle two epochs
def _permutation(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_windows)


class WindowSampler(Sampler[list[int]]):
    """Which windows come when: one endless sequence, epoch after epoch, each a permutation keyed by (seed, epoch).

    `step(k)` is its k-th stretch of batch_size windows: a pure function, so that a resumed run has nothing to restore
    and asks for the next k. Iterating gives one epoch's batches, the next epoch's the next time.
    """

    def __init__(self, n_windows: int, batch_size: int, shuffle: bool = True, seed: int = 0, drop_last: bool = True):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.n_windows, self.batch_size = n_windows, batch_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = 0

    def window(self, index: int) -> int:
        """The window at place `index` of the endless sequence."""
        epoch, place = divmod(index, self.n_windows)
        return int(_permutation(self.n_windows, self.seed, epoch)[place]) if self.shuffle else place

    def step(self, step: int) -> list[int]:
        """The windows of step `step`, counted from 0."""
        return [self.window(index) for index in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def __len__(self) -> int:
        return self.n_windows // self.batch_size if self.drop_last else math.ceil(self.n_windows / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        first, self.epoch = self.epoch * self.n_windows, self.epoch + 1
        for batch in range(len(self)):
            start, end = batch * self.batch_size, min((batch + 1) * self.batch_size, self.n_windows)
            yield [self.window(first + index) for index in range(start, end)]


def create_dataloader(
    text_or_tokens: str | Tokens,
    tokenizer: str | Tokenizer = "gpt2",
    batch_size: int = 4,
    context_length: int = 256,
    stride: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """A DataLoader of (inputs, targets), int64, (batch_size, context_length) each, targets one position later.

    `text_or_tokens` is a string, which `tokenizer` (one, or a name for `get_tokenizer`) encodes, or token ids.
    `stride` is the distance between windows in tokens; 0 means context_length, so that each token is a target once.
    ValueError where the text is too short for one window.
    """
    if isinstance(text_or_tokens, str):
        if isinstance(tokenizer, str):
            tokenizer = get_tokenizer(tokenizer, [text_or_tokens])
        text_or_tokens = tokenizer.encode(text_or_tokens)
    windows = TokenWindows(text_or_tokens, context_length, stride)
    sampler = WindowSampler(len(windows), batch_size, shuffle, seed, drop_last)
    return DataLoader(windows, batch_sampler=sampler, num_workers=num_workers)


# --- token files ------------------------------------------------------------------------------------------------------


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
    """A folder that `prepare_data` wrote: tokenizer, training split and validation split."""

    folder: Path
    source: str
    tokenizer: Tokenizer
    train: TokenFile
    val: TokenFile

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of both splits: two folders with the same sums hold the same tokens."""
        return {"train": self.train.sha256, "val": self.val.sha256}


def prepare_data(
    corpus: Corpus,
    tokenizer_name: str,
    out: Path,
    val_fraction: float = 0.1,
    val_corpus: Corpus | None = None,
) -> PreparedData:
    """Write a corpus as token files: `out` gets train.bin, val.bin, tokenizer.json and meta.json, all or nothing.

    The last `val_fraction` of the characters validate; of the documents, where there are ten or more; all of
    `val_corpus`, where it is given. "char" and "bpe:N" are learned from the whole corpus. Where there are several
    documents, each ends with the end-of-text token if the tokenizer has one. Memory stays constant however large the
    corpus is; a terminal sees a progress bar.

    Raises ValueError for a corpus without text, and for an `out` that exists and was not written by this function.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    if Path.cwd().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the working folder, not a folder of prepared data: name another one")
    for parent in out.parents:
        if parent.is_file():
            raise ValueError(f"{parent} is a file, so {out} cannot be a folder in it: name another one")
    if out.exists() and (not out.is_dir() or not _replaceable(out)):
        raise ValueError(f"{out} exists and is not a folder of prepared data: name another one")
    lengths = [_length(path) for path in corpus.paths]
    val_total = sum(map(_length, val_corpus.paths)) if val_corpus else 0
    if val_corpus and val_total < 2:
        raise ValueError(f"{val_corpus.name} holds {val_total} characters: no text to validate on")
    total = sum(lengths) + val_total
    if total < 2:
        raise ValueError(f"{corpus.name} holds {total} characters: no text to learn from")
    tokenizer = get_tokenizer(tokenizer_name, _all_pieces(corpus, val_corpus))

    if val_corpus is not None:
        parts = {"train": _part(corpus.paths), "val": _part(val_corpus.paths)}
    elif len(corpus.paths) >= 10:
        n_val = max(1, round(len(corpus.paths) * val_fraction))
        parts = {"train": _part(corpus.paths[:-n_val]), "val": _part(corpus.paths[-n_val:])}
    else:
        parts = dict(zip(("train", "val"), _split_characters(corpus.paths, lengths, val_fraction), strict=True))

    made = [parent for parent in out.parents if not parent.exists()]  # nearest first
    folder, out = out, out.resolve()  # a link stays one
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    aside = temporary.with_name(temporary.name + "-before")
    bar = tqdm(total=total, unit="characters", unit_scale=True, disable=not sys.stderr.isatty())
    try:
        meta = {"format": FORMAT, "source": corpus.name, "tokenizer": tokenizer.name}
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        meta |= {"vocab_size": tokenizer.vocab_size, "dtype": np.dtype(dtype).name}
        several = len(corpus.paths) > 1 or (val_corpus is not None and len(val_corpus.paths) > 1)
        for split, documents in parts.items():
            digest = hashlib.sha256()
            count = {"documents": 0, "characters": 0, "bytes": 0, "tokens": 0}
            with (temporary / f"{split}.bin").open("wb") as file:
                for document in documents:
                    for piece in document():
                        ids = np.array(tokenizer.encode(piece), dtype)
                        _append(file, digest, count, ids)
                        count["characters"] += len(piece)
                        count["bytes"] += len(piece.encode())
                        bar.update(len(piece))
                    if several and tokenizer.eot_id is not None:
                        _append(file, digest, count, np.array([tokenizer.eot_id], dtype))
                    count["documents"] += 1
            meta[split] = {**count, "sha256": digest.hexdigest()}
        if min(meta["train"]["tokens"], meta["val"]["tokens"]) < 2:
            raise ValueError(
                f"{corpus.name} is too short for a val_fraction of {val_fraction}: both splits need at least two tokens"
            )
        tokenizer.save(temporary / "tokenizer.json")
        meta["tokenizer_sha256"] = hashlib.sha256((temporary / "tokenizer.json").read_bytes()).hexdigest()
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's folders are private; prepared data is not
        if out.exists():
            out.rename(aside)  # until the new one is in its place
        temporary.rename(out)
    finally:
        bar.close()
        if aside.exists() and not out.exists():
            aside.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: all went well
                parent.rmdir()
    return load_data(folder)


def describe(data: PreparedData) -> str:
    """What a prepared folder holds, in a few lines."""
    lines = [f"{data.source} -> {data.folder}, tokenizer {data.tokenizer.name} of {data.tokenizer.vocab_size:,} tokens"]
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
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise ValueError(
                f"{folder} was prepared in format {meta['format']}, this version reads {FORMAT}: prepare anew"
            )
        splits = {
            split: _load_split(folder / f"{split}.bin", meta[split], meta["dtype"], verify)
            for split in ("train", "val")
        }
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        sha256 = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        if verify and sha256 != meta["tokenizer_sha256"]:
            raise ValueError(f"{folder / 'tokenizer.json'} is not what was written: prepare the data anew")
        if tokenizer.vocab_size != meta["vocab_size"]:
            raise ValueError(
                f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, but the token files were made with "
                f"{meta['vocab_size']}: prepare the data anew"
            )
        return PreparedData(folder, meta["source"], tokenizer, **splits)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'meta.json'} is damaged ({type(error).__name__}): prepare the data anew") from None


def _load_split(path: Path, meta: dict, dtype: str, verify: bool) -> TokenFile:
    if dtype not in ("uint16", "uint32"):
        raise TypeError(f"dtype {dtype!r}")
    size = meta["tokens"] * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != size:
        raise ValueError(f"{path} is missing or not {size} bytes long, as it was written: prepare the data anew")
    if verify:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != meta["sha256"]:
                raise ValueError(f"{path} is not what was written (its SHA-256 differs): prepare the data anew")
    tokens = np.memmap(path, dtype, mode="r")
    return TokenFile(path, tokens, meta["documents"], meta["characters"], meta["bytes"], meta["sha256"])


# --- writing them -----------------------------------------------------------------------------------------------------

Document = Callable[[], Iterator[str]]  # a document's pieces, read when asked for


def _part(paths: list[Path]) -> list[Document]:
    return [lambda path=path: read_pieces(path) for path in paths]


def _split_characters(
    paths: list[Path], lengths: list[int], val_fraction: float
) -> tuple[list[Document], list[Document]]:
    """The documents up to the character where validation begins, and from there on; one of them may be cut in two."""
    n_train = sum(lengths) - math.ceil(round(sum(lengths) * val_fraction, 6))  # 50 · 0.14 is 7, not 7.000000000000001
    train, val = [], []
    for path, length in zip(paths, lengths, strict=True):
        cut = min(max(n_train, 0), length)
        if cut > 0:
            train.append(lambda path=path, cut=cut: _between(path, 0, cut))
        if cut < length:
            val.append(lambda path=path, cut=cut, length=length: _between(path, cut, length))
        n_train -= length
    return train, val


def _between(path: Path, start: int, end: int) -> Iterator[str]:
    """The characters start .. end of a text file, in pieces."""
    place = 0
    for piece in read_pieces(path):
        inside = piece[max(start - place, 0) : max(end - place, 0)]
        if inside:
            yield inside
        place += len(piece)


def _length(path: Path) -> int:
    return sum(map(len, read_pieces(path)))


def _all_pieces(*corpora: Corpus | None) -> Iterator[str]:
    for corpus in corpora:
        if corpus is not None:
            yield from corpus.pieces()


def _append(file, digest, count: dict[str, int], ids: np.ndarray) -> None:
    data = ids.tobytes()
    file.write(data)
    digest.update(data)
    count["tokens"] += len(ids)


def _replaceable(folder: Path) -> bool:
    """Whether a folder is empty, or holds what `prepare_data` writes and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return not names or ("meta.json" in names and names <= FILES)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
