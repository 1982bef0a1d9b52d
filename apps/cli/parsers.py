"""The parsers of all commands; imports nothing heavy."""

import argparse
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

from ..defaults import DEFAULT_GROUNDING_MODEL, DEFAULT_MODEL, version
from .arguments import CommandParser
from .batch_options import add_batch
from .bench import add_bench
from .demo import add_demo
from .eval_options import add_eval
from .options import (
    add_batch_size,
    add_catalog,
    add_exif,
    add_folders,
    add_force,
    add_model,
    add_painting,
    image_options,
)
from .serve import add_serve
from .speculation import add_speculate
from .text_parsers import add_text
from .train_parsers import add_train
from .warmup import add_warmup

_EPILOG = """\
`bifrons COMMAND --help` lists a command's options, which may stand anywhere in the line.

environment:
  BIFRONS_MODEL    the model of commands without -m
  BIFRONS_CACHE    folder of models from the hub (default: the hub's own, ~/.cache/huggingface/hub)
  NO_COLOR         if set, no colours on terminals

exit status:
  0 done; 1 it failed at work; 2 the command line is refused; 130 ended by Ctrl-C

With --json, errors are JSON on stdout as well: {"error": "..."}."""


class _Formatter(argparse.HelpFormatter):
    """Shows the defaults of a dataclass in the help text, for which alone the dataclass is imported."""

    def __init__(self, prog: str, defaults: Callable[[], type] | None = None, **settings: Any) -> None:
        super().__init__(prog, **settings)
        self._defaults = defaults

    def _get_help_string(self, action: argparse.Action) -> str | None:
        defaults = {} if self._defaults is None else {f.name: f.default for f in fields(self._defaults())}
        default = defaults.get(action.dest)
        if default in (None, MISSING) or "(default: " in (action.help or ""):
            return action.help
        return f"{action.help} (default: {default})"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; imports nothing heavy."""
    parser = CommandParser(
        prog="bifrons",
        description="Paint pictures from text and ask about pictures, with Janus-Pro and DeepSeek-VL2; chat "
        "with DeepSeek-R1, its distillates and V3.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bifrons {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_generate(commands)
    add_text(commands, _command, _add_json)
    for add in (_add_locate, _add_encode, _add_decode, _add_show):
        add(commands)
    add_batch(commands, _command, _add_json)
    add_demo(commands, _command)
    add_serve(commands, _command)
    add_warmup(commands, _command)
    add_catalog(commands, _command, _add_json)
    for add in (add_folders, add_eval, add_bench, add_train):
        add(commands, _command, _add_json)
    return parser


def _command(commands: Any, name: str, text: str, defaults: Callable[[], type] | None = None) -> Any:
    """Add the parser of a command; its help shows the defaults of the dataclass that `defaults` imports."""
    description = text[0].upper() + text[1:] + "."
    formatter = partial(_Formatter, defaults=defaults)
    parser = commands.add_parser(name, help=text, description=description, formatter_class=formatter)
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no notes, warnings and progress on stderr; errors remain"
    )
    return parser


def _add_json(parser: Any) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object to stdout and nothing else"
    )


def _add_generate(commands: Any) -> None:
    parser = _command(commands, "generate", "generate pictures from text", image_options)
    _add_prompts(parser)
    add_model(parser, None, f"default: BIFRONS_MODEL, else {DEFAULT_MODEL}, or with --like the picture's")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="pictures per prompt (default: 1)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of each prompt's first picture (default: random)"
    )
    add_painting(parser)
    add_speculate(parser)
    parser.add_argument(
        "--resize",
        metavar="WxH",
        help="scale pictures to this size by Lanczos (default: the model's own, 384x384 for Janus-Pro)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a folder, or for one picture a .png, .jpg or .webp file; - is a PNG on stdout (default: out)",
    )
    add_force(parser)
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="go on with earlier work: leave out pictures whose files are there, with the same settings",
    )
    add_batch_size(parser, "painted")
    _add_json(parser)


def _add_prompts(parser: Any) -> None:
    """What `generate` paints."""
    parser.add_argument(
        "prompt",
        nargs="*",
        default=[],
        metavar="PROMPT",
        help="what to paint; several are allowed; - is a prompt on standard input",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts from a .txt file (one a line; # begins a comment), or with settings of their own from "
        ".jsonl, .json or .csv; - is standard input",
    )
    parser.add_argument(
        "--like",
        metavar="FILE",
        help="paint a generated picture again, with the model and settings of its file; options given win",
    )


def _add_locate(commands: Any) -> None:
    parser = _command(commands, "locate", "locate what a phrase describes in a picture (DeepSeek-VL2)")
    parser.add_argument("image", metavar="IMAGE", help="an image file, or - for standard input")
    parser.add_argument("phrase", metavar="PHRASE", help="what to look for, such as: the red umbrella; or -")
    add_exif(parser)
    add_model(parser, DEFAULT_GROUNDING_MODEL)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a .png, .jpg or .webp file of the boxes drawn; - is a PNG on stdout (the boxes on stderr then)",
    )
    add_force(parser)
    _add_json(parser)


def _add_encode(commands: Any) -> None:
    parser = _command(commands, "encode", "encode a picture as codes of the image tokenizer")
    parser.add_argument("image", metavar="IMAGE", help="an image file, or - for standard input")
    add_exif(parser)
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a .json file (codes, grid and model) or a .npy file (codes only, in the shape of the grid); "
        "default: JSON on stdout",
    )
    add_force(parser)
    _add_json(parser)


def _add_decode(commands: Any) -> None:
    parser = _command(commands, "decode", "decode codes into a picture")
    parser.add_argument("codes", metavar="CODES", help="a .json or .npy file of `bifrons encode`, or -")
    add_model(parser, None, "default: the one named in the file")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a .png, .jpg or .webp file, or - for a PNG on standard output (default: named after CODES)",
    )
    add_force(parser)
    _add_json(parser)


def _add_show(commands: Any) -> None:
    parser = _command(commands, "show", "show the settings that a picture was generated with")
    parser.add_argument("image", metavar="IMAGE", help="a generated picture (- is standard input)")
    _add_json(parser)
