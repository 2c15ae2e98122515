"""The loss of a batch, a loader or a whole text; perplexity, bits per token, bits per byte, accuracy."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpt.data import document_spans, packed_spans, padded_batch
from gpt.ops.fused import chunk_rows
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.distributed import SINGLE_PROCESS, DistContext


def calc_loss_batch(
    input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the mean cross-entropy of a batch in nats per token, a scalar. Inputs and targets are (B, T)."""
    return model(input_batch.to(device), target_batch.to(device))


@torch.no_grad()
def calc_loss_loader(
    data_loader: DataLoader, model: nn.Module, device: torch.device | str = "cpu", num_batches: int | None = None
) -> float:
    """Return the mean cross-entropy over the first `num_batches` batches of a loader (None: all), in nats per token.

    Batches are weighted by their number of tokens. The model is in evaluation mode meanwhile. ValueError if there is no
    batch.
    """
    total = n_tokens = 0
    with evaluation_mode(model):
        for index, (inputs, targets) in enumerate(data_loader):
            if num_batches is not None and index >= num_batches:
                break
            counted = int((targets != IGNORE_INDEX).sum())
            total += calc_loss_batch(inputs, targets, model, device).item() * counted
            n_tokens += counted
    if not n_tokens:
        raise ValueError("no batch to average over: the loader is empty, or num_batches is 0")
    return total / n_tokens


