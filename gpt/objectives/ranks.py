"""The rank of each target among a model's predictions, and the accuracy that follows from it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gpt.loss import Evaluation, evaluate
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.chunked_loss import logit_chunks


def evaluate_top_k(
    model: nn.Module, tokens: np.ndarray, context_length: int, top_k: Sequence[int], **options
) -> Evaluation:
    """Return the result of `gpt.loss.evaluate` with these options, and of the same pass `topk_correct` for each k."""

    def token_scores(inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = model.hidden_states(inputs).flatten(0, 1)  # (B·T, D)
        losses, ranks = losses_and_ranks(model, hidden, targets.flatten())  # (B·T,) each
        scores = torch.stack([losses, *((ranks >= 0) & (ranks < k) for k in top_k)])
        return scores.view(-1, *targets.shape)  # (1 + len(top_k), B, T)

    return evaluate(model, tokens, context_length, top_k=top_k, token_scores=token_scores, **options)


def accuracy_with_error(evaluation: Evaluation, k: int = 1) -> tuple[float, float]:
    """Return the share, 0 to 1, of targets among the k likeliest tokens, and its standard error, for a k that
    `evaluate_top_k` was given."""
    correct = replace(evaluation, sums=evaluation.topk_correct[k])  # a mean over targets, as the loss is
    return correct.loss, correct.standard_error


def losses_and_ranks(model: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's loss in nats and its rank as by `target_ranks`, (N,) each.

    `hidden` (N, D) is what out_head reads, targets are (N,). Logits are computed chunk by chunk, as in the model's own
    loss, to hold few of them at once.
    """
    losses, ranks = [], []
    for hidden_chunk, target_chunk in logit_chunks(model.config.vocab_size, hidden, targets):
        logits = full_precision(model.out_head(hidden_chunk))  # (C, V)
        losses.append(model.ops.cross_entropy(logits, target_chunk, "none"))
        ranks.append(target_ranks(logits, target_chunk))
    return torch.cat(losses), torch.cat(ranks)


def full_precision(logits: Tensor) -> Tensor:
    """Return logits in float32 or more, in which losses are computed: autocast and FSDP2 make them in bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the number of tokens that a model ranks before each target, int64: 0 for the likeliest token.

    Logits are (..., V), targets (...). Among equal logits the lower id comes first, so that a model which finds all
    tokens equally likely gains nothing by it. An ignored target has rank -1.

    ValueError for shapes that do not fit and targets outside the vocabulary, FloatingPointError for NaN.

    >>> target_ranks(torch.tensor([[0.1, 0.7, 0.2], [0.4, 0.4, 0.4]]), torch.tensor([2, 1])).tolist()
    [1, 1]
    """
    if logits.shape[:-1] != targets.shape or not logits.dim():
        raise ValueError(f"logits (..., V) and targets (...) do not fit: {(*logits.shape,)} and {(*targets.shape,)}")
    vocab_size = logits.size(-1)
    counted = targets != IGNORE_INDEX
    if (counted & ((targets < 0) | (targets >= vocab_size))).any():
        raise ValueError(f"a target is outside the vocabulary of {vocab_size} tokens, and not {IGNORE_INDEX}")
    if not targets.numel():
        return targets.long()
    if logits.amax(-1).isnan().any():
        raise FloatingPointError("the logits contain NaN, which cannot be ranked")
    ids = torch.arange(vocab_size, device=logits.device)  # (V,)
    target_id = targets.long().clamp(min=0)[..., None]  # (..., 1)
    target_logit = logits.gather(-1, target_id)  # (..., 1)
    before = logits > target_logit  # (..., V)
    before |= (logits == target_logit) & (ids < target_id)
    # summing bytes in 32 bits is four times as fast as summing booleans, which PyTorch converts to 64 bits first
    ranks = before.view(torch.uint8).sum(-1, dtype=torch.int32)
    return torch.where(counted, ranks.long(), -1)
