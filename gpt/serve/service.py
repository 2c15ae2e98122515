"""A loaded model with its engine, and a client's requests on their way through it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from gpt.exchange.models import LoadedModel
from gpt.serve.engine import BusyError, End, Engine, Event, Failure, Request
from gpt.serve.protocol import ApiError, ChatBody, CompletionBody


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

    def room(self, ids: Sequence[int], max_tokens: int | None) -> int:
        """Return how many tokens to write after a prompt. ApiError 400 if the context has no room for them."""
        room = self.context_length + 1 - len(ids)  # the last token is not read
        if room < max(1, max_tokens or 0):
            raise ApiError(
                400,
                f"the model's context has {self.context_length} tokens: a prompt of {len(ids)} leaves room for "
                f"{max(0, room)}, not for {max_tokens or 1}",
                "context_length_exceeded",
            )
        return room if max_tokens is None else max_tokens


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
            self.engine.submit(*self.requests)
        except BusyError:
            raise ApiError(429, "too many requests wait: try again in a moment", "rate_limit_exceeded") from None
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
