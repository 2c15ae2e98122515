"""Text into the token files that a training run reads (gpt/data.py): written whole, or not at all."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt.corpus import Corpus, read_pieces, sha256
from gpt.data import FORMAT, PreparedData, load_data
from gpt.tokenizer import Tokenizer, get_tokenizer

FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
Document = Callable[[], Iterator[str]]  # a document's pieces, read when asked for


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
    each ends with the end-of-text token if the tokenizer has one (a document that the split cuts in two, both parts).
    Memory does not grow with the corpus, but for bpe:N's table of distinct words. A terminal sees a progress bar.

    Raises ValueError for a corpus without text, and for an `out` that exists and was not written by this function.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    _check_target(out)
    corpora = [corpus, *([val_corpus] if val_corpus else [])]
    lengths = [[sum(map(len, read_pieces(path))) for path in source.paths] for source in corpora]  # in characters
    for source, length in zip(corpora, map(sum, lengths), strict=True):
        if length < 2:
            raise ValueError(f"{source.name} holds {length} characters: no text to learn from")
    tokenizer = get_tokenizer(tokenizer_name, (piece for source in corpora for piece in source.pieces()))
    eot_id = tokenizer.eot_id if any(len(source.paths) > 1 for source in corpora) else None
    meta = {
        "format": FORMAT,
        "source": corpus.name,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
    }
    bar = tqdm(total=sum(map(sum, lengths)), unit="characters", unit_scale=True, disable=not sys.stderr.isatty())
    with bar, _written_whole(out) as folder:
        for split, documents in _splits(corpus, lengths[0], val_fraction, val_corpus).items():
            meta[split] = _write_split(folder / f"{split}.bin", documents, tokenizer, eot_id, meta["dtype"], bar)
            if meta[split]["tokens"] < 2:
                raise ValueError(
                    f"{corpus.name} is too short for a val_fraction of {val_fraction}: "
                    f"both splits need at least two tokens"
                )
        tokenizer.save(folder / "tokenizer.json")
        meta["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return load_data(out)


def _write_split(
    path: Path, documents: list[Document], tokenizer: Tokenizer, eot_id: int | None, dtype: str, bar: tqdm
) -> dict[str, int | str]:
    """Write a split's tokens, each document followed by eot_id unless that is None; its counts and its SHA-256."""
    count = {"documents": len(documents), "characters": 0, "bytes": 0, "tokens": 0}
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(ids: list[int]) -> None:
            data = np.array(ids, dtype).tobytes()
            file.write(data)
            digest.update(data)
            count["tokens"] += len(ids)

        for document in documents:
            for piece in document():
                write(tokenizer.encode(piece))
                count["characters"] += len(piece)
                count["bytes"] += len(piece.encode())
                bar.update(len(piece))
            if eot_id is not None:
                write([eot_id])
    return {**count, "sha256": digest.hexdigest()}


# --- which text goes where --------------------------------------------------------------------------------------------


def _splits(
    corpus: Corpus, lengths: list[int], val_fraction: float, val_corpus: Corpus | None
) -> dict[str, list[Document]]:
    """The documents of the training split, "train", and of the validation split, "val"; `lengths` in characters."""
    if val_corpus is not None:
        return {"train": _whole(corpus.paths), "val": _whole(val_corpus.paths)}
    if len(corpus.paths) >= 10:
        n_val = max(1, round(len(corpus.paths) * val_fraction))
        return {"train": _whole(corpus.paths[:-n_val]), "val": _whole(corpus.paths[-n_val:])}
    n_train = sum(lengths) - math.ceil(round(sum(lengths) * val_fraction, 6))  # 50 · 0.14 is 7, not 7.000000000000001
    train, val = [], []
    for path, length in zip(corpus.paths, lengths, strict=True):
        cut = min(max(n_train, 0), length)  # one document may be cut in two
        if cut > 0:
            train.append(lambda path=path, cut=cut: _between(path, 0, cut))
        if cut < length:
            val.append(lambda path=path, cut=cut, length=length: _between(path, cut, length))
        n_train -= length
    return {"train": train, "val": val}


def _whole(paths: list[Path]) -> list[Document]:
    return [lambda path=path: read_pieces(path) for path in paths]


def _between(path: Path, start: int, end: int) -> Iterator[str]:
    """The characters start .. end of a text file, in pieces."""
    place = 0
    for piece in read_pieces(path):
        inside = piece[max(start - place, 0) : max(end - place, 0)]
        if inside:
            yield inside
        place += len(piece)


# --- all or nothing ---------------------------------------------------------------------------------------------------


def _check_target(out: Path) -> None:
    """ValueError unless `out` is new, empty, or holds what `prepare_data` writes and nothing else."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the working folder, not a folder of prepared data: name another one")
    for parent in out.parents:
        if parent.is_file():
            raise ValueError(f"{parent} is a file, so {out} cannot be a folder in it: name another one")
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    if names and not ("meta.json" in names and names <= FILES):
        raise ValueError(f"{out} exists and is not a folder of prepared data: name another one")


@contextlib.contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends well, and leaves no trace otherwise."""
    out = out.resolve()  # a link stays one
    made = [parent for parent in out.parents if not parent.exists()]  # nearest first
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    aside = temporary.with_name(temporary.name + "-before")
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's folders are private; prepared data is not
        if out.exists():
            out.rename(aside)  # until the new one is in its place
        temporary.rename(out)
    finally:
        if aside.exists() and not out.exists():
            aside.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: all went well
                parent.rmdir()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
