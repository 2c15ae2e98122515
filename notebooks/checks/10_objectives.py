"""Checks of 10_objectives.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch import Tensor

SENTINELS = [900, 901, 902, 903, 904]
CASES = [
    ([1, 2, 3, 4, 5, 6], [(2, 3), (4, 6)], "two spans, the second at the end"),
    ([1, 2, 3, 4, 5, 6, 7], [(1, 3), (5, 6)], "two spans, with text behind the last"),
    ([1, 2, 3, 4], [(0, 2)], "one span at the beginning"),
    ([1, 2, 3, 4, 5], [(1, 3), (3, 4)], "two spans that touch"),
    ([1, 2, 3], [(0, 3)], "one span that is all of the text"),
    ([1, 2, 3], [], "no span at all"),
]


def _corrupted(tokens, spans, shift=0, same=False):
    """Input and target, token by token; the known mistakes by `shift` (of the ends) and `same` (sentinel)."""
    inputs, target = [], []
    for place, token in enumerate(tokens):
        within = [i for i, (start, end) in enumerate(spans) if start <= place < end + shift]
        begins = [i for i, (start, _) in enumerate(spans) if start == place]
        for i in begins:
            inputs.append(SENTINELS[0 if same else i])
            target.append(SENTINELS[0 if same else i])
        (target if within else inputs).append(token)
    return inputs, target


@exercise("10.1")
def corrupt(answer):
    """T5's spans: the input with sentinels, and sentinels with what they stand for, closed by the next one."""
    for tokens, spans, where in CASES:
        before = list(tokens), list(spans), list(SENTINELS)
        arguments = list(tokens), list(spans), list(SENTINELS)
        given = called(answer, *arguments)
        if isinstance(given, Tensor | str) or not hasattr(given, "__len__") or len(given) != 2:
            raise Wrong("Two lists are asked for, the input and the target: return them side by side.")
        if any(part is ... for part in given):
            raise Wrong("The dots are still there: put the two lists in their place.")
        if any(not isinstance(part, list | tuple) for part in given):
            raise Wrong(
                f"Two lists are asked for; yours are a {type(given[0]).__name__} and a {type(given[1]).__name__}."
            )
        if arguments != before:
            raise Wrong("Your function changes the lists that it is given. Build new ones.")
        inputs, target = (list(part) for part in given)
        right_inputs, right_target = _corrupted(tokens, spans)
        closed = [*right_target, SENTINELS[len(spans)]]
        if (inputs, target) == (right_inputs, closed):
            continue
        here = f"With {where}: "
        if (target, inputs) == (right_inputs, closed):
            raise Wrong(f"{here}input and target are the right ones, in the wrong order.")
        if inputs == right_inputs:
            if target == right_target:
                raise Wrong(f"{here}the target lacks the sentinel that closes it.")
            if target == [*right_target, SENTINELS[max(0, len(spans) - 1)]] or target == [*right_target, SENTINELS[-1]]:
                raise Wrong(f"{here}the target is closed by a sentinel, but not by the next unused one.")
            if [t for t in target if t < 900] == [t for t in right_target if t < 900]:
                raise Wrong(
                    f"{here}the target has the right tokens, but the sentinels are not where they should be. Each stands before its span."
                )
            if [t for t in target if t < 900] == [t for t in _corrupted(tokens, spans, shift=1)[1] if t < 900]:
                raise Wrong(f"{here}in the target the spans are one token too long. Does the end belong to a span?")
            raise Wrong(f"{here}the input is right, the target is not: {target}.")
        lost = [t for t in tokens if t not in inputs and t not in target]
        if inputs == right_inputs[: len(inputs)] and lost:
            raise Wrong(f"{here}what stands behind the last span is missing from the input.")
        if inputs == _corrupted(tokens, spans, same=True)[0]:
            raise Wrong(f"{here}all spans have the same sentinel, so that nobody could tell them apart.")
        if inputs == _corrupted(tokens, spans, shift=1)[0] or (lost and not spans == []):
            raise Wrong(
                f"{here}tokens are lost, or the spans are too long: {lost or inputs}. Does the end belong to a span?"
            )
        if not any(t in SENTINELS for t in inputs) and spans:
            raise Wrong(f"{here}there is no sentinel in the input.")
        if len(inputs) > len(right_inputs):
            raise Wrong(
                f"{here}the input is too long, {inputs}. However many tokens a span has, one sentinel stands for it, and none of its tokens stays."
            )
        raise Wrong(
            f"{here}the input is not right: {inputs}. (If it is shifted: cutting one span moves the places of the others.)"
        )


