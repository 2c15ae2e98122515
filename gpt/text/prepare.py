"""Text into the token files that a training run reads (gpt/token_files.py): written whole, or not at all."""

import hashlib
import itertools
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from gpt.system.files import atomic_folder, checksummed, sha256
from gpt.text.hf_tokenizer import open_tokenizer
from gpt.text.sources import Corpus
from gpt.token_files import FORMAT, PreparedData, load_data
from gpt.tokenizer import CharTokenizer, Tokenizer

FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
WORKERS = min(8, os.cpu_count() or 1)  # threads that encode; many more would wait for the one that reads
BATCH = 1 << 19  # characters that a thread encodes at once
MOST = 1_000_000  # times that a corpus is read for training
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
    """Write corpora as token files: `out` gets train.bin, val.bin, tokenizer.json and meta.json, all or nothing.

    The last `val_fraction` of each corpus validates: of its characters, or of its documents, where there are ten or
    more; all of `val_corpus`, where it is given. What is left trains, as many times as the corpus's weight says (1 for
    each where there are none): in whole passes, then one over a share of the documents, evenly spread. Validation text
    is written once. "char" and "bpe:N" are learned from both splits, read once each. Where there are several documents,
    each stands between two end-of-text tokens (of a document that the split cuts in two, each part does), so that a
    model reads where one begins and learns where one ends. A corpus of two fields holds pairs of a prompt and its
    target, which no split parts. All cores encode; the files are the same with any number of them. Memory does not grow
    with the corpus, but for bpe:N's table of distinct words, the longest documents between separators, and 16 bytes per
    document. A terminal sees a progress bar for each pass over the text.

    Raises ValueError for a corpus without text, for pairs without a target or fewer than two of them, for pairs beside
    a text that is none, for weights that are not one per corpus, above 0 and, of a corpus of fewer than ten training
    documents, whole; and for an `out` that exists and was not written by this function.
    """
    corpora = [corpora] if isinstance(corpora, Corpus) else [*corpora]
    if not corpora:
        raise ValueError("no corpus is named: there is nothing to prepare")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    weights = _check_weights(weights, len(corpora))
    _check_target(out)
    everything = [*corpora, *([val_corpus] if val_corpus else [])]
    paired = len(corpora[0].fields) == 2
    for source in everything:
        if (len(source.fields) == 2) != paired:
            raise ValueError(
                f"of {corpora[0].name} and {source.name} one holds pairs, the other does not: both, or neither"
            )
    lengths = [_lengths(source) for source in everything]
    total = sum(int(length.sum()) for length in lengths)
    for source, length in zip(everything, lengths, strict=True):
        if length.sum() < 2:
            raise ValueError(f"{source.name} holds {length.sum()} characters: no text to learn from")
        if paired:
            _check_pairs(source, length, alone=val_corpus is None)
    parts = [
        _Part.of(corpus, length, weight, None if val_corpus else val_fraction)
        for corpus, length, weight in zip(corpora, lengths, weights, strict=False)
    ]
    name = " + ".join(part.name for part in parts)
    has_eot = len(corpora) > 1 or max(map(len, lengths)) > 1 or weights[0] != 1
    pieces = itertools.chain.from_iterable(source.chunks() for source in everything)
    tokenizer = open_tokenizer(tokenizer_name, _watched(pieces, total))
    if has_eot and tokenizer_name == "char":
        tokenizer = CharTokenizer(tokenizer.characters, end_of_text=True)
    has_eot &= tokenizer.eot_id is not None  # a saved char tokenizer may have no such token
    if paired and not has_eot:
        raise ValueError(f"{tokenizer_name} has no end-of-text token, which stands between prompts and targets")
    meta = {
        "format": FORMAT,
        "source": name,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "has_eot": has_eot,
        "paired": paired,
    }
    if len(parts) > 1:
        meta["sources"] = [
            {"name": part.corpus.name, "weight": float(part.weight), "characters": part.n_characters} for part in parts
        ]
    splits = {
        "train": (document for part in parts for document in part.training()),
        "val": val_corpus.documents() if val_corpus else (document for part in parts for document in part.validation()),
    }
    n_val = sum(map(int, lengths[-1])) if val_corpus else sum(part.n_held_out for part in parts)
    with _bar("encoding", sum(part.n_characters for part in parts) + n_val) as bar, atomic_folder(out) as folder:
        for split, documents in splits.items():
            meta[split] = _write_split(folder / f"{split}.bin", documents, tokenizer, has_eot, meta["dtype"], bar)
            if meta[split]["tokens"] < 2 + has_eot:
                raise ValueError(
                    f"{name} is too short for a val_fraction of {val_fraction}: both splits need at least two tokens"
                )
        tokenizer.save(folder / "tokenizer.json")
        meta["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
        (folder / "meta.json").write_text(checksummed(meta), encoding="utf-8", newline="\n")
    return load_data(out.resolve() if ".." in out.parts else out)


def _check_weights(weights: Sequence[float], n: int) -> list[Fraction]:
    """The weights as they are written: 0.1 is a tenth, and three of them are no more than three tenths."""
    weights = [*weights] or [1] * n
    if len(weights) != n:
        raise ValueError(f"weights are one for each input: {n} of them, not {len(weights)}")
    for weight in weights:
        if not 0 < weight <= MOST:
            raise ValueError(f"a weight must be above 0 and at most {MOST:,}, not {weight}")
    return [Fraction(str(weight)) for weight in weights]


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


def _check_pairs(corpus: Corpus, length: np.ndarray, alone: bool) -> None:
    if (empty := np.flatnonzero(length[1::2] == 0)).size:
        raise ValueError(f"the target of pair {empty[0] + 1} is empty in {corpus.name}: there is nothing to learn")
    if alone and len(length) < 4:
        raise ValueError(f"one pair cannot be split into training and validation: {corpus.name} needs two")


def _watched(pieces: Iterable[str], n_characters: int) -> Iterator[str]:
    """The pieces, with a bar for as long as they are asked for."""
    with _bar("learning", n_characters) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))


