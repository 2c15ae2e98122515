"""Estimate the memory of a training step, by formula.

Shape letters: B batch, T tokens in the window, D emb_dim, H heads, G key/value heads, K head_dim, F width of the
feed-forward layer, V vocab_size, N = B·T tokens in all.
"""

import sys

import torch

from gpt.config import GPTConfig, TrainConfig
from gpt.objectives import OBJECTIVES
from gpt.objectives.unigram import MAX_TOKENS
from gpt.optim import MAX_ELEMENTS
from gpt.planning.flops import count_frozen, count_hidden
from gpt.planning.hardware import Hardware
from gpt.system.chunked_loss import chunk_rows
from gpt.system.device import choose_device, choose_dtype
from gpt.system.distributed import DistContext
from gpt.system.sharded_files import FILE_BYTES

# Resident bytes of a training process with a tiny model: Python and PyTorch's CPU build 230 MB, torch.optim's imports
# 75 MB, evaluation, matplotlib and the first step 55 MB. Measured with PyTorch 2.13 on Linux.
PROGRAM_BYTES = 360_000_000
TOKENIZER_BYTES = 400  # per token of a byte-pair vocabulary, both directions; 21 MB for GPT-2's
NGRAM_BYTES = 32  # per token in which n-grams are counted: four int64 arrays


def activation_bytes(
    model: GPTConfig,
    n_examples: int,
    n_tokens: int,
    half: bool = False,
    device: str = "cpu",
    recompute: bool = False,
    has_masks: bool = False,
    sharded: bool = False,
) -> int:
    """Return the bytes that autograd keeps of one forward pass over (n_examples, n_tokens) ids, final norm included.

    `half`: matrix products run in bfloat16, by autocast, or because FSDP2 gathers `sharded` weights in it: then norms
    and the residual stream are in bfloat16 too, and nothing is converted. `recompute`: each block keeps only its input,
    and backward holds the activations of one block at a time. `has_masks`: each example has its own attention mask and
    positions. `logit_bytes` counts the loss. For the LSTM on a CPU the figure is approximate: oneDNN chooses the size
    of its workspace.
    """
    b = 2 if half else 4  # bytes per number out of a matrix product
    stream = b if sharded else 4  # of the residual stream
    drops = model.drop_rate > 0
    vectors = n_examples * n_tokens * model.emb_dim  # B·T·D numbers
    norm = _norm_bytes(model, n_examples * n_tokens, model.emb_dim, stream)
    embeddings = drops * _mask_bytes(device) * vectors  # the mask of drop_emb
    if model.backbone == "lstm":
        # per layer: its output, and oneDNN's workspace of four gates, both states and copies of the inputs
        layer = (b + (46 if half else 64)) * vectors + 8 * (model.emb_dim**2) * half * b
        between = 2 * b * vectors * drops * (model.n_layers - 1)  # dropout between layers: the mask and its result
        return embeddings + model.n_layers * layer + between + b * vectors + norm
    # positions, or the cosines and sines of a rotation
    n_positions = n_tokens * (n_examples if has_masks else 1)
    embeddings += 8 * n_positions * (model.head_width if model.position == "rope" else 1)
    blocks = [
        _block_bytes(model, layer, n_examples, n_tokens, half, device, has_masks, sharded)
        for layer in range(model.n_layers)
    ]
    kept = model.n_layers * stream * vectors + max(blocks) if recompute else sum(blocks)
    return embeddings + kept + norm


def _mask_bytes(device: str) -> int:
    """Return the bytes per number of a dropout mask in float32; a CPU's has the input's dtype."""
    return 1 if device == "cuda" else 4


def _norm_bytes(model: GPTConfig, n_rows: int, width: int, size: int = 4, mixed: bool = False) -> int:
    """Return the bytes kept by one norm over (n_rows, width) numbers of `size` bytes; `mixed`: they are bfloat16, but
    its scale and results float32."""
    reference = model.implementation == "reference"
    numbers = n_rows * width
    if model.norm == "rms" and reference:  # x, x scaled, and the root
        return (6 if mixed else 2 * size) * numbers + (2 if mixed else size) * n_rows
    if model.norm == "rms":  # x and 1 / root
        return size * numbers + 4 * n_rows
    # reference: x, x - mean and scale · (x - mean), (N, D) each, and the root; fused: x, mean and 1 / root
    return 3 * size * numbers + size * n_rows if reference else size * numbers + 2 * size * n_rows


