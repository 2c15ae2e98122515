"""Notices about a prepared corpus: repeated text, spelled tokens, a tokenizer that does not fit.

Each check reads a bounded part of the token files, so that it takes about a second whatever their size.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from gpt.text.bpe import count_words, learn_merges
from gpt.text.special import describe_spelled
from gpt.token_files import COUNTED, START, PreparedData, TokenFile
from gpt.tokenizer import BytePairTokenizer, CharTokenizer

MAX_DOCUMENTS = 200_000  # training documents whose copies are looked for
MAX_COMPARED = 500  # validation documents that are compared with similar ones
MAX_TOKENS = 2_000_000  # training tokens that are compared
MAX_RUNS = 500_000  # runs of tokens that are kept for a comparison
FIRST_TOKENS = 1024  # of each document
NEAR = 0.6  # share of the runs of a document that make it a near-duplicate: a changed word changes all runs around it
RUN_BYTES = 30  # bytes that two similar documents share at least
SAMPLE_BYTES = 500_000  # of text from which a tokenizer is learned, for comparison


def notice(line: str) -> None:
    """Print a line for the person at the terminal, apart from the results."""
    print(line, file=sys.stderr)


def find_notices(data: PreparedData, spelled: Counter[str], has_repeats: bool, learned: bool = False) -> Iterator[str]:
    """Yield one line for each thing that a person should know. `spelled` counts the names of special tokens that the
    text holds as ordinary text; `has_repeats` says that training documents are repeated by their weight, `learned` that
    the tokenizer comes from this text."""
    if line := describe_spelled(spelled, data.tokenizer, data.paired, data.train.flags is not None):
        yield line
    kinds = set(np.unique(_spread(data.train.tokens, MAX_TOKENS)).tolist())
    if len(kinds - {data.tokenizer.eot_id}) < 2:
        yield "the training split holds a single distinct token: there is nothing to learn from it"
        return
    flagged = data.train.flags is not None
    yield from _repeats_of_documents(data, has_repeats) if data.has_eot or flagged else _repeats_of_text(data)
    yield from () if learned else _fit_of_tokenizer(data)


def has_token(tokens: np.ndarray, token: int) -> bool:
    """Return whether a token occurs. Memory does not grow with the tokens."""
    parts = range(0, len(tokens), MAX_TOKENS)
    return any((tokens[start : start + MAX_TOKENS] == token).any() for start in parts)


# --- repeated text ----------------------------------------------------------------------------------------------------


def _noun(data: PreparedData) -> str:
    if data.train.flags is None:
        return "pairs" if data.paired else "documents"
    return "preferences" if data.preferences else "conversations"


def _documents(data: PreparedData, split: TokenFile, most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return where documents, pairs or the like start and end in a split, at most so many, evenly spread, and their
    number."""
    parts = [slice(a, a + MAX_TOKENS) for a in range(0, len(split.tokens), MAX_TOKENS)]  # bounded memory
    if split.flags is None:
        ends = np.concatenate([a.start + np.flatnonzero(split.tokens[a] == data.tokenizer.eot_id) for a in parts])
        ends = ends[:: 1 + data.paired]
        starts, stops = ends[:-1] + 1, ends[1:]
    else:
        starts = np.concatenate([a.start + np.flatnonzero(split.flags[a] & START) for a in parts])
        starts = starts[:: 1 + data.preferences]
        stops = np.append(starts[1:], len(split.tokens))
    chosen = np.linspace(0, len(starts) - 1, min(len(starts), most)).astype(np.int64)
    return starts[chosen], stops[chosen], len(starts)


