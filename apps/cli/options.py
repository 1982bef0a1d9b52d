"""Options that several commands share; imports nothing heavy."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from ...blocks.adapter_choice import parse_adapter
from ...blocks.errors import OptionError
from ...blocks.json_config import decode_json, shown
from ..defaults import DEFAULT_MODEL, QUANTIZE_HELP, default_model

TOP_P_HELP = "sample from the likeliest tokens whose probabilities add up to this"
TEMPERATURE_HELP = "0 always takes the likeliest token"
MODEL_HELP = "a folder, a hub id (owner/name) or an embedded model"


def add_model(
    parser: Any,
    default: str | None = DEFAULT_MODEL,
    default_help: str | None = None,
    recipe: bool = False,
    adapters: str = "",
    **settings: Any,
) -> None:
    """Add `-m` and how the model is loaded: the same options for every command that loads one.

    `default` is the model where BIFRONS_MODEL names none; `settings` are those of argparse. The options of a
    `recipe` are absent from the parsed arguments if they aren't given.
    """
    text = default_help or f"default: BIFRONS_MODEL, else {default}"
    settings = {"default": None if default is None else default_model(default), **settings}
    if recipe:
        settings["default"] = argparse.SUPPRESS
    parser.add_argument("-m", "--model", metavar="MODEL", help=f"{MODEL_HELP} ({text})", **settings)
    add_loading(parser, argparse.SUPPRESS if recipe else None, adapters)


def add_loading(parser: Any, default: str | None = None, adapters: str = "") -> None:
    """Add the options of device, dtype, quantization and memory; `default` of what determines results.
    `adapters` may be `NAME=`, where each makes a model of its own."""
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best available)")
    parser.add_argument(
        "--dtype",
        default=default,
        help="float32, bfloat16 or float16 (default: float32 on the CPU, bfloat16 on GPUs)",
    )
    parser.add_argument("--quantize", default=default, metavar="KIND", help=QUANTIZE_HELP)
    add_adapter(parser, default, name=adapters)
    add_revision(parser)
    parser.add_argument(
        "--device-map",
        metavar="MAP",
        help="instead of --device: auto or balanced over the GPUs and main memory, or MODULE=DEVICE,...",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        metavar="N",
        help="divide the decoder's layers among N processes, one a GPU, from GPU 0 on (default: 1)",
    )
    parser.add_argument(
        "--max-memory",
        metavar="SIZES",
        help="memory for weights with auto or balanced, such as 0=20GiB,cpu=60GiB (default: all free)",
    )
    add_eager(parser)


def add_adapter(parser: Any, default: str | None = None, flag: str = "--adapter", name: str = "") -> None:
    """Add `--adapter`, or another flag that takes adapters."""
    own = ", and a model of its own beside that without it" if name else ""
    parser.add_argument(
        flag,
        action="append",
        default=default,
        metavar=f"{name and f'[{name}]'}FOLDER[:SCALE]",
        help="a LoRA adapter in PEFT's format, as `bifrons train` writes it; may be repeated (SCALE 1 is as "
        f"trained){own}",
    )


def add_revision(parser: Any) -> None:
    """Add `--revision`."""
    parser.add_argument(
        "--revision", metavar="REV", help="a branch, tag or commit of a hub's model (also: owner/name@REV)"
    )


def apply_revision(args: argparse.Namespace) -> None:
    """Join `--revision` and the model's name to `name@revision`. Raises `OptionError` without one name."""
    revision = getattr(args, "revision", None)
    if revision is None:
        return
    option = "source" if "source" in args else "model"
    model = getattr(args, option, None)
    names = model if isinstance(model, list) else [model]
    if len(names) != 1 or not names[0]:
        raise OptionError("--revision needs the name of one model; accepted: one, or owner/name@REV for each")
    named = f"{names[0]}@{revision}"
    setattr(args, option, [named] if isinstance(model, list) else named)


def add_bench_model(parser: Any) -> None:
    """Add where and in which form a benchmark's random model runs."""
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best available)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: bfloat16)")
    parser.add_argument("--quantize", help=QUANTIZE_HELP.partition(" (")[0] + " (default: none)")
    add_eager(parser)


def add_exif(parser: Any) -> None:
    """Add `--exif`."""
    parser.add_argument(
        "--exif",
        choices=("apply", "ignore"),
        default="apply",
        help="turn pictures upright as a camera's EXIF says, or take them as stored, as the official "
        "code does (default: apply)",
    )


def add_eager(parser: Any) -> None:
    """Add `--eager`."""
    parser.add_argument(
        "--eager",
        action="store_true",
        help="launch every operation separately instead of capturing CUDA graphs",
    )


