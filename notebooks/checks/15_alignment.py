"""Checks of 15_alignment.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, tensor
from torch.nn import functional as F

from gpt.text import tales
from gpt.text.grammar import Grammar
from gpt.text.notation import words

CONVERSATION = [  # (token, role)
    ("<|user|>", "template"), ("How", "user"), (" many", "user"), ("?", "user"), ("<|end|>", "template"),
    ("<|assistant|>", "template"), ("Eight", "assistant"), (".", "assistant"), ("<|end|>", "template"),
    ("<|user|>", "template"), ("And", "user"), (" ants", "user"), ("?", "user"), ("<|end|>", "template"),
    ("<|assistant|>", "template"), ("Six", "assistant"), (".", "assistant"), ("<|end|>", "template"),
]  # fmt: skip


@exercise("15.1")
def mask(answer):
    """The assistant's tokens, and the <|end|> after them."""
    for length in (len(CONVERSATION), 13):  # the second ends in a question
        tokens, roles = (list(part) for part in zip(*CONVERSATION[:length], strict=True))
        said = [role == "assistant" for role in roles]
        ends = [i > 0 and tokens[i] == "<|end|>" and said[i - 1] for i in range(length)]
        right = [a or b for a, b in zip(said, ends, strict=True)]
        starts = [token == "<|assistant|>" for token in tokens]
        last = max(i for i, token in enumerate(tokens) if token == "<|assistant|>")
        mistakes = [
            (said, "The model would never learn to stop: who says that an answer is over?"),
            (
                [a or token == "<|end|>" for a, token in zip(said, tokens, strict=True)],
                "The <|end|> after a question is not for the model to write.",
            ),
            (
                [a or b for a, b in zip(right, starts, strict=True)],
                "The program writes <|assistant|>, not the model.",
            ),
            ([role != "user" for role in roles], "Not all of the template's tokens are for the model to write."),
            ([role != "template" for role in roles], "The user's words are read, not learned."),
            ([True] * length, "The user's words are read, not learned."),
            ([not r for r in right], "It is the other way round."),
            ([*right[1:], False], "The mask is one place too early: it says which tokens are targets, not inputs."),
            ([False, *right[:-1]], "The mask is one place too late."),
            (
                [r and i > last for i, r in enumerate(right)],
                "Only the last answer counts in yours. Is there anything to learn from the first?",
            ),
        ]
        given = called(answer, list(tokens), list(roles))
        if isinstance(given, tuple):
            given = list(given)
        if hasattr(given, "tolist"):  # a tensor or an array
            given = given.tolist()
        if not isinstance(given, list) or len(given) != length:
            raise Wrong(f"Return a list of {length} values here, one for each token.")
        tensor(given, torch.tensor(right), [(torch.tensor(wrong), hint) for wrong, hint in mistakes])


