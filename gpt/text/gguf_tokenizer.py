"""Read and write the tokenizer of a GGUF file: a part of its metadata, as llama.cpp names it.

`tokenizer.ggml.model` is "gpt2" for byte-level pairs, split into words by the rule that `tokenizer.ggml.pre` names, and
"llama" for SentencePiece's.
"""

from typing import Any

from gpt.system.text import spell
from gpt.text.hf_tokenizer import PATTERNS, added_token, from_hf, merges_of, pre_of, splitter, start_token
from gpt.tokenizer import BytePairTokenizer, Tokenizer, from_dict

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token types

# Other names of the rules of PATTERNS. Files written before May 2024 name none.
ALIASES = {
    "default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2",
}  # fmt: skip
# Here llama.cpp puts a token before each text, unless add_bos_token is false, and takes whole words without merges.
STARTS_BY_DEFAULT = ("llama-bpe", "tekken")


def from_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of a GGUF file, given its metadata by name.

    Raises ValueError for a missing key, and for a tokenizer that this project cannot represent.
    """
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    try:
        kind, pre = ggml["model"], ggml.get("pre", "default")
        pre = ALIASES.get(pre, pre)
        if kind not in ("gpt2", "llama"):
            raise ValueError(f"its tokenizer.ggml.model is {kind!r}: gpt2 and llama can be read")
        if kind == "gpt2" and pre not in PATTERNS:
            raise ValueError(f"its tokenizer.ggml.pre is {pre!r}: {', '.join(PATTERNS)} can be read")
        types = list(ggml.get("token_type") or [NORMAL] * len(ggml["tokens"]))
        ends = {"eot": ggml.get("eos_token_id"), "bos": ggml.get("bos_token_id")}
        if not ggml.get("add_bos_token", kind == "llama" or pre in STARTS_BY_DEFAULT):
            ends.pop("bos")
        roles = {role: ggml["tokens"][i] for role, i in ends.items() if i is not None}
        if template := metadata.get("tokenizer.chat_template"):
            roles["chat_template"] = template
        special = [
            added_token(token, i, special=types[i] != USER_DEFINED)
            for i, token in enumerate(ggml["tokens"])
            if types[i] not in (NORMAL, BYTE) or i in ends.values()
        ]
        file = _byte_level(ggml, pre) if kind == "gpt2" else _sentencepiece(ggml, types)
        tokenizer = from_dict(from_hf(file | {"added_tokens": special}, roles))
        start = ggml.get("bos_token_id")  # also where it is not put before each text by itself
        tokenizer.bos_id = start if start in tokenizer.special_tokens.values() else tokenizer.bos_id
        return tokenizer
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"its tokenizer is damaged: {type(error).__name__} {error}") from None


def _byte_level(ggml: dict[str, Any], pre: str) -> dict[str, Any]:
    """Return the content of a tokenizer.json, as far as `from_hf` reads it."""
    vocab = {token: i for i, token in enumerate(ggml["tokens"])}
    model = {"type": "BPE", "vocab": vocab, "merges": ggml["merges"], "ignore_merges": pre in STARTS_BY_DEFAULT}
    return {"model": model, "pre_tokenizer": splitter(pre), "normalizer": {"type": "NFC"} if pre == "qwen2" else None}


def _sentencepiece(ggml: dict[str, Any], types: list[int]) -> dict[str, Any]:
    """Return the content of a tokenizer.json whose merges have the order of the scores of the tokens they make."""
    tokens, scores, prefix = ggml["tokens"], ggml["scores"], ggml.get("add_space_prefix", True)
    normal = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    merges = [
        (score, i, len(token) - i, token[:i], token[i:])
        for token, score in normal.items()
        for i in range(1, len(token))
        if token[:i] in normal and token[i:] in normal
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    model = {
        "type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [[left, right] for *_, left, right in merges],
        "unk_token": tokens[ggml.get("unknown_token_id", 0)], "fuse_unk": True, "byte_fallback": True,
    }  # fmt: skip
    splitter = {"type": "Metaspace", "replacement": "\u2581", "split": False}
    splitter["prepend_scheme"] = "first" if prefix else "never"
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    steps += [{"type": "Fuse"}, *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix]
    return {"model": model, "pre_tokenizer": splitter, "decoder": {"type": "Sequence", "decoders": steps}}


def to_gguf(tokenizer: Tokenizer, prepend_eot: bool = False) -> dict[str, Any]:
    """Return the metadata of a GGUF file that describe a tokenizer, by name.

    With `prepend_eot` each text starts with the token `bos_id`; else with the tokenizer's own such token, if any.
    Raises ValueError for characters, and for byte pairs that are not byte-level.
    """
    if not isinstance(tokenizer, BytePairTokenizer):
        raise ValueError(
            f"GGUF cannot hold the {tokenizer.name} tokenizer: it has byte-level pairs, such as gpt2 and bpe"
        )
    start = start_token(tokenizer, prepend_eot)
    token_of = {i: spell(token) for token, i in tokenizer.ranks.items()}
    types = dict.fromkeys(token_of, NORMAL)
    for name, i in tokenizer.special_tokens.items():
        kind = UNUSED if name.startswith("<|unused ") else CONTROL
        kind = USER_DEFINED if name in tokenizer.saved.get("plain", ()) else kind
        token_of[i], types[i] = name, NORMAL if name in tokenizer.saved.get("unmatched", ()) else kind
    metadata = {
        "model": "gpt2",
        "pre": pre_of(tokenizer),
        "tokens": [token_of[i] for i in range(tokenizer.vocab_size)],
        "token_type": [types[i] for i in range(tokenizer.vocab_size)],
        "merges": [f"{spell(left)} {spell(right)}" for left, right in merges_of(tokenizer.ranks)],
        "bos_token_id": tokenizer.special_tokens.get(start, tokenizer.eot_id),
        "eos_token_id": tokenizer.eot_id,
        "add_bos_token": start is not None,
    }
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
    return named | ({"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})
