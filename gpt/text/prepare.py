"""Prepare text for training: write the token files that gpt/token_files.py reads, whole or not at all."""

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt.text import encode
from gpt.text.chat import add_chat_template
from gpt.text.formats import COMPRESSED
from gpt.text.quality import find_notices, has_token, notice
from gpt.text.readers import CHUNK_BYTES
from gpt.text.sources import Corpus, add_text_options, open_texts
from gpt.text.splits import Document, SplitPlan, split_documents
from gpt.text.target import check_same, check_same_text, check_target
from gpt.text.token_writer import SHARD_TOKENS, VERSION, prepared_folder
from gpt.text.tokenizers import get_tokenizer, is_learned, with_end_of_text, without_unused
from gpt.token_files import COUNTED, FORMAT, PreparedData, load_data
from gpt.tokenizer import Tokenizer, from_dict, with_special_tokens

MAX_REPEATS = 1_000_000  # of a corpus in the training split


def prepare_data(
    corpora: Corpus | Sequence[Corpus],
    tokenizer_name: str,
    out: Path,
    val_fraction: float = 0.1,
    val_corpus: Corpus | None = None,
    weights: Sequence[float] = (),
    special_tokens: Sequence[str] | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> PreparedData:
    """Write corpora as token files: train.bin, val.bin, tokenizer.json and meta.json in the folder `out`.

    The last `val_fraction` of each corpus is for validation: of its documents if it has ten or more, else of its
    characters. With `val_corpus`, only that one is. The rest is for training, repeated by the corpus's weight (default
    1): in whole passes, then one over an evenly spread share of the documents. Validation text is written once. The
    tokenizers "char" and "bpe:N" are learned from both splits without repeats. Several documents are separated by
    end-of-text tokens, also before the first and after the last, so that a model learns where a document ends; a
    tokenizer without such a token gets one. A corpus of two fields holds pairs of a prompt and its target, which a
    split keeps together. Conversations are written by the tokenizer's chat template, or as ChatML, with their flags.
    Names of special tokens in a text are ordinary text; with `special_tokens`, further names or none, they are these
    tokens. `log` is called with one line for each thing that a person should know.

    All cores encode, but the files do not depend on their number. Memory does not grow with the corpus, except for
    bpe:N's table of distinct words, the longest document of a separator, and 16 bytes per document. A split of more
    than `shard_tokens` tokens becomes several files of so many, train-00000.bin and so on; if the preparation is
    killed, the same call continues after those that are finished.
    ValueError for a corpus without text, pairs with an empty target, a record that is no conversation, corpora of
    different kinds, wrong weights, a text too short to split, and an `out` that holds something else: no prepared data,
    or, unless `overwrite`, that of another source or tokenizer.
    """
    corpora = [corpora] if isinstance(corpora, Corpus) else [*corpora]
    weights = _check_numbers(corpora, val_fraction, weights, shard_tokens)
    source = " + ".join(map(_weighted_name, corpora, weights))
    check_target(out)
    check_same(out, "source", source, overwrite)
    sources = [*corpora, *([val_corpus] if val_corpus else [])]
    kind, flagged = _check_kind(sources)
    opened = _open_tokenizer(tokenizer_name, special_tokens or ())  # a wrong name is told before a corpus is read
    lengths = [_document_lengths(source, needs_two=kind != "document" and not val_corpus) for source in sources]
    plans = [
        SplitPlan.create(corpus, length, weight, None if val_corpus else val_fraction)
        for corpus, length, weight in zip(corpora, lengths, weights, strict=False)
    ]
    n_val = int(lengths[-1].sum()) if val_corpus else sum(plan.val_characters for plan in plans)
    n_characters = {"train": sum(plan.train_characters for plan in plans), "val": n_val}
    check_same_text(out, source, n_characters, overwrite)
    has_eot = not flagged and (len(corpora) > 1 or max(map(len, lengths)) > 1 or weights[0] != 1)
    add_tokens = add_chat_template if flagged else partial(_with_needed_tokens, has_eot, special_tokens or ())
    tokenizer = add_tokens(opened or _learn_tokenizer(tokenizer_name, sources, lengths), tokenizer_name, log)
    has_eot = has_eot or (special_tokens is not None and tokenizer.eot_id is not None)  # the text may end documents
    check_same(out, "tokenizer", tokenizer.name, overwrite)
    meta = _describe_data(source, tokenizer, has_eot, kind, plans, special_tokens is not None)
    spelled = _write_folder(out, meta, plans, val_corpus, tokenizer, n_characters, shard_tokens, log)
    data = load_data(out)
    notices = _notices(data, meta, sources, lengths, spelled, weights, tokenizer_name, special_tokens or ())
    for line in notices if log else ():
        log(line)
    return data


def _write_folder(
    out: Path,
    meta: dict[str, Any],
    plans: list[SplitPlan],
    val_corpus: Corpus | None,
    tokenizer: Tokenizer,
    n_characters: dict[str, int],
    shard_tokens: int,
    log: Callable[[str], None] | None,
) -> Counter[str]:
    """Write both splits, or continue to, and return how often the text holds the names of special tokens."""
    sources = [(source, source.versions()) for source in (*(plan.corpus for plan in plans), val_corpus) if source]
    cut = (VERSION, CHUNK_BYTES, encode.BATCH_CHARACTERS)  # how batches are cut
    identity = repr((cut, meta, tokenizer.to_dict(), sources, n_characters, shard_tokens))
    is_long = 4 * max(n_characters.values()) > shard_tokens  # bytes of a character, and so tokens, at most
    with prepared_folder(out, identity, is_long) as progress:
        log = log or (lambda line: None)
        if progress.n_tokens:
            log(f"continuing after the {progress.n_tokens:,} tokens that {progress.folder} holds")
        if progress.n_lost:
            log(
                f"starting again: the {progress.n_lost:,} tokens that {progress.folder} held were made of another text "
                f"or with other options, or their files have changed"
            )
        documents = split_documents(plans, val_corpus)
        try:
            with _progress_bar("encoding", sum(n_characters.values())) as bar:
                return encode.write_splits(progress, meta, documents, tokenizer, bar, shard_tokens)
        except BaseException:  # Ctrl-C too
            if is_long and progress.file.exists():
                log(
                    f"{progress.n_tokens:,} tokens are kept in {progress.folder}: run the same command to continue, or "
                    f"delete that folder"
                )
            raise


def _describe_data(
    source: str, tokenizer: Tokenizer, has_eot: bool, kind: str, plans: list[SplitPlan], special: bool
) -> dict[str, Any]:
    """Return the content of meta.json without what is known after writing."""
    meta = {
        "format": FORMAT,
        "source": source,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "has_eot": has_eot,
        "paired": kind == "pair",
    }
    if plans[0].corpus.format:
        meta |= {"flagged": True, "preferences": kind == "preference"}
    if special:
        meta["special_tokens"] = True
    if len(plans) > 1:
        meta["sources"] = [
            {"name": plan.corpus.name, "weight": float(plan.weight), "characters": plan.train_characters}
            for plan in plans
        ]
    return meta


def has_special_tokens(folder: Path) -> bool:
    """Return whether names of special tokens in the text of prepared data were read as these tokens."""
    meta = folder / "meta.json"
    return meta.is_file() and bool(json.loads(meta.read_text(encoding="utf-8")).get("special_tokens"))


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_numbers(
    corpora: list[Corpus], val_fraction: float, weights: Sequence[float], shard_tokens: int
) -> list[Fraction]:
    """Return weights as exact fractions of their decimal digits. ValueError for numbers that make no sense."""
    if not corpora:
        raise ValueError("no corpus is named: there is nothing to prepare")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens must be at least 1, not {shard_tokens}")
    n = len(corpora)
    weights = [*weights] or [1] * n
    if len(weights) != n:
        raise ValueError(f"weights must be one for each input: {n} of them, not {len(weights)}")
    for weight in weights:
        if not 0 < weight <= MAX_REPEATS:
            raise ValueError(f"a weight must be above 0 and at most {MAX_REPEATS:,}, not {weight}")
    return [Fraction(str(weight)) for weight in weights]


def _weighted_name(corpus: Corpus, weight: Fraction) -> str:
    """Return the corpus's name, with the weight unless it is 1."""
    return corpus.name if weight == 1 else f"{corpus.name} x {float(weight):g}"


def _check_kind(sources: list[Corpus]) -> tuple[str, bool]:
    """Return what the sources hold: documents, pairs, conversations or preferences, and whether it is one of the last
    two, which have flags. ValueError if the sources differ."""
    first, kind = sources[0], sources[0].noun
    for source in sources:
        if source.noun != kind:
            kind = kind if kind != "document" else source.noun
            raise ValueError(
                f"of {first.name} and {source.name} one holds {kind}s, the other does not: both, or neither"
            )
    return kind, bool(first.format)


def _document_lengths(corpus: Corpus, needs_two: bool) -> np.ndarray:
    """Return the length of each document in characters. ValueError if they cannot be learned from or split."""

    def length(document: Document) -> int:
        n = 0
        for chunk in document:
            n += len(chunk)
            bar.update(len(chunk.encode()))
        return n

    is_plain = not corpus.fields and not corpus.format and all(path.suffix not in COMPRESSED for path in corpus.names)
    n_bytes = sum(size for _, size, _ in corpus.versions()) if is_plain else None  # of others the text's are unknown
    with _progress_bar("counting", n_bytes, "B") as bar:
        lengths = np.fromiter(map(length, corpus.documents()), np.int64)
    check_lengths(corpus, lengths)
    if needs_two and len(lengths) < 2 * corpus.unit:
        raise ValueError(f"one {corpus.noun} cannot be split into training and validation: {corpus.name} needs two")
    return lengths


def check_lengths(corpus: Corpus, lengths: np.ndarray) -> None:
    """Raise ValueError for documents of these lengths if they hold no text, or if the target of a pair is empty."""
    if lengths.sum() < 2:
        raise ValueError(f"{corpus.name} holds {lengths.sum()} characters: no text to learn from")
    if len(corpus.fields) == 2 and (empty := np.flatnonzero(lengths[1::2] == 0)).size:
        raise ValueError(f"the target of pair {empty[0] + 1} is empty in {corpus.name}: there is nothing to learn")


def _open_tokenizer(name: str, special_tokens: Sequence[str]) -> Tokenizer | None:
    """Return a tokenizer, None if it is learned. ValueError for a wrong name, of the tokenizer or a special token."""
    if "" in special_tokens:
        raise ValueError("--special_tokens '' names no token: leave it out, or name one such as '<|user|>'")
    return None if is_learned(name) else get_tokenizer(name)


def _learn_tokenizer(name: str, sources: list[Corpus], lengths: list[np.ndarray]) -> Tokenizer:
    """Learn a tokenizer from the sources, whose documents have these lengths."""

    def chunks() -> Iterator[str]:
        with _progress_bar("learning", sum(int(n.sum()) for n in lengths)) as bar:
            for chunk in itertools.chain.from_iterable(source.chunks() for source in sources):
                yield chunk
                bar.update(len(chunk))

    return get_tokenizer(name, chunks())


def _with_needed_tokens(
    has_eot: bool, special_tokens: Sequence[str], tokenizer: Tokenizer, name: str, log: Callable[[str], None] | None
) -> Tokenizer:
    """Return the tokenizer with a token that ends documents, if there are any, and with these special tokens. They
    take the place of unused ones, such as a run has whose model has more rows than tokens."""
    if special_tokens or (has_eot and tokenizer.eot_id is None):
        tokenizer = without_unused(tokenizer)
    if has_eot and tokenizer.eot_id is None:
        tokenizer = with_end_of_text(tokenizer)
        if log and name != "char":
            eot = next(token for token, i in tokenizer.special_tokens.items() if i == tokenizer.eot_id)
            log(f"{name} names no end-of-text token: {eot}, token {tokenizer.eot_id}, separates the documents")
    if not special_tokens:
        return tokenizer
    return from_dict(with_special_tokens(tokenizer, special_tokens).to_dict())  # as it will be loaded


def _progress_bar(description: str, total: int | None, unit: str = "characters") -> tqdm:
    return tqdm(desc=description, total=total, unit=unit, unit_scale=True, disable=not sys.stderr.isatty())


# --- notices ----------------------------------------------------------------------------------------------------------


def _notices(
    data: PreparedData,
    meta: dict[str, Any],
    sources: Sequence[Corpus],
    lengths: Sequence[np.ndarray],
    spelled: Counter[str],
    weights: Sequence[Fraction],
    tokenizer_name: str,
    special_tokens: Sequence[str],
) -> Iterator[str]:
    """Yield one line for each thing that a person should know about data that have just been written."""
    if meta.get("flagged"):
        n, turns, counted, tokens = (
            sum(meta[split][key] for split in ("train", "val")) for key in ("documents", "turns", "counted", "tokens")
        )
        loss = f"{counted:,} of {tokens:,} tokens count in the loss, the assistant's"
        yield f"{n:,} conversations with {turns:,} turns: {loss}"
    for corpus in sources:
        if advice := corpus.advice():
            yield f"{corpus.name} holds conversations: {advice}"
    for corpus, length in zip(sources, lengths, strict=True):
        if corpus.separator and not corpus.fields and len(length) <= len(corpus.paths):
            yield f"the separator {corpus.separator!r} divides nothing in {corpus.name}: each file is one document"
    for name in dict.fromkeys(special_tokens):
        token = data.tokenizer.special_tokens[name]
        if not any(has_token(split.tokens, token) for split in (data.train, data.val)):
            yield f"the special token {name!r} does not occur in the text"
    has_repeats = any(weight != 1 for weight in weights)
    yield from find_notices(data, spelled, has_repeats, is_learned(tokenizer_name))


# --- summary ----------------------------------------------------------------------------------------------------------


def describe(data: PreparedData) -> str:
    """Return a summary of a few lines: source, tokenizer, and the size of each split."""
    lines = [f"{data.source} -> {data.folder}, tokenizer {data.tokenizer.name} of {data.tokenizer.vocab_size:,} tokens"]
    for source in data.sources:
        share = source["characters"] / sum(other["characters"] for other in data.sources)
        lines.append(f"  {source['name']}: weight {source['weight']:g}, {share:.1%} of the training characters")
    for split in (data.train, data.val):
        n, noun, measured, counted = split.documents, "documents", len(split.tokens), ""
        if split.flags is not None:
            noun, measured = "conversations", np.count_nonzero(split.flags & COUNTED)
            counted = f"{measured:,} tokens count: "
        if data.paired or data.preferences:
            n, noun = n // 2, "pairs" if data.paired else "preferences"
        lines.append(
            f"{split.path.stem:>5}: {len(split.tokens):,} tokens, {split.characters:,} characters, {counted}"
            f"{split.bytes:,} bytes ({split.bytes / measured:.2f} per token), {noun}: {n:,}"
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
        help="a text known by name (--list), a file, a folder, a glob, a URL, hub:OWNER/NAME, or -; several are "
        "read in turn",
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
    add(
        "--shard_tokens", type=int, default=SHARD_TOKENS, metavar="N",
        help="most tokens in one file; a longer split becomes several (default: 100000000)",
    )
    add("--overwrite", action="store_true", help="replace prepared data of another text or tokenizer in --out")
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
    for corpus in filter(None, [*corpora, val_corpus]):
        if corpus.left_out:
            notice(corpus.left_out)
    return prepare_data(
        corpora,
        arguments.tokenizer,
        Path(arguments.out),
        arguments.val_fraction,
        val_corpus,
        arguments.weights,
        arguments.special_tokens,
        arguments.overwrite,
        notice,
        arguments.shard_tokens,
    )
