"""The loss of a batch, a loader or a whole text; perplexity, bits per token, bits per byte.

Notebooks: 06_loss, 07_training, 16_run_taken_apart.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpt.data import document_spans, packed_spans, padded_batch
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
    """Return the mean cross-entropy over all tokens of a loader's first `num_batches` batches (None: all), in nats.

    The model is in evaluation mode meanwhile. ValueError if there is no batch.
    """
    total = n_tokens = 0
    with evaluation_mode(model):
        for inputs, targets in islice(data_loader, num_batches):
            counted = int((targets != IGNORE_INDEX).sum())
            total += calc_loss_batch(inputs, targets, model, device).item() * counted
            n_tokens += counted
    if not n_tokens:
        raise ValueError("no batch to average over: the loader is empty, or num_batches is 0")
    return total / n_tokens


def perplexity(loss: float | Tensor) -> float | Tensor:
    """Return exp(loss): a uniform guess among this many tokens has the same loss in nats. Jelinek et al. 1977."""
    if isinstance(loss, Tensor):
        return loss.exp()
    return math.inf if loss >= 709 else math.exp(loss)  # infinite where a float overflows; NaN stays NaN


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which a model is in evaluation mode (no dropout). Afterwards each module is back in its own mode."""
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
        """Standard error of the loss in nats per token, if segments are independent; NaN for a single segment."""
        n = len(self.sums)
        if n < 2:
            return math.nan
        residuals = self.sums - self.loss * self.counts
        return math.sqrt(n / (n - 1) * (residuals**2).sum()) / self.n_tokens

    def excess_over_floor(self, floor: np.ndarray) -> "Evaluation":
        """Return the loss minus a floor, (segments of the text,) in nats; its error is that of paired differences."""
        return replace(self, sums=self.sums - floor[self.segments])

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
    token_scores: Callable[[Tensor, Tensor], Tensor] | None = None,
    ctx: DistContext = SINGLE_PROCESS,
) -> Evaluation:
    """Return the loss of `model` on a text of token ids. Every token after the first is predicted once.

    `stride` < context_length makes windows overlap: each prediction then has at least context_length - stride tokens of
    context, which lowers the loss. With `eot_id` windows start at documents, as in `gpt.data.document_spans`.
    `n_batches` > 0 evaluates about that many batches, in whole segments spread evenly over the text. Nothing is random.
    Several processes share the work, and each returns the whole result.

    `token_scores` replaces the model's own losses. It maps inputs and targets, (B, T) each, to (1 + len(top_k), B, T):
    each target's loss in nats, then for each k of `top_k` 1 where the target is among the k likeliest tokens, else 0.
    See `gpt.objectives.ranks.evaluate_top_k`.

    ValueError for a text, context, stride or number of batches that leaves nothing to predict.
    """
    longest = model.config.context_length
    if not 1 <= context_length <= longest:
        raise ValueError(f"the context must be 1 to the model's {longest} tokens, not {context_length}")
    if batch_size < 1 or n_batches < 0:
        raise ValueError(f"batch_size must be at least 1, n_batches at least 0: not {batch_size} and {n_batches}")
    windows = _evaluation_windows(tokens, context_length, stride, eot_id)
    if n_batches and n_batches * batch_size < len(windows):
        n_segments = windows[-1, 3] + 1
        n_chosen = max(1, n_batches * batch_size * n_segments // len(windows))
        chosen = np.arange(n_chosen) * n_segments // n_chosen
        windows = windows[np.isin(windows[:, 3], chosen)]
    by_window = np.zeros((2 + len(top_k), len(windows)))  # rows: nats, targets, targets among the k likeliest
    with evaluation_mode(model):
        for begin, is_own in ctx.shard_evenly(range(0, len(windows), batch_size)):
            batch = windows[begin : begin + batch_size]
            inputs, targets = padded_batch(tokens, batch[:, :2])  # (B, T)
            for row, (start, _, first, _) in enumerate(batch):
                targets[row, : first - 1 - start] = IGNORE_INDEX  # predicted in the window before
            inputs, targets = inputs.to(device), targets.to(device)
            scores = token_scores(inputs, targets) if token_scores else model(inputs, targets, reduction="none")[None]
            losses, *correct = scores.float().cpu().double()  # (B, T) each
            rows = [losses, (targets != IGNORE_INDEX).cpu(), *correct]
            by_window[:, begin : begin + batch_size] = is_own * torch.stack([row.sum(1) for row in rows])
    sums, counts, *topk_correct = (np.bincount(windows[:, 3], row) for row in ctx.all_reduce_sum(by_window))
    segments = np.flatnonzero(counts)
    topk_correct = {k: correct[segments] for k, correct in zip(top_k, topk_correct, strict=True)}
    return Evaluation(segments, sums[segments], counts[segments], bytes_per_token, topk_correct)


def _evaluation_windows(tokens: np.ndarray, context_length: int, stride: int | None, eot_id: int | None) -> np.ndarray:
    """Return windows, int64, rows of (start, end, first new target, segment). Overlapping ones may share a segment."""
    if len(tokens) < 2:
        raise ValueError(f"a text of {len(tokens)} tokens has nothing to predict: at least two are needed")
    if stride is not None and not 1 <= stride <= context_length:
        raise ValueError(f"the stride must be 1 to context_length, {context_length}, not {stride}")
    if eot_id is None:
        spans = packed_spans(len(tokens), context_length, stride or 0)
        return np.column_stack([spans, (spans[:, 2] - 1) // context_length])
    spans = document_spans(tokens, eot_id, context_length, stride or 0)
    if not len(spans):
        raise ValueError("the text contains no document between two end-of-text tokens")
    return spans
