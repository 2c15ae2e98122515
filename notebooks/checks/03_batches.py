"""Checks of 03_batches.ipynb."""

import torch
from exercises import Wrong, called, choice, exercise, number, tensor


@exercise("03.1")
def examples(answer):
    """Inputs and targets (N, T) of a text, targets one ahead."""
    for n, length, stride in ((20, 4, 4), (21, 4, 4), (17, 5, 2), (6, 5, 5), (9, 1, 3), (13, 4, 6)):
        tokens = torch.arange(100, 100 + n) * 7 % 61
        given = called(answer, tokens, length, stride)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise Wrong("Two tensors are asked for: return inputs, targets.")
        if any(part is ... or part is None for part in given):
            raise Wrong("The dots are still there: put the two tensors in their place.")
        starts = range(0, n - length, stride)
        right = [torch.stack([tokens[s + shift : s + shift + length] for s in starts]) for shift in (0, 1)]
        case = f"For {n} tokens, context_length {length} and stride {stride}"
        for part, name, wanted in zip(given, ("inputs", "targets"), right, strict=True):
            try:
                part = torch.as_tensor(part)
            except (TypeError, ValueError, RuntimeError):
                raise Wrong(f"{case}, the {name} are no tensor; rows of unequal length cannot be stacked.") from None
            if part.dim() == 2 and part.size(1) == length and part.size(0) == len(starts) + 1:
                raise Wrong(
                    f"{case} there is a window too many: the last one's last target lies behind the text's end."
                )
            if part.dim() == 2 and part.size(1) == length and part.size(0) == len(starts) - 1:
                raise Wrong(f"{case} one window is missing. How many tokens does a window need for its targets?")
            if part.shape != wanted.shape:
                raise Wrong(f"{case} the {name} should be {tuple(wanted.shape)}, and are {tuple(part.shape)}.")
        inputs, targets = (torch.as_tensor(part) for part in given)
        if torch.equal(inputs, right[1]) and torch.equal(targets, right[0]):
            raise Wrong("The targets are one behind the inputs. What comes next stands to the right.")
        mistakes = [
            (right[0], "The targets are the inputs: a model only has to copy. They should be one token ahead."),
            (right[0].roll(1, 1), "The targets are one behind the inputs. What comes next stands to the right."),
            (
                right[0].roll(-1, 1),
                "The last target of a window is its own first token: rolling goes round in a circle.",
            ),
        ]
        tensor(inputs, right[0], hint=f"These are the inputs. {case}.")
        if length == 1:
            mistakes = mistakes[:1]
        tensor(targets, right[1], mistakes, hint=f"These are the targets. {case}.")


@exercise("03.2")
def steps(answer):
    """(100001 - 1) // 256 // 12."""
    number(
        answer,
        32,
        mistakes=[
            (390, "Those are windows. A step takes twelve of them."),
            (390.625, "Those are windows, and a rest that is no whole one. A step takes twelve."),
            (32.5, "Half a step is none: the last batch isn't full."),
            (33, "The last batch isn't full, and is left out."),
            (32.552, "Neither half windows nor half batches count."),
            (8333, "A step takes 12 windows, and each of them 256 tokens."),
            (
                100_001 // 257 // 12 - 0.1,
                "Windows overlap by one token: what is the last target of one is the first input of the next.",
            ),
        ],
        hint="First the windows: each begins 256 tokens after the one before. Then the full batches.",
        tolerance=1e-6,
    )


@exercise("03.3")
def which_step(answer):
    """2 · 390 // 12."""
    number(
        answer,
        65,
        mistakes=[
            (
                64,
                "A pass of 390 windows is 32.5 steps, and nothing is left out: the step in the middle takes windows of both.",
            ),
            (66, "Steps are counted from 0: the step 0 takes the windows 0 to 11."),
            (97, "That is where the fourth pass begins. The third begins after two."),
            (97.5, "That is where the fourth pass begins. The third begins after two."),
            (32, "That is where the second pass begins. The third begins after two."),
            (32.5, "That is where the second pass begins. The third begins after two."),
            (780, "That is the number of the window. Which step takes it?"),
        ],
        hint="How many windows come before it, and how many of them are in a step?",
        tolerance=1e-6,
    )


@exercise("03.4")
def leak(answer):
    """Doubles on both sides of a split."""
    choice(
        answer,
        "c",
        {
            "a": "It has seen nothing of the held-out text. Learned from both, it would have.",
            "b": "Overlap is a leak only if a window of one side holds tokens of the other.",
            "d": "Near: the characters are known. But no sentence of it has been read. Where has one been read word for word?",
        },
    )
