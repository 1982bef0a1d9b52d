"""Uploaded pictures, read in the processes of a `PicturePool`: the page only holds what a model reads."""

import asyncio
import atexit
import secrets
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ...blocks.errors import PictureError
from ...blocks.image_fit import Fit, FittedImage
from ...blocks.image_source import shown_source
from ...janus.image_transform import ImageTransform
from ..picture_pool import PicturePool
from .models import LoadedModel

T = TypeVar("T")
Messages = list[dict[str, Any]]

_MOST_FILES = 50
"""Pictures written for the page that stay on the disk; Gradio has its own copies by then."""


@cache
def _pool() -> PicturePool:
    return PicturePool()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of the pool, on a thread of its own until the process ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="bifrons-demo-pictures", daemon=True)
    thread.start()

    def end() -> None:
        asyncio.run_coroutine_threadsafe(_pool().close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()

    atexit.register(end)
    return loop


def _wait(file: str, call: Coroutine[Any, Any, T]) -> T:
    """The result of a call of the pool. Its `PictureError` names the file without the server's folders."""
    try:
        return asyncio.run_coroutine_threadsafe(call, _loop()).result()
    except PictureError as error:
        raise PictureError(str(error).replace(shown_source(file), shown_source(Path(file).name))) from error


def read_upload(file: str, fit: Fit) -> FittedImage:
    """An uploaded picture, fitted to a model. Raises `PictureError`, and `PicturesFull` beyond the budget."""
    return _wait(file, _pool().read(file, fit, local_files=True))


def is_readable(file: str) -> bool:
    """Whether a file can be opened as a picture."""
    try:
        read_upload(file, ImageTransform(32).fit)
    except PictureError:
        return False
    return True


def read_pictures(messages: Messages, loaded: LoadedModel) -> tuple[Messages, FittedImage | None]:
    """Messages with the pictures of their files as the model reads them, and the last of these."""
    parts = [message["content"] for message in messages if isinstance(message["content"], list)]
    files = [part["image"] for content in parts for part in content if part["type"] == "image"]
    fit = loaded.pipe.processor.fit(len(files))
    pictures = {file: read_upload(file, fit) for file in dict.fromkeys(files)}

    def with_pictures(content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [
            {**part, "image": pictures[part["image"]]} if part["type"] == "image" else part
            for part in content
        ]

    read = [{**message, "content": with_pictures(message["content"])} for message in messages]
    return read, pictures[files[-1]] if files else None


class PictureWriter:
    """Writes uploads as PNG files in a folder, for the page to show; the newest `_MOST_FILES` stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: deque[Path] = deque()

    def write(self, file: str, draw: Callable[[Image.Image], Image.Image] | None = None) -> str:
        """The path of a new PNG file of the upload, changed by `draw`. Raises `PictureError`."""
        target = self.folder / f"shown-{secrets.token_hex(8)}.png"
        self._written.append(target)
        _wait(file, _pool().save(file, str(target), draw))
        while len(self._written) > _MOST_FILES:
            self._written.popleft().unlink(missing_ok=True)
        return str(target)
