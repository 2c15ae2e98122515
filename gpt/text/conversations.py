"""Conversations in records: the forms that people bring, read as messages and checked one by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpt.text.chat import Message
from gpt.text.readers import LONE_SURROGATE, conversation_advice, describe_value, read_records

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}  # as ShareGPT has them
KNOWN_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """Messages, and the record that they are from. Its text, as that of any document, are the contents in turn."""

    messages: list[Message]
    where: str
    first: int = 0  # answers from this message on count in the loss

    def __iter__(self) -> Iterator[str]:
        return (message["content"] for message in self.messages)

    def __len__(self) -> int:
        return sum(map(len, self))  # characters

    @property
    def turns(self) -> int:
        """The number of messages apart from the system's."""
        return sum(message["role"] != "system" for message in self.messages)


def read_conversations(path: Path, form: str, encoding: str = "utf-8") -> Iterator[Conversation]:
    """Yield the conversations of a file of records in a form of FORMATS; of preferences the chosen, then the rejected.

    ValueError names the record without an answer, with an unknown role, with roles out of order, or with a content that
    is empty or no text.
    """
    keys, read = FORMATS[form]
    for n, record in enumerate(read_records(path, dict.fromkeys(keys).keys(), encoding, others=True), start=1):
        where = f"record {n} of {path}"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is {describe_value(record)}, not an object with {' and '.join(keys)}")
        for messages, first in read(record, where):
            _check(messages, where)
            yield Conversation(messages, where, first)


# --- forms ------------------------------------------------------------------------------------------------------------

Found = Iterator[tuple[list[Message], int]]  # messages, and the first of them that counts


def _from_messages(record: dict[str, Any], where: str) -> Found:
    yield _messages(_get(record, "messages", where), "messages", where), 0


def _from_sharegpt(record: dict[str, Any], where: str) -> Found:
    yield _system(record, where) + _messages(_get(record, "conversations", where), "conversations", where), 0


def _from_alpaca(record: dict[str, Any], where: str) -> Found:
    task, answer = (_text(_get(record, key, where), f"in {key!r}", where) for key in ("instruction", "output"))
    given = _text(record.get("input") or "", "in 'input'", where)
    yield _system(record, where) + _pair(f"{task}\n\n{given}" if given else task, answer), 0


def _from_prompt_completion(record: dict[str, Any], where: str) -> Found:
    messages = _completed(record.get("prompt"), _get(record, "completion", where), "completion", where)
    answers = record["completion"]
    yield messages, len(messages) - (len(answers) if isinstance(answers, list) else 1)


def _from_preferences(record: dict[str, Any], where: str) -> Found:
    """Of strings without a prompt, it is what both begin with, up to the end of a word."""
    prompt, texts = record.get("prompt"), [_get(record, key, where) for key in ("chosen", "rejected")]
    if prompt is None and all(isinstance(text, str) for text in texts):
        prompt = _common_start(*texts)
        texts = [text[len(prompt) :] for text in texts]
    both = [_completed(prompt, text, key, where) for key, text in zip(("chosen", "rejected"), texts, strict=True)]
    chosen, rejected = both
    if chosen[:-1] != rejected[:-1]:
        raise ValueError(f"{where} differs before the last answer of chosen and rejected: they need the same prompt")
    if chosen == rejected:
        raise ValueError(f"{where} has the same text as chosen and rejected: there is nothing to prefer")
    if chosen[-1]["role"] != "assistant":
        raise ValueError(f"{where} does not end with an answer: chosen and rejected need one each")
    yield from ((messages, len(messages) - 1) for messages in both)


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], str], Found]]] = {
    "messages": (("messages",), _from_messages),
    "sharegpt": (("conversations",), _from_sharegpt),
    "alpaca": (("instruction", "output"), _from_alpaca),
    "prompt_completion": (("prompt", "completion"), _from_prompt_completion),
    "preferences": (("chosen", "rejected"), _from_preferences),
}  # the fields that tell a record, and how it is read


