"""What `bifrons generate` is asked for: each picture's prompt, seed, options and file, all checked."""

import argparse
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError, OptionError, PromptError, check_integer
from ...janus.image_generation import ImageGenerationOptions, image_seeds
from ..files import slug
from .inputs import STDIN, picture_suffixes, user_path
from .options import given_fields
from .prompts_file import PromptEntry, read_prompts

_DEFAULT_OUTPUT = "out"
_MAX_PICTURES = 1_000_000
_FILE_WIDTH = 5
"""Digits of the numbers in names of pictures from a file, so that more prompts change no name."""


@dataclass(frozen=True)
class Picture:
    """A picture to paint: its number, from 1; `options` are keywords of `ImageGenerationOptions`; `path`."""

    prompt: str
    seed: int
    options: dict[str, Any]
    where: str
    path: Path


def plan_pictures(args: argparse.Namespace) -> list[Picture]:
    """All pictures, prompt-major. Raises `BifronsError` for what can't be painted or written."""
    options = given_fields(args, ImageGenerationOptions)
    ImageGenerationOptions(**options)
    check_integer("n", args.n, low=1)
    image_seeds(args.seed, 1, 1)
    entries = [PromptEntry(text) for text in args.prompt]
    if args.prompts is not None:
        entries = read_prompts(args.prompts)
    if not all(entry.prompt.strip() for entry in entries):
        raise PromptError("a prompt is empty; say what to paint")
    if STDIN in args.prompt:
        raise PromptError("a prompt is -; accepted: a text, or --prompts - for prompts from standard input")
    counts = [
        _at(entry, check_integer, "num_images", entry.settings.get("num_images", args.n), 1)
        for entry in entries
    ]
    total = sum(counts)
    if total > _MAX_PICTURES:
        raise OptionError(f"{total:,} pictures are asked for; accepted: at most {_MAX_PICTURES:,} at once")
    folder, file = _target(args.output, total)
    width, found = max(len(str(total)), _FILE_WIDTH if args.prompts is not None else 1), []
    for entry, count in zip(entries, counts, strict=True):
        own = {key: value for key, value in entry.settings.items() if key not in ("seed", "num_images")}
        seed, settings = entry.settings.get("seed", args.seed), {**options, **own}
        if seed is None and args.skip_existing:
            raise OptionError(
                "skip_existing knows pictures by their seeds; accepted with --seed, or a seed for each prompt"
            )
        _at(entry, ImageGenerationOptions, **settings)
        for number in _at(entry, image_seeds, secrets.randbelow(2**32) if seed is None else seed, 1, count):
            name = f"{len(found) + 1:0{width}}-{slug(entry.prompt)}-seed{number}.png"
            found.append(Picture(entry.prompt, number, settings, entry.where, file or folder / name))
    return found


def _at(entry: PromptEntry, check: Any, *args: Any, **options: Any) -> Any:
    """The result of a check, whose error says where a prompt that brings settings stands."""
    try:
        return check(*args, **options)
    except BifronsError as error:
        if not entry.settings:
            raise
        raise type(error)(f"{entry.where}: {error}") from error


def _target(output: str | None, count: int) -> tuple[Path, Path | None]:
    """The folder to write to, and the file of a single picture if one is named. Raises `OptionError`."""
    target = user_path(output or _DEFAULT_OUTPUT)
    suffix = target.suffix.lower()
    file = None if os.path.isdir(target) or suffix not in picture_suffixes() else target
    if file is not None and suffix != ".png":
        raise OptionError(f"output is {target}; accepted: a folder or a name that ends in .png")
    if file is not None and count > 1:
        raise OptionError(f"output is the file {target}, but {count} pictures are asked for; name a folder")
    existing = folder = target.parent if file is not None else target
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        problem = "may not be written to" if os.path.isdir(existing) else "is no folder"
        raise OptionError(f"can't write {target}: {existing} {problem}; accepted: another --output")
    return folder, file
