"""A look inside a model: where it attends, what each layer would predict, which tokens surprise it, how sure it is.

Nothing here changes a model: it is in evaluation mode meanwhile, and afterwards as before, also after an error.

Shape letters: T tokens, H heads, G key/value heads, K head_dim, V vocab_size, k the likeliest tokens.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.evaluation.information import Reliability, reliability
from gpt.loss import evaluation_mode
from gpt.model import GPTModel
from gpt.objectives.ranks import losses_and_ranks
from gpt.ops.reference import attention_weights as softmax_weights
from gpt.system.chunked_loss import logit_chunks
from gpt.variants.prefix import PrefixAttention


def _to_ids(model: GPTModel, token_ids: Tensor | Sequence[int], at_least: int = 1) -> Tensor:
    """Return valid token ids, int64, (T,), on the model's device."""
    ids = torch.as_tensor(token_ids, device=next(model.parameters()).device)
    if ids.dim() != 1 or len(ids) < at_least or ids.is_floating_point():
        raise ValueError(f"token_ids must be {at_least} or more whole numbers in one dimension, not {tuple(ids.shape)}")
    if not ((ids >= 0) & (ids < model.config.vocab_size)).all():
        raise ValueError(f"a token id is outside the model's vocabulary of {model.config.vocab_size} tokens")
    return ids.long()


def _check_backbone(model: GPTModel, wanted: str) -> None:
    if model.config.backbone != "gpt":
        raise ValueError(f"an LSTM has no {wanted}: only models with the backbone 'gpt' do")


@contextlib.contextmanager
def _queries_and_keys(model: GPTModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A context that collects what `attend` of each layer receives: queries (1, H, T, K) and keys (1, G, T, K)."""
    found = []
    layers = [block.att for block in model.trf_blocks]

    def recording(attend):
        def record(query, key, *rest):
            found.append((query, key))
            return attend(query, key, *rest)

        return record

    for layer in layers:
        layer.attend = recording(layer.attend)
    try:
        yield found
    finally:
        for layer in layers:
            del layer.attend  # the class's own again


@torch.no_grad()
def attention_weights(model: GPTModel, token_ids: Tensor | Sequence[int]) -> Tensor:
    """Return how much each token attends to itself and to earlier ones, (n_layers, H, T, T), for token ids (T,).

    Row t of a head are the weights of the query at t, which sum to 1. They are those of causal attention, computed from
    the queries and keys that `MultiHeadAttention.attend` receives, after any rotation. ValueError for an LSTM, for a
    model with a prefix, which takes a share of the attention, and for more tokens than the context.
    """
    _check_backbone(model, "attention")
    if any(isinstance(block.att, PrefixAttention) for block in model.trf_blocks):
        raise ValueError("this model has a prefix, which its tokens attend to as well: their weights do not sum to 1")
    ids = _to_ids(model, token_ids)
    with evaluation_mode(model), _queries_and_keys(model) as found:
        model.hidden_states(ids[None])
    weights = []
    for block, (query, key) in zip(model.trf_blocks, found, strict=True):
        key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)  # (1, G, T, K) -> (1, H, T, K)
        weights.append(softmax_weights(query, key, "causal", block.att.window)[0])
    return torch.stack(weights)


@torch.no_grad()
def logit_lens(model: GPTModel, token_ids: Tensor | Sequence[int], k: int = 5) -> tuple[Tensor, Tensor]:
    """Return the k likeliest next tokens after each token as every layer would predict them: probabilities and ids.

    Both are (n_layers + 1, T, k), the likeliest first. final_norm and out_head read them from the residual stream:
    after the embedding, then after each block. The last layer is the model's own prediction. nostalgebraist 2020,
    "interpreting GPT: the logit lens". ValueError for an LSTM, for k outside 1 .. V, and for more tokens than the
    context.
    """
    _check_backbone(model, "residual stream")
    ids = _to_ids(model, token_ids)
    if not 1 <= k <= model.config.vocab_size:
        raise ValueError(f"k must be 1 to the vocabulary's {model.config.vocab_size} tokens, not {k}")
    streams = []  # (1, T, D) each
    with evaluation_mode(model), contextlib.ExitStack() as hooks:
        hooks.enter_context(model.trf_blocks[0].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])))
        for block in model.trf_blocks:
            hooks.enter_context(block.register_forward_hook(lambda *call: streams.append(call[-1])))
        model.hidden_states(ids[None])
        predictions = [_likeliest(model.out_head(model.final_norm(stream[0])), k) for stream in streams]
    return tuple(torch.stack(parts) for parts in zip(*predictions, strict=True))


def _likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the probabilities and the ids of the k likeliest tokens, (..., k) each, for logits (..., V)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top, ids = logits.topk(k)
    return (top - logits.logsumexp(-1, keepdim=True)).exp(), ids


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Surprises:
    """How much each token after the first surprised a model, and what it had expected in its place."""

    bits: Tensor  # -log2 p of each token, (T - 1,)
    ranks: Tensor  # the number of tokens that were likelier, (T - 1,): 0 for the likeliest
    probabilities: Tensor  # of the k likeliest tokens, the likeliest first, (T - 1, k)
    ids: Tensor  # of these tokens, (T - 1, k)


@torch.no_grad()
def token_surprises(model: GPTModel, token_ids: Tensor | Sequence[int], k: int = 5) -> Surprises:
    """Return the surprise of each token after the first, given all tokens before it, for token ids (T,).

    The mean of `bits` is the model's loss on this text, in bits per token. k is at most the vocabulary's size.
    ValueError for fewer than two tokens, and for more than the context and one.
    """
    ids = _to_ids(model, token_ids, at_least=2)
    with evaluation_mode(model):
        hidden = model.hidden_states(ids[None, :-1])[0]  # (T - 1, D)
        losses, ranks = losses_and_ranks(model, hidden, ids[1:])  # (T - 1,) each
        likeliest = _likeliest(model.out_head(hidden), min(k, model.config.vocab_size))
    return Surprises(losses / math.log(2), ranks, *likeliest)


@torch.no_grad()
def calibration(model: GPTModel, texts: Iterable[Tensor | Sequence[int]], bins: int = 10) -> Reliability:
    """Return the reliability diagram of the likeliest next token over some texts, each of token ids (T,).

    Of each text every token after the first is predicted from those before it. A model is calibrated if of the
    predictions made with probability p a share p is right. ValueError for no text, or one of fewer than two tokens.
    """
    parts = []
    with evaluation_mode(model):
        for text in texts:
            ids = _to_ids(model, text, at_least=2)
            hidden = model.hidden_states(ids[None, :-1])[0]
            for rows, targets in logit_chunks(model.config.vocab_size, hidden, ids[1:]):
                parts.append(reliability(model.out_head(rows), targets, bins=bins, from_logits=True))
    if not parts:
        raise ValueError("there is no text to measure calibration on")
    count = torch.stack([part.count for part in parts]).sum(0)  # (bins,)
    means = [
        torch.stack([getattr(part, name).nan_to_num(0) * part.count for part in parts]).sum(0) / count
        for name in ("confidence", "accuracy")
    ]
    return Reliability(*means, count)  # 0 / 0 is NaN
