"""Conversations as text, by the template that a model was trained with.

A template is a small program in Jinja's language. It comes with the model, so it is run in Jinja's sandbox, as
transformers does: it sees the messages and the names of a few tokens, and can change nothing.
"""

import datetime
import json
import re
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt.text.hf_tokenizer import token_names
from gpt.tokenizer import Tokenizer

START, END = "\U000f0000", "\U000f0001"  # private characters around names of special tokens that a message spells


def render_chat(template: str, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **special) -> str:
    """Return a conversation as text. Messages have a "role" ("system", "user", "assistant") and a "content".

    With `add_generation_prompt` the text ends where the assistant's answer begins. `special` are the names that a
    template may use, such as bos_token="<s>". Raises ValueError for a template that cannot be run, or that refuses the
    messages.
    """

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def to_json(value: Any, ensure_ascii: bool = False, **form) -> str:  # Jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    given = {"tools": None, "documents": None, **special}
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **given
        )
    except Exception as error:  # a template may raise any
        raise ValueError(f"the chat template cannot be used: {error}") from None


def encode_chat(tokenizer: Tokenizer, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
    """Return the token ids of a conversation, by the tokenizer's own template. ValueError if it has none.

    Names of special tokens in a message are ordinary text: nobody ends a message by writing <|im_end|> into it.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the model has no chat template: it was not trained on conversations")
    names = tokenizer.special_tokens.keys() - tokenizer.saved.get("plain", ())
    names = sorted(names, key=len, reverse=True)  # of two that match, the longer one
    spelt = re.compile("|".join(map(re.escape, names)))

    def mark(text: str) -> str:
        return spelt.sub(rf"{START}\g<0>{END}", re.sub(f"[{START}{END}]", "", text))

    marked = [{key: mark(value) for key, value in message.items()} for message in messages]
    text = render_chat(tokenizer.chat_template, marked, add_generation_prompt, **token_names(tokenizer))
    parts = re.split(f"{START}({spelt.pattern}){END}", text)  # the template's text and the messages' names alternate
    return [
        i
        for n, part in enumerate(parts)
        for i in (tokenizer.encode(re.sub(f"[{START}{END}]", "", part), special=n % 2 == 0) if part else ())
    ]
