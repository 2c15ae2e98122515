"""Answers that a model writes to prompts, each judged by a reward."""

from typing import NamedTuple

import numpy as np
import torch

from gpt.exchange.models import LoadedModel
from gpt.objectives.documents import complete
from gpt.objectives.rewards import Reward
from gpt.objectives.rollouts import Prompts
from gpt.token_files import PreparedData


class JudgedAnswers(NamedTuple):
    """The rewards of the greedy answers to N prompts."""

    rewards: np.ndarray  # (N,)
    max_new_tokens: int  # an answer that has not ended by then is cut
    n_cut: int  # cut answers; their reward is 0


@torch.no_grad()
def judge_answers(loaded: LoadedModel, data: PreparedData, reward: Reward, batch_size: int) -> JudgedAnswers:
    """Answer each prompt of the validation split of `data` at temperature 0, and judge the answers.

    An answer may have twice the tokens of the longest true one. Of preferences each prompt is answered once. ValueError
    for data without prompts.
    """
    model, tokenizer = loaded.objective.model, loaded.tokenizer
    examples = Prompts(data, data.val, model.config.context_length)
    if examples.examples is None:
        raise ValueError(f"{data.source} holds no prompts to answer: name pairs or conversations")
    prompts = [examples[i] for i in range(0, len(examples), 1 + data.preferences)]
    max_new_tokens = 2 * max(1 + len(tokenizer.encode(prompt.answer)) for prompt in prompts)
    size = 1 if model.config.backbone == "lstm" else batch_size  # it takes no padded prompts
    rewards, n_cut = np.zeros(len(prompts)), 0
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        stop_ids = {prompt.stop_id for prompt in part}
        written = complete(model, [prompt.ids for prompt in part], stop_ids, max_new_tokens, temperature=0)
        for number, (prompt, (ids, ended)) in enumerate(zip(part, written, strict=True), start=first):
            texts = prompt.text(tokenizer), tokenizer.decode(ids), prompt.answer
            rewards[number] = reward.score(*texts) if ended else 0.0
            n_cut += not ended
    return JudgedAnswers(rewards, max_new_tokens, n_cut)
