"""Metrics against scikit-learn, sacrebleu and rouge-score, against brute force, and by hand."""

import doctest
import itertools
import math
import random

import numpy as np
import pytest
import torch
from numerics import tolerance

from gpt.config import GPTConfig
from gpt.evaluation import metrics, samples
from gpt.evaluation.metrics import (
    corpus_bleu,
    longest_common_subsequence,
    pass_at_k,
    precision_recall_f1,
    rouge_l,
    rouge_n,
    rouge_words,
    sentence_bleu,
    tokenize_13a,
    top_k_accuracy,
)
from gpt.evaluation.samples import continue_prompts, split_prompts
from gpt.generation import generate_text_simple
from gpt.run.evaluate import describe_continuations, describe_limits
from gpt.tokenizer import CharTokenizer
from gpt.variants import create_model
from gpt.variants.quantized import QuantizedGPTModel, int8_obstacle


def test_docstring_examples():
    result = doctest.testmod(metrics)
    assert result.failed == 0
    assert result.attempted >= 20


# --- answers that are right or wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "right"), [(6, 0), (6, 1), (6, 4), (6, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, right):
    answers = [True] * right + [False] * (n - right)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_as_many_answers(k):
    with pytest.raises(ValueError, match=f"k must be 1 to the number of answers, 4, not {k}"):
        pass_at_k(4, 1, k)


# --- the next token ---------------------------------------------------------------------------------------------------


def test_top_k_accuracy_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is a development dependency")
    logits, targets = torch.randn(300, 12), torch.randint(0, 12, (300,))
    for k in (1, 2, 5):
        truth = metrics.top_k_accuracy_score(targets.numpy(), logits.numpy(), k=k, labels=range(12))
        assert top_k_accuracy(logits, targets, k) == pytest.approx(truth, rel=tolerance(300))


