"""The loss of a batch, of a loader, of a whole text; perplexity, bits per token and bits per byte, accuracy."""

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
    """Mean cross-entropy in nats per token over a batch, a scalar with a gradient; inputs and targets (B, T)."""
    return model(input_batch.to(device), target_batch.to(device))


@torch.no_grad()
def calc_loss_loader(
    data_loader: DataLoader, model: nn.Module, device: torch.device | str = "cpu", num_batches: int | None = None
) -> float:
    """Mean cross-entropy in nats per token over the first `num_batches` batches of a loader (None: all).

    Each batch weighs by its tokens, so that a smaller last batch counts for what it is. The model is in evaluation
    mode meanwhile, and in its former mode afterwards. ValueError where there is no batch.
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
        raise ValueError("a loss over no batch is not defined: the loader is empty, or num_batches is 0")
    return total / n_tokens


def perplexity(loss: float | Tensor) -> float | Tensor:
    """exp(loss) for a loss in nats per token: among how many equally likely tokens the model would be as unsure.

    Infinite where a float would overflow. Jelinek et al. 1977.
    """
    if isinstance(loss, Tensor):
        return loss.exp()
    return math.inf if loss >= 709 else math.exp(loss)  # e^710 overflows a float; NaN stays NaN


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which a model is in evaluation mode (no dropout); each module's mode before is restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True, eq=False)  # arrays make no truth value
class Evaluation:
    """The loss of a model on a text, in the units in which it is quoted."""

    segments: np.ndarray  # which stretches of the text were read: documents, or context_length tokens each
    sums: np.ndarray  # nats, of each of them
    counts: np.ndarray  # tokens predicted in each of them
    bytes_per_token: float = math.nan  # of the text; NaN where it is not known
    topk_correct: dict[int, np.ndarray] = field(
        default_factory=dict
    )  # k -> targets of each among the k likeliest tokens
    metrics: dict[str, float] = field(default_factory=dict)  # what an objective measures besides its loss

    @property
    def n_tokens(self) -> int:
        """Tokens predicted, each once."""
        return int(self.counts.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Of the loss, in nats per token: that of a mean over stretches, weighted by their tokens (a ratio estimate).

        Stretches are taken as independent, tokens within one are not. NaN where there is one stretch only.
        """
        return self._standard_error(self.sums)

    def _standard_error(self, sums: np.ndarray) -> float:
        n = len(sums)
        if n < 2:
            return math.nan
        residuals = sums - sums.sum() / self.n_tokens * self.counts
        return math.sqrt(n / (n - 1) * (residuals**2).sum()) / self.n_tokens

    def accuracy(self, k: int = 1) -> float:
        """The share, 0 to 1, of tokens that were among the k likeliest; k one of those that `evaluate` was asked for.

        It can't see how sure the model was, which the loss does.
        """
        return float(self.topk_correct[k].sum() / self.n_tokens)

    def accuracy_error(self, k: int = 1) -> float:
        """The standard error of `accuracy`, as that of the loss."""
        return self._standard_error(self.topk_correct[k])

    def excess_over_floor(self, floor: np.ndarray) -> "Evaluation":
        """How far the loss lies above a lower one, given as the nats of every stretch of the text. The two are compared
        stretch by stretch: what makes a stretch hard for both does not blur the difference."""
        return dataclasses.replace(self, sums=self.sums - floor[self.segments])

    @property
    def perplexity(self) -> float:
        """e^loss: a branching factor, in tokens."""
        return perplexity(self.loss)

    @property
    def bits_per_token(self) -> float:
        """The loss in bits: nats / ln 2."""
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the text, which models with different tokenizers can be compared by."""
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
    """The loss of `model` on a text of token ids, every token after the first predicted once.

    `n_batches` > 0 reads about that many batches, in whole stretches (documents, or context_length tokens) spread
    evenly over the text. `stride` < context_length lets windows overlap, so that each prediction has at least
    context_length - stride tokens before it; the loss depends on both, which is why a quoted perplexity names them.
    With `eot_id` windows begin where documents begin, as in `gpt.data.document_windows`. Nothing is drawn at random,
    and no random state is touched. For each k of `top_k` the same pass counts the tokens that are among the k
    likeliest, as `target_ranks` orders them. Several processes share the batches, and each gets the result
    that one would.

    ValueError for fewer than two tokens, for a context longer than the model's, for a stride above it, and with
    `eot_id` for a stride or a text without a document.
    """
    if len(tokens) < 2:
        raise ValueError(f"a text of {len(tokens)} tokens has nothing to predict: two are needed")
    if not 1 <= context_length <= model.config.context_length:
        raise ValueError(
            f"the context must be 1 to the model's {model.config.context_length} tokens, not {context_length}"
        )
    if stride is not None and not 1 <= stride <= context_length:
        raise ValueError(f"the stride must be 1 to the context's {context_length} tokens, not {stride}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if n_batches < 0:
        raise ValueError(f"n_batches must be at least 0, not {n_batches}")
    if eot_id is None:  # (start, end, first target that counts, stretch); overlapping windows share a stretch
        windows = [
            (start, end, first, (first - 1) // context_length)
            for start, end, first in packed_spans(len(tokens), context_length, stride or 0).tolist()
        ]
    elif stride not in (None, context_length):
        raise ValueError("windows of documents do not overlap: leave the stride out")
    else:
        spans = document_spans(tokens, eot_id, context_length).tolist()
        windows = [(start, end, start + 1, document) for start, end, document in spans]
        if not windows:
            raise ValueError("the text holds no document that stands between two end-of-text tokens")
    if n_batches and n_batches * batch_size < len(windows):  # stretches as a whole, so that they compare with a floor
        n_stretches = windows[-1][3] + 1
        n_read = max(1, n_batches * batch_size * n_stretches // len(windows))
        chosen = {i * n_stretches // n_read for i in range(n_read)}
        windows = [window for window in windows if window[3] in chosen]
    of_windows = np.zeros((2 + len(top_k), len(windows)))  # the nats of each window, its targets, its hits
    with evaluation_mode(model):
        for begin in ctx.shard(range(0, len(windows), batch_size)):
            batch = windows[begin : begin + batch_size]
            sums, counts, *topk_correct = of_windows[:, begin : begin + batch_size]
            inputs, targets = padded_batch(tokens, ((start, end) for start, end, _, _ in batch))  # (B, T)
            for row, (start, _, first, _) in enumerate(batch):
                targets[row, : first - 1 - start] = IGNORE_INDEX  # context only
            counts[:] = (targets != IGNORE_INDEX).sum(1)
            inputs, targets = inputs.to(device), targets.to(device)
            if top_k:
                found = losses_and_ranks(model, model.hidden_states(inputs).flatten(0, 1), targets.flatten())
                losses, ranks = (of_rows.view_as(targets) for of_rows in found)  # (B, T) each
            else:
                losses = model(inputs, targets, reduction="none")  # (B, T)
            for k, of_k in zip(top_k, topk_correct, strict=True):
                of_k[:] = ((ranks >= 0) & (ranks < k)).sum(1).cpu()
            sums[:] = losses.float().cpu().double().sum(1)
    stretch = [stretch for _, _, _, stretch in windows]
    sums, counts, *topk_correct = (np.bincount(stretch, row) for row in ctx.all_reduce_sum(of_windows))
    read = np.flatnonzero(counts)
    topk_correct = {k: of_k[read] for k, of_k in zip(top_k, topk_correct, strict=True)}
    return Evaluation(read, sums[read], counts[read], bytes_per_token, topk_correct)


def losses_and_ranks(model: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses in nats and the targets' ranks among all tokens, (N,) each, for the vectors (N, D) that out_head reads
    and targets (N,); -1 is the rank of a target that does not count.

    In the chunks in which the model's own loss computes its logits, so that no more of them are held at once.
    """
    n_rows, dtype = chunk_rows(model.config.vocab_size), model.tok_emb.weight.dtype  # that dtype under autocast too
    losses, ranks = [], []
    for rows, wanted in zip(hidden.split(n_rows), targets.split(n_rows), strict=True):
        logits = model.out_head(rows).to(dtype)  # (C, V)
        losses.append(model.ops.cross_entropy(logits, wanted, "none"))
        ranks.append(target_ranks(logits, wanted))
    return torch.cat(losses), torch.cat(ranks)


def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many tokens come before the target when a model orders them by logit: int64, the shape of `targets`.

    Logits (..., V), targets (...). 0 is the likeliest token. Of equal logits the one with the lower id comes first, so
    that a model which finds all tokens equally likely gains nothing by it. A target of -100 has the rank -1.

    ValueError where the shapes do not fit or a target is outside the vocabulary, FloatingPointError where a logit is
    NaN: nothing can be ordered then. Infinite logits are ordered like others.

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
        raise FloatingPointError("the logits hold NaN, which has no place in an order")
    ids = torch.arange(vocab_size, device=logits.device)  # (V,)
    own_id = targets.long().clamp(min=0)[..., None]  # (..., 1)
    own = logits.gather(-1, own_id)  # (..., 1)
    before = logits > own  # (..., V)
    before |= (logits == own) & (ids < own_id)
    # bytes, summed in 32 bits: four times as fast as the sum of a boolean tensor, which is widened to 64 bits first
    ranks = before.view(torch.uint8).sum(-1, dtype=torch.int32)
    return torch.where(counted, ranks.long(), -1)
