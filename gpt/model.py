"""A GPT: LayerNorm, GELU, FeedForward, MultiHeadAttention, TransformerBlock, GPTModel.

GPT-2's architecture (Radford et al. 2019): a decoder-only transformer with learned positions and pre-norm blocks.
Module names and the order of creation follow Raschka, "Build a Large Language Model (From Scratch)", 2024: a seed gives
the book's figures, and its checkpoints load with strict=True.

Shape letters: B batch, T tokens, S tokens attended to (T plus those cached), D emb_dim, H heads, K head_dim (D = H·K),
V vocab_size, N = B·T.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt.config import GPTConfig, from_dict
from gpt.ops import OpsModule, use_implementation
from gpt.ops.reference import IGNORE_INDEX


class Linear(nn.Linear, OpsModule):
    """x · weight^T + bias, (..., in_features) -> (..., out_features): nn.Linear, computed by gpt/ops."""

    @property
    def effective_weight(self) -> Tensor:
        """The matrix that multiplies x, (out_features, in_features): the weight, unless an adapter changes it."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)


class LayerNorm(OpsModule):
    """Normalize each vector to mean 0 and variance 1, then apply a learned scale and shift: (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.scale, self.shift, self.eps)


class GELU(OpsModule):
    """The activation x · Phi(x) in GPT-2's tanh approximation, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.gelu(x)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, applied to each token: (B, T, D) -> (B, T, 4D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any]):
        super().__init__()
        emb_dim = from_dict(GPTConfig, config).emb_dim
        self.layers = nn.Sequential(Linear(emb_dim, 4 * emb_dim), GELU(), Linear(4 * emb_dim, emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class KVCache:
    """The keys and values of the `length` tokens read so far, layer by layer, so that each is computed only once.

    Memory for `max_length` tokens is allocated at the first use.
    """

    def __init__(self, n_layers: int, max_length: int):
        self.max_length, self.length = max_length, 0
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values (B, H, T, K) of one layer; return all S = length + T of them, (B, H, S, K)."""
        end = self.length + key.size(-2)
        assert end <= self.max_length, f"{end} tokens do not fit a cache of {self.max_length}"
        for tensors, new in ((self.keys, key), (self.values, value)):
            if tensors[layer] is None:
                tensors[layer] = new.new_empty(*new.shape[:2], self.max_length, new.size(-1))
            tensors[layer][:, :, self.length : end] = new
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class MultiHeadAttention(OpsModule):
    """Multi-head self-attention: (B, T, D) -> (B, T, D). Vaswani et al. 2017, arXiv:1706.03762."""

    def __init__(self, config: GPTConfig | dict[str, Any], layer: int = 0):
        super().__init__()
        config = from_dict(GPTConfig, config)
        self.n_heads, self.head_dim, self.drop_rate = config.n_heads, config.head_dim, config.drop_rate
        self.layer = layer  # this layer's index in a KVCache
        self.W_query = Linear(config.emb_dim, config.emb_dim, config.qkv_bias)
        self.W_key = Linear(config.emb_dim, config.emb_dim, config.qkv_bias)
        self.W_value = Linear(config.emb_dim, config.emb_dim, config.qkv_bias)
        self.out_proj = Linear(config.emb_dim, config.emb_dim)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(f"{prefix}mask", None)  # the book's checkpoints hold the causal mask, a constant
        super()._load_from_state_dict(state_dict, prefix, *args)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)."""
        return x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str) -> Tensor:
        """Return the values weighted by attention, (B, H, T, K)."""
        return self.ops.attention(query, key, value, mask, self.drop_rate if self.training else 0.0)

    def forward(self, x: Tensor, mask: Tensor | str = "causal", cache: KVCache | None = None) -> Tensor:
        query, key, value = (self.split_heads(w(x)) for w in (self.W_query, self.W_key, self.W_value))  # (B, H, T, K)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)  # (B, H, S, K)
        context = self.attend(query, key, value, mask)  # (B, H, T, K)
        return self.out_proj(context.transpose(1, 2).flatten(-2))  # (B, T, D)


class TransformerBlock(nn.Module):
    """Attention and feed-forward layer, each with pre-norm and a residual connection: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any], layer: int = 0):
        super().__init__()
        config = from_dict(GPTConfig, config)
        self.att = MultiHeadAttention(config, layer)
        self.ff = FeedForward(config)
        self.norm1 = LayerNorm(config.emb_dim)
        self.norm2 = LayerNorm(config.emb_dim)
        self.drop_resid = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, mask: Tensor | str = "causal", cache: KVCache | None = None) -> Tensor:
        x = x + self.drop_resid(self.att(self.norm1(x), mask, cache))
        return x + self.drop_resid(self.ff(self.norm2(x)))


class TokenEmbedding(nn.Embedding):
    """nn.Embedding whose gradient can be sparse: it is added to a tied head's dense one without a second table."""

    def __init__(self, vocab_size: int, emb_dim: int):
        if not vocab_size:
            raise ValueError("vocab_size is 0, which stands for the tokenizer's size: set it before making a model")
        super().__init__(vocab_size, emb_dim)

    def forward(self, token_ids: Tensor, sparse_grad: bool = False) -> Tensor:
        return F.embedding(token_ids, self.weight, sparse=sparse_grad and not torch.compiler.is_compiling())


class GPTModel(OpsModule):
    """Map token ids (B, T) to next-token logits (B, T, V), or with targets to the loss.

    `config` is a GPTConfig or a dict with its keys, such as GPT_CONFIG_124M. ValueError if it is invalid.
    """

    recompute = False  # recompute each block in the backward pass: less memory, a third more time

    def __init__(self, config: GPTConfig | dict[str, Any]):
        super().__init__()
        self.config = config = from_dict(GPTConfig, config)
        self.tok_emb = TokenEmbedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.drop_emb = nn.Dropout(config.drop_rate)
        self.trf_blocks = nn.Sequential(*[TransformerBlock(config, layer) for layer in range(config.n_layers)])
        self.final_norm = LayerNorm(config.emb_dim)
        self.out_head = Linear(config.emb_dim, config.vocab_size, bias=False)
        self._finish_init()

    def _finish_init(self) -> None:
        """Initialize the weights, tie the head and choose the implementation, as the config says."""
        if self.config.init != "pytorch":
            self._init_normal()
        if self.config.tie_embeddings:
            self.out_head.weight = self.tok_emb.weight
        use_implementation(self, self.config.implementation)

    def _init_normal(self) -> None:
        """Initialize as GPT-2 does (Radford et al. 2019, section 2.3): normal with standard deviation 0.02, biases 0.

        Layers that write to the residual stream are divided by sqrt(2 n_layers): its variance does not grow with depth.
        In a model narrower than 768, 0.02 keeps attention uniform for long. init "lecun" takes 1/sqrt(fan-in) in the
        blocks, which preserves the variance of activations (LeCun et al. 1998, "Efficient BackProp", section 4.6).
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_lecun = self.config.init == "lecun" and name.startswith("trf_blocks")
                std = parameter.size(1) ** -0.5 if is_lecun else 0.02
                if name.endswith(("att.out_proj.weight", "ff.layers.2.weight")):
                    std /= (2 * self.config.n_layers) ** 0.5
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def num_parameters(self) -> int:
        """Return the number of parameters; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        mask: Tensor | str = "causal",
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        extra_embeds: Tensor | None = None,
        sparse_grad: bool = False,
    ) -> Tensor:
        """Return the input of out_head, (B, T, D). Arguments as for `forward`; extra_embeds (B, T, D) is added to the
        embeddings, and sparse_grad is passed to `TokenEmbedding`."""
        if mask not in ("causal", "full") if isinstance(mask, str) else mask.dtype != torch.bool:
            found = repr(mask) if isinstance(mask, str) else mask.dtype
            raise ValueError(f"mask must be 'causal', 'full' or a boolean tensor, not {found}")
        start = 0 if cache is None else cache.length
        end = start + token_ids.size(-1)
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens exceed the model's context_length {self.config.context_length}")
        if positions is None:
            positions = torch.arange(start, end, device=token_ids.device)  # (T,)
        if isinstance(mask, Tensor) and mask.dim() == 3:
            mask = mask[:, None]  # (B, T, S) -> (B, 1, T, S): one mask for all heads
        x = self.tok_emb(token_ids, sparse_grad) + self.pos_emb(positions)  # (B, T, D)
        x = self.drop_emb(x if extra_embeds is None else x + extra_embeds)
        for block in self.trf_blocks:
            if self.recompute and cache is None:
                x = checkpoint(block, x, mask, use_reentrant=False)  # dropout draws the same numbers again
            else:
                x = block(x, mask, cache)
        if cache is not None:
            cache.length = end
        return self.final_norm(x)

    def forward(
        self,
        token_ids: Tensor,
        targets: Tensor | None = None,
        *,
        mask: Tensor | str = "causal",
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return logits (B, T, V) for token ids (B, T); with targets (B, T), the cross-entropy in nats.

        mask: "causal" (each token sees itself and earlier ones), "full" (each sees all), or a boolean tensor, True
        where a query may see a key, of shape (T, S), (B, T, S) or (B, H, T, S). positions: ids (T,) or (B, T), by
        default 0 .. T-1, offset by the cache's length. cache: earlier keys and values, which this call extends.
        Targets of -100 are ignored. reduction: "mean" over the others, "sum", or "none" for losses (B, T).
        label_smoothing: the probability that is spread evenly over the vocabulary.

        ValueError if the tokens exceed context_length, if every target is ignored, or for an invalid mask or reduction.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
        tied = getattr(self.out_head, "weight", None) is self.tok_emb.weight
        x = self.hidden_states(token_ids, mask=mask, positions=positions, cache=cache, sparse_grad=tied)  # (B, T, D)
        if targets is None:
            return self.out_head(x)
        if not torch.compiler.is_compiling() and (targets == IGNORE_INDEX).all():  # a branch would split the graph
            raise ValueError(f"no target counts: all are {IGNORE_INDEX}, which the loss ignores")
        loss = self.loss_from_hidden(x.flatten(0, 1), targets.flatten(), reduction, label_smoothing)
        return loss.view_as(targets) if reduction == "none" else loss

    def loss_from_hidden(
        self, hidden: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> Tensor:
        """Return the cross-entropy in nats of `hidden_states` (N, D) against targets (N,)."""
        return self.ops.linear_cross_entropy(
            hidden, self.out_head.effective_weight, targets, reduction, label_smoothing
        )
