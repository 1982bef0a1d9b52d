"""What `bifrons generate` is asked for: each picture's prompt, seed, options and file, all checked."""

import argparse
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError, OptionError, PromptError, check_integer
from ...blocks.image_prompts import image_seeds
from ...janus.image_generation import ImageGenerationOptions
from ..files import PICTURE_FORMATS, exists_error, slug
from ..notes import note
from .file_kinds import check_no_file
from .inputs import STDIN, picture_suffixes, stdin_text, user_path
from .options import given_fields
from .outputs import STDOUT, check_folder, check_output, or_list
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
    entries = _entries(args)
    counts = [
        _at(entry, check_integer, "num_images", entry.settings.get("num_images", args.n), 1)
        for entry in entries
    ]
    total = sum(counts)
    if total > _MAX_PICTURES:
        raise OptionError(f"{total:,} pictures are asked for; accepted: at most {_MAX_PICTURES:,} at once")
    folder, file = _target(args, total)
    if hint := _unquoted(args):
        note(hint)
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
            path = file or folder / name
            if not (args.force or args.skip_existing or path == STDOUT) and os.path.lexists(path):
                raise OptionError(f"{exists_error(path)}; --skip-existing leaves it as it is")
            found.append(Picture(entry.prompt, number, settings, entry.where, path))
    return found


def _entries(args: argparse.Namespace) -> list[PromptEntry]:
    """The prompts of the command line, of standard input or of a file. Raises `BifronsError`."""
    if args.prompt and args.prompts is not None:
        raise OptionError("prompts stand on the command line and in --prompts; accepted: one of them")
    if args.prompts is not None:
        return read_prompts(args.prompts)
    if not args.prompt:
        raise PromptError("there is no prompt; accepted: bifrons generate PROMPT, or --prompts FILE")
    if args.prompt.count(STDIN) > 1:
        raise PromptError("- is standard input, which holds one prompt; --prompts - reads one a line")
    entries = [PromptEntry(stdin_text("a prompt") if text == STDIN else text) for text in args.prompt]
    if not all(entry.prompt.strip() for entry in entries):
        raise PromptError("a prompt is empty; say what to paint")
    for text in args.prompt:
        advice = "--prompts FILE reads prompts, --like FILE paints a picture again"
        check_no_file("a prompt", text, advice)
    return entries


def _at(entry: PromptEntry, check: Any, *args: Any, **options: Any) -> Any:
    """The result of a check, whose error says where a prompt that brings settings stands."""
    try:
        return check(*args, **options)
    except BifronsError as error:
        if not entry.settings:
            raise
        raise type(error)(f"{entry.where}: {error}") from error


def _target(args: argparse.Namespace, count: int) -> tuple[Path, Path | None]:
    """The folder to write to, and the file of a single picture if one is named, or `STDOUT`.

    Raises `OptionError`, and `ResourceError` for a folder that can't be written to.
    """
    if args.skip_existing and args.force:
        raise OptionError("--skip-existing leaves pictures that --force replaces; accepted: one of them")
    output = args.output or _DEFAULT_OUTPUT
    target = user_path(output)
    suffix = target.suffix.lower()
    if output == str(STDOUT):
        if args.skip_existing:
            raise OptionError("--skip-existing is for files; output is -")
        file = check_output(output, force=True, json=args.json)
    elif os.path.isdir(target) or output.endswith(("/", os.sep)) or not _names_a_file(suffix):
        check_folder(target, target)
        return target, None
    elif suffix not in PICTURE_FORMATS:
        raise OptionError(
            f"output is {target}; accepted: a folder or a name that ends in {or_list(PICTURE_FORMATS)}"
        )
    else:
        file = check_output(output, force=True)
    if count > 1:
        what = "-" if file == STDOUT else f"the file {target}"
        hint = _unquoted(args)
        raise OptionError(
            f"output is {what}, but {count} pictures are asked for; name a folder{hint and f' ({hint})'}"
        )
    return file.parent, file


def _unquoted(args: argparse.Namespace) -> str:
    """What to say of several prompts of one word each, which are probably one whose quotes were forgotten."""
    prompts = args.prompt or []
    if len(prompts) < 2 or any(len(prompt.split()) != 1 for prompt in prompts):
        return ""
    return f"each of the {len(prompts)} words is a prompt; put quotes around a prompt of several words"


def _names_a_file(suffix: str) -> bool:
    """Whether a name that isn't there yet is meant for a file: `star.pgn` is, `runs.2` is a folder."""
    return suffix in picture_suffixes() or bool(re.fullmatch(r"\.[a-z]{2,4}", suffix))
