"""The text from its end: at each position, the token that comes before."""

import dataclasses
from collections.abc import Iterator

from gpt.generation import generate_ids, sample_documents
from gpt.objectives.next_token import NextToken
from gpt.token_files import PreparedData
from gpt.tokenizer import Tokenizer


class Reverse(NextToken):
    """-sum log p(x_t | x_{t+1} .. x_n): next-token prediction on the tokens in reverse order.

    By the chain rule p(x) is the product of these as well as of next_token's, so that the entropy of a source, and
    with it the floor of a loss, is the same in both directions. What a model makes of them is not: Papadopoulos et al.
    2024, "Arrows of Time for Large Language Models", arXiv:2401.17505.
    """

    reads_any_text = False
    left_to_right = False

    @classmethod
    def transform(cls, data: PreparedData) -> PreparedData:
        """Prepared data with the tokens of both splits in reverse order; marks between documents stay marks."""
        splits = ((name, getattr(data, name)) for name in ("train", "val"))
        turned = {name: dataclasses.replace(split, tokens=split.tokens[::-1]) for name, split in splits}
        return dataclasses.replace(data, **turned, reversed=not data.reversed)

    def generate_text(
        self, prompt: str, tokenizer: Tokenizer, prepend_eot: bool, max_new_tokens: int | None = None, **sampling
    ) -> Iterator[str]:
        """What stands before the prompt, and the prompt: known from the left only when all of it is written."""
        ids = tokenizer.encode(prompt)[::-1]
        before = list(generate_ids(self.model, ids, tokenizer, prepend_eot, max_new_tokens, **sampling))
        yield tokenizer.decode(before[::-1]) + prompt

    def sample_documents(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> list[str]:
        """n documents, written from their ends."""
        return [tokenizer.decode(ids[::-1]) for ids in sample_documents(self.model, tokenizer.eot_id, n, seed)]
