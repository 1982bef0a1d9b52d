"""The job behind the tab *Create*: generates images and decodes previews on the way."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from ...blocks.errors import counted
from ...blocks.generation_step import GenerationStep
from ...blocks.image_io import write_png
from ...janus.image_generation import ImageGenerationOptions
from ..files import slug, write_new
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

    def __init__(self, job: Job, count: int) -> None:
        self.job, self.count = job, count
        self.started = time.monotonic()
        self.spent = 0.0
        self.finished: list[Image.Image] = []
        self.pictures: list[Image.Image] = []

    def __call__(self, step: GenerationStep, total: int, codes: Tensor) -> None:
        self.job.check()
        before = len(self.finished)
        done, everything = before * total + step * len(codes), self.count * total
        elapsed = time.monotonic() - self.started
        due = step % max(1, total // _PREVIEWS) == 0 and step * 8 >= total  # the first rows look like noise
        more = step == total and before + len(codes) < self.count  # other pictures follow, beside these
        if more or (due and self.spent <= _PREVIEW_SHARE * elapsed):
            self._decode_preview(step)
        if more:
            self.finished = self.pictures[: before + len(codes)]
        left = elapsed / done * (everything - done) if step > 2 or before else None
        self.job.report(ImageProgress(done, everything, left, self.pictures))

    def _decode_preview(self, step: GenerationStep) -> None:
        started = time.monotonic()
        pictures = [*self.finished, *step.preview()]
        blank = Image.new("RGBA", pictures[0].size)
        self.pictures = pictures + [blank] * (self.count - len(pictures))
        self.spent += time.monotonic() - started


def image_pipeline(loaded: LoadedModel) -> "JanusPipeline":
    """The pipeline of a model that generates images."""
    from ...janus.pipeline import JanusPipeline

    assert isinstance(loaded.pipe, JanusPipeline)
    return loaded.pipe


def generate_images(
    job: Job, loaded: LoadedModel, prompt: str, wanted: Sequence[tuple[int, ImageGenerationOptions]]
) -> tuple[list[Image.Image], float]:
    """Generate an image for each seed and options; returns the images and the seconds they took.

    Neighbors with the same options are generated together.
    """
    started = time.monotonic()
    callback = _PreviewCallback(job, len(wanted))
    pictures: list[Image.Image] = []
    work = f"painting {counted(len(wanted), 'picture')}"
    with explain_out_of_memory(work, lambda: "accepted: fewer pictures"):
        for options, group in groupby(wanted, key=lambda one: one[1]):
            seeds = [seed for seed, _ in group]
            images = image_pipeline(loaded).generate(
                prompt,
                len(seeds),
                seeds,
                guidance_scale=options.guidance_scale,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                negative_prompt=options.negative_prompt,
                callback=callback,
                progress=False,
            )
            pictures += images
    for picture in pictures:
        picture.info["model"] = loaded.name
    return pictures, time.monotonic() - started


def unknown_words(loaded: LoadedModel, pictures: Sequence[Image.Image]) -> str | None:
    """A line about words of the pictures' prompts that their model doesn't know."""
    infos = [picture.info for picture in pictures]
    texts = (info[key] for info in infos for key in ("prompt", "negative_prompt") if info.get(key))
    return loaded.pipe.unknown_words(texts, "painting")


def save_painted(picture: Image.Image, folder: Path) -> Path:
    """Write a generated image with its settings as a new PNG file, named after its prompt and seed."""
    name = f"{slug(picture.info['prompt'])}-seed{picture.info['seed']}.png"
    return write_new(folder / name, lambda stream: write_png(picture, stream))
