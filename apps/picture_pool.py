"""`PicturePool`: decodes pictures from strangers in processes that can be killed."""

import asyncio
import json
import os
import pickle
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import numpy as np
from PIL import Image

from ..blocks.errors import BifronsError, PictureError
from ..blocks.image_fit import Fit, FittedImage
from ..blocks.image_io import MAX_PIXELS, MAX_SIDE
from . import picture_worker

SECONDS = 10.0
"""Time limit of decoding one picture."""
BUDGET = 256_000_000
"""Bytes of pictures that may wait to be decoded or, once decoded, for their model."""
_MAX_LINE = 1 << 16


class PicturesFull(BifronsError):
    """Too many pictures are being read at the moment."""


class PicturesStopped(BifronsError):
    """The pool is stopping."""


class PicturePool:
    """Reads pictures in a few worker processes, which start when they are first needed.

    A picture that exceeds the limits of time or memory, or crashes a decoder, costs its worker and gets a
    `PictureError`. Cancelling a call kills its worker, too. Calls are served in their order. All coroutines
    of a pool run in one event loop.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> None:
        self.limits: dict[str, Any] = {"max_pixels": max_pixels, "max_side": max_side}
        # Pillow's images take 1 to 8 bytes a pixel; decoders of JPEG 2000 and AVIF take the most beside them.
        self.memory = 384_000_000 + 16 * max_pixels
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(max(1, min(4, (os.cpu_count() or 2) // 2)))
        self._workers: set[Process] = set()
        self._idle: list[Process] = []
        self._calls: set[asyncio.Timeout] = set()
        self._deadline: float | None = None
        self._waiting = 0
        self._alive: WeakSet[FittedImage] = WeakSet()

    async def read(self, source: str | bytes, fit: Fit, *, local_files: bool = False) -> FittedImage:
        """A picture (a path, bytes or a `data:` URL), fitted to a model.

        Raises `PictureError`, `PicturesFull` and, after `stop`, `PicturesStopped`.
        """
        limits = {**self.limits, "local_files": local_files}
        with self._hold(len(source)):
            fields, content = await self._run(picture_worker.read_picture, _plain(source), fit, limits)
        width, height = fields["size"]
        tiles = np.frombuffer(content, np.uint8).reshape(fields["shape"])
        fitted = FittedImage(tiles, (width, height))
        self._alive.add(fitted)
        return fitted

    async def save(
        self, source: str, target: str, draw: Callable[[Image.Image], Image.Image] | None = None
    ) -> None:
        """Write a picture as a new PNG file, changed by `draw`. Raises the errors of `read`."""
        await self._run(picture_worker.save_picture, _plain(source), target, draw, self.limits)

    def stop(self, seconds: float) -> None:
        """Give the calls some more seconds to end. Any thread and signal handlers may call it."""
        self._deadline = time.monotonic() + seconds  # the clock of event loops
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_calls)

    def _end_calls(self) -> None:
        for call in self._calls:
            call.reschedule(self._deadline)

    async def close(self) -> None:
        """End all calls and workers."""
        self.stop(0)
        while self._calls:
            await asyncio.sleep(0.01)
        for worker in self._idle:
            _kill(worker)  # the others have been killed; twice makes asyncio log that it knows no such child
        self._idle.clear()
        while self._workers:
            await self._workers.pop().communicate()  # which waits for the end, and closes the pipes

    @property
    def held(self) -> int:
        """Bytes of the pictures that wait to be decoded, and of decoded ones that are still in use."""
        return self._waiting + sum(image.tiles.nbytes for image in list(self._alive))

    @contextmanager
    def _hold(self, count: int) -> Iterator[None]:
        self._check(count)
        self._waiting += count
        try:
            yield
        finally:
            self._waiting -= count

    def _check(self, count: int = 0) -> None:
        if self.held + count > BUDGET:
            raise PicturesFull("too many pictures are being read at the moment; try again in a while")

    async def _run(self, function: Callable[..., picture_worker.Reply], *args: Any) -> picture_worker.Reply:
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._deadline) as call:
                self._calls.add(call)
                async with self._slots:
                    self._check()
                    return await self._run_now(pickle.dumps((function, args)))
        except TimeoutError as error:
            raise PicturesStopped("the pictures were not read in time before the end") from error
        finally:
            self._calls.discard(call)

    async def _run_now(self, request: bytes) -> picture_worker.Reply:
        worker = self._idle.pop() if self._idle else await self._start()
        try:
            async with asyncio.timeout(SECONDS):
                fields, content = await _call(worker, request)
        except TimeoutError as error:
            _kill(worker)
            text = f"a picture takes more than {SECONDS:.0f} seconds to decode; accepted: one saved anew"
            raise PictureError(text) from error
        except (EOFError, OSError, ValueError) as error:
            _kill(worker)
            text = "a picture made its decoder crash, perhaps for want of memory; accepted: one saved anew"
            raise PictureError(text) from error
        except BaseException:
            _kill(worker)
            raise
        self._idle.append(worker)
        if "error" in fields:
            raise PictureError(fields["error"])
        return fields, content

    async def _start(self) -> Process:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", picture_worker.__name__, str(self.memory)]
        worker = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, limit=_MAX_LINE
        )
        self._workers = {other for other in self._workers if other.returncode is None} | {worker}
        return worker


def _plain(source: str | bytes) -> str | bytes:
    """A source of no subclass, such as Gradio's for paths: a worker would import Gradio to unpickle it."""
    return str(source) if isinstance(source, str) else bytes(source)


async def _call(worker: Process, request: bytes) -> picture_worker.Reply:
    """Send a request and wait for the reply. Raises `OSError`, `EOFError` or `ValueError` for a lost one."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(len(request).to_bytes(8, "big") + request)
    await worker.stdin.drain()
    fields = json.loads(await worker.stdout.readuntil(b"\n"))
    return fields, await worker.stdout.readexactly(fields["bytes"])


def _kill(worker: Process) -> None:
    with suppress(ProcessLookupError):
        worker.kill()
