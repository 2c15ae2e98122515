"""The names and shapes that other programs give to a GPT's tensors: Hugging Face's GPT-2, and the book's GPTModel.

`pack` turns a model into the tensors of a layout, `unpack` turns them back into the model's parameters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.model import GPTModel

# GPT-2's four published sizes (Radford et al. 2019, table 2), with the biases and the tied head of its checkpoints.
GPT2_SIZES = {
    name: GPTConfig(emb_dim=D, n_heads=H, n_layers=L, qkv_bias=True, tie_embeddings=True, init="gpt2")
    for name, D, H, L in [
        ("gpt2", 768, 12, 12), ("gpt2-medium", 1024, 16, 24), ("gpt2-large", 1280, 20, 36), ("gpt2-xl", 1600, 25, 48)
    ]
}  # fmt: skip


@dataclass(frozen=True)
class TensorMapping:
    """A tensor of a published layout, and the GPTModel parameters that it holds, concatenated if several."""

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]  # none: a bias that the model lacks, which is zero
    transposed: bool = False  # GPT-2's linear weights are (in, out), PyTorch's (out, in)


def gpt2_layout(config: GPTConfig) -> list[TensorMapping]:
    """Return Hugging Face's tensors of a GPT-2, without the prefix `transformer.` and without a tied head."""
    d = config.emb_dim
    mappings = [
        TensorMapping("wte.weight", (config.vocab_size, d), ("tok_emb.weight",)),
        TensorMapping("wpe.weight", (config.context_length, d), ("pos_emb.weight",)),
    ]
    for n in range(config.n_layers):
        theirs, ours = f"h.{n}.", f"trf_blocks.{n}."
        projections = [f"{ours}att.{name}" for name in ("W_query", "W_key", "W_value")]
        weights = tuple(f"{name}.weight" for name in projections)
        biases = tuple(f"{name}.bias" for name in projections) if config.qkv_bias else ()
        mappings += [
            TensorMapping(f"{theirs}attn.c_attn.weight", (d, 3 * d), weights, transposed=True),
            TensorMapping(f"{theirs}attn.c_attn.bias", (3 * d,), biases),
            *_linear(f"{theirs}attn.c_proj", f"{ours}att.out_proj", d, d),
            *_linear(f"{theirs}mlp.c_fc", f"{ours}ff.layers.0", d, 4 * d),
            *_linear(f"{theirs}mlp.c_proj", f"{ours}ff.layers.2", 4 * d, d),
            *_norm(f"{theirs}ln_1", f"{ours}norm1", d),
            *_norm(f"{theirs}ln_2", f"{ours}norm2", d),
        ]
    return mappings + _norm("ln_f", "final_norm", d)


def _linear(theirs: str, ours: str, n_in: int, n_out: int) -> list[TensorMapping]:
    return [
        TensorMapping(f"{theirs}.weight", (n_in, n_out), (f"{ours}.weight",), transposed=True),
        TensorMapping(f"{theirs}.bias", (n_out,), (f"{ours}.bias",)),
    ]


def _norm(theirs: str, ours: str, emb_dim: int) -> list[TensorMapping]:
    names = (("weight", "scale"), ("bias", "shift"))
    return [TensorMapping(f"{theirs}.{their}", (emb_dim,), (f"{ours}.{our}",)) for their, our in names]


def book_layout(config: GPTConfig) -> list[TensorMapping]:
    """Return the tensors of a GPTModel under its own names, without a tied head.

    The names are those of Raschka, "Build a Large Language Model (From Scratch)", 2024.
    """
    with torch.device("meta"):
        parameters = GPTModel(config).named_parameters()  # lists a tied weight once
    return [TensorMapping(name, tuple(parameter.shape), (name,)) for name, parameter in parameters]


def head_mapping(name: str, config: GPTConfig) -> TensorMapping:
    """Return the output head under the name that a layout gives it."""
    return TensorMapping(name, (config.vocab_size, config.emb_dim), ("out_head.weight",))


def pack(model: GPTModel, layout: list[TensorMapping]) -> dict[str, Tensor]:
    """Return a model's parameters as the tensors of a layout, copied to the CPU."""
    parameters = model.state_dict()
    packed = {}
    for mapping in layout:
        if mapping.parameters:
            tensor = torch.cat([parameters[name] for name in mapping.parameters])
            tensor = tensor.T if mapping.transposed else tensor
        else:
            tensor = torch.zeros(mapping.shape)
        packed[mapping.name] = tensor.detach().to("cpu", copy=True).contiguous()
    return packed


def unpack(tensors: Mapping[str, Tensor], layout: list[TensorMapping]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each parameter of a GPTModel and a float32 copy of its value."""
    for mapping in layout:
        tensor = tensors[mapping.name].float()
        parts = (tensor.T if mapping.transposed else tensor).chunk(len(mapping.parameters))
        for name, part in zip(mapping.parameters, parts, strict=True):
            yield name, part.clone(memory_format=torch.contiguous_format)
