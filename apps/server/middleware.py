"""ASGI middleware: request metrics, API keys, and a limit on request bodies."""

import asyncio
import hmac
import time
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...blocks.errors import OptionError
from ...blocks.files import read_bounded
from ...blocks.json_config import CONFIG_BYTES
from .errors import CLIENT_GONE, error_response

BODY_SECONDS = 60.0
_PUBLIC_PATHS = frozenset({"/health", "/readyz", "/livez", "/openapi.json"})
_MAX_DRAIN = 4
"""Bodies are read, and discarded, up to this multiple of the limit, so that clients see the refusal."""


def read_keys(path: Path) -> list[bytes]:
    """The keys in a file, one per line. Raises `OptionError` if it can't be read or holds none."""
    try:
        keys = [line.strip() for line in read_bounded(path, CONFIG_BYTES).splitlines() if line.strip()]
    except OSError as error:
        raise OptionError(f"api-key-file {path} can't be read: {error.strerror}") from error
    if not keys:
        raise OptionError(f"api-key-file {path} holds no key; accepted: one key per line")
    return keys


def key_matches(given: bytes, keys: list[bytes]) -> bool:
    """Whether `given` is one of the keys, compared in constant time."""
    return bool(sum([hmac.compare_digest(given, key) for key in keys]))


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


class ApiKeyCheck:
    """Refuses requests without `Authorization: Bearer KEY` with 401, except for the public paths."""

    def __init__(self, app: ASGIApp, keys: list[bytes]) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PUBLIC_PATHS:
            scheme, _, given = _header(scope, b"authorization").partition(b" ")
            if scheme.lower() != b"bearer" or not key_matches(given.strip(), self.keys):
                message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
                headers = {"WWW-Authenticate": "Bearer"}
                reply = error_response(401, message, "invalid_api_key", headers=headers)
                return await reply(scope, receive, send)
        return await self.app(scope, receive, send)


class BodyLimit:
    """Reads the whole body before the application sees the request.

    Bodies of more than `limit` bytes are refused with 413, those that take over `BODY_SECONDS` with 408.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._read(receive)
        except TimeoutError:
            reply = error_response(408, f"the body took more than {BODY_SECONDS:.0f} seconds", "timeout")
            return await reply(scope, receive, send)
        if body is None:
            return None
        if len(body) > self.limit:
            message = f"the body has more than the accepted {self.limit:,} bytes"
            reply = error_response(413, message, "body_too_large", headers={"Connection": "close"})
            return await reply(scope, receive, send)
        buffered: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return buffered.pop() if buffered else await receive()

        return await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytearray | None:
        """The body, cut off just beyond the limit; None if the client disconnected."""
        body, received = bytearray(), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            received += len(piece)
            if len(body) <= self.limit:
                body += piece
            if not message.get("more_body", False) or received > _MAX_DRAIN * self.limit:
                return body


class RequestMetrics:
    """Counts and times requests by route; raw paths as labels would let clients create any number of them."""

    def __init__(self, app: ASGIApp, registry: Any) -> None:
        self.app = app
        labels = ("route", "status")
        self.requests = Counter("bifrons_requests", "Requests answered", labels, registry=registry)
        self.seconds = Histogram(
            "bifrons_request_seconds",
            "Time from the headers of a request to the end of its response",
            ("route",),
            registry=registry,
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.monotonic(), CLIENT_GONE

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.monotonic() - started)
        return None
