"""A GPT: MultiHeadAttention, TransformerBlock and GPTModel, from the layers of gpt/layers.py.

By default GPT-2's architecture (Radford et al. 2019): a decoder-only transformer with learned positions and pre-norm
blocks. Module names and the order of creation follow Raschka, "Build a Large Language Model (From Scratch)", 2024: a
seed gives the book's figures, and its checkpoints load with strict=True. GPTConfig replaces its parts by those of
today's models, such as Llama's: each is a small module, chosen when the model is made.

Shape letters: those of gpt/ops/reference.py. S is T plus the tokens cached; D = H·K in GPT-2.

Notebooks: 04_attention, 05_gpt, 08_decoding, 09_inside, 13_todays_block.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt.config import GPTConfig, from_dict
from gpt.layers import FEED_FORWARDS, NORMS, POSITIONS, Linear, Rotation, TokenEmbedding
from gpt.ops import OpsModule, use_implementation
from gpt.ops.reference import IGNORE_INDEX


class KVCache:
    """The keys and values of the `length` tokens read so far, layer by layer, so that each is computed only once.

    Memory for `max_length` tokens is allocated at the first use. `drop` frees that of the first ones.
    """

    def __init__(self, n_layers: int, max_length: int):
        self.max_length, self.length = max_length, 0
        self.start = 0  # tokens dropped
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values (B, G, T, K) of one layer; return all S that it holds, (B, G, S, K)."""
        begin, n_new = self.length - self.start, key.size(-2)
        assert begin + n_new <= self.max_length, f"{begin + n_new} tokens do not fit a cache of {self.max_length}"
        for tensors, new in ((self.keys, key), (self.values, value)):
            if tensors[layer] is None:
                tensors[layer] = new.new_empty(*new.shape[:2], self.max_length, new.size(-1))
            tensors[layer].narrow(2, begin, n_new).copy_(new)
        return self.keys[layer].narrow(2, 0, begin + n_new), self.values[layer].narrow(2, 0, begin + n_new)

    def move(self, row: int, first: int, n: int, distance: int, rotate: Callable[[Tensor], Tensor]) -> None:
        """Move the n tokens of a row from position `first` on by a distance, over others; `rotate` turns their keys."""
        source, target = (slice(place, place + n) for place in (first - self.start, first - self.start + distance))
        for key, value in zip(self.keys, self.values, strict=True):
            key[row, :, target] = rotate(key[row, :, source])
            value[row, :, target] = value[row, :, source].clone()

    def drop(self, n: int) -> None:
        """Drop the first n tokens of all rows."""
        kept = self.length - self.start - n
        for tensor in (*self.keys, *self.values):
            tensor[:, :, :kept] = tensor.narrow(2, n, kept).clone()
        self.start += n


class MultiHeadAttention(OpsModule):
    """Multi-head self-attention: (B, T, D) -> (B, T, D). Vaswani et al. 2017, arXiv:1706.03762.

    It knows no positions but those that `GPTModel` adds to x or gives as `rotation`.
    """

    def __init__(self, config: GPTConfig | dict[str, Any], layer: int = 0):
        super().__init__()
        config = from_dict(GPTConfig, config)
        self.head_dim, self.drop_rate = config.head_width, config.drop_rate
        self.layer = layer  # this layer's index in a KVCache
        self.window = config.layer_window(layer)
        queries, keys = config.n_heads * config.head_width, config.kv_heads * config.head_width  # H·K, G·K
        self.W_query = Linear(config.emb_dim, queries, config.qkv_bias)
        self.W_key = Linear(config.emb_dim, keys, config.qkv_bias)
        self.W_value = Linear(config.emb_dim, keys, config.qkv_bias)
        self.out_proj = Linear(queries, config.emb_dim, config.bias, role="residual")
        norm = NORMS[config.norm] if config.qk_norm else nn.Identity  # which ignores its arguments
        self.q_norm, self.k_norm = (norm(config.head_width, config.norm_eps) for _ in range(2))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(f"{prefix}mask", None)  # the book's checkpoints hold the causal mask, a constant
        super()._load_from_state_dict(state_dict, prefix, *args)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H·K) -> (B, H, T, K)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str, rotation: Rotation | None
    ) -> Tensor:
        """Return the values weighted by attention, (B, H, T, K). `rotation` is that of the queries, done already."""
        return self.ops.attention(query, key, value, mask, self.drop_rate if self.training else 0.0, self.window)

    def forward(
        self, x: Tensor, mask: Tensor | str = "causal", cache: KVCache | None = None, rotation: Rotation | None = None
    ) -> Tensor:
        query, key, value = (self.split_heads(w(x)) for w in (self.W_query, self.W_key, self.W_value))
        query, key = self.q_norm(query), self.k_norm(key)  # (B, H, T, K), (B, G, T, K)
        if rotation is not None:
            query, key = self.ops.rotate(query, *rotation), self.ops.rotate(key, *rotation)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)  # (B, G, S, K)
        context = self.attend(query, key, value, mask, rotation)  # (B, H, T, K)
        return self.out_proj(context.transpose(1, 2).flatten(-2))  # (B, T, D)


