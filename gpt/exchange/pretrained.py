"""GPT-2's published weights in: from a folder, a file or the Hugging Face hub, in its layout or in the book's.

    model = load_pretrained("gpt2")                 # from the hub, once; 124,439,808 parameters
    model = load_pretrained("models/german-gpt2")   # a folder in Hugging Face's layout
    model = load_pretrained("gpt2-small-124M.pth")  # a file in the layout of the book's checkpoints

A published file may come from anywhere: nothing in one is executed, and every tensor must be one that its config asks
for, of the right shape. `gpt/exchange/export.py` writes by the same table.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.config import GPT2_SIZES, GPT_CONFIG_124M, GPTConfig, from_dict
from gpt.model import GPTModel
from gpt.system.paths import find_path
from gpt.text.hf_tokenizer import load_any_tokenizer, starts_with_eot
from gpt.tokenizer import Tokenizer, get_tokenizer, with_special_tokens

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pth")  # of a folder, the first of them that is there
HUB = {name: f"openai-community/{name}" for name in GPT2_SIZES}
HEADS = {size.emb_dim: size.n_heads for size in GPT2_SIZES.values()}  # 64 of the width for each
MASKS = re.compile(r"\.attn\.(masked_)?bias$|\.att\.mask$")  # constants that old checkpoints carry


# --- layouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorMapping:
    """A tensor of a published layout, and the parameters of a GPTModel that it holds, side by side where several."""

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    transposed: bool = False  # GPT-2's linear layers are kept as (in, out), ours as PyTorch's (out, in)


def gpt2_layout(config: GPTConfig) -> list[TensorMapping]:
    """The tensors of GPT-2 as Hugging Face keeps them, without the prefix `transformer.`; the head not among them where
    it is tied."""
    d = config.emb_dim
    entries = [
        TensorMapping("wte.weight", (config.vocab_size, d), ("tok_emb.weight",)),
        TensorMapping("wpe.weight", (config.context_length, d), ("pos_emb.weight",)),
    ]
    for n in range(config.n_layers):
        theirs, ours = f"h.{n}.", f"trf_blocks.{n}."
        attention = [f"{ours}att.{name}" for name in ("W_query", "W_key", "W_value")]
        biases = tuple(f"{name}.bias" for name in attention) if config.qkv_bias else ()
        entries += [
            TensorMapping(
                f"{theirs}attn.c_attn.weight", (d, 3 * d), tuple(f"{name}.weight" for name in attention), True
            ),
            TensorMapping(f"{theirs}attn.c_attn.bias", (3 * d,), biases),
        ]
        linear = (("attn.c_proj", "att.out_proj", d, d), ("mlp.c_fc", "ff.layers.0", d, 4 * d))
        for their, our, n_in, n_out in (*linear, ("mlp.c_proj", "ff.layers.2", 4 * d, d)):
            entries += [
                TensorMapping(f"{theirs}{their}.weight", (n_in, n_out), (f"{ours}{our}.weight",), True),
                TensorMapping(f"{theirs}{their}.bias", (n_out,), (f"{ours}{our}.bias",)),
            ]
        entries += _norm(f"{theirs}ln_1", f"{ours}norm1", d) + _norm(f"{theirs}ln_2", f"{ours}norm2", d)
    return entries + _norm("ln_f", "final_norm", d)


def _norm(theirs: str, ours: str, emb_dim: int) -> list[TensorMapping]:
    names = (("weight", "scale"), ("bias", "shift"))
    return [TensorMapping(f"{theirs}.{their}", (emb_dim,), (f"{ours}.{our}",)) for their, our in names]


def book_layout(config: GPTConfig) -> list[TensorMapping]:
    """The tensors of a GPTModel under its own names, which are those of Raschka, "Build a Large Language Model (From
    Scratch)", 2024; the head not among them where it is tied."""
    with torch.device("meta"):
        parameters = GPTModel(config).named_parameters()  # which lists a tied weight once
    return [TensorMapping(name, tuple(parameter.shape), (name,)) for name, parameter in parameters]


