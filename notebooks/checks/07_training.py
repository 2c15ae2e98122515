"""Checks of 07_training.ipynb."""

import functools
import math

import torch
from exercises import Wrong, as_number, called, choice, exercise, number, tensor
from torch import nn
from torch.nn import functional as F


@exercise("07.1")
def which_bug(answer):
    """The bug whose loss falls as usual, then drops through the floor, in training and validation alike."""
    choice(
        answer,
        "mask",
        {
            "targets": "Close. That bug ends far below the floor too, but compare the first 160 steps with its "
            "picture.",
            "softmax": "With that bug the loss is flat, at least ln V minus one nat. Here it falls nearly to 0.",
            "eval": "That bug makes the held-out loss too high, never far too low. Look at the end of the curves.",
            "zero_grad": "With that bug the loss swings and rises. Here it falls to the end. How far may it fall?",
        },
    )


class _Model(nn.Module):
    """Logits of the next token by a table lookup: a minimal model to train. It notes what is called in a step."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(5, 5, generator=draw))
        self.table.grad = torch.full((5, 5), 0.7)  # left over from elsewhere
        self.calls = []
        self.table.register_post_accumulate_grad_hook(lambda table: self.calls.append("backward"))

    def forward(self, inputs, targets):
        return F.cross_entropy(self.table[inputs].flatten(0, 1), targets.flatten())

    def zero_grad(self, set_to_none=True):
        self.calls.append("zero")
        super().zero_grad(set_to_none)


class _SGD(torch.optim.SGD):
    """Plain gradient descent, which notes its calls with those of the model."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.5)
        self.calls = model.calls

    def zero_grad(self, set_to_none=True):
        self.calls.append("zero")
        super().zero_grad(set_to_none)

    def step(self, closure=None):
        self.calls.append("step")
        return super().step(closure)


def _after(steps, recipe):
    """Return the table after some steps of a recipe on fixed batches, the result of each step, and the last's calls."""
    model = _Model()
    optimizer = _SGD(model)
    draw, losses = torch.Generator().manual_seed(4), []
    for _ in range(steps):
        inputs, targets = torch.randint(0, 5, (2, 2, 6), generator=draw)
        model.calls.clear()
        losses.append(recipe(model, optimizer, inputs, targets))
    return model.table.detach(), losses, tuple(model.calls)


def recipe(order):
    """Return a training step that makes its three calls in this order."""

    def step(model, optimizer, inputs, targets):
        loss = model(inputs, targets)
        for name in order:
            {"zero": optimizer.zero_grad, "backward": loss.backward, "step": optimizer.step}[name]()
        return loss.item()

    return step


ORDERS = {  # calls of a step that does not train, and the hint
    (): "The weights do not change: there is no backward pass and no update.",
    ("zero",): "The weights do not change: there is no backward pass and no update.",
    ("backward",): "You compute the gradients, but the weights do not change. What updates them?",
    ("zero", "backward"): "You compute the gradients, but the weights do not change. What updates them?",
    ("backward", "step"): "The sum still contains the gradients of earlier batches, and those that the model came "
    "with.",
    ("backward", "step", "zero"): "The first step still uses the gradients that the model came with. When do you clear "
    "them?",
    ("backward", "zero", "step"): "You clear the gradients before using them: the weights do not change.",
    ("step",): "You update without computing the gradients of this batch.",
    ("zero", "step"): "You update without computing the gradients of this batch.",
    ("step", "backward"): "You update before the gradients of this batch are known.",
    ("zero", "step", "backward"): "You update before the gradients of this batch are known.",
    ("step", "zero", "backward"): "You update before the gradients of this batch are known.",
}


@exercise("07.2")
def one_step(answer):
    """loss, zero_grad, backward, step; the loss as a float."""
    right, losses, _ = _after(3, recipe(["zero", "backward", "step"]))
    given, its_losses, calls = _after(3, functools.partial(called, answer))
    if not torch.allclose(given, right, atol=1e-6):
        if calls in ORDERS:
            raise Wrong(ORDERS[calls])
        if torch.allclose(given, _after(3, uphill)[0], atol=1e-6):
            raise Wrong("The weights move uphill: check the sign.")
        raise Wrong("The weights differ from those after loss, gradients and one optimizer step per batch.")
    if isinstance(its_losses[0], torch.Tensor):
        raise Wrong(
            "The weights are right. But you return a tensor, which keeps its graph in memory. Return a plain float."
        )
    if not isinstance(its_losses[0], float):
        raise Wrong(f"The weights are right. Return the loss as a float, not as a {type(its_losses[0]).__name__}.")
    if not math.isclose(its_losses[1], losses[1], rel_tol=1e-4):
        raise Wrong("The weights are right. But the returned loss is not that of the batch before the step.")