def add_catalog(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parsers of `models` and `completion`."""
    add_json(command(commands, "models", "list the models on this machine: embedded, and in the hub's cache"))
    parser = command(commands, "completion", "print a script for the completion of commands and options")
    parser.add_argument(
        "shell",
        choices=("bash", "zsh", "fish", "tcsh"),
        help='in ~/.bashrc: eval "$(bifrons completion bash)"; ~/.zshrc, after compinit: the same with zsh; '
        "fish: bifrons completion fish > ~/.config/fish/completions/bifrons.fish",
    )


def add_folders(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parsers of `info` and `convert`."""
    text = "describe a model, its memory needs and whether its files are complete, or an adapter"
    parser = command(commands, "info", text)
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}, or the folder of an adapter")
    add_revision(parser)
    add_json(parser)
    parser = command(commands, "convert", "convert a model folder to safetensors in the original format")
    parser.add_argument("source", metavar="SRC", help=MODEL_HELP)
    parser.add_argument("target", metavar="DST", help="a new folder")
    parser.add_argument("--quantize", metavar="KIND", help="int8, int4 or fp8 weights in the decoder")
    parser.add_argument(
        "--store-int8",
        action="store_true",
        help="store large weights in 8 bits; loaded, they are plain ones again",
    )
    add_adapter(parser, flag="--merge-adapter")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="such as 500MB or 2GiB (default: 5GB)")
    add_force(parser)
    add_revision(parser)
    add_json(parser)


def add_optional(parser: Any, options: Iterable[tuple[str, type, str]]) -> None:
    """Add options whose defaults a dataclass holds: those not given are absent from the parsed arguments."""
    for flag, kind, text in options:
        metavar = "TEXT" if kind is str else "X" if kind is float else "N"
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)


def image_options() -> type:
    """The dataclass whose defaults the help of painting shows."""
    from ...janus.image_generation import ImageGenerationOptions

    return ImageGenerationOptions


def add_painting(parser: Any) -> None:
    """Add how the tokens of pictures are drawn."""
    add_optional(
        parser,
        [
            ("--guidance-scale", float, "1 means no guidance; some models bring their own default"),
            ("--temperature", float, TEMPERATURE_HELP),
            ("--top-k", int, "sample from the N likeliest tokens; 0 means all"),
            ("--top-p", float, TOP_P_HELP),
            ("--negative-prompt", str, "what the picture should not show"),
        ],
    )


def add_force(parser: Any) -> None:
    """Add `--force`."""
    parser.add_argument("-f", "--force", action="store_true", help="replace what is there already")


def add_batch_size(parser: Any, done: str) -> None:
    """Add `--batch-size`: the number of pictures that are `done` together."""
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"pictures that are {done} together (default: what fits in memory, at most 64, on a CPU 16); "
        "no result depends on it",
    )


def add_no_warmup(parser: Any) -> None:
    """Add `--no-warmup`."""
    parser.add_argument(
        "--no-warmup",
        action="store_true",
        help="start at once; the first requests then wait for kernels and CUDA graphs",
    )


def given_fields(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """The fields of a dataclass that are in the arguments; those with `argparse.SUPPRESS` only if given."""
    return {field.name: getattr(args, field.name) for field in fields(options) if field.name in args}


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_loading` as keywords of `load_pipeline`."""
    return {
        "device": args.device,
        "dtype": args.dtype,
        "quantize": args.quantize,
        **placement_options(args),
        "adapters": tuple(parse_adapter(text) for text in args.adapter or ()),
    }


def placement_options(args: argparse.Namespace, prefix: str = "") -> dict[str, Any]:
    """Of `loading_options`, those that say where a model lies and determine no result, but for the device.

    `prefix` is that of the options of another model than the command's.
    """
    device_map, max_memory = (getattr(args, f"{prefix}{name}") for name in ("device_map", "max_memory"))
    return {
        "device_map": None if device_map is None else parse_device_map(device_map),
        "max_memory": None if max_memory is None else parse_max_memory(max_memory),
        "eager": getattr(args, f"{prefix}eager"),
        "tensor_parallel": getattr(args, f"{prefix}tensor_parallel", None),
    }


def parse_device_map(text: str) -> str | dict[str, str]:
    """A device map: a word (`auto`), `vision_model=cpu,language_model=0`, or JSON. Raises `OptionError`."""
    return _parse_pairs("device-map", text) if "=" in text or text.lstrip().startswith("{") else text


def parse_max_memory(text: str) -> dict[str, str]:
    """Memory by device: `0=20GiB,cpu=60GiB`, or JSON. Raises `OptionError`."""
    return _parse_pairs("max-memory", text)


def _parse_pairs(option: str, text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            return decode_json(text.encode())
        except ValueError as error:
            raise OptionError(f"{option} is {shown(text)}, which is not valid JSON: {error}") from error
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    if not all(sign and value.strip() for _, sign, value in pairs) or len(set(names)) < len(names):
        raise OptionError(f"{option} is {text!r}; accepted: NAME=VALUE,... with each name once")
    return {name.strip(): value.strip() for name, _, value in pairs}
