"""`bifrons generate`, `encode` and `decode`: images from text, and conversion between images and codes."""

import argparse
import json
import os
import sys
import time
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...blocks.errors import OptionError, PromptError, check_integer
from ...blocks.files import read_bounded
from ...blocks.image_io import open_image, text_chunks, write_png
from ...blocks.json_config import TABLE_BYTES, decode_json, shown
from ...blocks.placement.memory_budget import size_text
from ...janus.image_generation import ImageGenerationOptions, image_seeds
from ...janus.variants import image_generation_workload
from ..defaults import DEFAULT_MODEL
from ..files import print_json, slug, typed_settings, write_new
from ..pipelines import explain_out_of_memory, load_pipeline
from .options import given_fields, loading_options

if TYPE_CHECKING:
    from ...janus.model import Parts
    from ...janus.pipeline import JanusPipeline

_DEFAULT_OUTPUT = "out"


def load_janus(model: str, args: argparse.Namespace, parts: "Parts") -> "JanusPipeline":
    """Load the `parts` of a model that can generate images. Raises `BifronsError`."""
    from ...janus.pipeline import JanusPipeline

    eager = getattr(args, "eager", False)  # `encode` and `decode` lack the option: they run no decoding steps
    pipe = load_pipeline(model, **loading_options(args), must_paint=True, parts=parts, eager=eager)
    assert isinstance(pipe, JanusPipeline)
    return pipe


def generate(args: argparse.Namespace) -> int:
    """Generate images, write them to files and print the paths, or JSON."""
    started = time.monotonic()
    # Only the given options are passed on: a model may have a default guidance scale of its own. All that can
    # be checked without the model is checked first, since loading can take minutes.
    options = given_fields(args, ImageGenerationOptions)
    ImageGenerationOptions(**options)
    count = len(args.prompt) * check_integer("n", args.n, low=1)
    image_seeds(args.seed, len(args.prompt), args.n)
    if not all(prompt.strip() for prompt in args.prompt):
        raise PromptError("a prompt is empty; say what to paint")
    target = Path(args.output or _DEFAULT_OUTPUT)
    is_file = target.suffix.lower() == ".png" and not os.path.isdir(target)
    if is_file and count > 1:
        raise OptionError(f"output is the file {target}, but {count} pictures are asked for; name a folder")
    pipe = load_janus(args.model, args, "paint")
    images = _generate(pipe, args, options, count)
    width = len(str(count))
    files = []
    for index, image in enumerate(images, start=1):
        path = target
        if not is_file:
            name = slug(image.info["prompt"])
            path = target / f"{index:0{width}}-{name}-seed{image.info['seed']}.png"
        files.append(write_new(path, partial(write_png, image)))
        if not args.json:
            print(files[-1], flush=True)
    if args.json:
        entries = [
            {"file": str(file), **typed_settings(text_chunks(image))}
            for file, image in zip(files, images, strict=True)
        ]
        seconds = round(time.monotonic() - started, 3)
        print_json({"model": args.model, "pictures": entries, "seconds": seconds})
    return 0


def _generate(
    pipe: "JanusPipeline", args: argparse.Namespace, options: dict[str, Any], count: int
) -> list[Image.Image]:
    """The images of all prompts, with a progress bar on stderr."""
    config = pipe.model.config

    def advice() -> str:
        scale = options.get("guidance_scale", pipe.guidance_scale)
        workload = image_generation_workload(config, ImageGenerationOptions(scale).guided)
        return (
            f"each picture takes {size_text(workload.cache_bytes(1, pipe.dtype))} of cache and about "
            f"{size_text(workload.activation_bytes(1, pipe.dtype))} of activations beside the weights; "
            f"accepted: fewer pictures, a smaller dtype or another device (see `bifrons info {args.model}`)"
        )

    with (
        explain_out_of_memory(f"painting {count} pictures", advice),
        tqdm(
            total=count * config.num_codes,
            desc="painting",
            unit=" tokens",
            file=sys.stderr,
            mininterval=0.1 if sys.stderr.isatty() else 5.0,
        ) as bar,
    ):

        def advance(step: int, total: int, codes: Tensor) -> None:
            bar.update(len(codes))

        images = pipe.generate(args.prompt, args.n, args.seed, **options, callback=advance)
    assert isinstance(images, list)
    return images


