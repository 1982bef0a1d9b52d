"""The ASGI application in front of the replicas: it checks requests, and has one replica answer each."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ...apps.server.app import guarded
from ...apps.server.errors import INTERNAL_ERROR, STOPPING, error_content, error_response, retry_headers
from ...apps.server.middleware import release_body
from ...apps.server.responses import Health
from ...apps.server.setup import ServerSetup
from ...apps.server.sse import event
from .replica import BEGUN

_HEALTH = ("/health", "/readyz", "/livez")
_TRIES = 3
"""Replicas that are asked in turn, where they die before they have begun with a request."""
_POLL = 1.0
"""Seconds between looks at the number of replicas, where something waits for one."""
_PATIENCE = 60.0
"""Seconds without any replica after which a request that waits for one is refused."""
_FORWARDED = {
    "type", "asgi", "http_version", "server", "client", "scheme", "method", "root_path", "path", "raw_path",
    "query_string", "headers", "bifrons.client",
}  # fmt: skip
"""What of a request's scope a replica gets."""
_log = logging.getLogger("bifrons.server")


class _Lost(Exception):
    """No replica answers a request: HTTP status, message, OpenAI's code."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Front:
    """An ASGI application; a `Service` for the HTTP server. count: how many replicas run, or -1 where they
    can't be started."""

    def __init__(
        self,
        handle: Any,
        count: Callable[[], int],
        setup: ServerSetup,
        keys: list[bytes] | None = None,
        hosts: Sequence[str] | None = None,
    ) -> None:
        self.options, self.stopping = setup.options, False
        self._names, self._handle, self._count = setup.names, handle, count
        self._streams: set[Any] = set()
        self._collectors = CollectorRegistry()
        self._app = guarded(self._route, self, self._collectors, keys, hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def stop(self) -> None:
        """Refuse new requests."""
        self.stopping = True

    def cancel_all(self) -> None:
        """Refuse new requests and end those that wait or run."""
        self.stopping = True
        for stream in list(self._streams):
            stream.cancel()

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["method"] == "GET" and scope["path"] in _HEALTH:
            return await (await self._health(scope["path"]))(scope, receive, send)
        if scope["method"] == "GET" and scope["path"] == "/metrics":
            return await (await self._metrics())(scope, receive, send)
        return await self._forward(scope, receive, send)

    async def _health(self, path: str) -> Response:
        running = await asyncio.to_thread(self._count) > 0
        status = "stopping" if self.stopping else "ok" if running else "starting"
        code = 200 if status == "ok" or path == "/livez" else 503
        content = Health(status=status, models=self._names).model_dump_json(exclude_none=True)
        return Response(content, code, media_type="application/json")

    async def _metrics(self) -> Response:
        """The numbers of all replicas, each with the label `replica`."""
        texts = {"front": generate_latest(self._collectors).decode()}
        results = await self._handle.broadcast("metrics").results_async()
        texts |= {str(number): text for number, text in enumerate(results)}
        families: dict[str, Metric] = {}
        for replica, text in texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    merged.samples.append(sample._replace(labels=labels))
        collectors = CollectorRegistry()
        collectors.register(_Families(list(families.values())))
        return Response(generate_latest(collectors), media_type=CONTENT_TYPE_LATEST)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            body = (await receive())["body"]  # whole, by `BodyLimit`
        answer = asyncio.create_task(self._answer(scope, body, send))
        del body
        disconnect = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
            disconnect.cancel()
            await asyncio.wait({answer, disconnect})
        if not answer.cancelled():
            answer.result()

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        """Send what a replica answers, or why none does."""
        request = {name: value for name, value in scope.items() if name in _FORWARDED}
        start: Message | None = None
        stream = None
        try:
            stream = await self._begin(request, body)
            del body
            release_body(scope)  # a replica has it now
            async for message in stream:
                if message["type"] == "http.response.start":
                    start = message
                await send(message)
            if start is None:
                raise _Lost(500, INTERNAL_ERROR, "internal_error")
        except Exception as error:
            refusal = self._refusal(error)
            if start is None:
                headers = retry_headers() if refusal.status in (429, 503) else None
                reply = error_response(refusal.status, refusal.message, refusal.code, headers=headers)
                return await reply(scope, _never, send)
            await _end_stream(start, refusal, send)
        finally:
            if stream is not None:
                self._streams.discard(stream)
                stream.cancel()  # without effect if it has ended

    async def _begin(self, request: Scope, body: bytes) -> Any:
        """The messages of a replica that has begun with a request. One that dies before costs nothing."""
        for tries in range(_TRIES, 0, -1):
            if self.stopping:
                raise _Lost(503, STOPPING, "stopping")
            stream = self._handle.options(stream=True).answer.remote(request, body)
            self._streams.add(stream)
            first = asyncio.ensure_future(anext(stream))
            try:
                await self._wait(first)
                assert first.result() == BEGUN
                return stream
            except BaseException as error:
                self._streams.discard(stream)
                first.cancel()
                stream.cancel()
                if tries == 1 or not _is_death(error):
                    raise
        raise AssertionError

    async def _wait(self, first: asyncio.Future[Message]) -> None:
        """Wait for a first message as long as there is a replica, or may be one soon."""
        without = 0.0
        while not first.done():
            await asyncio.wait({first}, timeout=_POLL)
            if first.done():
                return
            running = await asyncio.to_thread(self._count)
            without = 0.0 if running > 0 else without + _POLL
            if running < 0 or without >= _PATIENCE:
                raise _Lost(503, "no replica of the models runs; the log of Ray Serve says why", "no_replica")

    def _refusal(self, error: Exception) -> _Lost:
        """What the client is told of an error."""
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

        if isinstance(error, _Lost):
            return error
        if isinstance(error, BackPressureError):
            message = "the server is busy and its queue is full; try again in a moment"
            return _Lost(429, message, "queue_full")
        if isinstance(error, DeploymentUnavailableError):
            return _Lost(503, "the replicas of the models can't be started", "no_replica")
        if self.stopping and isinstance(error, RequestCancelledError):
            return _Lost(503, "the server is stopping and has ended this request", "stopping")
        if _is_death(error):
            message = "the replica that worked on this request has died; send it again"
            return _Lost(503, message, "replica_died")
        _log.error("a request failed", exc_info=error)
        return _Lost(500, INTERNAL_ERROR, "internal_error")


class _Families:
    """A collector of what has been collected."""

    def __init__(self, families: list[Metric]) -> None:
        self.collect = lambda: families


def _is_death(error: BaseException) -> bool:
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import ReplicaUnavailableError

    return isinstance(error, RayActorError | ReplicaUnavailableError)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    return {"type": "http.disconnect"}


async def _end_stream(start: Message, refusal: _Lost, send: Send) -> None:
    """End a response that has begun: events by one that says why, others by closing the connection."""
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    if not any(kind.startswith(b"text/event-stream") for kind in kinds):
        raise ConnectionAbortedError(refusal.message)
    content = error_content(refusal.status, refusal.message, refusal.code)
    await send({"type": "http.response.body", "body": event(content, "error")})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
