"""Checks of 06_loss.ipynb."""

import math

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch.nn import functional as F


@exercise("06.1")
def four_tokens(answer):
    """Perplexity of the probabilities 1/2, 1/8, 1/4, 1/4."""
    p = [1 / 2, 1 / 8, 1 / 4, 1 / 4]
    surprise = [-math.log(x) for x in p]
    number(
        answer,
        math.exp(sum(surprise) / 4),
        mistakes=[
            (sum(1 / x for x in p) / 4, "That is the arithmetic mean of 1/p. Average the logarithms instead."),
            (4 / sum(p), "That is 1 over the mean probability. Average the logarithms instead."),
            (sum(surprise) / 4, "That is the loss in nats. How do you turn it into a perplexity?"),
            (sum(surprise) / 4 / math.log(2), "That is the loss in bits. How do you turn it into a perplexity?"),
            (
                math.exp(sum(surprise)),
                "That is 1/p of the whole text: divide by the number of tokens before you exponentiate.",
            ),
            (
                math.exp(-sum(surprise) / 4),
                "That is the reciprocal. What is missing in the exponent?",
            ),
            (
                math.exp(sum(surprise) / 4 / math.log(2)),
                "That is e to the power of a loss in bits: the base and the unit must match.",
            ),
        ],
        hint="Take the surprise of each token, then their mean, then the exponential.",
    )


def _cases():
    draw = torch.Generator().manual_seed(6)
    yield torch.randn(5, 7, generator=draw), torch.tensor([0, 6, 3, 3, 1]), ""
    yield torch.randn(1, 4, generator=draw), torch.tensor([2]), "That is for a single row."
    yield torch.randn(3, 2, generator=draw) * 5, torch.tensor([1, 0, 1]), "That is for a vocabulary of two."


@exercise("06.2")
def cross_entropy(answer):
    """Mean of -ln softmax at the targets; large logits too."""
    used = set(getattr(getattr(answer, "__code__", None), "co_names", ()))
    if used & {"log_softmax", "logsumexp", "nll_loss", "CrossEntropyLoss", "cross_entropy"}:
        raise Wrong("This exercise is about doing it by hand: leave out log_softmax, logsumexp and PyTorch's losses.")
    for logits, targets, where in _cases():
        each = F.cross_entropy(logits, targets, reduction="none")
        n, v = logits.shape
        given = called(answer, logits, targets)
        chosen = logits.gather(-1, targets[:, None])[:, 0]
        mistakes = [
            (each, f"It returns the losses of the {n} rows; return one number, their mean."),
            (each.sum(), "That is the sum over the rows; return the mean."),
            (each.sum() / (n * v), "You average over all logits; average over the rows."),
            (-each.mean(), "The sign is the wrong way round: a loss is never below 0."),
            (each.mean() / math.log(2), "That is in bits: use the natural logarithm, not base 2."),
            (each.mean() / math.log(10), "That is a logarithm to base 10; use the natural one."),
            (-chosen.mean(), "You use only the logits of the targets. Where is the sum over the whole row?"),
            ((-each).exp().mean(), "That is the mean probability of the targets: the logarithm is missing."),
            (1 - (-each).exp().mean(), "1 - p is not the surprise: the logarithm is missing."),
            (each.mean().exp(), "That is the perplexity: leave the exponential out."),
            (-(-each).exp().mean().log(), "You take the mean before the logarithm. Which comes first?"),
            (F.cross_entropy(logits.softmax(-1), targets), "You take the softmax twice."),
            (
                -torch.softmax(logits, 0).gather(-1, targets[:, None]).log().mean(),
                "The softmax runs over the rows; it should run over the vocabulary, the last dimension.",
            ),
        ]
        tensor(given, each.mean(), mistakes, hint=where)
    far = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 1000.0, 3.0]]), torch.tensor([1, 1])
    given = torch.as_tensor(called(answer, *far)).double()
    if not torch.isfinite(given).all():
        raise Wrong(
            "Right for small logits; for logits of 1,000 it overflows. What can you subtract from a whole row without "
            "changing its softmax?"
        )
    if not torch.isclose(given, torch.tensor(500.0).double()):
        raise Wrong(
            "Right for small logits, but not for logits of 1,000. Do you add a small number before the logarithm, or "
            "clamp the "
            "result?"
        )