def _write_split(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, has_eot: bool, dtype: str, bar: tqdm
) -> dict[str, int | str]:
    """Write a split's tokens, with an end-of-text token before and after each document where they are to be
    separated; its counts and its SHA-256."""
    count = {"documents": 0, "characters": 0, "bytes": 0, "tokens": 0}
    digest = hashlib.sha256()
    mark = np.array([tokenizer.eot_id] if has_eot else [], dtype)

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
class _Part:
    """A corpus, and which of its text trains: the first `whole` documents and `more` characters of the next one, each
    document as many `times` as is said. The rest validates."""

    corpus: Corpus
    weight: Fraction
    whole: int
    more: int
    times: np.ndarray
    n_characters: int  # written for training
    n_held_out: int

    @classmethod
    def of(cls, corpus: Corpus, lengths: np.ndarray, weight: Fraction, val_fraction: float | None) -> "_Part":
        """Split a corpus whose documents have these lengths in characters; with no val_fraction all of it trains."""
        together = max(len(corpus.fields), 1)  # so many documents are a pair
        total, whole, more = int(lengths.sum()), len(lengths), 0
        if val_fraction is not None and (len(lengths) >= 10 or together > 1):
            whole -= together * max(1, round(len(lengths) / together * val_fraction))
        elif val_fraction is not None:
            n_train = total - math.ceil(round(total * val_fraction, 6))  # 50 · 0.14 is 7, not 7.000000000000001
            whole = int(np.searchsorted(np.cumsum(lengths), n_train, side="right"))
            more = n_train - int(lengths[:whole].sum())
        n_units = (whole + (more > 0)) // together
        if n_units < 1:
            raise ValueError(
                f"{corpus.name} is too short for a val_fraction of {val_fraction}: both splits need at least two tokens"
            )
        a, b = weight.as_integer_ratio()
        if b > 1 and n_units < 10:
            raise ValueError(
                f"{corpus.name} has fewer than ten training documents, {n_units}: "
                f"its weight must be a whole number, not {float(weight)}"
            )
        if n_units * a < b:
            raise ValueError(
                f"a weight of {float(weight)} takes none of the {n_units} training documents of {corpus.name}: it must "
                f"be at least {1 / n_units:.3g}"
            )
        times = np.fromiter(((i + 1) * a // b - i * a // b for i in range(n_units)), np.int64).repeat(together)
        trained = np.append(lengths[:whole], [more] if more else []).astype(np.int64)
        return cls(corpus, weight, whole, more, times, int(times @ trained), total - int(trained.sum()))

    @property
    def name(self) -> str:
        """The corpus's, with its weight where that is not 1."""
        return self.corpus.name if self.weight == 1 else f"{self.corpus.name} x {float(self.weight):g}"

    def training(self) -> Iterator[Document]:
        """The documents that train, pass after pass."""
        for n in range(self.times.max()):
            for i, document in enumerate(itertools.islice(self.corpus.documents(), len(self.times))):
                if self.times[i] > n:
                    yield document if i < self.whole else _head(document, self.more)

    def validation(self) -> Iterator[Document]:
        """The documents that are held out."""
        for i, document in enumerate(self.corpus.documents()):
            if i >= self.whole:
                yield document if i > self.whole or not self.more else _tail(document, self.more)


def _head(document: Document, n: int) -> Iterator[str]:
    """The first n characters of a document, in pieces."""
    for piece in document:
        yield piece[:n]
        n -= len(piece)
        if n <= 0:
            return


def _tail(document: Document, n: int) -> Iterator[str]:
    """A document without its first n characters, in pieces."""
    for piece in document:
        if piece[n:]:
            yield piece[n:]
        n = max(n - len(piece), 0)


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
