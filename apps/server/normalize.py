"""What clients may write in more than one way, and the pages of other origins that may call the server."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...blocks.errors import OptionError


class NormalizedRequests:
    """ASGI middleware: a path may end with a slash, and HEAD is GET without the body of the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, is_head = scope["path"], scope["method"] == "HEAD"
        if len(path) > 1 and path.endswith("/") and not path.endswith("//"):
            scope = {**scope, "path": path[:-1]}
        if not is_head:
            return await self.app(scope, receive, send)

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        return await self.app({**scope, "method": "GET"}, receive, send_head)


def allowed_origins(origins: Sequence[str]) -> list[str]:
    """The origins, as browsers write them. Raises `OptionError` for what is neither one nor `*`."""
    for origin in origins:
        parts = urlsplit(origin.lower())
        if origin != "*" and (not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin.lower()):
            raise OptionError(
                f"allow-origin is {origin!r}; accepted: an origin such as https://example.com or "
                "http://localhost:3000, without a path, or * for all"
            )
    return [origin.lower() for origin in origins]


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application for pages of these origins too: preflights are answered before keys are asked for."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        allow_private_network=True,
        expose_headers=("Retry-After", "X-Bifrons-Warning"),
    )
