"""What a GPT has to beat, and what it cannot: a guess among all tokens, n-grams, an LSTM; the entropy of the text."""

import json
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from gpt import tales
from gpt.config import GPTConfig, model_config
from gpt.model import GPTModel, KVCache, LayerNorm, Linear
from gpt.places import PROJECT
from gpt.prepared import PreparedData

RESULTS = PROJECT / "data" / "baselines.json"  # of models that take too long to train within a run
MOST_TOKENS = 10_000_000  # that n-grams are counted on, and scored on

# --- n-grams ----------------------------------------------------------------------------------------------------------


class _Counts:
    """How often each n-gram occurs, and the interpolated Kneser-Ney estimate that follows from it.

    An n-gram is packed into one whole number, context · V + token, so that counting is sorting.
    """

    def __init__(self, ngrams: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.ngrams, self.counts, self.vocab_size = ngrams, counts, vocab_size
        # Chen and Goodman 1999, equation 26: what to subtract from a count of 1, of 2, and of 3 or more
        n1, n2, n3, n4 = (int((counts == i).sum()) for i in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2) if n1 else 0.5
        above = [(1, n1, n2), (2, n2, n3), (3, n3, n4)]
        discounts = [i - (i + 1) * y * next_n / n if n else 0.0 for i, n, next_n in above]
        # where that says nothing, or less than nothing, i · y: at a discount of 0 new tokens would have no probability
        self.discounts = np.array([0.0, *(d if d > 0 else i * y for i, d in enumerate(discounts, start=1))])
        contexts = ngrams // vocab_size
        self.contexts, first = np.unique(contexts, return_index=True)
        self.totals = np.add.reduceat(counts, first)  # of each context's counts
        self.freed = np.add.reduceat(self._discount(counts), first)  # what was subtracted from them

    def _discount(self, counts: np.ndarray) -> np.ndarray:
        return self.discounts[np.minimum(counts, 3)]

    def probability(self, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p(token | context), where `lower` is the estimate from a context shorter by one token.

        p = (c(context, token) - D) / c(context) + (all D of the context) / c(context) · lower; the lower estimate alone
        where the context has not been seen.
        """
        counts = _look_up(self.ngrams, self.counts, contexts * self.vocab_size + tokens)
        totals = _look_up(self.contexts, self.totals, contexts)
        freed = _look_up(self.contexts, self.freed, contexts)
        seen = totals > 0
        totals = np.where(seen, totals, 1)
        return np.where(seen, (counts - self._discount(counts) + freed * lower) / totals, lower)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of the wanted ones among sorted keys; 0 for those that are not among them."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def ngram_log_probabilities(train: np.ndarray, text: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """ln p of each token of `text` after the first, given the n - 1 tokens before it, in nats: (len(text) - 1,).

    An interpolated modified Kneser-Ney model of order n, counted on `train`: orders below the highest count in how many
    different contexts an n-gram occurs, not how often. Every token has a probability, a new one too. Kneser and Ney
    1995; Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling".
    """
    train, text = np.asarray(train, np.int64), np.asarray(text, np.int64)
    n = min(n, len(train))
    estimate = np.full(len(text) - 1, 1 / vocab_size)
    for order in range(1, n + 1):  # from contexts of order - 1 tokens
        ngrams = _windows(train, min(order + 1, n), vocab_size)
        if order < n:  # drop the first token: each distinct longer n-gram counts once
            ngrams = np.unique(ngrams) % vocab_size**order
        level = _Counts(*np.unique(ngrams, return_counts=True), vocab_size)
        first = max(1, order - 1)  # tokens before it have shorter contexts: their estimate stands
        contexts = _windows(text[first - order + 1 : -1], order - 1, vocab_size)[: len(text) - first]
        estimate[first - 1 :] = level.probability(contexts, text[first:], estimate[first - 1 :])
    return np.log(estimate)


def _windows(tokens: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """All n-grams of a text, each packed into one whole number."""
    packed = np.zeros(max(0, len(tokens) - n + 1), np.int64)
    for i in range(n):
        packed = packed * vocab_size + tokens[i : i + len(packed)]
    return packed


# --- an LSTM ----------------------------------------------------------------------------------------------------------


class LSTMModel(GPTModel):
    """A language model with a recurrence in place of attention: GPTModel's embedding, head, loss and calls, but layers
    of nn.LSTM, emb_dim wide, between them. Hochreiter and Schmidhuber 1997; as a language model Zaremba et al. 2014,
    arXiv:1409.2329. It has no positions, no masks but the causal one and no limit to its context; n_heads means nothing
    to it."""

    def __init__(self, config: GPTConfig | dict):
        config = model_config(config)
        if not config.vocab_size:
            raise ValueError("vocab_size 0 stands for the tokenizer's: set it before a model is made")
        super(GPTModel, self).__init__(config.kernels)
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.drop_emb = nn.Dropout(config.drop_rate)
        between = config.drop_rate if config.n_layers > 1 else 0.0  # dropout stands between layers
        self.lstm = nn.LSTM(config.emb_dim, config.emb_dim, config.n_layers, batch_first=True, dropout=between)
        self.final_norm = LayerNorm(config.emb_dim, config.kernels)
        self.out_head = Linear(config.emb_dim, config.vocab_size, bias=False, kernels=config.kernels)
        if config.init != "pytorch":
            nn.init.normal_(self.tok_emb.weight, std=0.02)
            nn.init.normal_(self.out_head.weight, std=0.02)
        if config.tie_embeddings:
            self.out_head.weight = self.tok_emb.weight

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        mask: Tensor | str = "causal",
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The vectors from which out_head reads logits, (B, T, D). The cache holds one state instead of all keys."""
        if not isinstance(mask, str) or mask != "causal" or positions is not None:
            raise ValueError("an LSTM reads from left to right: it takes no mask, no positions, no padded prompts")
        state = None if cache is None or not cache.length else (cache.keys[0], cache.values[0])
        x, (hidden, cell) = self.lstm(self.drop_emb(self.tok_emb(token_ids)), state)
        if cache is not None:
            cache.keys[0], cache.values[0] = hidden, cell
            cache.length += token_ids.size(-1)
        return self.final_norm(x)


def create_model(config: GPTConfig) -> GPTModel:
    """The backbone that a config names."""
    return {"gpt": GPTModel, "lstm": LSTMModel}[config.backbone](config)


# --- a yardstick ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # arrays make no truth value
class Yardstick:
    """What a loss on a validation split is measured by: losses above it and, where the entropy is known, below it."""

    baselines: dict[str, float]  # name -> nats per token
    floor: np.ndarray | None  # -ln p of each validation document, end included, in nats; None where nobody knows it
    tokens: int  # of the validation split that are predicted

    @property
    def floor_loss(self) -> float:
        """The floor in nats per token: no model can be expected below it. It must be known."""
        return float(self.floor.sum()) / self.tokens

    @property
    def entropy(self) -> float:
        """The exact entropy of the source in nats per token: that of a tale, over the mean length of these ones."""
        return tales.entropy() * len(self.floor) / self.tokens

    def gap_closed(self, excess: float) -> float:
        """1 - excess / (trigram - floor), for a loss of `excess` nats per token above the floor: of what can be known
        by looking further back than two tokens, the share that is known."""
        return 1 - excess / (self.baselines["trigram"] - self.floor_loss)


def yardstick(data: PreparedData) -> Yardstick:
    """Baselines fitted on a training split and scored on all tokens of its validation split, and the floor where there
    is one. Of larger splits the first ten million tokens count."""
    train, val = data.train.tokens[:MOST_TOKENS], data.val.tokens[:MOST_TOKENS]
    vocab_size = data.tokenizer.vocab_size
    baselines = {"uniform": math.log(vocab_size)}
    for n, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        baselines[name] = -float(ngram_log_probabilities(train, val, n, vocab_size).mean())
    for result in json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else ():
        if result["data"] == data.checksums:
            baselines[result["name"]] = result["val_loss"]
    return Yardstick(baselines, tales_floor(data), len(data.val.tokens) - 1)


def tales_floor(data: PreparedData) -> np.ndarray | None:
    """-ln p of each validation document, in nats, if all of them are tales; else None.

    ValueError for tales of another grammar than today's, whose probabilities nobody can tell.
    """
    if data.source.startswith("tales:") and not data.source.endswith(tales.fingerprint()):
        raise ValueError(f"{data.folder} holds tales of another grammar than that of gpt/tales.py: prepare it anew")
    found = []
    for text in data.documents(data.val) if data.separated else ():
        found.append(-tales.log_probability(text))
        if math.isinf(found[-1]):
            return None
    return np.array(found) if found else None
