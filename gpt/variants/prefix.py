"""Learned keys and values before a frozen model's own: prefix tuning. Li and Liang 2021, arXiv:2101.00190."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import AdapterConfig, GPTConfig
from gpt.model import GPTModel, KVCache, MultiHeadAttention


class PrefixAttention(MultiHeadAttention):
    """Attention with P learned keys and values, (H, P, K) each, before the text's own: every query sees them, whatever
    its mask, and no token moves to another position. Li and Liang 2021, arXiv:2101.00190.

    They are made of an attention's layers and start as `key` and `value`. The paper's perceptron, which makes a prefix
    of a smaller one while training, is left out.
    """

    def __init__(self, config: GPTConfig, attention: MultiHeadAttention, key: Tensor, value: Tensor):
        with torch.device("meta"):
            super().__init__(config, attention.layer)
        for name, layer in attention.named_children():
            self.set_submodule(name, layer)
        self.prefix_key, self.prefix_value = nn.Parameter(key.clone()), nn.Parameter(value.clone())

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str) -> Tensor:
        n_batch, n_keys, length = key.size(0), key.size(-2), self.prefix_key.size(-2)
        own = ((self.prefix_key, key), (self.prefix_value, value))
        # under autocast the text's are of a lower precision
        key, value = (torch.cat([p.to(t.dtype).expand(n_batch, -1, -1, -1), t], dim=-2) for p, t in own)  # (B,H,P+S,K)
        if isinstance(mask, Tensor):
            mask = F.pad(mask.expand(*mask.shape[:-1], n_keys), (length, 0), value=True)  # (..., P+S)
        return super()._attend(query, key, value, mask)  # "causal": the queries are the last of all P+S


def add_prefix(model: GPTModel, config: AdapterConfig) -> None:
    """A prefix in each layer. It starts as the keys and values of tokens drawn from the vocabulary, as if these stood
    before the text: the model knows what to make of them, and starts near what it was. Keys of size 0.02 would take the
    same share of all attention and give nothing for it. Section 7.4 of the paper."""
    if config.length > model.config.context_length:
        raise ValueError(
            f"adapter.length {config.length} exceeds the model's context_length {model.config.context_length}: lower it"
        )
    device, training = model.tok_emb.weight.device, model.training
    tokens = torch.randint(model.config.vocab_size, (1, config.length), device=device)  # (1, P)
    cache = KVCache(model.config.n_layers, config.length)
    with torch.no_grad():
        model.eval().hidden_states(tokens, cache=cache)
    for block, key, value in zip(model.trf_blocks, cache.keys, cache.values, strict=True):
        block.att = PrefixAttention(model.config, block.att, key[0], value[0])
    model.train(training)