def encode(args: argparse.Namespace) -> int:
    """Write the codes of an image as JSON (raster order, grid, model) or as a grid-shaped `.npy` array."""
    image = open_image(args.image)
    target = None if args.output is None else Path(args.output)
    if target is not None and target.suffix.lower() not in (".json", ".npy"):
        raise OptionError(f"output is {args.output!r}; accepted: a name that ends in .json or .npy")
    pipe = load_janus(args.model, args, "all")
    codes = pipe.encode_image(image)
    grid = pipe.model.config.grid
    content = {"model": args.model, "grid": list(grid), "codes": codes.tolist()}
    if target is None:
        print(json.dumps(content, ensure_ascii=False))
        return 0
    if target.suffix.lower() == ".npy":
        array = codes.reshape(grid).numpy()
        file = write_new(target, lambda stream: np.save(stream, array, allow_pickle=False))
    else:
        text = json.dumps(content, ensure_ascii=False) + "\n"
        file = write_new(target, lambda stream: stream.write(text.encode("utf-8")))
    if args.json:
        print_json({"file": str(file), **content})
    else:
        print(file)
    return 0


def decode(args: argparse.Namespace) -> int:
    """Write the image of a codes file, decoded by the model of `-m` or else by the one named in the file."""
    path = Path(args.codes)
    codes, grid, model_in_file = read_codes(path)
    model = args.model or model_in_file or DEFAULT_MODEL
    target = Path(args.output or f"{path.stem}.png")
    if target.suffix.lower() != ".png":
        raise OptionError(f"output is {args.output!r}; accepted: a name that ends in .png")
    pipe = load_janus(model, args, "paint")
    expected = pipe.model.config.grid
    if grid is not None and tuple(grid) != expected:
        raise OptionError(f"{path} holds codes in a grid of {grid}; accepted by {model}: {list(expected)}")
    image = pipe.decode_codes(codes)[0]
    image.info.update({"model": model, "software": "Bifrons"})
    file = write_new(target, partial(write_png, image))
    if args.json:
        print_json({"file": str(file), "model": model, "grid": list(expected)})
    else:
        print(file)
    return 0


def read_codes(path: Path) -> tuple[list[Any], list[int] | None, str | None]:
    """Codes in raster order; their grid and the model's name if the file has them. Raises `OptionError`."""
    try:
        stored = read_bounded(path, TABLE_BYTES)
        if path.suffix.lower() == ".npy":
            array = _read_array(stored)
            return array.reshape(-1).tolist(), list(array.shape) if array.ndim == 2 else None, None
        content = decode_json(stored)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OptionError(
            f"{path} can't be read as codes: {reason}; accepted: .json and .npy files"
        ) from error
    if not isinstance(content, dict):
        content = {"codes": content}
    codes, grid, model = (content.get(name) for name in ("codes", "grid", "model"))
    if not isinstance(codes, list) or not codes or not all(type(code) is int for code in codes):
        raise OptionError(
            f"{path} holds no codes; accepted: a list of integers, alone or as 'codes' of an object"
        )
    if grid is not None and (not isinstance(grid, list) or [type(side) for side in grid] != [int, int]):
        raise OptionError(f"{path} has the grid {shown(grid)}; accepted: [rows, columns]")
    if model is not None and not isinstance(model, str):
        raise OptionError(f"{path} has the model {shown(model)}; accepted: a name")
    return codes, grid, model


def _read_array(content: bytes) -> np.ndarray:
    """The whole numbers of a `.npy` file. Raises `ValueError` for anything else."""
    stream = BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](stream)
    except Exception as error:  # a damaged header, which is Python's syntax, can raise anything
        raise ValueError(f"it is no array ({type(error).__name__})") from error
    if dtype.kind not in "iu" or prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(
            f"it is {dtype} of the shape {shape}; accepted: whole numbers, all in the file"
        )
    return np.load(BytesIO(content), allow_pickle=False)
