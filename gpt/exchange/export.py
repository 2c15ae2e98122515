"""A trained model out, in the layouts that others read: Hugging Face's GPT-2, or the book's.

Both are written by the tables of `gpt/exchange/pretrained.py`, which reads them again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.config import GPT_CONFIG_124M
from gpt.exchange.pretrained import TensorMapping, book_layout, gpt2_layout
from gpt.model import GPTModel
from gpt.system.files import atomic_folder
from gpt.text.hf_tokenizer import to_hf
from gpt.tokenizer import EOT, Tokenizer


def export_hf(model: GPTModel, tokenizer: Tokenizer, prepend_eot: bool, out: Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load as a GPT-2, whole or not at all.

    GPT-2 has a bias on query, key and value: it is zero where the model has none. `in_documents`, a text begins with
    the end-of-text token there as well. ValueError for an `out` that exists, and for a model that is no plain GPT.
    """
    _check_plain(model)
    config, eot_id = model.config, tokenizer.eot_id
    settings = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": config.vocab_size,
        "n_positions": config.context_length, "n_embd": config.emb_dim, "n_layer": config.n_layers,
        "n_head": config.n_heads, "activation_function": "gelu_new", "layer_norm_epsilon": model.final_norm.eps,
        "embd_pdrop": config.drop_rate, "attn_pdrop": config.drop_rate, "resid_pdrop": config.drop_rate,
        "tie_word_embeddings": config.tie_embeddings, "bos_token_id": eot_id, "eos_token_id": eot_id,
        "torch_dtype": "float32",
    }  # fmt: skip
    head = () if config.tie_embeddings else (_head(model, "lm_head.weight"),)
    layout = (*gpt2_layout(config), *head)
    weights = _packed(model, layout, lambda name: name if name == "lm_head.weight" else f"transformer.{name}")
    mark = {} if eot_id is None else {"bos_token": EOT, "eos_token": EOT}
    with _new_folder(out) as folder:
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        _write(folder / "config.json", settings)
        _write(folder / "generation_config.json", {"bos_token_id": eot_id, "eos_token_id": eot_id})
        _write(folder / "tokenizer.json", to_hf(tokenizer, prepend_eot))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **mark}
        _write(folder / "tokenizer_config.json", {**kind, "model_max_length": config.context_length})


def export_book(model: GPTModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write a folder with a checkpoint that the book's own GPTModel loads with strict=True, whole or not at all:
    model.pth, its causal masks and, where the head is tied, the head's own copy included; config.json with that class's
    seven keys; tokenizer.json. ValueError as from `export_hf`."""
    _check_plain(model)
    config = model.config
    layout = [*book_layout(config), *([_head(model, "out_head.weight")] if config.tie_embeddings else [])]
    weights = _packed(model, layout)
    mask = torch.ones(config.context_length, config.context_length).triu(1)  # one tensor, saved once
    weights |= {f"trf_blocks.{n}.att.mask": mask for n in range(config.n_layers)}
    with _new_folder(out) as folder:
        torch.save(weights, folder / "model.pth")
        _write(folder / "config.json", {name: asdict(config)[name] for name in GPT_CONFIG_124M})
        tokenizer.save(folder / "tokenizer.json")


def _check_plain(model: GPTModel) -> None:
    if model.config.backbone != "gpt":
        raise ValueError(f"these layouts are a GPT's, but the model has the backbone {model.config.backbone!r}")
    known = {entry.name for entry in book_layout(model.config)}
    if further := [name for name, _ in model.named_parameters() if name not in known]:
        raise ValueError(f"these layouts have no place for {further[0]}: a model with a prefix cannot be exported")


def _head(model: GPTModel, name: str) -> TensorMapping:
    return TensorMapping(name, tuple(model.out_head.weight.shape), ("out_head.weight",))


def _packed(model: GPTModel, layout: list[TensorMapping], renamed: Callable[[str], str] = str) -> dict[str, Tensor]:
    """The tensors of a layout, filled with a model's parameters."""
    parameters = model.state_dict()
    packed = {}
    for entry in layout:
        tensor = torch.cat([parameters[name] for name in entry.parameters]) if entry.parameters else None
        tensor = torch.zeros(entry.shape) if tensor is None else tensor.T if entry.transposed else tensor
        packed[renamed(entry.name)] = tensor.detach().to("cpu", copy=True).contiguous()
    return packed


def _new_folder(out: Path):
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists already: name another folder")
    return atomic_folder(out)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
