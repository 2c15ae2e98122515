"""A plain GPT in eager PyTorch, without tuning: a baseline for speed, and a page to compare gpt/model.py with.

It is GPT-2 (Radford et al. 2019) with a tied head and no dropout, with as many parameters as `GPTModel` with the same
config and transformers' `GPT2LMHeadModel`. Attention is PyTorch's kernel, the logits of a batch are materialised, and
decoding has no KV cache.

Shape letters: B batch, T tokens, D emb_dim, H heads, K head_dim (D = H·K), V vocab_size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import GPTConfig


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.emb_dim
        self.n_heads = config.n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, K)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(context.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class PlainGPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V); with targets (B, T) to their mean cross-entropy in nats instead."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.context_length = config.context_length
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.blocks = nn.Sequential(*[Block(config) for _ in range(config.n_layers)])
        self.norm = nn.LayerNorm(config.emb_dim)
        self.head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        self.head.weight = self.tok_emb.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("proj.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * config.n_layers) ** 0.5 if residual else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, token_ids: Tensor, targets: Tensor | None = None) -> Tensor:
        positions = torch.arange(token_ids.size(1), device=token_ids.device)
        x = self.blocks(self.tok_emb(token_ids) + self.pos_emb(positions))  # (B, T, D)
        logits = self.head(self.norm(x))  # (B, T, V)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, token_ids: Tensor, n_new: int) -> Tensor:
        """Token ids (B, T) continued greedily, (B, T + n_new)."""
        for _ in range(n_new):
            logits = self(token_ids[:, -self.context_length :])[:, -1]  # (B, V)
            token_ids = torch.cat([token_ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        return token_ids
