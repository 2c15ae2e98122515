"""Metrics of predictions and texts: accuracy, precision, recall and F1, pass@k, BLEU, ROUGE.

    accuracy(logits, targets)                        # share of targets that are the likeliest token
    precision_recall_f1(predicted, true, "macro")    # of classes
    corpus_bleu(hypotheses, references).score        # 0 to 100
    rouge_l(hypothesis, reference).f1                # 0 to 1

A hypothesis is a generated text, a reference the text it should have been. Tests compare these metrics with those of
scikit-learn, sacrebleu and rouge-score.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gpt.objectives.ranks import target_ranks
from gpt.ops.reference import IGNORE_INDEX

NORMAL_95 = 1.959963984540054  # 95% of normally distributed errors are within so many standard errors

# --- answers that are right or wrong ---------------------------------------------------------------------------------


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return an unbiased estimate of the probability that one of k answers is right, from n answers of which so many
    are: 1 - C(n - right, k) / C(n, k). Chen et al. 2021, arXiv:2107.03374, equation 1. ValueError unless k <= n.

    >>> pass_at_k(4, 1, 2)  # three of the six pairs hold the right one
    0.5
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be 1 to the number of answers, {n}, not {k}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Return the ends of the 95% interval, within 0 to 1, of a share from n independent answers of which so many are
    right. Wilson 1927, "Probable inference, the law of succession, and statistical inference": it also holds for few
    answers and for shares near 0 and 1. ValueError unless 0 <= right <= n and n > 0.

    >>> wilson_interval(1, 10)
    (0.017876213095072896, 0.4041500267952385)
    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"right answers must be 0 to their number, which is at least 1: not {right} of {n}")
    share, weight = right / n, NORMAL_95**2 / n
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


# --- the next token ---------------------------------------------------------------------------------------------------


def top_k_accuracy(logits: Tensor, targets: Tensor, k: int = 5) -> float:
    """Return the share, 0 to 1, of targets (...) that are among the k likeliest tokens by logits (..., V).

    Targets of -100 are ignored; ties are those of `target_ranks`. ValueError if all targets are ignored or k is below
    1, and as in `target_ranks`; FloatingPointError if a logit is NaN.

    >>> logits = Tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.9, 0.0, 0.1]])
    >>> targets = Tensor([2, 2, -100]).long()  # the second likeliest, the third, an ignored one
    >>> [top_k_accuracy(logits, targets, k) for k in (1, 2, 3)]
    [0.0, 0.5, 1.0]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    ranks = target_ranks(logits, targets)
    counted = targets != IGNORE_INDEX
    if not counted.any():
        raise ValueError("all targets are ignored: the accuracy is undefined")
    return int((counted & (ranks < k)).sum()) / int(counted.sum())


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the share, 0 to 1, of targets (...) that are the likeliest token by logits (..., V).

    >>> accuracy(Tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), Tensor([1, 2]).long())
    0.5
    """
    return top_k_accuracy(logits, targets, 1)


# --- classes ----------------------------------------------------------------------------------------------------------


class PrecisionRecallF1(NamedTuple):
    """Precision, recall and F1, 0 to 1 each; without averaging a tuple each, with one number per class."""

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
    """Return precision, recall and F1, 0 to 1, of predicted classes.

    For tp correctly predicted items of a class, precision = tp / predicted, recall = tp / true, and F1 is their
    harmonic mean, 2 tp / (predicted + true). `average` None returns a tuple each, in the order of `labels` (None: all
    classes, sorted). "micro" sums the counts of all labels first; "macro" is the mean over labels; "weighted" is the
    mean weighted by the true items of each label. A fraction with denominator 0 has the value `zero_division` (0, 1 or
    NaN); means skip NaN. van Rijsbergen 1979, "Information Retrieval", chapter 7; averages as in scikit-learn.

    ValueError for no items, unequal numbers of items, no labels, and an unknown average.

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
        raise ValueError(f"average must be None, 'micro', 'macro' or 'weighted', not {average!r}")
    predicted, true = _to_list(predicted), _to_list(true)
    if len(predicted) != len(true):
        raise ValueError(f"there are {len(predicted)} predictions but {len(true)} true classes")
    if not true:
        raise ValueError("there are no predictions: precision and recall are undefined")
    labels = sorted({*predicted, *true}) if labels is None else _to_list(labels)
    if not labels:
        raise ValueError("there are no labels: precision and recall are undefined")
    correct = Counter(p for p, t in zip(predicted, true, strict=True) if p == t)
    n_predicted, n_true = Counter(predicted), Counter(true)
    counts = [(correct[label], n_predicted[label], n_true[label]) for label in labels]
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


