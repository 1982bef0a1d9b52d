"""The work behind the tab *Create*: pictures painted in a job, looked at now and then while they are."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ...janus.image_generation import ImageGenerationOptions
from ..pipelines import explain_memory
from .jobs import Job
from .models import Served

if TYPE_CHECKING:
    from ...janus.pipeline import JanusPipeline

_PREVIEWS = 16
_PREVIEW_SHARE = 0.2
"""Previews may take this part of the time; where decoding is slow there are fewer of them."""


@dataclass(frozen=True)
class Painting:
    """How far the work is, in image tokens, the seconds left, and the pictures as last looked at."""

    done: int
    total: int
    left: float | None
    pictures: list[Image.Image]


class _Watch:
    """The callback of `generate`: counts, estimates, decodes what is there now and then."""

    def __init__(self, job: Job, served: Served, count: int) -> None:
        self.job, self.served, self.count = job, served, count
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
            self._look(codes)
        if step == total:
            self.finished.append(codes)
        left = elapsed / done * (everything - done) if step > 2 or before else None
        self.job.tell(Painting(done, everything, left, self.pictures))

    def _look(self, codes: Tensor) -> None:
        started = time.monotonic()
        blank = self.served.blank_codes
        rest = blank[codes.shape[1] :].expand(len(codes), -1)
        unbegun = self.count - len(codes) - sum(len(batch) for batch in self.finished)
        rows = [*self.finished, torch.cat((codes, rest), dim=1), blank.expand(unbegun, -1)]
        self.pictures = painter(self.served).decode_codes(torch.cat(rows))
        self.spent += time.monotonic() - started


def painter(served: Served) -> "JanusPipeline":
    from ...janus.pipeline import JanusPipeline

    assert isinstance(served.pipe, JanusPipeline)
    return served.pipe


def paint_all(
    job: Job, served: Served, prompt: str, seeds: list[int], options: ImageGenerationOptions
) -> tuple[list[Image.Image], float]:
    """The pictures, and the seconds that they took."""
    advice = "accepted: fewer pictures"
    started = time.monotonic()
    with explain_memory(f"painting {len(seeds)} pictures", lambda: advice):
        pictures = painter(served).generate(
            prompt,
            len(seeds),
            seeds,
            guidance_scale=options.guidance_scale,
            temperature=options.temperature,
            callback=_Watch(job, served, len(seeds)),
        )
    assert isinstance(pictures, list)
    for picture in pictures:
        picture.info["model"] = served.name
    return pictures, time.monotonic() - started
