"""Scores by which predictions and texts are judged: accuracy, precision, recall and F1, BLEU, ROUGE.

    accuracy(logits, targets)                        # share of targets that are the likeliest token
    precision_recall_f1(predicted, true, "macro")    # of classes
    corpus_bleu(hypotheses, references).score        # 0 to 100
    rouge_l(hypothesis, reference).f1                # 0 to 1

A hypothesis is the text that is judged, a reference the text that it should have been. Every score is written out here;
the tests hold them equal to scikit-learn's, sacrebleu's and rouge-score's.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gpt.loss import target_ranks
from gpt.ops.reference import IGNORE_INDEX

# --- the next token ---------------------------------------------------------------------------------------------------


def top_k_accuracy(logits: Tensor, targets: Tensor, k: int = 5) -> float:
    """The share, 0 to 1, of targets (...) that are among the k likeliest tokens by logits (..., V).

    Targets of -100 count nowhere; ties as in `target_ranks`. It can't see by how much a token was likelier.

    ValueError where no target counts, for a k below 1, and as in `target_ranks`; FloatingPointError where a logit is
    NaN.

    >>> logits = Tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.9, 0.0, 0.1]])
    >>> targets = Tensor([2, 2, -100]).long()  # the second likeliest, the third, one that does not count
    >>> [top_k_accuracy(logits, targets, k) for k in (1, 2, 3)]
    [0.0, 0.5, 1.0]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    ranks = target_ranks(logits, targets)
    counted = targets != IGNORE_INDEX
    if not counted.any():
        raise ValueError("no target counts: an accuracy over nothing is not defined")
    return int((counted & (ranks < k)).sum()) / int(counted.sum())


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """The share, 0 to 1, of targets (...) that are the likeliest token by logits (..., V): `top_k_accuracy` with k 1.

    >>> accuracy(Tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), Tensor([1, 2]).long())
    0.5
    """
    return top_k_accuracy(logits, targets, 1)


# --- classes ----------------------------------------------------------------------------------------------------------


class PrecisionRecallF1(NamedTuple):
    """Precision, recall and F1, 0 to 1 each; tuples of them, one for each class, where they are not averaged."""

    precision: float | tuple[float, ...]
    recall: float | tuple[float, ...]
    f1: float | tuple[float, ...]


def precision_recall_f1(
    predicted: Iterable[Hashable],
    true: Iterable[Hashable],
    average: str | None = None,
    labels: Sequence[Hashable] | None = None,
    zero_division: float = 0.0,
) -> PrecisionRecallF1:
    """Precision, recall and F1, 0 to 1, of predicted classes against the true ones.

    With tp items of a class that are predicted as such: precision = tp / predicted, recall = tp / true, and F1 their
    harmonic mean, 2 tp / (predicted + true). `average` None gives tuples, one figure for each label in order (`labels`,
    or all that occur, sorted); "micro" adds up the counts of all labels first, so that each item weighs the same;
    "macro" is the mean over labels, so that each label weighs the same; "weighted" is the mean by how many items truly
    have a label. A fraction with denominator 0 has the value `zero_division` (0, 1 or NaN); a mean leaves out NaN. van
    Rijsbergen 1979, "Information Retrieval", chapter 7; the averages are scikit-learn's.

    ValueError for no items, unequal numbers of them, no labels, and for another average.

    >>> precision_recall_f1("aab", "abb")  # a: 1 of 2 predicted, 1 of 1 true; b: 1 of 1, 1 of 2
    PrecisionRecallF1(precision=(0.5, 1.0), recall=(1.0, 0.5), f1=(0.6666666666666666, 0.6666666666666666))
    >>> precision_recall_f1("aab", "abb", "macro").precision  # (1/2 + 1) / 2
    0.75
    >>> round(precision_recall_f1("aab", "abb", "weighted").precision, 4)  # (1 · 1/2 + 2 · 1) / 3
    0.8333
    >>> round(precision_recall_f1("aab", "abb", "micro").precision, 4)  # 2 of 3
    0.6667
    """
    if average not in (None, "micro", "macro", "weighted"):
        raise ValueError(f"average is None, 'micro', 'macro' or 'weighted', not {average!r}")
    predicted, true = _listed(predicted), _listed(true)
    if len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predictions do not fit {len(true)} true classes")
    if not true:
        raise ValueError("no prediction: precision and recall over nothing are not defined")
    labels = sorted({*predicted, *true}) if labels is None else _listed(labels)
    if not labels:
        raise ValueError("no labels: precision and recall over no class are not defined")
    topk_correct = Counter(p for p, t in zip(predicted, true, strict=True) if p == t)
    n_predicted, n_true = Counter(predicted), Counter(true)
    counts = [(topk_correct[label], n_predicted[label], n_true[label]) for label in labels]
    if average == "micro":
        counts = [tuple(map(sum, zip(*counts, strict=True)))]

    def ratio(numerator: int, denominator: int) -> float:
        return numerator / denominator if denominator else float(zero_division)

    scores = PrecisionRecallF1(
        tuple(ratio(tp, p) for tp, p, _ in counts),
        tuple(ratio(tp, t) for tp, _, t in counts),
        tuple(ratio(2 * tp, p + t) for tp, p, t in counts),
    )
    if average is None:
        return scores
    weights = [t for _, _, t in counts] if average == "weighted" else [1] * len(counts)
    return PrecisionRecallF1(*(_mean(values, weights) for values in scores))


