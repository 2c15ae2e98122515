"""Conversations as text and as tokens, by the template that a model was trained with.

A template is a small program in Jinja's language. It comes with the model, so it is run in Jinja's sandbox, as
transformers does: it sees the messages and the names of a few tokens, and can change nothing.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt.text.hf_tokenizer import END_OF_TEXT, token_names
from gpt.text.tokenizers import without_unused
from gpt.tokenizer import EOT, Tokenizer, from_dict, with_special_tokens

CHATML = (  # OpenAI's form of a conversation, the most common one; each message ends with a token
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# private characters, which are dropped from messages: around names of special tokens that a message spells, around what
# a template marks as generated, and in place of a message
START, END, FROM, TO, PROBE = map(chr, range(0xF0000, 0xF0005))
PRIVATE = re.compile(f"[{START}-{PROBE}]")
Message = dict[str, str]  # "role" ("system", "user", "assistant") and "content"


# --- text -------------------------------------------------------------------------------------------------------------


class _Generation(jinja2.ext.Extension):
    """The block {% generation %}, with which a template marks what the assistant says, as transformers reads it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return the block's content, between the characters FROM and TO."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: jinja2.runtime.Macro) -> str:
        return f"{FROM}{caller()}{TO}"


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def to_json(value: Any, ensure_ascii: bool = False, **form) -> str:  # Jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)

    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(template)


def _render(template: str, messages: list[dict[str, Any]], add_generation_prompt: bool, **given) -> str:
    given = {"tools": None, "documents": None, **given}
    try:
        return _compiled(template).render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
    except Exception as error:  # a template may raise any
        raise ValueError(f"the chat template cannot be used: {error}") from None


def render_chat(template: str, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **special) -> str:
    """Return a conversation as text. Messages have a "role" ("system", "user", "assistant") and a "content".

    With `add_generation_prompt` the text ends where the assistant's answer begins. `special` are the names that a
    template may use, such as bos_token="<s>". Raises ValueError for a template that cannot be run, or that refuses the
    messages.
    """
    return re.sub(f"[{FROM}{TO}]", "", _render(template, messages, add_generation_prompt, **special))


# --- tokens -----------------------------------------------------------------------------------------------------------


def add_chat_template(tokenizer: Tokenizer, name: str = "", log: Callable[[str], None] | None = None) -> Tokenizer:
    """Return a tokenizer with a chat template: its own, or ChatML with the two tokens that this needs.

    They take the place of unused tokens, such as a run has whose model has more rows than tokens. The one that ends a
    message then also ends a text, so that other programs stop there. The result is as it will be loaded again. `log`
    gets a line if ChatML is added to the tokenizer called `name`, or if its own template lets no answer end.
    """
    if tokenizer.chat_template is not None:
        start = token_names(tokenizer).get("bos_token")
        saved = from_dict(tokenizer.to_dict())
        if start and token_names(saved).get("bos_token") != start and "bos_token" in tokenizer.chat_template:
            template = f"{{%- set bos_token = {json.dumps(start)} -%}}{tokenizer.chat_template}"
            saved = from_dict(tokenizer.to_dict() | {"chat_template": template})
        if log and not _end_token(saved):
            log(f"the chat template of {name} ends no answer with a special token: a model cannot learn to stop")
        return saved
    tokenizer = with_special_tokens(without_unused(tokenizer), CHATML_TOKENS)
    if log:
        names = " and ".join(f"{token}, token {tokenizer.special_tokens[token]}," for token in CHATML_TOKENS)
        log(f"{name} has no chat template: conversations are written as ChatML, with {names} around each message")
    return from_dict(tokenizer.to_dict() | {"chat_template": CHATML, "eot": CHATML_TOKENS[1]})


def encode_chat(tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool = True) -> list[int]:
    """Return the token ids of a conversation, by the tokenizer's own template. ValueError if it has none.

    Names of special tokens in a message are ordinary text: nobody ends a message by writing <|im_end|> into it.
    """
    text = _render_marked(tokenizer, _mark_names(tokenizer, messages), add_generation_prompt)
    return _encode_marked(tokenizer, re.sub(f"[{FROM}{TO}]", "", text))


