"""Load published GPT-2 weights from a folder, a file or the Hugging Face hub, in GPT-2's layout or in the book's.

    model = load_pretrained("gpt2")                 # from the hub, downloaded once; 124,439,808 parameters
    model = load_pretrained("models/german-gpt2")   # a folder in Hugging Face's layout
    model = load_pretrained("gpt2-small-124M.pth")  # a file in the layout of the book's checkpoints

No code from a file is executed, and each tensor must be one of the layout and have the right shape.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.config import GPT_CONFIG_124M, GPTConfig, from_dict
from gpt.exchange.layouts import GPT2_SIZES, TensorMapping, book_layout, gpt2_layout, head_mapping, unpack
from gpt.model import GPTModel
from gpt.system.paths import find_path
from gpt.text.hf_tokenizer import load_any_tokenizer, starts_with_eot
from gpt.tokenizer import Tokenizer, load_tokenizer, with_special_tokens

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")  # the first that a folder has is read
HUB = {name: f"openai-community/{name}" for name in GPT2_SIZES}
N_HEADS = {size.emb_dim: size.n_heads for size in GPT2_SIZES.values()}  # of the published sizes, by width
MASKS = re.compile(r"\.attn\.(masked_)?bias$|\.att\.mask$")  # constants in old checkpoints


@dataclass(frozen=True)
class Pretrained:
    """Published weights on disk: their tensors, the config and the layout."""

    path: Path  # a file or a folder
    config: GPTConfig
    layout: list[TensorMapping]
    tensors: Mapping[str, Tensor]

    def model(self, context_length: int = 0) -> GPTModel:
        """Return the model in evaluation mode, in float32; with `context_length`, only its first positions."""
        config = replace(self.config, context_length=context_length or self.config.context_length)
        parameters = dict(unpack(self.tensors, self.layout))
        parameters["pos_emb.weight"] = parameters["pos_emb.weight"][: config.context_length].clone()
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            model = GPTModel(config)
        model.load_state_dict(parameters, strict=not config.tie_embeddings, assign=True)
        if config.tie_embeddings:
            model.out_head.weight = model.tok_emb.weight
        return model.eval()

    @property
    def folder(self) -> Path:
        """The folder that contains the weights."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder contains a tokenizer."""
        return any((self.folder / name).exists() for name in ("tokenizer.json", "vocab.json"))

    @property
    def prepend_eot(self) -> bool:
        """Whether a text starts with the end-of-text token, according to tokenizer.json."""
        return starts_with_eot(_read_json(self.folder / "tokenizer.json") or {})

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer in the folder, or GPT-2's if there is none and the vocabulary has its size.

        Rows of the vocabulary without a token become tokens named as unused. ValueError if no tokenizer fits.
        """
        size = self.config.vocab_size
        if self.has_tokenizer:
            tokenizer = load_any_tokenizer(self.folder)
        elif size == GPT_CONFIG_124M["vocab_size"]:
            tokenizer = load_tokenizer("gpt2")
        else:
            raise ValueError(f"no tokenizer in {self.folder}: add its tokenizer.json")
        if tokenizer.vocab_size > size:
            raise ValueError(
                f"the tokenizer in {self.folder} has {tokenizer.vocab_size} tokens, but the model has only {size}: it "
                f"belongs to another model"
            )
        return with_special_tokens(tokenizer, (f"<|unused {i}|>" for i in range(tokenizer.vocab_size, size)))


def load_pretrained(source: str | Path, context_length: int = 0) -> GPTModel:
    """Return a GPTModel with published weights, in evaluation mode.

    `source` is "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", or "hub:OWNER/NAME" for another GPT-2 on the Hugging
    Face hub, each downloaded once; or a path: a folder in Hugging Face's layout (config.json, and model.safetensors or
    pytorch_model.bin, also in several parts), a .safetensors, .bin or .pth file from one, or a checkpoint of the book.
    With a smaller `context_length` the model has only the first positions.

    Raises ValueError if the source does not exist, or if a tensor is missing, unknown or of the wrong shape.
    """
    return open_pretrained(source).model(context_length)


def is_pretrained(source: str) -> bool:
    """Return whether `load_pretrained` accepts a name: a model on the hub, or an existing path."""
    return source in HUB or source.startswith("hub:") or find_path(source).exists()


def open_pretrained(source: str | Path) -> Pretrained:
    """Return the weights that `load_pretrained` would load, without building the model. Same errors."""
    path = find_path(source)
    if not path.exists():
        path = _download(str(source))
    tensors = {name: tensor for name, tensor in _read_tensors(path).items() if not MASKS.search(name)}
    settings = _read_json((path if path.is_dir() else path.parent) / "config.json")
    if {"tok_emb.weight", "pos_emb.weight"} <= tensors.keys():
        return _open_book(path, settings, tensors)
    return _open_gpt2(path, settings, tensors)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _open_gpt2(path: Path, settings: dict | None, tensors: dict[str, Tensor]) -> Pretrained:
    prefix = "transformer." if "transformer.wte.weight" in tensors else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if not {"wte.weight", "wpe.weight"} <= tensors.keys():
        raise ValueError(f"{path} is not a GPT-2: it has no tensors wte.weight and wpe.weight")
    config = _gpt2_config(path, settings, tensors)
    return _open(path, config, gpt2_layout(config), "lm_head.weight", tensors)


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
    layout = [mapping for mapping in book_layout(config) if mapping.name != "out_head.weight"]
    return _open(path, config, layout, "out_head.weight", tensors)


def _open(path: Path, config: GPTConfig, layout: list[TensorMapping], head: str, tensors: dict) -> Pretrained:
    """Return the Pretrained if its tensors are those of the layout; else raise ValueError."""
    if config.tie_embeddings:
        tensors.pop(head, None)  # a copy of the token embedding
    else:
        layout = [*layout, head_mapping(head, config)]
    shapes = {mapping.name: mapping.shape for mapping in layout}
    if missing := [name for name in shapes if name not in tensors]:
        raise ValueError(f"{path}: the tensor {missing[0]} is missing ({len(missing)} missing in total)")
    if unknown := [name for name in tensors if name not in shapes]:
        raise ValueError(f"{path}: the tensor {unknown[0]} does not belong to a GPT-2 ({len(unknown)} such tensors)")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{path}: the tensor {name} has the shape {tuple(tensors[name].shape)}, not {shape}")
    return Pretrained(path, config, layout, tensors)


def _gpt2_config(path: Path, settings: dict | None, tensors: dict[str, Tensor]) -> GPTConfig:
    """Return the config of a GPT-2 according to its config.json or, without one, to the shapes of its tensors."""
    if settings is None:
        vocab_size, emb_dim = tensors["wte.weight"].shape
        settings = {
            "vocab_size": vocab_size, "n_embd": emb_dim, "n_layer": _count("h", tensors),
            "n_positions": len(tensors["wpe.weight"]), "n_head": _infer_n_heads(path, emb_dim),
        }  # fmt: skip
    fixed = {  # settings that GPTModel does not have, and the values it implements
        "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,), "n_inner": (None, 4 * settings.get("n_embd", 768)),
    }  # fmt: skip
    for key, allowed in fixed.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {key} is {settings[key]!r} in its config.json, but GPTModel has {allowed[0]!r}")
    names = {
        "vocab_size": "vocab_size", "n_positions": "context_length", "n_embd": "emb_dim", "n_head": "n_heads",
        "n_layer": "n_layers", "resid_pdrop": "drop_rate", "tie_word_embeddings": "tie_embeddings",
    }  # fmt: skip
    default = {**asdict(GPT2_SIZES["gpt2"]), "drop_rate": 0.1}  # of a config.json that omits a setting
    given = {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}
    return from_dict(GPTConfig, {**default, **given}, f"{path}: ")


def _count(blocks: str, tensors: dict[str, Tensor]) -> int:
    """Return the number of blocks in names such as h.0.ln_1.weight."""
    numbers = [int(found[1]) for name in tensors if (found := re.match(rf"{blocks}\.(\d+)\.", name))]
    return max(numbers, default=0) + 1


def _infer_n_heads(path: Path, emb_dim: int) -> int:
    if emb_dim in N_HEADS:
        return N_HEADS[emb_dim]
    raise ValueError(
        f"{path} does not say how many heads a model of width {emb_dim} has: add its config.json, such as "
        f'{{"n_heads": 4}} for a checkpoint of the book'
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, or of a folder's weights in one part or in several."""
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
            return {name: tensor for part in parts for name, tensor in _read_file(path / part).items()}
    raise ValueError(f"no weights in {path}: a model's folder has one of {', '.join(WEIGHT_FILES)}")


