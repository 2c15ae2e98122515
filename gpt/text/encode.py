"""Encode documents into a token file, on all cores; the file does not depend on their number."""

import hashlib
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from gpt.text.chat import encode_conversation
from gpt.text.conversations import Conversation
from gpt.text.special import encode_piece, name_counter, pieces, without_empty
from gpt.token_files import COUNTED, START
from gpt.tokenizer import Tokenizer

WORKERS = min(8, os.cpu_count() or 1)  # encoding threads; more would wait for the one that reads
BATCH_CHARACTERS = 1 << 19  # encoded at once by a thread
Item, Result = TypeVar("Item"), TypeVar("Result")
Chunk = TypeVar("Chunk", str | None, Conversation)


def write_split(
    path: Path, documents: Iterable[Iterable[str]], tokenizer: Tokenizer, meta: dict, bar: tqdm
) -> tuple[dict[str, int | str], Counter[str]]:
    """Write a split's tokens, as `meta` says, with end-of-text tokens around documents if has_eot.

    Return its counts and SHA-256, and how often the text holds the names of special tokens as ordinary text.
    """
    count = {"documents": 0, "characters": 0, "bytes": 0, "tokens": 0}
    digest, special, has_eot = hashlib.sha256(), "special_tokens" in meta, meta["has_eot"]
    separator = np.array([tokenizer.eot_id] if has_eot else [], meta["dtype"])
    count_names, spelled, last, n_ends = name_counter(tokenizer, special), Counter(), -1, 0

    def chunks() -> Iterator[str | None]:  # None where a separator belongs
        yield None
        for document in documents:
            count["documents"] += 1
            yield from pieces(document, tokenizer, special)
            yield None

    def encode(batch: list[str | None]) -> tuple[np.ndarray, int, int, Counter[str]]:
        texts = [chunk for chunk in batch if chunk is not None]
        ids = [separator if chunk is None else encode_piece(chunk, tokenizer, special) for chunk in batch]
        if special and meta["paired"] and any(tokenizer.eot_id in part for part in ids if part is not separator):
            raise ValueError("a prompt or a target holds the end-of-text token, which separates them: take it out")
        found = sum(map(count_names, texts), Counter())
        n_characters, n_bytes = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
        return np.concatenate(ids).astype(meta["dtype"]), n_characters, n_bytes, found

    with path.open("wb") as file:
        for ids, n_characters, n_bytes, found in ordered_map(encode, _batches(chunks())):
            if special and has_eot and not meta["paired"]:
                ids, last = without_empty(ids, tokenizer.eot_id, last), ids[-1]
            file.write(ids)
            digest.update(ids)
            count["tokens"] += len(ids)
            count["characters"] += n_characters
            count["bytes"] += n_bytes
            spelled.update(found)
            n_ends += int(np.count_nonzero(ids == tokenizer.eot_id)) if special else 0
            bar.update(n_characters)
    if special and has_eot:  # the text may end documents itself
        count["documents"] = n_ends - 1
    return {**count, "sha256": digest.hexdigest()}, spelled


def encode_documents(texts: Iterable[str], tokenizer: Tokenizer, has_eot: bool, special: bool = False) -> np.ndarray:
    """Return the token ids of all texts, int64, with an end-of-text token before and after each if `has_eot`.

    With `special`, names of special tokens are these tokens.
    """
    separator = [tokenizer.eot_id] if has_eot else []
    ids = [i for text in texts for i in (*tokenizer.encode(text, special), *separator)]
    return np.array(separator + ids, np.int64)


def encode_flagged(conversation: Conversation, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the token ids of a conversation, uint32; their flags, uint8; and the UTF-8 bytes of the text that counts.

    ValueError, with the record, if the tokenizer's template or its characters do not fit.
    """
    try:
        ids, counted = encode_conversation(tokenizer, conversation.messages, conversation.first)
    except ValueError as error:
        raise ValueError(f"{conversation.where}: {error}") from None
    flags = np.array(counted, np.uint8) * np.uint8(COUNTED)
    flags[0] |= START
    special = set(tokenizer.special_tokens.values())
    text = tokenizer.decode_bytes(i for i, counts in zip(ids, counted, strict=True) if counts and i not in special)
    return np.array(ids, np.uint32), flags, len(text)


def write_conversations(
    path: Path, conversations: Iterable[Conversation], tokenizer: Tokenizer, meta: dict, bar: tqdm
) -> tuple[dict[str, int | str], Counter[str]]:
    """Write the conversations of a split: all tokens, as `meta` says, and after them the flags of each.

    Return the counts and the SHA-256, as `write_split` does, also of turns and of counted tokens.
    """
    count = dict.fromkeys(("documents", "characters", "bytes", "tokens", "turns", "counted"), 0)
    digest, spelled, count_names = hashlib.sha256(), Counter(), name_counter(tokenizer, special=False)

    def encode(batch: list[Conversation]) -> tuple[np.ndarray, np.ndarray, int, int, int, Counter[str]]:
        ids, flags, sizes = zip(*(encode_flagged(conversation, tokenizer) for conversation in batch), strict=True)
        texts = [text for conversation in batch for text in conversation]
        found, n_turns = sum(map(count_names, texts), Counter()), sum(each.turns for each in batch)
        ids = np.concatenate(ids).astype(meta["dtype"])
        return ids, np.concatenate(flags), sum(map(len, batch)), sum(sizes), n_turns, found

    with path.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as rest:
        for ids, flags, n_characters, n_bytes, n_turns, found in ordered_map(encode, _batches(conversations)):
            file.write(ids)
            digest.update(ids)
            rest.write(flags)
            count["documents"] += int(np.count_nonzero(flags & START))
            count["characters"] += n_characters
            count["bytes"] += n_bytes
            count["tokens"] += len(ids)
            count["turns"] += n_turns
            count["counted"] += int(np.count_nonzero(flags & COUNTED))
            spelled.update(found)
            bar.update(n_characters)
        rest.seek(0)
        while block := rest.read(1 << 20):
            file.write(block)
            digest.update(block)
    return {**count, "sha256": digest.hexdigest()}, spelled


def _batches(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Group chunks of text, None or conversations into batches of about BATCH_CHARACTERS, none empty, so that short
    documents do not make threads wait."""
    batch, n_characters = [], 0
    for chunk in chunks:
        batch.append(chunk)
        n_characters += len(chunk or "")
        if n_characters >= BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


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