class TransformerBlock(nn.Module):
    """Attention and feed-forward layer, each with pre-norm and a residual connection: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any], layer: int = 0):
        super().__init__()
        config = from_dict(GPTConfig, config)
        self.att = MultiHeadAttention(config, layer)
        self.ff = FEED_FORWARDS[config.feed_forward](config)
        self.norm1, self.norm2 = (NORMS[config.norm](config.emb_dim, config.norm_eps) for _ in range(2))
        self.drop_resid = nn.Dropout(config.drop_rate)

    def forward(
        self, x: Tensor, mask: Tensor | str = "causal", cache: KVCache | None = None, rotation: Rotation | None = None
    ) -> Tensor:
        x = x + self.drop_resid(self.att(self.norm1(x), mask, cache, rotation))
        return x + self.drop_resid(self.ff(self.norm2(x)))


class GPTModel(OpsModule):
    """Map token ids (B, T) to next-token logits (B, T, V), or with targets to the loss.

    `config` is a GPTConfig or a dict with its keys, such as GPT_CONFIG_124M. ValueError if it is invalid.
    """

    recompute = False  # recompute each block in the backward pass: less memory, a third more time

    def __init__(self, config: GPTConfig | dict[str, Any]):
        super().__init__()
        self.config = config = from_dict(GPTConfig, config)
        self.tok_emb = TokenEmbedding(config.vocab_size, config.emb_dim)
        self.pos_emb = POSITIONS[config.position](config)
        self.drop_emb = nn.Dropout(config.drop_rate)
        self.trf_blocks = nn.Sequential(*[TransformerBlock(config, layer) for layer in range(config.n_layers)])
        self.final_norm = NORMS[config.norm](config.emb_dim, config.norm_eps)
        self.out_head = Linear(config.emb_dim, config.vocab_size, bias=False, role="head")
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
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, Linear):
                is_lecun = self.config.init == "lecun" and module.role != "head"
                std = module.in_features**-0.5 if is_lecun else 0.02
                if module.role == "residual":
                    std /= (2 * self.config.n_layers) ** 0.5
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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
        n_seen = end if cache is None else end - cache.start
        if n_seen > self.config.context_length:
            raise ValueError(f"{n_seen} tokens exceed the model's context_length {self.config.context_length}")
        if positions is None:
            positions = torch.arange(start, end, device=token_ids.device)  # (T,)
        if isinstance(mask, Tensor) and mask.dim() == 3:
            mask = mask[:, None]  # (B, T, S) -> (B, 1, T, S): one mask for all heads
        x, rotation = self.pos_emb.encode(self.tok_emb(token_ids, sparse_grad), positions)  # (B, T, D)
        x = self.drop_emb(x if extra_embeds is None else x + extra_embeds)
        for block in self.trf_blocks:
            if self.recompute and cache is None:  # dropout draws the same numbers again
                x = checkpoint(block, x, mask, None, rotation, use_reentrant=False)
            else:
                x = block(x, mask, cache, rotation)
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

        ValueError if the tokens exceed context_length, if every target is ignored (on a GPU their mean is NaN instead),
        or for an invalid mask or reduction.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
        tied = getattr(self.out_head, "weight", None) is self.tok_emb.weight
        x = self.hidden_states(token_ids, mask=mask, positions=positions, cache=cache, sparse_grad=tied)  # (B, T, D)
        if targets is None:
            return self.out_head(x)
        # a branch on data would split a compiled graph, and let a GPU wait
        if targets.is_cpu and not torch.compiler.is_compiling() and (targets == IGNORE_INDEX).all():
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
