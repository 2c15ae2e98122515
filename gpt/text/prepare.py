"""Prepare text for training: write the token files that gpt/token_files.py reads, whole or not at all."""

import argparse
import hashlib
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from gpt.system.files import atomic_folder, checksummed, sha256
from gpt.text.sources import Corpus, add_text_options, open_texts
from gpt.text.splits import SHARE_ADVICE, Document, SplitPlan
from gpt.text.tokenizers import get_tokenizer
from gpt.token_files import FORMAT, PreparedData, load_data
from gpt.tokenizer import CharTokenizer, HuggingFaceTokenizer, Tokenizer

FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
WORKERS = min(8, os.cpu_count() or 1)  # encoding threads; more would wait for the one that reads
BATCH_CHARACTERS = 1 << 19  # encoded at once by a thread
MAX_REPEATS = 1_000_000  # of a corpus in the training split
Item, Result = TypeVar("Item"), TypeVar("Result")


def prepare_data(
    corpora: Corpus | Sequence[Corpus],
    tokenizer_name: str,
    out: Path,
    val_fraction: float = 0.1,
    val_corpus: Corpus | None = None,
    weights: Sequence[float] = (),
) -> PreparedData:
    """Write corpora as token files: train.bin, val.bin, tokenizer.json and meta.json in the folder `out`.

    The last `val_fraction` of each corpus is for validation: of its documents if it has ten or more, else of its
    characters. With `val_corpus`, only that one is. The rest is for training, repeated by the corpus's weight (default
    1): in whole passes, then one over an evenly spread share of the documents. Validation text is written once. The
    tokenizers "char" and "bpe:N" are learned from both splits without repeats. Several documents are separated by
    end-of-text tokens, also before the first and after the last, so that a model learns where a document ends. A corpus
    of two fields holds pairs of a prompt and its target, which a split keeps together.

    All cores encode, but the files do not depend on their number. Memory does not grow with the corpus, except for
    bpe:N's table of distinct words, the longest document of a separator, and 16 bytes per document.

    ValueError for a corpus without text, for pairs with an empty target, fewer than two pairs, pairs mixed with other
    text, wrong weights, a text too short to split, and an `out` that holds something else.
    """
    corpora = [corpora] if isinstance(corpora, Corpus) else [*corpora]
    if not corpora:
        raise ValueError("no corpus is named: there is nothing to prepare")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    weights = _parse_weights(weights, len(corpora))
    _check_target(out)
    sources = [*corpora, *([val_corpus] if val_corpus else [])]
    paired = _check_paired(sources)
    lengths = [_document_lengths(source, needs_two=paired and not val_corpus) for source in sources]
    plans = [
        SplitPlan.create(corpus, length, weight, None if val_corpus else val_fraction)
        for corpus, length, weight in zip(corpora, lengths, weights, strict=False)
    ]
    has_eot = len(corpora) > 1 or max(map(len, lengths)) > 1 or weights[0] != 1
    tokenizer, has_eot = _create_tokenizer(tokenizer_name, sources, sum(int(n.sum()) for n in lengths), has_eot)
    meta = {
        "format": FORMAT,
        "source": " + ".join(plan.name for plan in plans),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "has_eot": has_eot,
        "paired": paired,
    }
    if len(plans) > 1:
        meta["sources"] = [
            {"name": plan.corpus.name, "weight": float(plan.weight), "characters": plan.train_characters}
            for plan in plans
        ]
    train = itertools.chain.from_iterable(plan.train_documents() for plan in plans)
    val = val_corpus.documents() if val_corpus else itertools.chain.from_iterable(p.val_documents() for p in plans)
    n_val = int(lengths[-1].sum()) if val_corpus else sum(plan.val_characters for plan in plans)
    with _progress_bar("encoding", sum(plan.train_characters for plan in plans) + n_val) as bar:
        _write_folder(out, meta, {"train": train, "val": val}, tokenizer, bar)
    return load_data(out)


# --- checks -----------------------------------------------------------------------------------------------------------


