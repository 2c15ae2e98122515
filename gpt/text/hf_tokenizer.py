"""Read and write Hugging Face's tokenizer files: tokenizer.json, or vocab.json with merges.txt.

Both sides know single characters and byte pairs split at GPT-2's words, with any merges and any special tokens.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.tokenizer import EOT, BytePairTokenizer, CharTokenizer, Tokenizer, bytes_to_unicode, from_dict, load_tokenizer

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_ANY_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


# --- reading ----------------------------------------------------------------------------------------------------------


def load_any_tokenizer(path: str | Path) -> Tokenizer:
    """Return a tokenizer saved by this project or by Hugging Face: a file, or a folder that contains one.

    Raises ValueError for a missing or damaged file, and for a tokenizer that this project cannot represent.
    """
    path = Path(path)
    if path.is_dir():
        path /= "tokenizer.json" if (path / "tokenizer.json").exists() else "vocab.json"
    if not path.is_file():
        raise ValueError(f"no tokenizer file {path}")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "vocab.json":
            lines = path.with_name("merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
            saved = {"model": {"type": "BPE", "vocab": saved, "merges": merges}, "pre_tokenizer": _BYTE_LEVEL}
        return from_dict(saved if "kind" in saved else from_hf(saved))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a tokenizer that can be read here: {type(error).__name__} {error}") from None


def from_hf(saved: dict[str, Any]) -> dict[str, Any]:
    """Translate the content of Hugging Face's tokenizer.json into that of ours.

    Returns single characters, our byte pairs, or another model's ("byte_pairs": spelled tokens and their ids). Raises
    ValueError for a feature that this project does not have.
    """
    model = saved["model"]
    vocab, kind = dict(model["vocab"]), model["type"]
    special = {token["content"]: token["id"] for token in saved.get("added_tokens") or ()}
    if saved.get("normalizer"):
        raise ValueError(f"it normalizes text before splitting it ({saved['normalizer'].get('type')})")
    if kind == "WordLevel":
        return _from_characters(vocab, special)
    if kind != "BPE":
        raise ValueError(f"its model is of type {kind!r}, neither byte pairs nor characters")
    splitter = saved.get("pre_tokenizer") or {}
    if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space") or not splitter.get("use_regex", True):
        raise ValueError("it does not split text into GPT-2's words")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise ValueError(f"it has {key} {model[key]!r}")
    return _from_byte_pairs(vocab, model["merges"], special)


def _from_byte_pairs(vocab: dict[str, int], merges: list, special: dict[str, int]) -> dict[str, Any]:
    characters = bytes_to_unicode()
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    merged = [left + right for left, right in merges]
    tokens = {token: vocab[token] for token in itertools.chain(characters.values(), merged) if token in vocab}
    if any(vocab[b] <= vocab[a] for a, b in itertools.pairwise(merged)) or len(tokens) != len(set(tokens.values())):
        raise ValueError("the order of its merges is not that of its tokens' ids")
    if missing := [character for character in characters.values() if character not in tokens]:
        raise ValueError(f"{len(missing)} of the 256 bytes have no token")
    special |= {name: i for name, i in vocab.items() if name not in tokens}
    in_order = sorted(special, key=special.get)
    last_ids = list(range(len(tokens), len(tokens) + len(special)))
    if in_order[:1] != [EOT] or [special[name] for name in in_order] != last_ids:
        return {"kind": "byte_pairs", "tokens": tokens, "named": special}
    added = {"special_tokens": in_order[1:]} if len(special) > 1 else {}  # as with_special_tokens adds them
    if all(tokens[character] == byte for byte, character in characters.items()):
        return {"kind": "bpe", "merges": [[tokens[left], tokens[right]] for left, right in merges], **added}
    gpt2 = load_tokenizer("gpt2").ranks
    if len(gpt2) == len(tokens) and all(tokens.get(spell(token)) == i for token, i in gpt2.items()):
        return {"kind": "gpt2", **added}
    return {"kind": "byte_pairs", "tokens": tokens, "named": {EOT: len(tokens)}, **added}


def _from_characters(vocab: dict[str, int], special: dict[str, int]) -> dict[str, Any]:
    characters = sorted(character for character in vocab if character not in special)
    if any(len(character) != 1 for character in characters):
        raise ValueError("its tokens are whole words")
    end = {EOT: len(characters)} if special else {}
    if special != end or [vocab[character] for character in characters] != list(range(len(characters))):
        raise ValueError("its characters are not numbered in the order of their code points")
    return {"kind": "char", "characters": "".join(characters), **({"end_of_text": True} if special else {})}


def starts_with_eot(saved: dict[str, Any]) -> bool:
    """Whether Hugging Face's tokenizer.json puts the end-of-text token before each text."""
    processors = saved.get("post_processor") or {}
    for processor in processors.get("processors", [processors]):
        if processor.get("type") == "TemplateProcessing":
            return processor["single"][0].get("SpecialToken", {}).get("id") == EOT
    return False


# --- writing ----------------------------------------------------------------------------------------------------------


def to_hf(tokenizer: Tokenizer, prepend_eot: bool) -> dict[str, Any]:
    """Return the content of a tokenizer.json for Hugging Face. With `prepend_eot`, each text starts with that token."""
    special = tokenizer.special_tokens
    if isinstance(tokenizer, CharTokenizer):
        vocab = {character: i for i, character in enumerate(tokenizer.characters)}
        model = {"type": "WordLevel", "vocab": vocab | special, "unk_token": ""}  # not in vocab: an error
        splitter, decoder = _ANY_CHARACTER, {"type": "Fuse"}
    else:
        assert isinstance(tokenizer, BytePairTokenizer)
        vocab = {spell(token): i for token, i in tokenizer.ranks.items()}
        model = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab | special,
            "merges": [[spell(left), spell(right)] for left, right in _merges(tokenizer.ranks)],
        }  # fmt: skip
        splitter = decoder = _BYTE_LEVEL
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, **flags} for name, i in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": splitter,
        "post_processor": _eot_template(tokenizer.eot_id) if prepend_eot else None,
        "decoder": decoder,
        "model": model,
    }


def spell(token: bytes) -> str:
    """Return the bytes of a token as GPT-2's files spell them."""
    return "".join(map(bytes_to_unicode().__getitem__, token))


def _eot_template(eot_id: int) -> dict[str, Any]:
    eot = {"SpecialToken": {"id": EOT, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [eot, first],
        "pair": [eot, first, second],
        "special_tokens": {EOT: {"id": EOT, "ids": [eot_id], "tokens": [EOT]}},
    }


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the two tokens that each token is merged from, in order: its bytes after all earlier merges."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            first = min(range(len(pairs)), key=pairs.__getitem__)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]