def _listed(items: Iterable[Hashable]) -> list[Hashable]:
    """A list of plain values: elements of a tensor or an array would not be equal as keys."""
    return items.tolist() if hasattr(items, "tolist") else list(items)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """The weighted mean of the values that are not NaN; the plain one where all their weights are 0."""
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
    if not kept:
        return math.nan
    if not any(weight for _, weight in kept):
        kept = [(value, 1) for value, _ in kept]
    return sum(value * weight for value, weight in kept) / sum(weight for _, weight in kept)


# --- n-grams ----------------------------------------------------------------------------------------------------------


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each stretch of n words occurs in a text.

    >>> ngrams(["to", "be", "or", "to", "be"], 2)
    Counter({('to', 'be'): 2, ('be', 'or'): 1, ('or', 'to'): 1})
    """
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


# --- BLEU -------------------------------------------------------------------------------------------------------------

ORDERS = (1, 2, 3, 4)  # of BLEU's n-grams

# What mteval-v13a sets apart, one rule after the other: every mark of ASCII but ' , - . and then these where no digit
# stands before, where none follows, and a dash after a digit. Each rule eats the characters that it matches.
_RULES = [
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
]


def tokenize_13a(text: str) -> list[str]:
    """The words and marks of a text as BLEU counts them: the tokenization "13a" of WMT's mteval-v13a and of sacrebleu.

    Marks are words of their own, but not points and commas within numbers, apostrophes, and dashes after letters.
    Upper and lower case differ. Post 2018, arXiv:1804.08771.

    >>> tokenize_13a("It's well-known: 3,000.5 km (1-2 days).")
    ["It's", 'well-known', ':', '3,000.5', 'km', '(', '1', '-', '2', 'days', ')', '.']
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = f" {text} "  # a mark at either end has a neighbour that is no digit
    for pattern, apart in _RULES:
        text = pattern.sub(apart, text)
    return text.split()


