"""`bifrons show`, and what `generate --like` takes from the file of a generated picture."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...blocks.checkpoints.hub import open_model
from ...blocks.conversion.adapter import is_adapter
from ...blocks.device import DTYPES, resolve_device
from ...blocks.errors import BifronsError, CheckpointError, OptionError, PictureError, is_name, one_line
from ...blocks.generated_image import pixel_digest
from ...blocks.image_io import open_generated
from ...blocks.image_prompts import image_seeds
from ...blocks.json_config import decode_json, shown
from ...blocks.kernels.codec import KINDS
from ...janus.image_generation import ImageGenerationOptions
from ..files import print_json, typed_settings
from ..resize import parse_size
from .inputs import read_picture

_PROMPTS = ("prompt", "negative_prompt")
_OPTIONS = ("guidance_scale", "temperature", "top_k", "top_p", "negative_prompt")
_SHOWN = (
    "prompt", "negative_prompt", "seed", "guidance_scale", "temperature", "top_k", "top_p", "resize", "model",
    "fingerprint", "dtype", "quantize", "device", "adapters", "software", "version", "deterministic",
    "pixels",
)  # fmt: skip
"""The settings of a picture in the order in which they are printed; what else a file holds is left out."""
_MOST_TEXT = 100_000
_NUMBER = re.compile(r"-?\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_ADAPTER = re.compile(r"([^\x00-\x1f]{1,4096}:-?\d[\d.e+-]{0,20})@[0-9a-f]{16}", re.ASCII)
_WHOLE = re.compile(r"\d{1,20}", re.ASCII)
_SETTINGS = "a PNG, JPEG, WebP or AVIF file that Bifrons has written"


@dataclass(frozen=True)
class Painting:
    """The settings of a generated picture as texts, all checked, from the file `where`.

    `unchanged`: the file has the pixels that were painted; None where it doesn't say which these were.
    """

    where: str
    settings: dict[str, str]
    unchanged: bool | None

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `ImageGenerationOptions`."""
        return {name: value for name, value in typed_settings(self.settings).items() if name in _OPTIONS}

    def compare(self, painted: dict[str, Any]) -> str:
        """Whether a picture painted again, with these settings, has the same pixels; or else why not."""
        if painted["pixels"] == self.settings["pixels"]:
            return f"painted again: the same pixels as {self.where}"
        found = typed_settings(self.settings)
        names = [name for name in _SHOWN[:-1] if found.get(name) != painted.get(name)]
        reasons = [f"{name} is {painted.get(name)}, there {found.get(name)}" for name in names]
        why = "; ".join(reasons) or "another machine, or other versions of libraries"
        return f"painted again, but not with the same pixels as {self.where}: {why}"


def show(args: argparse.Namespace) -> int:
    """Print the settings that a picture was generated with, one a line, or as JSON."""
    painting = read_painting(args.image)
    if args.json:
        settings = typed_settings(painting.settings)
        print_json({"file": args.image, **settings, "unchanged": painting.unchanged})
        return 0
    for name, value in painting.settings.items():
        if name != "pixels":
            print(f"{name}: {one_line(value)}")
    if painting.unchanged is not None:
        changed = "changed since: scaled, edited or compressed"
        print(f"pixels: {'as painted' if painting.unchanged else changed}")
    return 0


def read_painting(source: str) -> Painting:
    """The settings in a picture's file. Raises `PictureError` for a file without, and for any that no
    generated picture has."""
    image, texts = read_picture(source, open_generated)
    settings = {name: texts[name] for name in _SHOWN if name in texts}
    if not {"prompt", "seed"} <= settings.keys():
        raise PictureError(f"{source} holds no settings of a generated picture; accepted: {_SETTINGS}")
    _check(source, settings)
    digest = settings.get("pixels")
    return Painting(source, settings, None if digest is None else digest == pixel_digest(image))


