"""Server-sent events, and clients that disconnect."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from ...blocks.errors import OptionError
from ...blocks.sampling.request import Request as GenerationRequest
from .errors import INTERNAL_ERROR, ApiError, ClientGone, error_content, invalid_value
from .responses import json_response
from .supervision import SchedulerFailed

T = TypeVar("T")
_log = logging.getLogger("bifrons.server")


WARNING_HEADER = "X-Bifrons-Warning"
"""Names words that an embedded model doesn't know."""


def check_finish_reason(reason: str, request: GenerationRequest) -> None:
    """Raise an `ApiError` for a generation request that failed, or that the server ended when it stopped: 503
    if the engine failed or stops, else 500."""
    if isinstance(request.error, SchedulerFailed):
        raise ApiError(503, str(request.error), code="engine_failed")
    if reason == "cancelled":
        raise ApiError(503, "the server is stopping and has ended this request", code="stopping")
    if request.matcher is not None and isinstance(request.error, OptionError):  # too complex a form
        raise invalid_value(str(request.error), None)
    if reason not in ("stop", "length"):
        raise ApiError(
            500, "the engine failed at this request; the server's log has the details", code=reason
        )


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_disconnect(work: Awaitable[T], receive: Receive) -> T:
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`; if the client disconnects first, `work` is cancelled and `ClientGone` raised."""
    return await _until_disconnect(work, request.receive)


def event(content: Any, name: str | None = None) -> bytes:
    """A server-sent event; content that is not a text is sent as JSON."""
    head = f"event: {name}\n" if name else ""
    text = content if isinstance(content, str) else json.dumps(content)
    return f"{head}data: {text}\n\n".encode()


class EventStream(StreamingResponse):
    """A response of server-sent events; its generation requests are cancelled when it ends in any way."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], requests: Sequence[GenerationRequest]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_with_error_event(events), headers=headers)
        self.requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _until_disconnect(self.stream_response(send), receive)
        except (ClientGone, OSError):
            return
        finally:
            for request in self.requests:
                request.cancel()  # without effect if it has ended


async def _with_error_event(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; an error becomes one too, since the status of the response has already been sent."""
    try:
        async for item in events:
            yield item
    except ApiError as error:
        yield event(error_content(error.status, error.message, error.code, error.param), "error")
    except Exception:
        _log.exception("a streamed request failed")
        yield event(error_content(500, INTERNAL_ERROR, "internal_error"), "error")


class Generation(Protocol):
    """What a request asks to be generated."""

    @property
    def warning(self) -> str | None:
        """A line about words of the prompt that the model doesn't know."""
        ...

    @property
    def requests(self) -> list[GenerationRequest]: ...

    async def start(self) -> None:
        """Queue the generation requests."""

    async def complete(self) -> BaseModel:
        """Start, and wait for the whole result."""
        ...

    def events(self) -> AsyncIterator[bytes]:
        """Server-sent events of what has been started."""
        ...


async def respond(request: Request, generation: Generation, *, stream: bool) -> Response:
    """The response to a request: the whole result, or a stream of events."""
    warning = generation.warning
    if not stream:
        response = json_response(await while_connected(request, generation.complete()))
    else:
        await while_connected(request, generation.start())
        response = EventStream(generation.events(), generation.requests)
    if warning is not None:
        response.headers[WARNING_HEADER] = warning.encode("ascii", "backslashreplace").decode()
    return response
