"""The arguments that say how a model is loaded; imports nothing heavy."""

import argparse
import json
from typing import Any

from ...blocks.errors import OptionError
from ..defaults import QUANTIZE_HELP


def add_loading(parser: Any) -> None:
    """Add the options of device, dtype, quantization and memory."""
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32 on the CPU)")
    parser.add_argument("--quantize", help=QUANTIZE_HELP)
    parser.add_argument(
        "--device-map",
        metavar="MAP",
        help="instead of --device: auto or balanced over GPUs and the machine's memory, or MODULE=DEVICE,...",
    )
    parser.add_argument(
        "--max-memory",
        metavar="SIZES",
        help="what weights may take with auto or balanced, such as 0=20GiB,cpu=60GiB (default: what is free)",
    )


def add_eager(parser: Any) -> None:
    """Add `--eager`."""
    parser.add_argument(
        "--eager",
        action="store_true",
        help="launch every operation by itself, instead of capturing steps and the reading of prompts and "
        "pictures as CUDA graphs",
    )


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as keywords of `load_pipeline`."""
    return {
        "device": args.device,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "device_map": None if args.device_map is None else parse_map(args.device_map),
        "max_memory": None if args.max_memory is None else parse_memory(args.max_memory),
    }


def parse_map(text: str) -> str | dict[str, str]:
    """The command line's form: a word, or `vision_model=cpu,language_model=0`, or JSON."""
    return _parse("device-map", text) if "=" in text or text.lstrip().startswith("{") else text


def parse_memory(text: str) -> dict[str, str]:
    """The command line's form: `0=20GiB,cpu=60GiB`, or JSON."""
    return _parse("max-memory", text)


def _parse(option: str, text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise OptionError(f"{option} is {text!r}, which is no JSON: {error}") from error
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    if not all(sign and value.strip() for _, sign, value in pairs) or len(set(names)) < len(names):
        raise OptionError(f"{option} is {text!r}; accepted: NAME=VALUE, several with commas, each name once")
    return {name.strip(): value.strip() for name, _, value in pairs}
