"""A replica: the whole server application, without its HTTP connections, in an actor of Ray Serve."""

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.types import Message, Scope

from ...apps.server.app import create_app, short_pauses
from ...apps.server.setup import ServerSetup
from ...blocks.errors import UnknownWordsWarning

BEGUN: Message = {"type": "bifrons.begun"}
"""Precedes the messages of every answer."""


class Replica:
    """The models of a server, loaded; `Front` calls its methods."""

    def __init__(self, setup: ServerSetup) -> None:
        """Raises `BifronsError`."""
        warnings.simplefilter("ignore", UnknownWordsWarning)
        self._registry = setup.open()
        self._app = create_app(self._registry)
        self._running: set[asyncio.Task[None]] = set()
        short_pauses().__enter__()

    def check_health(self) -> None:
        """Called by Ray Serve every few seconds; a replica for which it raises is replaced."""
        if failed := self._registry.failed:
            raise RuntimeError(f"the engine has failed: {', '.join(failed)}")

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """`BEGUN`, then the application's messages (ASGI) for a request, whose client is gone once this is
        cancelled."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone, unread = asyncio.Event(), [body]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                with suppress(Exception):  # it has been answered with 500, and logged
                    await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        self._running.add(task)  # which keeps it alive
        task.add_done_callback(self._running.discard)
        try:
            yield BEGUN
            while (message := await messages.get()) is not None:
                yield message
        finally:
            gone.set()

    async def metrics(self) -> str:
        """The replica's numbers, in the text format of Prometheus."""
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
        scope |= {"query_string": b"", "root_path": ""}
        messages = [message async for message in self.answer(scope, b"")]
        return b"".join(message.get("body", b"") for message in messages).decode()