def _block_bytes(
    model: GPTConfig,
    layer: int,
    n_examples: int,
    n_tokens: int,
    half: bool,
    device: str,
    has_masks: bool,
    sharded: bool,
) -> int:
    """Return the bytes kept by one transformer block."""
    b = 2 if half else 4
    by_autocast = half and not sharded
    rows = n_examples * n_tokens  # N
    vectors = rows * model.emb_dim  # N·D
    norms = 2 * _norm_bytes(model, rows, model.emb_dim, b if sharded else 4)
    residual_masks = 2 * (model.drop_rate > 0) * min(_mask_bytes(device), b) * vectors  # of drop_resid
    matrices = b * by_autocast * count_hidden(model) // model.n_layers  # bfloat16 copies
    attention = _attention_bytes(model, layer, n_examples, n_tokens, half, device, has_masks, sharded)
    return norms + attention + _feed_forward_bytes(model, rows, half, by_autocast) + residual_masks + matrices


def _attention_bytes(
    model: GPTConfig,
    layer: int,
    n_examples: int,
    n_tokens: int,
    half: bool,
    device: str,
    has_masks: bool,
    sharded: bool,
) -> int:
    """Return the bytes kept by the attention of one layer, without its norm."""
    b = 2 if half else 4
    by_autocast = half and not sharded
    drops, reference = model.drop_rate > 0, model.implementation == "reference"
    rows = n_examples * n_tokens
    queries, keys = (rows * n * model.head_width for n in (model.n_heads, model.kv_heads))  # N·H·K, N·G·K
    pairs = n_examples * model.n_heads * n_tokens**2  # B·H·T·T attention weights
    masks = n_tokens**2 * (n_examples if has_masks else 1)
    # the input of the projections, which autocast converts for each of the three, and that of out_proj
    kept = (3 if by_autocast else 1) * b * rows * model.emb_dim + b * queries
    if model.qk_norm:  # under autocast its results are float32
        size = b if sharded else 4
        norms = (
            _norm_bytes(model, rows * n, model.head_width, size, by_autocast) for n in (model.n_heads, model.kv_heads)
        )
        kept += sum(norms)
    elif model.position == "rope" and half:
        kept += 4 * b * n_tokens * model.head_width  # cosines and sines in bfloat16, for queries and for keys
    if reference:
        # query, key, value, for each head; scores, their exponentials, the weights, dropped weights; each row's maximum
        # and sum; the mask
        return kept + 3 * b * queries + (3 + drops) * b * pairs + 2 * b * rows * model.n_heads + masks
    if drops and device != "cuda":
        # with dropout a CPU runs the kernel that materialises the weights, in float32: query, key, value; weights,
        # mask, dropped weights
        return kept + 3 * 4 * queries + 3 * 4 * pairs
    kept += b * (queries + 2 * keys) + 4 * rows * model.n_heads  # query, key, value; the logarithm of each row's sum
    if has_masks or 0 < model.layer_window(layer) < n_tokens:
        kept += b * masks  # the mask, as numbers that are added
    if model.qk_norm and model.norm == "layer":
        kept += b * queries  # the result, which then has another layout than the input of out_proj
    return kept


# (B, T, F) tensors kept by fused and by reference, the input of the last layer included
_ACTIVATIONS = {"gelu": (2, 5), "gelu_exact": (2, 4), "relu2": (2, 4), "swiglu": (4, 6)}


def _feed_forward_bytes(model: GPTConfig, n_rows: int, half: bool, by_autocast: bool) -> int:
    """Return the bytes kept by one feed-forward layer, without its norm."""
    b = 2 if half else 4
    n_inputs = (
        2 if by_autocast and model.feed_forward == "swiglu" else 1
    )  # autocast converts it for each of the two layers
    n_activations = _ACTIVATIONS[model.feed_forward][model.implementation == "reference"]
    return b * n_rows * (n_inputs * model.emb_dim + n_activations * model.ffn_width)


