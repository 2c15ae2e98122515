"""Checks of 16_run_taken_apart.ipynb."""

import math

from exercises import Wrong, as_number, called, choice, exercise, number


def _compared(given, right, mistakes, where, hint, what):
    """Compare what a function returned; mistakes that happen to be right, or another mistake's result, are left out."""
    distinct, seen = [], [right]
    for wrong, its_hint in mistakes:
        if not any(math.isclose(wrong, other, abs_tol=1e-9) for other in seen):
            distinct.append((wrong, its_hint))
            seen.append(wrong)
    given = as_number(given, "Return one number; yours")
    if math.isnan(given):
        raise Wrong(f"For {where} it returns NaN; it should be {what}.")
    number(given, right, distinct, hint=f"{hint} That was for {where}.", tolerance=1e-6)


def _first(steps, losses, is_spike):
    """Return the first step at which is_spike(loss, those before it) holds, -1 without one. NaN is skipped."""
    before = []
    for step, loss in zip(steps, losses, strict=True):
        if not math.isnan(loss):
            if before and is_spike(loss, before):
                return step
            before.append(loss)
    return -1


@exercise("16.1")
def first_spike(answer):
    """The first step whose loss is more than margin above the lowest before."""
    nan = math.nan
    cases = [
        ([nan, 6.0, 4.0, 3.0, 3.6, 4.3, 5.0, 3.2, 4.4, 7.2, 7.5, 4.2], 1.0),
        ([3.0, 2.0, 2.25, nan, 2.5, 2.75, 2.625], 0.5),
        ([nan, 7.0, nan, 3.5, 2.0, 1.5], 1.0),
        ([5.0, 4.0, 3.0, 3.4, nan, 3.8, 4.2, 4.6], 1.5),
    ]
    for losses, margin in cases:
        steps = [20 + 10 * row for row in range(len(losses))]
        right = _first(steps, losses, lambda loss, before, m=margin: loss > min(before) + m)
        numbers = [loss for loss in losses if not math.isnan(loss)]
        over = [
            step
            for row, step in enumerate(steps)
            if losses[row] > min([x for x in losses[:row] if not math.isnan(x)], default=math.inf) + margin
        ]
        previous = _first(steps, losses, lambda loss, before, m=margin: loss > before[-1] + m)
        lowest = steps[losses.index(min(numbers[: numbers.index(losses[steps.index(right)])] if over else numbers))]
        ever = next((s for s, x in zip(steps, losses, strict=True) if x > min(numbers) + margin), -1)
        mistakes = [
            (steps.index(right) if over else -1, "That is the number of the row. Which step does the row belong to?"),
            (previous, "You compare each loss with the one just before it. A rise may take several rows."),
            (lowest, "That is the step of the lowest loss. The spike comes after it."),
            (
                steps[losses.index(max(numbers))],
                "That is the step of the highest loss, not the first one that is too high.",
            ),
            (over[-1] if over else -1, "That is the last step above the margin; the first one is asked for."),
            (
                ever,
                "You compare with the lowest loss of the whole run. At a step, only the losses before it are known.",
            ),
            (
                _first(steps, losses, lambda loss, before: loss > min(before)),
                "That is the first loss above the lowest one, by however little. Where is the margin?",
            ),
            (
                _first(steps, losses, lambda loss, before, m=margin: loss >= min(before) + m),
                "A loss that is exactly the margin above the lowest one is no spike yet: more than the margin is asked for.",
            ),
            (
                _first(steps, losses, lambda loss, before, m=margin: loss > before[0] + m),
                "You compare with the first loss. The run has come down since then.",
            ),
            (-1, "You find no spike, but there is one. Is a NaN the lowest loss? No comparison with NaN is true."),
        ]
        where = f"the losses {losses} at the steps {steps} and the margin {margin}"
        hint = "Keep the lowest loss seen so far, and compare the next one with it."
        _compared(called(answer, list(steps), list(losses), margin), right, mistakes, where, hint, "a step, or -1")


def _words(text):
    return " ".join(text.lower().split())


