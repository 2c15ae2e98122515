"""Generate text: the greedy reference `generate_text_simple`, and `generate` with sampling, a KV cache and streams.

Notebook: 08_decoding.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt.loss import evaluation_mode
from gpt.model import KVCache
from gpt.tokenizer import Tokenizer


def text_to_token_ids(text: str, tokenizer: Tokenizer) -> Tensor:
    """Return the token ids of a text as a batch of one sequence, (1, T)."""
    return torch.tensor([tokenizer.encode(text)], dtype=torch.long)


def token_ids_to_text(token_ids: Tensor, tokenizer: Tokenizer) -> str:
    """Return the text of one sequence of token ids, (1, T) or (T,)."""
    if token_ids.dim() > 1 and token_ids.size(0) != 1:
        raise ValueError(f"token_ids_to_text decodes one sequence, not a batch of {token_ids.size(0)}")
    return tokenizer.decode(token_ids.flatten().tolist())


@torch.no_grad()
def generate_text_simple(model: nn.Module, idx: Tensor, max_new_tokens: int, context_size: int) -> Tensor:
    """Continue token ids (B, T) greedily by max_new_tokens, to (B, T + max_new_tokens).

    Each step reads the last context_size tokens and appends the most probable next one. Slow and simple: the reference
    `generate` is tested against. Call model.eval() first.
    """
    for _ in range(max_new_tokens):
        logits = model(idx[:, -context_size:])[:, -1]  # (B, V)
        idx = torch.cat([idx, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return idx


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits. `process_logits` applies the settings in this order.

    logit_bias is added to the logits of these token ids. repetition_penalty > 1 makes the tokens of the text so far
    less probable: it divides a positive logit and multiplies a negative one (Keskar et al. 2019, arXiv:1909.05858).
    temperature divides the logits; 0 is greedy. top_k keeps the k most probable tokens (Fan et al. 2018,
    arXiv:1805.04833), top_p of those the smallest set of the most probable ones with a total probability of at least
    top_p (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751), and min_p those at least min_p times as probable
    as the most probable one (Nguyen et al. 2024, arXiv:2407.01082).

    ValueError for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)

    def __post_init__(self):
        for name, is_valid, valid in (
            ("temperature", 0 <= self.temperature < math.inf, "must be at least 0 (0 is greedy)"),
            ("top_k", self.top_k is None or self.top_k >= 1, "must be at least 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "must lie in (0, 1]"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "must lie in [0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "must be more than 0 (1 changes nothing)"),
            ("logit_bias", not any(map(math.isnan, self.logit_bias.values())), "must be numbers"),
        ):
            if not is_valid:
                raise ValueError(f"{name} {valid}, not {getattr(self, name)}")


def process_logits(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Return the logits (B, V) to sample from, -inf for tokens that are dropped; see `Sampling`.

    `seen` (B, V) is True for the tokens of each row's text; repetition_penalty needs it. At temperature 0 the logits
    are neither divided nor dropped.
    """
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if sampling.logit_bias:
        ids = torch.tensor([*sampling.logit_bias], device=logits.device)
        logits = logits.index_add(1, ids, logits.new_tensor([*sampling.logit_bias.values()]).expand(len(logits), -1))
    if sampling.repetition_penalty != 1 and seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return logits
    # 0 for the best: never inf - inf
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    if sampling.top_k is not None and sampling.top_k < logits.size(-1):
        smallest_kept = logits.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)  # (B, V)
        before = ordered.cumsum(dim=-1) - ordered  # the probability of all that are more probable
        is_dropped = (before >= sampling.top_p) & (before > 0)
        logits = logits.masked_fill(torch.zeros_like(is_dropped).scatter(1, order, is_dropped), -torch.inf)
    if sampling.min_p:
        logits = logits.masked_fill(logits < math.log(sampling.min_p), -torch.inf)  # the best has 0
    return logits


