"""Pictures served by URL for a while, and the paths that change pictures, which are refused."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import APIRouter, Response

from .errors import ApiError

SECONDS = 3600.0
"""How long a picture is served."""
FILES = "/v1/images/files/"
_OVERHEAD = 300_000
"""Bytes of a file beside its pixels, at most: prompts of 32,000 characters."""


@dataclass(frozen=True)
class _File:
    name: str
    content: bytes
    media_type: str
    expires: float


class ImageFiles:
    """Pictures in memory, of up to `budget` bytes together. Used on the event loop only."""

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.held = budget, 0
        self._clock = clock
        self._files: dict[str, _File] = {}
        self._order: deque[_File] = deque()

    @contextmanager
    def room(self, count: int, size: tuple[int, int]) -> Iterator[None]:
        """Keep room for as many pictures of a size until they are there. Raises `ApiError`."""
        self._drop_expired()
        needed = count * (4 * size[0] * size[1] + _OVERHEAD)
        if needed > self.budget:
            limit = "no pictures" if not self.budget else f"up to {self.budget // 1_000_000:,} MB of pictures"
            text = f"this server serves {limit} by URL (--image-urls MB); use response_format b64_json"
            raise ApiError(400, text, code="invalid_value", param="response_format")
        if self.held + needed > self.budget:
            text = "the memory for pictures by URL is full; use response_format b64_json, or try again later"
            raise ApiError(429, text, code="too_many_images", param="response_format")
        self.held += needed
        try:
            yield
        finally:
            self.held -= needed

    def add(self, content: bytes, media_type: str) -> str:
        """Keep a picture for which there is room; returns its path, which nobody can guess."""
        name = f"{secrets.token_urlsafe(24)}.{media_type.partition('/')[2]}"
        file = _File(name, content, media_type, self._clock() + SECONDS)
        self._files[name] = file
        self._order.append(file)
        self.held += len(content)
        return FILES + name

    def get(self, name: str) -> tuple[bytes, str]:
        """A picture and its media type. Raises `ApiError` with status 404."""
        self._drop_expired()
        if name not in self._files:
            text = f"there is no such picture; pictures are served for {SECONDS / 60:.0f} minutes"
            raise ApiError(404, text, code="not_found")
        return self._files[name].content, self._files[name].media_type

    def _drop_expired(self) -> None:
        while self._order and self._order[0].expires <= self._clock():
            file = self._order.popleft()
            del self._files[file.name]
            self.held -= len(file.content)


def router(files: ImageFiles) -> APIRouter:
    """The routes of pictures by URL, and of edits and variations."""
    routes = APIRouter()

    @routes.get(FILES + "{name}", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def image_file(name: str) -> Response:
        """A picture that was asked for by `response_format: "url"`."""
        content, media_type = files.get(name)
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(content, headers=headers, media_type=media_type)

    @routes.post("/v1/images/edits")
    @routes.post("/v1/images/variations")
    async def image_changes() -> None:
        """Refused: the models weren't trained for it."""
        text = (
            "these models weren't trained to edit pictures or to make variations of them: they paint from "
            "text alone; use /v1/images/generations"
        )
        raise ApiError(400, text, code="unsupported_operation")

    return routes
