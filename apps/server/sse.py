"""Between the engine's thread, the event loop and a client who may leave at any moment."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ...blocks.engine.request import Request as GenerationRequest
from .errors import ApiError, ClientGone, error_content

T = TypeVar("T")


class Mailbox:
    """Events of one HTTP request's generation requests, in order; filled from the scheduler's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, event: Any) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def get(self) -> Any:
        return await self._queue.get()


def check_reason(reason: str) -> str:
    """A request's end as a finish reason; an `ApiError` of status 500 where the engine failed."""
    if reason not in ("stop", "length"):
        raise ApiError(500, "the engine failed at this request; the server's log tells why", code=reason)
    return reason


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _race(work: Awaitable[T], receive: Receive) -> T:
    """The work's result; `ClientGone`, with the work cancelled, when the client leaves before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The work's result, given up with `ClientGone` as soon as the client leaves."""
    return await _race(work, request.receive)


def event(content: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    text = content if isinstance(content, str) else json.dumps(content)
    return f"{head}data: {text}\n\n".encode()


class EventStream(StreamingResponse):
    """Server-sent events. Whatever ends the response, its requests are cancelled (ended ones don't mind)."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], requests: Sequence[GenerationRequest]) -> None:
        super().__init__(_told(events), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _race(self.stream_response(send), receive)
        except (ClientGone, OSError):
            return
        finally:
            for request in self.requests:
                request.cancel()


async def _told(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; an error after the first, when no status can tell it any more, becomes an event."""
    try:
        async for one in events:
            yield one
    except ApiError as error:
        yield event(error_content(error.status, error.message, error.code, error.param), "error")