def seen_tokens(rows: Iterable[Tensor], vocab_size: int) -> Tensor:
    """Return which tokens each row of ids contains, (B, V), on the CPU."""
    return torch.stack([torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, row.cpu(), True) for row in rows])


def sample_token(
    logits: Tensor,
    sampling: Sampling,
    seen: Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """Sample one token per row, (B,), for logits (B, V), or take the most probable one at temperature 0.

    Arguments as in `process_logits`. `generator` may be a list, one for each row. FloatingPointError if the logits
    are NaN.
    """
    logits = process_logits(logits, sampling, seen)
    best, token = logits.max(dim=-1)
    if not best.isfinite().all():
        raise FloatingPointError("the model's logits are not finite: its weights have diverged")
    if sampling.temperature == 0:
        return token
    probabilities = logits.softmax(dim=-1)
    generators = generator if isinstance(generator, list) else [generator]
    # torch.multinomial draws a number for each token of the vocabulary, which takes longer than a small model
    sums = probabilities.cumsum(-1, dtype=torch.float32 if logits.is_mps else torch.float64)  # (B, V)
    parts = zip(sums.chunk(len(generators)), generators, strict=True)
    uniform = torch.cat([rows.new_empty(len(rows), 1).uniform_(generator=g) for rows, g in parts])  # (B, 1)
    return torch.searchsorted(sums, uniform * sums[:, -1:], right=True)[:, 0].clamp(max=sums.size(-1) - 1)


@torch.no_grad()
def generate_stream(
    model: nn.Module,
    idx: Tensor | list[Tensor],
    max_new_tokens: int,
    stop_id: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    logprobs: list[Tensor] | None = None,
    **sampling,
) -> Iterator[Tensor]:
    """Yield the next token of each row, (B,), step by step. Arguments as in `generate`.

    A row that has ended yields stop_id; the stream ends when all rows have. As long as all tokens fit the model's
    context, a KV cache avoids reading any of them twice. Beyond it, learned positions shift at each step, which
    invalidates every cached key: each step reads the last context_length tokens, as the reference does. With rotary
    positions the cache stays valid: see `_make_room`.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
    settings, (vocab_size, window) = Sampling(**sampling), (model.config.vocab_size, model.config.context_length)
    if not len(idx) or any(row.dim() != 1 or not len(row) for row in idx):
        raise ValueError("prompts must be a (B, T) tensor or a list of 1-D ones, and none may be empty")
    if any(row.min() < 0 or row.max() >= vocab_size for row in idx):
        raise ValueError(f"a prompt contains a token id outside the model's vocabulary of {vocab_size}")
    if wrong := [i for i in settings.logit_bias if not 0 <= i < vocab_size]:
        raise ValueError(f"logit_bias names token {wrong[0]}, outside the model's vocabulary of {vocab_size}")
    device = next(model.parameters()).device
    seen = seen_tokens(idx, vocab_size).to(device) if settings.repetition_penalty != 1 else None  # (B, V)
    # rows of unequal length are padded on the left, so that all of them continue at the same column
    tokens = pad_sequence([row.long() for row in idx], batch_first=True, padding_side="left").to(device)  # (B, T)
    new = tokens = tokens[:, -window:]
    padding = torch.tensor([max(0, tokens.size(1) - len(row)) for row in idx])  # (B,), on the CPU
    ended = torch.zeros(len(idx), dtype=torch.bool, device=device)

    cache = KVCache(model.config.n_layers, min(window, tokens.size(1) + max_new_tokens))
    is_rotary = model.config.position == "rope" and model.config.backbone == "gpt"
    with evaluation_mode(model):
        for _ in range(max_new_tokens):
            x = model.hidden_states(new, cache=cache, **_padding_arguments(padding, cache, new, is_rotary))
            logits = model.out_head(x[:, -1])  # (B, V)
            chosen = sample_token(logits, settings, seen, generator)  # (B,)
            if stop_id is not None:
                chosen = torch.where(ended, stop_id, chosen)
                ended |= chosen == stop_id
            if seen is not None:
                seen.scatter_(1, chosen[:, None], True)
            if logprobs is not None:
                logprobs.append(logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0])
            yield chosen
            if stop_id is not None and ended.all():
                return
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)[:, -window:]
            new = chosen[:, None]
            if cache.length - padding.min() == window and is_rotary:
                padding = _make_room(model, cache, padding)
            elif cache.length == window and not is_rotary:
                cache, new = KVCache(model.config.n_layers, window), tokens
                padding = (padding - 1).clamp(min=0)


def _make_room(model: nn.Module, cache: KVCache, padding: Tensor) -> Tensor:
    """Let each row that fills the context drop a quarter of it; return the padding (B,), which takes its place.

    A model that always saw the first tokens of a text leans on them, whatever they are (attention sinks: Xiao et al.
    2023, arXiv:2309.17453). Four of them stay, at the distance of those before which tokens were dropped. Without
    them SmolLM2 loses 0.8 nats per token, with them as little as by reading the rest of the context again.
    """
    context_length, is_windowed = model.config.context_length, all(b.att.window for b in model.trf_blocks)
    n_dropped = max(1, context_length // 4)
    n_kept = 0 if is_windowed else max(0, min(4, context_length - n_dropped - 1))
    rotation = model.pos_emb.rotation(torch.tensor([n_dropped], device=cache.keys[0].device))
    full = cache.length - padding == context_length  # (B,)
    for row in full.nonzero().flatten().tolist():
        cache.move(row, int(padding[row]), n_kept, n_dropped, lambda keys: model.ops.rotate(keys, *rotation))
    padding = padding + n_dropped * full
    cache.drop(int(padding.min()) - cache.start)
    return padding


def _padding_arguments(padding: Tensor, cache: KVCache, new: Tensor, is_rotary: bool) -> dict[str, Tensor | None]:
    """Return mask and learned positions of new tokens (B, T), where row b starts with padding[b] of padding.

    Empty if no key is padding: the default causal mask and positions are right, and faster. Rotary positions may start
    anywhere, since only distances count.
    """
    padding = (padding - cache.start).to(new.device)  # columns of padding among the keys, (B,)
    if not padding.any():
        return {}
    column = torch.arange(cache.length - cache.start + new.size(1), device=new.device)  # (S,)
    query = column[-new.size(1) :]  # (T,)
    visible = (column <= query[:, None]) & (column >= padding[:, None, None])  # (B, T, S)
    own = column == query[:, None]  # a padding column sees itself: a softmax over nothing is NaN
    return {"mask": visible | own, "positions": None if is_rotary else (query - padding[:, None]).clamp(min=0)}


def generate(
    model: nn.Module,
    idx: Tensor | list[Tensor],
    max_new_tokens: int,
    stop_id: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    logprobs: list[Tensor] | None = None,
    **sampling,
) -> Tensor | list[Tensor]:
    """Continue token ids by up to max_new_tokens. Return prompts and continuations, (B, T + new) for `idx` (B, T).

    A list of 1-D tensors, of any lengths, gives a list, each cut after stop_id; in a tensor, rows that have ended are
    filled with stop_id. `sampling` are the settings of `Sampling`: temperature, top_k, top_p, ... Temperature 0 is
    greedy; otherwise `generator` makes the sample repeatable. The list `logprobs` gets the log-probabilities (B,) in
    nats of each step's tokens, those of the model itself. The model is in evaluation mode meanwhile.

    ValueError for an invalid prompt or setting.
    """
    new = list(generate_stream(model, idx, max_new_tokens, stop_id, generator, logprobs, **sampling))
    if isinstance(idx, Tensor):
        return torch.cat([idx, *[chosen[:, None].to(idx.device) for chosen in new]], dim=1)
    texts = []
    for prompt, *written in zip(idx, *(chosen.tolist() for chosen in new), strict=True):
        end = written.index(stop_id) + 1 if stop_id in written else len(written)
        texts.append(torch.cat([prompt, prompt.new_tensor(written[:end])]))
    return texts
