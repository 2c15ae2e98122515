"""Direct preference optimization: make chosen answers likelier than rejected ones, without a reward model."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.loss import evaluation_mode
from gpt.model import GPTModel
from gpt.objectives.examples import ConversationExamples, sample_answer
from gpt.objectives.objective import SAMPLE_TEMPERATURE, Objective
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.chunked_loss import logit_chunks
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.token_files import START, PreparedData, TokenFile
from gpt.variants.prefix import without_prefix


class PreferenceExamples(ConversationExamples):
    """The preferences of a split: example i is conversations 2i, whose last answer is chosen, and 2i+1, rejected.

    If one of the two exceeds context_length + 1 tokens, both lose the same beginning. `first` is the number of the
    split's first pair among those of all splits.
    """

    def __init__(self, split: TokenFile, context_length: int, first: int = 0):
        super().__init__(split, context_length)
        self.lengths, self.first = self.lengths.reshape(-1, 2).max(1), first  # (N,)

    def check(self, split: TokenFile) -> None:
        """ValueError for a pair whose answers are the same, or with an answer that does not fit."""
        for number in range(len(self)):
            (ids, counted), (other, other_counted) = pair = [self.conversation(2 * number + i) for i in range(2)]
            if np.array_equal(ids[counted], other[other_counted]):
                raise ValueError(
                    f"the chosen and rejected answers of pair {number + 1} of {split.path} are the same: leave it out"
                )
            needed = self.lengths[number] - min(int(np.argmax(c)) for _, c in pair) + 1
            if needed > self.context_length:
                raise ValueError(
                    f"the answers of pair {number + 1} of {split.path} need a context of {needed} tokens, but "
                    f"model.context_length is {self.context_length}: raise it, or leave such pairs out"
                )

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a conversation, 2i or 2i+1 of pair i: see `WholeExamples.example`."""
        cut = max(0, int(self.lengths[index // 2]) - self.context_length)
        ids, counted = self.conversation(index)
        return ids[cut:], counted[cut:]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, (2B, T) each: of each pair the chosen, then the rejected conversation."""
        return super().batch([2 * index + i for index in indices for i in range(2)])


class DPO(Objective):
    """-ln sigmoid(r_w - r_l) for each pair of a chosen answer y_w and a rejected one y_l, where an answer's implicit
    reward is r = beta · ln(p(y | x) / p_ref(y | x)). Rafailov et al. 2023, arXiv:2305.18290, equation 7.

    p_ref is the model that the run starts from, without an adapter and without dropout. Its log-probabilities are
    computed once, before the first step, and then part of every checkpoint. The loss counts pairs, not tokens.

    "val_reward_margin" is the mean of r_w - r_l, "val_accuracy" the share of pairs in which it is above 0.
    """

    metrics = ("val_reward_margin", "val_accuracy")
    unit = "pair"
    prepare_passes = 1

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None):
        super().__init__(model, config)
        # ln p_ref of chosen and rejected answers, of the training pairs and then the validation pairs
        self.register_buffer("reference", torch.zeros(0, 2))

    def log_probabilities(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return ln p of the targets that count in each row, (B,), for inputs and targets (B, T).

        Logits exist chunk by chunk, and again in the backward pass: they would be the largest tensor of a step.
        """
        counted = targets != IGNORE_INDEX  # (B, T)
        hidden, targets = self.model.hidden_states(inputs)[counted], targets[counted]  # (N, D), (N,)
        losses = [
            checkpoint(self.model.loss_from_hidden, *chunk, "none", use_reentrant=False, preserve_rng_state=False)
            for chunk in logit_chunks(self.model.config.vocab_size, hidden, targets)
        ]
        losses = torch.cat(losses)  # (N,)
        return -torch.zeros_like(counted, dtype=losses.dtype).masked_scatter(counted, losses).sum(1)

    def reward_margins(self, inputs: Tensor, targets: Tensor, pairs: Tensor) -> Tensor:
        """Return r_w - r_l of each pair, (B,), for inputs and targets (2B, T) and the numbers of the pairs, (B,)."""
        log_ratios = self.log_probabilities(inputs, targets).view(-1, 2) - self.reference[pairs]  # (B, 2)
        return self.config.beta * (log_ratios[:, 0] - log_ratios[:, 1])

    def forward(self, inputs: Tensor, targets: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of pairs), two scalars; arguments as for `reward_margins`."""
        margins = self.reward_margins(inputs, targets, pairs)
        return -F.logsigmoid(margins).sum(), torch.tensor(len(margins), device=margins.device)

    def eval_batch(self, inputs: Tensor, targets: Tensor, pairs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the loss, the reward margin and the accuracy, each as a sum and a count of pairs."""
        margins = self.reward_margins(inputs, targets, pairs)
        sums = (-F.logsigmoid(margins).sum(), margins.sum(), (margins > 0).sum())
        count = torch.tensor(len(margins))
        return {name: (total, count) for name, total in zip(("loss", *self.metrics), sums, strict=True)}

    # --- data ---------------------------------------------------------------------------------------------------------

    @classmethod
    def check_packing(cls, config: TrainConfig, data: PreparedData) -> None:
        """ValueError unless the data are preferences that fit the model, and there is a model to start from."""
        if not data.preferences:
            raise ValueError(
                f"the objective dpo needs preferences, and {data.folder} holds none: prepare a .jsonl with a chosen "
                f"and a rejected answer to each prompt"
            )
        if not config.init_from:
            raise ValueError(
                "the objective dpo changes a model that answers already, and init_from is empty: name a run or "
                "published weights"
            )
        if config.data.packing != "document" or config.data.stride:
            raise ValueError(
                f"data.packing is {config.data.packing!r} and data.stride {config.data.stride}, but the objective dpo "
                f"reads whole conversations, one a row: set them to 'document' and 0"
            )
        if config.objective.label_smoothing:
            raise ValueError(
                f"objective.label_smoothing is {config.objective.label_smoothing}, but the objective dpo has no labels "
                f"to smooth: set it to 0"
            )
        for split in (data.train, data.val):
            PreferenceExamples(split, config.model.context_length).check(split)

    @classmethod
    def starts_with_eot(cls, config: TrainConfig) -> bool:
        """See `Objective.starts_with_eot`: a conversation starts as its template says."""
        return False

    @classmethod
    def overlong(cls, data: PreparedData) -> tuple[str, str]:
        """See `Objective.overlong`."""
        return "pairs", "their prompts lose their beginning"

    @classmethod
    def rows_per_example(cls, config: TrainConfig) -> int:
        """See `Objective.rows_per_example`."""
        return 2

    @classmethod
    def example_lengths(cls, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """See `Objective.example_lengths`: the longer conversation of each pair."""
        context_length = config.model.context_length
        return np.minimum(PreferenceExamples(split, context_length).lengths, context_length)

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> PreferenceExamples:
        """Return the pairs of a split, which is one of `data`."""
        if not data.preferences:
            raise ValueError(f"the objective dpo is evaluated on preferences, and {data.folder} holds none")
        first = 0 if split is data.train else np.count_nonzero(data.train.flags & START) // 2
        return PreferenceExamples(split, config.model.context_length, first)

    def batch(self, examples: PreferenceExamples, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """See `Objective.batch`."""
        inputs, targets = examples.batch(indices)
        return {"inputs": inputs, "targets": targets, "pairs": torch.tensor([*indices]) + examples.first}

    @torch.no_grad()
    def prepare(
        self,
        config: TrainConfig,
        data: PreparedData,
        device: torch.device | str = "cpu",
        ctx: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Compute the reference's log-probabilities of all answers. Processes share the pairs, and each gets all."""
        splits, size = [self.examples(config, data, split) for split in (data.train, data.val)], config.batch_size
        found = np.zeros((sum(map(len, splits)), 2))
        batches = [(s, range(len(s))[i : i + size]) for s in splits for i in range(0, len(s), size)]
        with evaluation_mode(self), without_prefix(self.model):  # a low-rank update is 0 before the first step
            for (examples, indices), is_own in ctx.shard_evenly(batches):
                inputs, targets = (tensor.to(device) for tensor in examples.batch(indices))
                values = is_own * self.log_probabilities(inputs, targets).view(-1, 2)
                found[examples.first + indices.start : examples.first + indices.stop] = values.double().cpu().numpy()
        self.reference.resize_(found.shape).copy_(torch.from_numpy(ctx.all_reduce_sum(found)))

    def context_needed(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """Return the context_length that each pair of a split needs, (N,)."""
        return self.examples(config, data, split).lengths

    def trivial_losses(self, config: TrainConfig, data: PreparedData) -> dict[str, float]:
        """Return the loss of the reference itself, whose margins are 0: ln 2."""
        return {"the reference": float(np.log(2))}

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """Return an answer to sample_prompt, or to a validation prompt, with the chosen answer below."""
        examples = self.examples(config, data, data.val)
        generator = torch.Generator(next(self.model.parameters()).device).manual_seed(seed)
        conversation = examples.conversation(2 * (seed % len(examples)))
        sampling = {"temperature": SAMPLE_TEMPERATURE, "generator": generator}
        return sample_answer(self.model, data.tokenizer, conversation, config.sample_prompt, **sampling)
