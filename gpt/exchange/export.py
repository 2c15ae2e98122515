"""Export a trained model for other programs: in Hugging Face's layout, as GGUF, or as a checkpoint of the book."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.config import GPT_CONFIG_124M, GPTConfig
from gpt.exchange.families import ROPE_FACTORS, gguf_metadata, hf_biases, hf_settings, rope_factors
from gpt.exchange.layouts import TensorMapping, book_layout, layout_of, pack
from gpt.model import GPTModel
from gpt.system.files import atomic_file, atomic_folder
from gpt.system.gguf import write_gguf
from gpt.text.gguf_tokenizer import to_gguf
from gpt.text.hf_tokenizer import to_hf, token_names
from gpt.tokenizer import Tokenizer


def export_hf(model: GPTModel, tokenizer: Tokenizer, prepend_eot: bool, out: Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load, atomically.

    The model is a GPT-2, a Llama, a Mistral, a Qwen2 or a Qwen3, whichever has its options; a bias that the model lacks
    is zero. With `prepend_eot` the exported tokenizer starts every text with the end-of-text token. Raises ValueError
    if `out` exists or no architecture has the model's options.
    """
    settings, weights = _packed(model, "hf")
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id}
    template = {"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    with _new_folder(out) as folder:
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        _write_json(folder / "config.json", {**settings, **ids, "torch_dtype": "float32"})
        _write_json(folder / "generation_config.json", ids)
        _write_json(folder / "tokenizer.json", to_hf(tokenizer, prepend_eot))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        length = {"model_max_length": model.config.context_length}
        _write_json(folder / "tokenizer_config.json", {**kind, **token_names(tokenizer), **template, **length})


def export_gguf(model: GPTModel, tokenizer: Tokenizer, prepend_eot: bool, out: Path, dtype: str = "float32") -> None:
    """Write a .gguf file that llama.cpp and transformers load, with its tokenizer, atomically.

    Its matrices are in `dtype`: "float32", "float16" or "q8_0". Raises ValueError as `export_hf` does.
    """
    if out.suffix != ".gguf":
        raise ValueError(f"{out} must end in .gguf")
    settings, weights = _packed(model, "gguf")
    metadata = gguf_metadata(model.config, settings) | {"general.name": out.stem} | to_gguf(tokenizer, prepend_eot)
    if model.config.rope_scaling != 1:
        weights[ROPE_FACTORS] = rope_factors(model.config)
    if out.exists():
        raise ValueError(f"{out} exists already: name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as temporary:
        write_gguf(temporary, metadata, weights, dtype)


def export_book(model: GPTModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write a folder with a checkpoint that the book's GPTModel loads with strict=True, atomically.

    model.pth includes the causal masks and a copy of a tied head; config.json has the seven keys of that class. Raises
    ValueError if `out` exists or the model has an option that the book's has not.
    """
    config = model.config
    free = (*GPT_CONFIG_124M, "tie_embeddings", "init", "implementation")
    for name, value in asdict(GPTConfig()).items():
        if name not in free and getattr(config, name) != value:
            raise ValueError(
                f"a model with {name} {getattr(config, name)!r} cannot be exported: the book's has {name} {value!r}"
            )
    weights = pack(model, _checked(model, book_layout(config)))
    if config.tie_embeddings:
        weights["out_head.weight"] = weights["tok_emb.weight"].clone()
    mask = torch.ones(config.context_length, config.context_length).triu(1)  # one tensor, saved once
    weights |= {f"trf_blocks.{n}.att.mask": mask for n in range(config.n_layers)}
    with _new_folder(out) as folder:
        torch.save(weights, folder / "model.pth")
        _write_json(folder / "config.json", {name: asdict(config)[name] for name in GPT_CONFIG_124M})
        tokenizer.save(folder / "tokenizer.json")


def _packed(model: GPTModel, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a model's config.json and its tensors, in the form "hf" or "gguf"."""
    if model.config.backbone != "gpt":
        raise ValueError(f"only a GPT can be exported, but the model has the backbone {model.config.backbone!r}")
    settings = hf_settings(model.config)
    layout = layout_of(settings["model_type"], form, model.config, hf_biases(settings))
    return settings, pack(model, _checked(model, layout))


def _checked(model: GPTModel, layout: list[TensorMapping]) -> list[TensorMapping]:
    known = {name for mapping in layout for name in mapping.parameters}
    if unknown := [name for name, _ in model.named_parameters() if name not in known]:
        raise ValueError(f"the layout has no place for {unknown[0]}: a model with a prefix cannot be exported")
    return layout


def _new_folder(out: Path):
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists already: name another folder")
    return atomic_folder(out)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