def _parse_weights(weights: Sequence[float], n: int) -> list[Fraction]:
    """Return weights as exact fractions of their decimal digits."""
    weights = [*weights] or [1] * n
    if len(weights) != n:
        raise ValueError(f"weights must be one for each input: {n} of them, not {len(weights)}")
    for weight in weights:
        if not 0 < weight <= MAX_REPEATS:
            raise ValueError(f"a weight must be above 0 and at most {MAX_REPEATS:,}, not {weight}")
    return [Fraction(str(weight)) for weight in weights]


def _check_target(out: Path) -> None:
    """Raise ValueError unless `out` is new, empty, or holds what `prepare_data` writes and nothing else."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    if names and not {"meta.json"} <= names <= FILES:
        raise ValueError(f"{out} exists and is not a folder of prepared data: name another one")


def _check_paired(sources: list[Corpus]) -> bool:
    """Return whether the sources hold pairs. ValueError if only some do."""
    first, paired = sources[0], len(sources[0].fields) == 2
    for source in sources:
        if (len(source.fields) == 2) != paired:
            raise ValueError(f"of {first.name} and {source.name} one holds pairs, the other does not: both, or neither")
    return paired


def _document_lengths(corpus: Corpus, needs_two: bool) -> np.ndarray:
    """Return the length of each document in characters. ValueError if they cannot be learned from or split."""

    def length(document: Document) -> int:
        n = 0
        for chunk in document:
            n += len(chunk)
            bar.update(len(chunk.encode()))
        return n

    with _progress_bar("counting", sum(path.stat().st_size for path in corpus.paths), "B") as bar:
        lengths = np.fromiter(map(length, corpus.documents()), np.int64)
    if lengths.sum() < 2:
        raise ValueError(f"{corpus.name} holds {lengths.sum()} characters: no text to learn from")
    if len(corpus.fields) == 2 and (empty := np.flatnonzero(lengths[1::2] == 0)).size:
        raise ValueError(f"the target of pair {empty[0] + 1} is empty in {corpus.name}: there is nothing to learn")
    if needs_two and len(lengths) < 4:
        raise ValueError(f"one pair cannot be split into training and validation: {corpus.name} needs two")
    return lengths


def _create_tokenizer(name: str, sources: list[Corpus], n_characters: int, has_eot: bool) -> tuple[Tokenizer, bool]:
    """Open or learn a tokenizer; return it, and whether the data will have end-of-text tokens."""

    def chunks() -> Iterator[str]:
        with _progress_bar("learning", n_characters) as bar:
            for chunk in itertools.chain.from_iterable(source.chunks() for source in sources):
                yield chunk
                bar.update(len(chunk))

    tokenizer = get_tokenizer(name, chunks())
    if has_eot and name == "char":
        tokenizer = CharTokenizer(tokenizer.characters, end_of_text=True)
    has_eot &= tokenizer.eot_id is not None  # a saved char tokenizer may have no such token
    if len(sources[0].fields) == 2 and not has_eot:
        raise ValueError(f"{name} has no end-of-text token, which separates prompts and targets")
    return tokenizer, has_eot


def _progress_bar(description: str, total: int, unit: str = "characters") -> tqdm:
    return tqdm(desc=description, total=total, unit=unit, unit_scale=True, disable=not sys.stderr.isatty())


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_folder(
    out: Path, meta: dict, splits: dict[str, Iterable[Document]], tokenizer: Tokenizer, bar: tqdm
) -> None:
    """Write both splits, the tokenizer and meta.json, whole or not at all."""
    with atomic_folder(out) as folder:
        for split, documents in splits.items():
            meta[split] = _write_split(
                folder / f"{split}.bin", documents, tokenizer, meta["has_eot"], meta["dtype"], bar
            )
            if meta[split]["tokens"] < 2 + meta["has_eot"]:
                raise ValueError(f"{meta['source']} is too short: both splits need at least two tokens; {SHARE_ADVICE}")
        tokenizer.save(folder / "tokenizer.json")
        meta["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
        (folder / "meta.json").write_text(checksummed(meta), encoding="utf-8", newline="\n")


def _write_split(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, has_eot: bool, dtype: str, bar: tqdm
) -> dict[str, int | str]:
    """Write a split's tokens, with end-of-text tokens around documents if `has_eot`; return its counts and SHA-256."""
    count = {"documents": 0, "characters": 0, "bytes": 0, "tokens": 0}
    digest = hashlib.sha256()
    separator = np.array([tokenizer.eot_id] if has_eot else [], dtype)

    def chunks() -> Iterator[str | None]:  # None where a separator belongs
        yield None
        for document in documents:
            count["documents"] += 1
            yield from ["".join(document)] if isinstance(tokenizer, HuggingFaceTokenizer) else document
            yield None

    def encode(batch: list[str | None]) -> tuple[np.ndarray, int, int]:
        ids = [separator if chunk is None else tokenizer.encode_to_numpy(chunk) for chunk in batch]
        texts = [chunk for chunk in batch if chunk is not None]
        return np.concatenate(ids).astype(dtype), sum(map(len, texts)), sum(len(text.encode()) for text in texts)

    with path.open("wb") as file:
        for ids, n_characters, n_bytes in ordered_map(encode, _batches(chunks())):
            file.write(ids)
            digest.update(ids)
            count["tokens"] += len(ids)
            count["characters"] += n_characters
            count["bytes"] += n_bytes
            bar.update(n_characters)
    return {**count, "sha256": digest.hexdigest()}


