"""Prefix tuning: learned keys and values before those of a frozen model. Li and Liang 2021, arXiv:2101.00190."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import AdapterConfig, GPTConfig
from gpt.model import GPTModel, KVCache, MultiHeadAttention


class PrefixAttention(MultiHeadAttention):
    """Attention with P learned keys and values, (H, P, K) each, before those of the tokens.

    Every query sees them, whatever the mask, and tokens keep their positions. The layers are those of `attention`; the
    prefix starts as `key` and `value`. The paper computes the prefix by an MLP during training; this class does not.
    """

    def __init__(self, config: GPTConfig, attention: MultiHeadAttention, key: Tensor, value: Tensor):
        with torch.device("meta"):
            super().__init__(config, attention.layer)
        self.implementation = attention.implementation
        for name, layer in attention.named_children():
            self.set_submodule(name, layer)
        self.prefix_key, self.prefix_value = nn.Parameter(key.clone()), nn.Parameter(value.clone())

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str) -> Tensor:
        """Return the values of prefix and tokens weighted by attention, (B, H, T, K)."""
        n_batch, n_keys, length = key.size(0), key.size(-2), self.prefix_key.size(-2)
        pairs = ((self.prefix_key, key), (self.prefix_value, value))  # autocast lowers the second's precision
        key, value = (torch.cat([p.to(t.dtype).expand(n_batch, -1, -1, -1), t], dim=-2) for p, t in pairs)
        # key and value: (B, H, P+S, K)
        if isinstance(mask, Tensor):
            mask = F.pad(mask.expand(*mask.shape[:-1], n_keys), (length, 0), value=True)  # (..., P+S)
        return super().attend(query, key, value, mask)  # "causal": the queries are the last T of P+S positions


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
    cache = KVCache(model.config.n_layers, config.length)
    with torch.no_grad():
        model.eval().hidden_states(tokens, cache=cache)
    for block, key, value in zip(model.trf_blocks, cache.keys, cache.values, strict=True):
        block.att = PrefixAttention(model.config, block.att, key[0], value[0])
    model.train(training)