def _read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, mapped into memory if its format allows."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle's protocol
            # weights_only: unpickling executes no code
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds code besides tensors and was not loaded: use a .safetensors file"
        ) from None
    except Exception as error:  # each reader reports a damaged file in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read, it is damaged or incomplete: {reason[:150]}") from None
    for key in ("model_state_dict", "state_dict"):  # next to an optimizer's, as the book saves them
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path} holds no state_dict, that is, no tensors by name")
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if it does not exist."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _download(source: str) -> Path:
    """Return the folder of a model on the Hugging Face hub, downloaded if it is not in the cache."""
    repository = HUB.get(source, source.removeprefix("hub:"))
    if repository == source:
        raise ValueError(f"no file or folder {source!r}; known names are {', '.join(HUB)} and hub:OWNER/NAME")
    by_hand = f"download config.json and model.safetensors from https://huggingface.co/{repository} and name the folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f'{source} needs huggingface_hub: pip install -e ".[hub]", or {by_hand}') from None
    files = ["config.json", "tokenizer.json", "vocab.json", "merges.txt"]
    try:
        for weights in (["model.safetensors", "model*.safetensors*"], ["pytorch_model*.bin*"]):
            folder = Path(snapshot_download(repository, allow_patterns=files + weights))
            if any(folder.glob("*model*")):
                return folder
    except Exception as error:  # from requests, httpx, ssl or the hub itself
        raise ValueError(f"{source} cannot be downloaded ({type(error).__name__}): {by_hand}") from None
    raise ValueError(f"https://huggingface.co/{repository} has no PyTorch weights")
