"""Pictures in requests: fetched or decoded, and fitted to the model that reads them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...blocks.image_fit import Fit
from ..picture_pool import PicturePool, PicturesFull, PicturesStopped
from .errors import ApiError
from .url_fetch import fetch

if TYPE_CHECKING:
    from .limits import ServerOptions
    from .registry import ServedModel


class PictureReader:
    """Reads the pictures of requests in the processes of a `PicturePool`, one at a time for each request."""

    def __init__(self, options: "ServerOptions") -> None:
        self.options = options
        self.pool = PicturePool(options.max_pixels, options.max_side)
        self._rows = Counter[str]()
        """Rows of each model that are reserved for requests whose pictures are being read."""

    async def load_messages(
        self, messages: list[Any], served: "ServedModel", rows: int
    ) -> list[dict[str, Any]]:
        """Messages of a request for some rows of a model, in the form that pipelines take.

        Raises `ApiError` and `PictureError`.
        """
        parts = [
            part for message in messages if isinstance(message.content, list) for part in message.content
        ]
        count = sum(part.type == "image_url" for part in parts)
        served.limits.check_images(count)
        with self._reading(served, rows if count else 0):
            fit, loaded = served.pipe.processor.fit(count), []
            for message in messages:
                content = message.content
                if isinstance(content, list):
                    content = [await self._load_part(part, fit) for part in content]
                role = "system" if message.role == "developer" else message.role
                loaded.append({"role": role, "content": content})
        return loaded

    @contextmanager
    def _reading(self, served: "ServedModel", rows: int) -> Iterator[None]:
        """Count rows that wait for pictures: at most half of a model's, so that texts find some free."""
        others = self._rows[served.name]
        if rows and others and others + rows > (served.scheduler.rows + served.scheduler.max_waiting) // 2:
            raise _busy("too many requests wait for their pictures to be read; try again in a moment")
        self._rows[served.name] += rows
        try:
            yield
        except PicturesFull as error:
            raise _busy(str(error)) from error
        except PicturesStopped as error:
            text = "the server is stopping and accepts no more requests"
            raise ApiError(503, text, code="stopping") from error
        finally:
            self._rows[served.name] -= rows

    async def _load_part(self, part: Any, fit: Fit) -> dict[str, Any]:
        if part.type == "text":
            return {"type": "text", "text": part.text}
        source = part.image_url.url
        if source[:6].lower() in ("http:/", "https:"):
            if not self.options.allow_url_fetch:
                text = "this server fetches no pictures; send the picture itself as a data: URL in base64"
                raise ApiError(400, text, code="invalid_image_url", param="messages")
            source = await fetch(source, self.options.max_body)
        return {"type": "image", "image": await self.pool.read(source, fit)}


def _busy(text: str) -> ApiError:
    return ApiError(429, text, code="too_many_images")