@exercise("15.2")
def dpo_loss(answer):
    """-ln sigmoid(beta ((c - c0) - (r - r0))), the mean."""
    draw = torch.Generator().manual_seed(152)
    for n, beta in ((4, 0.1), (3, 0.5), (1, 1.0)):
        c, r, c0, r0 = -20 + 6 * torch.randn(4, n, generator=draw, dtype=torch.float64)
        margin = beta * ((c - c0) - (r - r0))
        right = -F.logsigmoid(margin)
        mistakes = [
            (-F.logsigmoid(-margin), "The sign of the margin is wrong: you reward the rejected answer."),
            (-F.logsigmoid(beta * (c - r)), "The model of the start is missing: only the change counts."),
            (-F.logsigmoid(beta * (c + c0 - r - r0)), "Subtract the log-probabilities of the start; you add them."),
            (-F.logsigmoid(margin / beta), "Where is beta?"),
            (-F.logsigmoid(margin / beta**2), "You divide by beta; it is a factor."),
            (-beta * F.logsigmoid(margin / beta), "beta belongs inside the sigmoid."),
            (F.logsigmoid(margin), "The sign of the loss is wrong: it would rise as the model improves."),
            (-margin, "A margin without the logarithm of a sigmoid has no end: the pull must get weaker."),
            (-margin.sigmoid(), "The logarithm is missing."),
            (1 - margin.sigmoid(), "The logarithm is missing."),
            (-F.logsigmoid(beta * (c - c0)), "The rejected answer is missing."),
            (-F.logsigmoid(beta * (c.exp() / c0.exp() - r.exp() / r0.exp())), "They are logarithms already."),
        ]
        given = called(answer, c, r, c0, r0, beta)
        if n > 1 and isinstance(given, torch.Tensor) and given.shape == right.shape:
            raise Wrong("That is one number for each pair. Return their mean.")
        if (
            n > 1
            and isinstance(given, torch.Tensor)
            and not given.shape
            and torch.allclose(given.double(), right.sum())
        ):
            raise Wrong("You return the sum. Return the mean of the pairs.")
        tensor(given, right.mean(), [(wrong.mean(), hint) for wrong, hint in mistakes], hint="Compare it step by step.")
    big = torch.tensor([-2000.0], dtype=torch.float64)
    given = called(answer, big, torch.zeros(1).double(), torch.zeros(1).double(), torch.zeros(1).double(), 1.0)
    if not math.isclose(float(given), 2000, rel_tol=1e-3):
        raise Wrong(
            "Right for small margins, wrong for large ones. PyTorch has the logarithm of a sigmoid as one function."
        )


@exercise("15.3")
def group_advantages(answer):
    """Rewards minus the mean of their row."""
    for rewards in ([[1.0, 0.0, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0]], [[3.0, 1.0, 2.0], [0.0, 0.0, 6.0], [1.0, 1.0, 1.0]]):
        r = torch.tensor(rewards)
        G = r.size(1)
        centred = r - r.mean(dim=1, keepdim=True)
        mistakes = [
            (r, "Nothing is subtracted."),
            (
                r - r.mean(),
                "You subtract the mean of all questions: an easy question makes every answer to it look good.",
            ),
            (
                r - r.mean(dim=0, keepdim=True),
                "The mean runs over the questions; it should run over the answers to one question.",
            ),
            (centred / (r.std(dim=1, keepdim=True) + 1e-6), "Do not divide by the deviation."),
            (centred / (r.std(dim=1, keepdim=True, correction=0) + 1e-6), "Do not divide by the deviation."),
            (
                centred * G / (G - 1),
                "That leaves each answer out of its own mean. GRPO takes the mean of the whole group.",
            ),
            (-centred, "The sign is wrong: the better answer needs the higher value."),
            (r - r.amax(dim=1, keepdim=True), "You subtract the best reward: every answer would be blamed."),
            (centred.abs(), "An answer below the mean must be blamed: keep the sign."),
        ]
        tensor(called(answer, r), centred, mistakes, hint="From each reward subtract the mean of its row.")


CHILDREN = [*words(tales.GIRLS), *words(tales.BOYS)]


def hasty(text):
    """The reward of the notebook."""
    points = text.startswith(("Once", "Long ago")) + (" lost " in text) + text.endswith(".")
    return points + sum(child in text for child in CHILDREN)


@exercise("15.4")
def hack(answer):
    """A wrong text with eight points."""
    if not isinstance(answer, str):
        raise Wrong(f"The answer is a text; yours is a {type(answer).__name__}.")
    points = hasty(answer)
    if Grammar(tales.RULES, tales.TABLES, start="lost").log_probability(answer) > -math.inf:
        raise Wrong("That is a right sentence, and gets 4 points like all of them. What does the judge not look at?")
    if points >= 8:
        return
    if points < 3:
        raise Wrong(f"That gets {points} points. Read the four terms of the sum one by one.")
    raise Wrong(f"That gets {points} points. Which of the four terms can grow beyond 1?")


@exercise("15.5")
def what_now(answer):
    """The reward is at fault."""
    choice(
        answer,
        "c",
        {
            "a": "The reward measures something else by now. What rises?",
            "b": "Noise is not the trouble: the model does what it is paid for, ever better.",
            "d": "That changes the size of the steps. They would lead to the same place.",
        },
    )
