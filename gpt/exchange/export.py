"""Export a trained model for other programs: in Hugging Face's layout, as GGUF, for the book's class or nanoGPT's."""

import json
import pickle
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
from gpt.exchange.nanogpt import nanogpt_layout
from gpt.model import GPTModel
from gpt.system.files import atomic_file, atomic_folder
from gpt.system.gguf import write_gguf
from gpt.text.gguf_tokenizer import to_gguf
from gpt.text.hf_tokenizer import to_hf, token_names
from gpt.tokenizer import CharTokenizer, Tokenizer


def export_hf(model: GPTModel, tokenizer: Tokenizer, prepend_eot: bool, out: Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load, atomically.

    The model is a GPT-2, a Llama, a Mistral, a Qwen2 or a Qwen3, whichever has its options; a bias that the model lacks
    is zero. With `prepend_eot` the exported tokenizer starts every text with the end-of-text token. Raises ValueError
    if `out` exists or no architecture has the model's options.
    """
    settings, weights = _packed(model, "hf")
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id}
    with new_folder(out) as folder:
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", {**settings, **ids, "torch_dtype": "float32"})
        write_json(folder / "generation_config.json", ids)
        write_tokenizer(folder, tokenizer, prepend_eot, model.config.context_length)


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
    _require_defaults(config, "the book's", "tie_embeddings")
    weights = pack(model, _checked(model, book_layout(config)))
    if config.tie_embeddings:
        weights["out_head.weight"] = weights["tok_emb.weight"].clone()
    mask = torch.ones(config.context_length, config.context_length).triu(1)  # one tensor, saved once
    weights |= {f"trf_blocks.{n}.att.mask": mask for n in range(config.n_layers)}
    with new_folder(out) as folder:
        torch.save(weights, folder / "model.pth")
        write_json(folder / "config.json", {name: asdict(config)[name] for name in GPT_CONFIG_124M})
        tokenizer.save(folder / "tokenizer.json")


def export_nanogpt(model: GPTModel, tokenizer: Tokenizer, out: Path, step: int = 0) -> None:
    """Write a folder with a ckpt.pt that nanoGPT's GPT class loads, all biases included, atomically.

    A character tokenizer is written as meta.pkl too, as nanoGPT has it. Raises ValueError if `out` exists or the model
    has an option that nanoGPT's has not.
    """
    config = model.config
    _require_defaults(config, "nanoGPT's", "tie_embeddings", "bias", "feed_forward")
    for name, allowed in {"tie_embeddings": (True,), "feed_forward": ("gelu_exact", "gelu")}.items():
        if (found := getattr(config, name)) not in allowed:
            raise ValueError(f"a model with {name} {found!r} cannot be exported: nanoGPT's has {name} {allowed[0]!r}")
    weights = pack(model, _checked(model, nanogpt_layout(config)))
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    shape = {"n_layer": config.n_layers, "n_head": config.n_heads, "n_embd": config.emb_dim}
    shape |= {"block_size": config.context_length, "vocab_size": config.vocab_size}
    arguments = {**shape, "bias": True, "dropout": config.drop_rate}
    with new_folder(out) as folder:
        torch.save({"model": weights, "model_args": arguments, "iter_num": step}, folder / "ckpt.pt")
        tokenizer.save(folder / "tokenizer.json")
        if isinstance(tokenizer, CharTokenizer):
            ids = {character: i for i, character in enumerate(tokenizer.characters)}
            meta = {"vocab_size": len(ids), "itos": {i: character for character, i in ids.items()}, "stoi": ids}
            (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def notices(model: GPTModel, tokenizer: Tokenizer, form: str) -> list[str]:
    """Return one line for each thing that other programs do otherwise, or will ask for in vain."""
    found = []
    if form in ("hf", "gguf") and tokenizer.eot_id is not None:
        name = token_names(tokenizer)["eos_token"]
        found.append(f"other programs read {name} inside a text as the special token; here it is ordinary text")
    if form == "hf" and tokenizer.eot_id is None:
        found.append(
            "this run has no end-of-text token: other programs write until max_new_tokens, and lm-evaluation-harness "
            "needs prefix_token_id=0 among its --model_args and cannot run tasks that generate; data prepared from "
            "several files, or with --separator, have such a token"
        )
    if form == "hf" and isinstance(tokenizer, CharTokenizer):
        found.append(
            f"its tokenizer knows {len(tokenizer.characters)} characters and has no unknown token: a text with another "
            f"character is an error in other programs too; data prepared with --tokenizer bpe:N take any text"
        )
    names = [name for flag in ("lstrip", "rstrip", "single_word") for name in tokenizer.saved.get(flag, ())]
    if form == "gguf" and names:
        found.append(f"GGUF cannot say how {names[0]} matches beside spaces or letters: llama.cpp may split otherwise")
    if form == "nanogpt" and model.config.feed_forward == "gelu":
        found.append("nanoGPT computes GELU exactly, this model by GPT-2's approximation: logits differ a little")
    return found


def _require_defaults(config: GPTConfig, owner: str, *free: str) -> None:
    """ValueError if a setting has another value than its default, unless it is a size or `free`."""
    free = (*GPT_CONFIG_124M, "init", "implementation", *free)
    for name, value in asdict(GPTConfig()).items():
        if name not in free and getattr(config, name) != value:
            raise ValueError(
                f"a model with {name} {getattr(config, name)!r} cannot be exported: {owner} has {name} {value!r}"
            )


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


def write_tokenizer(folder: Path, tokenizer: Tokenizer, prepend_eot: bool, context_length: int) -> None:
    """Write the files from which transformers' AutoTokenizer makes a tokenizer."""
    template = {"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    length = {"model_max_length": context_length}
    write_json(folder / "tokenizer.json", to_hf(tokenizer, prepend_eot))
    write_json(folder / "tokenizer_config.json", {**kind, **token_names(tokenizer), **template, **length})


def new_folder(out: Path):
    """Return a context that makes a folder, whole or not at all. ValueError if there is one with content."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists already: name another folder")
    return atomic_folder(out)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a value as JSON, for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
