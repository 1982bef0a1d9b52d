"""`bifrons encode` and `decode`: conversion between images and codes."""

import argparse
import json
import os
from io import BytesIO
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...blocks.errors import BifronsError, OptionError, ResourceError
from ...blocks.json_config import TABLE_BYTES, shown
from ..defaults import default_model
from ..files import print_json
from ..pipelines import load_pipeline
from .file_kinds import CODES, file_head, other_kind
from .inputs import STDIN, decode_user_json, open_picture, read_input, reason_of, user_path
from .options import loading_options
from .outputs import STDOUT, check_output, write_image, write_output

if TYPE_CHECKING:
    from ...janus.model import Parts
    from ...janus.pipeline import JanusPipeline

_NPY_MAGIC = b"\x93NUMPY"


def load_janus(model: str, args: argparse.Namespace, parts: "Parts") -> "JanusPipeline":
    """Load the `parts` of a model that can generate images. Raises `BifronsError`."""
    from ...janus.pipeline import JanusPipeline

    pipe = load_pipeline(model, **loading_options(args), must_paint=True, parts=parts)
    assert isinstance(pipe, JanusPipeline)
    return pipe


def encode(args: argparse.Namespace) -> int:
    """Write the codes of an image as JSON (raster order, grid, model) or as a grid-shaped `.npy` array."""
    image = open_picture(args.image, args.exif)
    to_stdout = args.output in (None, STDIN)
    target = STDOUT if to_stdout else check_output(args.output, (".json", ".npy"), args.force)
    pipe = load_janus(args.model, args, "all")
    codes = pipe.encode_image(image)
    grid = pipe.model.config.grid
    content = {"model": args.model, "grid": list(grid), "codes": codes.tolist()}
    if to_stdout:
        print(json.dumps(content, ensure_ascii=False))
        return 0
    if target.suffix.lower() == ".npy":
        array = codes.reshape(grid).numpy()
        write_output(target, lambda stream: np.save(stream, array, allow_pickle=False), args.force)
    else:
        text = json.dumps(content, ensure_ascii=False) + "\n"
        write_output(target, lambda stream: stream.write(text.encode("utf-8")), args.force)
    if args.json:
        print_json({"file": str(target), **content})
    else:
        print(target)
    return 0


def decode(args: argparse.Namespace) -> int:
    """Write the image of a codes file, decoded by the model of `-m` or else by the one named in the file."""
    codes, grid, model_in_file = read_codes(args.codes)
    model = args.model or model_in_file or default_model()
    stem = "decoded" if args.codes == STDIN else user_path(args.codes).stem
    target = check_output(args.output or f"{stem}.png", force=args.force, json=args.json)
    pipe = load_janus(model, args, "paint")
    expected = pipe.model.config.grid
    if grid is not None and tuple(grid) != expected:
        raise OptionError(
            f"{args.codes} holds codes in a grid of {grid}; accepted by {model}: {list(expected)}"
        )
    image = pipe.decode_codes(codes)[0]
    image.info.update({"model": model, "software": "Bifrons"})
    write_image(target, image, args.force)
    if args.json:
        print_json({"file": str(target), "model": model, "grid": list(expected)})
    elif target != STDOUT:
        print(target)
    return 0


def read_codes(path: str | os.PathLike[str]) -> tuple[list[int], list[int] | None, str | None]:
    """Codes in raster order; their grid and the model's name if the file has them. Raises `OptionError`.

    Codes are [N], [rows, columns], or either as the only one of a batch: [1, N], [1, rows, columns].
    """
    source = os.fspath(path)
    name = "standard input" if source == STDIN else source
    stored, named_array = b"", user_path(source).suffix.lower() == ".npy"
    try:
        stored = read_input(source, TABLE_BYTES)
        if stored.startswith(_NPY_MAGIC) or named_array:
            content: Any = {"codes": _read_array(stored).tolist()}
        else:
            content = decode_user_json(stored)
    except (OSError, ValueError) as error:
        if isinstance(error, BifronsError):
            raise
        # A damaged array is one, whatever it begins with.
        if not named_array and (problem := other_kind(name, stored or file_head(source), CODES)):
            raise ResourceError(problem) from error
        raise ResourceError(
            f"{name} can't be read as codes: {reason_of(error)}; accepted: .json and .npy files"
        ) from error
    if not isinstance(content, dict):
        content = {"codes": content}
    nested, grid, model = (content.get(key) for key in ("codes", "grid", "model"))
    if grid is not None and (not isinstance(grid, list) or [type(side) for side in grid] != [int, int]):
        raise OptionError(f"{name} has the grid {shown(grid)}; accepted: [rows, columns]")
    if model is not None and not isinstance(model, str):
        raise OptionError(f"{name} has the model {shown(model)}; accepted: a name")
    codes, own_grid = _flat_codes(nested, name)
    return codes, grid or own_grid, model


def _flat_codes(nested: Any, name: str) -> tuple[list[int], list[int] | None]:
    """A list of whole numbers, nested or not, in raster order; and its grid, if it has one."""
    rows = nested
    while isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], list):
        rows = rows[0]
    grid = None
    if isinstance(rows, list) and rows and all(isinstance(row, list) and row for row in rows):
        if len({len(row) for row in rows}) == 1:
            grid = [len(rows), len(rows[0])]
        rows = [code for row in rows for code in row]
    if not isinstance(rows, list) or not rows or not all(type(code) is int for code in rows):
        raise OptionError(
            f"{name} holds no codes of one picture; accepted: a list of whole numbers, or of rows of them, "
            "alone or as 'codes' of an object"
        )
    return rows, grid


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
        raise ValueError(f"it is {dtype} of the shape {shape}; accepted: whole numbers, all in the file")
    return np.load(BytesIO(content), allow_pickle=False)
