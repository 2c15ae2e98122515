"""Text into the token files that a training run reads (gpt/prepared.py): written whole, or not at all."""

import hashlib
import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt.corpus import Corpus
from gpt.files import sealed, sha256, whole_folder
from gpt.prepared import FORMAT, PreparedData, load_data
from gpt.tokenizer import CharTokenizer, Tokenizer, get_tokenizer

FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
Document = Iterable[str]  # a document's pieces


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
    model reads where one begins and learns where one ends. Memory does not grow with the corpus, but for bpe:N's table
    of distinct words and the longest document between separators. A terminal sees a progress bar.

    Raises ValueError for a corpus without text, and for an `out` that exists and was not written by this function.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    _check_target(out)
    corpora = [corpus, *([val_corpus] if val_corpus else [])]
    lengths = [[sum(map(len, document)) for document in source.documents()] for source in corpora]  # in characters
    for source, length in zip(corpora, map(sum, lengths), strict=True):
        if length < 2:
            raise ValueError(f"{source.name} holds {length} characters: no text to learn from")
    separated = max(map(len, lengths)) > 1
    tokenizer = get_tokenizer(tokenizer_name, (piece for source in corpora for piece in source.pieces()))
    if separated and tokenizer_name == "char":
        tokenizer = CharTokenizer(tokenizer.characters, end_of_text=True)
    separated &= tokenizer.eot_id is not None  # a saved char tokenizer may have no such token
    meta = {
        "format": FORMAT,
        "source": corpus.name,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "separated": separated,
    }
    bar = tqdm(total=sum(map(sum, lengths)), unit="characters", unit_scale=True, disable=not sys.stderr.isatty())
    with bar, whole_folder(out) as folder:
        splits = _split(corpus.documents(), lengths[0], val_fraction, val_corpus)
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


def _write_split(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, separated: bool, dtype: str, bar: tqdm
) -> dict[str, int | str]:
    """Write a split's tokens, with an end-of-text token before and after each document where they are to be
    separated; its counts and its SHA-256."""
    count = {"documents": 0, "characters": 0, "bytes": 0, "tokens": 0}
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(ids: list[int]) -> None:
            data = np.array(ids, dtype).tobytes()
            file.write(data)
            digest.update(data)
            count["tokens"] += len(ids)

        if separated:
            write([tokenizer.eot_id])
        for document in documents:
            count["documents"] += 1
            for piece in document:
                write(tokenizer.encode(piece))
                count["characters"] += len(piece)
                count["bytes"] += len(piece.encode())
                bar.update(len(piece))
            if separated:
                write([tokenizer.eot_id])
    return {**count, "sha256": digest.hexdigest()}


# --- which text goes where --------------------------------------------------------------------------------------------


def _split(
    documents: Iterator[Document], lengths: list[int], val_fraction: float, val_corpus: Corpus | None
) -> Iterator[tuple[str, Document]]:
    """The documents, each with its split: those of "train" first, then those of "val"; `lengths` in characters."""
    if val_corpus is not None:
        yield from (("train", document) for document in documents)
        yield from (("val", document) for document in val_corpus.documents())
    elif len(lengths) >= 10:
        n_train = len(lengths) - max(1, round(len(lengths) * val_fraction))
        yield from (("train" if n < n_train else "val", document) for n, document in enumerate(documents))
    else:
        n_val = math.ceil(round(sum(lengths) * val_fraction, 6))  # 50 · 0.14 is 7, not 7.000000000000001
        n_train = sum(lengths) - n_val  # characters
        for document, length in zip(documents, lengths, strict=True):
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
