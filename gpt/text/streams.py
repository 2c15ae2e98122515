"""Text as its tokens arrive: whole characters, up to the first stop string."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from gpt.tokenizer import Tokenizer


class TextStream:
    """Take tokens one by one and give back the text that is certain: whole characters, before any stop string.

    What may be the beginning of a stop, also across tokens, is held back until the next ones decide. `stopped` is true
    once a stop came. A space that SentencePiece writes before a text is kept: these tokens may continue one.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, stops
        self.held, self.stopped = "", False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the text that is certain with one more token, "" if there is none. After a stop nothing comes."""
        return self._release(self._decoder.decode(self.tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """Return the rest: what was held back, with U+FFFD for a character that is not complete."""
        text = self._release(self._decoder.decode(b"", final=True))
        held, self.held = self.held, ""
        return text if self.stopped else text + held

    def _release(self, piece: str) -> str:
        if self.stopped:
            return ""
        text, self.held = self.held + piece, ""
        if found := [place for stop in self.stops if (place := text.find(stop)) >= 0]:
            self.stopped = True
            return text[: min(found)]
        if n_held := max((_overlap(text, stop) for stop in self.stops), default=0):
            text, self.held = text[:-n_held], text[-n_held:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text with which a stop begins, shorter than the stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int], stops: Sequence[str] = ()) -> Iterator[str]:
    """Yield the text of tokens as they arrive, up to the first stop. Nothing is asked of `ids` after it.

    Without stops the pieces join to `tokenizer.decode(all ids)`.
    """
    stream = TextStream(tokenizer, stops)
    for i in ids:
        if text := stream.push(i):
            yield text
        if stream.stopped:
            return
    if text := stream.finish():
        yield text
