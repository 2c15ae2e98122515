"""What every request passes first: where it comes from, whether it has the key, and how large it is."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from gpt.serve.protocol import ApiError

MAX_BODY = 2**20  # bytes
BODY_SECONDS = 30
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/health")  # need no key; the page asks for it


class Guard:
    """ASGI middleware that answers 401, 403 and 413.

    A page of another site can make a browser send requests to this machine. Two checks keep it out: its Origin is not
    this server's, and a name of its own that it points here (DNS rebinding) is not in `hosts`. With an empty `hosts`
    any name is right: only together with a key.
    """

    def __init__(self, app: Callable, hosts: tuple[str, ...] = LOOPBACK, api_key: str | None = None):
        self.app, self.hosts, self.api_key = app, hosts, api_key

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope["path"], headers)
            body = await _read(receive, headers)
        except ApiError as error:
            await _refuse(send, error)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> dict[str, Any]:
            return next(messages, None) or await receive()

        await self.app(scope, replay, send)

    def _check(self, path: str, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.hosts and _name(f"//{host}") not in self.hosts:
            raise ApiError(403, f"the Host {host!r} is not this server's name", "forbidden")
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host:
            raise ApiError(403, f"requests from pages of {origin} are refused", "forbidden")
        if self.api_key is None or path in OPEN_PATHS:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        is_key = hmac.compare_digest(given.strip().encode("latin-1"), self.api_key.encode())
        if kind.lower() != "bearer" or not is_key:
            raise ApiError(401, "the key is missing or wrong: send it as Authorization: Bearer KEY", "invalid_api_key")


def _name(url: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(url).hostname
    return None


def _place(url: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(url).netloc
    return None


async def _read(receive: Callable[[], Awaitable[dict]], headers: dict[str, str]) -> bytes:
    """Return the body. ApiError 413 for one that is too large, before it has been read."""
    length = headers.get("content-length", "0")
    too_large = ApiError(413, f"the body is larger than {MAX_BODY:,} bytes", "body_too_large")
    if length.isdecimal() and int(length) > MAX_BODY:
        raise too_large
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the client closed the connection")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS} seconds") from None
    return bytes(body)


async def _refuse(send: Callable[[dict], Awaitable[None]], error: ApiError) -> None:
    body = json.dumps({"error": error.body}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 413:  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
