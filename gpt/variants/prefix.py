"""Prefix tuning: learned keys and values before those of a frozen model. Li and Liang 2021, arXiv:2101.00190."""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import AdapterConfig, GPTConfig
from gpt.model import GPTModel, KVCache, MultiHeadAttention
from gpt.ops.reference import attention_mask
from gpt.system.device import shapes_only


class PrefixAttention(MultiHeadAttention):
    """Attention with P learned keys and values, (G, P, K) each, before those of the tokens.

    Every query sees them, whatever the mask and the window, and tokens keep their positions. The prefix has none: with
    rotary positions it meets each query as it was before its rotation. The layers are those of `attention`; the prefix
    starts as `key` and `value`. The paper computes the prefix by an MLP during training; this class does not.
    """

    def __init__(self, config: GPTConfig, attention: MultiHeadAttention, key: Tensor, value: Tensor):
        with shapes_only():
            super().__init__(config, attention.layer)
        self.implementation = attention.implementation
        for name, layer in attention.named_children():
            self.set_submodule(name, layer)
        self.prefix_key, self.prefix_value = nn.Parameter(key.clone()), nn.Parameter(value.clone())

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str, rotation: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Return the values of prefix and tokens weighted by attention, (B, H, T, K)."""
        n_keys, width, length = key.size(-2), key.size(-1), self.prefix_key.size(-2)
        if isinstance(mask, Tensor) or 0 < self.window < n_keys:
            mask = attention_mask(mask, query.size(-2), n_keys, self.window, query.device)
            mask = F.pad(mask.expand(*mask.shape[:-1], n_keys), (length, 0), value=True)  # (..., P+S)
        prefix_key, prefix_value = (  # autocast lowers the precision of the others
            p.to(key.dtype).expand(len(key), -1, -1, -1) for p in (self.prefix_key, self.prefix_value)
        )
        if rotation is not None:  # vectors of width 2K: tokens use the first half, the prefix the second
            cosine, sine = rotation
            query = torch.cat([query, self.ops.rotate(query, cosine, -sine)], dim=-1) * math.sqrt(2)  # for sqrt(2K)
            key, prefix_key = F.pad(key, (0, width)), F.pad(prefix_key, (width, 0))
            value, prefix_value = F.pad(value, (0, width)), F.pad(prefix_value, (0, width))
        key = torch.cat([prefix_key, key], dim=-2)  # (B, G, P+S, K)
        value = torch.cat([prefix_value, value], dim=-2)
        # "causal": the queries are the last T of P+S positions
        context = self.ops.attention(query, key, value, mask, self.drop_rate if self.training else 0.0)
        return context[..., :width]


def add_prefix(model: GPTModel, config: AdapterConfig) -> None:
    """Add a prefix to each layer, in place. It starts as the keys and values of tokens drawn from the vocabulary.

    The model can use those from the start (section 7.4 of the paper). Keys of size 0.02 would draw attention away from
    the text and add nothing.
    """
    if config.length > model.config.context_length:
        raise ValueError(
            f"adapter.length {config.length} exceeds the model's context_length {model.config.context_length}"
        )
    device, training = model.tok_emb.weight.device, model.training
    tokens = torch.randint(model.config.vocab_size, (1, config.length), device=device)  # (1, P)
    positions = torch.arange(config.length, device=device)
    if model.config.position == "rope":
        positions = torch.zeros_like(positions)  # no rotation
    cache = KVCache(model.config.n_layers, config.length)
    with torch.no_grad():
        model.eval().hidden_states(tokens, positions=positions, cache=cache)
    for block, key, value in zip(model.trf_blocks, cache.keys, cache.values, strict=True):
        block.att = PrefixAttention(model.config, block.att, key[0], value[0])
    model.train(training)


@contextlib.contextmanager
def without_prefix(model: nn.Module) -> Iterator[None]:
    """A context in which a model attends as if no prefix had been added."""
    layers = [module for module in model.modules() if isinstance(module, PrefixAttention)]
    for layer in layers:
        layer.attend = super(PrefixAttention, layer).attend
    try:
        yield
    finally:
        for layer in layers:
            del layer.attend  # the class's own again
