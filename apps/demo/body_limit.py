"""A limit on what a visitor's request to the page may carry."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD = 20_000_000
"""Bytes of one uploaded file."""
MAX_UPLOADS = 6 * MAX_UPLOAD + 1_000_000
"""Bytes of a request that uploads files: as many as a message of the tab *Ask* may have."""
MAX_BODY = 1_000_000
"""Bytes of any other request: texts and numbers."""


class BodyLimit:
    """ASGI middleware that refuses larger bodies with 413, while they arrive."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = MAX_UPLOADS if scope["path"].rstrip("/").endswith("/upload") else MAX_BODY
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"the body has more than the accepted {limit:,} bytes")
            return message

        return await self.app(scope, limited, send)