@exercise("16.2")
def leaked(answer):
    """The share of validation texts that stand in the training texts, but for case and white space."""
    new = [
        f"{animal} sleep."
        for animal in ("Fish", "Bats", "Bees", "Cows", "Owls", "Pigs", "Hens", "Rats", "Cats", "Dogs")
    ]
    train = ["The cat sat.", "A dog ran.", "Birds sing.", "One more.", "Rain.", "Hail.", "The wind.", "Snow. Ice."]
    val = ["THE CAT SAT.", "A  dog ran.", "Birds sing.\n", "One more.", "One more.", "rain.", "hail.", "THE  WIND."]
    cases = [
        ([*train, "Sun.", "Hay.", *["The cat sat."] * 3], [*val, "Snow.", *new]),
        (["a b", "c"], ["C ", "d", "e", "a\tB", "f"]),
        (["x"], ["y", "z"]),
        (["p", "q"], ["p", "q"]),
    ]
    for train, val in cases:
        known, asked = {*map(_words, train)}, [*map(_words, val)]
        n_known = sum(text in known for text in asked)
        right = n_known / len(val)

        def share(change, train=train, val=val):
            return sum(change(text) in {*map(change, train)} for text in val) / len(val)

        mistakes = [
            (share(lambda text: text), "You count exact copies only. Case and white space make no difference here."),
            (share(str.lower), "White space still makes a difference: at the ends, and between words."),
            (share(lambda text: text.lower().strip()), "White space between the words still makes a difference."),
            (share(lambda text: " ".join(text.split())), "Upper and lower case still make a difference."),
            (
                len(known & {*asked}) / len({*asked}),
                "You count each text once. A validation text that is there twice counts twice in the loss.",
            ),
            (
                len(known & {*asked}) / len(val),
                "You count a text that is twice in the validation split once above the line and twice below it.",
            ),
            (n_known, "That is the number of leaked texts. Divide it: a share is asked for."),
            (n_known / len(train), "You divide by the number of training texts. The share is of the validation texts."),
            (
                sum(_words(text) in asked for text in train) / len(train),
                "That is the share of the training texts that stand in the validation split. It is the other way round.",
            ),
            (
                sum(_words(text) in asked for text in train) / len(val),
                "You count the training texts that stand in the validation split: a copy that is twice in training is counted twice.",
            ),
            (len(known & {*asked}) / len(known | {*asked}), "You divide by the texts of both splits together."),
            (
                sum(any(text in other for other in known) for text in asked) / len(val),
                "A text that is only a part of a training text is no copy of it. Compare whole texts.",
            ),
            (1 - right, "That is the share that has not leaked."),
        ]
        where = (
            f"train = {train[:2]} ... and val = {val[:2]} ..." if len(val) > 4 else f"train = {train} and val = {val}"
        )
        hint = "Bring all texts into one form, then look up each validation text."
        _compared(called(answer, list(train), list(val)), right, mistakes, where, hint, "a share from 0 to 1")


@exercise("16.3")
def as_good(answer):
    """The same bits per byte: 2.4 · 2.5 / 4."""
    number(
        answer,
        2.4 * 2.5 / 4.0,
        mistakes=[
            (2.4, "With the same loss per token it would be worse: its tokens are shorter, so it needs more of them."),
            (2.4 * 4.0 / 2.5, "The wrong way round: a shorter token carries less information, not more."),
            (2.4 / math.log(2) / 4.0, "That is the first run in bits per byte. Turn it back: nats, and per token of 2.5 bytes."),
            (2.4 / 4.0, "Those are nats per byte. How many nats is that per token of the second kind?"),
            (2.4 / math.log(2) / 2.5, "Those would be bits per byte if the first run had the second one's tokens."),
            (2.4 / 2.5, "The loss of the first run belongs to tokens of 4.0 bytes."),
            (2.4 - 1.5, "The loss is in proportion to the bytes of a token; differences of bytes and nats do not mix."),
            (math.exp(2.4 * 2.5 / 4.0), "That is the perplexity that it must reach. Its logarithm is asked for."),
            (math.exp(2.4), "That is the perplexity of the first run."),
            (math.exp(2.4) * 2.5 / 4.0, "A perplexity is not in proportion to the bytes of a token; its logarithm is."),
            (2.5 / 4.0, "That is the ratio of the two tokens' lengths. Where is the loss?"),
        ],
        hint="Both must need the same nats for the same text, so for each of its bytes.",
    )  # fmt: skip