def fragmentation_bytes(
    model: GPTConfig, n_examples: int, n_tokens: int, half: bool = False, recompute: bool = False
) -> int:
    """Return the bytes of a step's temporary tensors that glibc's heap cannot reuse.

    Each is freed soon, but leaves a gap between two kept tensors in which no tensor of its size fits: posix_memalign
    asks for a few bytes more than the tensor has, and the heap never moves a block.
    """
    b = 2 if half else 4
    drops = model.drop_rate > 0
    rows = n_examples * n_tokens
    vectors = rows * model.emb_dim  # B·T·D numbers
    reference = model.implementation == "reference"
    norm = 4 * vectors * (reference + half)  # the quotient before the shift; autocast's conversion
    if model.backbone == "lstm":
        return model.n_layers * 2 * b * vectors + norm
    queries, keys = (rows * n * model.head_width for n in (model.n_heads, model.kv_heads))  # N·H·K, N·G·K
    hidden = rows * model.ffn_width  # B·T·F numbers
    pairs = n_examples * model.n_heads * n_tokens**2  # B·H·T·T
    block = 2 * norm + (2 + 2 * drops) * b * vectors  # the results of out_proj and of the last layer, and drop_resid's
    if model.position == "rope":
        block += 2 * b * (queries + keys)  # the two products that a rotation adds
    backward = b * (vectors + hidden)  # gradients of the stream and of the activation's result
    if reference:
        # copies of query, key, value and context for reordering; scores twice, scores - maximum, dropout's random
        # numbers and product; steps of the activation that it does not keep
        steps = {"gelu": 4, "gelu_exact": 2}.get(model.feed_forward, 1)
        block += 4 * b * queries + (3 + 2 * drops) * b * pairs + steps * b * hidden
        backward = 2 * b * pairs
    elif drops:
        # query, key, value and the scaled two; the context; scores
        block += (4 * half + 5 * 4 + 4) * queries + 4 * pairs
        backward = 2 * 4 * pairs
    return (1 if recompute else model.n_layers) * block + backward


def logit_bytes(model: GPTConfig, n_targets: int, half: bool = False, device: str = "cpu") -> int:
    """Return the bytes that the loss over `n_targets` positions takes: logits (N, V) or chunks of them, and gradients.

    The gradients of the hidden states (N, D) and of the head (V, D) are included.
    """
    b = 2 if half else 4
    hidden, head = 4 * n_targets * model.emb_dim, 4 * model.vocab_size * model.emb_dim
    if model.implementation == "reference":
        # kept: logits, logits - maximum and its exponentials; backward: a gradient of each, the zeros that gather's
        # gradient is written to, two sums, and the head's gradient
        return 4 * hidden + (3 + 6) * b * n_targets * model.vocab_size + head
    rows = chunk_rows(n_targets, model.vocab_size, device, half)
    chunk = 4 * min(n_targets, rows) * model.vocab_size
    # a chunk's logits and the log softmax that becomes their gradient; on a fragmented heap, one more
    chunks = 2 if n_targets <= rows else 3
    # hidden states, their gradient and a chunk of it; the head's gradient, and in half precision a chunk's part of it
    return 3 * hidden + chunks * chunk + (1 + half) * head


def optimizer_bytes(config: TrainConfig, n_trained: int) -> int:
    """Return the bytes of optimizer state in float32: two moments for AdamW, one for Muon."""
    by_muon = 0
    if config.optim.name == "muon" and config.adapter.name == "none":
        by_muon = count_hidden(config.model) - count_frozen(config.model, config.freeze)[1]
    return 8 * n_trained - 4 * by_muon


def n_micro_batches(config: TrainConfig, hardware: Hardware) -> int:
    """Return the number of micro-batches per process and step. ValueError where the processes cannot share a step."""
    return DistContext(0, hardware.n).n_micro_batches(config.batch_size * config.grad_accum_steps, config.batch_size)


