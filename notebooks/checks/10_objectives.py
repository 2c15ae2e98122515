"""Checks of 10_objectives.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch import Tensor

SENTINELS = [900, 901, 902, 903, 904]
CASES = [
    ([1, 2, 3, 4, 5, 6], [(2, 3), (4, 6)], "two spans, the second at the end"),
    ([1, 2, 3, 4, 5, 6, 7], [(1, 3), (5, 6)], "two spans, with text after the last"),
    ([1, 2, 3, 4], [(0, 2)], "one span at the beginning"),
    ([1, 2, 3, 4, 5], [(1, 3), (3, 4)], "two spans that touch"),
    ([1, 2, 3], [(0, 3)], "one span that covers the whole text"),
    ([1, 2, 3], [], "no span"),
]


def _corrupted(tokens, spans, shift=0, same=False):
    """Return input and target; `shift` (of the ends) and `same` (sentinel) make known mistakes."""
    inputs, target = [], []
    for position, token in enumerate(tokens):
        within = [i for i, (start, end) in enumerate(spans) if start <= position < end + shift]
        begins = [i for i, (start, _) in enumerate(spans) if start == position]
        for i in begins:
            inputs.append(SENTINELS[0 if same else i])
            target.append(SENTINELS[0 if same else i])
        (target if within else inputs).append(token)
    return inputs, target


@exercise("10.1")
def corrupt(answer):
    """T5's spans: the input with sentinels, and each sentinel followed by its span, closed by the next one."""
    for tokens, spans, where in CASES:
        before = list(tokens), list(spans), list(SENTINELS)
        arguments = list(tokens), list(spans), list(SENTINELS)
        given = called(answer, *arguments)
        if isinstance(given, Tensor | str) or not hasattr(given, "__len__") or len(given) != 2:
            raise Wrong("Return two lists, the input and the target.")
        if any(part is ... for part in given):
            raise Wrong("The dots are still there: replace them with the two lists.")
        if any(not isinstance(part, list | tuple) for part in given):
            raise Wrong(f"Return two lists; yours are a {type(given[0]).__name__} and a {type(given[1]).__name__}.")
        if arguments != before:
            raise Wrong("Your function changes its arguments. Build new lists.")
        inputs, target = (list(part) for part in given)
        right_inputs, right_target = _corrupted(tokens, spans)
        closed = [*right_target, SENTINELS[len(spans)]]
        if (inputs, target) == (right_inputs, closed):
            continue
        here = f"With {where}: "
        if (target, inputs) == (right_inputs, closed):
            raise Wrong(f"{here}input and target are right but swapped.")
        if inputs == right_inputs:
            if target == right_target:
                raise Wrong(f"{here}the target lacks the sentinel that closes it.")
            if target == [*right_target, SENTINELS[max(0, len(spans) - 1)]] or target == [*right_target, SENTINELS[-1]]:
                raise Wrong(f"{here}the target ends with a sentinel, but not with the next unused one.")
            if [t for t in target if t < 900] == [t for t in right_target if t < 900]:
                raise Wrong(
                    f"{here}the target has the right tokens, but the sentinels are in the wrong place. Each goes "
                    "before its span."
                )
            if [t for t in target if t < 900] == [t for t in _corrupted(tokens, spans, shift=1)[1] if t < 900]:
                raise Wrong(f"{here}in the target the spans are one token too long. Does the end belong to a span?")
            raise Wrong(f"{here}the input is right, the target is not: {target}.")
        lost = [t for t in tokens if t not in inputs and t not in target]
        if inputs == right_inputs[: len(inputs)] and lost:
            raise Wrong(f"{here}the text after the last span is missing from the input.")
        if inputs == _corrupted(tokens, spans, same=True)[0]:
            raise Wrong(f"{here}all spans have the same sentinel, so they cannot be told apart.")
        if inputs == _corrupted(tokens, spans, shift=1)[0] or (lost and not spans == []):
            raise Wrong(
                f"{here}tokens are lost, or the spans are too long: {lost or inputs}. Does the end belong to a span?"
            )
        if not any(t in SENTINELS for t in inputs) and spans:
            raise Wrong(f"{here}there is no sentinel in the input.")
        if len(inputs) > len(right_inputs):
            raise Wrong(
                f"{here}the input is too long, {inputs}. One sentinel replaces a whole span, and none of its tokens "
                "stays."
            )
        raise Wrong(f"{here}the input is not right: {inputs}. (If it is shifted: cutting one span moves others.)")


@exercise("10.2")
def too_good(answer):
    """Why a masked loss is low and the predictions are bad."""
    choice(
        answer,
        "b",
        {
            "a": "With the causal mask the model sees less. Would that lower its loss, or raise the share of right "
            "guesses?",
            "c": "Then the model always knows which positions to predict, which does not hurt its predictions. "
            "What else could 87% be?",
            "d": "That makes the loss look smaller. But the 87% do not depend on a divisor. Which tokens are counted?",
        },
    )


