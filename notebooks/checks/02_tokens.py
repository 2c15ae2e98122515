"""Checks of 02_tokens.ipynb."""

import math

from exercises import Wrong, called, choice, exercise, number


@exercise("02.1")
def two_merges(answer):
    """Tokens of "banana bandana" after two merges: 14, 10, 8."""
    number(
        answer,
        8,
        mistakes=[
            (14, "That is before any merge: the letters and the space."),
            (10, "That is after one merge. Count the pairs again; the merge has changed them."),
            (13, "The space counts: it belongs to the second word."),
            (9, "Did you make the second merge in both words?"),
            (7, "Count the second word again, its space included."),
            (2, "Is that the merges, or the words? Count the tokens of the whole text."),
        ],
        hint="Write both words as letters, the space too. Which two neighbours are most frequent? Put a box around "
        "each pair.",
        tolerance=1e-6,
    )


def _listed(given, what="tokens"):
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, list | tuple) or not all(isinstance(token, int) for token in given):
        raise Wrong(f"Return a list of {what}, whole numbers; yours returns a {type(given).__name__}.")
    return list(given)


def _merged(tokens, pair, new):
    result, i = [], 0
    while i < len(tokens):
        found = tuple(tokens[i : i + 2]) == tuple(pair)
        result.append(new if found else tokens[i])
        i += 2 if found else 1
    return result


@exercise("02.2")
def merge_pair(answer):
    """Each occurrence of the pair replaced, left to right, without overlap."""
    cases = [
        ([5, 1, 2, 7, 1, 2], (1, 2), 9, "two pairs in the middle and at the end"),
        ([1, 2], (1, 2), 9, "only the pair"),
        ([], (1, 2), 9, "an empty list"),
        ([2, 1, 3], (1, 2), 9, "no pair: 2 before 1 is not 1 before 2"),
        ([1, 1, 1], (1, 1), 9, "three equal tokens; the first two are the pair"),
        ([1, 1, 1, 1, 4], (1, 1), 9, "four equal tokens"),
        ([3, 1, 2, 2], (1, 2), 1, "a new token that is the pair's left one: it must not be merged again"),
    ]
    for tokens, pair, new, what in cases:
        mine = list(tokens)
        given = _listed(called(answer, mine, pair, new))
        if mine != tokens:
            raise Wrong("Your function changes its argument; it should return a new list.")
        right = _merged(tokens, pair, new)
        if given == right:
            continue
        if given == tokens:
            raise Wrong(f"For {tokens} and the pair {pair} nothing is merged: {what}.")
        if len(given) < len(right):
            raise Wrong(
                f"For {tokens} and the pair {pair} too much is gone ({what}). Do you use a token twice, or lose the "
                "last one?"
            )
        if given.count(new) > right.count(new):
            raise Wrong(f"For {tokens} and the pair {pair} you merge too often: {what}.")
        raise Wrong(f"Wrong for {tokens}, the pair {pair} and the new token {new}: {what}. Yours returns {given}.")


@exercise("02.3")
def encode_word(answer):
    """UTF-8 bytes, then the merges in their order."""
    merges = [(97, 110), (98, 256), (256, 97), (116, 104), (259, 101), (230, 181), (261, 183), (97, 256)]
    for word in ("banana", "the", "x", "", "anana", "海海", "bathe"):
        right = list(word.encode())
        for k, pair in enumerate(merges):
            right = _merged(right, pair, 256 + k)
        given = _listed(called(answer, word, list(merges)))
        if given == right:
            continue
        if given == list(word.encode()):
            raise Wrong(f"For {word!r} you return its bytes: the merges are not applied.")
        if any(ord(character) > 255 for character in word) and any(token > 300 for token in given):
            raise Wrong(f"For {word!r} you use the code points of its characters (ord); use its UTF-8 bytes.")
        backwards = list(word.encode())
        for k, pair in reversed(list(enumerate(merges))):
            backwards = _merged(backwards, pair, 256 + k)
        if given == backwards:
            raise Wrong("You apply the merges from the last to the first. In which order were they learned?")
        if given == [token + 1 for token in right] or any(token >= 256 + len(merges) for token in given):
            raise Wrong("The tokens are numbered wrongly: the first pair of the list makes the token 256.")
        if len(given) > len(right):
            raise Wrong(f"For {word!r} a pair is left unmerged. Do you apply every merge, wherever it occurs?")
        raise Wrong(f"For {word!r} the result is wrong. Apply the merges in the order of the list.")


@exercise("02.4")
def bits_per_byte(answer):
    """3.2 nats per token, 4.2 bytes per token."""
    nats, size = 3.2, 4.2
    number(
        answer,
        nats / math.log(2) / size,
        mistakes=[
            (nats / math.log(2), "Those are bits per token. A token has 4.2 bytes."),
            (nats / size, "Those are nats per byte. How many bits is a nat?"),
            (nats * math.log(2) / size, "A nat is more than a bit, not less: divide by ln 2."),
            (nats / math.log(2) * size, "A byte carries less than a token, not more."),
            (size / (nats / math.log(2)), "That is the inverse: bytes per bit."),
            (math.exp(nats) / size, "A perplexity divided by bytes means nothing: start with the loss."),
        ],
        hint="Convert nats to bits, then tokens to bytes.",
    )


@exercise("02.5")
def unseen_characters(answer):
    """Unknown characters fall back to their UTF-8 bytes."""
    choice(
        answer,
        "c",
        {
            "a": "A character tokenizer would. What are the first 256 tokens of a byte-pair tokenizer?",
            "b": "A word tokenizer has such a token. Here nothing is unknown: what is every text made of?",
            "d": "Then each of these characters would have to be in the vocabulary. Which merges were learned?",
        },
    )
