"""Export a trained model for other programs: as Hugging Face's GPT-2, or as a checkpoint of the book."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from gpt.config import GPT_CONFIG_124M
from gpt.exchange.layouts import book_layout, gpt2_layout, head_mapping, pack
from gpt.model import GPTModel
from gpt.system.files import atomic_folder
from gpt.text.hf_tokenizer import to_hf
from gpt.tokenizer import EOT, Tokenizer


def export_hf(model: GPTModel, tokenizer: Tokenizer, prepend_eot: bool, out: Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load as a GPT-2, atomically.

    GPT-2 has a bias on query, key and value, which is zero if the model has none. With `prepend_eot` the exported
    tokenizer starts every text with the end-of-text token. Raises ValueError if `out` exists or the model is not a
    plain GPT.
    """
    _check_plain_gpt(model)
    config, eot_id = model.config, tokenizer.eot_id
    settings = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": config.vocab_size,
        "n_positions": config.context_length, "n_embd": config.emb_dim, "n_layer": config.n_layers,
        "n_head": config.n_heads, "activation_function": "gelu_new", "layer_norm_epsilon": model.final_norm.eps,
        "embd_pdrop": config.drop_rate, "attn_pdrop": config.drop_rate, "resid_pdrop": config.drop_rate,
        "tie_word_embeddings": config.tie_embeddings, "bos_token_id": eot_id, "eos_token_id": eot_id,
        "torch_dtype": "float32",
    }  # fmt: skip
    weights = {f"transformer.{name}": tensor for name, tensor in pack(model, gpt2_layout(config)).items()}
    if not config.tie_embeddings:
        weights |= pack(model, [head_mapping("lm_head.weight", config)])
    special = {} if eot_id is None else {"bos_token": EOT, "eos_token": EOT}
    with _new_folder(out) as folder:
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        _write_json(folder / "config.json", settings)
        _write_json(folder / "generation_config.json", {"bos_token_id": eot_id, "eos_token_id": eot_id})
        _write_json(folder / "tokenizer.json", to_hf(tokenizer, prepend_eot))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
        _write_json(folder / "tokenizer_config.json", {**kind, "model_max_length": config.context_length})


def export_book(model: GPTModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write a folder with a checkpoint that the book's GPTModel loads with strict=True, atomically.

    model.pth includes the causal masks and a copy of a tied head; config.json has the seven keys of that class. Raises
    ValueError as `export_hf` does.
    """
    _check_plain_gpt(model)
    config = model.config
    weights = pack(model, book_layout(config))
    if config.tie_embeddings:
        weights |= pack(model, [head_mapping("out_head.weight", config)])
    mask = torch.ones(config.context_length, config.context_length).triu(1)  # one tensor, saved once
    weights |= {f"trf_blocks.{n}.att.mask": mask for n in range(config.n_layers)}
    with _new_folder(out) as folder:
        torch.save(weights, folder / "model.pth")
        _write_json(folder / "config.json", {name: asdict(config)[name] for name in GPT_CONFIG_124M})
        tokenizer.save(folder / "tokenizer.json")


def _check_plain_gpt(model: GPTModel) -> None:
    if model.config.backbone != "gpt":
        raise ValueError(f"only a GPT can be exported, but the model has the backbone {model.config.backbone!r}")
    known = {mapping.name for mapping in book_layout(model.config)}
    if unknown := [name for name, _ in model.named_parameters() if name not in known]:
        raise ValueError(f"the layout has no place for {unknown[0]}: a model with a prefix cannot be exported")


def _new_folder(out: Path):
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists already: name another folder")
    return atomic_folder(out)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
