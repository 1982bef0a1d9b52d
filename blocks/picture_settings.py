"""Settings of pictures and their tokens in a model folder, in whichever file they stand.

Official folders of Janus have them in `preprocessor_config.json`, those of DeepSeek-VL2 in
`processor_config.json`, and transformers since version 5 under `image_processor` in the latter.
"""

import os
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .json_config import Section, read_json, shown

_PREPROCESSOR, _PROCESSOR, _NESTED = "preprocessor_config.json", "processor_config.json", "image_processor"
_READ = (
    "add_special_token",
    "background_color",
    "candidate_resolutions",
    "do_rescale",
    "do_resize",
    "downsample_ratio",
    "image_mean",
    "image_size",
    "image_std",
    "image_tag",
    "image_token",
    "min_size",
    "normalize",
    "num_image_tokens",
    "patch_size",
    "resample",
    "rescale_factor",
    "size",
)
"""The settings that a family reads. Others are notes of the software that wrote the file."""
_BICUBIC = 3  # Pillow's number of the filter


def read_picture_settings(folder: Path) -> Section:
    """The settings in both files of a model folder as one object; a missing file holds none.

    Raises `ConfigError` for a file that can't be read, and for two places that contradict each other.
    """
    preprocessor, processor = (_read(folder / name) for name in (_PREPROCESSOR, _PROCESSOR))
    nested = Section(processor, _PROCESSOR).section(_NESTED).values
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    places = {_PREPROCESSOR: preprocessor, f"{_PROCESSOR}: {_NESTED}": nested, _PROCESSOR: processor}
    for where, settings in places.items():
        for name in _READ:
            value = settings.get(name)
            if value is None:
                continue
            if name in values and _comparable(values[name]) != _comparable(value):
                raise ConfigError(
                    f"{folder}: {name} is {shown(values[name])} in {origins[name]}, but {shown(value)} in "
                    f"{where}; accepted: the same in both, or in one of them alone"
                )
            values.setdefault(name, value)
            origins.setdefault(name, where)
    section = Section(values, " and ".join((_PREPROCESSOR, _PROCESSOR)), origins)
    section.expect("resample", _BICUBIC)
    section.expect("do_rescale", True)
    section.expect("do_resize", True)
    return section


def check_size(section: Section, side: int) -> None:
    """Raise `ConfigError` if the settings state another side of the model's input, in pixels."""
    for name in ("image_size", "size"):
        stated = _comparable(section.get(name, side))
        if stated != side:
            wide = f"pictures are {shown(stated)} pixels wide, but the model takes {side}"
            raise ConfigError(f"{section.origin(name)}: {wide}")


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if os.path.lexists(path) else {}


def _comparable(value: Any) -> Any:
    """A value in the one form in which it is compared: the side of a square for its width and height, the
    name for a token's object."""
    if isinstance(value, dict):
        if isinstance(value.get("content"), str):
            return value["content"]
        sides = [value[key] for key in ("height", "width") if key in value]
        return sides[0] if sides and sides[0] == sides[-1] else value
    return value
