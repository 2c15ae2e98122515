"""Conditional generation: the target's tokens, given the prompt's."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt.config import TrainConfig
from gpt.loss import losses_and_ranks
from gpt.objectives.objective import Objective
from gpt.ops.reference import IGNORE_INDEX
from gpt.token_files import PreparedData, TokenFile


class Pairs:
    """The pairs of a split: prompts and targets, which stand in turn between end-of-text tokens.

    A pair is read as end-of-text, prompt x, target y, end-of-text. Where that is longer than context_length + 1 tokens,
    the beginning of the prompt is left out. ValueError for a target that does not fit by itself.
    """

    def __init__(self, tokens: np.ndarray, eot_id: int, context_length: int):
        self.tokens, self.eot_id, self.context_length = tokens, eot_id, context_length
        self.marks = np.flatnonzero(np.asarray(tokens) == eot_id)
        longest = int(np.diff(self.marks)[1::2].max())  # of the targets, with the token that ends each
        if longest > context_length:
            raise ValueError(
                f"a target takes {longest} tokens with its end, but model.context_length is {context_length}: raise it"
            )

    def __len__(self) -> int:
        return len(self.marks) // 2

    def pair(self, index: int) -> tuple[list[int], list[int]]:
        """The tokens of a prompt and of its target, without marks."""
        before, between, after = self.marks[2 * index : 2 * index + 3].tolist()
        return self.tokens[before + 1 : between].tolist(), self.tokens[between + 1 : after].tolist()

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of several pairs, int64, (B, T) each, T the longest one's length. Targets are -100 for the
        prompt's own tokens and beyond a pair's end."""
        inputs, targets = [], []
        for prompt, target in map(self.pair, indices):
            prompt = prompt[max(0, 1 + len(prompt) + len(target) - self.context_length) :]
            inputs.append(torch.tensor([self.eot_id, *prompt, *target]))
            targets.append(torch.tensor([IGNORE_INDEX] * len(prompt) + [*target, self.eot_id]))
        return pad_sequence(inputs, batch_first=True), pad_sequence(
            targets, batch_first=True, padding_value=IGNORE_INDEX
        )


class SFT(Objective):
    """-ln p(y | x) = -sum over the target's tokens of ln p(y_t | x, y_1 .. y_{t-1}), its end counted, the prompt's own
    tokens not. Sutskever et al. 2014, arXiv:1409.3215, equation 1.

    "val_exact_match" is the share of targets of which each token is the likeliest after those before it: what greedy
    decoding writes word for word.
    """

    metrics = ("val_exact_match",)

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss summed in nats, the targets' tokens), two scalars, for inputs and targets (B, T)."""
        counted = targets != IGNORE_INDEX  # (B, T)
        hidden = self.model.hidden_states(inputs)[counted]  # (N, D): no logits are made of a prompt
        return self.model.losses(hidden, targets[counted], "sum", self.smoothing), counted.sum()

    def eval_batch(self, inputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss, and how many targets greedy decoding would write."""
        counted = targets != IGNORE_INDEX  # (B, T)
        losses, ranks = losses_and_ranks(self.model, self.model.hidden_states(inputs)[counted], targets[counted])
        likeliest = torch.ones_like(counted).masked_scatter(counted, ranks == 0)  # (B, T)
        exact = likeliest.all(dim=1)  # (B,)
        return {"loss": (losses.sum(), counted.sum()), "val_exact_match": (exact.sum(), torch.tensor(len(exact)))}

    @classmethod
    def resolve_config(cls, config: TrainConfig, data: PreparedData) -> TrainConfig:
        """See `Objective.resolve_config`; the data must be pairs."""
        if not data.paired:
            raise ValueError(
                f"the objective {config.objective.name} learns pairs, which {data.folder} does not hold: prepare a "
                f".jsonl with --prompt_field and --target_field"
            )
        if config.data.packing != "document":
            raise ValueError(f"the objective {config.objective.name} reads pairs: set data.packing to 'document'")
        for split in (data.train, data.val):
            Pairs(split.tokens, data.tokenizer.eot_id, config.model.context_length)  # ValueError where one does not fit
        return super().resolve_config(config, data)

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> Pairs:
        """The pairs of a split."""
        return Pairs(split.tokens, data.tokenizer.eot_id, config.model.context_length)

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the tokens of all responses, each with its end-of-text token, (N,)."""
        pairs = self.examples(config, data, split)
        return np.concatenate([[*pairs.pair(i)[1], pairs.eot_id] for i in range(len(pairs))])

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """sample_prompt continued, or a prompt of the validation split, with the true target below."""
        if config.sample_prompt:
            return super().sample(config, data, seed)
        pairs = self.examples(config, data, data.val)
        prompt, target = (data.tokenizer.decode(ids) for ids in pairs.pair(seed % len(pairs)))
        written = super().sample(dataclasses.replace(config, sample_prompt=prompt), data, seed)
        return f"{written}\n(true: {target.strip()})"
