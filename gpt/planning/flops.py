"""What a model costs, by formula: parameters, FLOPs per token, and the bytes of one pass forward and backward.

Shape letters: B batch, T tokens in the window, D emb_dim, H heads, L layers, V vocab_size, N = B·T tokens in all.
"""

import dataclasses
from functools import lru_cache

import torch

from gpt.config import AdapterConfig, GPTConfig
from gpt.ops import fused
from gpt.optim import is_hidden
from gpt.variants import create_model

# --- counting ---------------------------------------------------------------------------------------------------------

_PARTS = {  # a mark in a parameter's name -> its part
    "tok_emb": "token embedding",
    "pos_emb": "positions",
    ".att.": "attention",
    ".ff.": "feed-forward",
    "lstm.": "recurrence",
    "norm": "norms",
    "out_head": "output head",
}


@lru_cache(maxsize=256)
def _shapes(model: GPTConfig) -> dict[str, tuple[torch.Size, int]]:
    """The shapes of a model's parameters by name, and how many there are of each: read off a model of one layer, which
    is like all others, on the meta device, which holds no numbers."""
    with torch.device("meta"):
        parameters = create_model(dataclasses.replace(model, n_layers=1)).named_parameters()
    layers = ("trf_blocks", "lstm")
    return {name: (p.shape, model.n_layers if name.startswith(layers) else 1) for name, p in parameters}


def count_parameters(model: GPTConfig) -> dict[str, int]:
    """The parameters of a model by part; a tied head, which has none of its own, is left out."""
    parts = {}
    for name, (shape, count) in _shapes(model).items():
        part = next(part for mark, part in _PARTS.items() if mark in name)
        parts[part] = parts.get(part, 0) + count * shape.numel()
    return parts


def count_hidden(model: GPTConfig) -> int:
    """The parameters of the matrices between the embeddings and the head."""
    return sum(count * shape.numel() for name, (shape, count) in _shapes(model).items() if is_hidden(name, len(shape)))


def count_adapter(adapter: AdapterConfig, model: GPTConfig) -> int:
    """The numbers that an adapter adds to a model, which are then all that is trained; 0 where there is none."""
    if adapter.name == "prefix":
        return 2 * model.n_layers * adapter.length * model.emb_dim
    if adapter.name == "none":
        return 0
    targets = tuple(f".{target.strip()}.weight" for target in adapter.targets.split(","))
    shapes = _shapes(model).items()
    return sum(count * adapter.rank * sum(shape) for name, (shape, count) in shapes if f".{name}".endswith(targets))


def flops_per_token(model: GPTConfig, n_tokens: float = 0) -> tuple[int, int]:
    """FLOPs per token, forward and backward, of the layers and of the output head, for windows of `n_tokens` tokens on
    average (0: context_length).

    6 per weight of a matrix product: a multiplication and an addition, forward once and backward twice. Attention's
    scores and sums over values add 12·L·T·D; the causal half that a kernel may skip is counted. Kaplan et al. 2020,
    arXiv:2001.08361, table 1; Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
    """
    length = n_tokens or model.context_length
    attention = round(12 * model.n_layers * length * model.emb_dim) if model.backbone == "gpt" else 0
    return 6 * count_hidden(model) + attention, 6 * model.vocab_size * model.emb_dim


# --- the bytes of a pass ----------------------------------------------------------------------------------------------