def _to_list(items: Iterable[Hashable]) -> list[Hashable]:
    """Return a list of plain values: elements of tensors and arrays are no keys."""
    return items.tolist() if hasattr(items, "tolist") else list(items)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Return the weighted mean of the values that are not NaN, unweighted if all weights are 0."""
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
    if not kept:
        return math.nan
    if not any(weight for _, weight in kept):
        kept = [(value, 1) for value, _ in kept]
    return sum(value * weight for value, weight in kept) / sum(weight for _, weight in kept)


# --- n-grams ----------------------------------------------------------------------------------------------------------


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Return how often each n-gram occurs in a text.

    >>> ngrams(["to", "be", "or", "to", "be"], 2)
    Counter({('to', 'be'): 2, ('be', 'or'): 1, ('or', 'to'): 1})
    """
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


# --- BLEU -------------------------------------------------------------------------------------------------------------

ORDERS = (1, 2, 3, 4)  # of BLEU's n-grams

# mteval-v13a separates, rule by rule: ASCII punctuation but ' , - .; points and commas not after a digit; points and
# commas not before a digit; dashes after a digit. Each rule consumes the characters it matches.
_RULES = [
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
]


def tokenize_13a(text: str) -> list[str]:
    """Return the words of a text for BLEU: the tokenization "13a" of WMT's mteval-v13a and of sacrebleu.

    Punctuation marks are words, except points and commas in numbers, apostrophes, and dashes after letters. Case
    matters. Post 2018, arXiv:1804.08771.

    >>> tokenize_13a("It's well-known: 3,000.5 km (1-2 days).")
    ["It's", 'well-known', ':', '3,000.5', 'km', '(', '1', '-', '2', 'days', ')', '.']
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = f" {text} "  # so that the rules apply at both ends
    for pattern, separated in _RULES:
        text = pattern.sub(separated, text)
    return text.split()


@dataclass(frozen=True)
class Bleu:
    """A BLEU score and its parts."""

    score: float  # 0 to 100
    precisions: tuple[float, ...]  # of n-grams of 1, 2, 3 and 4 words, 0 to 100, smoothed
    brevity_penalty: float  # 0 to 1
    hypothesis_length: int  # words of all hypotheses
    reference_length: int  # words of the references, for each hypothesis the one closest in length


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], effective_order: bool = False) -> Bleu:
    """Return the BLEU of hypotheses, each compared with one or more references by n-grams of 1 to 4 words.

    BLEU = 100 · BP · (p1 · p2 · p3 · p4)^(1/4), from counts summed over the corpus:

    - p_n is the share of the hypotheses' n-grams that occur in a reference. An n-gram counts at most as often as in the
      reference that has most of it (clipping).
    - BP, the brevity penalty, is 1 if the hypotheses have at least as many words as the references, otherwise
      exp(1 - reference words / hypothesis words). Of several references the one closest in length counts, and the
      shorter of two equally close ones.
    - If p_n has no match, it counts 1/2 of a match for the first such n, 1/4 for the next, and so on (sacrebleu's
      smoothing "exp"; method 3 of Chen and Cherry 2014). Without a common word BLEU is 0.
    - If the hypotheses are too short for 4-grams, BLEU is 0; with `effective_order` the mean is over the n that occur.

    Papineni et al. 2002, as defined by sacrebleu, Post 2018, arXiv:1804.08771. ValueError for no hypothesis, for a
    hypothesis without a reference, and for unequal numbers.

    >>> bleu = corpus_bleu(["the cat sat on the mat"], [["the cat sat on a mat today"]])
    >>> [round(p, 2) for p in bleu.precisions]  # 5 of 6 ("the" once only), 3 of 5, 2 of 4, 1 of 3
    [83.33, 60.0, 50.0, 33.33]
    >>> round(bleu.brevity_penalty, 4)  # exp(1 - 7/6)
    0.8465
    >>> round(bleu.score, 2)  # 84.65 · (5/6 · 3/5 · 2/4 · 1/3)^(1/4) = 84.65 · 0.5373
    45.48
    """
    if isinstance(hypotheses, str) or any(isinstance(each, str) for each in (references, *references)):
        raise ValueError("hypotheses must be a list of texts, and references a list of texts for each of them")
    if len(hypotheses) != len(references):
        raise ValueError(f"there are {len(hypotheses)} hypotheses but references for {len(references)}")
    if not hypotheses:
        raise ValueError("there are no hypotheses: BLEU is undefined")
    if not all(references):
        raise ValueError("a hypothesis has no reference")
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
    """Return BLEU from its counts by n."""
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
    """Return the BLEU of one text, as `corpus_bleu`, but with effective_order, since a sentence may be short.

    The mean over sentences is not the BLEU of the corpus.

    >>> bleu = sentence_bleu("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"])
    >>> round(bleu.precisions[0], 2)  # 2 of 7: no reference holds "the" more than twice (Papineni et al., example 2)
    28.57
    >>> sentence_bleu("a cat", ["a cat"]).score, sentence_bleu("a cat", ["a cat"], effective_order=False).score
    (100.0, 0.0)
    """
    return corpus_bleu([hypothesis], [references], effective_order)


# --- ROUGE ------------------------------------------------------------------------------------------------------------


def rouge_words(text: str) -> list[str]:
    """Return the words of a text for ROUGE: runs of a-z and 0-9 in lower case, without stemming, as in rouge-score.

    All other characters separate words, including letters of other scripts.

    >>> rouge_words("Don't PANIC: 3.5 naïve cats")
    ['don', 't', 'panic', '3', '5', 'na', 've', 'cats']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_n(hypothesis: str, reference: str, n: int) -> PrecisionRecallF1:
    """Return ROUGE-n, 0 to 1, from the n-grams that a text has in common with its reference.

    Recall is their share of the reference's n-grams, precision their share of the hypothesis's; 0 if there are none.
    Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section 2. ValueError for an n below 1.

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
    """Return ROUGE-L, 0 to 1: the length of the longest common subsequence over the number of words of each text.

    Lin 2004, section 3.1, with F1 as its F, as in rouge-score. 0 if a text has no words.

    >>> rouge_l("on the mat the cat sat", "The cat sat on the mat today.")  # "the cat sat": 3 of 6 and of 7
    PrecisionRecallF1(precision=0.5, recall=0.42857142857142855, f1=0.46153846153846156)
    """
    found, wanted = rouge_words(hypothesis), rouge_words(reference)
    return _shared(longest_common_subsequence(found, wanted), len(found), len(wanted))


def longest_common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest sequence of items that occurs in both in the same order, with gaps allowed.

    For the first i items of one and the first j of the other, L(i, j) is L(i-1, j-1) + 1 if the last items are equal,
    otherwise the larger of L(i-1, j) and L(i, j-1). It takes len(first) · len(second) steps.

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
    """Return precision, recall and F1 from counts, 0 for a denominator of 0."""
    found, wanted = n_shared / max(1, n_found), n_shared / max(1, n_wanted)
    return PrecisionRecallF1(found, wanted, 2 * n_shared / max(1, n_found + n_wanted))
