"""Text into the token files that a training run reads (gpt/prepared.py): written whole, or not at all."""

import hashlib
import itertools
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from gpt.corpus import Corpus
from gpt.files import sealed, sha256, whole_folder
from gpt.prepared import FORMAT, PreparedData, load_data
from gpt.tokenizer import CharTokenizer, Tokenizer, get_tokenizer

FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
WORKERS = min(8, os.cpu_count() or 1)  # threads that encode; many more would wait for the one that reads
BATCH = 1 << 19  # characters that a thread encodes at once
Document = Iterable[str]  # a document's pieces
Item, Result = TypeVar("Item"), TypeVar("Result")


def prepare_data(
    corpora: Corpus | Sequence[Corpus],
    tokenizer_name: str,
    out: Path,
    val_fraction: float = 0.1,
    val_corpus: Corpus | None = None,
    weights: Sequence[float] = (),
) -> PreparedData:
    """Write a corpus, or several, as token files: `out` gets train.bin, val.bin, tokenizer.json and meta.json, all or
    nothing.

    The last `val_fraction` of each corpus's characters validate; of its documents, where there are ten or more; all of
    `val_corpus`, where it is given. `weights` say how many times the rest of each corpus is read in a pass over the
    training split: once, where left out; every second document for 0.5, of ten or more. "char" and "bpe:N" are learned
    from both splits. Where there are several documents, each stands between two end-of-text tokens (of a document that
    the split cuts in two, each part does), so that a model reads where one begins and learns where one ends. A corpus
    of two fields holds pairs of a prompt and its target, which no split parts. All cores encode; the files are the same
    with any number of them. Memory does not grow with the corpus, but for bpe:N's table of distinct words, the longest
    documents between separators, and 8 bytes per document. A terminal sees a progress bar for each pass over the text.

    Raises ValueError for a corpus without text, for pairs without a target or fewer than two of them, for pairs beside
    a text that is none, for weights that do not fit, and for an `out` that exists and was not written by this function.
    """
    corpora = [corpora] if isinstance(corpora, Corpus) else list(corpora)
    weights = list(weights) or [1.0] * len(corpora)
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    _check_target(out)
    every = [*corpora, *([val_corpus] if val_corpus else [])]
    if len({len(source.fields) == 2 for source in every}) > 1:
        names = " and ".join(source.name for source in every)
        raise ValueError(f"of {names} one holds pairs, the other does not: both, or neither")
    lengths = [_lengths(source) for source in every]
    totals = [int(length.sum()) for length in lengths]
    for source, length in zip(every, totals, strict=True):
        if length < 2:
            raise ValueError(f"{source.name} holds {length} characters: no text to learn from")
    paired = len(every[0].fields) == 2
    separated = max(map(len, lengths)) > 1 or len(corpora) > 1
    if paired:
        _check_pairs(lengths, val_corpus is not None)
    splits = [
        Split(source, length, 0 if val_corpus else val_fraction, 1 + paired)
        for source, length in zip(corpora, lengths, strict=False)
    ]
    if val_corpus is not None:
        splits.append(Split(val_corpus, lengths[-1], 1, 1 + paired))
        weights = [*weights, 1.0]
    _check_weights(weights, splits)
    pieces = itertools.chain.from_iterable(source.pieces() for source in every)
    tokenizer = get_tokenizer(tokenizer_name, _watched(pieces, sum(totals)))
    if separated and tokenizer_name == "char":
        tokenizer = CharTokenizer(tokenizer.characters, end_of_text=True)
    separated &= tokenizer.eot_id is not None  # a saved char tokenizer may have no such token
    if paired and not separated:
        raise ValueError(f"{tokenizer_name} has no end-of-text token, which stands between prompts and targets")
    named = zip(weights, corpora, strict=False)  # the last weight may be val_corpus's
    shown = [source.name if weight == 1 else f"{weight:g} x {source.name}" for weight, source in named]
    meta = {
        "format": FORMAT,
        "source": " + ".join(shown),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "separated": separated,
        "paired": paired,
    }
    n_train = [round(weight * split.characters("train")) for weight, split in zip(weights, splits, strict=True)]
    if len(corpora) > 1:
        meta["shares"] = [n / max(1, sum(n_train)) for n in n_train[: len(corpora)]]
    n_val = sum(split.characters("val") for split in splits)
    with _bar("encoding", sum(n_train) + n_val) as bar, whole_folder(out) as folder:
        for name in ("train", "val"):
            times = weights if name == "train" else [1.0] * len(splits)
            documents = itertools.chain.from_iterable(map(Split.documents, splits, itertools.repeat(name), times))
            meta[name] = _write_split(folder / f"{name}.bin", documents, tokenizer, separated, meta["dtype"], bar)
        if any(meta[name]["tokens"] < 2 + separated for name in ("train", "val")):
            raise ValueError(
                f"{meta['source']} is too short for a val_fraction of {val_fraction}: both splits need at least two "
                f"tokens"
            )
        tokenizer.save(folder / "tokenizer.json")
        meta["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
        (folder / "meta.json").write_text(sealed(meta), encoding="utf-8", newline="\n")
    return load_data(out.resolve() if ".." in out.parts else out)


def _lengths(corpus: Corpus) -> np.ndarray:
    """The length of each document in characters."""

    def length(document: Document) -> int:
        n = 0
        for piece in document:
            n += len(piece)
            bar.update(len(piece.encode()))
        return n

    with _bar("counting", sum(path.stat().st_size for path in corpus.paths), "B") as bar:
        return np.fromiter(map(length, corpus.documents()), np.int64)


def _check_pairs(lengths: list[np.ndarray], validated: bool) -> None:
    for length in lengths:
        if (empty := np.flatnonzero(length[1::2] == 0)).size:
            raise ValueError(f"the target of pair {empty[0] + 1} is empty: there is nothing to learn from it")
        if not validated and len(length) < 4:
            raise ValueError("one pair cannot be split into training and validation: two are needed")


def _check_weights(weights: Sequence[float], splits: Sequence["Split"]) -> None:
    if len(weights) != len(splits):
        raise ValueError(f"{len(weights)} weights for {len(splits)} texts: each has one")
    for weight, split in zip(weights, splits, strict=True):
        if not 0 < weight <= 1000:
            raise ValueError(f"a weight is how many times a text is read, above 0 and at most 1000, not {weight}")
        if weight != int(weight) and not split.by_document:
            raise ValueError(
                f"a weight of {weight} leaves out some of a text's documents, but {split.corpus.name} has fewer than "
                f"ten: give it a whole number"
            )


def _watched(pieces: Iterable[str], n_characters: int) -> Iterator[str]:
    """The pieces, with a bar for as long as they are asked for."""
    with _bar("learning", n_characters) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))


