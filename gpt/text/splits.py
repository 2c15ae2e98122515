"""Which part of a corpus is for training, how often, and which for validation."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gpt.text.sources import Corpus

MANY_DOCUMENTS = 10  # from here on the validation share is whole documents, and a weight may be a fraction
SHARE_ADVICE = "use a longer text or another val_fraction"
Document = Iterable[str]  # a document's chunks of text


@dataclass(frozen=True)
class SplitPlan:
    """Which text of a corpus is for training: the first `n_documents` documents and `n_characters` of the next one,
    document i `repeats[i]` times. The rest is for validation."""

    corpus: Corpus
    weight: Fraction
    n_documents: int
    n_characters: int
    repeats: np.ndarray
    train_characters: int  # repeats included
    val_characters: int

    @classmethod
    def create(cls, corpus: Corpus, lengths: np.ndarray, weight: Fraction, val_fraction: float | None) -> "SplitPlan":
        """Plan the split of a corpus whose documents have these lengths; without val_fraction, train on all of it."""
        unit, is_whole = corpus.unit, corpus.unit > 1 or bool(corpus.format)
        total, n_documents, n_characters = int(lengths.sum()), len(lengths), 0
        if val_fraction is not None and (len(lengths) >= MANY_DOCUMENTS or is_whole):
            n_documents -= unit * max(1, round(len(lengths) / unit * val_fraction))
        elif val_fraction is not None:
            n_train = total - math.ceil(round(total * val_fraction, 6))  # 50 · 0.14 is 7, not 7.000000000000001
            n_documents = int(np.searchsorted(np.cumsum(lengths), n_train, side="right"))
            n_characters = n_train - int(lengths[:n_documents].sum())
        n_units = (n_documents + (n_characters > 0)) // unit
        if n_units < 1:
            raise ValueError(
                f"{corpus.name} is too short for a val_fraction of {val_fraction}: both splits need at least two "
                f"tokens; {SHARE_ADVICE}"
            )
        a, b = weight.as_integer_ratio()
        if b > 1 and n_units < MANY_DOCUMENTS:
            raise ValueError(
                f"{corpus.name} has fewer than ten training documents, {n_units}: "
                f"its weight must be a whole number, not {float(weight)}"
            )
        if n_units * a < b:
            raise ValueError(
                f"a weight of {float(weight)} takes none of the {n_units} training documents of {corpus.name}: it must "
                f"be at least {1 / n_units:.3g}"
            )
        repeats = np.fromiter(((i + 1) * a // b - i * a // b for i in range(n_units)), np.int64).repeat(unit)
        trained = np.append(lengths[:n_documents], [n_characters] if n_characters else []).astype(np.int64)
        return cls(
            corpus, weight, n_documents, n_characters, repeats,
            train_characters=int(repeats @ trained), val_characters=total - int(trained.sum()),
        )  # fmt: skip

    def train_documents(self) -> Iterator[Document]:
        """Yield the training documents, pass after pass."""
        for n in range(self.repeats.max()):
            for i, document in enumerate(itertools.islice(self.corpus.documents(), len(self.repeats))):
                if self.repeats[i] > n:
                    yield document if i < self.n_documents else _head(document, self.n_characters)

    def val_documents(self) -> Iterator[Document]:
        """Yield the documents held out for validation."""
        for i, document in enumerate(self.corpus.documents()):
            if i >= self.n_documents:
                cut = i == self.n_documents and self.n_characters
                yield _tail(document, self.n_characters) if cut else document


def split_documents(plans: Sequence[SplitPlan], val_corpus: Corpus | None) -> dict[str, Iterator[Document]]:
    """Return the documents of "train" and "val"; with `val_corpus` the latter are all of its documents."""
    train = itertools.chain.from_iterable(plan.train_documents() for plan in plans)
    val = val_corpus.documents() if val_corpus else itertools.chain.from_iterable(p.val_documents() for p in plans)
    return {"train": train, "val": val}


def _head(document: Document, n: int) -> Iterator[str]:
    """Yield the first n characters of a document."""
    for chunk in document:
        yield chunk[:n]
        n -= len(chunk)
        if n <= 0:
            return


def _tail(document: Document, n: int) -> Iterator[str]:
    """Yield a document without its first n characters."""
    for chunk in document:
        if chunk[n:]:
            yield chunk[n:]
        n = max(n - len(chunk), 0)
