"""Count the parameters of a model and its FLOPs per token, by formula.

Shape letters: T tokens in the window, D emb_dim, L layers, V vocab_size.
"""

import dataclasses
from functools import lru_cache

import torch

from gpt.config import AdapterConfig, GPTConfig
from gpt.objectives.weights import freeze
from gpt.optim import hidden_matrices
from gpt.system.device import shapes_only
from gpt.variants import create_model

_PARTS = {  # substring of a parameter's name -> the part of the model it belongs to
    "tok_emb": "token embedding",
    "pos_emb": "positions",
    ".att.": "attention",
    ".ff.": "feed-forward",
    "lstm.": "recurrence",
    "norm": "norms",
    "out_head": "output head",
}


@lru_cache(maxsize=256)
def _shapes(model: GPTConfig) -> dict[str, tuple[torch.Size, int, bool]]:
    """Return each parameter's shape, how often it occurs, and whether it is one of `hidden_matrices`.

    They are read off a one-layer model on the meta device, which allocates nothing: all layers are alike.
    """
    with shapes_only():
        one_layer = create_model(dataclasses.replace(model, n_layers=1))
    layers, hidden = ("trf_blocks", "lstm"), set(hidden_matrices(one_layer))
    return {
        name: (p.shape, model.n_layers if name.startswith(layers) else 1, p in hidden)
        for name, p in one_layer.named_parameters()
    }


def count_parameters(model: GPTConfig) -> dict[str, int]:
    """Return the number of parameters by part of the model. A tied output head adds none."""
    parts = {}
    for name, (shape, count, _) in _shapes(model).items():
        part = next(part for mark, part in _PARTS.items() if mark in name)
        parts[part] = parts.get(part, 0) + count * shape.numel()
    return parts


@lru_cache(maxsize=256)
def count_frozen(model: GPTConfig, beginnings: str) -> tuple[int, int]:
    """Return how many parameters `freeze` leaves untrained, and how many of them are those of `count_hidden`."""
    names = [name.strip() for name in beginnings.split(",")]
    names = [name for name in names if name and name.partition(".")[0] != "objective"]  # its own are few
    if not names:
        return 0, 0
    with shapes_only():
        whole = create_model(model)
    hidden = hidden_matrices(whole)
    freeze(whole, ", ".join(names))
    frozen = [p for p in whole.parameters() if not p.requires_grad]
    return sum(p.numel() for p in frozen), sum(p.numel() for p in hidden if not p.requires_grad)


def count_hidden(model: GPTConfig) -> int:
    """Return the number of parameters in the weight matrices between embeddings and head."""
    return sum(count * shape.numel() for shape, count, is_hidden in _shapes(model).values() if is_hidden)


def count_adapter(adapter: AdapterConfig, model: GPTConfig) -> int:
    """Return the number of parameters that an adapter adds; 0 without one. With an adapter only these are trained."""
    if adapter.name == "prefix":
        return 2 * model.n_layers * adapter.length * model.kv_heads * model.head_width
    if adapter.name == "none":
        return 0
    targets = tuple(f".{target.strip()}.weight" for target in adapter.targets.split(","))
    size = 0
    for name, (shape, count, _) in _shapes(model).items():
        names = [f".{name.replace('.0.', f'.{layer}.', 1)}" for layer in range(count)]
        size += sum(adapter.rank * sum(shape) for name in names if name.endswith(targets))
    return size


def flops_per_token(model: GPTConfig, n_tokens: float = 0) -> tuple[int, int]:
    """Return the FLOPs per token, forward and backward, of the layers and of the output head.

    `n_tokens` is the mean length of the examples; 0 means context_length. A weight of a matrix product costs 6: one
    multiplication and one addition, once forward and twice backward. Attention scores and weighted sums add 12·L·T·H·K,
    with W in place of T in layers with a window of W; the masked half counts, though a kernel may skip it. Kaplan et
    al. 2020, arXiv:2001.08361, table 1; Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
    """
    length = n_tokens or model.context_length
    windows = (model.layer_window(layer) or length for layer in range(model.n_layers))
    seen = sum(min(length, window) for window in windows)  # tokens, over all layers
    attention = round(12 * seen * model.n_heads * model.head_width) if model.backbone == "gpt" else 0
    return 6 * count_hidden(model) + attention, 6 * model.vocab_size * model.emb_dim