def _write_split(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, separated: bool, dtype: str, bar: tqdm
) -> dict[str, int | str]:
    """Write a split's tokens, with an end-of-text token before and after each document where they are to be
    separated; its counts and its SHA-256."""
    count = {"documents": 0, "characters": 0, "bytes": 0, "tokens": 0}
    digest = hashlib.sha256()
    mark = np.array([tokenizer.eot_id] if separated else [], dtype)

    def pieces() -> Iterator[str | None]:
        """The text, and None where a mark belongs."""
        yield None
        for document in documents:
            count["documents"] += 1
            yield from document
            yield None

    def encode(batch: list[str | None]) -> tuple[np.ndarray, int, int]:
        ids = [mark if piece is None else tokenizer.encode_to_numpy(piece) for piece in batch]
        texts = [piece for piece in batch if piece is not None]
        return np.concatenate(ids).astype(dtype), sum(map(len, texts)), sum(len(text.encode()) for text in texts)

    with path.open("wb") as file:
        for ids, n_characters, n_bytes in ordered_map(encode, _batches(pieces())):
            file.write(ids)
            digest.update(ids)
            count["tokens"] += len(ids)
            count["characters"] += n_characters
            count["bytes"] += n_bytes
            bar.update(n_characters)
    return {**count, "sha256": digest.hexdigest()}


