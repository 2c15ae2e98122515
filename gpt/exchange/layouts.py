"""The names and shapes that other programs give to a GPT's tensors: Hugging Face's, GGUF's and the book's.

One table per architecture names each module of a GPTModel in Hugging Face's files and in GGUF. `pack` turns a model
into the tensors of a layout, `unpack` turns them back into the model's parameters.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.model import GPTModel
from gpt.system.device import shapes_only

# GPT-2's four published sizes (Radford et al. 2019, table 2), with the biases and the tied head of its checkpoints.
GPT2_SIZES = {
    name: GPTConfig(emb_dim=D, n_heads=H, n_layers=L, qkv_bias=True, tie_embeddings=True, init="gpt2")
    for name, D, H, L in [
        ("gpt2", 768, 12, 12), ("gpt2-medium", 1024, 16, 24), ("gpt2-large", 1280, 20, 36), ("gpt2-xl", 1600, 25, 48)
    ]
}  # fmt: skip

HUB = {name: f"openai-community/{name}" for name in GPT2_SIZES}  # where they are on the Hugging Face hub

# Modules of a GPTModel: their names in Hugging Face's files, and in GGUF. N is the number of a block.
GPT2_NAMES = {
    "tok_emb": ("transformer.wte", "token_embd"),
    "pos_emb": ("transformer.wpe", "position_embd"),
    "trf_blocks.N.att.W_query": ("transformer.h.N.attn.c_attn", "blk.N.attn_qkv"),  # the three concatenated
    "trf_blocks.N.att.W_key": ("transformer.h.N.attn.c_attn", "blk.N.attn_qkv"),
    "trf_blocks.N.att.W_value": ("transformer.h.N.attn.c_attn", "blk.N.attn_qkv"),
    "trf_blocks.N.att.out_proj": ("transformer.h.N.attn.c_proj", "blk.N.attn_output"),
    "trf_blocks.N.ff.layers.0": ("transformer.h.N.mlp.c_fc", "blk.N.ffn_up"),
    "trf_blocks.N.ff.layers.2": ("transformer.h.N.mlp.c_proj", "blk.N.ffn_down"),
    "trf_blocks.N.norm1": ("transformer.h.N.ln_1", "blk.N.attn_norm"),
    "trf_blocks.N.norm2": ("transformer.h.N.ln_2", "blk.N.ffn_norm"),
    "final_norm": ("transformer.ln_f", "output_norm"),
    "out_head": ("lm_head", "output"),
}
LLAMA_NAMES = {  # of Llama, Mistral and Qwen
    "tok_emb": ("model.embed_tokens", "token_embd"),
    "trf_blocks.N.att.W_query": ("model.layers.N.self_attn.q_proj", "blk.N.attn_q"),
    "trf_blocks.N.att.W_key": ("model.layers.N.self_attn.k_proj", "blk.N.attn_k"),
    "trf_blocks.N.att.W_value": ("model.layers.N.self_attn.v_proj", "blk.N.attn_v"),
    "trf_blocks.N.att.out_proj": ("model.layers.N.self_attn.o_proj", "blk.N.attn_output"),
    "trf_blocks.N.att.q_norm": ("model.layers.N.self_attn.q_norm", "blk.N.attn_q_norm"),
    "trf_blocks.N.att.k_norm": ("model.layers.N.self_attn.k_norm", "blk.N.attn_k_norm"),
    "trf_blocks.N.ff.gate": ("model.layers.N.mlp.gate_proj", "blk.N.ffn_gate"),
    "trf_blocks.N.ff.up": ("model.layers.N.mlp.up_proj", "blk.N.ffn_up"),
    "trf_blocks.N.ff.down": ("model.layers.N.mlp.down_proj", "blk.N.ffn_down"),
    "trf_blocks.N.norm1": ("model.layers.N.input_layernorm", "blk.N.attn_norm"),
    "trf_blocks.N.norm2": ("model.layers.N.post_attention_layernorm", "blk.N.ffn_norm"),
    "final_norm": ("model.norm", "output_norm"),
    "out_head": ("lm_head", "output"),
}


GPT2_BIASES = ("W_query", "W_key", "W_value", "out_proj", "layers.0", "layers.2")
INTERLEAVED = ("llama", "mistral")  # their queries and keys are in another order in GGUF


@dataclass(frozen=True)
class TensorMapping:
    """A tensor of a published layout, and the GPTModel parameters that it holds, concatenated if several.

    A bias that only one of the two has is zero: the model lacks it if `parameters` is empty, the layout if `name` is.
    """

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    transposed: bool = False  # linear weights of Hugging Face's GPT-2 are (in, out), PyTorch's (out, in)
    interleaved_heads: int = 0  # heads whose K rows are in the order 0, K/2, 1, K/2 + 1, ...


def layout_of(
    model_type: str, form: str, config: GPTConfig, biases: tuple[str, ...] = GPT2_BIASES
) -> list[TensorMapping]:
    """Return the tensors of a model type of Hugging Face's, such as "gpt2", in the form "hf", "gguf" or "nanogpt".

    `biases` are the linear layers that have a bias in the layout. A tied head is no tensor of its own.
    """
    merged: dict[str, TensorMapping] = {}
    for mapping in _one_by_one(model_type, form, config, biases):
        key = mapping.name or mapping.parameters[0]
        if first := merged.get(key):  # GPT-2 has query, key and value in one tensor
            shape = (first.shape[0] + mapping.shape[0], *first.shape[1:])
            mapping = replace(first, shape=shape, parameters=first.parameters + mapping.parameters)
        merged[key] = mapping
    return [replace(m, shape=m.shape[::-1]) if m.transposed else m for m in merged.values()]


def _one_by_one(model_type: str, form: str, config: GPTConfig, biases: tuple[str, ...]) -> Iterator[TensorMapping]:
    """Yield a mapping for each parameter, and for each bias that the model lacks."""
    names = GPT2_NAMES if model_type == "gpt2" else LLAMA_NAMES
    with shapes_only():
        shapes = {name: tuple(p.shape) for name, p in GPTModel(config).named_parameters()}  # lists a tied weight once
    for module in dict.fromkeys(name.rpartition(".")[0] for name in shapes):
        number = re.search(r"\d+", module)
        their = names[re.sub(r"\d+", "N", module, count=1)][form == "gguf"]
        their = their.replace("N", number[0]) if number else their
        heads = {"W_query": config.n_heads, "W_key": config.kv_heads}.get(module.rpartition(".")[2], 0)
        heads = heads if form == "gguf" and model_type in INTERLEAVED else 0
        for leaf, their_leaf in (("weight", "weight"), ("scale", "weight"), ("shift", "bias")):
            if shape := shapes.get(f"{module}.{leaf}"):
                is_transposed = leaf == "weight" and number and (model_type, form) == ("gpt2", "hf")
                yield TensorMapping(f"{their}.{their_leaf}", shape, (f"{module}.{leaf}",), bool(is_transposed), heads)
        bias, is_known = f"{module}.bias", module.endswith(biases)
        if bias in shapes or is_known:
            rows = shapes[f"{module}.weight"][:1]
            parameters = (bias,) if bias in shapes else ()
            yield TensorMapping(f"{their}.bias" if is_known else "", rows, parameters, interleaved_heads=heads)


def book_layout(config: GPTConfig) -> list[TensorMapping]:
    """Return the tensors of a GPTModel under its own names, without a tied head.

    The names are those of Raschka, "Build a Large Language Model (From Scratch)", 2024.
    """
    with shapes_only():
        parameters = GPTModel(config).named_parameters()  # lists a tied weight once
    return [TensorMapping(name, tuple(parameter.shape), (name,)) for name, parameter in parameters]


def pack(model: GPTModel, layout: list[TensorMapping]) -> dict[str, Tensor]:
    """Return a model's parameters as the tensors of a layout, copied to the CPU."""
    parameters = model.state_dict()
    packed = {}
    for mapping in layout:
        if mapping.parameters:
            tensor = torch.cat([parameters[name] for name in mapping.parameters])
            tensor = _interleave(tensor, mapping.interleaved_heads) if mapping.interleaved_heads else tensor
            tensor = tensor.T if mapping.transposed else tensor
        else:
            tensor = torch.zeros(mapping.shape)
        packed[mapping.name] = tensor.detach().to("cpu", copy=True).contiguous()
    return packed


def unpack(tensors: Mapping[str, Tensor], layout: list[TensorMapping]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each parameter of a GPTModel and a float32 copy of its value."""
    for mapping in layout:
        tensor = tensors[mapping.name].float() if mapping.name else torch.zeros(mapping.shape)
        tensor = _deinterleave(tensor, mapping.interleaved_heads) if mapping.interleaved_heads else tensor
        parts = (tensor.T if mapping.transposed else tensor).chunk(len(mapping.parameters))
        for name, part in zip(mapping.parameters, parts, strict=True):
            yield name, part.clone(memory_format=torch.contiguous_format)


def _interleave(tensor: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows of each head from 0, 1, 2, ... to 0, K/2, 1, K/2 + 1, ..., the pairs that llama.cpp rotates."""
    return tensor.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _deinterleave(tensor: Tensor, n_heads: int) -> Tensor:
    return tensor.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
