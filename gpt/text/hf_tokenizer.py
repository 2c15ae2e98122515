"""Tokenizers as others save them: GPT-2's published files; Hugging Face's tokenizer.json, translated to ours and back.

Byte pairs as GPT-2 has them, with any merges and any further tokens, and single characters are what both sides know.
"""

import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gpt.system.files import sha256

EOT = "<|endoftext|>"
GPT2_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_ANY_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


@cache
def spelled_bytes() -> dict[str, int]:
    """GPT-2's spelling of tokens, one character per byte: the byte's own where that is printable and no space,
    otherwise the next one from U+0100 on. Radford et al. 2019, encoder.py."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(printable)))}


@cache
def _characters() -> dict[int, str]:
    return {byte: character for character, byte in spelled_bytes().items()}


def spell(token: bytes) -> str:
    """A token's bytes as GPT-2 spells them."""
    return "".join(map(_characters().__getitem__, token))


def unspell(token: str) -> bytes:
    """The bytes of a token that GPT-2 spells so."""
    return bytes(spelled_bytes()[character] for character in token)


def published_ranks(folder: Path) -> dict[bytes, int]:
    """GPT-2's tokens and their ids, from encoder.json, where they stand in the order of the merges. tiktoken's reader
    would copy both files to its cache, and checks no sum where that is switched off."""
    for name, digest in GPT2_SHA256.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the published file (its SHA-256 differs)")
    tokens = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    return {unspell(token): i for token, i in tokens.items() if token != EOT}


# --- theirs to ours ---------------------------------------------------------------------------------------------------


def read_saved(path: Path) -> dict[str, Any]:
    """What a tokenizer's file says, in our words: one of ours, a tokenizer.json of Hugging Face's, or a vocab.json with
    its merges.txt beside it, as GPT-2's own are kept."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "vocab.json":
        lines = path.with_name("merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        saved = {"model": {"type": "BPE", "vocab": saved, "merges": merges}, "pre_tokenizer": _BYTE_LEVEL}
    return from_hf(saved) if "model" in saved and "kind" not in saved else saved


def from_hf(saved: dict[str, Any]) -> dict[str, Any]:
    """What a tokenizer.json of Hugging Face's says, as ours does: characters, our byte pairs, or others' ("byte_pairs":
    tokens in GPT-2's spelling and their ids). ValueError names what of it has no like here."""
    model = saved["model"]
    vocab, kind = dict(model["vocab"]), model["type"]
    named = {token["content"]: token["id"] for token in saved.get("added_tokens") or ()}
    if saved.get("normalizer"):
        raise ValueError(f"it changes a text before it cuts it ({saved['normalizer'].get('type')})")
    if kind == "WordLevel":
        return _from_characters(vocab, named)
    if kind != "BPE":
        raise ValueError(f"its tokens are of the kind {kind!r}, neither byte pairs nor characters")
    cutter = saved.get("pre_tokenizer") or {}
    if cutter.get("type") != "ByteLevel" or cutter.get("add_prefix_space") or not cutter.get("use_regex", True):
        raise ValueError("it cuts a text otherwise than at GPT-2's words")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise ValueError(f"it has {key} {model[key]!r}")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = [left + right for left, right in merges]
    tokens = {token: vocab[token] for token in itertools.chain(spelled_bytes(), made) if token in vocab}
    if any(vocab[b] <= vocab[a] for a, b in itertools.pairwise(made)) or len(tokens) != len(set(tokens.values())):
        raise ValueError("the order of its merges is not that of its tokens' ids")
    if missing := [character for character in spelled_bytes() if character not in tokens]:
        raise ValueError(f"{len(missing)} of the 256 bytes have no token")
    named |= {name: i for name, i in vocab.items() if name not in tokens}
    in_order = sorted(named, key=named.get)
    last_ids = list(range(len(tokens), len(tokens) + len(named)))
    if in_order[:1] != [EOT] or [named[name] for name in in_order] != last_ids:
        return {"kind": "byte_pairs", "tokens": tokens, "named": named}
    special = {"special_tokens": in_order[1:]} if named.keys() > {EOT} else {}  # as with_special_tokens adds them
    if all(tokens[character] == byte for character, byte in spelled_bytes().items()):
        return {"kind": "bpe", "merges": [[tokens[left], tokens[right]] for left, right in merges], **special}
    return {"kind": "byte_pairs", "tokens": tokens, "named": {EOT: len(tokens)}, **special}


def _from_characters(vocab: dict[str, int], named: dict[str, int]) -> dict[str, Any]:
    characters = sorted(character for character in vocab if character not in named)
    if any(len(character) != 1 for character in characters):
        raise ValueError("its tokens are whole words")
    end = {EOT: len(characters)} if named else {}
    if named != end or [vocab[character] for character in characters] != list(range(len(characters))):
        raise ValueError("its characters are not numbered in the order of their code points")
    return {"kind": "char", "characters": "".join(characters), **({"end_of_text": True} if named else {})}


def begins_with_end_of_text(saved: dict[str, Any]) -> bool:
    """Whether a tokenizer.json of Hugging Face's puts the end-of-text token before each text, as documents have it."""
    processors = saved.get("post_processor") or {}
    for processor in processors.get("processors", [processors]):
        if processor.get("type") == "TemplateProcessing":
            first = processor["single"][0].get("SpecialToken", {})
            return first.get("id") == EOT
    return False


# --- ours to theirs ---------------------------------------------------------------------------------------------------


def to_hf(saved: dict[str, Any], ranks: dict[bytes, int], named: dict[str, int], prepend_eot: bool) -> dict[str, Any]:
    """The tokenizer.json that Hugging Face's tokenizers read: of characters, where `saved` is of that kind, or of byte
    pairs with these ids; `named` tokens besides. `in_documents`, a text begins with the end-of-text token."""
    if saved["kind"] == "char":
        vocab = {character: i for i, character in enumerate(saved["characters"])}
        model = {"type": "WordLevel", "vocab": vocab | named, "unk_token": ""}  # which is no token: an error
        cutter, decoder = _ANY_CHARACTER, {"type": "Fuse"}
    else:
        vocab = {spell(token): i for token, i in ranks.items()}
        model = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab | named,
            "merges": [[spell(left), spell(right)] for left, right in _merges(ranks)],
        }  # fmt: skip
        cutter = decoder = _BYTE_LEVEL
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in sorted(named.items(), key=lambda x: x[1])],
        "normalizer": None,
        "pre_tokenizer": cutter,
        "post_processor": _beginning(named[EOT]) if prepend_eot else None,
        "decoder": decoder,
        "model": model,
    }


def _beginning(eot_id: int) -> dict[str, Any]:
    mark = {"SpecialToken": {"id": EOT, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [mark, first],
        "pair": [mark, first, second],
        "special_tokens": {EOT: {"id": EOT, "ids": [eot_id], "tokens": [EOT]}},
    }


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two tokens that each token is made of, in the order of the merges: what is left of its bytes when all
    earlier merges have been made."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            first = min(range(len(pairs)), key=pairs.__getitem__)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]
