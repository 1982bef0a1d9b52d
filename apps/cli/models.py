"""`bifrons info` and `bifrons convert`: describe and convert model folders."""

import argparse
import re
import sys

from ...blocks.checkpoints.hub import open_model
from ...blocks.checkpoints.quantize import check_kind
from ...blocks.checkpoints.reader import list_tensors
from ...blocks.conversion.convert import convert_folder
from ...blocks.conversion.quantized_writer import QuantizedWriter
from ...blocks.errors import OptionError, one_line
from ..files import print_json
from ..pipelines import describe
from .inspect import inspect_model, report_lines

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def info(args: argparse.Namespace) -> int:
    """Print the report of a model; the status is 1 if it would not load."""
    report = inspect_model(args.model)
    if args.json:
        print_json(report)
    else:
        print("\n".join(report_lines(report)))
    for error in report["errors"]:
        print(f"error: {error}", file=sys.stderr)
    return 0 if report["sound"] else 1


def convert(args: argparse.Namespace) -> int:
    """Convert a model folder to the original format, quantized on request."""
    from ...janus.convert import to_original

    source, options = open_model(args.source), {}
    if args.max_shard_size is not None:
        options["max_shard_bytes"] = byte_count(args.max_shard_size)
    if check_kind(args.quantize) is not None:
        description = describe(source, list_tensors(source.path))
        options["writer"] = QuantizedWriter(description.network, description.key_map, args.quantize)
    formats = {"multi_modality": None, "deepseek_vl_v2": None, "janus": to_original}
    written = convert_folder(source.path, args.target, formats, **options)
    files = sorted(path.name for path in written.iterdir())
    if args.json:
        print_json({"source": args.source, "folder": str(written), "files": files})
    else:
        print(one_line(str(written)))
    return 0


def byte_count(text: str) -> int:
    """The size in bytes: `5GB`, `500 MiB` or a bare number. Raises `OptionError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)?\s*", text, re.IGNORECASE)
    count = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if count < 1:
        raise OptionError(f"max-shard-size is {text!r}; accepted: a size such as 5GB, 500MB or 2GiB")
    return count
