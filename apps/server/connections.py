"""The HTTP server's connections: how many are open, how long they may idle, and how they end with the server.

uvicorn serves them. What it lacks: limits of time for heads of requests and for clients that don't read, room
for new connections while others idle, and an end that waits for what runs, but not for ever.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from typing import Protocol as Interface

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...blocks.errors import OptionError
from .errors import error_response, retry_headers
from .limits import ServerOptions

BACKLOG = 2048
"""Connections that the system may hold until they are accepted."""
HEAD_SECONDS = 10.0
"""From the opening of a connection, or the end of a response, to the end of the next request's head."""
WRITE_SECONDS = 20.0
"""Time within which a client must take `_MIN_RATE` bytes a second of what waits to be sent."""
MAX_CONNECTIONS = 2048
_MIN_RATE = 1000
_EXTRA = 8
"""Connections beyond the limit, which are told the state of the server, and 503 otherwise."""
_SPARE_FILES = 24
"""Files for all but connections: models, pictures, and sockets that are just being opened or closed."""
_ACCEPT = 4
"""Connections that asyncio accepts in one turn. Where no file is left, it tries, and logs, as many times."""
_log = logging.getLogger("bifrons.server")


def connection_limit() -> int:
    """How many connections may be open: what the limit of open files (`ulimit -n`) leaves, up to
    `MAX_CONNECTIONS`. Raises `OptionError` if that is too few."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    with open(os.devnull) as file:
        used = file.fileno()  # the lowest that is free
    limit = min(MAX_CONNECTIONS, allowed - used - _SPARE_FILES - _EXTRA)
    if limit < _EXTRA:
        least = used + _SPARE_FILES + 2 * _EXTRA
        raise OptionError(
            f"the limit of open files (ulimit -n) is {allowed}; accepted: at least {least}, "
            "and one more for each further connection"
        )
    return limit


class _Overloaded:
    """Answers 503 in place of the application, except for the state of the server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, headers = self.app, {"Connection": "close"} | retry_headers()
        if scope["path"] not in ("/health", "/livez", "/readyz"):
            message = "the server has as many connections as it can handle; try again in a moment"
            app = error_response(503, message, "too_many_connections", headers=headers)
        await app(scope, receive, send)


class Protocol(H11Protocol):
    """A connection. `limit` is the number of those that may be open."""

    def __init__(self, *args: Any, limit: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limit = limit
        self.dropped = False
        self.idle_since = self.loop.time()
        self._unsent, self._unsent_since = 0, 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) <= self.limit:
            return
        others = [cast(Protocol, other) for other in self.connections if other is not self]
        others = [other for other in others if not other.dropped]
        idle = [other for other in others if other.is_idle]
        if idle:
            min(idle, key=lambda other: other.idle_since).drop()
        elif len(others) >= self.limit + _EXTRA:
            self.drop()
        else:
            self.app = cast(Any, _Overloaded(cast(Any, self.app)))

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # it is being closed after an error
            self.drop()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, and tell a running request that its client is gone."""
        if not self.is_idle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # a response has begun
            self.drop()

    def drop(self) -> None:
        """Close at once, whatever is still to be sent."""
        self.dropped = True
        self.transport.abort()

    def check(self, now: float) -> None:
        """Close if the next request, or the client's reading, takes too long."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or not (self.is_idle or self.flow.write_paused):
            self._unsent, self._unsent_since = unsent, now
            if self.is_idle and now - self.idle_since > HEAD_SECONDS:
                self.drop()
        elif now - self._unsent_since > WRITE_SECONDS:
            if unsent > self._unsent - WRITE_SECONDS * _MIN_RATE:
                self.drop()
            self._unsent, self._unsent_since = unsent, now


class Service(Interface):
    """What answers the requests behind an application."""

    options: ServerOptions
    stopping: bool
    """Whether new requests are refused."""

    def stop(self) -> None:
        """Refuse new requests."""

    def cancel_all(self) -> None:
        """Refuse new requests and end those that wait or run."""


class Server(uvicorn.Server):
    """Serves an application; when it is to end, it refuses what is new and gives what runs some seconds."""

    def __init__(self, app: ASGIApp, service: Service, closing: float = 3.0) -> None:
        """closing: seconds that the process may take to end after the service's `grace`."""
        protocol = cast(Any, partial(Protocol, limit=connection_limit()))
        grace = service.options.grace
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            backlog=_ACCEPT,
            timeout_graceful_shutdown=int(grace) + 2,
        )
        super().__init__(config)
        self.service, self.grace, self._closing = service, grace, closing

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_log_exception)
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # uvicorn has set it to the number that is accepted in one turn

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast(Protocol, connection).check(now)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """What a signal calls."""
        if not self.service.stopping:
            _exit_after(self.grace + self._closing)
        self.service.stop()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stopping = True
        ending = asyncio.create_task(self._end_requests())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_requests(self) -> None:
        """End the requests that still run when their time is over."""
        await asyncio.sleep(self.grace)
        if running := sum(not cast(Protocol, one).is_idle for one in self.server_state.connections):
            _log.warning("%d requests still ran after %g seconds and were ended", running, self.grace)
        self.service.cancel_all()
        await asyncio.sleep(1)
        for connection in list(self.server_state.connections):
            cast(Protocol, connection).drop()


def _exit_after(seconds: float) -> None:
    """End the process after this time, even if a thread in a library doesn't return."""

    def end() -> None:
        _log.warning("a thread did not end within %g seconds; the process ends without it", seconds)
        logging.shutdown()
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _log_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if "accept()" in str(context.get("message")):
        _log.warning("no connection can be accepted: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)


class LogOnce(logging.Filter):
    """Lets a message through that did not occur within the last minute, and counts the others.

    Messages that differ only in their arguments are the same; with an exception, only those from one line.
    """

    SECONDS = 60.0

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        trace = record.exc_info[2] if record.exc_info else None
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        key = record.name, record.msg, place
        shown_at, more = self._seen.get(key, (float("-inf"), 0))
        if self._clock() - shown_at < self.SECONDS:
            self._seen[key] = shown_at, more + 1
            return False
        if more:
            record.msg = f"{record.msg} ({more:,} more in the meantime)"
        self._seen[key] = self._clock(), 0
        return True