def _batches(chunks: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Group chunks into batches of about BATCH_CHARACTERS, so that short documents do not make threads wait."""
    batch, n_characters = [], 0
    for chunk in chunks:
        batch.append(chunk)
        n_characters += len(chunk or "")
        if n_characters >= BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    yield batch


def encode_documents(texts: Iterable[str], tokenizer: Tokenizer, has_eot: bool) -> np.ndarray:
    """Return the token ids of all texts, int64, with an end-of-text token before and after each if `has_eot`."""
    separator = [tokenizer.eot_id] if has_eot else []
    return np.array(separator + [i for text in texts for i in (*tokenizer.encode(text), *separator)], np.int64)


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) for each item, in order, computed by WORKERS threads; raise an item's exception in turn.

    Unlike Executor.map it holds at most two items per thread. Threads help because tiktoken releases Python's lock.
    """
    pending = deque()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for item in items:
            if len(pending) == 2 * WORKERS:
                yield pending.popleft().result()
            pending.append(pool.submit(function, item))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# --- summary ----------------------------------------------------------------------------------------------------------


def describe(data: PreparedData) -> str:
    """Return a summary of a few lines: source, tokenizer, and the size of each split."""
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


# --- from the command line --------------------------------------------------------------------------------------------


def add_prepare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts/prepare_data.py."""
    add = parser.add_argument
    add("--list", action="store_true", help="print the texts known by name, and exit")
    # fmt: off
    add(
        "--input", nargs="+", action="extend", metavar="TEXT",
        help="a text known by name (--list), a file, a folder, a glob, a URL, or -; several are read in turn",
    )
    add(
        "--weights", type=float, nargs="+", default=[], metavar="X",
        help="how often each input is repeated in the training split (default: 1 each)",
    )
    add("--sha256", default="", metavar="HEX", help="the checksum of the input, a file or a download")
    add("--out", metavar="FOLDER", help="the folder for the token files, such as data/mine")
    add(
        "--tokenizer", default="gpt2", metavar="NAME",
        help="gpt2, smollm2, char, bpe:N with N tokens in all, or a tokenizer.json or .gguf (default: gpt2)",
    )
    add(
        "--val_fraction", type=float, default=0.1, metavar="X",
        help="share of the text held out for validation (default: 0.1)",
    )
    add("--val_input", metavar="TEXT", help="validate on this text instead of holding out a share")
    # fmt: on
    add_text_options(parser)


def prepare_from(arguments: argparse.Namespace) -> PreparedData:
    """Prepare data as these options say. ValueError if they contradict each other."""
    if missing := [f"--{name}" for name in ("input", "out") if getattr(arguments, name) is None]:
        raise ValueError(f"the following arguments are required: {', '.join(missing)}")
    if arguments.sha256 and len(arguments.input) > 1:
        raise ValueError(f"--sha256 is the checksum of a single input, not of {len(arguments.input)}")
    corpora = open_texts(arguments.input, arguments, arguments.sha256)
    val_corpus = open_texts([arguments.val_input], arguments)[0] if arguments.val_input is not None else None
    return prepare_data(
        corpora, arguments.tokenizer, Path(arguments.out), arguments.val_fraction, val_corpus, arguments.weights
    )
