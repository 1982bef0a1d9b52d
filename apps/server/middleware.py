"""ASGI middleware: request metrics, framing, API keys, and limits on request bodies."""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...blocks.errors import OptionError
from ...blocks.files import read_bounded
from ...blocks.json_config import CONFIG_BYTES
from .errors import CLIENT_GONE, STOPPING, error_response, retry_headers
from .image_files import FILES

BODY_SECONDS = 60.0
BODY_IDLE_SECONDS = 15.0
"""Time within which some more of a body must arrive."""
SMALL_BODY = 65_536
"""Bytes of each body that don't count towards the budget of all bodies: text requests always find room."""
_LEASE, _CLIENT = "bifrons.body", "bifrons.client"
_POLL_SECONDS = 0.25
_PUBLIC_PATHS = frozenset({"/health", "/readyz", "/livez", "/openapi.json"})
_CLOSE = {"Connection": "close"}
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


class FramingCheck:
    """Refuses requests with both Content-Length and Transfer-Encoding, and closes the connection.

    Proxies may take either for the length, so that one's body is the next one's request (RFC 9112, 6.1).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            message = "the request has both Content-Length and Transfer-Encoding; accepted: one of them"
            reply = error_response(400, message, "invalid_framing", headers={"Connection": "close"})
            return await reply(scope, receive, send)
        return await self.app(scope, receive, send)


class ApiKeyCheck:
    """Refuses requests without `Authorization: Bearer KEY` with 401, except for the public paths, and for
    pictures by URL, which nobody can guess."""

    def __init__(self, app: ASGIApp, keys: list[bytes]) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path not in _PUBLIC_PATHS and not path.startswith(FILES):
            scheme, _, given = _header(scope, b"authorization").partition(b" ")
            if scheme.lower() != b"bearer" or not key_matches(given.strip(), self.keys):
                message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
                headers = {"WWW-Authenticate": "Bearer"}
                reply = error_response(401, message, "invalid_api_key", headers=headers)
                return await reply(scope, receive, send)
            scope[_CLIENT] = given.strip()
        return await self.app(scope, receive, send)


def client_of(scope: Scope) -> object:
    """Who sent a request, for fair shares: the API key, else the address (of IPv6 the network, a /64)."""
    if _CLIENT in scope or scope.get("client") is None:
        return scope.get(_CLIENT)
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except ValueError:
        return scope["client"][0]
    return address if address.version == 4 else int(address) >> 64


class BodyBudget:
    """The bytes of request bodies that may be held at the same time."""

    def __init__(self, total: int) -> None:
        self.total, self.held = total, 0


class _BodyLease:
    """What one body takes of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget, self._size = budget, 0

    def grow(self, length: int) -> bool:
        """Let the body have `length` bytes; False if the budget has no room for them."""
        more = max(0, length - SMALL_BODY) - self._size
        if more > 0 and self._budget.held + more > self._budget.total:
            return False
        self._size += more
        self._budget.held += more
        return True

    def release(self) -> None:
        """Give all of it back."""
        self._budget.held -= self._size
        self._size = 0


def release_body(scope: Scope) -> None:
    """Say that the body of a request, and what was decoded from it, is no longer held."""
    if _LEASE in scope:
        scope[_LEASE].release()


class BodyLimit:
    """Reads the whole body before the application sees the request.

    Bodies of more than `limit` bytes are refused with 413, those that take over `BODY_SECONDS`, or pause for
    `BODY_IDLE_SECONDS`, with 408, those for which the budget has no room with 429, and all with 503 once
    `stopping` says so.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        budget: BodyBudget | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app, self.limit, self.stopping = app, limit, stopping
        self.budget = budget or BodyBudget(limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        lease = scope[_LEASE] = _BodyLease(self.budget)
        try:
            body = await self._read(receive, lease)
            if isinstance(body, Response):
                return await body(scope, receive, send)
            if body is None:
                return None
            buffered: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
            del body

            async def replay() -> Message:
                return buffered.pop() if buffered else await receive()

            return await self.app(scope, replay, send)
        finally:
            lease.release()

    async def _read(self, receive: Receive, lease: _BodyLease) -> bytes | Response | None:
        """The body, or why it is refused; None if the client disconnected."""
        loop = asyncio.get_running_loop()
        body, received, refusal = bytearray(), 0, None
        deadline = loop.time() + BODY_SECONDS
        while True:
            try:
                message = await self._receive(receive, min(deadline, loop.time() + BODY_IDLE_SECONDS))
            except TimeoutError:
                return self._late(loop.time() >= deadline)
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            received += len(piece)
            if refusal is None:
                body += piece
                refusal = self._too_large(len(body), lease)
            if refusal is not None:
                # The rest is read and discarded, so that the client sees the refusal.
                body.clear()
                lease.release()
            if not message.get("more_body", False) or received > _MAX_DRAIN * self.limit:
                return refusal or bytes(body)

    async def _receive(self, receive: Receive, deadline: float) -> Message:
        """The next message. Raises `TimeoutError` at the deadline, or when the server stops."""
        loop = asyncio.get_running_loop()
        while not self.stopping():
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + _POLL_SECONDS)):
                    return await receive()
            except TimeoutError:
                if loop.time() >= deadline:
                    raise
        raise TimeoutError

    def _late(self, is_over: bool) -> Response:
        if self.stopping():
            return error_response(503, STOPPING, "stopping", headers=_CLOSE | retry_headers())
        message = f"the body took more than {BODY_SECONDS:.0f} seconds"
        if not is_over:
            message = f"no more of the body arrived for {BODY_IDLE_SECONDS:.0f} seconds"
        return error_response(408, message, "timeout", headers=_CLOSE)

    def _too_large(self, length: int, lease: _BodyLease) -> Response | None:
        if length > self.limit:
            message = f"the body has more than the accepted {self.limit:,} bytes"
            return error_response(413, message, "body_too_large", headers=_CLOSE)
        if not lease.grow(length):
            message = "the server holds as many large bodies as it has memory for; try again in a moment"
            return error_response(429, message, "too_many_bodies", headers=_CLOSE | retry_headers())
        return None


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
