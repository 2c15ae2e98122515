"""The checkpoints of nanoGPT and minGPT: GPT-2's names, but linear weights as PyTorch has them, (out, in).

nanoGPT's ckpt.pt says its shape under "model_args"; its head is tied, its GELU exact, and its biases are optional. A
state_dict by itself says no number of heads. minGPT's has a head of its own, and GPT-2's approximate GELU.
"""

import re
from typing import Any

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.exchange.layouts import GPT2_BIASES, TensorMapping, layout_of

ATTENTION, HEAD = "transformer.h.0.attn.c_attn.weight", "lm_head.weight"
WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of DistributedDataParallel


def unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefixes that compiled, distributed and Lightning models put before all names."""
    while tensors:
        wrapper = next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in tensors)), None)
        inner = re.compile(r"model\.(transformer|wte|tok_emb|model|_orig_mod|module)\.")
        if wrapper is None and all(name.startswith("model.") for name in tensors) and any(map(inner.match, tensors)):
            wrapper = "model."  # not that of Llama's own names
        if wrapper is None:
            break
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def is_nanogpt(tensors: dict[str, Tensor]) -> bool:
    """Whether tensors have GPT-2's names and PyTorch's shapes."""
    weight = tensors.get(ATTENTION) if {"transformer.wte.weight", "transformer.wpe.weight"} <= tensors.keys() else None
    return weight is not None and weight.dim() == 2 and weight.shape[0] == 3 * weight.shape[1]


def nanogpt_settings(tensors: dict[str, Tensor], model_args: dict[str, Any]) -> dict[str, Any]:
    """Return what a config.json of Hugging Face's would say of a checkpoint, as far as it is known."""
    is_tied = HEAD not in tensors or torch.equal(tensors[HEAD], tensors["transformer.wte.weight"])
    given = {"n_positions": model_args.get("block_size"), "resid_pdrop": model_args.get("dropout")}
    given |= {key: model_args.get(key) for key in ("n_layer", "n_head", "n_embd", "vocab_size")}
    activation = "gelu" if is_tied else "gelu_new"
    given = {key: value for key, value in given.items() if value is not None}
    return {"activation_function": activation, "resid_pdrop": 0.0, "tie_word_embeddings": is_tied, **given}


def nanogpt_layout(config: GPTConfig, biases: tuple[str, ...] = GPT2_BIASES) -> list[TensorMapping]:
    """Return the tensors of nanoGPT's model without the tied head; `biases` are the linear layers that have one."""
    return layout_of("gpt2", "nanogpt", config, biases)


def with_biases(tensors: dict[str, Tensor], layout: list[TensorMapping]) -> dict[str, Tensor]:
    """Return tensors with zeros for the biases that are not there, as those of norms."""
    zeros = {m.name: torch.zeros(m.shape) for m in layout if m.name.endswith(".bias") and m.name not in tensors}
    return tensors | zeros
