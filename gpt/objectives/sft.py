"""Supervised fine-tuning: predict the response, given the prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt.config import TrainConfig
from gpt.objectives.objective import Objective
from gpt.objectives.ranks import losses_and_ranks
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile


class PairExamples:
    """The pairs of a split: prompts and responses in turn, separated by end-of-text tokens.

    An example is end-of-text, prompt x, response y, end-of-text. If it exceeds context_length + 1 tokens, the prompt
    loses its beginning. ValueError for a response that does not fit by itself.
    """

    def __init__(self, tokens: np.ndarray, eot_id: int, context_length: int):
        self.tokens, self.eot_id, self.context_length = tokens, eot_id, context_length
        self.ends = np.flatnonzero(np.asarray(tokens) == eot_id)
        longest = int(np.diff(self.ends)[1::2].max())  # response, with its end-of-text token
        if longest > context_length:
            raise ValueError(
                f"a response has {longest} tokens with its end, but model.context_length is {context_length}: "
                f"raise it, or leave such pairs out"
            )

    def __len__(self) -> int:
        return len(self.ends) // 2

    def pair(self, index: int) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of its response, without end-of-text tokens."""
        before, between, after = self.ends[2 * index : 2 * index + 3].tolist()
        return self.tokens[before + 1 : between].tolist(), self.tokens[between + 1 : after].tolist()

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of several pairs, int64, (B, T) each; targets are -100 in prompts and padding."""
        inputs, targets = [], []
        for prompt, response in map(self.pair, indices):
            prompt = prompt[max(0, 1 + len(prompt) + len(response) - self.context_length) :]
            inputs.append(torch.tensor([self.eot_id, *prompt, *response]))
            targets.append(torch.tensor([IGNORE_INDEX] * len(prompt) + [*response, self.eot_id]))
        return pad_sequence(inputs, batch_first=True), pad_sequence(
            targets, batch_first=True, padding_value=IGNORE_INDEX
        )


class SFT(Objective):
    """-ln p(y | x) = -sum ln p(y_t | x, y_1 .. y_{t-1}) over the tokens of the response y and its end-of-text token.
    The tokens of the prompt x have no loss. Sutskever et al. 2014, arXiv:1409.3215, equation 1.

    "val_exact_match" is the share of responses that greedy decoding writes exactly.
    """

    metrics = ("val_exact_match",)
    overlong = ("pairs", "their prompts lose their beginning")

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of response tokens), two scalars, for inputs and targets (B, T)."""
        counted = targets != IGNORE_INDEX  # (B, T)
        hidden = self.model.hidden_states(inputs)[counted]  # (N, D): prompts need no logits
        return self.model.loss_from_hidden(hidden, targets[counted], "sum", self.smoothing), counted.sum()

    def eval_batch(self, inputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the loss and the share of exact responses, each as a sum and a count."""
        counted = targets != IGNORE_INDEX  # (B, T)
        losses, ranks = losses_and_ranks(self.model, self.model.hidden_states(inputs)[counted], targets[counted])
        likeliest = torch.ones_like(counted).masked_scatter(counted, ranks == 0)  # (B, T)
        exact = likeliest.all(dim=1)  # (B,)
        return {"loss": (losses.sum(), counted.sum()), "val_exact_match": (exact.sum(), torch.tensor(len(exact)))}

    @classmethod
    def resolve_config(cls, config: TrainConfig, data: PreparedData) -> TrainConfig:
        """See `Objective.resolve_config`; the data must be pairs, and every response must fit the model."""
        if not data.paired:
            raise ValueError(
                f"the objective {config.objective.name} needs pairs, and {data.folder} holds none: prepare a "
                f".jsonl with --prompt_field and --target_field"
            )
        if config.data.packing != "document":
            raise ValueError(
                f"data.packing is {config.data.packing!r}, but the objective {config.objective.name} reads pairs: set "
                f"it to 'document'"
            )
        if config.data.stride:
            raise ValueError(f"data.stride is {config.data.stride}, but pairs are read whole: set it to 0")
        for split in (data.train, data.val):
            PairExamples(split.tokens, data.tokenizer.eot_id, config.model.context_length)  # checks the lengths
        return super().resolve_config(config, data)

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> PairExamples:
        """Return the pairs of a split."""
        return PairExamples(split.tokens, data.tokenizer.eot_id, config.model.context_length)

    def context_needed(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the context_length that each pair of a split needs, (N,)."""
        return np.diff(self.examples(config, data, split).ends[::2]) - 1

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens of all responses, each with its end-of-text token, (N,)."""
        pairs = self.examples(config, data, split)
        return np.concatenate([[*pairs.pair(i)[1], pairs.eot_id] for i in range(len(pairs))])

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """Return a response to sample_prompt, or to a validation prompt, with the true response below."""
        if config.sample_prompt:
            return super().sample(config, data, seed)
        pairs = self.examples(config, data, data.val)
        prompt, response = (data.tokenizer.decode(ids) for ids in pairs.pair(seed % len(pairs)))
        text = super().sample(dataclasses.replace(config, sample_prompt=prompt), data, seed)
        return f"{text}\n(true: {response.strip()})"
