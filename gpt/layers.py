"""The layers of a GPT: linear, norms, feed-forward layers, and embeddings of tokens and positions.

NORMS, FEED_FORWARDS and POSITIONS list the kinds that a GPTConfig can choose.

Shape letters: B batch, T tokens, D emb_dim, F width of the feed-forward layer, K head_dim.

Notebooks: 05_gpt, 13_todays_block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import GPTConfig, from_dict
from gpt.ops import OpsModule
from gpt.ops.reference import rotary_tables

Rotation = tuple[Tensor, Tensor]  # cosine and sine, by which attention turns queries and keys


class Linear(nn.Linear, OpsModule):
    """x · weight^T + bias, (..., in_features) -> (..., out_features): nn.Linear, computed by gpt/ops.

    Initialization and Muon differ by `role`: "hidden"; "residual" if the result is added to the residual stream; "head"
    if each row of the weight belongs to one token.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, role: str = "hidden"):
        super().__init__(in_features, out_features, bias)
        self.role = role

    @property
    def effective_weight(self) -> Tensor:
        """The matrix that multiplies x, (out_features, in_features): the weight, unless an adapter changes it."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)


class LayerNorm(OpsModule):
    """Normalize each vector to mean 0 and variance 1, then apply a learned scale and shift: (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.scale, self.shift, self.eps)


class RMSNorm(OpsModule):
    """Divide each vector by its root mean square, then apply a learned scale: (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.scale, self.eps)


class GELU(OpsModule):
    """The activation x · Phi(x), elementwise: `exact`, or in GPT-2's tanh approximation."""

    def __init__(self, exact: bool = False):
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.gelu(x, self.exact)


class SquaredReLU(OpsModule):
    """The activation max(0, x)^2, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.relu2(x)


class FeedForward(nn.Module):
    """Two linear layers with an activation between, applied to each token: (B, T, D) -> (B, T, F) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any]):
        super().__init__()
        config = from_dict(GPTConfig, config)
        activations = {"gelu": GELU(), "gelu_exact": GELU(exact=True), "relu2": SquaredReLU()}
        self.layers = nn.Sequential(
            Linear(config.emb_dim, config.ffn_width, config.bias),
            activations[config.feed_forward],
            Linear(config.ffn_width, config.emb_dim, config.bias, role="residual"),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SwiGLU(OpsModule):
    """Llama's feed-forward layer, down(silu(gate(x)) · up(x)): (B, T, D) -> (B, T, F) -> (B, T, D)."""

    def __init__(self, config: GPTConfig | dict[str, Any]):
        super().__init__()
        config = from_dict(GPTConfig, config)
        self.gate = Linear(config.emb_dim, config.ffn_width, config.bias)
        self.up = Linear(config.emb_dim, config.ffn_width, config.bias)
        self.down = Linear(config.ffn_width, config.emb_dim, config.bias, role="residual")

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.ops.swiglu(self.gate(x), self.up(x)))


class TokenEmbedding(nn.Embedding):
    """nn.Embedding whose gradient can be sparse: it is added to a tied head's dense one without a second table."""

    def __init__(self, vocab_size: int, emb_dim: int):
        if not vocab_size:
            raise ValueError("vocab_size is 0, which stands for the tokenizer's size: set it before making a model")
        super().__init__(vocab_size, emb_dim)

    def forward(self, token_ids: Tensor, sparse_grad: bool = False) -> Tensor:
        sparse_grad = sparse_grad and token_ids.is_cpu and not torch.compiler.is_compiling()
        return F.embedding(token_ids, self.weight, sparse=sparse_grad)


class LearnedPositions(nn.Embedding):
    """GPT-2's positions: a learned vector for each, added to the token's embedding."""

    def __init__(self, config: GPTConfig):
        super().__init__(config.context_length, config.emb_dim)

    def encode(self, x: Tensor, positions: Tensor) -> tuple[Tensor, None]:
        """Return embeddings (B, T, D) with those of positions (T,) or (B, T) added, and no rotation."""
        return x + self(positions), None


class RotaryPositions(nn.Module):
    """Llama's positions: nothing is added to the embedding; attention rotates queries and keys by their position."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.settings = (config.head_width, config.rope_theta, config.rope_scaling, config.rope_original_length)

    def encode(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Rotation]:
        """Return embeddings (B, T, D) as they are, and the rotation for positions (T,) or (B, T): cosine and sine of
        shape (T, K) or (B, 1, T, K)."""
        return x, self.rotation(positions if positions.dim() == 1 else positions[:, None])

    def rotation(self, positions: Tensor) -> Rotation:
        """Return cosine and sine for positions (..., T), of shape (..., T, K)."""
        return rotary_tables(positions, *self.settings)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}
FEED_FORWARDS = {"gelu": FeedForward, "gelu_exact": FeedForward, "relu2": FeedForward, "swiglu": SwiGLU}
POSITIONS = {"learned": LearnedPositions, "rope": RotaryPositions}
