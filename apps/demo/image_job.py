"""The job behind the tab *Create*: generates images and decodes previews on the way."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ...janus.image_generation import ImageGenerationOptions
from ..pipelines import explain_out_of_memory
from .jobs import Job
from .models import LoadedModel

if TYPE_CHECKING:
    from ...janus.pipeline import JanusPipeline

_PREVIEWS = 16
_PREVIEW_SHARE = 0.2
"""Largest share of the time that previews may take; slow decoding means fewer of them."""


@dataclass(frozen=True)
class ImageProgress:
    """Progress in image tokens, the estimated seconds left, and the latest previews."""

    done: int
    total: int
    left: float | None
    pictures: list[Image.Image]


class _PreviewCallback:
    """The callback of `generate`: reports progress and decodes a preview now and then."""

    def __init__(self, job: Job, loaded: LoadedModel, count: int) -> None:
        self.job, self.loaded, self.count = job, loaded, count
        self.started = time.monotonic()
        self.spent = 0.0
        self.finished: list[Tensor] = []
        self.pictures: list[Image.Image] = []

    def __call__(self, step: int, total: int, codes: Tensor) -> None:
        self.job.check()
        before = sum(len(batch) for batch in self.finished)
        done, everything = before * total + step * len(codes), self.count * total
        elapsed = time.monotonic() - self.started
        if step % max(1, total // _PREVIEWS) == 0 and self.spent <= _PREVIEW_SHARE * elapsed:
            self._decode_preview(codes)
        if step == total:
            self.finished.append(codes)
        left = elapsed / done * (everything - done) if step > 2 or before else None
        self.job.report(ImageProgress(done, everything, left, self.pictures))

    def _decode_preview(self, codes: Tensor) -> None:
        started = time.monotonic()
        blank = self.loaded.blank_codes
        rest = blank[codes.shape[1] :].expand(len(codes), -1)
        remaining = self.count - len(codes) - sum(len(batch) for batch in self.finished)
        rows = [*self.finished, torch.cat((codes, rest), dim=1), blank.expand(remaining, -1)]
        self.pictures = image_pipeline(self.loaded).decode_codes(torch.cat(rows))
        self.spent += time.monotonic() - started


def image_pipeline(loaded: LoadedModel) -> "JanusPipeline":
    """The pipeline of a model that generates images."""
    from ...janus.pipeline import JanusPipeline

    assert isinstance(loaded.pipe, JanusPipeline)
    return loaded.pipe


def generate_images(
    job: Job, loaded: LoadedModel, prompt: str, seeds: list[int], options: ImageGenerationOptions
) -> tuple[list[Image.Image], float]:
    """Generate one image per seed; returns the images and the seconds they took."""
    started = time.monotonic()
    with explain_out_of_memory(f"painting {len(seeds)} pictures", lambda: "accepted: fewer pictures"):
        pictures = image_pipeline(loaded).generate(
            prompt,
            len(seeds),
            seeds,
            guidance_scale=options.guidance_scale,
            temperature=options.temperature,
            callback=_PreviewCallback(job, loaded, len(seeds)),
        )
    assert isinstance(pictures, list)
    for picture in pictures:
        picture.info["model"] = loaded.name
    return pictures, time.monotonic() - started
