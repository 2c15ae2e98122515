"""What a model's loss is compared with: a uniform guess, n-grams, an LSTM, and the entropy of the text."""

import json
import math
from dataclasses import dataclass

import numpy as np

from gpt.evaluation.ngrams import ngram_log_probabilities
from gpt.system.paths import PROJECT
from gpt.text import tales
from gpt.token_files import PreparedData

RESULTS = PROJECT / "data" / "baselines.json"  # of models that take too long to train within a run
MAX_TOKENS = 10_000_000  # that n-grams are counted on, and scored on


@dataclass(frozen=True, eq=False)  # arrays make no truth value
class Baselines:
    """What a loss on a validation split is measured by: losses above it and, where the entropy is known, below it."""

    baselines: dict[str, float]  # name -> nats per token
    floor: np.ndarray | None  # -ln p of each validation document, end included, in nats; None where nobody knows it
    tokens: int  # of the validation split that are predicted

    @property
    def entropy_floor_loss(self) -> float:
        """The floor in nats per token: no model can be expected below it. It must be known."""
        return float(self.floor.sum()) / self.tokens

    @property
    def entropy(self) -> float:
        """The exact entropy of the source in nats per token: that of a tale, over the mean length of these ones."""
        return tales.entropy() * len(self.floor) / self.tokens

    def gap_closed(self, excess: float) -> float:
        """1 - excess / (trigram - floor), for a loss of `excess` nats per token above the floor: of what can be known
        by looking further back than two tokens, the share that is known."""
        return 1 - excess / (self.baselines["trigram"] - self.entropy_floor_loss)


def baselines_of(data: PreparedData) -> Baselines:
    """Baselines fitted on a training split and scored on all tokens of its validation split, and the floor where there
    is one. Of larger splits the first ten million tokens count."""
    train, val = data.train.tokens[:MAX_TOKENS], data.val.tokens[:MAX_TOKENS]
    vocab_size = data.tokenizer.vocab_size
    baselines = {"uniform": math.log(vocab_size)}
    for n, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        baselines[name] = -float(ngram_log_probabilities(train, val, n, vocab_size).mean())
    for result in json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else ():
        if result["data"] == data.checksums:
            baselines[result["name"]] = result["val_loss"]
    return Baselines(baselines, tales_entropy_floor(data), len(data.val.tokens) - 1)


def tales_entropy_floor(data: PreparedData) -> np.ndarray | None:
    """-ln p of each validation document, in nats, if all of them are tales; else None.

    ValueError for tales of another grammar than today's, whose probabilities nobody can tell.
    """
    if data.source.startswith("tales:") and not data.source.endswith(tales.fingerprint()):
        raise ValueError(
            f"{data.folder} holds tales of another grammar than that of gpt/text/tales.py: prepare it anew"
        )
    found = []
    for text in data.documents(data.val) if data.has_eot else ():
        found.append(-tales.log_probability(text))
        if math.isinf(found[-1]):
            return None
    return np.array(found) if found else None
