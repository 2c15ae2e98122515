"""A loaded model with its engine, and a client's requests on their way through it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest

from gpt.exchange.models import LoadedModel
from gpt.objectives.documents import with_start
from gpt.serve.engine import BusyError, End, Engine, Event, Failure, Request
from gpt.serve.protocol import ApiError, ChatBody, ChatMessage, CompletionBody
from gpt.text.chat import encode_chat


@dataclass
class Service:
    """A loaded model, its engine, and the name that clients call it by."""

    loaded: LoadedModel
    engine: Engine
    name: str

    def __post_init__(self):
        self.created = int(time.time())
        self.model, self.tokenizer = self.loaded.objective.model, self.loaded.tokenizer
        self.context_length = self.model.config.context_length

    def check(self, body: CompletionBody | ChatBody) -> None:
        """ApiError 404 for another model, 400 for a token id outside the vocabulary."""
        if body.model not in (None, self.name):
            raise ApiError(404, f"the model {body.model!r} is not served here: {self.name} is", "model_not_found")
        for token in body.sampling().logit_bias:
            if token >= self.tokenizer.vocab_size:
                raise ApiError(
                    400, f"logit_bias: token {token} is outside the vocabulary of {self.tokenizer.vocab_size} tokens"
                )

    def encode(self, text: str) -> tuple[list[int], int]:
        """Return the token ids that the model reads for a text, and how many of them come before it.

        ApiError 400 for a text that the tokenizer cannot express, or an empty one that nothing can begin.
        """
        try:
            ids = self.loaded.objective.encode_prompt(text, self.tokenizer)
        except ValueError as error:
            raise ApiError(400, f"prompt: {error}", param="prompt") from None
        if not ids and self.tokenizer.bos_id is None:
            raise ApiError(400, "prompt: it is empty, and the model has no token that begins a text", param="prompt")
        started = with_start(ids, self.tokenizer, self.loaded.prepend_eot)
        return started, len(started) - len(ids)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a conversation, up to where the answer begins.

        ApiError 400 without a chat template, or for messages that it refuses.
        """
        if self.tokenizer.chat_template is None:
            raise ApiError(400, "the model has no chat template: use /v1/completions", "no_chat_template")
        try:
            return encode_chat(self.tokenizer, [message.plain() for message in messages])
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None

    async def call(self, function: Callable[[], Any]) -> Any:
        """Return the result of a function of the model, which runs between two steps of the engine.

        A call that is cancelled before its turn does not run. ApiError 429 if too many wait.
        """
        with _busy():
            future = self.engine.call(function)
        return await asyncio.wrap_future(future)

    def room(self, ids: Sequence[int], max_tokens: int | None, default: int | None = None) -> int:
        """Return how many tokens to write after a prompt: max_tokens, or the default as far as there is room, or all.

        ApiError 400 if the context has no room for max_tokens, or for a single token.
        """
        room = self.context_length + 1 - len(ids)  # the last token is not read
        if room < max(1, max_tokens or 0):
            raise ApiError(
                400,
                f"the model's context has {self.context_length} tokens: a prompt of {len(ids)} leaves room for "
                f"{max(0, room)}, not for {max_tokens or 1}",
                "context_length_exceeded",
            )
        if max_tokens is None:
            return room if default is None else min(default, room)
        return max_tokens


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A context in which a full queue is an ApiError."""
    try:
        yield
    except BusyError:
        raise ApiError(429, "too many requests wait: try again in a moment", "rate_limit_exceeded") from None


class Ticket:
    """Requests given to the engine, and their events in the order in which they come: (choice, event).

    Choice i·n + j is text j of prompt i. Leaving the context cancels what is not finished.
    """

    def __init__(self, engine: Engine):
        self.engine, self.requests = engine, []
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def add(self, **settings) -> None:
        """Add a request; the settings are those of `engine.Request`."""
        first = len(self.requests) * settings["n"]

        def sink(row: int, event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._events.put_nowait, (first + row, event))

        self.requests.append(Request(sink=sink, **settings))

    async def __aenter__(self) -> "Ticket":
        try:
            with _busy():
                self.engine.submit(*self.requests)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        return self

    async def __aexit__(self, *error) -> None:
        for request in self.requests:
            request.cancelled = True

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield events until every choice has ended. ApiError 500 if one fails."""
        left = set(range(sum(request.n for request in self.requests)))
        while left:
            choice, event = await self._events.get()
            if isinstance(event, Failure):
                raise ApiError(500, event.message)
            if choice in left:
                yield choice, event
            if isinstance(event, End):
                left.discard(choice)


async def unless_gone(http: HttpRequest, work: Awaitable[Any]) -> Any:
    """Return the result of `work`, unless the client goes away first."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ApiError(499, "the client closed the connection")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
