"""The HTTP server: an API that OpenAI's clients speak, server-sent events, and the playground's page.

Every request passes the `Guard` first. A request names no file: the page's files are read once, when the server starts.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gpt.serve.answers import Answer, ChatAnswer, CompletionAnswer
from gpt.serve.description import describe_api
from gpt.serve.guard import Guard
from gpt.serve.playground import Playground
from gpt.serve.protocol import ApiError, ChatBody, CompletionBody, parse
from gpt.serve.service import Service, Ticket, unless_gone

SEND_SECONDS = 60  # a client that reads nothing for this long is dropped


async def _respond(http: Request, service: Service, answer: Answer) -> Response:
    """Return the whole answer, or a stream whose first event has come: a model that fails is a 500 in both cases."""
    ticket = Ticket(service.engine)
    answer.add_to(ticket)
    stack = contextlib.AsyncExitStack()
    await stack.enter_async_context(ticket)
    try:
        if not answer.stream:
            return JSONResponse(await unless_gone(http, answer.all(ticket)))
        chunks = answer.chunks(ticket)
        first = await unless_gone(http, anext(chunks))
    except BaseException:
        await stack.aclose()
        raise
    return EventStream(_server_sent(first, chunks, stack), headers={"Cache-Control": "no-cache"})


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


class EventStream(StreamingResponse):
    """A stream that gives up on a client that does not read."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Callable[[dict], Awaitable[None]]) -> None:
        """Send the chunks. TimeoutError if one is not taken within SEND_SECONDS."""

        async def send_in_time(message: dict) -> None:
            await asyncio.wait_for(send(message), SEND_SECONDS)

        await super().stream_response(send_in_time)


# --- the application --------------------------------------------------------------------------------------------------


def create_app(service: Service, guard: dict[str, Any] | None = None) -> Starlette:
    """Return the ASGI application. `guard` are the settings of `Guard`."""

    async def completions(http: Request) -> Response:
        body = parse(CompletionBody, await http.body())
        service.check(body)
        return await _respond(http, service, CompletionAnswer(service, body))

    async def chat(http: Request) -> Response:
        body = parse(ChatBody, await http.body())
        service.check(body)
        return await _respond(http, service, ChatAnswer(service, body))

    card = {"id": service.name, "object": "model", "created": service.created, "owned_by": "gpt"}
    card["max_model_len"] = service.context_length  # an addition, named as by vLLM

    async def models(http: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(http: Request) -> Response:
        if (name := http.path_params["name"]) != service.name:
            raise ApiError(404, f"the model {name!r} is not served here: {service.name} is", "model_not_found")
        return JSONResponse(card)

    async def description(http: Request) -> Response:
        return JSONResponse(describe_api(service.name, service.tokenizer.vocab_size, service.engine.max_rows))

    async def health(http: Request) -> Response:
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


async def _on_api_error(http: Request, error: ApiError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse({"error": error.body}, error.status, headers)


async def _on_http_error(http: Request, error: HTTPException) -> Response:
    found = ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}")
    return JSONResponse({"error": found.body}, error.status_code, error.headers)


async def _on_error(http: Request, error: Exception) -> Response:
    return JSONResponse({"error": ApiError(500, "the server made a mistake; its terminal shows it").body}, 500)