@dataclass(frozen=True)
class Bleu:
    """A BLEU score and what it is made of."""

    score: float  # 0 to 100
    precisions: tuple[float, ...]  # of n-grams of 1, 2, 3 and 4 words, 0 to 100, smoothed
    brevity_penalty: float  # 0 to 1
    hypothesis_length: int  # words of all hypotheses
    reference_length: int  # words of the references, of each hypothesis the one nearest in length


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], effective_order: bool = False) -> Bleu:
    """BLEU of hypotheses, each against one or more references: how many of its n-grams of 1 to 4 words stand there too.

    BLEU = 100 · BP · (p1 · p2 · p3 · p4)^(1/4), all counts summed over the corpus before they are divided:

    - p_n, the share of the hypotheses' n-grams that their references hold too; one that occurs more often than in any
      single reference counts as often as there (it is "clipped").
    - BP, the brevity penalty: 1 where the hypotheses have at least as many words as the references (of each the one
      nearest in length, of two as near the shorter), else exp(1 - reference words / hypothesis words). Precisions have
      no recall beside them: without it a single sure word would do.
    - A p_n without any match would make all 0: the first such is taken as 1/2 of a match, the next as 1/4, and so on
      (sacrebleu's smoothing "exp"; method 3 of Chen and Cherry 2014). Without a single common word BLEU is 0.
    - Where the hypotheses are too short for n-grams of 4 words, BLEU is 0; with `effective_order` the mean is over the
      orders that there are.

    Papineni et al. 2002; in the definition of sacrebleu, Post 2018, arXiv:1804.08771. It can't see that another wording
    says the same. ValueError where there is no hypothesis, where one has no reference, and for unequal numbers.

    >>> bleu = corpus_bleu(["the cat sat on the mat"], [["the cat sat on a mat today"]])
    >>> [round(p, 2) for p in bleu.precisions]  # 5 of 6 ("the" once only), 3 of 5, 2 of 4, 1 of 3
    [83.33, 60.0, 50.0, 33.33]
    >>> round(bleu.brevity_penalty, 4)  # exp(1 - 7/6)
    0.8465
    >>> round(bleu.score, 2)  # 84.65 · (5/6 · 3/5 · 2/4 · 1/3)^(1/4) = 84.65 · 0.5373
    45.48
    """
    if isinstance(hypotheses, str) or any(isinstance(each, str) for each in (references, *references)):
        raise ValueError("hypotheses are a list of texts, references a list of texts for each of them, not a text")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses do not fit the references of {len(references)}")
    if not hypotheses:
        raise ValueError("no hypothesis: BLEU over nothing is not defined")
    if not all(references):
        raise ValueError("a hypothesis has no reference to be compared with")
    matches, totals = Counter(), Counter()  # by order
    hypothesis_length = reference_length = 0
    for hypothesis, its_references in zip(hypotheses, references, strict=True):
        words, others = tokenize_13a(hypothesis), [tokenize_13a(text) for text in its_references]
        hypothesis_length += len(words)
        reference_length += min(map(len, others), key=lambda length: (abs(length - len(words)), length))
        for n in ORDERS:
            found, allowed = ngrams(words, n), Counter()
            for other in others:
                allowed |= ngrams(other, n)  # the most that any reference holds
            matches[n] += (found & allowed).total()  # clipped
            totals[n] += found.total()
    return _bleu(matches, totals, hypothesis_length, reference_length, effective_order)


def _bleu(matches: Counter, totals: Counter, hypothesis_length: int, reference_length: int, effective: bool) -> Bleu:
    """BLEU from its counts, by order."""
    penalty = 1.0
    if hypothesis_length < reference_length:
        penalty = math.exp(1 - reference_length / hypothesis_length) if hypothesis_length else 0.0
    if not matches.total():
        return Bleu(0.0, (0.0,) * len(ORDERS), penalty, hypothesis_length, reference_length)
    orders = [n for n in ORDERS if totals[n]]
    precisions = dict.fromkeys(ORDERS, 0.0)
    credit = 1.0
    for n in orders:
        if not matches[n]:
            credit /= 2
        precisions[n] = 100 * (matches[n] or credit) / totals[n]
    score = 0.0
    if effective or len(orders) == len(ORDERS):  # the geometric mean: exactly 1 for an identical text
        score = 100 * penalty * math.exp(sum(math.log(precisions[n] / 100) for n in orders) / len(orders))
    return Bleu(score, tuple(precisions.values()), penalty, hypothesis_length, reference_length)


