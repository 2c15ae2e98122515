"""Next-token prediction from right to left."""

import dataclasses
from collections.abc import Iterable, Iterator

from gpt.objectives.next_token import NextToken
from gpt.token_files import PreparedData
from gpt.tokenizer import Tokenizer


class Reverse(NextToken):
    """-sum ln p(x_t | x_{t+1} .. x_n): next-token prediction on the tokens in reverse order.

    By the chain rule the entropy, and with it the lowest possible loss, is the same in both directions. The loss that
    a model reaches is not: Papadopoulos et al. 2024, "Arrows of Time for Large Language Models", arXiv:2401.17505.
    """

    reads_any_text = False
    left_to_right = False

    @classmethod
    def transform(cls, data: PreparedData) -> PreparedData:
        """Return the data with the tokens of both splits in reverse order."""
        splits = ((name, getattr(data, name)) for name in ("train", "val"))
        backwards = {name: dataclasses.replace(split, tokens=split.tokens[::-1]) for name, split in splits}
        return dataclasses.replace(data, **backwards, reversed=not data.reversed)

    @classmethod
    def encode_prompt(cls, prompt: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of a prompt in reverse order."""
        return super().encode_prompt(prompt, tokenizer)[::-1]

    @classmethod
    def join_text(cls, prompt: str, new: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
        """Yield a text that ends with the prompt, in one piece: its beginning is generated last."""
        yield tokenizer.decode([*new][::-1]) + prompt