def is_half(config: TrainConfig, hardware: Hardware) -> bool:
    """Return whether matrix products run in 16 bits on hardware of a data sheet."""
    return hardware.has_half if config.dtype == "auto" else config.dtype != "float32"


def training_memory(
    config: TrainConfig, n_frozen: int, n_trained: int, n_train_tokens: int, hardware: Hardware
) -> dict[str, int]:
    """Return the peak memory of one process in bytes, by part.

    The parts add up as if none reused memory that another has freed. Backward frees activations while it allocates
    gradients, but on a CPU the heap is fragmented by then, and with gradient accumulation both exist in any case.
    """
    if hardware.device:
        device, half = hardware.device, is_half(config, hardware)
    else:
        chosen = choose_device(config.device)
        device, half = chosen.type, choose_dtype(config.dtype, chosen, n_frozen + n_trained) != torch.float32
    model, on_cpu, n_weights = config.model, device == "cpu", n_frozen + n_trained
    passes, n_tokens = n_micro_batches(config, hardware), config.model.context_length
    kind = OBJECTIVES[config.objective.name]
    n_examples = -(-config.batch_size * config.grad_accum_steps // (hardware.n * passes))  # per process and pass
    batch_size, has_masks = kind.rows_per_example(config) * n_examples, kind.has_masks(config)
    n_shards = hardware.n_shards(config.parallel)
    sharded = n_shards > 1
    activations = activation_bytes(model, batch_size, n_tokens, half, device, config.recompute, has_masks, sharded)
    fragmentation = 0
    if on_cpu and sys.platform == "linux":
        # from the second pass on, gradients lie where activations were, so the activations take new memory
        fragmentation = fragmentation_bytes(model, batch_size, n_tokens, half, config.recompute)
        fragmentation += (passes > 1) * activations
    b = 2 if half else 4  # in which weights are gathered, and their gradients computed
    # gathered at a time: all weights around the blocks, the block that computes and the next one
    block = count_hidden(model) // model.n_layers
    unsharded = min(n_weights, n_weights - count_hidden(model) + 2 * block)
    memory = {
        # a CPU's heap keeps the memory of the weights that a sample gathers
        "weights": 4 * n_weights // n_shards + sharded * b * (n_weights if on_cpu else unsharded),
        # a block's are summed over processes in float32
        "gradients": 4 * n_trained // n_shards + sharded * (b * unsharded + 4 * block),
        "optimizer": optimizer_bytes(config, n_trained) // n_shards,
        "activations": activations,
        "fragmentation": fragmentation,
        "logits": logit_bytes(model, batch_size * n_tokens, half, "compiled" if config.compile else device),
        "program": (PROGRAM_BYTES + TOKENIZER_BYTES * model.vocab_size) * on_cpu,  # in host memory beside a GPU
    }
    # free when the optimizer steps, a checkpoint is collected, or n-grams are counted before the first step
    reusable = sum(memory[part] for part in ("activations", "fragmentation", "logits"))
    # Muon: momentum, its stack, two results and Gram matrices; as much again for fragmentation (measured)
    n_stacked = min(MAX_ELEMENTS * (64 if device == "cuda" else 1), count_hidden(model))
    muon = 10 * 4 * n_stacked * (config.optim.name == "muon")
    memory["muon workspace"] = max(0, muon - reusable)
    samples = sharded * b * (n_weights - unsharded) * (not on_cpu)  # a sample gathers all weights
    memory["unsharded weights"] = max(0, samples - reusable - memory["gradients"])
    # a checkpoint is written from a copy, which is kept for the next one, and file by file; beside a GPU in host memory
    copied = (4 * n_trained + optimizer_bytes(config, n_trained)) // n_shards + FILE_BYTES
    memory["checkpoint copy"] = sharded * on_cpu * min(copied, 2 * (copied - FILE_BYTES))
    ngrams = NGRAM_BYTES * min(n_train_tokens, MAX_TOKENS) * on_cpu
    memory["n-grams"] = max(0, ngrams - reusable - memory["gradients"] - memory["optimizer"])
    return memory
