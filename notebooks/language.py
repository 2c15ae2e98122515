"""The language of the checker's hints: English, unless the notebook's first cell sets NOTEBOOK_LANGUAGE.

The checks are written in English. zh/hints/*.json hold their texts in Chinese, {English: Chinese}; {0}, {1}, ... stand
for the values of an f-string, in its order.
"""

import json
import os
import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


def say(text: str, *values: object) -> str:
    """Return a text with values for its {0}, {1}, ... in the notebook's language, a value that is a text too."""
    values = tuple(translate(value) if isinstance(value, str) else value for value in values)
    return _texts(current()).get(text, text).format(*values)


def translate(text: str) -> str:
    """Return a finished text in the notebook's language, in English if it has no translation."""
    texts = _texts(current())
    if text in texts:
        return texts[text]
    for pattern, translation in _patterns(current()):
        if found := pattern.fullmatch(text):
            return translation.format(*map(translate, found.groups()))
    return text


def join(*sentences: str) -> str:
    """Join sentences in the notebook's language. Chinese has no space between them."""
    return ("" if current() == "zh" else " ").join(filter(None, sentences))


def current() -> str:
    """Return the language, "en" or "zh"."""
    return os.environ.get("NOTEBOOK_LANGUAGE", "en")


@cache
def _texts(language: str) -> dict[str, str]:
    paths = sorted((HERE / language / "hints").glob("*.json"))
    return {key: text for path in paths for key, text in json.loads(path.read_text(encoding="utf-8")).items()}


@cache
def _patterns(language: str) -> list[tuple[re.Pattern, str]]:
    """Return the texts with values as patterns, the one that says most first."""
    with_values = [(re.split(r"\{\d\}", key), text) for key, text in _texts(language).items() if "{0}" in key]
    with_values.sort(key=lambda pair: -sum(map(len, pair[0])))
    return [(re.compile("(.+?)".join(map(re.escape, parts)), re.DOTALL), text) for parts, text in with_values]
