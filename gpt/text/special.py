"""Names of special tokens in a corpus: encoded as these tokens, or counted where they stay ordinary text."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gpt.text.tokenizers import END_NAMES
from gpt.tokenizer import EOT, HuggingFaceTokenizer, Tokenizer

LOOKS_SPECIAL = re.compile(r"<\|\w{1,40}\|>|</s>|<(?:bos|eos|pad|unk|BOS|EOS|PAD|UNK)>|\[(?:CLS|SEP|PAD|UNK|MASK)\]")
RESERVED = re.compile(r"reserved|unused|extra_id|\d")  # names that no text is written with
MIN_SPELLED = 5  # times that what looks like a special token, but is none yet, must occur to be one
MARGIN = 1000  # characters on each side of a border between chunks: longer than any name with its white space


def pieces(document: Iterable[str], tokenizer: Tokenizer, special: bool) -> Iterator[str]:
    """Yield the chunks of a document, joined where that is needed for the tokens to be those of the whole document.

    Hugging Face's tokenizers need all of it. With `special` no name of a special token may be cut, nor the white space
    around it, which may belong to the token.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        yield "".join(document)
        return
    if not special:
        yield from document
        return
    names = "|".join(map(re.escape, tokenizer.special_tokens))
    around, pending = re.compile(rf"\s*(?:{names})\s*"), ""
    for chunk in document:
        border = min(len(pending), MARGIN)
        near = pending[-MARGIN:] + chunk[:MARGIN]
        if pending and not any(found.start() <= border <= found.end() for found in around.finditer(near)):
            yield pending
            pending = ""
        pending += chunk
    yield pending


def encode_piece(text: str, tokenizer: Tokenizer, special: bool) -> np.ndarray:
    """Return the token ids of a piece of text. With `special`, names of special tokens are these tokens."""
    return np.array(tokenizer.encode(text, special=True), np.uint32) if special else tokenizer.encode_to_numpy(text)


def without_empty(ids: np.ndarray, eot_id: int, last: int = -1) -> np.ndarray:
    """Return token ids with one end-of-text token for several in a row: a text that ends with its name has no empty
    document after it. `last` is the id before them."""
    before = np.append(last, ids[:-1])
    return ids[(ids != eot_id) | (before != eot_id)]


def name_counter(tokenizer: Tokenizer, special: bool) -> Callable[[str], Counter[str]]:
    """Return a function that counts the names in a text that are, or look like, special tokens, but stay ordinary text.

    With `special` the tokenizer's own names are no ordinary text.
    """
    own = {*tokenizer.special_tokens} - {*tokenizer.saved.get("unmatched", ())}
    names = [] if special else [name for name in own if not RESERVED.search(name)]
    marks = {*"<[", *(name[:2] for name in names)}  # a text without them is soon passed

    def count(text: str) -> Counter[str]:
        found = Counter()
        if any(mark in text for mark in marks):
            found.update({name: n for name in names if (n := text.count(name))})
            found.update(name for name in LOOKS_SPECIAL.findall(text) if name not in own)
        return found

    return count


def describe_spelled(spelled: Counter[str], tokenizer: Tokenizer, paired: bool, flagged: bool = False) -> str:
    """Return the line about names of special tokens that a text holds as ordinary text, or "" if there are none. In the
    messages of conversations (`flagged`) they can be nothing else."""
    known = tokenizer.special_tokens
    found = [(name, n) for name, n in spelled.most_common() if name in known or n >= MIN_SPELLED]
    if not found:
        return ""
    named = ", ".join(f"{name} ({n:,} time{'s' * (n > 1)})" for name, n in found[:3])
    others = f" and {len(found) - 3} more" if len(found) > 3 else ""
    new = "".join(f" '{name}'" for name, _ in found[:10] if name not in known)
    advice = f"--special_tokens{new} makes {'it' if len(found) == 1 else 'each'} a token of its own"
    ends = [name for name, _ in found if name in (EOT, *END_NAMES)]
    if ends and not paired:
        advice += f"; if {ends[0]} ends documents, --separator '{ends[0]}' divides them there"
    verb = "stays" if len(found) == 1 else "stay"
    if flagged:
        return f"{named}{others} in the messages {verb} ordinary text: only the chat template writes special tokens"
    return f"{named}{others} in the text {verb} ordinary text: {advice}"