def _batches(pieces: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Pieces, about BATCH characters at a time: of short documents many, so that threads seldom wait for each other."""
    batch, n_characters = [], 0
    for piece in pieces:
        batch.append(piece)
        n_characters += len(piece or "")
        if n_characters >= BATCH:
            yield batch
            batch, n_characters = [], 0
    yield batch


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) for each item, in their order, from WORKERS threads; what an item raises is raised at its turn.

    At most two items per thread are under way, so that memory stays constant. It is quicker than `map` where the
    function does its work without Python's lock, as tiktoken's engine does.
    """
    under_way = deque()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for item in items:
            if len(under_way) == 2 * WORKERS:
                yield under_way.popleft().result()
            under_way.append(pool.submit(function, item))
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # at Ctrl-C too: what has begun is a matter of a tenth of a second


def _bar(doing: str, total: int, unit: str = "characters") -> tqdm:
    return tqdm(desc=doing, total=total, unit=unit, unit_scale=True, disable=not sys.stderr.isatty())


# --- which text goes where --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A corpus, the `lengths` of its documents in characters, and what of it is held out for validation: the last
    `val_fraction` of the documents, where there are ten or more, otherwise of the characters. So many documents at a
    time stay `together`."""

    corpus: Corpus
    lengths: np.ndarray
    val_fraction: float
    together: int

    @property
    def by_document(self) -> bool:
        """Whether no document is cut."""
        return len(self.lengths) >= 10 or self.together > 1

    @cached_property
    def n_train(self) -> int:
        """How many train, documents or characters."""
        if self.val_fraction in (0, 1):
            return (len(self.lengths) if self.by_document else int(self.lengths.sum())) * (1 - int(self.val_fraction))
        if self.by_document:
            pairs = len(self.lengths) / self.together
            return len(self.lengths) - self.together * max(1, round(pairs * self.val_fraction))
        total = int(self.lengths.sum())
        return total - math.ceil(round(total * self.val_fraction, 6))  # 50 · 0.14 is 7, not 7.000000000000001

    def characters(self, name: str) -> int:
        """How many characters "train" or "val" has."""
        n_train = int(self.lengths[: self.n_train].sum()) if self.by_document else self.n_train
        return n_train if name == "train" else int(self.lengths.sum()) - n_train

    def documents(self, name: str, times: float = 1.0) -> Iterator[Document]:
        """The documents of "train" or "val", over and over: in the pass that a fraction of `times` is left for,
        document number i where floor(fraction (i + 1)) is above floor(fraction i), so that they are spread evenly."""
        passes = [1.0] * int(times) + [times % 1] * (times % 1 > 0)
        for share in passes:
            if not self.by_document:
                yield from self._cut(name)
                continue
            for n, document in enumerate(self.corpus.documents()):
                i = n // self.together
                if (n < self.n_train) == (name == "train") and int((i + 1) * share) > int(i * share):
                    yield document

    def _cut(self, name: str) -> Iterator[Document]:
        """The documents before the place of the cut, or behind it; a part of the one that it falls into."""
        left = self.n_train
        for document, length in zip(self.corpus.documents(), self.lengths.tolist(), strict=True):
            head, tail = _cut(document, min(max(left, 0), length))
            if name == "train" and left > 0:
                yield head
            elif name == "val" and left < length:
                yield _after(head, tail)
            left -= length


def _after(head: Iterator[str], tail: Iterator[str]) -> Iterator[str]:
    deque(head, maxlen=0)  # the first are to be read first
    yield from tail


def _cut(document: Document, n: int) -> tuple[Iterator[str], Iterator[str]]:
    """The first n characters of a document and the rest, in pieces; the first are to be read first."""
    pieces, rest = iter(document), []

    def head() -> Iterator[str]:
        left = n
        while left > 0:
            piece = next(pieces)
            yield piece[:left]
            if piece[left:]:
                rest.append(piece[left:])
            left -= len(piece)

    return head(), (piece for part in (rest, pieces) for piece in part)


def _check_target(out: Path) -> None:
    """ValueError unless `out` is new, empty, or holds what `prepare_data` writes and nothing else."""
    try:
        target = out.resolve()  # as whole_folder has it: new/../notes is notes, whether or not there is a folder new
    except (OSError, RuntimeError):  # which of them, depends on the version of Python
        raise ValueError(f"{out} is a link that leads to itself: name another one") from None
    if Path.cwd().is_relative_to(target):
        raise ValueError(f"{out} holds the working folder, not a folder of prepared data: name another one")
    for parent in target.parents:
        if parent.is_file():
            raise ValueError(f"{parent} is a file, so {out} cannot be a folder in it: name another one")
    if not target.exists():
        return
    names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    if names and not ("meta.json" in names and names <= FILES):
        raise ValueError(f"{out} exists and is not a folder of prepared data: name another one")