# --- what is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pretrained:
    """Published weights that were found on disk: tensors by name, and what they make of them."""

    path: Path  # of the file, or of the folder
    config: GPTConfig
    layout: list[TensorMapping]
    head: str  # the name of the head's weight
    tensors: Mapping[str, Tensor]

    def model(self, context_length: int = 0) -> GPTModel:
        """The model, in evaluation mode, in float32. Of a smaller `context_length`, it has the first positions.
        ValueError names a tensor that is not finite."""
        config = replace(self.config, context_length=context_length or self.config.context_length)
        with torch.device("meta"):  # no memory, no random numbers: all weights are to be replaced
            model = GPTModel(config)
        model.load_state_dict(dict(self._parameters(model.config)), assign=True)
        if model.config.tie_embeddings:
            model.out_head.weight = model.tok_emb.weight
        return model.eval()

    def _parameters(self, config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
        """Each parameter of a GPTModel by its name, a copy in float32."""
        for entry in self.layout:
            tensor = self.tensors[entry.name].float()
            if not tensor.isfinite().all():
                raise ValueError(f"{self.path}: the tensor {entry.name} holds numbers that are not finite")
            if entry.parameters == ("pos_emb.weight",):
                tensor = tensor[: config.context_length]
            parts = (tensor.T if entry.transposed else tensor).chunk(len(entry.parameters))
            for name, part in zip(entry.parameters, parts, strict=True):
                yield name, part.clone(memory_format=torch.contiguous_format)
        if config.tie_embeddings:  # by its other name; it becomes the same parameter
            yield "out_head.weight", torch.empty(config.vocab_size, config.emb_dim, device="meta")

    @property
    def folder(self) -> Path:
        """Where the files beside the weights are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer's files are beside the weights."""
        return any((self.folder / name).exists() for name in ("tokenizer.json", "vocab.json"))

    @property
    def prepend_eot(self) -> bool:
        """Whether a text begins with the end-of-text token, as its tokenizer.json says."""
        return starts_with_eot(_json(self.folder / "tokenizer.json") or {})

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, from the files beside the weights; GPT-2's own where there are none and its vocabulary is of
        that size. Rows of the vocabulary that no token has are named as unused. ValueError where none fits."""
        size = self.config.vocab_size
        if self.has_tokenizer:
            tokenizer = load_any_tokenizer(self.folder)
        elif size == GPT_CONFIG_124M["vocab_size"]:
            tokenizer = get_tokenizer("gpt2")
        else:
            raise ValueError(f"no tokenizer in {self.folder}: a tokenizer.json belongs there, beside the weights")
        if tokenizer.vocab_size > size:
            raise ValueError(
                f"the tokenizer in {self.folder} has {tokenizer.vocab_size} tokens, the model only {size}: it is "
                f"another model's"
            )
        return with_special_tokens(tokenizer, (f"<|unused {i}|>" for i in range(tokenizer.vocab_size, size)))


def load_pretrained(source: str | Path, context_length: int = 0) -> GPTModel:
    """A GPTModel with published weights, in evaluation mode.

    `source` is "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", or "hub:OWNER/NAME" for another model of that layout
    on the Hugging Face hub, downloaded once; or a path: a folder in Hugging Face's layout (config.json, and
    model.safetensors or pytorch_model.bin, in one piece or in several), a .safetensors, .bin or .pth file of one, or a
    checkpoint in the book's layout. With a smaller `context_length` the model has the first positions only.

    ValueError where there is none, or where a tensor is missing, left over or of another shape than its config says.
    """
    return open_pretrained(source).model(context_length)


def is_pretrained(source: str) -> bool:
    """Whether a name is one that `load_pretrained` looks for: of the hub, or of a path that is there."""
    return source in HUB or source.startswith("hub:") or find_path(source).exists()


def open_pretrained(source: str | Path) -> Pretrained:
    """What `load_pretrained` loads, its tensors not yet read. The same errors, but for numbers that are not finite."""
    path = find_path(source)
    if not path.exists():
        path = _from_hub(str(source))
    tensors = _tensors(path)
    settings = _json((path if path.is_dir() else path.parent) / "config.json")
    read = _open_book if "tok_emb.weight" in tensors else _open_gpt2
    return read(path, settings, tensors)


def _open_gpt2(path: Path, settings: dict | None, tensors: dict[str, Tensor]) -> Pretrained:
    embeddings = [tensor for tensor in tensors if tensor.endswith("wte.weight")]
    if len(embeddings) != 1:
        raise ValueError(
            f"{path} is no GPT-2: of its {len(tensors)} tensors none is called wte.weight or tok_emb.weight"
        )
    prefix = embeddings[0].removesuffix("wte.weight")  # "transformer." or nothing, as it was saved
    head = f"{prefix.removesuffix('transformer.')}lm_head.weight"
    config = _gpt2_config(path, settings, {key.removeprefix(prefix): t for key, t in tensors.items()})
    layout = [replace(entry, name=prefix + entry.name) for entry in gpt2_layout(config)]
    if not config.tie_embeddings:
        layout.append(TensorMapping(head, (config.vocab_size, config.emb_dim), ("out_head.weight",)))
    return _checked(Pretrained(path, config, layout, head, tensors))


def _open_book(path: Path, settings: dict | None, tensors: dict[str, Tensor]) -> Pretrained:
    known = {key: value for key, value in (settings or {}).items() if key in asdict(GPTConfig())}
    wrong = f"{path} is no checkpoint in the book's layout"
    try:
        vocab_size, emb_dim = tensors["tok_emb.weight"].shape
        context_length = len(tensors["pos_emb.weight"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{wrong}: it has no tok_emb.weight and pos_emb.weight of two dimensions") from None
    n_heads = known.get("n_heads") or _usual_heads(path, emb_dim)
    blocks = {int(found[1]) for key in tensors if (found := re.match(r"trf_blocks\.(\d{1,4})\.", key))}
    head = tensors.get("out_head.weight")
    read_off = {
        "vocab_size": vocab_size, "context_length": context_length, "emb_dim": emb_dim, "n_heads": n_heads,
        "n_layers": max(blocks, default=0) + 1, "qkv_bias": "trf_blocks.0.att.W_query.bias" in tensors,
        "tie_embeddings": head is None or torch.equal(head, tensors["tok_emb.weight"]), "init": "gpt2",
    }  # fmt: skip
    config = from_dict(GPTConfig, {**read_off, **known}, f"{path}: ")
    return _checked(Pretrained(path, config, book_layout(config), "out_head.weight", tensors))


def _checked(found: Pretrained) -> Pretrained:
    """ValueError unless each tensor is one that the layout asks for, and of its shape."""
    config, tensors = found.config, found.tensors
    expected = {entry.name: entry.shape for entry in found.layout}
    if found.head in tensors:  # of a tied one some files have a copy
        expected[found.head] = (config.vocab_size, config.emb_dim)
    there = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not MASKS.search(name)}
    for wrong, names in (
        ("is missing", [name for name in expected if name not in there]),
        ("is none of a GPT-2's", [name for name in there if name not in expected]),
    ):
        if names:
            raise ValueError(f"{found.path}: the tensor {names[0]} {wrong} ({len(names)} such tensors)")
    for name, shape in expected.items():
        if there[name] != shape:
            raise ValueError(f"{found.path}: the tensor {name} has the shape {there[name]}, not {shape}")
        if not tensors[name].dtype.is_floating_point:
            raise ValueError(f"{found.path}: the tensor {name} is of {tensors[name].dtype}, not of floating point")
    embedding = next(entry.name for entry in found.layout if entry.parameters == ("tok_emb.weight",))
    if config.tie_embeddings and found.head in tensors and not torch.equal(tensors[found.head], tensors[embedding]):
        raise ValueError(f"{found.path}: {found.head} is not {embedding}, though its config says that they are one")
    return found


def _gpt2_config(path: Path, settings: dict | None, tensors: dict[str, Tensor]) -> GPTConfig:
    """The config of a GPT-2 from its config.json; without one, from its shapes, where these are published ones."""
    if settings is None:
        if any(tensors[name].dim() != 2 for name in ("wte.weight", "wpe.weight") if name in tensors):
            raise ValueError(f"{path} is no GPT-2: its wte.weight and wpe.weight have not two dimensions each")
        vocab_size, emb_dim = tensors["wte.weight"].shape
        layers = {int(found[1]) for key in tensors if (found := re.match(r"h\.(\d{1,4})\.", key))}
        settings = {"vocab_size": vocab_size, "n_embd": emb_dim, "n_layer": len(layers)}
        settings |= {"n_positions": len(tensors.get("wpe.weight", ())), "n_head": _usual_heads(path, emb_dim)}
    fixed = {  # what this model has no setting for, and GPT-2's value of it
        "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,), "n_inner": (None, 4 * settings.get("n_embd", 768)),
    }  # fmt: skip
    for key, allowed in fixed.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: its config says {key} {settings[key]!r}, but GPTModel has {allowed[0]!r}")
    names = {"vocab_size": "vocab_size", "n_positions": "context_length", "n_embd": "emb_dim", "n_head": "n_heads"}
    names |= {"n_layer": "n_layers", "resid_pdrop": "drop_rate", "tie_word_embeddings": "tie_embeddings"}
    smallest = {**asdict(GPT2_SIZES["gpt2"]), "drop_rate": 0.1}  # whatever a config.json leaves out
    given = {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}
    return from_dict(GPTConfig, {**smallest, **given}, f"{path}: ")


def _usual_heads(path: Path, emb_dim: int) -> int:
    if emb_dim in HEADS:
        return HEADS[emb_dim]
    raise ValueError(
        f"{path} does not say how many heads a model of width {emb_dim} has: put its config.json beside it, such as "
        f'{{"n_heads": 4}} for a checkpoint in the book\'s layout'
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a folder's weights in one piece or in several, mapped into memory where they can be.
    ValueError where there are none, or where a file is damaged or holds anything but tensors."""
    if path.is_file():
        return _read(path)
    for name in WEIGHTS:
        if (path / name).is_file():
            return _read(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            files = (_json(index) or {}).get("weight_map", {})
            if not isinstance(files, dict) or any(Path(str(file)).name != file for file in files.values()):
                raise ValueError(f"{index} does not list the files of its tensors")
            missing = [file for file in set(files.values()) if not (path / file).is_file()]
            if missing or not files:
                raise ValueError(f"{path} lacks {min(missing, default='all')} of the files that {index.name} lists")
            return {name: t for file in sorted(set(files.values())) for name, t in _read(path / file).items()}
    raise ValueError(f"no weights in {path}: a folder of them holds one of {', '.join(WEIGHTS)}")


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle's protocol, which says nothing to a reader
            # weights_only: whatever else a pickle holds is refused, not run
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds something else than tensors, which might run as a program, so nothing of it "
            f"was read: ask for a .safetensors file"
        ) from None
    except Exception as error:  # of a damaged file each reader complains in a way of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read: it is damaged, or incomplete ({reason[:150]})") from None
    for wrapping in ("model_state_dict", "state_dict"):  # beside an optimizer's, as the book saves them
        if isinstance(found, dict) and isinstance(found.get(wrapping), dict):
            found = found[wrapping]
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in found.items()):
        raise ValueError(f"{path} holds no tensors by name: a model's state_dict() is what is saved")
    return found


