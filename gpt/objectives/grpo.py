"""Reinforcement learning with a verifiable reward: the model writes, a rule judges, what was right gets likelier."""

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gpt.config import ObjectiveConfig, TrainConfig
from gpt.loss import Evaluation, evaluation_mode
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.rewards import Reward, find_reward
from gpt.objectives.rollouts import Prompts, Rollout, advantages, sample_rollouts
from gpt.objectives.sft import SFT
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.token_files import PreparedData, TokenFile

EVAL_PROMPTS, EVAL_ROWS = 100, 50  # validation prompts that an evaluation completes, in batches


class GRPO(Objective):
    """-sum A_t ln p(y_t | x, y_1 .. y_{t-1}) over the tokens of completions y that the model itself has sampled for
    prompts x, each with an advantage A_t. Its gradient is that of the expected reward: Williams 1992 (REINFORCE); with
    a group of completions per prompt, Shao et al. 2024 (GRPO), arXiv:2402.03300.

    With `passes` above 1 several steps train on the same completions: the ratio of a token's probability now and when
    it was sampled takes the place of ln p, clipped if `clip` says so (Schulman et al. 2017, arXiv:1707.06347, equation
    7). `beta` adds the KL divergence to the model at the start, estimated for each token as r - ln r - 1 with
    r = p_start / p (Schulman 2020; equation 4 of GRPO).

    What is sampled at step k is a function of the seed, k and the weights. Dropout is off. The training loss that is
    reported is that of the model's own completions: its mean is the entropy of what the model writes, in nats per
    token. The validation loss is that of the data. The last checkpoint counts as the best one.
    """

    training_metrics = ("reward", "length", "no_signal", "sample_s", "judge_s", "train_s")
    metrics = ("val_reward", "val_entropy", "val_kl", "val_length")
    reads_any_text = True
    needs_reference = True

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None, reference: GPTModel | None = None):
        super().__init__(model, config)
        self._reference = (reference,)  # in a tuple: neither trained nor saved
        self.passes = self.config.passes
        self.groups: dict[tuple[int, int], Tensor] = {}  # (round of sampling, number of the prompt) -> (6, G, T)
        self.register_buffer("group_keys", torch.zeros(0, 2, dtype=torch.long))  # `groups` in a checkpoint
        self.register_buffer("group_rows", torch.zeros(0))
        self.register_buffer("reference_sha256", torch.zeros(32, dtype=torch.uint8))  # of the run's start
        self.step, self.start, self.seconds, self.used = -1, 0.0, {}, []

    def forward(
        self, inputs: Tensor, targets: Tensor, advantages: Tensor, before: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of tokens), two scalars. All arguments are (B, T): `before` and `start`
        hold the targets' log-probabilities when they were sampled and at the start of the run.

        The value is the loss of the completions; only its gradient is that of the class's docstring.
        """
        counted = targets != IGNORE_INDEX  # (B, T)
        with evaluation_mode(self.model):
            now = self.log_probabilities(self.model, inputs, targets)  # (N,)
        ratio = (now - before[counted]).exp() if self.config.passes > 1 else (now - now.detach()).exp()
        gain = ratio * advantages[counted]
        if self.config.clip:
            low, high = 1 - self.config.clip, 1 + self.config.clip
            gain = torch.minimum(gain, ratio.clamp(low, high) * advantages[counted])
        loss = -gain
        if self.config.beta:
            loss = loss + self.config.beta * kl_estimate(now, start[counted])
        return (loss - loss.detach() - now.detach()).sum(), counted.sum()

    @cached_property
    def reward(self) -> Reward:
        """The rule that judges; a model that only writes needs none."""
        return find_reward(self.config.reward)

    @property
    def reference(self) -> GPTModel:
        """The model at the start of the run, on the device and in the dtype of the one that is trained."""
        (reference,) = self._reference
        return reference.to(self.model.tok_emb.weight)

    @staticmethod
    def log_probabilities(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return ln p of each target that counts, (N,), row by row, for inputs and targets (B, T)."""
        counted = targets != IGNORE_INDEX  # (B, T)
        return -model.loss_from_hidden(model.hidden_states(inputs)[counted], targets[counted], "none")

    # --- checks -------------------------------------------------------------------------------------------------------

    @classmethod
    def supervised(cls, data: PreparedData) -> type[Objective]:
        """Return the objective whose loss on the data is the validation loss."""
        return NextToken if data.train.flags is None and not data.paired else SFT

    @classmethod
    def check_packing(cls, config: TrainConfig, data: PreparedData) -> None:
        """ValueError unless the data are prompts, and the settings fit the reward, the model and the machine."""
        settings = config.objective
        if not settings.reward:
            raise ValueError(
                "objective.reward is empty: name a rule, such as 'tales', or 'module:function' of your own"
            )
        reward = find_reward(settings.reward)
        if not config.init_from:
            raise ValueError("the objective grpo improves what a model writes, and init_from is empty: name a run")
        if config.data.packing != "document":
            raise ValueError(f"data.packing is {config.data.packing!r}, but grpo reads prompts: set it to 'document'")
        if config.parallel != "ddp":
            raise ValueError(f"parallel is {config.parallel!r}, but grpo samples from a whole model: set it to 'ddp'")
        if settings.label_smoothing:
            raise ValueError(f"objective.label_smoothing is {settings.label_smoothing}, but grpo has no labels: set 0")
        if settings.credit == "error" and not reward.viable:
            raise ValueError(
                f"the reward {reward.name!r} does not say where an error is: set objective.credit 'answer'"
            )
        if settings.baseline == "kind" and not reward.kind:
            raise ValueError(f"the reward {reward.name!r} knows no kinds: set objective.baseline to 'group'")
        cls.supervised(data).check_packing(config, data)

    @classmethod
    def rows_per_example(cls, config: TrainConfig) -> int:
        """See `Objective.rows_per_example`."""
        return config.objective.group_size

    @classmethod
    def samples(cls, config: TrainConfig) -> bool:
        """See `Objective.samples`."""
        return True

    @classmethod
    def example_lengths(cls, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """See `Objective.example_lengths`: what the model writes is taken to be as long as the data."""
        return cls.supervised(data).example_lengths(config, data, split)

    @classmethod
    def overlong(cls, data: PreparedData) -> tuple[str, str]:
        """See `Objective.overlong`."""
        return cls.supervised(data).overlong(data)

    def is_best(self, loss: float, best: float | None) -> bool:
        """See `Objective.is_best`: the last one, since the reward is not the loss."""
        return True

    def has_ngrams(self, data: PreparedData) -> bool:
        """See `Objective.has_ngrams`."""
        return self.supervised(data) is NextToken

    def has_entropy_floor(self, config: TrainConfig) -> bool:
        """See `Objective.has_entropy_floor`."""
        return not config.eval_batches

    # --- what the model writes --------------------------------------------------------------------------------------

    def examples(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> Prompts:
        """Return the prompts of a split. ValueError if a run is resumed and the model at its start has changed."""
        known = self.reference_sha256.any() and self._reference[0] is not None
        if known and not torch.equal(self.reference_sha256.cpu(), _sha256(self.reference)):
            raise ValueError(
                f"the model {config.init_from}, from which this run started and to which grpo compares it, has changed "
                f"since: start a new run"
            )
        return Prompts(data, split, config.model.context_length)

    def prepare(
        self,
        config: TrainConfig,
        data: PreparedData,
        device: torch.device | str = "cpu",
        ctx: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Remember the model at the start, to which a resumed run is compared as well."""
        self.reference_sha256.copy_(_sha256(self.reference))

    def batch(self, examples: Prompts, indices: Sequence[int], key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return arguments of `forward`: a group of completions for each prompt. `key` is the seed and the step.

        In a further pass they are those of the step before.
        """
        *seed, step = key
        if step != self.step:
            self.step, self.start, self.used = step, time.perf_counter(), []
            self.seconds = {"sample_s": 0.0, "judge_s": 0.0}
        number = step // self.passes
        self._unpack()
        self.groups = {key: group for key, group in self.groups.items() if key[0] >= number}
        if new := [index for index in indices if (number, index) not in self.groups]:
            seeds = [int(example_rng((*seed, number), index).integers(2**63)) for index in new]
            self._sample(examples, new, number, seeds)
        self.used += (groups := [self.groups[number, index] for index in indices])
        width = max(group.size(2) for group in groups)
        rows = torch.cat([_widen(group, width) for group in groups], dim=1)  # (6, B·G, T)
        inputs, targets = rows[:2].long()
        return {"inputs": inputs, "targets": targets, "advantages": rows[2], "before": rows[3], "start": rows[4]}

    def _sample(self, examples: Prompts, numbers: list[int], sampling: int, seeds: list[int]) -> None:
        size, prompts = self.config.group_size, [examples[number] for number in numbers]
        rollouts, seconds = sample_rollouts(self.model, examples.tokenizer, prompts, size, seeds, self.reward)
        for name in seconds:
            self.seconds[name] += seconds[name]
        for place, number in enumerate(numbers):
            self.groups[sampling, number] = self._rows(rollouts[place * size : (place + 1) * size])

    def _rows(self, group: list[Rollout]) -> Tensor:
        """Return inputs, targets, advantages, log-probabilities now and at the start, and rewards of a group,
        (6, G, T) float32, in which ids are exact. What no option needs is 0."""
        config = self.config
        values = advantages(group, config.baseline, config.credit, config.normalize)
        if config.length_norm:
            mean = np.mean([len(value) for value in values])
            values = [value * mean / len(value) for value in values]
        rows = []
        for rollout, value in zip(group, values, strict=True):
            ids, prompt = torch.tensor(rollout.ids), rollout.start - 1  # targets in the prompt
            targets = torch.cat([torch.full((prompt,), IGNORE_INDEX), ids[rollout.start :]])
            advantage = torch.cat([torch.zeros(prompt), torch.from_numpy(value)])
            others = *torch.zeros(2, len(advantage)), torch.full((len(advantage),), rollout.reward)
            rows.append(torch.stack([row.float() for row in (ids[:-1], targets, advantage, *others)]))
        width = max(row.size(1) for row in rows)
        rows = torch.stack([_widen(row, width) for row in rows], dim=1)  # (6, G, T)
        inputs, targets = rows[:2].long().to(self.model.tok_emb.weight.device)
        needed = (3, self.model, self.passes > 1), (4, self.reference, self.config.beta > 0)
        for number, model in ((number, model) for number, model, is_needed in needed if is_needed):
            with torch.no_grad(), evaluation_mode(model):
                values = self.log_probabilities(model, inputs, targets)
            rows[number].masked_scatter_(rows[1] != IGNORE_INDEX, values.float().cpu())
        return rows

    def step_metrics(self) -> list[float]:
        """Return `training_metrics` of the step that ends: of its groups, and the seconds that it took."""
        rewards = [group[5, :, 0] for group in self.used]
        length = np.mean([float((group[1] != IGNORE_INDEX).sum(1).float().mean()) for group in self.used])
        no_signal = np.mean([float(reward.min() == reward.max()) for reward in rewards])
        seconds = [*self.seconds.values()]
        train = time.perf_counter() - self.start - sum(seconds)
        return [float(torch.stack(rewards).mean()), length, no_signal, *seconds, train]

    def _unpack(self) -> None:
        """Take over the groups of a checkpoint that has just been loaded."""
        if len(self.group_keys) and not self.groups:
            keys = map(tuple, self.group_keys.tolist())
            self.groups = dict(zip(keys, map(_trim, self.group_rows.cpu().clone()), strict=True))

    def named_weights(self, ctx: DistContext = SINGLE_PROCESS) -> dict[str, Tensor]:
        """See `Objective.named_weights`. With several passes the completions of all processes are part of it."""
        self._unpack()
        groups: dict[tuple[int, int], Tensor] = {}
        for found in ctx.all_gather(self.groups if self.passes > 1 else {}):
            groups |= found
        width = max((group.size(2) for group in groups.values()), default=0)
        rows = [_widen(group, width) for group in groups.values()]
        self.group_keys.resize_(len(groups), 2).copy_(torch.tensor([*groups]).view(-1, 2))
        rows = torch.stack(rows) if rows else torch.zeros(0)
        self.group_rows.resize_(rows.shape).copy_(rows)
        return super().named_weights(ctx)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def context_needed(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """See `Objective.context_needed`."""
        return self.supervised(data)(self.model).context_needed(config, data, split)

    def target_tokens(self, config: TrainConfig, data: PreparedData, split: TokenFile) -> np.ndarray:
        """See `Objective.target_tokens`."""
        return self.supervised(data)(self.model).target_tokens(config, data, split)

    def sample(self, config: TrainConfig, data: PreparedData, seed: int) -> str:
        """See `Objective.sample`."""
        return self.supervised(data)(self.model).sample(config, data, seed)

    @torch.no_grad()
    def evaluate(
        self,
        config: TrainConfig,
        data: PreparedData,
        device: torch.device | str = "cpu",
        ctx: DistContext = SINGLE_PROCESS,
    ) -> Evaluation:
        """Return the loss on the validation split, and figures of one completion of each of EVAL_PROMPTS prompts: the
        mean reward, entropy, KL divergence to the start (nats per completion) and length (tokens)."""
        evaluation = self.supervised(data)(self.model).evaluate(config, data, device, ctx)
        examples = self.examples(config, data, data.val)
        n = min(EVAL_PROMPTS, len(examples))
        chosen = [i * len(examples) // n for i in range(n)]
        sums = np.zeros(len(self.metrics))
        for part in ctx.shard([chosen[i : i + EVAL_ROWS] for i in range(0, n, EVAL_ROWS)]):
            seeds = [int(example_rng((config.seed,), index).integers(2**63)) for index in part]
            prompts = [examples[index] for index in part]
            group, _ = sample_rollouts(self.model, examples.tokenizer, prompts, 1, seeds, self.reward)
            inputs, targets = self._rows(group)[:2].long().to(device)
            with evaluation_mode(self.model):
                now = self.log_probabilities(self.model, inputs, targets)
            start = self.log_probabilities(self.reference, inputs, targets)
            sums += [sum(r.reward for r in group), -float(now.sum()), float(kl_estimate(now, start).sum()), len(now)]
        means = ctx.all_reduce_sum(sums) / n
        return dataclasses.replace(evaluation, metrics=dict(zip(self.metrics, means.tolist(), strict=True)))


def _sha256(model: GPTModel) -> Tensor:
    """Return the SHA-256 of a model's weights, (32,) uint8."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return torch.tensor([*digest.digest()], dtype=torch.uint8)


def _widen(rows: Tensor, width: int) -> Tensor:
    """Return rows (6, ..., T) padded on the right to `width`, without targets there."""
    padding = rows.new_zeros(*rows.shape[:-1], width - rows.size(-1))
    padding[1] = IGNORE_INDEX
    return torch.cat([rows, padding], dim=-1)


def _trim(rows: Tensor) -> Tensor:
    """Return rows (6, G, T) without the padding that `_widen` added."""
    return rows[..., : int((rows[1] != IGNORE_INDEX).any(0).nonzero().max()) + 1]


def kl_estimate(now: Tensor, start: Tensor) -> Tensor:
    """Return r - ln r - 1 with ln r = start - now, of sampled tokens: its mean over samples is KL(now || start)."""
    return (start - now).exp() - (start - now) - 1
