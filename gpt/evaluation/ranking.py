"""A model answers questions by ranking their choices: the one it gives the highest probability is its answer.

Contexts and choices become tokens as in EleutherAI's lm-evaluation-harness (Gao et al. 2021), so that the figures are
those that it reports.
"""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from gpt.data import padded_batch
from gpt.evaluation.metrics import NORMAL_95
from gpt.evaluation.tasks import TASKS, Question
from gpt.exchange.models import LoadedModel
from gpt.loss import evaluation_mode
from gpt.objectives.ranks import losses_and_ranks
from gpt.ops.reference import IGNORE_INDEX
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class TaskResult:
    """A model's answers to the N questions of a task."""

    name: str
    log_probabilities: list[np.ndarray]  # by question: ln p of each choice given its context, nats
    correct: np.ndarray  # (N,) bool: the right choice has the highest probability
    correct_norm: np.ndarray | None  # the same with ln p per character of the choice; None: the task has no such figure
    chance: float  # the accuracy of guesses, 0 to 1
    n_cut: int  # questions that exceed the model's context: their beginning is left out
    seconds: float

    @property
    def accuracy(self) -> float:
        """The share of questions answered right, 0 to 1; with ln p per character if the task has that figure."""
        return float((self.correct if self.correct_norm is None else self.correct_norm).mean())

    @property
    def above_chance(self) -> float:
        """The accuracy, centred: 0 for guesses, 1 for all right. Li et al. 2024, arXiv:2406.11794."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    def perplexity(self) -> tuple[float, float, float]:
        """Return exp of the mean of -ln p of the right choice, and the ends of its 95% interval; NaN for one
        question. Of LAMBADA: the perplexity of the last word."""
        losses = -np.array([found[0] for found in self.log_probabilities])
        error = losses.std(ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
        middle = float(losses.mean())
        return tuple(math.exp(min(middle + z * error, 700)) for z in (0, -NORMAL_95, NORMAL_95))


def encode_pair(context: str, text: str, tokenizer: Tokenizer, prepend_eot: bool) -> tuple[list[int], int]:
    """Return the ids of a context and its continuation, and how many of them, the last ones, are the continuation's.

    Both are encoded as one text. Spaces that end the context belong to the continuation, since a word's token begins
    with its space. A text starts with the token `bos_id` if `prepend_eot` or if there is no context.

    ValueError if there is neither context nor such a token, and for text that the vocabulary cannot express.
    """
    stripped = context.rstrip()
    start = [tokenizer.bos_id] if prepend_eot or not stripped else []
    if start == [None]:
        raise ValueError("it has no context, and the tokenizer no token that begins a text")
    ids = start + tokenizer.encode(context + text)
    return ids, len(ids) - len(start) - len(tokenizer.encode(stripped))


@torch.no_grad()
def score_continuations(
    model: nn.Module, encoded: Sequence[tuple[list[int], int]], batch_size: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return ln p of each continuation in nats, (N,), and whether the model writes it at temperature 0, (N,) bool.

    `encoded` are results of `encode_pair`. A text that exceeds the model's context loses its beginning. The longest
    texts come first, so that a batch that is too large for the memory fails at once.
    """
    longest = model.config.context_length
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
    found, greedy = np.zeros(len(encoded)), np.zeros(len(encoded), bool)
    bar = tqdm(total=len(encoded), unit="choices", leave=False, disable=not sys.stderr.isatty())
    with evaluation_mode(model), bar:
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            texts = [encoded[i][0][-longest - 1 :] for i in rows]
            ends = np.cumsum([len(ids) for ids in texts])
            spans = [(end - len(ids), end - 1) for ids, end in zip(texts, ends, strict=True)]
            inputs, targets = padded_batch(np.concatenate(texts), spans)  # (B, T)
            for row, i in enumerate(rows):
                targets[row, : len(texts[row]) - 1 - encoded[i][1]] = IGNORE_INDEX  # the context
            inputs, targets = inputs.to(device), targets.to(device)
            counted = targets != IGNORE_INDEX  # (B, T)
            hidden = model.hidden_states(inputs)[counted]  # (N, D), of the continuations' N tokens
            losses, ranks = (each.cpu().double().numpy() for each in losses_and_ranks(model, hidden, targets[counted]))
            row_of = counted.nonzero()[:, 0].cpu().numpy()
            found[rows] = -np.bincount(row_of, losses, len(rows))
            greedy[rows] = np.bincount(row_of, ranks > 0, len(rows)) == 0
            bar.update(len(rows))
    return found, greedy


def answer_questions(
    loaded: LoadedModel, name: str, questions: Sequence[Question], batch_size: int, device: torch.device | str = "cpu"
) -> TaskResult:
    """Let a model answer the questions of a task.

    ValueError for a batch_size below 1, and for a question that the vocabulary cannot express or with a choice that
    alone exceeds the model's context.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    start, model = time.perf_counter(), loaded.objective.model
    limit, encoded, cut = model.config.context_length, [], set()
    for number, question in enumerate(questions, start=1):
        for context, text in question.texts:
            try:
                ids, n = encode_pair(context, text, loaded.tokenizer, loaded.prepend_eot)
                if not 0 < n <= limit:
                    raise ValueError(f"the choice {text[:40]!r} has {n} tokens, and the model's context holds {limit}")
            except ValueError as error:
                raise ValueError(f"question {number} of {name} cannot be put to {loaded.name}: {error}") from None
            encoded.append((ids, n))
            if len(ids) > limit + 1:
                cut.add(number)
    found, greedy = score_continuations(model, encoded, batch_size, device)
    ends = np.cumsum([len(question.texts) for question in questions])[:-1]
    by_question = np.split(found, ends)
    if all(len(question.texts) == 1 for question in questions):
        correct, chance = greedy, 0.0
    else:
        correct = _right(by_question, questions)
        chance = float(np.mean([1 / len(question.texts) for question in questions]))
    per_character = None
    if TASKS[name].acc_norm:
        with np.errstate(divide="ignore"):  # an empty choice: minus infinity
            per_character = _right(
                [
                    values / [len(text) - 1 for _, text in question.texts]  # without the space
                    for values, question in zip(by_question, questions, strict=True)
                ],
                questions,
            )
    return TaskResult(name, by_question, correct, per_character, chance, len(cut), time.perf_counter() - start)


def _right(values: Iterable[np.ndarray], questions: Iterable[Question]) -> np.ndarray:
    """Return whether the right choice has the highest value, the first one among equals, by question."""
    return np.array([int(v.argmax()) == question.answer for v, question in zip(values, questions, strict=True)])


def mean_above_chance(results: Sequence[TaskResult]) -> tuple[float, float]:
    """Return the mean of `above_chance` over tasks, and half the width of its 95% interval: normal approximation, with
    two right and two wrong answers more in each task, so that none is sure (Agresti and Coull 1998)."""
    errors = []  # of each task's centred accuracy
    for result in results:
        n = len(result.correct) + NORMAL_95**2
        share = (result.accuracy * len(result.correct) + NORMAL_95**2 / 2) / n
        errors.append(math.sqrt(share * (1 - share) / n) / (1 - result.chance))
    mean = sum(result.above_chance for result in results) / len(results)
    return mean, NORMAL_95 * math.hypot(*errors) / len(results)