def _json(path: Path) -> dict[str, Any] | None:
    """What a JSON file says; None where there is none."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is a {type(found).__name__}, not an object of settings")
    return found


# --- the hub ----------------------------------------------------------------------------------------------------------


def _from_hub(source: str) -> Path:
    """The folder of a model on the Hugging Face hub, downloaded unless it is there. ValueError where it can't be."""
    repository = HUB.get(source, source.removeprefix("hub:"))
    if repository == source:
        raise ValueError(f"no file or folder {source!r}, nor one of {', '.join(HUB)}, nor hub:OWNER/NAME")
    by_hand = f"download config.json and model.safetensors of https://huggingface.co/{repository} and name their folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f'{source} is downloaded by huggingface_hub: pip install -e ".[hub]", or {by_hand}') from None
    words = ["config.json", "tokenizer.json", "vocab.json", "merges.txt"]
    try:
        for weights in (["model.safetensors", "model*.safetensors*"], ["pytorch_model*.bin*"]):
            folder = Path(snapshot_download(repository, allow_patterns=words + weights))
            if any(folder.glob("*model*")):
                return folder
    except Exception as error:  # whatever stands between here and the file: requests, httpx, ssl, the hub's own
        raise ValueError(f"{source} cannot be downloaded ({type(error).__name__}): {by_hand}") from None
    raise ValueError(f"https://huggingface.co/{repository} has no weights for PyTorch")
