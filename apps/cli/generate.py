"""`bifrons generate`: pictures from text, each batch written as soon as it is painted."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...blocks.errors import (
    OptionError,
    PictureError,
    PromptError,
    ResourceError,
    UnknownWordsWarning,
    check_integer,
    counted,
)
from ...blocks.image_io import open_generated, text_chunks
from ...blocks.placement.memory_budget import size_text
from ...blocks.progress import progress_bar
from ...blocks.sampling.request import check_context
from ...janus.image_generation import ImageGenerationOptions, image_batch_size, image_info
from ...janus.variants import image_generation_workload
from ..defaults import default_model
from ..files import print_json, typed_settings
from ..notes import note
from ..pipelines import StepMeter, explain_out_of_memory
from ..resize import parse_size, resize
from .images import load_janus
from .long_work import long_work
from .outputs import STDOUT, write_image
from .picture_plan import Picture, plan_pictures
from .prompts_file import PromptEntry
from .show import apply_like, is_repeated

if TYPE_CHECKING:
    from ...janus.pipeline import JanusPipeline

_BATCH, _CPU_BATCH = 64, 16
"""Pictures painted together where memory allows: more gain little, and are lost together."""
_NOT_SETTINGS = {"software", "version", "deterministic", "pixels"}
_NEWER = {"fingerprint", "dtype", "quantize", "device"}
"""Settings that files of version 0.1 lack."""


def generate(args: argparse.Namespace) -> int:
    """Generate images, write them to files and print the paths, or JSON.

    Each batch is written when it is done: what ends the work early loses the pictures of one batch.
    """
    started = time.monotonic()
    # Only the given options are passed on: a model may have a default guidance scale of its own. All that can
    # be checked without the model is checked first, since loading can take minutes.
    like = apply_like(args)
    args.model = args.model or default_model()
    size = None if args.resize is None else parse_size(args.resize)
    if args.batch_size is not None:
        check_integer("batch_size", args.batch_size, low=1)
    pictures = plan_pictures(args)
    pipe = load_janus(args.model, args, "paint")
    _check_prompts(pipe, pictures)
    run = _Run(pipe, args, size, pictures)
    todo = run.unpainted()
    with run.keep_what_is_done():
        for batch in run.batches(todo):
            run.paint(batch)
    run.bar.close()
    same: dict[str, Any] = {}
    if like is not None and is_repeated(args, like):
        note(like.compare(run.written[0]))
        same = {"same_pixels": run.written[0]["pixels"] == like.settings["pixels"]}
    if args.json:
        seconds = round(time.monotonic() - started, 3)
        print_json({"model": args.model, **run.content(), **same, "seconds": seconds})
    elif len(todo) < len(pictures):
        note(f"there already: {len(pictures) - len(todo):,} of {counted(len(pictures), 'picture')}")
    return 0


def _check_prompts(pipe: "JanusPipeline", pictures: Sequence[Picture]) -> None:
    """Raise `PromptError` for prompts that the model's context can't hold, and warn of unknown words in any,
    before anything is painted."""
    config, checked = pipe.model.config, dict[Any, None]()
    for picture in pictures:
        texts = picture.prompt, picture.options.get("negative_prompt")
        if texts in checked:
            continue
        checked[texts] = None
        try:
            longest = max(map(len, pipe.processor.generation_ids(*texts)))
            check_context(longest, config.num_codes, config.decoder.max_positions)
        except PromptError as error:
            if picture.where == PromptEntry.where:
                raise
            raise PromptError(f"{picture.where}: {error}") from error
    pipe.warn_of_unknown_words((text for texts in checked for text in texts if text), "painting")


class _Run:
    """The work of one command: what is there already, what is painted, and what is left."""

    def __init__(
        self,
        pipe: "JanusPipeline",
        args: argparse.Namespace,
        size: tuple[int, int] | None,
        pictures: list[Picture],
    ) -> None:
        self.pipe, self.args, self.size, self.pictures = pipe, args, size, pictures
        self.written: dict[int, dict[str, Any]] = {}
        """What `--json` reports of finished pictures, by their places in `pictures`."""
        self.bar, self.meter = progress_bar(0, "painting", " tokens", False), StepMeter(pipe)

    def unpainted(self) -> list[int]:
        """The places of pictures to paint; with `--skip-existing` those that are there are finished."""
        todo = [index for index in range(len(self.pictures)) if not self._is_there(index)]
        self.bar = progress_bar(len(todo) * self.pipe.model.config.num_codes, "painting", " tokens")
        return todo

    def _is_there(self, index: int) -> bool:
        picture = self.pictures[index]
        if not self.args.skip_existing or not os.path.lexists(picture.path):
            return False
        try:
            _, found = open_generated(picture.path)
        except PictureError as error:
            raise ResourceError(
                f"{picture.path} is there, but can't be read ({error}); remove it, and it is painted again"
            ) from error
        expected = self._info(picture)
        newer = _NEWER - found.keys()
        for key in sorted((found.keys() | expected.keys()) - _NOT_SETTINGS - newer):
            if found.get(key) != expected.get(key):
                raise OptionError(
                    f"{picture.path} is there with another {key}: {found.get(key)}, not {expected.get(key)}; "
                    "accepted with --skip-existing: the same settings, or another folder"
                )
        self.written[index] = {"file": str(picture.path), **typed_settings(found), "skipped": True}
        return True

    def _info(self, picture: Picture) -> dict[str, str]:
        options = ImageGenerationOptions(**{"guidance_scale": self.pipe.guidance_scale, **picture.options})
        info = image_info(self.pipe, picture.prompt, picture.seed, options)
        return info | ({} if self.size is None else {"resize": "{}x{}".format(*self.size)})

    def batches(self, todo: Sequence[int]) -> Iterator[list[int]]:
        """The places in batches of equal options: the size follows the memory that is free by then."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index in todo:
            groups.setdefault(tuple(sorted(self.pictures[index].options.items())), []).append(index)
        for group in groups.values():
            while group:
                size = self.args.batch_size or self._batch_size(group)
                yield group[:size]
                group = group[size:]

    def _batch_size(self, group: Sequence[int]) -> int:
        most = _CPU_BATCH if self.pipe.device.type == "cpu" else _BATCH
        first = [self.pictures[index] for index in group[:most]]
        texts = {picture.prompt for picture in first}
        negative = first[0].options.get("negative_prompt")
        longest = max(
            len(ids) for text in texts for ids in self.pipe.processor.generation_ids(text, negative)
        )
        return min(most, image_batch_size(self.pipe.model, self._guided(first[0]), longest))

    def _guided(self, picture: Picture) -> bool:
        scale = picture.options.get("guidance_scale", self.pipe.guidance_scale)
        return ImageGenerationOptions(scale).guided

    def paint(self, batch: Sequence[int]) -> None:
        """Paint pictures together, write them and print their paths. Raises `OptionError`."""
        pictures = [self.pictures[index] for index in batch]
        prompts, seeds = [one.prompt for one in pictures], [one.seed for one in pictures]

        def advance(step: int, total: int, codes: Tensor) -> None:
            self.bar.set_postfix_str(f"{self.meter.tokens_per_step:.2f} a step", refresh=False)
            self.bar.update(len(codes))

        work = f"painting {counted(len(batch), 'picture')}"
        with explain_out_of_memory(work, partial(self._advice, pictures)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UnknownWordsWarning)  # `_check_prompts` has named them all
            options = {**pictures[0].options, "callback": advance, "progress": False}
            images = self.pipe.generate(prompts, 1, seeds, **options)
        assert isinstance(images, list)
        try:
            for index, picture, image in zip(batch, pictures, images, strict=True):
                self._write(index, picture, image)
        finally:
            files = [self.written[index]["file"] for index in batch if index in self.written]
            if files and not self.args.json and pictures[0].path != STDOUT:
                tqdm.write("\n".join(files), file=sys.stdout)
                sys.stdout.flush()

    def _write(self, index: int, picture: Picture, image: Image.Image) -> None:
        image.info |= self._info(picture)
        scaled = image if self.size is None else resize(image, self.size)
        write_image(picture.path, scaled, self.args.force)
        settings = {**typed_settings(text_chunks(scaled)), "steps": image.info["steps"]}
        self.written[index] = {"file": str(picture.path), **settings}

    def _advice(self, pictures: Sequence[Picture]) -> str:
        workload = image_generation_workload(self.pipe.model.config, self._guided(pictures[0]))
        fewer = f"--batch-size {len(pictures) // 2}, " if len(pictures) > 1 else ""
        return (
            f"each picture takes {size_text(workload.cache_bytes(1, self.pipe.dtype))} of cache and about "
            f"{size_text(workload.activation_bytes(1, self.pipe.dtype))} of activations beside the weights; "
            f"accepted: {fewer}a smaller dtype or another device (see `bifrons info {self.args.model}`)"
        )

    def keep_what_is_done(self) -> AbstractContextManager[None]:
        """Within it, an error or a signal ends with what is written."""
        return long_work(self._done, self.content)

    def _done(self) -> str:
        self.bar.close()
        there, count = len(self.written), len(self.pictures)
        if count == 1:
            return "nothing is written"
        where = self.pictures[0].path.parent
        rest = "; --skip-existing goes on with the rest" if self.args.seed is not None else ""
        return f"{there} of {count} pictures are written to {where}{rest}"

    def content(self) -> dict[str, Any]:
        """The finished pictures, for `--json`."""
        pictures = [self.written[index] for index in sorted(self.written)]
        return {"pictures": pictures, "tokens_per_step": round(self.meter.tokens_per_step, 3)}
