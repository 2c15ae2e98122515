"""A GPT: LayerNorm, GELU, FeedForward, MultiHeadAttention, TransformerBlock, GPTModel.

The architecture is GPT-2's (Radford et al. 2019): a decoder-only transformer with learned positions and pre-norm
residual blocks. Modules are created in the order, and carry the names, of Raschka, "Build a Large Language Model (From
Scratch)", 2024, so that a seed gives that book's figures and its checkpoints load with strict=True.

Shape letters: B batch, T tokens in the window, S tokens attended to (T and those cached before), D emb_dim, H heads,
K head_dim (D = H·K), V vocab_size.
"""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gpt import ops
from gpt.config import GPTConfig, model_config
from gpt.ops import reference


class _Layer(nn.Module):
    """A module that computes with the formulas of gpt/ops/fused.py or gpt/ops/reference.py, as `kernels` says."""

    def __init__(self, implementation: str = "fused"):
        super().__init__()
        self.implementation = (
            implementation  # the name, since a module as an attribute could be neither copied nor pickled
        )

    @property
    def ops(self) -> ModuleType:
        return ops.implementation(self.implementation)


class Linear(nn.Linear):
    """x · weight^T + bias, (..., in_features) -> (..., out_features); PyTorch's layer, with the product of gpt/ops."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, implementation: str = "fused"):
        super().__init__(in_features, out_features, bias)
        self.implementation = implementation

    @property
    def matrix(self) -> Tensor:
        """What x is multiplied by, (out_features, in_features): the weight, unless an adapter has changed it."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return ops.implementation(self.implementation).linear(x, self.weight, self.bias)


class LayerNorm(_Layer):
    """Brings each vector to mean 0 and variance 1, then applies a learned scale and shift: (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int, implementation: str = "fused"):
        super().__init__(implementation)
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.scale, self.shift, self.eps)


class GELU(_Layer):
    """The activation x · Phi(x) in GPT-2's tanh approximation, element by element."""

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.gelu(x)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside, on each token alone: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any]):
        super().__init__()
        config = model_config(config)
        self.layers = nn.Sequential(
            Linear(config.emb_dim, 4 * config.emb_dim, implementation=config.implementation),
            GELU(config.implementation),
            Linear(4 * config.emb_dim, config.emb_dim, implementation=config.implementation),
        )

    def forward(self, x: Tensor) -> Tensor:
        expand, activate, project = self.layers
        hidden = expand(x)  # (B, T, 4D), the widest tensor of a block
        with activate.ops.recompute(activate, hidden) as active:
            return project(active)