@exercise("06.3")
def gradient(answer):
    """(softmax - onehot) / n, without the rows whose target is -100."""
    draw = torch.Generator().manual_seed(7)
    for targets in (torch.tensor([0, 4, 2]), torch.tensor([1]), torch.tensor([3, -100, 0, -100])):
        logits = torch.randn(len(targets), 5, generator=draw)
        leaf = logits.clone().requires_grad_()
        F.cross_entropy(leaf, targets).backward()
        right, counted = leaf.grad, targets != -100
        ignored = not counted.all()
        p, onehot = logits.softmax(-1), F.one_hot(targets.clamp(min=0), 5)
        rows = (p - onehot) * counted[:, None]
        mistakes = [
            (rows, "That is the gradient of the sum. The loss is a mean: what does that do to its gradient?"),
            (-right, "The sign is wrong: this is the direction of a step that lowers the loss."),
            (p / counted.sum(), "That is only the softmax. What about the logit of the target?"),
            (rows / rows.numel(), "You average over all logits. What is the loss a mean of?"),
        ]
        if ignored:
            mistakes += [
                (
                    (p - onehot) / len(targets),
                    "A row whose target is -100 must have no gradient, and the mean must not count it.",
                ),
                ((p - onehot) / counted.sum(), "A row whose target is -100 must have no gradient."),
                (
                    p * ~counted[:, None] / counted.sum() + right,
                    "A row whose target is -100 must have no gradient.",
                ),
                (
                    rows / len(targets),
                    "The rows with -100 have no gradient, which is right. But the mean still counts them.",
                ),
            ]
        given = called(answer, logits, targets)
        if isinstance(given, torch.Tensor) and given.shape != right.shape:
            raise Wrong(
                f"The gradient has the shape of the logits, {tuple(right.shape)}; yours has {tuple(given.shape)}."
            )
        tensor(given, right, mistakes, hint="Here some targets are -100." if ignored else "")


@exercise("06.4")
def three_batches(answer):
    """Perplexity over batches of 400, 400 and 200 tokens with losses 3.0, 3.2, 4.4."""
    losses, counts = [3.0, 3.2, 4.4], [400, 400, 200]
    loss = sum(n * x for n, x in zip(counts, losses, strict=True)) / sum(counts)
    number(
        answer,
        math.exp(loss),
        mistakes=[
            (loss, "That is the loss. How do you turn it into a perplexity?"),
            (math.exp(sum(losses) / 3), "The short batch has the weight of a full one here."),
            (sum(losses) / 3, "That is a loss, and the short batch has the weight of a full one in it."),
            (
                sum(map(math.exp, losses)) / 3,
                "That is a mean of perplexities. What should you average?",
            ),
            (
                sum(n * math.exp(x) for n, x in zip(counts, losses, strict=True)) / 1000,
                "The weights are right, but you average perplexities. What should you average?",
            ),
            (2**loss, "That is 2 to the power of a loss in nats: the base and the unit must match."),
        ],
        hint="Average the losses over tokens, then take the exponential.",
    )


@exercise("06.5")
def which_is_wrong(answer):
    """Which line runs and is not the loss."""
    choice(
        answer,
        "c",
        {
            "a": "That is what this notebook does: it flattens all positions into N = B·T rows. It is the loss.",
            "b": "CrossEntropyLoss takes (B, V, T) with targets (B, T), and a transpose moves each number to the "
            "right position.",
            "d": "log_softmax, gather, mean, minus: these are the six steps.",
        },
    )