def _check(source: str, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        fits = len(value) <= _MOST_TEXT if name in (*_PROMPTS, "adapters") else is_name(value)
        if name in ("seed", "top_k"):
            fits = bool(_WHOLE.fullmatch(value))
        elif name in ("guidance_scale", "temperature", "top_p"):
            fits = bool(_NUMBER.fullmatch(value))
        elif name in ("dtype", "quantize", "device"):
            accepted = {"dtype": DTYPES, "quantize": ("none", *KINDS), "device": ("cpu", "cuda", "mps")}
            fits = value in accepted[name]
        elif name == "adapters":
            fits = fits and stored_adapters(value) is not None
        if not fits:
            raise PictureError(f"{source} holds the {name} {shown(value)}, which no generated picture has")
    try:
        ImageGenerationOptions(**Painting(source, settings, None).options)
        image_seeds(int(settings["seed"]), 1, 1)
        if "resize" in settings:
            parse_size(settings["resize"])
    except OptionError as error:
        raise PictureError(f"{source} holds settings that are not accepted: {error}") from error


def apply_like(args: argparse.Namespace) -> Painting | None:
    """Set the options of `generate` that were not given to those of the picture of `--like`, if any.

    A name in a file downloads nothing: a model that is not on this machine must be named by `-m`. Raises
    `BifronsError`.
    """
    if args.like is None:
        return None
    if args.prompt or args.prompts is not None:
        raise OptionError("--like has the prompt of its picture; accepted: it alone, or prompts")
    painting = read_painting(args.like)
    settings, options = painting.settings, painting.options
    args.prompt = [settings["prompt"]]
    for name in _OPTIONS:
        if name not in args and name in options:
            setattr(args, name, options[name])
    args.seed = int(settings["seed"]) if args.seed is None else args.seed
    args.resize = args.resize or settings.get("resize")
    if args.model is None and "model" in settings:
        args.model = _local_model(painting)
        args.adapter = args.adapter or _local_adapters(painting)
    args.dtype = args.dtype or settings.get("dtype")
    if args.quantize is None and settings.get("quantize", "none") != "none":
        args.quantize = settings["quantize"]
    if args.device is None and args.device_map is None and _is_there(settings.get("device")):
        args.device = settings.get("device")
    return painting


def _local_model(painting: Painting) -> str:
    name = painting.settings["model"]
    try:
        if name.startswith(("//", "\\\\")):  # a share of another machine
            raise CheckpointError("it is on a network")
        open_model(name, local_files_only=True)
    except BifronsError as error:
        raise CheckpointError(
            f"{painting.where} was painted by the model {shown(name)}, which is not on this machine; "
            f"accepted: its name or folder by -m ({error})"
        ) from error
    return name


def _local_adapters(painting: Painting) -> list[str]:
    """The picture's adapters, as arguments of `--adapter`. Raises `CheckpointError` where one isn't there."""
    found = stored_adapters(painting.settings.get("adapters", "[]")) or []
    for adapter in found:
        folder = adapter.rpartition(":")[0]
        if folder.startswith(("//", "\\\\")) or not is_adapter(Path(folder)):
            raise CheckpointError(
                f"{painting.where} was painted with the adapter {shown(folder)}, which is not on this "
                "machine; accepted: its folder by --adapter"
            )
    return found


def stored_adapters(text: str) -> list[str] | None:
    """The adapters of a picture as `FOLDER:SCALE`, from its settings; None if the text is none of ours."""
    try:
        values = decode_json(text.encode())
    except ValueError:
        return None
    listed = values if isinstance(values, list) else [None]
    matches = [_ADAPTER.fullmatch(one) if isinstance(one, str) else None for one in listed]
    return [match[1] for match in matches if match] if all(matches) else None


def _is_there(device: str | None) -> bool:
    try:
        return device is not None and resolve_device(device) is not None
    except OptionError:
        return False


def is_repeated(args: argparse.Namespace, painting: Painting) -> bool:
    """Whether one picture is asked for, with the settings of the painting."""
    asked = {**{name: getattr(args, name, None) for name in painting.options}, "seed": args.seed}
    expected = {**painting.options, "seed": int(painting.settings["seed"])}
    return asked == expected and args.n == 1 and "pixels" in painting.settings
