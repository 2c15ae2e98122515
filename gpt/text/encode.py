"""Encode documents into token files, on all cores; the files do not depend on their number."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from gpt.system.files import checksummed, sha256
from gpt.text.chat import encode_conversation
from gpt.text.conversations import Conversation
from gpt.text.special import encode_piece, name_counter, pieces, without_empty
from gpt.text.splits import SHARE_ADVICE, Document
from gpt.text.token_writer import Progress, SplitWriter
from gpt.token_files import COUNTED, SHARDED, START
from gpt.tokenizer import Tokenizer

WORKERS = min(16, os.cpu_count() or 1)  # encoding threads; more would wait for the one that reads
BATCH_CHARACTERS = 1 << 19  # encoded at once by a thread
Item, Result = TypeVar("Item"), TypeVar("Result")
Chunk = TypeVar("Chunk", str | None, Conversation)


def write_splits(
    progress: Progress,
    meta: dict,
    splits: dict[str, Iterable[Document]],
    tokenizer: Tokenizer,
    bar: tqdm,
    shard_tokens: int,
) -> Counter[str]:
    """Write both splits, the tokenizer and meta.json. Return how often the text holds the names of special tokens as
    ordinary text. ValueError for a split of fewer than two tokens."""
    spelled, write = Counter(), write_conversations if meta.get("flagged") else write_split
    for split, documents in splits.items():
        saved = progress.state_of(split)
        with SplitWriter(progress, split, meta["dtype"], shard_tokens) as writer:
            bar.update(writer.counts["characters"])
            meta[split] = saved.get("done") or write(writer, documents, tokenizer, meta, bar)
        if "shards" in meta[split]:
            meta["format"] = SHARDED
        if progress.file.exists():  # there are files to continue after
            progress.save(split, {**writer.state, "done": meta[split]})
        spelled += writer.spelled
        if meta[split]["tokens"] < 2 + meta["has_eot"]:
            raise ValueError(f"{meta['source']} is too short: both splits need at least two tokens; {SHARE_ADVICE}")
    folder = progress.folder
    tokenizer.save(folder / "tokenizer.json")
    meta["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
    (folder / "meta.json").write_text(checksummed(meta), encoding="utf-8", newline="\n")
    return spelled


def write_split(
    writer: SplitWriter, documents: Iterable[Iterable[str]], tokenizer: Tokenizer, meta: dict, bar: tqdm
) -> dict[str, Any]:
    """Write a split's tokens, as `meta` says, with end-of-text tokens around documents if has_eot.

    Return its counts and SHA-256, for meta.json.
    """
    special, has_eot, n_documents = "special_tokens" in meta, meta["has_eot"], 0
    separator = np.array([tokenizer.eot_id] if has_eot else [], meta["dtype"])
    count_names = name_counter(tokenizer, special)

    def chunks() -> Iterator[str | None]:  # None where a separator belongs
        nonlocal n_documents
        yield None
        for document in documents:
            n_documents += 1
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

    for ids, n_characters, n_bytes, found in ordered_map(encode, writer.remaining(_batches(chunks()))):
        kept = ids
        if special and has_eot and not meta["paired"]:
            kept = without_empty(ids, tokenizer.eot_id, writer.last)
        n_ends = int(np.count_nonzero(kept == tokenizer.eot_id)) if special else 0
        writer.add(kept, None, {"characters": n_characters, "bytes": n_bytes, "ends": n_ends}, found, ids[-1:])
        bar.update(n_characters)
    if special and has_eot:  # the text may end documents itself
        n_documents = writer.counts["ends"] - 1
    return {"documents": n_documents, **writer.counts_of("characters", "bytes", "tokens"), **writer.close()}


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
    writer: SplitWriter, conversations: Iterable[Conversation], tokenizer: Tokenizer, meta: dict, bar: tqdm
) -> dict[str, Any]:
    """Write the conversations of a split with their flags.

    Return the counts and the SHA-256, as `write_split` does, also of turns and of counted tokens.
    """
    count_names = name_counter(tokenizer, special=False)

    def encode(batch: list[Conversation]) -> tuple[np.ndarray, np.ndarray, dict[str, int], Counter[str]]:
        ids, flags, sizes = zip(*(encode_flagged(conversation, tokenizer) for conversation in batch), strict=True)
        texts = [text for conversation in batch for text in conversation]
        found, n_turns = sum(map(count_names, texts), Counter()), sum(each.turns for each in batch)
        ids, flags = np.concatenate(ids).astype(meta["dtype"]), np.concatenate(flags)
        counts = {
            "documents": int(np.count_nonzero(flags & START)),
            "characters": sum(map(len, batch)),
            "bytes": sum(sizes),
            "turns": n_turns,
            "counted": int(np.count_nonzero(flags & COUNTED)),
        }
        return ids, flags, counts, found

    for ids, flags, counts, found in ordered_map(encode, writer.remaining(_batches(conversations))):
        writer.add(ids, flags, counts, found, ids[-1:])
        bar.update(counts["characters"])
    counts = writer.counts_of("documents", "characters", "bytes", "tokens", "turns", "counted")
    return {**counts, **writer.close()}


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