def perplexity(loss: float | Tensor) -> float | Tensor:
    """Return exp(loss) for a loss in nats per token: the number of equally likely tokens that would be as uncertain.

    Infinite where a float would overflow. Jelinek et al. 1977.
    """
    if isinstance(loss, Tensor):
        return loss.exp()
    return math.inf if loss >= 709 else math.exp(loss)  # e^710 overflows a float; NaN stays NaN


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which a model is in evaluation mode (no dropout). Afterwards each module has its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True, eq=False)  # arrays cannot be compared by ==
class Evaluation:
    """The loss of a model on a text, by segments: documents, or context_length tokens each."""

    segments: np.ndarray  # the numbers of the segments evaluated
    sums: np.ndarray  # nats, by segment
    counts: np.ndarray  # tokens predicted, by segment
    bytes_per_token: float = math.nan  # of the text; NaN if unknown
    topk_correct: dict[int, np.ndarray] = field(default_factory=dict)  # k: targets among the k likeliest, by segment
    metrics: dict[str, float] = field(default_factory=dict)  # of the objective, in addition to its loss

    @property
    def n_tokens(self) -> int:
        """The number of tokens predicted."""
        return int(self.counts.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """The standard error of the loss in nats per token, of a ratio estimate over segments.

        It takes segments, not tokens, as independent. NaN for a single segment.
        """
        return self._standard_error(self.sums)

    def _standard_error(self, sums: np.ndarray) -> float:
        n = len(sums)
        if n < 2:
            return math.nan
        residuals = sums - sums.sum() / self.n_tokens * self.counts
        return math.sqrt(n / (n - 1) * (residuals**2).sum()) / self.n_tokens

    def accuracy(self, k: int = 1) -> float:
        """Return the share, 0 to 1, of targets among the k likeliest tokens, for a k that `evaluate` was given."""
        return float(self.topk_correct[k].sum() / self.n_tokens)

    def accuracy_error(self, k: int = 1) -> float:
        """Return the standard error of `accuracy`."""
        return self._standard_error(self.topk_correct[k])

    def excess_over_floor(self, floor: np.ndarray) -> "Evaluation":
        """Return how far the loss exceeds a floor, given in nats for every segment of the text.

        The difference is taken by segment, so that its standard error is that of paired differences.
        """
        return dataclasses.replace(self, sums=self.sums - floor[self.segments])

    @property
    def perplexity(self) -> float:
        """exp(loss), in tokens."""
        return perplexity(self.loss)

    @property
    def bits_per_token(self) -> float:
        """The loss in bits, nats / ln 2."""
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the text: comparable between tokenizers."""
        return self.bits_per_token / self.bytes_per_token


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokens: np.ndarray,
    context_length: int,
    batch_size: int = 16,
    n_batches: int = 0,
    stride: int | None = None,
    eot_id: int | None = None,
    bytes_per_token: float = math.nan,
    device: torch.device | str = "cpu",
    top_k: Sequence[int] = (),
    ctx: DistContext = SINGLE_PROCESS,
) -> Evaluation:
    """Return the loss of `model` on a text of token ids. Every token after the first is predicted once.

    `stride` < context_length makes windows overlap: each prediction then has at least context_length - stride tokens of
    context, which lowers the loss. With `eot_id` windows start at documents, as in `gpt.data.document_spans`.
    `n_batches` > 0 evaluates about that many batches, in whole segments spread evenly over the text. `top_k` also
    counts targets among the k likeliest tokens. Nothing is random. Several processes share the work, and each returns
    the whole result.

    ValueError for a text, context, stride or number of batches that leaves nothing to predict.
    """
    if not 1 <= context_length <= model.config.context_length:
        raise ValueError(f"context_length must be 1 to the model's {model.config.context_length}, not {context_length}")
    if batch_size < 1 or n_batches < 0:
        raise ValueError(f"batch_size must be at least 1, n_batches at least 0: not {batch_size} and {n_batches}")
    windows = _evaluation_windows(tokens, context_length, stride, eot_id)
    if n_batches and n_batches * batch_size < len(windows):
        n_segments = windows[-1][3] + 1
        n_chosen = max(1, n_batches * batch_size * n_segments // len(windows))
        chosen = {i * n_segments // n_chosen for i in range(n_chosen)}
        windows = [window for window in windows if window[3] in chosen]
    by_window = np.zeros((2 + len(top_k), len(windows)))  # rows: nats, targets, targets among the k likeliest
    with evaluation_mode(model):
        for begin in ctx.shard(range(0, len(windows), batch_size)):
            batch = windows[begin : begin + batch_size]
            inputs, targets = padded_batch(tokens, ((start, end) for start, end, _, _ in batch))  # (B, T)
            for row, (start, _, first, _) in enumerate(batch):
                targets[row, : first - 1 - start] = IGNORE_INDEX  # predicted in the window before
            inputs, targets = inputs.to(device), targets.to(device)
            rows = [targets != IGNORE_INDEX]  # (B, T) each
            if top_k:
                hidden = model.hidden_states(inputs).flatten(0, 1)  # (B·T, D)
                losses, ranks = (x.view_as(targets) for x in losses_and_ranks(model, hidden, targets.flatten()))
                rows += [(ranks >= 0) & (ranks < k) for k in top_k]
            else:
                losses = model(inputs, targets, reduction="none")  # (B, T)
            rows = [losses.float().cpu().double(), *(row.cpu() for row in rows)]
            by_window[:, begin : begin + batch_size] = torch.stack([row.sum(1) for row in rows])
    segment_of = [segment for _, _, _, segment in windows]
    sums, counts, *topk_correct = (np.bincount(segment_of, row) for row in ctx.all_reduce_sum(by_window))
    segments = np.flatnonzero(counts)
    topk_correct = {k: correct[segments] for k, correct in zip(top_k, topk_correct, strict=True)}
    return Evaluation(segments, sums[segments], counts[segments], bytes_per_token, topk_correct)


def _evaluation_windows(
    tokens: np.ndarray, context_length: int, stride: int | None, eot_id: int | None
) -> list[tuple[int, int, int, int]]:
    """Return (start, end, first new target, segment) of each window. Overlapping windows may share a segment."""
    if len(tokens) < 2:
        raise ValueError(f"a text of {len(tokens)} tokens has nothing to predict: at least two are needed")
    if stride is not None and not 1 <= stride <= context_length:
        raise ValueError(f"the stride must be 1 to context_length, {context_length}, not {stride}")
    if eot_id is None:
        spans = packed_spans(len(tokens), context_length, stride or 0).tolist()
        return [(start, end, first, (first - 1) // context_length) for start, end, first in spans]
    if stride not in (None, context_length):
        raise ValueError("documents are evaluated without overlap: leave the stride out")
    spans = document_spans(tokens, eot_id, context_length).tolist()
    if not spans:
        raise ValueError("the text contains no document between two end-of-text tokens")
    return [(start, end, start + 1, document) for start, end, document in spans]


def losses_and_ranks(model: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's loss in nats and its rank as by `target_ranks`, (N,) each.

    `hidden` (N, D) is what out_head reads, targets are (N,). Logits are computed chunk by chunk, as in the model's own
    loss, to hold few of them at once.
    """
    n_rows, dtype = chunk_rows(model.config.vocab_size), model.tok_emb.weight.dtype  # also under autocast
    losses, ranks = [], []
    for hidden_chunk, target_chunk in zip(hidden.split(n_rows), targets.split(n_rows), strict=True):
        logits = model.out_head(hidden_chunk).to(dtype)  # (C, V)
        losses.append(model.ops.cross_entropy(logits, target_chunk, "none"))
        ranks.append(target_ranks(logits, target_chunk))
    return torch.cat(losses), torch.cat(ranks)


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
