"""The HTTP server: an API that OpenAI's clients speak, server-sent events, and the playground's page.

Every request passes the `Guard` first. A request names no file: the page's files are read once, when the server starts.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gpt.exchange.models import LoadedModel
from gpt.objectives.documents import with_start
from gpt.serve.description import describe_api
from gpt.serve.engine import BusyError, End, Engine, Event, Failure, Piece, Request
from gpt.serve.guard import Guard
from gpt.serve.playground import Playground
from gpt.serve.protocol import (
    ApiError,
    ChatBody,
    CompletionBody,
    CompletionLogprobs,
    chat_logprobs,
    parse,
    usage,
)
from gpt.text.chat import encode_chat, stop_ids

DEFAULT_TOKENS = 16  # of a completion, as in OpenAI's API
SEND_SECONDS = 60  # a client that reads nothing for this long is dropped


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
                raise ApiError(400, f"logit_bias: the vocabulary has {self.tokenizer.vocab_size} tokens, not {token}")

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
        left = {number for number in range(sum(request.n for request in self.requests))}
        while left:
            choice, event = await self._events.get()
            if isinstance(event, Failure):
                raise ApiError(500, event.message)
            if choice in left:
                yield choice, event
            if isinstance(event, End):
                left.discard(choice)


# --- completions ------------------------------------------------------------------------------------------------------


class Answer:
    """How the events of a request become OpenAI's objects; a subclass for each kind of request."""

    kind = chunk_kind = ""

    def __init__(self, service: Service, prefix: str, stream: bool, include_usage: bool):
        self.service, self.stream, self.include_usage = service, stream, include_usage
        self.id, self.created = f"{prefix}-{secrets.token_hex(12)}", int(time.time())
        self.n_prompt = self.n_written = 0

    def envelope(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        """Return an object of this answer with some choices."""
        found = {"id": self.id, "object": kind, "created": self.created, "model": self.service.name, "choices": choices}
        return found | ({"usage": None} if self.stream and self.include_usage else {})

    def begin(self, choice: int) -> dict | None:
        """Return what a stream sends before the first text of a choice, if anything."""

    def part(self, choice: int, event: Event) -> dict | None:
        """Return an event as a choice of a chunk, or None if it says nothing."""
        raise NotImplementedError

    def whole(self, parts: list[dict]) -> dict:
        """Return one choice from all its parts."""
        raise NotImplementedError

    async def chunks(self, ticket: Ticket) -> AsyncIterator[dict]:
        """Yield the objects of a stream."""
        begun: set[int] = set()
        async for choice, event in ticket.events():
            if choice not in begun and (first := self.begin(choice)):
                yield self.envelope(self.chunk_kind, [first])
            begun.add(choice)
            if isinstance(event, End):
                self.n_written += event.n_tokens
            if part := self.part(choice, event):
                yield self.envelope(self.chunk_kind, [part])
        if self.include_usage:
            yield self.envelope(self.chunk_kind, []) | {"usage": usage(self.n_prompt, self.n_written)}

    async def all(self, ticket: Ticket) -> dict[str, Any]:
        """Return the object of a whole answer."""
        parts: dict[int, list[dict]] = {}
        async for choice, event in ticket.events():
            if isinstance(event, End):
                self.n_written += event.n_tokens
            if part := self.part(choice, event):
                parts.setdefault(choice, []).append(part)
        choices = [self.whole(parts[choice]) for choice in sorted(parts)]
        return self.envelope(self.kind, choices) | {"usage": usage(self.n_prompt, self.n_written)}


class CompletionAnswer(Answer):
    """Text completions."""

    kind = chunk_kind = "text_completion"

    def __init__(self, service: Service, body: CompletionBody):
        options = body.stream_options
        super().__init__(service, "cmpl", bool(body.stream), bool(options and options.include_usage))
        self.body, self.prompts = body, []
        self.logprobs: dict[int, CompletionLogprobs] = {}

    def add_to(self, ticket: Ticket) -> None:
        """Add a request for each prompt. ApiError 400 for a prompt that the model cannot read."""
        body, service, objective = self.body, self.service, self.service.loaded.objective
        for prompt in body.prompts:
            ids, text = prompt, ""
            try:
                if isinstance(prompt, str):
                    ids = objective.encode_prompt(prompt, service.tokenizer)
                    ids = with_start(ids, service.tokenizer, service.loaded.prepend_eot)
                    n_hidden, text = len(ids) - len(objective.encode_prompt(prompt, service.tokenizer)), prompt
                else:
                    n_hidden, text = 0, service.tokenizer.decode(ids)
            except ValueError as error:
                raise ApiError(400, f"prompt: {error}".replace(": write --prompt TEXT", ""), param="prompt") from None
            self.n_prompt += len(ids)
            self.prompts.append((text, n_hidden))
            ticket.add(
                prompt=ids,
                max_new_tokens=service.room(ids, DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens),
                sampling=body.sampling(),
                seed=_seed(body.seed),
                n=body.n or 1,
                stop_ids={service.tokenizer.eot_id},
                stops=body.stops,
                n_likeliest=body.logprobs,
                echo=bool(body.echo),
            )

    def part(self, choice: int, event: Event) -> dict | None:
        """See `Answer.part`. With echo the prompt comes first; its scores come with the first of its texts."""
        text, scored, reason = "", [], None
        prompt, n_hidden = self.prompts[choice // (self.body.n or 1)]
        if isinstance(event, list):  # the prompt
            text, scored = prompt, event[n_hidden:]
        elif isinstance(event, Piece):
            text, scored = event.text, event.tokens
        else:
            reason = event.reason
        logprobs = None
        if self.body.logprobs is not None:
            writer = self.logprobs.setdefault(choice, CompletionLogprobs(self.service.tokenizer))
            logprobs = writer.lists(scored)
        return {"text": text, "index": choice, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, parts: list[dict]) -> dict:
        """See `Answer.whole`."""
        logprobs = None
        if self.body.logprobs is not None:
            names = parts[0]["logprobs"]
            logprobs = {name: [x for part in parts for x in part["logprobs"][name]] for name in names}
        return parts[-1] | {"text": "".join(part["text"] for part in parts), "logprobs": logprobs}


class ChatAnswer(Answer):
    """Chat completions."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatBody):
        options = body.stream_options
        super().__init__(service, "chatcmpl", bool(body.stream), bool(options and options.include_usage))
        self.body = body

    def add_to(self, ticket: Ticket) -> None:
        """Add the request. ApiError 400 without a chat template, or for messages that it refuses."""
        body, service = self.body, self.service
        if service.tokenizer.chat_template is None:
            raise ApiError(400, "the model has no chat template: use /v1/completions", "no_chat_template")
        try:
            ids = encode_chat(service.tokenizer, [message.plain() for message in body.messages])
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None
        self.n_prompt = len(ids)
        given = [limit for limit in (body.max_completion_tokens, body.max_tokens) if limit is not None]
        ticket.add(
            prompt=ids,
            max_new_tokens=service.room(ids, min(given, default=None)),
            sampling=body.sampling(),
            seed=_seed(body.seed),
            n=body.n or 1,
            stop_ids=stop_ids(service.tokenizer),
            stops=body.stops,
            n_likeliest=(body.top_logprobs or 0) if body.logprobs else None,
        )

    def begin(self, choice: int) -> dict:
        """See `Answer.begin`."""
        return self._choice(choice, {"role": "assistant", "content": ""}, None, None)

    def part(self, choice: int, event: Event) -> dict:
        """See `Answer.part`."""
        if isinstance(event, End):
            return self._choice(choice, {}, None, event.reason)
        scored = chat_logprobs(self.service.tokenizer, event.tokens) if self.body.logprobs else None
        return self._choice(choice, {"content": event.text}, scored, None)

    def _choice(self, choice: int, delta: dict, logprobs: dict | None, reason: str | None) -> dict:
        return {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, parts: list[dict]) -> dict:
        """See `Answer.whole`."""
        text = "".join(part["delta"].get("content", "") for part in parts)
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = None
        if self.body.logprobs:
            content = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
            logprobs = {"content": content, "refusal": None}
        last = parts[-1]
        return {
            "index": last["index"],
            "message": message,
            "logprobs": logprobs,
            "finish_reason": last["finish_reason"],
        }


def _seed(seed: int | None) -> int:
    """Return the seed of a request, drawn if it is left out."""
    return secrets.randbits(62) if seed is None else seed % 2**62


async def _respond(http: HttpRequest, service: Service, answer: Answer) -> Response:
    """Return the whole answer, or a stream whose first event has come: a model that fails is a 500 in both cases."""
    ticket = Ticket(service.engine)
    answer.add_to(ticket)
    stack = contextlib.AsyncExitStack()
    await stack.enter_async_context(ticket)
    try:
        if not answer.stream:
            return JSONResponse(await _unless_gone(http, answer.all(ticket)))
        chunks = answer.chunks(ticket)
        first = await _unless_gone(http, anext(chunks))
    except BaseException:
        await stack.aclose()
        raise
    return EventStream(_server_sent(first, chunks, stack), media_type="text/event-stream")


async def _server_sent(
    first: dict, chunks: AsyncIterator[dict], stack: contextlib.AsyncExitStack
) -> AsyncIterator[str]:
    async with stack:
        try:
            yield f"data: {json.dumps(first)}\n\n"
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield f"data: {json.dumps({'error': error.body})}\n\n"


async def _unless_gone(http: HttpRequest, work: Awaitable[Any]) -> Any:
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


class EventStream(StreamingResponse):
    """A stream that gives up on a client that does not read."""

    async def stream_response(self, send: Callable[[dict], Awaitable[None]]) -> None:
        """Send the chunks. TimeoutError if one is not taken within SEND_SECONDS."""

        async def send_in_time(message: dict) -> None:
            await asyncio.wait_for(send(message), SEND_SECONDS)

        await super().stream_response(send_in_time)


# --- the application --------------------------------------------------------------------------------------------------


def create_app(service: Service, guard: dict[str, Any] | None = None) -> Starlette:
    """Return the ASGI application. `guard` are the settings of `Guard`."""

    async def completions(http: HttpRequest) -> Response:
        body = parse(CompletionBody, await http.body())
        service.check(body)
        return await _respond(http, service, CompletionAnswer(service, body))

    async def chat(http: HttpRequest) -> Response:
        body = parse(ChatBody, await http.body())
        service.check(body)
        return await _respond(http, service, ChatAnswer(service, body))

    card = {"id": service.name, "object": "model", "created": service.created, "owned_by": "gpt"}
    card["max_model_len"] = service.context_length  # an addition, named as by vLLM

    async def models(http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(http: HttpRequest) -> Response:
        if (name := http.path_params["name"]) != service.name:
            raise ApiError(404, f"the model {name!r} is not served here: {service.name} is", "model_not_found")
        return JSONResponse(card)

    async def description(http: HttpRequest) -> Response:
        return JSONResponse(describe_api(service.name))

    async def health(http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close)

    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/openapi.json", description),
        Route("/health", health),
        *Playground(service).routes(),
    ]
    handlers = {ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_error}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.add_middleware(Guard, **(guard or {}))
    return app


async def _on_api_error(http: HttpRequest, error: ApiError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse({"error": error.body}, error.status, headers)


async def _on_http_error(http: HttpRequest, error: HTTPException) -> Response:
    found = ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}")
    return JSONResponse({"error": found.body}, error.status_code, error.headers)


async def _on_error(http: HttpRequest, error: Exception) -> Response:
    return JSONResponse({"error": ApiError(500, "the server made a mistake; its terminal shows it").body}, 500)
