"""Supervised fine-tuning: predict the response, given the prompt; or each answer of a conversation."""

import dataclasses
from collections.abc import Sequence, Sized

import numpy as np
import torch
from torch import Tensor

from gpt.config import TrainConfig
from gpt.objectives.examples import (
    ConversationExamples,
    PackedRows,
    WholeExamples,
    attention_of_rows,
    sample_answer,
    whole_examples,
)
from gpt.objectives.objective import SAMPLE_TEMPERATURE, Objective
from gpt.objectives.ranks import losses_and_ranks
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile


class SFT(Objective):
    """-ln p(y | x) = -sum ln p(y_t | x, y_1 .. y_{t-1}) over the tokens of the response y and its end-of-text token.
    The tokens of the prompt x have no loss. Sutskever et al. 2014, arXiv:1409.3215, equation 1.

    In a conversation the tokens flagged as COUNTED are the y of every turn, and all earlier ones are read. With
    data.packing "packed" several examples share a row of context_length tokens; none sees another.

    "val_exact_match" is the share of responses, or of conversations, that greedy decoding writes exactly.
    """

    metrics = ("val_exact_match",)

    def forward(self, inputs: Tensor, targets: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of tokens that count), two scalars.

        Inputs and targets are (B, T), and so are the positions of packed rows.
        """
        counted = targets != IGNORE_INDEX  # (B, T)
        hidden = self._hidden_states(inputs, positions)[counted]  # (N, D): prompts need no logits
        return self.model.loss_from_hidden(hidden, targets[counted], "sum", self.smoothing), counted.sum()

    def _hidden_states(self, inputs: Tensor, positions: Tensor | None) -> Tensor:
        if positions is None:
            return self.model.hidden_states(inputs)
        return self.model.hidden_states(inputs, mask=attention_of_rows(positions), positions=positions)

    def eval_batch(
        self, inputs: Tensor, targets: Tensor, positions: Tensor | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the loss and the share of exact responses or conversations, each as a sum and a count."""
        counted = targets != IGNORE_INDEX  # (B, T)
        hidden = self._hidden_states(inputs, positions)[counted]
        losses, ranks = losses_and_ranks(self.model, hidden, targets[counted])
        missed = torch.zeros_like(counted).masked_scatter(counted, ranks != 0)  # (B, T)
        # the number of each token's example within its row, (B, T)
        number = torch.zeros_like(inputs) if positions is None else (positions == 0).cumsum(1)
        zeros = number.new_zeros(len(inputs), inputs.size(1) + 1)
        n_counted, n_missed = (zeros.scatter_add(1, number, x.long()) for x in (counted, missed))  # (B, examples)
        exact, n_examples = ((n_counted > 0) & (n_missed == 0)).sum(), (n_counted > 0).sum()
        return {"loss": (losses.sum(), counted.sum()), "val_exact_match": (exact, n_examples)}

    @classmethod
    def check_packing(cls, config: TrainConfig, data: PreparedData) -> None:
        """ValueError unless the data are pairs or conversations, all of them fit the model, and it can read rows."""
        if not data.paired and data.train.flags is None:
            raise ValueError(
                f"the objective {config.objective.name} needs pairs or conversations, and {data.folder} holds none: "
                f"prepare a .jsonl with --prompt_field and --target_field"
            )
        if data.preferences:
            raise ValueError(
                f"{data.folder} holds preferences, and the objective {config.objective.name} would learn the rejected "
                f"answers too: set objective.name to 'dpo'"
            )
        if config.data.packing == "packed" and config.model.backbone == "lstm":
            raise ValueError(
                "data.packing is 'packed', but an LSTM carries its state from one example of a row into the next: set "
                "it to 'document'"
            )
        if config.data.stride:
            raise ValueError(f"data.stride is {config.data.stride}, but examples are read whole: set it to 0")
        for split in (data.train, data.val):
            whole_examples(data, split, config.model.context_length)  # checks the lengths

    @classmethod
    def starts_with_eot(cls, config: TrainConfig) -> bool:
        """See `Objective.starts_with_eot`: packed examples are whole, too."""
        return True

    @classmethod
    def overlong(cls, data: PreparedData) -> tuple[str, str]:
        """See `Objective.overlong`."""
        if data.paired:
            return "pairs", "their prompts lose their beginning"
        return "conversations", "they lose their beginning"

    @classmethod
    def has_masks(cls, config: TrainConfig) -> bool:
        """See `Objective.has_masks`."""
        return config.data.packing == "packed"

    @classmethod
    def example_lengths(cls, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """See `Objective.example_lengths`."""
        return np.minimum(cls._examples(config, data, split).lengths, config.model.context_length)

    @staticmethod
    def _examples(config: TrainConfig, data: PreparedData, split: TokenFile) -> WholeExamples | PackedRows:
        examples = whole_examples(data, split, config.model.context_length)
        return PackedRows(examples) if config.data.packing == "packed" else examples

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> WholeExamples | PackedRows:
        """Return the pairs or conversations of a split, or rows of them."""
        return self._examples(config, data, split)

    def context_needed(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the context_length that each pair or conversation of a split needs, (N,)."""
        return whole_examples(data, split, config.model.context_length).lengths

    def batch(self, examples: Sized, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Objective.batch`; packed rows also have positions."""
        return dict(zip(("inputs", "targets", "positions"), examples.batch(indices), strict=False))

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens of a split that count in the loss, (N,)."""
        return whole_examples(data, split, config.model.context_length).target_tokens()

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """Return a response to sample_prompt, or to a validation prompt, with the true response below."""
        examples = whole_examples(data, data.val, config.model.context_length)
        if isinstance(examples, ConversationExamples):
            generator = torch.Generator(next(self.model.parameters()).device).manual_seed(seed)
            conversation = examples.conversation(seed % len(examples))
            sampling = {"temperature": SAMPLE_TEMPERATURE, "generator": generator}
            return sample_answer(self.model, data.tokenizer, conversation, config.sample_prompt, **sampling)
        if config.sample_prompt:
            return super().sample(config, data, seed)
        prompt, response = (data.tokenizer.decode(ids) for ids in examples.pair(seed % len(examples)))
        text = super().sample(dataclasses.replace(config, sample_prompt=prompt), data, seed)
        return f"{text}\n(true: {response.strip()})"