# --- parts of a record ------------------------------------------------------------------------------------------------


def _get(record: dict[str, Any], key: str, where: str) -> Any:
    if key not in record:
        advice = conversation_advice(record)
        there = ", ".join(map(str, record))[:200] or "none at all"
        raise ValueError(f"{where} has no field {key!r}, but: {there}{advice and f'; {advice}'}")
    return record[key]


def _text(value: Any, what: str, where: str) -> str:
    """Return a text with \\n as line end. ValueError for what is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        value = str(value)  # a label
    if not isinstance(value, str):
        raise ValueError(f"{where} has no text {what}, but {describe_value(value)}")
    if LONE_SURROGATE.search(value):
        raise ValueError(f"{where} has half a character, a lone surrogate, {what}")
    return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value


def _system(record: dict[str, Any], where: str) -> list[Message]:
    """Return the system's message where a record has it in a field of its own."""
    text = record.get("system")
    return [{"role": "system", "content": _text(text, "in 'system'", where)}] if text else []


def _pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _messages(value: Any, key: str, where: str) -> list[Message]:
    """Return a list of messages, by role and content or by ShareGPT's from and value."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{where} has no list of messages in {key!r}, but {describe_value(value)}")
    found = []
    for n, item in enumerate(value, start=1):
        role = item.get("role", item.get("from"))
        content = item.get("content", item.get("value"))
        if isinstance(content, list):
            content = _joined(content, n, where)
        if not isinstance(content, str):
            raise ValueError(f"{where} has no text in message {n}, but {describe_value(content)}")
        role = ROLES.get(role, role) if isinstance(role, str) else role
        found.append({"role": role, "content": _text(content, f"in message {n}", where)})
    return found


def _joined(parts: list[Any], n: int, where: str) -> str:
    """Return the text of message n, a list of parts as in OpenAI's form. ValueError for a part that is no text."""
    for part in parts:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = repr(part["type"]) if isinstance(part, dict) and "type" in part else describe_value(part)
            raise ValueError(f"{where} has a part that is no text in message {n}, but {kind}")
    return "".join(part["text"] for part in parts)


def _completed(prompt: Any, answer: Any, key: str, where: str) -> list[Message]:
    """Return the messages of a prompt with its completion, strings or lists. A list may repeat the prompt."""
    if not isinstance(answer, list):
        answer = [{"role": "assistant", "content": _text(answer, f"in {key!r}", where)}]
    else:
        answer = _messages(answer, key, where)
        if answer and answer[0]["role"] != "assistant":
            return answer
    if prompt is None:
        raise ValueError(f"{where} has no field 'prompt', and {key!r} begins with an answer")
    if not isinstance(prompt, list):
        return [{"role": "user", "content": _text(prompt, "in 'prompt'", where)}, *answer]
    return _messages(prompt, "prompt", where) + answer


def _common_start(a: str, b: str) -> str:
    """Return what two texts begin with, up to the end of a word."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while n and not a[n - 1 : n].isspace():
        n -= 1
    return a[:n].rstrip()


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(messages: list[Message], where: str) -> None:
    """ValueError unless an optional system's message comes first, then the user and the assistant in turn."""

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{where} {reason}")

    if not messages:
        refuse("holds no messages: leave it out")
    expected = "user"
    for n, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in KNOWN_ROLES:
            named = f"the unknown role {role!r}" if isinstance(role, str) else "no role"
            refuse(f"has {named} in message {n}: system, user and assistant are read, also as human and gpt")
        if role == "system" and n == 1:
            continue
        if role != expected:
            refuse(f"has roles out of order: message {n} is the {role}'s, where the {expected}'s is expected")
        if not message["content"].strip():
            refuse(f"has an empty content in message {n}, the {role}'s")
        expected = "assistant" if role == "user" else "user"
    if all(message["role"] != "assistant" for message in messages):
        refuse("has no turn of the assistant: there is nothing to learn from it")
