"""Requests that a model has not seen: which of its tales obey, and which of its answers about them are right."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn

from gpt.objectives.documents import Completion, complete
from gpt.objectives.rewards import USER
from gpt.text import requests, tasks
from gpt.text.chat import Message, encode_chat, stop_ids
from gpt.token_files import PreparedData
from gpt.tokenizer import Tokenizer

NO_END = "no end"  # what is wrong with a tale that fills the context


@dataclass
class Answers:
    """How a model answers some requests, and one question about each of its tales."""

    obeyed: int = 0  # requests
    failures: Counter[str] = field(default_factory=Counter)  # kind -> tales; one can keep several constraints not
    asked: int = 0  # questions, one about each text that is a tale
    right: int = 0  # their answers, word for word
    conversations: list[list[Message]] = field(default_factory=list)


def holds_requests(data: PreparedData) -> bool:
    """Return whether prepared data are conversations of gpt/text/requests.py."""
    return "requests:" in data.source and data.train.flags is not None


def unseen_requests(data: PreparedData, n: int, seed: int) -> list[str]:
    """Return n requests of which none is in the training split, word for word."""
    known = {message for text in data.documents(data.train) for message in USER.findall(text)}
    drawn = (messages[0]["content"] for messages in requests.conversations(f"unseen:{seed}", 0))
    return list(islice((request for request in drawn if request not in known), n))


def answer_requests(
    model: nn.Module, tokenizer: Tokenizer, asked: Iterable[str], temperature: float, seed: int = 0
) -> Answers:
    """Let a model answer requests, and one question about each of its tales; the seed draws both."""
    found, rng = Answers(), random.Random(seed)
    sampling = {"temperature": temperature, "generator": torch.Generator(next(model.parameters()).device)}
    sampling["generator"].manual_seed(seed)
    found.conversations = [[{"role": "user", "content": request}] for request in asked]
    expected = []  # (conversation with a question about its tale, the right answer)
    replies = _reply(model, tokenizer, found.conversations, sampling)
    for messages, (text, ended) in zip(found.conversations, replies, strict=True):
        kinds = requests.kinds_of_failure(requests.parse(messages[0]["content"]), text) if ended else [NO_END]
        found.obeyed += not kinds
        found.failures.update(kinds)
        messages.append({"role": "assistant", "content": text})
        if not any(kind == NO_END or kind.startswith("grammar: ") for kind in kinds):
            question, answer = rng.choice([*tasks.answers(text).items()])
            messages.append({"role": "user", "content": question})
            expected.append((messages, answer))
    replies = _reply(model, tokenizer, [messages for messages, _ in expected], sampling)
    for (messages, answer), (text, ended) in zip(expected, replies, strict=True):
        messages.append({"role": "assistant", "content": text})
        found.right += ended and text == answer
    found.asked = len(expected)
    return found


def _reply(
    model: nn.Module, tokenizer: Tokenizer, conversations: list[list[Message]], sampling: dict, batch_size: int = 100
) -> list[tuple[str, bool]]:
    """Return the answer to the last message of each conversation, and whether it ends."""
    found: list[Completion] = []
    prompts = [encode_chat(tokenizer, messages) for messages in conversations]
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        room = max(1, model.config.context_length - max(map(len, batch)))
        found += complete(model, batch, stop_ids(tokenizer), room, **sampling)
    return [(tokenizer.decode(ids), ended) for ids, ended in found]


def describe_requests(columns: dict[str, Answers]) -> str:
    """Return a table of the requests obeyed, the others by kinds, and the questions answered, with a column for each
    way of sampling; below it a conversation of the first one."""
    first, *_ = columns.values()
    n = len(first.conversations)
    kinds = sorted(set().union(*(each.failures for each in columns.values())), key=lambda kind: -first.failures[kind])
    rows = [(f"{n} requests, none in the training data", [*columns])]
    rows += [("obeyed", [f"{each.obeyed / n:.1%}" for each in columns.values()])]
    rows += [(f"not kept: {kind}", [f"{each.failures[kind] / n:.1%}" for each in columns.values()]) for kind in kinds]
    right = [f"{each.right / each.asked:.1%}" if each.asked else "-" for each in columns.values()]
    rows += [("questions about these tales answered", right)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}" + "".join(f"{cell:>16}" for cell in cells) for name, cells in rows]
    shown = max(first.conversations, key=len)
    return "\n".join([*lines, "", *(f"{message['role']:<11}{message['content']}" for message in shown)])