@exercise("10.2")
def too_good(answer):
    """Why a masked loss is low and the filling bad."""
    choice(
        answer,
        "b",
        {
            "a": "With the causal mask the model sees less. Would that make its loss lower, or the share that it finds higher?",
            "c": "Then the model always knows which places are asked for, which is no worse for filling them in. What else could 87% be?",
            "d": "That makes the loss look smaller. But which tokens are counted, and which is the first guess? The 87% do not depend on a divisor.",
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
                "You share out among the four other classes. As defined above, all classes get a part, the label among them.",
            ),
            (entropy(0.8, 0.04), "These five do not sum to 1: part of what is shared out comes back to the label."),
            (entropy(0.84, 0.04, 1), "Only one of the other classes is in it; there are four."),
            (
                -math.log(0.84),
                "That is the surprise at the label alone. The other classes have a share in the target too.",
            ),
            (
                -math.log(0.8),
                "That is the surprise at the label alone. The other classes have a share in the target too.",
            ),
            (
                -0.84 * math.log(0.84),
                "Only the label's term is in it. The other classes have a share in the target too.",
            ),
            (
                0.0,
                "Without smoothing it would be. A softmax that gives 1 to the label pays infinitely much for the others.",
            ),
            (math.log(5), "That is the loss of a blind guess."),
            (
                0.2 * math.log(5),
                "Logits that give all to the label would pay infinitely much for the others. Which softmax is best?",
            ),
            (math.exp(right), "That is e to the power of what is asked."),
            (entropy(0.92, 0.02), "That is for a smoothing of 0.1, as in the notebook's picture."),
        ],
        hint="Write down the five probabilities of the target, see that they sum to 1, and ask which cross-entropy is the lowest.",
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
            (-right, "The sign is the wrong way round: this is where a step that lowers the loss would go."),
            (
                temperature**2 * difference,
                "Nearly: the logits are divided by T before the softmax. What does the chain rule make of that?",
            ),
            (difference, "The factor is missing: T² from the loss, and something from the division by T."),
            (difference / temperature, "That is the gradient without the T² of the loss."),
            (temperature * plain, "The factor is right; the softmaxes are not taken at the temperature T."),
            (plain, "Neither the softmaxes nor the factor know of T."),
            (right / shape[0], "That is the gradient of the mean over rows; the sum is asked for."),
            (
                temperature * ((student * temperature).softmax(-1) - (teacher * temperature).softmax(-1)),
                "The logits are multiplied by T; they should be divided.",
            ),
            (
                temperature * ((student / temperature).softmax(0) - (teacher / temperature).softmax(0)),
                "The softmax runs over the rows; it should run over the vocabulary.",
            ),
            (
                temperature * (student - teacher) / temperature,
                "That is the difference of the logits; where are the softmaxes?",
            ),
            (temperature * q, "Only the student's part is in it: what does it aim at?"),
        ]
        hint = f"That is for T = {temperature:g}."
        if spread > 100:
            hint = "That is for logits of several hundred, where exp overflows."
        tensor(given, right, mistakes, hint=hint)


@exercise("10.5")
def rouge(answer):
    """F1 of the pairs shared by two short texts."""
    number(
        answer,
        6 / 11,
        mistakes=[
            (
                3 / 5,
                "That is the precision: the share of the pairs that were written. What of the recall, and what joins both?",
            ),
            (
                3 / 6,
                "That is the recall: the share of the reference's pairs. What of the precision, and what joins both?",
            ),
            ((3 / 5 + 3 / 6) / 2, "That is the mean of precision and recall. F1 is their harmonic mean."),
            (10 / 13, "That is ROUGE-1, of single words."),
            (5 / 7, "That is about single words; ROUGE-2 counts pairs of neighbours."),
            (5 / 6, "That is about single words; ROUGE-2 counts pairs of neighbours."),
            (
                3 / 8,
                "That is shared pairs over all different pairs. F1 has twice the shared ones over the sum of both numbers.",
            ),
            (3 / 11, "Twice the shared ones belong above the line: a shared pair is one of each text."),
            (3 / 10, "That is precision times recall."),
            (6 / 13, "You count as many pairs as words; a text of n words has one less."),
            (4 / 11, "One shared pair is overlooked."),
            (math.sqrt(0.3), "That is the geometric mean of precision and recall; F1 is the harmonic one."),
        ],
        hint="Write down the pairs of neighbours of both texts, and count those that stand in both.",
    )
