"""`bifrons info` and `bifrons convert`: describe and convert model folders."""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...blocks.adapter_choice import parse_adapter
from ...blocks.checkpoints.formats import TensorEntry
from ...blocks.checkpoints.hub import open_model
from ...blocks.checkpoints.quantize import check_kind
from ...blocks.checkpoints.reader import list_tensors
from ...blocks.conversion.adapter import is_adapter, read_adapter
from ...blocks.conversion.adapter_change import Adapter
from ...blocks.conversion.convert import convert_folder
from ...blocks.conversion.merge import Merge, merge_adapters
from ...blocks.conversion.quantized_writer import QuantizedWriter
from ...blocks.errors import OptionError, ResourceError, one_line
from ...blocks.vocabulary import FILE as VOCABULARY
from ...blocks.vocabulary import read_vocabulary
from ..descriptions import ModelDescription, describe
from ..files import print_json
from .inspect import FORMATS, inspect_model, report_lines
from .inspect_adapter import adapter_lines, inspect_adapter

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def info(args: argparse.Namespace) -> int:
    """Print the report of a model, or of an adapter; the status is 1 if it would not load."""
    adapter = Path(args.model).expanduser()
    if is_adapter(adapter) and not os.path.lexists(adapter / "config.json"):
        report = inspect_adapter(adapter)
        lines = adapter_lines(report)
    else:
        report = inspect_model(args.model)
        lines = report_lines(report)
    if args.json:
        print_json(report)
    else:
        print("\n".join(lines))
    for error in report["errors"]:
        print(f"error: {error}", file=sys.stderr)
    return 0 if report["sound"] else 1


def convert(args: argparse.Namespace) -> int:
    """Convert a model folder to the original format, with adapters merged and quantized on request."""
    from ...janus.convert import to_original

    _check_target(args.target, args.force)
    source, options = open_model(args.source), {"force": args.force, "store_int8": args.store_int8}
    if args.max_shard_size is not None:
        options["max_shard_bytes"] = byte_count(args.max_shard_size)
    kind = check_kind(args.quantize)
    if kind is not None or args.merge_adapter:
        description = describe(source, entries := list_tensors(source.path))
        adapters = _adapters(description, args.merge_adapter or ())
        merge = _merging(description, entries, adapters)
        options |= {"merge": merge, "more_files": _vocabulary(source.path, adapters)}
        if kind is not None:
            options["writer"] = QuantizedWriter(description.network, description.key_map, kind, merge)
    formats = {**dict.fromkeys(FORMATS), "janus": to_original}
    written = convert_folder(source.path, args.target, formats, **options)
    files = sorted(path.name for path in written.iterdir())
    if args.json:
        print_json({"source": args.source, "folder": str(written), "files": files})
    else:
        print(one_line(str(written)))
    return 0


def _adapters(description: ModelDescription, texts: Sequence[str]) -> list[tuple[Adapter, float]]:
    """The named adapters of a model, with their strengths. Raises `BifronsError`."""
    shapes = _shapes(description)
    return [
        (read_adapter(choice.folder, description.adapter_key_maps, shapes), choice.scale)
        for choice in map(parse_adapter, texts)
    ]


def _merging(
    description: ModelDescription,
    entries: Mapping[str, TensorEntry],
    adapters: Sequence[tuple[Adapter, float]],
) -> Merge:
    """What merges adapters into a model's tensors."""
    if not adapters:
        return list
    key_map, shapes = description.key_map(entries), _shapes(description)
    return partial(merge_adapters, adapters=adapters, key_map=key_map, shapes=shapes)


def _shapes(description: ModelDescription) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in description.network.named_parameters()}


def _vocabulary(folder: Path, adapters: Sequence[tuple[Adapter, float]]) -> dict[str, dict[str, Any]]:
    """The file with the words of a small model and those that adapters taught; none if there are none."""
    known = read_vocabulary(folder)
    for adapter, _ in adapters:
        known = known and known.with_words(adapter.words)
    return {VOCABULARY: known.content()} if known and known.taught else {}


def _check_target(target: str, force: bool) -> None:
    """Raise `OptionError` for a folder that isn't empty, or a file, unless it is to be replaced."""
    folder = os.path.expanduser(target)
    if force or not os.path.lexists(folder):
        return
    try:
        empty = os.path.isdir(folder) and not os.listdir(folder)
    except OSError as error:
        raise ResourceError(f"can't write {folder}: {error.strerror}") from error
    if not empty:
        raise OptionError(f"{folder} exists; accepted: another folder, or --force to replace the model in it")


def byte_count(text: str) -> int:
    """The size in bytes: `5GB`, `500 MiB` or a bare number. Raises `OptionError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)?\s*", text, re.IGNORECASE)
    count = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if count < 1:
        raise OptionError(f"max-shard-size is {text!r}; accepted: a size such as 5GB, 500MB or 2GiB")
    return count
