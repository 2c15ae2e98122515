"""Read and write Hugging Face's tokenizer files: tokenizer.json, or vocab.json with merges.txt.

Single characters, and byte pairs split as GPT-2, SmolLM2, Llama 3, Qwen or Mistral split them, are read into this
project's own classes. Other byte pairs, such as SentencePiece's, are left to Hugging Face's library `tokenizers`.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from gpt.system.text import bytes_to_unicode, spell
from gpt.tokenizer import (
    EOT,
    GPT2_PATTERN,
    BytePairTokenizer,
    CharTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    load_tokenizer,
)

_ANY_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}

# How models split text into words before any merge, named as in GGUF files. smollm has single digits and GPT-2's words
# between them; the others are as published.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "smollm": rf"\p{{N}}|\s++(?=\p{{N}})|{GPT2_PATTERN}",
    "llama-bpe": _CL100K % "{1,3}" + _SPACES,
    "qwen2": _CL100K % "" + _SPACES,
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}"
    ),
}
END_OF_TEXT = ("</s>", "<|end_of_text|>")  # what ends a text where neither <|endoftext|> nor a config says so
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")  # of added tokens: how their names match in a text


def splitter(pre: str) -> dict[str, Any]:
    """Return the pre_tokenizer of tokenizer.json that splits text as PATTERNS[pre] does."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if pre == "gpt-2":
        return {**byte_level, "use_regex": True}
    if pre == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, {**byte_level, "use_regex": True}]
    else:
        split = {"type": "Split", "pattern": {"Regex": PATTERNS[pre]}, "behavior": "Isolated", "invert": False}
        steps = [split, {**byte_level, "use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}


def added_token(name: str, i: int, special: bool = True, **flags: bool) -> dict[str, Any]:
    """Return an entry of tokenizer.json's added_tokens. `flags` are among FLAGS, each False by default."""
    return {"id": i, "content": name, **dict.fromkeys(FLAGS, False), **flags, "special": special}


# --- reading ----------------------------------------------------------------------------------------------------------


def from_hf(file: dict[str, Any], roles: dict[str, str] | None = None) -> dict[str, Any]:
    """Translate the content of Hugging Face's tokenizer.json into that of ours.

    `roles` may name the tokens that end ("eot") and start ("bos") a text, and give the "chat_template". "plain" tokens,
    such as <think>, are single tokens that a message may hold, unlike special ones. Returns single characters, our byte
    pairs, another model's ("byte_pairs": spelled tokens and their ids), or the content itself ("hugging_face") where
    its rules are others. Raises ValueError for a feature that this project does not have.
    """
    model, added = file["model"], file.get("added_tokens") or []
    special = {token["content"]: token["id"] for token in added}
    roles = _roles(file, special, roles or {})
    if model["type"] == "WordLevel":
        return _from_characters(dict(model["vocab"]), special, roles | _flags(file))
    if model["type"] != "BPE":
        raise ValueError(f"its model is of type {model['type']!r}: byte pairs and characters can be read")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"it has {key} {model[key]!r}")
    return _from_byte_pairs(file, special, roles) or _for_library(file, roles)


def _roles(file: dict[str, Any], special: dict[str, int], given: dict[str, str]) -> dict[str, Any]:
    """Return the tokens that end and start a text, the template, and the plain tokens, without what is the default."""
    roles = {"bos": first_token(file)} | given
    roles["eot"] = next((name for name in (given.get("eot"), EOT, *END_OF_TEXT) if name in special), EOT)
    if roles["bos"] in (None, roles["eot"]) or roles["bos"] not in special:
        del roles["bos"]
    if roles["eot"] == EOT:
        del roles["eot"]
    if plain := [token["content"] for token in file.get("added_tokens") or () if token.get("special") is False]:
        roles["plain"] = plain
    return roles


def _flags(file: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names that match in a way of their own, by flag. Without a normalizer, "normalized" changes nothing
    where all names have it."""
    added = file.get("added_tokens") or ()
    named = {flag: [token["content"] for token in added if token.get(flag)] for flag in FLAGS}
    if not file.get("normalizer") and len(named["normalized"]) == len(added):
        del named["normalized"]
    return {flag: names for flag, names in named.items() if names}


def _from_byte_pairs(file: dict[str, Any], special: dict[str, int], roles: dict[str, str]) -> dict[str, Any] | None:
    """Return byte pairs that tiktoken's engine merges to the same ids, or None.

    It merges any two tokens whose bytes are those of a third, the lowest id first. The file's merges do the same if
    they are in the order of ids: a token that was learned as the union of two comes about in no other way.
    """
    model, words = file["model"], _words(file)
    if words is None:
        return None
    vocab, characters = dict(model["vocab"]), bytes_to_unicode()
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    merged = [left + right for left, right in merges]
    tokens = {token: vocab[token] for token in itertools.chain(characters.values(), merged) if token in vocab}
    others = {token: i for token, i in vocab.items() if token not in tokens and token not in special}
    if model.get("ignore_merges"):  # a word that is a token is this token, whatever the merges
        if any(token[:i] in tokens and token[i:] in tokens for token in others for i in range(1, len(token))):
            return None
        tokens |= others
    elif others:
        special = special | others
        roles = roles | {"unmatched": [name for name in others if name != EOT]}
    if any(vocab[b] < vocab[a] for a, b in itertools.pairwise(merged)) or not tokens.keys().isdisjoint(special):
        return None
    if missing := [chr(i) for i in range(32, 127) if characters[i] not in tokens]:
        raise ValueError(f"{len(missing)} of the printable characters of ASCII have no token")
    roles = roles | _flags(file)
    if words or len(tokens) - len(merges) != 256:
        return {"kind": "byte_pairs", "tokens": tokens, "named": special, **words, **roles}
    return _with_own_ids(tokens, merges, special) | roles


def _words(file: dict[str, Any]) -> dict[str, str] | None:
    """Return the pattern and the normalizer that split a text into words, as `saved` has them; None for other rules."""
    words = {}
    if normalizer := file.get("normalizer"):
        if normalizer.get("type") != "NFC":
            return None
        words["normalizer"] = "NFC"
    known = {json.dumps(_essential(splitter(pre))): pattern for pre, pattern in PATTERNS.items()}
    pattern = known.get(json.dumps(_essential(file.get("pre_tokenizer") or {})))
    if pattern is None:
        return None
    return words if pattern == GPT2_PATTERN else {"pattern": pattern, **words}


def _essential(pre_tokenizer: dict[str, Any]) -> list[Any]:
    """Return the steps of a pre_tokenizer, with their settings as far as they change the tokens, in a fixed order."""
    steps = []
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        default = {"use_regex": True} if step.get("type") == "ByteLevel" else {}
        settings = {
            key: value for key, value in (default | step).items() if key != "trim_offsets" and value is not False
        }
        steps.append(sorted(settings.items()))
    return steps


def _with_own_ids(tokens: dict[str, int], merges: list[tuple[str, str]], special: dict[str, int]) -> dict[str, Any]:
    """Return byte pairs as this project numbers them, if that is how these are: 256 bytes, merges, special tokens."""
    characters, in_order = bytes_to_unicode(), sorted(special, key=special.get)
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


def _for_library(file: dict[str, Any], roles: dict[str, str]) -> dict[str, Any]:
    """Return the content that Hugging Face's library runs, without what does not change the tokens of a text."""
    byte_level = "ByteLevel" in json.dumps([file.get("pre_tokenizer"), file.get("decoder")])
    if not byte_level and not file["model"].get("byte_fallback"):
        raise ValueError("its byte pairs are neither of bytes, as GPT-2's, nor of characters with byte_fallback")
    kept = {key: file.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")}
    kept["added_tokens"] = kept["added_tokens"] or []
    kept["decoder"] = kept["decoder"] or (splitter("gpt-2") if byte_level else None)
    return {"kind": "hugging_face", "file": {"version": "1.0", **kept}, **roles}


def _from_characters(vocab: dict[str, int], special: dict[str, int], roles: dict[str, Any]) -> dict[str, Any]:
    characters = sorted(character for character in vocab if character not in special)
    if any(len(character) != 1 for character in characters):
        raise ValueError("its tokens are whole words: byte pairs and characters can be read")
    names = sorted(special, key=special.get)
    ids = [*(vocab[character] for character in characters), *(special[name] for name in names)]
    if ids != list(range(len(ids))):
        raise ValueError("its characters are not numbered in the order of their code points, before its special tokens")
    end = {"end_of_text": True} if names[:1] == [EOT] else {}
    more = {"special_tokens": names[len(end) :]} if names[len(end) :] else {}
    return {"kind": "char", "characters": "".join(characters), **end, **more, **roles}


def first_token(file: dict[str, Any]) -> str | None:
    """Return the special token that Hugging Face's tokenizer.json puts before each text."""
    processors = file.get("post_processor") or {}
    for processor in processors.get("processors", [processors]):
        if processor.get("type") == "TemplateProcessing":
            return processor["single"][0].get("SpecialToken", {}).get("id")
    return None


# --- writing ----------------------------------------------------------------------------------------------------------


def to_hf(tokenizer: Tokenizer, prepend_eot: bool) -> dict[str, Any]:
    """Return the content of a tokenizer.json for Hugging Face.

    With `prepend_eot` each text starts with the token `bos_id`; else with the tokenizer's own such token, if any.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        file = tokenizer.saved["file"]
    elif isinstance(tokenizer, CharTokenizer):
        vocab = {character: i for i, character in enumerate(tokenizer.characters)}
        model = {
            "type": "WordLevel",
            "vocab": vocab | tokenizer.special_tokens,
            "unk_token": "",
        }  # an error: not in vocab
        file = {"model": model, "pre_tokenizer": _ANY_CHARACTER, "decoder": {"type": "Fuse"}}
    else:
        assert isinstance(tokenizer, BytePairTokenizer)
        file = _byte_pairs_file(tokenizer)
    names = {token["content"]: token for token in file.get("added_tokens", ())}
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    start = start_token(tokenizer, prepend_eot)
    plain, unmatched = (tokenizer.saved.get(key, ()) for key in ("plain", "unmatched"))

    def entry(name: str, i: int) -> dict[str, Any]:
        return added_token(name, i, name not in plain, **{f: name in tokenizer.saved.get(f, ()) for f in FLAGS})

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [names.get(name, entry(name, i)) for name, i in special if name not in unmatched],
        "normalizer": file.get("normalizer"),
        "pre_tokenizer": file["pre_tokenizer"],
        "post_processor": _start_template(start, tokenizer.special_tokens[start]) if start else None,
        "decoder": file["decoder"],
        "model": file["model"],
    }


def _byte_pairs_file(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    merges = [[spell(left), spell(right)] for left, right in merges_of(tokenizer.ranks)]
    vocab = {spell(token): i for token, i in tokenizer.ranks.items()}
    whole_words = len(merges) < sum(len(token) > 1 for token in tokenizer.ranks)  # tokens that no merges make
    normalizer = tokenizer.saved.get("normalizer")
    named = {name: i for name, i in tokenizer.special_tokens.items() if not whole_words or i < len(vocab)}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": whole_words,
        "vocab": vocab | named, "merges": merges,
    }  # fmt: skip
    return {
        "model": model, "normalizer": normalizer and {"type": normalizer},
        "pre_tokenizer": splitter(pre_of(tokenizer)), "decoder": splitter("gpt-2"),
    }  # fmt: skip


def pre_of(tokenizer: BytePairTokenizer) -> str:
    """Return the name in PATTERNS of the rule by which a tokenizer splits text into words."""
    return next(pre for pre, pattern in PATTERNS.items() if pattern == tokenizer.saved.get("pattern", GPT2_PATTERN))


def token_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the tokens that start and end a text as tokenizer_config.json has them: bos_token and eos_token."""
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    start = tokenizer.saved.get("bos", names.get(tokenizer.bos_id))
    roles = {"bos_token": start, "eos_token": names.get(tokenizer.eot_id)}
    return {role: name for role, name in roles.items() if name}


def start_token(tokenizer: Tokenizer, prepend_eot: bool) -> str | None:
    """Return the token before each text: with `prepend_eot` the one of `bos_id`, else the tokenizer's own, if any."""
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    return names[tokenizer.bos_id] if prepend_eot else tokenizer.saved.get("bos")


def _start_template(name: str, i: int) -> dict[str, Any]:
    start = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, second],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}},
    }


def merges_of(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the two tokens that each token is merged from, in order: its bytes after all earlier merges.

    A token that no merges make is left out.
    """
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            first = min(range(len(pairs)), key=pairs.__getitem__)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2 and all(part in ranks for part in parts):
            yield parts[0], parts[1]