def sentence_bleu(hypothesis: str, references: Sequence[str], effective_order: bool = True) -> Bleu:
    """BLEU of one text against its references, as `corpus_bleu`, but with effective_order: a sentence may be short.

    The mean of many is not the BLEU of the corpus.

    >>> bleu = sentence_bleu("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"])
    >>> round(bleu.precisions[0], 2)  # 2 of 7: no reference holds "the" more than twice (Papineni et al., example 2)
    28.57
    >>> sentence_bleu("a cat", ["a cat"]).score, sentence_bleu("a cat", ["a cat"], effective_order=False).score
    (100.0, 0.0)
    """
    return corpus_bleu([hypothesis], [references], effective_order)


# --- ROUGE ------------------------------------------------------------------------------------------------------------


def rouge_words(text: str) -> list[str]:
    """The words of a text as ROUGE counts them: runs of a-z and 0-9 in lower case, without stemming, as rouge-score.

    Whatever else there is divides words, letters of other scripts too.

    >>> rouge_words("Don't PANIC: 3.5 naïve cats")
    ['don', 't', 'panic', '3', '5', 'na', 've', 'cats']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_n(hypothesis: str, reference: str, n: int) -> PrecisionRecallF1:
    """ROUGE-n, 0 to 1: how many n-grams of words a text shares with its reference.

    Recall is the share of the reference's n-grams that the hypothesis holds too, precision that of the hypothesis's in
    the reference, each n-gram counted as often as it occurs in both. 0 where there are none. Lin 2004, "ROUGE: a
    package for automatic evaluation of summaries", section 2. It can't see any order beyond n words.

    ValueError for an n below 1.

    >>> rouge_n("on the mat the cat sat", "The cat sat on the mat today.", 1)  # 6 of 6 and of 7
    PrecisionRecallF1(precision=1.0, recall=0.8571428571428571, f1=0.9230769230769231)
    >>> rouge_n("on the mat the cat sat", "The cat sat on the mat today.", 2).precision  # 4 of 5, all but "mat the"
    0.8
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    found, wanted = ngrams(rouge_words(hypothesis), n), ngrams(rouge_words(reference), n)
    return _shared((found & wanted).total(), found.total(), wanted.total())


def rouge_l(hypothesis: str, reference: str) -> PrecisionRecallF1:
    """ROUGE-L, 0 to 1: the words of the longest common subsequence over the words of each text.

    Lin 2004, section 3.1, with F1 for its F, as rouge-score has it. 0 where a text has no words.

    >>> rouge_l("on the mat the cat sat", "The cat sat on the mat today.")  # "the cat sat": 3 of 6 and of 7
    PrecisionRecallF1(precision=0.5, recall=0.42857142857142855, f1=0.46153846153846156)
    """
    found, wanted = rouge_words(hypothesis), rouge_words(reference)
    return _shared(longest_common_subsequence(found, wanted), len(found), len(wanted))


def longest_common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """How many items stand in both sequences in the same order, with whatever between them.

    With L(i, j) that of the first i items of one and the first j of the other, L(i, j) is L(i-1, j-1) + 1 where the
    last items are equal, else the greater of L(i-1, j) and L(i, j-1). Row by row: len(first) · len(second) steps.

    >>> longest_common_subsequence("nematode", "empty")  # e m t
    3
    """
    row = [0] * (len(second) + 1)
    for item in first:
        above, row = row, [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if item == other else max(above[j + 1], row[j]))
    return row[-1]


def _shared(n_shared: int, n_found: int, n_wanted: int) -> PrecisionRecallF1:
    """Precision, recall and F1 from counts, 0 where there is nothing to divide by."""
    found, wanted = n_shared / max(1, n_found), n_shared / max(1, n_wanted)
    return PrecisionRecallF1(found, wanted, 2 * n_shared / max(1, n_found + n_wanted))
