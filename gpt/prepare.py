"""Text into the token files that a training run reads (gpt/prepared.py): written whole, or not at all."""

import hashlib
import itertools
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    corpus: Corpus,
    tokenizer_name: str,
    out: Path,
    val_fraction: float = 0.1,
    val_corpus: Corpus | None = None,
) -> PreparedData:
    """Write a corpus as token files: `out` gets train.bin, val.bin, tokenizer.json and meta.json, all or nothing.

    The last `val_fraction` of the characters validate; of the documents, where there are ten or more; all of
    `val_corpus`, where it is given. "char" and "bpe:N" are learned from both splits. Where there are several documents,
    each stands between two end-of-text tokens (of a document that the split cuts in two, each part does), so that a
    model reads where one begins and learns where one ends. A corpus of two fields holds pairs of a prompt and its
    target, which no split parts. All cores encode; the files are the same with any number of them. Memory does not grow
    with the corpus, but for bpe:N's table of distinct words, the longest documents between separators, and 8 bytes per
    document. A terminal sees a progress bar for each pass over the text.

    Raises ValueError for a corpus without text, for pairs without a target or fewer than two of them, for pairs beside
    a text that is none, and for an `out` that exists and was not written by this function.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    _check_target(out)
    corpora = [corpus, *([val_corpus] if val_corpus else [])]
    if len({len(source.fields) for source in corpora}) > 1:
        raise ValueError(
            f"of {corpus.name} and {val_corpus.name} one holds pairs, the other does not: both, or neither"
        )
    lengths = [_lengths(source) for source in corpora]
    totals = [int(length.sum()) for length in lengths]
    for source, length in zip(corpora, totals, strict=True):
        if length < 2:
            raise ValueError(f"{source.name} holds {length} characters: no text to learn from")
    separated, paired = max(map(len, lengths)) > 1, len(corpus.fields) == 2
    if paired:
        _check_pairs(lengths)
    pieces = itertools.chain.from_iterable(source.pieces() for source in corpora)
    tokenizer = get_tokenizer(tokenizer_name, _watched(pieces, sum(totals)))
    if separated and tokenizer_name == "char":
        tokenizer = CharTokenizer(tokenizer.characters, end_of_text=True)
    separated &= tokenizer.eot_id is not None  # a saved char tokenizer may have no such token
    if paired and not separated:
        raise ValueError(f"{tokenizer_name} has no end-of-text token, which stands between prompts and targets")
    meta = {
        "format": FORMAT,
        "source": corpus.name,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "separated": separated,
        "paired": paired,
    }
    with _bar("encoding", sum(totals)) as bar, whole_folder(out) as folder:
        splits = _split(corpus.documents(), lengths[0], val_fraction, val_corpus, 1 + paired)
        for split, documents in itertools.groupby(splits, key=lambda found: found[0]):
            path = folder / f"{split}.bin"
            meta[split] = _write_split(path, (d for _, d in documents), tokenizer, separated, meta["dtype"], bar)
        if any(meta.get(split, {"tokens": 0})["tokens"] < 2 + separated for split in ("train", "val")):
            raise ValueError(
                f"{corpus.name} is too short for a val_fraction of {val_fraction}: both splits need at least two tokens"
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


def _check_pairs(lengths: list[np.ndarray]) -> None:
    for length in lengths:
        if (empty := np.flatnonzero(length[1::2] == 0)).size:
            raise ValueError(f"the target of pair {empty[0] + 1} is empty: there is nothing to learn from it")
    if len(lengths) == 1 and len(lengths[0]) < 4:
        raise ValueError("one pair cannot be split into training and validation: two are needed")


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


def _split(
    documents: Iterator[Document], lengths: np.ndarray, val_fraction: float, val_corpus: Corpus | None, together: int
) -> Iterator[tuple[str, Document]]:
    """The documents, each with its split: those of "train" first, then those of "val"; `lengths` in characters. So many
    documents at a time stay `together`."""
    if val_corpus is not None:
        yield from (("train", document) for document in documents)
        yield from (("val", document) for document in val_corpus.documents())
    elif len(lengths) >= 10 or together > 1:
        n_train = len(lengths) - together * max(1, round(len(lengths) / together * val_fraction))
        yield from (("train" if n < n_train else "val", document) for n, document in enumerate(documents))
    else:
        total = int(lengths.sum())
        n_train = total - math.ceil(round(total * val_fraction, 6))  # 50 · 0.14 is 7, not 7.000000000000001
        for document, length in zip(documents, lengths.tolist(), strict=True):
            head, tail = _cut(document, min(max(n_train, 0), length))
            if n_train > 0:
                yield "train", head
            if n_train < length:
                yield "val", tail
            n_train -= length


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