def activation_bytes(model: GPTConfig, n_examples: int, n_tokens: int, half: bool = False, device: str = "cpu") -> int:
    """Bytes that autograd keeps of one forward pass over (n_windows, n_tokens) ids, up to and with the final norm.

    `half`: matrix products run in bfloat16. What the loss keeps is counted by `logit_bytes`.
    """
    b = 2 if half else 4  # bytes per number that comes out of a matrix product; the residual stream stays at 4
    drops = model.drop_rate > 0
    reference = model.implementation == "reference"
    tokens = n_examples * n_tokens  # N = B·T
    vectors = tokens * model.emb_dim  # B·T·D numbers
    mask = 1 if device == "cuda" else 4  # bytes per number of a dropout mask; a CPU's has the type of what it drops
    # explicit: x, x - mean and scale · (x - mean), (B, T, D) each, and the root; fused: x, mean and 1 / root
    norm = 12 * vectors + 4 * tokens if reference else 4 * vectors + 8 * tokens
    embeddings = 8 * n_tokens + drops * mask * vectors  # positions; drop_emb's mask
    if model.backbone == "lstm":
        # per layer its output, and oneDNN's workspace: four gates, both states and copies of the inputs
        layer = (b + (46 if half else 64)) * vectors + 8 * (model.emb_dim**2) * half * b
        between = 2 * b * vectors * drops * (model.n_layers - 1)  # the mask, and what it leaves
        return embeddings + model.n_layers * layer + between + b * vectors + norm

    pairs = n_examples * model.n_heads * n_tokens**2  # B·H·T·T attention weights
    rows = n_examples * model.n_heads * n_tokens  # B·H·T
    copies = 3 if half else 1  # of the norm's output: autocast converts it for each of W_query, W_key, W_value
    block = norm + copies * b * vectors  # norm1, and the inputs of the three projections
    if reference:
        # query, key, value; scores, their exponentials, the weights, what was dropped; each row's maximum and sum; mask
        block += 3 * b * vectors + (3 + drops) * b * pairs + 2 * b * rows + n_tokens**2
    elif drops and device != "cuda":
        # on a CPU dropout takes the kernel that writes everything down, in float32: query, key, value; weights, mask,
        # and the weights that are left
        block += 3 * 4 * vectors + 3 * 4 * pairs
    else:
        block += 3 * b * vectors + 4 * rows  # query, key, value; the logarithm of each row's sum
    block += b * vectors  # the input of out_proj, which the fused kernel itself keeps too
    block += norm + b * vectors  # norm2, and the input of layers.0
    # around the GELU, 4 D wide; explicit: x, tanh, 0.5 x, 1 + tanh and the product; fused: x, and a small product
    block += (5 if reference else 2 if 4 * vectors < fused.RECOMPUTE_MIN_NUMEL else 1) * 4 * b * vectors
    block += 2 * drops * min(mask, b) * vectors  # drop_resid's masks
    block += 12 * model.emb_dim**2 * b * half  # bfloat16 copies of the block's matrices
    return embeddings + model.n_layers * block + norm


def gap_bytes(model: GPTConfig, n_examples: int, n_tokens: int, half: bool = False) -> int:
    """Bytes that the tensors of a forward pass take which autograd does not keep, and those of backward's first steps,
    on glibc's heap.

    Each is freed soon, but leaves a gap between two kept ones that no tensor of its size fits into: for an aligned
    place posix_memalign asks for some bytes more than the tensor has, and the heap never moves what it holds.
    """
    b = 2 if half else 4
    drops = model.drop_rate > 0
    vectors = n_examples * n_tokens * model.emb_dim  # B·T·D numbers
    reference = model.implementation == "reference"
    norm = 4 * vectors * (reference + half)  # the quotient before the shift; what autocast converts
    if model.backbone == "lstm":
        return model.n_layers * 2 * b * vectors + norm
    pairs = n_examples * model.n_heads * n_tokens**2  # B·H·T·T
    block = 2 * norm + (2 + 2 * drops) * b * vectors  # what out_proj and layers.2 give, and drop_resid of it
    backward = 5 * b * vectors  # the gradients of the stream and of the GELU's output
    if reference:
        # copies of query, key, value and context before they are in order; scores twice, less their maximum, and the
        # probabilities of dropout and their product; the GELU's four steps before the tanh
        block += 4 * b * vectors + (3 + 2 * drops) * b * pairs + 4 * 4 * b * vectors
        backward = 2 * b * pairs
    elif drops:
        # query, key, value and the scaled two; the context; scores
        block += (4 * half + 5 * 4 + 4) * vectors + 4 * pairs
        backward = 2 * 4 * pairs
    return model.n_layers * block + backward


def logit_bytes(model: GPTConfig, n_targets: int, half: bool = False) -> int:
    """Bytes that the loss over `n_targets` positions takes, its logits (N, V) and what stands in for their gradient.

    The kept gradients of the hidden states (N, D) and of the head (V, D) are among them.
    """
    b = 2 if half else 4
    hidden, head = 4 * n_targets * model.emb_dim, 4 * model.vocab_size * model.emb_dim
    if model.implementation == "reference":
        # kept: logits, logits - maximum and its exponentials; made in backward, none in the gap of another: a gradient
        # of each, the zeros that gather's is written to, two sums; and the head's
        return 4 * hidden + (3 + 6) * b * n_targets * model.vocab_size + head
    rows = fused.chunk_rows(model.vocab_size)
    chunk = 4 * min(n_targets, rows) * model.vocab_size
    # a chunk's logits and the log softmax that becomes their gradient; while heaps are cut up, room for one more
    chunks = 2 if n_targets <= rows else 3
    # of the hidden states: themselves, their gradient and a chunk of it; of the head: the gradient; in half precision a
    # chunk's part of it
    return 3 * hidden + chunks * chunk + (1 + half) * head
