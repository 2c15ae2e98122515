"""The tokenizer in a folder: which file says what, as transformers reads them, and what other files are.

tokenizer.json, or vocab.json with merges.txt, has the tokens. tokenizer_config.json, and in older folders
special_tokens_map.json and added_tokens.json, add more, name those that end and start a text, and give the template.
"""

import json
import pickle
import re
from pathlib import Path
from typing import Any

from gpt.text.hf_tokenizer import FLAGS, added_token, first_token, from_hf, splitter
from gpt.tokenizer import EOT, CharTokenizer, Tokenizer, from_dict

ROLE_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}  # a vocabulary, and the file of its merges
READABLE = ("tokenizer.json", *MERGES, "meta.pkl")
OTHERS = ("tekken.json", "*.model", "*.tiktoken", "vocab.txt")
CONVERT = (
    "convert it with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW), and name the folder NEW"
)


# --- reading ----------------------------------------------------------------------------------------------------------


def load_any_tokenizer(path: str | Path) -> Tokenizer:
    """Return a tokenizer saved by this project, by Hugging Face or by nanoGPT: a file, or a folder that contains one.

    The files beside Hugging Face's count as they do in transformers, and an added token without a row in the model of
    the same folder is left out. Raises ValueError for a missing or damaged file, and for a tokenizer that this project
    cannot represent.
    """
    path = Path(path)
    if path.is_dir():
        path = tokenizer_in(path) or next((file for kind in OTHERS for file in sorted(path.glob(kind))), path)
    if path.is_dir():
        raise ValueError(f"no tokenizer in {path}: a folder has one of {', '.join(READABLE)}")
    if not path.is_file():
        raise ValueError(f"no tokenizer file {path}")
    try:
        if path.suffix == ".pkl":
            return _from_nanogpt(path)
        saved = _json_object(path)
        if isinstance(saved.get("kind"), str):  # a vocab.json may have the token "kind", with its id
            return from_dict(saved)
        tokenizer = from_dict(from_hf(*_published(path, saved)))
        # also where it is not put before each text by itself
        start = _name(_config(path.parent).get("bos_token")) or (EOT if path.name in MERGES else None)
        tokenizer.bos_id = tokenizer.special_tokens.get(start, tokenizer.bos_id)
        return tokenizer
    except Exception as error:  # the library tokenizers raises Exception itself; a damaged file leads to any other
        said = type(error) in (ValueError, Exception, pickle.UnpicklingError)
        reason = str(error) if said else "it is damaged"
    raise ValueError(f"{path} is not a tokenizer that can be read here: {reason}")


def tokenizer_in(folder: Path) -> Path | None:
    """Return the file in a folder that `load_any_tokenizer` reads, or None."""
    return next((folder / name for name in READABLE if (folder / name).is_file()), None)


def starts_with_token(folder: Path) -> bool:
    """Whether the tokenizer in a folder puts a special token before each text."""
    path = tokenizer_in(folder)
    return path is not None and path.suffix == ".json" and bool(_start(_json_object(path), _config(folder)))


