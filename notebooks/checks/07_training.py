"""Checks of 07_training.ipynb."""

import functools
import math

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch import nn
from torch.nn import functional as F


@exercise("07.1")
def which_bug(answer):
    """Which bug goes down as usual, then drops through the floor, in training and validation alike."""
    choice(
        answer,
        "mask",
        {
            "targets": "Near. That one ends far below the floor too; but compare the first 160 steps with its picture.",
            "softmax": "With that bug a loss is level, one nat below ln V at the least. Here it falls nearly to 0.",
            "eval": "That makes the held-out loss too high, and it is never far too low. Look at where the curves end.",
            "zero_grad": "With that bug the loss swings and rises. Here it falls to the end: how far may it fall?",
        },
    )


class _Model(nn.Module):
    """Embeds a token and names the next one: enough to be trained."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(5, 5, generator=draw))

    def forward(self, inputs, targets):
        return F.cross_entropy(self.table[inputs].flatten(0, 1), targets.flatten())


def _after(steps, recipe):
    """The table after some steps of a recipe on given batches, and what each step returns."""
    model = _Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.table.grad = torch.full((5, 5), 0.7)  # left behind by someone else
    draw, losses = torch.Generator().manual_seed(4), []
    for _ in range(steps):
        inputs, targets = torch.randint(0, 5, (2, 2, 6), generator=draw)
        losses.append(recipe(model, optimizer, inputs, targets))
    return model.table.detach(), losses


def _recipe(order):
    def step(model, optimizer, inputs, targets):
        loss = model(inputs, targets)
        for name in order:
            {"zero": optimizer.zero_grad, "backward": loss.backward, "step": optimizer.step}[name]()
        return loss.item()

    return step


@exercise("07.2")
def one_step(answer):
    """loss, zero_grad, backward, step; the loss as a float."""
    right, losses = _after(3, _recipe(["zero", "backward", "step"]))
    given, its_losses = _after(3, functools.partial(called, answer))
    mistakes = {
        (): "The weights stay as they are: nothing goes backward, and nothing is moved.",
        ("backward",): "The gradients are there, but the weights stay as they are. Who moves them?",
        ("zero", "backward"): "The gradients are there, but the weights stay as they are. Who moves them?",
        (
            "backward",
            "step",
        ): "The gradients of the batches before are still in the sum, and those that the model came with.",
        (
            "backward",
            "step",
            "zero",
        ): "The first step still has the gradients that the model came with. When are they forgotten?",
        ("backward", "zero", "step"): "The gradients are forgotten before they are used: the weights stay as they are.",
        ("step",): "The step follows gradients that nobody has computed for this batch.",
        ("zero", "step"): "The step follows gradients that nobody has computed for this batch.",
        ("step", "backward"): "The step comes before the gradients of this batch are known.",
        ("zero", "step", "backward"): "The step comes before the gradients of this batch are known.",
        ("step", "zero", "backward"): "The step comes before the gradients of this batch are known.",
    }
    if not torch.allclose(given, right, atol=1e-6):
        for order, hint in mistakes.items():
            if torch.allclose(given, _after(3, _recipe(order))[0], atol=1e-6):
                raise Wrong(hint)
        if torch.allclose(given, _after(3, _uphill)[0], atol=1e-6):
            raise Wrong("The weights are moved uphill: mind the sign.")
        raise Wrong(
            "The weights end elsewhere than after loss, gradients and one step of the optimizer for each batch."
        )
    if isinstance(its_losses[0], torch.Tensor):
        raise Wrong(
            "The weights are right. But a tensor is returned, which holds on to its graph: return a plain float."
        )
    if not isinstance(its_losses[0], float):
        raise Wrong(
            f"The weights are right. The loss should be returned as a float, not as a {type(its_losses[0]).__name__}."
        )
    if not math.isclose(its_losses[1], losses[1], rel_tol=1e-4):
        raise Wrong("The weights are right. The loss that is returned is not that of the batch before the step.")


def _uphill(model, optimizer, inputs, targets):
    optimizer.zero_grad()
    (-model(inputs, targets)).backward()
    optimizer.step()


@exercise("07.3")
def schedule(answer):
    """10 steps up to 0.01, then a line to 0.001 at step 100, then level."""

    def lr(step, span=90, begin=10, low=0.001):
        if step < 10:
            return 0.01 * (step + 1) / 10
        return 0.01 + (low - 0.01) * min(1, (step - begin) / span)

    steps = [0, 4, 9, 10, 11, 55, 99, 100, 101, 1000]
    right = torch.tensor([lr(step) for step in steps])
    rates = torch.tensor([float(torch.as_tensor(called(answer, step))) for step in steps])

    def near(upto):
        return torch.allclose(rates[:upto], right[:upto], rtol=1e-4, atol=1e-9)

    if torch.isclose(rates[0], torch.tensor(0.0)):
        raise Wrong("At step 0 the rate is 0, so the first step does nothing. What is asked for at step 0?")
    if not near(3):
        slower = torch.allclose(rates[:3], right[:3] * 10 / 11, rtol=1e-3)
        raise Wrong(
            "The warm-up takes one step too many."
            if slower
            else "The warm-up is off: a straight line, from a tenth to all of it."
        )
    if torch.isclose(rates[5], right[5], rtol=1e-4) and not near(7):
        half_cosine = 0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi / 90))
        if math.isclose(float(rates[4]), half_cosine, rel_tol=1e-3):
            raise Wrong("That falls along half a cosine; here a straight line is asked for.")
    if math.isclose(float(rates[5]), lr(55, low=0.0), rel_tol=1e-3):
        raise Wrong("The decay goes to 0; it should end at 0.001.")
    if not near(4) or math.isclose(float(rates[5]), lr(55, span=100, begin=0), rel_tol=1e-3):
        raise Wrong(
            "Where the warm-up ends, the rate jumps: the decay begins at step 10, and takes the steps up to 100."
        )
    if not near(8):
        raise Wrong("The warm-up is right; the decay is not a straight line from 0.01 at step 10 to 0.001 at step 100.")
    if rates[8] < right[8] - 1e-7:
        raise Wrong("After step 100 the rate should stay, and yours falls on" + (", below 0." if rates[9] < 0 else "."))
    tensor(rates, right, hint="The steps looked at are 0, 4, 9, 10, 11, 55, 99, 100, 101 and 1000.")


@exercise("07.4")
def ratio(answer):
    """exp(190 (0.434 - 0.374))."""
    gap = 0.434 - 0.374
    number(
        answer,
        math.exp(190 * gap),
        mistakes=[
            (190 * gap, "That is the difference in nats for a whole tale. What is it as a ratio of probabilities?"),
            (gap, "That is the difference per token, in nats. A tale has 190 of them, and a ratio is asked for."),
            (math.exp(gap), "That is the ratio for one token. A tale has 190."),
            (190 * math.exp(gap), "Ratios of probabilities multiply along a text; you have added them up."),
            (math.exp(-190 * gap), "The other way round: in truth the tale is more probable, not less."),
            (2 ** (190 * gap), "A difference of nats is an exponent of e, not of 2."),
            (0.434 / 0.374, "A ratio of losses means little: it is their difference that is a ratio of probabilities."),
            (
                math.exp(190 * 0.434),
                "That is 1/p of a tale as the model has it. The tale's own surprise is to be taken off.",
            ),
        ],
        hint="A difference of losses is the logarithm of a ratio of probabilities, and a tale has many tokens.",
        tolerance=0.02,
    )
