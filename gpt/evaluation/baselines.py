"""Losses to compare a model with: a uniform guess, n-grams, an LSTM, and the entropy of the text."""

import json
import math
from dataclasses import dataclass

import numpy as np

from gpt.config import TrainConfig
from gpt.evaluation.ngrams import ngram_log_probabilities
from gpt.objectives import Objective
from gpt.objectives.unigram import MAX_TOKENS
from gpt.system.paths import PROJECT
from gpt.text import tales
from gpt.token_files import PreparedData

RESULTS = PROJECT / "data" / "baselines.json"  # losses of models that take too long to train within a run


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Baselines:
    """Losses that a validation loss is compared with: baselines above it and, where it is known, the entropy below."""

    losses: dict[str, float]  # name -> nats per unit
    entropy_floor: np.ndarray | None  # -ln p of each validation document, its end included, in nats; None if unknown
    n_tokens: int  # predicted tokens of the validation split: all after the first
    unit: str = "token"  # of which the losses are means

    @property
    def entropy_floor_loss(self) -> float:
        """The entropy floor in nats per token: no model can be expected below it. It must be known."""
        return float(self.entropy_floor.sum()) / self.n_tokens

    @property
    def entropy(self) -> float:
        """The exact entropy of a tale over the mean length of the validation tales, in nats per token."""
        return tales.entropy() * len(self.entropy_floor) / self.n_tokens

    def gap_closed(self, excess: float) -> float:
        """Return 1 - excess / (trigram - floor) for a loss `excess` nats per token above the floor: the share of what
        a context longer than two tokens can teach that the model has learnt."""
        return 1 - excess / (self.losses["trigram"] - self.entropy_floor_loss)


def compute_baselines(objective: Objective, config: TrainConfig, data: PreparedData) -> Baselines:
    """Return the baselines of an objective on prepared data, as its `transform` returns them.

    For objectives that predict the next token these include n-grams and the models of data/baselines.json. Of each
    split the first MAX_TOKENS tokens count.
    """
    losses = objective.trivial_losses(config, data)
    if objective.has_ngrams(data):
        train, val = data.train.tokens[:MAX_TOKENS], data.val.tokens[:MAX_TOKENS]
        for n, name in ((2, "bigram"), (3, "trigram")):
            losses[name] = -float(ngram_log_probabilities(train, val, n, data.tokenizer.vocab_size).mean())
        for result in json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else ():
            if result["data"] == data.checksums:
                losses[result["name"]] = result["val_loss"]
    floor = tales_entropy_floor(data) if objective.has_entropy_floor(config) else None
    return Baselines(losses, floor, len(data.val.tokens) - 1, objective.unit)


def tales_entropy_floor(data: PreparedData) -> np.ndarray | None:
    """Return -ln p in nats of each validation document if all of them are tales, else None.

    ValueError for tales of a grammar other than today's, whose probabilities are unknown.
    """
    if data.source.startswith("tales:") and not data.source.endswith(tales.fingerprint()):
        raise ValueError(
            f"{data.folder} holds tales of a grammar other than that of gpt/text/tales.py: prepare it again"
        )
    found = []
    for text in data.documents(data.val) if data.has_eot else ():
        found.append(-tales.log_probability(text))
        if math.isinf(found[-1]):
            return None
    return np.array(found) if found else None