def uphill(model, optimizer, inputs, targets):
    """A training step with the wrong sign."""
    optimizer.zero_grad()
    loss = model(inputs, targets)
    (-loss).backward()
    optimizer.step()
    return loss.item()


@exercise("07.3")
def schedule(answer):
    """10 steps up to 0.01, then a line to 0.001 at step 100, then constant."""

    def lr(step, span=90, begin=10, low=0.001):
        if step < 10:
            return 0.01 * (step + 1) / 10
        return 0.01 + (low - 0.01) * min(1, (step - begin) / span)

    steps = [0, 4, 9, 10, 11, 55, 99, 100, 101, 1000]
    right = torch.tensor([lr(step) for step in steps])
    rates = torch.tensor([as_number(called(answer, step), "Return one number; yours") for step in steps])

    def near(upto):
        return torch.allclose(rates[:upto], right[:upto], rtol=1e-4, atol=1e-9)

    if torch.isclose(rates[0], torch.tensor(0.0)):
        raise Wrong("At step 0 the rate is 0, so the first step does nothing. What should the rate be at step 0?")
    if not near(3):
        slower = torch.allclose(rates[:3], right[:3] * 10 / 11, rtol=1e-3)
        raise Wrong(
            "The warm-up takes one step too many."
            if slower
            else "The warm-up is wrong: it should be a straight line from a tenth of the rate to all of it."
        )
    if torch.isclose(rates[5], right[5], rtol=1e-4) and not near(7):
        half_cosine = 0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi / 90))
        if math.isclose(float(rates[4]), half_cosine, rel_tol=1e-3):
            raise Wrong("That is a cosine decay; this exercise needs a straight line.")
    if math.isclose(float(rates[5]), lr(55, low=0.0), rel_tol=1e-3):
        raise Wrong("The decay goes to 0; it should end at 0.001.")
    if not near(4) or math.isclose(float(rates[5]), lr(55, span=100, begin=0), rel_tol=1e-3):
        raise Wrong("The rate jumps where the warm-up ends: the decay starts at step 10 and ends at step 100.")
    if not near(8):
        raise Wrong("The warm-up is right; the decay is not a straight line from 0.01 at step 10 to 0.001 at step 100.")
    if rates[8] < right[8] - 1e-7:
        if rates[9] < 0:
            raise Wrong("After step 100 the rate should stay constant, but yours keeps falling, below 0.")
        raise Wrong("After step 100 the rate should stay constant, but yours keeps falling.")
    tensor(rates, right, hint="The tested steps are 0, 4, 9, 10, 11, 55, 99, 100, 101 and 1000.")


@exercise("07.4")
def ratio(answer):
    """exp(190 (0.434 - 0.374))."""
    gap = 0.434 - 0.374
    number(
        answer,
        math.exp(190 * gap),
        mistakes=[
            (190 * gap, "That is the difference in nats for a whole tale. What is it as a ratio of probabilities?"),
            (gap, "That is the difference per token, in nats. A tale has 190 of them, and the answer is a ratio."),
            (math.exp(gap), "That is the ratio for one token. A tale has 190."),
            (190 * math.exp(gap), "Ratios of probabilities multiply along a text; you add them."),
            (math.exp(-190 * gap), "That is the inverse: the true probability is larger, not smaller."),
            (2 ** (190 * gap), "A difference of nats is an exponent of e, not of 2."),
            (0.434 / 0.374, "A ratio of losses means little. What does their difference mean?"),
            (
                math.exp(190 * 0.434),
                "That is 1/p of a tale under the model. Where is the floor in it?",
            ),
        ],
        hint="A difference of losses is the logarithm of a ratio of probabilities, and a tale has many tokens.",
        tolerance=0.02,
    )
