"""Decodes generated images beside the scheduler's steps."""

import threading
from collections import deque
from concurrent.futures import Future

import torch
from PIL import Image

from ...janus.image_generation import decode_images
from ...janus.model import JanusModel

TOGETHER = 8
"""Images that are decoded at a time on CUDA. Steps that run meanwhile take longer: each image takes an H100
about 2.5 ms."""


class ImageDecoder:
    """Decodes images for several threads.

    On CUDA, images that wait for each other are decoded together, on a stream of their own: so they don't
    wait for the steps that are launched. Elsewhere they are decoded one by one.
    """

    def __init__(self, model: JanusModel) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._waiting: deque[tuple[list[int], Future[Image.Image]]] = deque()
        self._together = 1
        self._stream: torch.cuda.Stream | None = None
        device = model.decoder.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the weights are there for any stream
            self._together, self._stream = TOGETHER, torch.cuda.Stream(device, priority=-1)

    def decode(self, codes: list[int]) -> Image.Image:
        """The image of all its codes; blocks."""
        image: Future[Image.Image] = Future()
        self._waiting.append((codes, image))
        with self._lock:
            while not image.done():
                count = min(self._together, len(self._waiting))
                self._decode([self._waiting.popleft() for _ in range(count)])
        return image.result()

    def _decode(self, batch: list[tuple[list[int], Future[Image.Image]]]) -> None:
        try:
            with torch.cuda.stream(self._stream):
                images = decode_images(self.model, torch.tensor([codes for codes, _ in batch]))
            for (_, future), image in zip(batch, images, strict=True):
                future.set_result(image)
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