def _published(path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of a tokenizer.json with all added tokens, and the roles that `from_hf` takes."""
    config = _config(path.parent)
    start = _start(content, config)
    if path.name in MERGES and (path.parent / MERGES[path.name]).is_file():
        lines = (path.parent / MERGES[path.name]).read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOT) if EOT in content else {}
        config = names | config  # as a GPT2Tokenizer has them
        content = {"model": {"type": "BPE", "vocab": content, "merges": merges}, "pre_tokenizer": splitter("gpt-2")}
    elif isinstance(content.get("model", 0), int):  # a token, with its id
        raise ValueError(what_is(path))
    if config.get("add_prefix_space") and str(config.get("tokenizer_class", "GPT2")).startswith("GPT2"):
        content["pre_tokenizer"] = {**splitter("gpt-2"), "add_prefix_space": True}
    template = path.parent / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    if isinstance(text, list):  # several by name
        text = {entry["name"]: entry["template"] for entry in text}
    text = text.get("default") if isinstance(text, dict) else text
    model, generation = (_json_object(path.with_name(f"{kind}config.json"), {}) for kind in ("", "generation_"))
    size = model.get("vocab_size")
    tokens = [token for token in _added_tokens(content, config) if not isinstance(size, int) or token["id"] < size]
    last = generation.get("eos_token_id", model.get("eos_token_id"))  # an id, or a list of ids
    named = {token["id"]: token["content"] for token in tokens}.get(last[0] if isinstance(last, list) else last)
    roles = {"eot": _name(config.get("eos_token")) or named, "bos": start, "chat_template": text}
    return content | {"added_tokens": tokens}, {role: value for role, value in roles.items() if value}


def _config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, with what older folders have in two other files."""
    config = _json_object(folder / "tokenizer_config.json", missing={})
    if "added_tokens_decoder" in config:
        return config
    config |= _json_object(folder / "special_tokens_map.json", missing={})
    special = {_name(token) for token in _named(config)}
    old = _json_object(folder / "added_tokens.json", missing={})
    flags = {name: {"normalized": name not in special, "special": name in special} for name in old}
    return config | {"added_tokens_decoder": {i: {"content": name, **flags[name]} for name, i in old.items()}}


def _added_tokens(content: dict[str, Any], config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens of a tokenizer.json, those of its config, and then those that the config only names."""
    added = {token["content"]: token for token in content.get("added_tokens") or ()}
    vocab = content["model"]["vocab"]
    vocab = dict(vocab) if isinstance(vocab, dict) else {}
    known = {name: token["id"] for name, token in added.items()} | vocab
    listed = config["added_tokens_decoder"]
    tokens = {token["content"]: token for _, token in sorted(listed.items(), key=lambda item: int(item[0]))}
    for token in _named(config):
        if _name(token) not in added:
            tokens.setdefault(_name(token), token)
    unused = max(known.values(), default=-1) + 1
    for name, token in tokens.items():
        flags = token if isinstance(token, dict) else {}
        i = known.setdefault(name, unused)
        unused += i == unused
        entry = added_token(name, i, flags.get("special", True))
        added[name] = entry | {flag: flags[flag] for flag in FLAGS if flag in flags}
    return sorted(added.values(), key=lambda token: token["id"])


def _named(config: dict[str, Any]) -> list[Any]:
    """Return the special tokens that a config names: strings, or contents with flags."""
    keys = [*ROLE_NAMES, *(key for key in config if key.endswith("_token") and key not in ROLE_NAMES)]
    named = [config[key] for key in keys if isinstance(config.get(key), (str, dict))]
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return named + list(more.values() if isinstance(more, dict) else more)


def _name(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _start(content: dict[str, Any], config: dict[str, Any]) -> str | None:
    """Return the token before each text: by tokenizer.json, or in a folder without one by the config."""
    if isinstance(content.get("model"), dict):
        return first_token(content)
    return _name(config.get("bos_token", EOT)) if config.get("add_bos_token") else None


def _json_object(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a JSON file, or `missing` if there is none. ValueError says what another file is."""
    if missing is not None and not path.is_file():
        return missing
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(what_is(path) if missing is None else f"of {path.name} beside it, {what_is(path)}")
    return found


class _DataOnly(pickle.Unpickler):
    """Reads numbers, strings and collections; a pickle that names a class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and a pickle may run any code")


def _from_nanogpt(path: Path) -> CharTokenizer:
    """Return the characters of nanoGPT's meta.pkl, which has the id of each under "stoi"."""
    with path.open("rb") as file:
        ids = _DataOnly(file).load()["stoi"]
    characters = sorted(ids)
    if [ids[character] for character in characters] != list(range(len(characters))) or max(map(len, characters)) > 1:
        raise ValueError("its characters are not numbered in the order of their code points")
    return CharTokenizer(characters)


# --- other files ------------------------------------------------------------------------------------------------------


def what_is(path: Path) -> str:
    """Return what a file is that holds no tokenizer that can be read, and the way out, as the end of a sentence."""
    data = path.read_bytes()[:1_000_000]
    if not data:
        return "it is empty"
    if data[:4] == b"GGUF":
        return "it is a GGUF file: let its name end in .gguf"
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04") or data[8:10] == b'{"':
        return "it holds weights: name the folder or the tokenizer.json that came with them"
    if re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", data):
        return f"it has tiktoken's ranks, without the rule that splits words and the special tokens: {CONVERT}"
    if path.suffix == ".model" or re.match(rb"\n.\n.<unk>|\n.\n.<pad>", data, re.DOTALL):
        return f"it is a SentencePiece model: {CONVERT}"
    if data.startswith(b"#version"):
        return "it has merges without a vocabulary: put the vocab.json beside it and name that"
    if re.search(rb"^\[UNK\]\r?$", data, re.MULTILINE):
        return "it is a vocabulary of WordPiece, as BERT's, whose tokens cannot be read here: use another tokenizer"
    try:
        return _what_json_is(json.loads(path.read_bytes()), path)
    except ValueError:
        return "it is damaged JSON" if data.lstrip()[:1] == b"{" else "it is no JSON: a tokenizer.json is"


def _what_json_is(found: Any, path: Path) -> str:
    if not isinstance(found, dict):
        return f"it holds a JSON {type(found).__name__}: a tokenizer.json holds an object"
    if found and all(isinstance(value, int) for value in found.values()):
        merges = MERGES.get(path.name, "merges.txt")
        return f"it is a vocabulary without merges: put its {merges} beside it, named vocab.json and merges.txt"
    if {"config", "vocab"} <= found.keys():
        return f"it is Mistral's tekken.json: {CONVERT}"
    if {"architectures", "model_type", "weight_map"} & found.keys() or path.name == "config.json":
        return "it describes a model: name the folder, or its tokenizer.json"
    if any(key.endswith("_token") or key == "tokenizer_class" for key in found):
        return "it names special tokens, but has no others: name the tokenizer.json beside it"
    return "it is JSON, but no tokenizer"