@exercise("16.4")
def which_is_better(answer):
    """One seed each, and a difference below the errors."""
    choice(
        answer,
        "b",
        {
            "a": "The same tales take one part of the chance away. Another part is in the first weights and in the order "
            "of the training: what would the second run have with another seed?",
            "c": "Not shown to differ is not shown to be equal. And most of this error is in the tales, which both share.",
            "d": "The same weights have the same loss on the same tales, each time.",
        },
    )


RIGHT = {
    "run-a": "tokenizer",
    "run-b": "leak",
    "run-c": "memorised",
    "run-d": "rate",
    "run-e": "shift",
    "run-f": "warmup",
}
HINTS = {  # of a wrong word: a look that speaks against it
    "leak": "A leak pulls the validation loss down with the training loss, even below the floor. How do they end here? "
    "And how many tales of val.txt are in train.txt?",
    "memorised": "Whoever knows the text by heart has a training loss below the floor, and a validation loss that turns "
    "upwards. Do you see both?",
    "rate": "With a rate that is too high the loss breaks out upwards, and the gradient norm with it. Look at the columns "
    "lr and grad_norm.",
    "shift": "Validation tales of another kind keep a gap open that even the trigram has. Compare the two losses, "
    "and the trigram with that of the other runs.",
    "tokenizer": "Compare bytes per token in meta.json, and val_bits_per_byte with val_loss, with the other runs.",
    "warmup": "A warm-up that does not end leaves the rate tiny to the last row, and the loss smooth and slow. What does "
    "the column lr say?",
}
CONFUSED = {  # (run, word): where the two are alike, and what tells them apart
    ("run-a", "warmup"): "It is slow, but is it the rate? Compare the column lr with that of another run.",
    ("run-a", "shift"): "Something is worse than it looks, but there is no gap between training and validation.",
    (
        "run-b",
        "memorised",
    ): "The training tales are known by heart, right. But does the validation loss turn upwards? And "
    "may it end below the floor?",
    ("run-b", "shift"): "Tales of another kind are harder. Here the validation loss is too good. Where is the floor?",
    ("run-c", "leak"): "The training loss goes below the floor, but the validation loss does not follow it.",
    ("run-c", "shift"): "There is a gap, but look when it opens, and what the validation loss does in the second half.",
    (
        "run-d",
        "warmup",
    ): "The warm-up takes half the run, but it ends. How large is the rate when the loss turns upwards?",
    (
        "run-e",
        "memorised",
    ): "There is a gap. But is the training loss below the floor, and does the validation loss climb back up?",
    ("run-e", "leak"): "A leak makes the validation loss too low. Here it is far above the training loss.",
    ("run-f", "rate"): "The rate is at fault, but in which direction? Look at the largest value in the column lr.",
    ("run-f", "memorised"): "Nothing has been learned by heart here: both losses are far above even the trigram.",
}


@exercise("16.5")
def diagnoses(answer):
    """A word for each of the six runs."""
    if not isinstance(answer, dict):
        raise Wrong(f"The answer is a dictionary of six words; yours is a {type(answer).__name__}.")
    missing = [run for run in RIGHT if answer.get(run, ...) is ...]
    if missing:
        raise Wrong(f"There is no word yet for {', '.join(missing)}.")
    for run, right in RIGHT.items():
        word = answer[run]
        word = word.strip().lower() if isinstance(word, str) else word
        if not isinstance(word, str) or word not in HINTS:
            raise Wrong(f"The word for {run} is none of {', '.join(map(repr, HINTS))}.")
        if word != right:
            raise Wrong(f"Look at {run} again.", CONFUSED.get((run, word), HINTS[word]))
