"""Rollouts: completions of prompts that the model itself writes, and a reward for each.

The advantage of a token says how much better the reward became than expected: it weighs the token's log-probability in
the loss of gpt/objectives/grpo.py.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from gpt.objectives.documents import complete
from gpt.objectives.examples import last_answer, whole_examples
from gpt.objectives.rewards import Reward
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """The ids that the model continues, the answer that the data have, the token that ends a completion, and the number
    of the prompt in its split, from 1."""

    ids: list[int]
    answer: str
    stop_id: int
    number: int = 1

    def text(self, tokenizer: Tokenizer) -> str:
        """Return the text of the ids, without the token that begins a document."""
        return tokenizer.decode(self.ids[self.ids[0] == tokenizer.eot_id :])


class Prompts:
    """The prompts of a split: of a pair or a conversation all but the last answer. A split without answers has an empty
    prompt for each document, which the end-of-text token begins."""

    def __init__(self, data: PreparedData, split: TokenFile, context_length: int):
        self.tokenizer = data.tokenizer
        has_answers = data.paired or split.flags is not None
        self.examples = whole_examples(data, split, context_length) if has_answers else None
        self.n = len(self.examples) if has_answers else split.documents

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Prompt:
        if self.examples is None:
            return Prompt([self.tokenizer.eot_id], "", self.tokenizer.eot_id, index + 1)
        ids, counted = self.examples.example(index)
        start, end = last_answer(counted)
        answer = self.tokenizer.decode(ids[start : end - 1].tolist())
        return Prompt(ids[:start].tolist(), answer, int(ids[end - 1]), index + 1)


class Rollout(NamedTuple):
    """A completion, and how the reward judged it."""

    ids: list[int]  # of the prompt and the completion, its end included
    start: int  # of the completion
    reward: float
    kind: str  # completions of one kind are compared with each other
    error: int  # the position in `ids` of the first token with which no right completion goes on; else len(ids)


def sample_rollouts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    size: int,
    seeds: Sequence[int],
    reward: Reward,
) -> tuple[list[Rollout], dict[str, float]]:
    """Let the model complete each prompt `size` times at temperature 1; return the rollouts of each in turn, and the
    seconds that sampling and judging took.

    One seed per prompt determines its completions. A completion ends at the latest where the model's context does.
    """
    start, context_length = time.perf_counter(), model.config.context_length
    device = next(model.parameters()).device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    rows = [prompt.ids for prompt in prompts for _ in range(size)]
    most = context_length + 1 - min(map(len, rows))  # the last token is not read
    completions = complete(model, rows, {prompts[0].stop_id}, most, generator=generators)
    sampled = time.perf_counter()
    rollouts = [
        judge(prompts[number // size], *completion, context_length, tokenizer, reward)
        for number, completion in enumerate(completions)
    ]
    return rollouts, {"sample_s": sampled - start, "judge_s": time.perf_counter() - sampled}


def judge(
    prompt: Prompt, written: list[int], ended: bool, context_length: int, tokenizer: Tokenizer, reward: Reward
) -> Rollout:
    """Return the rollout of a completion; one that does not end within the context has the reward 0."""
    room = context_length + 1 - len(prompt.ids)
    written, ended = written[:room], ended and len(written) < room
    texts = prompt.text(tokenizer), tokenizer.decode(written), prompt.answer
    try:
        value = reward.score(*texts) if ended else 0.0
    except ValueError as error:
        raise ValueError(f"{error} of prompt {prompt.number}") from None
    kind, error = reward.kind(texts[1]) if reward.kind else "", len(written) + ended
    if value <= 0 and reward.viable:
        error = _error(tokenizer, written, reward.viable(*texts))
    start = len(prompt.ids)
    return Rollout([*prompt.ids, *written, *[prompt.stop_id] * ended], start, value, kind, start + error)


def _error(tokenizer: Tokenizer, ids: list[int], viable: int) -> int:
    """Return the position of the first token that ends beyond the first `viable` characters of the text of `ids`."""
    text = tokenizer.decode(ids)
    n_bytes, limit = 0, len(text[:viable].encode())
    for position, i in enumerate(ids):
        n_bytes += len(tokenizer.decode_bytes([i]))
        if n_bytes > limit:
            return position
    return len(ids)


def advantages(rollouts: Sequence[Rollout], baseline: str, credit: str, normalize: bool) -> list[np.ndarray]:
    """Return the advantage of each token of the completions of one prompt, (n,) each.

    "answer": for all tokens the reward minus the mean reward, of the group or of those of the same kind in it. Ahmadian
    et al. 2024, arXiv:2402.14740; divided by the standard deviation (`normalize`) it is equation 14 of Shao et al.
    2024, arXiv:2402.03300.

    "error": how much the token changed the expected reward, V(y_1 .. y_t) - V(y_1 .. y_{t-1}). V is 0 after an error;
    without one it is the mean reward of those completions that were right up to this length, so a right token
    gains a little, the first wrong one loses what was expected, and later ones count nothing. These are the one-step
    advantages of Schulman et al. 2016, arXiv:1506.02438, section 3. Their mean is the policy gradient as far as texts
    without an error, of one kind and length, have the same prospects.

    A mean over a kind takes away the gain from writing another kind. A text whose kind cannot be told is compared with
    the whole group: among its like, all of them wrong, nothing would make it rarer.
    """
    found: list[np.ndarray] = []
    for rollout in rollouts:
        peers = [r for r in rollouts if baseline == "group" or rollout.kind in ("", r.kind)]
        rewards = np.array([peer.reward for peer in peers])
        scale = rewards.std() + 1e-6 if normalize else 1.0
        n, right = len(rollout.ids) - rollout.start, rollout.error - rollout.start  # tokens, those before an error
        if credit == "answer":
            found.append(np.full(n, (rollout.reward - rewards.mean()) / scale))
            continue
        errors = np.array([peer.error - peer.start for peer in peers])
        alive = errors[:, None] >= np.arange(n)  # (peers, n): no error before this token
        expected = (rewards @ alive) / alive.sum(0).clip(min=1)
        after = np.append(expected[1:], rollout.reward)
        position = np.arange(n)
        found.append((np.where(position < right, after, 0) - expected) * (position <= right) / scale)
    return found