NAN = torch.tensor([[0.0, math.nan], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("logits", "targets", "k", "error", "words"),
    [
        (torch.zeros(2, 3), torch.full((2,), -100), 1, ValueError, "all targets are ignored"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 1, ValueError, "all targets are ignored"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 0, ValueError, "k must be at least 1, not 0"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 1, ValueError, r"do not fit: \(2, 3\) and \(3,\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1, ValueError, "outside the vocabulary of 3 tokens"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), 1, ValueError, "outside the vocabulary of 3 tokens"),
        (NAN, torch.tensor([1, 1]), 1, FloatingPointError, "NaN"),
    ],
)
def test_invalid_accuracy_arguments_are_refused(logits, targets, k, error, words):
    with pytest.raises(error, match=words):
        top_k_accuracy(logits, targets, k)


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_division", [0.0, 1.0, math.nan])
@pytest.mark.parametrize("average", [None, "micro", "macro", "weighted"])
def test_precision_recall_f1_equal_scikit_learn(average, zero_division):
    """Few items of many classes, so that some are never predicted and some never true; labels that do not occur."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is a development dependency")
    draw = np.random.default_rng(0)
    for case in range(25):
        n, n_classes = int(draw.integers(1, 25)), int(draw.integers(1, 8))
        predicted, true = draw.integers(0, n_classes, (2, n))
        labels = [None, [1, 0], [0, 3, 99], [98, 99]][case % 4]
        truth = metrics.precision_recall_fscore_support(
            true, predicted, average=average, labels=labels, zero_division=zero_division
        )
        ours = precision_recall_f1(torch.tensor(predicted), true, average, labels, zero_division)
        for value, expected in zip(ours, truth[:3], strict=True):
            np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance(25))


def test_averages_by_hand():
    """Nine of ten items are a, all of them found; the one b is taken for an a."""
    true, predicted = "a" * 9 + "b", "a" * 10
    assert precision_recall_f1(predicted, true).recall == (1.0, 0.0)
    assert precision_recall_f1(predicted, true, "micro").recall == 0.9
    assert precision_recall_f1(predicted, true, "macro").recall == 0.5
    assert precision_recall_f1(predicted, true, "weighted").precision == pytest.approx(0.81)
    assert precision_recall_f1(predicted, true, zero_division=1).precision == (0.9, 1.0)
    assert precision_recall_f1("aaa", "aaa", "macro") == (1, 1, 1)  # one class


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], []), "no prediction"),
        (("ab", "a"), "2 predictions but 1 true"),
        (("a", "a", "mean"), "not 'mean'"),
        (("a", "a", None, []), "no labels"),
    ],
)
def test_invalid_class_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        precision_recall_f1(*arguments)


# --- texts ------------------------------------------------------------------------------------------------------------

WORDS = [
    *["the", "the", "The", "cat", "sat", "on", "mat", "a", "dog", "it's", "don't", "3.5", "1,000", "1-2", "7-", "e.g."],
    *[
        "well-known",
        "Straße",
        "naïve",
        "日本語",
        "İstanbul",
        "🙂",
        "...",
        "!",
        ",",
        ".",
        "(",
        '"',
        "&amp;lt;",
        "&quot;x",
    ],
    *["<skipped>", "x-\ny", "A/B", "50%", "$5", "\u00a0", "_", "~", "`", "\t", "ｆｕｌｌ", "٣"],
]


def changed(words, draw):
    """A text made from another: the same, cut, shuffled, with words lost, doubled or replaced, or another one."""
    kind = draw.randrange(8)
    if kind == 0:
        return words
    if kind == 1:
        return words[: draw.randint(0, len(words))]
    if kind == 2:
        return draw.sample(words, len(words))
    if kind == 3:
        return [word for word in words for _ in range(draw.choice([0, 1, 1, 2]))]
    if kind == 4:
        return [draw.choice(WORDS) if draw.random() < 0.3 else word for word in words]
    if kind == 5:
        return words[:1] * draw.randint(1, 9)
    if kind == 6:
        return []
    return draw.choices(WORDS, k=draw.randint(1, 12))


def pairs(n=200, seed=0, n_references=1):
    """(hypothesis, [references]), n of them: empty, identical, one word, of marks, numbers and many scripts."""
    draw = random.Random(seed)
    for _ in range(n):
        words = draw.choices(WORDS, k=draw.choice([0, 1, 2, 3, 4, 6, 10, 20, 40]))
        between = draw.choice([" ", " ", " ", "", "\n"])
        texts = [between.join(words)]
        texts += [between.join(changed(words, draw)) for _ in range(n_references)]
        draw.shuffle(texts)
        yield texts[0], texts[1:]


PAIRS = list(pairs())


def test_random_pairs_include_the_edge_cases():
    assert sum(not hypothesis for hypothesis, _ in PAIRS) > 5
    assert sum(not reference for _, (reference,) in PAIRS) > 5
    assert sum(hypothesis == reference != "" for hypothesis, (reference,) in PAIRS) > 5
    assert any(len(tokenize_13a(hypothesis)) == 1 for hypothesis, _ in PAIRS)


def noise(n, seed=0):
    """Strings in which marks, digits, letters and spaces stand in any order."""
    draw = random.Random(seed)
    alphabet = "".join(map(chr, range(32, 127))) + "0123456789.,-.,-  \n\n\t\u2003é。０" + "&lt;" * 2
    return ["".join(draw.choices(alphabet, k=draw.randint(0, 60))) for _ in range(n)]


def test_tokenize_13a_equals_sacrebleu():
    bleu = pytest.importorskip("sacrebleu.metrics", reason="sacrebleu is a development dependency").BLEU()
    for text in [*noise(1000), *(hypothesis for hypothesis, _ in PAIRS)]:
        assert tokenize_13a(text) == bleu._preprocess_segment(text).split(), text


def test_rouge_words_equal_rouge_score():
    tokenizers = pytest.importorskip("rouge_score.tokenizers", reason="rouge-score is a development dependency")
    theirs = tokenizers.DefaultTokenizer(use_stemmer=False)
    for text in [*noise(1000), *(hypothesis for hypothesis, _ in PAIRS)]:
        assert rouge_words(text) == theirs.tokenize(text), text


def assert_same_bleu(ours, theirs):
    assert ours.score == pytest.approx(theirs.score, abs=tolerance(16, 100))
    assert ours.precisions == pytest.approx(theirs.precisions, abs=tolerance(4, 100))
    assert ours.brevity_penalty == pytest.approx(theirs.bp, abs=tolerance(4))
    assert (ours.hypothesis_length, ours.reference_length) == (theirs.sys_len, theirs.ref_len)


@pytest.mark.parametrize("effective_order", [True, False])
@pytest.mark.parametrize("n_references", [1, 3])
def test_bleu_equals_sacrebleu(n_references, effective_order):
    """Sentence by sentence; then corpora of 1 to 50 of them."""
    metrics = pytest.importorskip("sacrebleu.metrics", reason="sacrebleu is a development dependency")
    bleu = metrics.BLEU(effective_order=effective_order)
    some = list(pairs(n_references=n_references, seed=n_references))
    for hypothesis, references in some:
        ours = sentence_bleu(hypothesis, references, effective_order)
        assert_same_bleu(ours, bleu.sentence_score(hypothesis, references))
    for size in (1, 2, 3, 10, 50, 200):
        hypotheses, references = zip(*some[-size:], strict=True)
        theirs = bleu.corpus_score(hypotheses, list(zip(*references, strict=True)))
        assert_same_bleu(corpus_bleu(hypotheses, references, effective_order), theirs)


def test_bleu_with_unequal_numbers_of_references_equals_sacrebleu():
    metrics = pytest.importorskip("sacrebleu.metrics", reason="sacrebleu is a development dependency")
    hypotheses, references = ["the cat sat on the mat", "a dog"], [["the cat sat on a mat"], ["a dog ran", "one dog"]]
    theirs = metrics.BLEU().corpus_score(hypotheses, [["the cat sat on a mat", "a dog ran"], [None, "one dog"]])
    assert_same_bleu(corpus_bleu(hypotheses, references), theirs)


def test_bleu_by_hand():
    """One common word in a row only: 3 of 5, then half a match of 4, a quarter of 3, an eighth of 2."""
    smoothed = sentence_bleu("a b c d e", ["a x b y c"])
    assert smoothed.precisions == pytest.approx((60, 100 / 8, 100 / 12, 100 / 16))
    assert smoothed.score == pytest.approx(100 * (3 / 5 / 8 / 12 / 16) ** 0.25)
    assert sentence_bleu("a b c d", ["a b c d e f g h"]).score == pytest.approx(100 * math.exp(-1))  # 4 words for 8
    assert sentence_bleu("a b c d e f g h", ["a b c d"]).brevity_penalty == 1
    # lengths 3 and 5 are as near to 4: the shorter counts
    assert sentence_bleu("a b c d", ["a b c d e", "a b c"]).reference_length == 3
    assert sentence_bleu("one word or two", ["nothing in common"]).score == 0
    for text in ("word", "a b c d e", "3.5!"):
        assert sentence_bleu(text, [text]).score == 100
    for hypothesis, reference in (("", ""), ("", "a b"), ("a b", "")):
        assert sentence_bleu(hypothesis, [reference]).score == corpus_bleu([hypothesis], [[reference]]).score == 0


@pytest.mark.parametrize(
    ("hypotheses", "references", "words"),
    [
        ([], [], "no hypotheses"),
        (["a"], [], "1 hypotheses but references for 0"),
        (["a"], [[]], "no reference"),
        ("a", [["a"]], "must be a list of texts"),
        (["a"], ["a"], "must be a list of texts"),
        (["a"], "a", "must be a list of texts"),
    ],
)
def test_invalid_corpora_are_refused(hypotheses, references, words):
    with pytest.raises(ValueError, match=words):
        corpus_bleu(hypotheses, references)


def test_rouge_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is a development dependency")
    theirs = scorer.RougeScorer(["rouge1", "rouge2", "rouge3", "rougeL"], use_stemmer=False)
    for hypothesis, (reference,) in PAIRS:
        expected = theirs.score(reference, hypothesis)
        for n in (1, 2, 3):
            assert rouge_n(hypothesis, reference, n) == pytest.approx(tuple(expected[f"rouge{n}"]), abs=tolerance(8))
        assert rouge_l(hypothesis, reference) == pytest.approx(tuple(expected["rougeL"]), abs=tolerance(8))


def test_rouge_of_texts_without_words_is_0():
    for hypothesis, reference in (("", ""), ("", "a b"), ("a b", ""), ("!?", "日本")):
        assert rouge_n(hypothesis, reference, 1) == rouge_l(hypothesis, reference) == (0, 0, 0)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        rouge_n("a", "a", 0)


def test_longest_common_subsequence_equals_brute_force():
    draw = random.Random(0)
    for _ in range(100):
        first, second = ("".join(draw.choices("abc", k=draw.randint(0, 8))) for _ in range(2))
        kept = ("".join(c for i, c in enumerate(first) if bits >> i & 1) for bits in range(1 << len(first)))

        def stands_in(part, second=second):
            rest = iter(second)
            return all(c in rest for c in part)

        assert longest_common_subsequence(first, second) == max(len(part) for part in kept if stands_in(part))


# --- continuations ----------------------------------------------------------------------------------------------------

EOT = 0


def tiny(backbone="gpt", implementation="fused", vocab_size=31):
    config = GPTConfig(
        vocab_size=vocab_size, context_length=8, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.4,
        backbone=backbone, implementation=implementation,
    )  # fmt: skip
    return create_model(config)


def test_split_prompts_cuts_windows_in_half():
    tokens = np.arange(100, dtype=np.uint16)
    prompts, rest = split_prompts(tokens, 8, 4)  # 12 windows of 8 tokens, every third
    assert prompts.tolist() == [[start, start + 1, start + 2, start + 3] for start in (0, 24, 48, 72)]
    assert rest == [[start + 4, start + 5, start + 6, start + 7] for start in (0, 24, 48, 72)]
    assert len(split_prompts(tokens, 8, 1000)[1]) == 12
    prompts, rest = split_prompts(tokens[:5], 8, 4)  # a text shorter than a window
    assert (prompts.tolist(), rest) == ([[0, 1]], [[2, 3, 4]])
    prompts, rest = split_prompts(tokens[:2], 8, 4)
    assert (prompts.tolist(), rest) == ([[0]], [[1]])
    assert split_prompts(np.arange(5000), 1024, 1)[0].shape == (1, 128)  # a long context costs no more


def test_split_prompts_keeps_to_documents():
    """Documents of 6, 0, 2, 5 and 9 tokens, each behind an end-of-text token: 7, 1, 3, 6, 10; their median is 6."""
    tokens = np.array([EOT, 1, 2, 3, 4, 5, 6, EOT, EOT, 7, 8, EOT, 11, 12, 13, 14, 15, EOT, *range(21, 30), EOT])
    prompts, rest = split_prompts(tokens, 8, 9, EOT)
    assert prompts.tolist() == [[EOT, 1, 2], [EOT, 11, 12], [EOT, 21, 22]]
    assert rest == [[3, 4, 5], [13, 14, 15], [23, 24, 25]]
    prompts, rest = split_prompts(tokens, 4, 9, EOT)  # the context is shorter
    assert prompts.tolist() == [[EOT, 1], [EOT, 7], [EOT, 11], [EOT, 21]]
    assert rest == [[2, 3], [8], [12, 13], [22, 23]]
    prompts, rest = split_prompts(np.array([EOT, EOT, EOT]), 8, 9, EOT)  # nothing to continue
    assert (prompts.shape[0], rest) == (0, [])


LETTERS = CharTokenizer("abcdefghij klmnopqrstuvwxyz.!?")


@pytest.mark.parametrize("backbone", ["gpt", "lstm", "int8"])
def test_continuations_are_greedy(backbone):
    model = tiny(backbone.replace("int8", "gpt"), vocab_size=LETTERS.vocab_size).eval()
    if backbone == "int8":
        if obstacle := int8_obstacle():
            pytest.skip(obstacle)
        model = QuantizedGPTModel(model, "int8")
    tokens = np.array(LETTERS.encode("the cat sat on the mat. a dog ran after the cat!"))
    result = continue_prompts(model, tokens, LETTERS, 8, 3)
    prompts, _ = split_prompts(tokens, 8, 3)
    written = generate_text_simple(model, prompts, 4, 8)[:, 4:]
    assert result.references == ["cat ", "he m", "an a"][:1] + result.references[1:]
    assert all(len(text) == 4 for text in (*result.hypotheses, *result.references))
    if backbone != "int8":  # whose rows move a little with what stands beside them
        assert result.hypotheses == [LETTERS.decode(row) for row in written.tolist()]
    assert (result.prompt_tokens, result.max_new_tokens) == (4, 4)


def test_bleu_and_rouge_of_known_continuations(monkeypatch):
    """And one that has half of it: two of four words, the others wrong."""
    text = "the cat sat here. a dog ran far. " * 2
    tokens = np.array(LETTERS.encode(text))
    model = tiny(vocab_size=LETTERS.vocab_size)
    _, rest = split_prompts(tokens, 66, 1)
    known = [torch.tensor([0] * 33 + ids) for ids in rest]
    monkeypatch.setattr(samples, "generate", lambda *arguments, **options: known)
    result = continue_prompts(model, tokens, LETTERS, 66, 1)
    assert result.hypotheses == result.references == ["the cat sat here. a dog ran far. "]
    assert result.bleu.score == 100
    assert set(result.rouge.values()) == {(1, 1, 1)}
    wrong = torch.tensor(LETTERS.encode("the cat zzz zzzz. z zzz ran zzz. "))
    monkeypatch.setattr(samples, "generate", lambda *arguments, **options: [torch.cat([known[0][:33], wrong])])
    result = continue_prompts(model, tokens, LETTERS, 66, 1)
    assert result.rouge["ROUGE-1"].f1 == result.rouge["ROUGE-L"].recall == 3 / 8
    assert result.rouge["ROUGE-2"].precision == 1 / 7
    said = describe_continuations(result).splitlines()
    assert said[0].split() == ["1", "greedy", "continuation", "precision", "recall", "F1"]
    assert said[1].split() == ["ROUGE-1", "37.5%", "37.5%", "37.5%"]
    assert said[4].split()[-1] == f"{result.bleu.score:.2f}"
    assert "Each prompt has 33 tokens of the text, each continuation up to 33." in said[-2]
    assert said[-1].startswith("BLEU's precisions of 1 to 4 words: 50.0 / ")


def test_continuation_ends_at_the_end_of_text_token():
    """A model that always writes the end-of-text token says nothing."""
    tokenizer = CharTokenizer("abc ", end_of_text=True)
    eot_id = tokenizer.eot_id
    model = tiny(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.final_norm.scale.zero_()
        model.final_norm.shift.fill_(1.0)
        model.out_head.weight.zero_()
        model.out_head.weight[eot_id] = 1.0
    tokens = np.array([eot_id, *tokenizer.encode("abc abc"), eot_id, *tokenizer.encode("cab cab"), eot_id])
    result = continue_prompts(model, tokens, tokenizer, 8, 5, eot_id)
    assert result.hypotheses == ["", ""]
    assert result.references == [" abc", " cab"]
    assert result.bleu.score == 0
    assert continue_prompts(model, np.array([eot_id, eot_id]), tokenizer, 8, 5, eot_id) is None


def test_limits_of_each_metric_are_described():
    lines = describe_limits(["accuracy", "BLEU"]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["accuracy", "BLEU"]
    assert all(len(line) <= 120 for line in lines)