def encode_conversation(tokenizer: Tokenizer, messages: list[Message], first: int = 0) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation by the tokenizer's own template, and which of them count in the loss.

    Those are what the assistant says in each turn from message `first` on, with the special token that ends it. A token
    belongs to the turn in which it begins. If the template marks answers by {% generation %}, tokens that overlap with
    what it marks count, as in transformers.

    ValueError if the template does not write each answer once, apart from the other messages.
    """
    messages = _mark_names(tokenizer, messages)
    text = _render_marked(tokenizer, messages, add_generation_prompt=False)
    marked = FROM in text
    spans = _marked_spans(text, messages, first) if marked else _spans(tokenizer, text, messages, first)
    text = re.sub(f"[{FROM}{TO}]", "", text)
    ids = _encode_marked(tokenizer, text)
    sizes, counted = _token_sizes(tokenizer)[ids], np.zeros(len(ids), bool)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    exact = tokenizer.decode_bytes(ids) == re.sub(f"[{START}{END}]", "", text).encode()
    for a, b in spans:
        a, b = (_byte_offset(tokenizer, text[:place], exact) for place in (a, b))
        counted |= ((ends > a) if marked else (starts >= a)) & (starts < b)
    return ids, counted.tolist()


def stop_ids(tokenizer: Tokenizer) -> set[int | None]:
    """Return the ids of the tokens that end an answer: by the template, and those that end a text."""
    names = {EOT, *END_OF_TEXT, _end_token(tokenizer).strip()} if tokenizer.chat_template else {}
    found = {tokenizer.special_tokens[name] for name in names if name in tokenizer.special_tokens}
    return found | {tokenizer.eot_id}


def _mark_names(tokenizer: Tokenizer, messages: list[Message]) -> list[Message]:
    """Return messages whose contents have START and END around names of special tokens, and no private character."""
    names = _spelled_names(tokenizer)
    return [
        {key: names.sub(rf"{START}\g<0>{END}", PRIVATE.sub("", value)) for key, value in message.items()}
        for message in messages
    ]


@functools.lru_cache(maxsize=8)
def _spelled_names(tokenizer: Tokenizer) -> re.Pattern[str]:
    names = tokenizer.special_tokens.keys() - tokenizer.saved.get("plain", ())
    names = sorted(names, key=len, reverse=True)  # of two that match, the longer one
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def _render_marked(tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise ValueError("the model has no chat template: it was not trained on conversations")
    return _render(tokenizer.chat_template, messages, add_generation_prompt, **token_names(tokenizer))


def _encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text in which names between START and END are ordinary text."""
    parts = re.split(f"{START}({_spelled_names(tokenizer).pattern}){END}", text)
    return [  # the template's text and the messages' names alternate
        i
        for n, part in enumerate(parts)
        for i in (tokenizer.encode(re.sub(f"[{START}{END}]", "", part), special=n % 2 == 0) if part else ())
    ]


@functools.lru_cache(maxsize=8)
def _token_sizes(tokenizer: Tokenizer) -> np.ndarray:
    """Return the number of bytes of each token, (V,)."""
    return np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])


def _byte_offset(tokenizer: Tokenizer, before: str, exact: bool) -> int:
    """Return how many bytes the tokens of a text have: those of the text itself where its tokens are `exact`. A
    tokenizer may also drop a character, compose it with another or write a space before a text."""
    if exact:
        return len(re.sub(f"[{START}{END}]", "", before).encode())
    return len(tokenizer.decode_bytes(_encode_marked(tokenizer, before)))


# --- the assistant's part ---------------------------------------------------------------------------------------------


def _marked_spans(text: str, messages: list[Message], first: int) -> list[tuple[int, int]]:
    """Return where the text between FROM and TO begins and ends, in a text without these characters."""
    places = [found.start() - n for n, found in enumerate(re.finditer(f"[{FROM}{TO}]", text))]
    spans = list(zip(places[::2], places[1::2], strict=True))
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if first and len(spans) != len(answers):
        raise ValueError(f"the chat template marks {len(spans)} parts as generated in a text of {len(answers)} answers")
    return [span for n, span in enumerate(spans) if not first or answers[n] >= first]


@functools.lru_cache(maxsize=8)
def _end_token(tokenizer: Tokenizer) -> str:
    """Return the special token that a template writes after an answer, with white space before it; "" if none."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    try:
        after = re.sub(f"[{FROM}{TO}]", "", _render_marked(tokenizer, messages, False).rpartition(PROBE)[2])
    except ValueError:  # of a template that wants more than these two
        return ""
    names = _spelled_names(tokenizer)
    return found[0] if (found := re.match(rf"\s*(?:{names.pattern})", after)) else ""


def _spans(tokenizer: Tokenizer, text: str, messages: list[Message], first: int) -> list[tuple[int, int]]:
    """Return where each answer from message `first` on begins and ends in the `text` of a conversation.

    It begins where the text of the messages before it ends, with the generation prompt. It ends where the rest of the
    conversation begins, which is the same for another answer in its place.
    """
    end_token, spans = _end_token(tokenizer), []
    for n, message in enumerate(messages):
        if message["role"] != "assistant" or n < first:
            continue
        other = [*messages[:n], {**message, "content": PROBE}, *messages[n + 1 :]]
        head, found, after = _render_marked(tokenizer, other, add_generation_prompt=False).partition(PROBE)
        before, prompt = (_render_marked(tokenizer, messages[:n], flag) for flag in (False, True))
        head = prompt if prompt != before and text.startswith(prompt) else head.rstrip(" ")
        end = len(text) - len(after)
        fits = found and text.startswith(head) and text.endswith(after)
        if not fits or end < len(head):
            raise ValueError(
                f"the chat template does not write message {n + 1} once, apart from the others: it cannot be told what "
                f"the assistant says"
            )
        spans.append((len(head), end + len(end_token) * after.startswith(end_token)))
    return spans