@exercise("10.3")
def floor(answer):
    """The entropy of a smoothed target of five classes."""

    def entropy(label, other, n=4):
        return -label * math.log(label) - n * other * math.log(other)

    right = entropy(0.84, 0.04)
    number(
        answer,
        right,
        mistakes=[
            (
                entropy(0.8, 0.05),
                "You distribute ε over the four other classes. Read the definition again: which classes get a part?",
            ),
            (entropy(0.8, 0.04), "These five do not sum to 1. Which classes get a part of ε?"),
            (entropy(0.84, 0.04, 1), "You count only one of the other classes; there are four."),
            (
                -math.log(0.84),
                "That is the surprise of the label alone. The other classes are part of the target too.",
            ),
            (
                -math.log(0.8),
                "That is the surprise of the label alone. The other classes are part of the target too.",
            ),
            (
                -0.84 * math.log(0.84),
                "That is only the label's term. The other classes are part of the target too.",
            ),
            (
                0.0,
                "That is right without smoothing. Here, a softmax that gives 1 to the label pays infinitely much for "
                "the others.",
            ),
            (math.log(5), "That is the loss of a blind guess."),
            (
                0.2 * math.log(5),
                "Logits that give everything to the label would pay infinitely much for the others. Which softmax is "
                "best?",
            ),
            (math.exp(right), "That is a perplexity; the answer should be in nats."),
            (entropy(0.92, 0.02), "That is for a smoothing of 0.1, as in the notebook's picture."),
        ],
        hint="Write down the five probabilities of the target and check that they sum to 1. Which q gives the lowest "
        "cross-entropy?",
    )


@exercise("10.4")
def distillation_gradient(answer):
    """T (softmax(student / T) - softmax(teacher / T)), by autograd in the check."""
    draw = torch.Generator().manual_seed(10)
    for shape, temperature, spread in (
        ((3, 5), 2.0, 1.0),
        ((1, 4), 1.0, 2.0),
        ((2, 7), 8.0, 3.0),
        ((2, 3), 0.5, 1.0),
        ((1, 3), 1.0, 400.0),
    ):
        student, teacher = (torch.randn(shape, generator=draw) * spread for _ in range(2))
        leaf = student.clone().requires_grad_()
        log_p, log_q = (x.div(temperature).log_softmax(-1) for x in (teacher, leaf))
        (temperature**2 * (log_p.exp() * (log_p - log_q)).sum()).backward()
        right = leaf.grad
        given = called(answer, student, teacher, temperature)
        if isinstance(given, Tensor) and given.dim() == 0:
            raise Wrong("Yours is one number, as a loss is. The gradient has a number for each logit of the student.")
        p, q = ((x / temperature).softmax(-1) for x in (teacher, student))
        difference, plain = q - p, student.softmax(-1) - teacher.softmax(-1)
        mistakes = [
            (-right, "The sign is wrong: this is the direction of a step that lowers the loss."),
            (
                temperature**2 * difference,
                "Almost: the logits are divided by T before the softmax. What does the chain rule say about that?",
            ),
            (difference, "The factor is missing: T² from the loss, and something from the division by T."),
            (difference / temperature, "That is the gradient without the T² of the loss."),
            (temperature * plain, "The factor is right, but the softmaxes need the temperature T."),
            (plain, "T is missing from both the softmaxes and the factor."),
            (right / shape[0], "That is the gradient of the mean over rows; use the sum."),
            (
                temperature * ((student * temperature).softmax(-1) - (teacher * temperature).softmax(-1)),
                "You multiply the logits by T; divide them.",
            ),
            (
                temperature * ((student / temperature).softmax(0) - (teacher / temperature).softmax(0)),
                "You take the softmax over the rows; take it over the vocabulary.",
            ),
            (
                temperature * (student - teacher) / temperature,
                "That is the difference of the logits; where are the softmaxes?",
            ),
            (temperature * q, "That is only the student's part. What is its target?"),
        ]
        hint = f"That is for T = {temperature:g}."
        if spread > 100:
            hint = "That is for logits of several hundred, where exp overflows."
        tensor(given, right, mistakes, hint=hint)


@exercise("10.5")
def rouge(answer):
    """F1 of the pairs that two short texts share."""
    number(
        answer,
        6 / 11,
        mistakes=[
            (
                3 / 5,
                "That is the precision. What is the recall, and how does F1 combine them?",
            ),
            (
                3 / 6,
                "That is the recall. What is the precision, and how does F1 combine them?",
            ),
            ((3 / 5 + 3 / 6) / 2, "That is the arithmetic mean of precision and recall. F1 is another mean."),
            (10 / 13, "That is ROUGE-1, which counts single words."),
            (5 / 7, "That counts single words; ROUGE-2 counts pairs of neighbours."),
            (5 / 6, "That counts single words; ROUGE-2 counts pairs of neighbours."),
            (
                3 / 8,
                "That is shared pairs over all distinct pairs. How does F1 combine precision and recall?",
            ),
            (3 / 11, "A shared pair belongs to both texts. How often does it count?"),
            (3 / 10, "That is precision times recall."),
            (6 / 13, "You count as many pairs as words. How many pairs does a text of n words have?"),
            (4 / 11, "You missed one shared pair."),
            (math.sqrt(0.3), "That is the geometric mean of precision and recall. F1 is another mean."),
        ],
        hint="Write down the pairs of neighbours of both texts, and count the shared ones.",
    )
