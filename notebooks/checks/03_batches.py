"""Checks of 03_batches.ipynb."""

import torch
from exercises import Wrong, called, choice, exercise, number, tensor


@exercise("03.1")
def examples(answer):
    """Inputs and targets (N, T) of a text, targets one token later."""
    for n, length, stride in ((20, 4, 4), (21, 4, 4), (17, 5, 2), (6, 5, 5), (9, 1, 3), (13, 4, 6)):
        tokens = torch.arange(100, 100 + n) * 7 % 61
        given = called(answer, tokens, length, stride)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise Wrong("Return two tensors: inputs, targets.")
        if any(part is ... or part is None for part in given):
            raise Wrong("The dots are still there: replace them with the two tensors.")
        starts = range(0, n - length, stride)
        right = [torch.stack([tokens[s + shift : s + shift + length] for s in starts]) for shift in (0, 1)]
        case = f"For {n} tokens, context_length {length} and stride {stride}"
        for part, name, expected in zip(given, ("inputs", "targets"), right, strict=True):
            try:
                part = torch.as_tensor(part)
            except (TypeError, ValueError, RuntimeError):
                raise Wrong(
                    f"{case}, the {name} are not a tensor; rows of different lengths cannot be stacked."
                ) from None
            if part.dim() == 2 and part.size(1) == length and part.size(0) == len(starts) + 1:
                raise Wrong(f"{case} you have one example too many: its last target is past the end of the text.")
            if part.dim() == 2 and part.size(1) == length and part.size(0) == len(starts) - 1:
                raise Wrong(f"{case} one example is missing. How many tokens does an example need for its targets?")
            if part.shape != expected.shape:
                raise Wrong(
                    f"{case} the {name} should have the shape {tuple(expected.shape)}, but have {tuple(part.shape)}."
                )
        inputs, targets = (torch.as_tensor(part) for part in given)
        if torch.equal(inputs, right[1]) and torch.equal(targets, right[0]):
            raise Wrong("The targets are one token earlier than the inputs. The next token is to the right.")
        mistakes = [
            (right[0], "The targets are the inputs: the model only has to copy. Which token should it predict?"),
            (right[0].roll(1, 1), "The targets are one token earlier than the inputs. The next token is to the right."),
            (
                right[0].roll(-1, 1),
                "The last target of an example is its own first token: `roll` wraps around.",
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
            (390, "That is the number of examples. A step takes twelve of them."),
            (390.625, "That is the number of examples, with a fraction of one. A step takes twelve whole ones."),
            (32.5, "Half a step does not count: the last batch is not full."),
            (33, "The last batch is not full, so it is dropped."),
            (32.552, "Parts of examples and parts of batches do not count."),
            (8333, "A step takes 12 examples, and each of them has 256 tokens."),
            (
                100_001 // 257 // 12 - 0.1,
                "Neighbouring examples share one token: the last target of one is the first input of the next.",
            ),
        ],
        hint="First count the examples: each starts 256 tokens after the one before. Then count the full batches.",
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
                "A pass of 390 examples is 32.5 steps, and nothing is left out: the step in the middle takes "
                "examples of both passes.",
            ),
            (66, "Steps are counted from 0: step 0 takes examples 0 to 11."),
            (97, "That is where the fourth pass starts. The third starts after two."),
            (97.5, "That is where the fourth pass starts. The third starts after two."),
            (32, "That is where the second pass starts. The third starts after two."),
            (32.5, "That is where the second pass starts. The third starts after two."),
            (780, "That is the number of the example. Which step takes it?"),
        ],
        hint="How many examples come before it, and how many of them are in a step?",
        tolerance=1e-6,
    )


@exercise("03.4")
def leak(answer):
    """Duplicates on both sides of a split."""
    choice(
        answer,
        "c",
        {
            "a": "This tokenizer has seen nothing of the held-out text. One learned from both would have.",
            "b": "Overlap is a leak only if an example on one side contains tokens of the other side.",
            "d": "Close: the characters are known. But the model has read no sentence of it. In which setup has it "
            "read whole sentences?",
        },
    )