class KVCache:
    """The keys and values of the tokens that a model has already read, per layer, each computed once.

    `length` counts the tokens held. Room for `max_length` of them is taken at the first use. A layer's projections to
    query, key and value are kept here as one (3D, D) matrix and its bias: reading the weights is most of a new token's
    work, and one large matrix is read faster than three.
    """

    def __init__(self, n_layers: int, max_length: int):
        self.max_length = max_length
        self.length = 0
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers
        self.projections: list[tuple[Tensor, Tensor | None] | None] = [None] * n_layers

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, K) new keys and values of one layer; return all S = length + T of them, (B, H, S, K)."""
        n_batch, n_heads, n_new, head_dim = key.shape
        end = self.length + n_new
        if end > self.max_length:
            raise ValueError(f"{end} tokens do not fit a cache of {self.max_length}")
        if self.keys[layer] is None:
            self.keys[layer] = key.new_empty(n_batch, n_heads, self.max_length, head_dim)
            self.values[layer] = value.new_empty(n_batch, n_heads, self.max_length, head_dim)
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class MultiHeadAttention(_Layer):
    """Each token takes from the tokens it may see what its H queries ask for: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any], layer: int = 0):
        config = model_config(config)
        super().__init__(config.implementation)
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.drop_rate = config.drop_rate
        self.layer = layer  # which of a cache's layers is this one's
        self.W_query = Linear(config.emb_dim, config.emb_dim, config.qkv_bias, config.implementation)
        self.W_key = Linear(config.emb_dim, config.emb_dim, config.qkv_bias, config.implementation)
        self.W_value = Linear(config.emb_dim, config.emb_dim, config.qkv_bias, config.implementation)
        self.out_proj = Linear(config.emb_dim, config.emb_dim, implementation=config.implementation)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(f"{prefix}mask", None)  # the book's checkpoints carry the causal mask, a constant
        super()._load_from_state_dict(state_dict, prefix, *args)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, D) cut into heads, (B, H, T, K)."""
        return x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)

    def _project(self, x: Tensor, cache: KVCache | None) -> Iterable[Tensor]:
        """Query, key and value of each token, (B, T, D) each; behind a cache by one product."""
        layers = (self.W_query, self.W_key, self.W_value)
        together = cache is not None and cache.length and not torch.is_grad_enabled()
        if not together or any(type(layer) is not Linear for layer in layers):  # int8 holds its weights differently
            return [layer(x) for layer in layers]
        if cache.projections[self.layer] is None:
            weights, biases = zip(*((layer.weight, layer.bias) for layer in layers), strict=True)
            cache.projections[self.layer] = torch.cat(weights), None if biases[0] is None else torch.cat(biases)
        return self.ops.linear(x, *cache.projections[self.layer]).chunk(3, dim=-1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | str) -> Tensor:
        """What each query takes from the values, (B, H, T, K)."""
        return self.ops.attention(query, key, value, mask, self.drop_rate if self.training else 0.0)

    def forward(self, x: Tensor, mask: Tensor | str = "causal", cache: KVCache | None = None) -> Tensor:
        query, key, value = map(self.heads, self._project(x, cache))
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)  # (B, H, S, K)
        context = self._attend(query, key, value, mask)  # (B, H, T, K)
        return self.out_proj(context.transpose(1, 2).flatten(-2))  # (B, T, D)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-norm residuals, (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any], layer: int = 0):
        super().__init__()
        config = model_config(config)
        self.att = MultiHeadAttention(config, layer)
        self.ff = FeedForward(config)
        self.norm1 = LayerNorm(config.emb_dim, config.implementation)
        self.norm2 = LayerNorm(config.emb_dim, config.implementation)
        self.drop_resid = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, mask: Tensor | str = "causal", cache: KVCache | None = None) -> Tensor:
        x = x + self.drop_resid(self.att(self.norm1(x), mask, cache))
        return x + self.drop_resid(self.ff(self.norm2(x)))


class GPTModel(_Layer):
    """Token ids to next-token logits, or with targets to the loss.

    `config` is a GPTConfig, or a dict with its keys such as GPT_CONFIG_124M; ValueError where it is not valid.
    """

    def __init__(self, config: GPTConfig | dict[str, Any]):
        config = model_config(config)
        if not config.vocab_size:
            raise ValueError("vocab_size 0 stands for the tokenizer's: set it before a model is made")
        if config.backbone != "gpt":
            raise ValueError(f"a GPTModel has the backbone 'gpt', not {config.backbone!r}, which create_model makes")
        super().__init__(config.implementation)
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.drop_emb = nn.Dropout(config.drop_rate)
        # a Sequential for its names' sake: blocks are called one by one, since each takes the mask and the cache
        self.trf_blocks = nn.Sequential(*[TransformerBlock(config, layer) for layer in range(config.n_layers)])
        self.final_norm = LayerNorm(config.emb_dim, config.implementation)
        self.out_head = Linear(config.emb_dim, config.vocab_size, False, config.implementation)
        if config.init != "pytorch":
            self._init_normal()
        if config.tie_embeddings:
            self.out_head.weight = self.tok_emb.weight

    def _init_normal(self) -> None:
        """GPT-2's initial weights: normal with standard deviation 0.02, biases 0, and the layers that write to the
        residual stream scaled by 1/sqrt(2 n_layers), so that its variance does not grow with depth. Radford et al.
        2019, section 2.3.

        0.02 was made for widths of 768 and more. In a narrow model it leaves queries and keys so small that attention
        stays uniform for long; with init "lecun" the layers between the embeddings have 1/sqrt(fan-in), which keeps the
        variance of what passes through them. LeCun et al. 1998, "Efficient BackProp", section 4.6.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02
                if self.config.init == "lecun" and name.startswith("trf_blocks"):
                    std = parameter.size(1) ** -0.5
                writes_to_stream = name.endswith(("att.out_proj.weight", "ff.layers.2.weight"))
                nn.init.normal_(parameter, std=std / ((2 * self.config.n_layers) ** 0.5 if writes_to_stream else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def num_parameters(self) -> int:
        """How many numbers are learned; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        mask: Tensor | str = "causal",
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """The vectors after the final norm, (B, T, D), from which out_head reads logits. Arguments as in `forward`;
        `added` (B, T, D) is added to the embeddings: what a token is besides itself and its position."""
        if isinstance(mask, str) and mask not in ("causal", "full"):
            raise ValueError(f"mask is 'causal', 'full' or a boolean tensor, not {mask!r}")
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            raise ValueError(f"a mask is a boolean tensor, True where a query may see a key, not one of {mask.dtype}")
        n_tokens = token_ids.size(-1)
        start = 0 if cache is None else cache.length
        if start + n_tokens > self.config.context_length:
            raise ValueError(
                f"{start + n_tokens} tokens exceed the model's context_length {self.config.context_length}"
            )
        if positions is None:
            positions = torch.arange(start, start + n_tokens, device=token_ids.device)  # (T,)
        if isinstance(mask, Tensor) and mask.dim() == 3:
            mask = mask[:, None]  # (B, T, S) -> (B, 1, T, S): one mask for all heads
        x = self.tok_emb(token_ids) + self.pos_emb(positions)  # (B, T, D)
        x = self.drop_emb(x if added is None else x + added)
        for block in self.trf_blocks:
            x = block(x, mask, cache)
        if cache is not None:
            cache.length += n_tokens
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
        """Logits (B, T, V) for token ids (B, T); with targets (B, T) the cross-entropy in nats instead.

        mask: "causal" (a token sees itself and those before it), "full" (it sees all), or a boolean tensor, True where
        a query may see a key, of shape (T, S), (B, T, S) or (B, H, T, S). positions: (T,) or (B, T) position ids;
        0 .. T-1, or on from the cache's length, where left out. cache: the keys and values of earlier tokens, which
        this call extends. reduction: "mean" over the targets, "sum", or "none" for (B, T) losses. label_smoothing:
        the probability that a target shares out over all tokens. A target of -100 counts nowhere. With targets the
        logits of the whole batch are never held at once.

        Raises ValueError where the tokens exceed context_length, where no target counts, and for any other mask or
        reduction.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
        # to a tied weight the head's gradient is (V, D), and the embedding's is added in the rows of its tokens,
        # not as a second table of that size, zero but there
        tied = getattr(self.out_head, "weight", None) is self.tok_emb.weight
        self.tok_emb.sparse = tied and not torch.compiler.is_compiling()
        try:
            x = self.hidden_states(token_ids, mask=mask, positions=positions, cache=cache)  # (B, T, D)
        finally:
            self.tok_emb.sparse = False
        if targets is None:
            return self.out_head(x)
        # while compiling, a branch on data would cut the graph in two
        if not torch.compiler.is_compiling() and not (targets != reference.IGNORE_INDEX).any():
            raise ValueError("no target counts: a loss over nothing is not defined")
        losses = self.losses(x.flatten(0, 1), targets.flatten(), reduction, label_smoothing)
        return losses.view_as(targets) if reduction == "none" else losses

    def losses(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy in nats of the vectors (N, D) that out_head reads against targets (N,)."""
        return self.ops.linear_cross_entropy(hidden, self.out_head.matrix, targets, reduction, label_smoothing)
