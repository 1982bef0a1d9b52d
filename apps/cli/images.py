"""`bifrons generate`, `encode` and `decode`: pictures from sentences, and between pictures and codes."""

import argparse
import json
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...blocks.chat.image_io import open_image, text_chunks, write_png
from ...blocks.errors import OptionError, PromptError, check_integer
from ...blocks.placement.memory_budget import size_text
from ...janus.image_generation import ImageGenerationOptions, image_seeds
from ...janus.variants import image_generation_workload
from ..defaults import DEFAULT_MODEL
from ..files import print_json, slug, typed_settings, write_new
from ..pipelines import explain_memory, load_pipeline
from .options import loading

if TYPE_CHECKING:
    from ...janus.model import Parts
    from ...janus.pipeline import JanusPipeline

_FOLDER = "out"


def load_janus(model: str, args: argparse.Namespace, parts: "Parts") -> "JanusPipeline":
    """The model, which must be able to paint; with its embedded label on stderr. `parts` is what it takes."""
    from ...janus.pipeline import JanusPipeline

    eager = getattr(args, "eager", False)  # `encode` and `decode` have no steps
    pipe = load_pipeline(model, **loading(args), paints=True, parts=parts, eager=eager)
    assert isinstance(pipe, JanusPipeline)
    return pipe


def generate(args: argparse.Namespace) -> int:
    """Write the images of prompts to files and print their names, or JSON."""
    started = time.monotonic()
    # What is not given stays out, since a model may have a guidance scale of its own. What needs no model is
    # checked before one is loaded, which can take minutes.
    given = {f.name: getattr(args, f.name) for f in fields(ImageGenerationOptions) if f.name in args}
    ImageGenerationOptions(**given)
    count = len(args.prompt) * check_integer("n", args.n, low=1)
    image_seeds(args.seed, len(args.prompt), args.n)
    if not all(prompt.strip() for prompt in args.prompt):
        raise PromptError("a prompt is empty; say what to paint")
    target = Path(args.output or _FOLDER)
    is_file = target.suffix.lower() == ".png" and not target.is_dir()
    if is_file and count > 1:
        raise OptionError(f"output is the file {target}, but {count} pictures are asked for; name a folder")
    pipe = load_janus(args.model, args, "paint")
    pictures = _paint(pipe, args, given, count)
    width = len(str(count))
    files = []
    for index, picture in enumerate(pictures, start=1):
        path = target
        if not is_file:
            words = slug(picture.info["prompt"])
            path = target / f"{index:0{width}}-{words}-seed{picture.info['seed']}.png"
        files.append(write_new(path, partial(write_png, picture)))
        if not args.json:
            print(files[-1], flush=True)
    if args.json:
        pairs = zip(files, pictures, strict=True)
        made = [{"file": str(file), **typed_settings(text_chunks(picture))} for file, picture in pairs]
        seconds = round(time.monotonic() - started, 3)
        print_json({"model": args.model, "pictures": made, "seconds": seconds})
    return 0


def _paint(
    pipe: "JanusPipeline", args: argparse.Namespace, given: dict[str, Any], count: int
) -> list[Image.Image]:
    config = pipe.model.config

    def advice() -> str:
        scale = given.get("guidance_scale", pipe.guidance_scale)
        work = image_generation_workload(config, ImageGenerationOptions(scale).guided)
        return (
            f"each picture takes {size_text(work.cache_bytes(1, pipe.dtype))} of cache and about "
            f"{size_text(work.activation_bytes(1, pipe.dtype))} of activations beside the weights; accepted: "
            f"fewer pictures, a smaller dtype or another device (`bifrons info {args.model}` tells more)"
        )

    with (
        explain_memory(f"painting {count} pictures", advice),
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

        painted = pipe.generate(
            args.prompt,
            args.n,
            args.seed,
            **given,
            callback=advance,
        )
    assert isinstance(painted, list)
    return painted


def encode(args: argparse.Namespace) -> int:
    """Codes as JSON (codes in raster order, grid, model), or as a `.npy` array in the shape of the grid."""
    picture = open_image(args.image)
    target = None if args.output is None else Path(args.output)
    if target is not None and target.suffix.lower() not in (".json", ".npy"):
        raise OptionError(f"output is {args.output!r}; accepted: a name that ends in .json or .npy")
    pipe = load_janus(args.model, args, "all")
    codes = pipe.encode_image(picture)
    grid = pipe.model.config.grid
    found = {"model": args.model, "grid": list(grid), "codes": codes.tolist()}
    if target is None:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    if target.suffix.lower() == ".npy":
        array = codes.reshape(grid).numpy()
        file = write_new(target, lambda stream: np.save(stream, array, allow_pickle=False))
    else:
        text = json.dumps(found, ensure_ascii=False) + "\n"
        file = write_new(target, lambda stream: stream.write(text.encode("utf-8")))
    if args.json:
        print_json({"file": str(file), **found})
    else:
        print(file)
    return 0


def decode(args: argparse.Namespace) -> int:
    """A picture from a file of `encode`; the model is `-m`, or else the one that the file names."""
    path = Path(args.codes)
    codes, grid, named = read_codes(path)
    model = args.model or named or DEFAULT_MODEL
    target = Path(args.output or f"{path.stem}.png")
    if target.suffix.lower() != ".png":
        raise OptionError(f"output is {args.output!r}; accepted: a name that ends in .png")
    pipe = load_janus(model, args, "paint")
    expected = pipe.model.config.grid
    if grid is not None and tuple(grid) != expected:
        raise OptionError(f"{path} holds codes in a grid of {grid}; accepted by {model}: {list(expected)}")
    picture = pipe.decode_codes(codes)[0]
    picture.info.update({"model": model, "software": "Bifrons"})
    file = write_new(target, partial(write_png, picture))
    if args.json:
        print_json({"file": str(file), "model": model, "grid": list(expected)})
    else:
        print(file)
    return 0


def read_codes(path: Path) -> tuple[list[Any], list[int] | None, str | None]:
    """Codes in raster order, their grid and the model's name if the file has them."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
            return array.reshape(-1).tolist(), list(array.shape) if array.ndim == 2 else None, None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OptionError(f"{path} can't be read as codes: {why}; accepted: .json and .npy files") from error
    content = found if isinstance(found, dict) else {"codes": found}
    codes, grid, model = (content.get(name) for name in ("codes", "grid", "model"))
    if not isinstance(codes, list) or not codes or not all(type(code) is int for code in codes):
        raise OptionError(f"{path} holds no codes; accepted: a list of whole numbers, also as 'codes'")
    if grid is not None and (not isinstance(grid, list) or [type(side) for side in grid] != [int, int]):
        raise OptionError(f"{path} has the grid {grid!r}; accepted: [rows, columns]")
    if model is not None and not isinstance(model, str):
        raise OptionError(f"{path} has the model {model!r}; accepted: a name")
    return codes, grid, model