def _repeats_of_documents(data: PreparedData, has_repeats: bool) -> Iterator[str]:
    """Yield what documents of the validation split also stand in the training split, word for word or nearly."""
    noun, train, val = _noun(data), data.train.tokens, data.val.tokens
    starts, stops, n_train = _documents(data, data.train, MAX_DOCUMENTS)
    copies = Counter(hash(train[a:b].tobytes()) for a, b in zip(starts, stops, strict=True))
    val_starts, val_stops, _ = _documents(data, data.val, MAX_DOCUMENTS)
    known = np.array(
        [hash(val[a:b].tobytes()) in copies for a, b in zip(val_starts, val_stops, strict=True)], dtype=bool
    )
    if len(known) and known.mean() >= 0.01:
        compared = "" if n_train == len(starts) else f" ({len(starts):,} of {n_train:,} training {noun} were compared)"
        yield (
            f"{known.sum():,} of {len(known):,} validation {noun} also stand in the training split, word for word"
            f"{compared}: the validation loss measures memory too; remove copies before preparing"
        )
    if not has_repeats and len(copies) < 0.9 * len(starts):
        yield f"of {len(starts):,} training {noun} only {len(copies):,} are distinct: the others are copies"
    new = np.flatnonzero(~known)[:: 1 + (~known).sum() // MAX_COMPARED]
    compared = f"{min(n_train, MAX_TOKENS // FIRST_TOKENS):,} compared"
    near = _near_duplicates(data, val_starts[new], val_stops[new])
    if near and near >= 0.01 * len(new):
        text = "text" if data.train.flags is None else "answers"
        yield (
            f"{near:,} of {len(new):,} validation {noun} share {NEAR:.0%} or more of their {text} with one training "
            f"{noun[:-1]} (of {compared}, by the first {FIRST_TOKENS:,} tokens): the validation loss measures memory "
            f"too"
        )


def _near_duplicates(data: PreparedData, val_starts: np.ndarray, val_stops: np.ndarray) -> int:
    """Return how many of these validation documents share NEAR of their runs of tokens with one training document."""
    starts, stops, _ = _documents(data, data.train, MAX_TOKENS // FIRST_TOKENS)
    of_train, owners = _runs(data, data.train, starts, stops)
    of_val, val_owners = _runs(data, data.val, val_starts, val_stops)
    one_in = np.int64(1 + len(of_train) // MAX_RUNS)  # the same runs of all documents
    hashes, owners = _distinct(of_train, owners, one_in)
    of_val, val_owners = _distinct(of_val, val_owners, one_in)
    first = np.searchsorted(hashes, of_val)
    last = np.minimum(np.searchsorted(hashes, of_val, side="right"), first + 100)  # a run that all share tells little
    near = 0
    for document in range(len(val_starts)):
        runs = np.flatnonzero(val_owners == document)
        sharing = [owners[first[i] : last[i]] for i in runs if first[i] < last[i]]
        if len(runs) >= 5 and sharing:
            near += np.bincount(np.concatenate(sharing)).max() >= NEAR * len(runs)
    return int(near)


def _runs(data: PreparedData, split: TokenFile, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the hashes of all runs of tokens within documents, and the documents' numbers. Of a conversation they are
    those that count: a template and a system's message may be the same in all."""
    stops = np.minimum(stops, starts + FIRST_TOKENS)
    spans = [slice(0, 0), *map(slice, starts, stops)]
    text = np.concatenate([split.tokens[span] for span in spans])
    owners = np.repeat(np.arange(len(starts)), stops - starts)
    if split.flags is not None:
        counted = np.concatenate([split.flags[span] for span in spans]) & COUNTED > 0
        text, owners = text[counted], owners[counted]
    n, hashes = _hash_runs(text, RUN_BYTES / data.bytes_per_token)
    within = owners[: len(hashes)] == owners[n - 1 :][: len(hashes)]
    return hashes[within], owners[: len(hashes)][within]


def _distinct(hashes: np.ndarray, owners: np.ndarray, one_in: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a sample of hashes in ascending order, each once per document, with the documents' numbers."""
    chosen = hashes % one_in == 0
    hashes, owners = hashes[chosen], owners[chosen]
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], owners[new]


def _hash_runs(tokens: np.ndarray, length: float) -> tuple[int, np.ndarray]:
    """Return the hash of every run of n tokens, int64, and n: the power of two next to `length`."""
    n, hashes = 1, (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    while n < length and len(hashes) > n:  # a run of 2n is made of two runs of n
        hashes = hashes[:-n] * np.uint64(0xD6E8FEB86659FD93) + hashes[n:]
        hashes ^= hashes >> np.uint64(29)
        n *= 2
    return n, (hashes >> np.uint64(1)).astype(np.int64)


def _repeats_of_text(data: PreparedData) -> Iterator[str]:
    """Yield how much of the validation text also stands in the training text, where there are no documents."""
    length = 4 * RUN_BYTES / data.bytes_per_token
    train, val = data.train.tokens, data.val.tokens
    n, known = _hash_runs(_spread(train, MAX_TOKENS), length)
    n, asked = _hash_runs(_spread(val, MAX_TOKENS // 8), length)
    one_in = 1 + len(known) // MAX_RUNS
    asked = asked[asked % one_in == 0]
    share = np.isin(asked, known[known % one_in == 0]).mean() if len(asked) else 0.0
    if share >= 0.1:
        yield (
            f"{share:.0%} of the validation text also stands in the training text, in runs of {n} tokens: the "
            f"validation loss measures memory too; remove copies before preparing"
        )


def _spread(tokens: np.ndarray, most: int, n: int = 16) -> np.ndarray:
    """Return at most so many tokens, in n pieces spread evenly."""
    if len(tokens) <= most:
        return np.asarray(tokens)
    starts = np.linspace(0, len(tokens) - most // n, n).astype(np.int64)
    return np.concatenate([tokens[a : a + most // n] for a in starts])


# --- a tokenizer that does not fit ------------------------------------------------------------------------------------


def _fit_of_tokenizer(data: PreparedData) -> Iterator[str]:
    """Yield what byte pairs learned from the text would make of it, if the tokenizer makes many tokens."""
    data = data if data.train.flags is None else _answers(data)
    tokenizer, train = data.tokenizer, data.train
    per_token, per_character = train.bytes / len(train.tokens), len(train.tokens) / max(train.characters, 1)
    if isinstance(tokenizer, CharTokenizer) or (per_token >= 2 and per_character <= 1.5):
        return
    text = _text(data, train.tokens, SAMPLE_BYTES * 4 // 5)
    size = 4096 if train.bytes >= SAMPLE_BYTES else 1024 if train.bytes >= SAMPLE_BYTES // 10 else 512
    merges = itertools.islice(learn_merges(count_words([text])), size - 257)
    sample = _text(data, data.val.tokens, SAMPLE_BYTES // 5)
    n_tokens = len(BytePairTokenizer.from_merges(list(merges)).encode_to_numpy(sample))
    if sample and n_tokens / len(sample) < 0.9 * per_character:
        yield (
            f"{tokenizer.name} makes {per_character:.2f} tokens of a character here; --tokenizer bpe:{size}, learned "
            f"from this text, would make {n_tokens / len(sample):.2f}"
        )


def _answers(data: PreparedData) -> PreparedData:
    """Return what the assistant says as one text, without special tokens."""

    def text_of(split: TokenFile) -> TokenFile:
        n = min(len(split.tokens), MAX_TOKENS)
        tokens = split.tokens[:n][split.flags[:n] & COUNTED > 0]
        tokens = tokens[~np.isin(tokens, [*data.tokenizer.special_tokens.values()])]
        text = data.tokenizer.decode(tokens.tolist())
        return replace(split, tokens=tokens, characters=len(text), bytes=len(text.encode()), flags=None)

    return replace(data, train=text_of(data.train), val=text_of(data.val))


def _text(data: PreparedData, tokens: np.ndarray, n_bytes: int) -> str:
    ids = _spread(tokens, int(n_bytes / data.bytes_per_token), 8)
    separators: Iterable[int] = {data.tokenizer.eot_id} if data.has_eot else ()
    return data.tokenizer.decode(i for i in ids.tolist() if i not in separators)
