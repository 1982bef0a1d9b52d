"""The command line, `bifrons`. Parsing alone imports nothing heavy; each command's module does."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from typing import Any

from ...blocks.errors import BifronsError
from ..defaults import DEFAULT_FINDER, DEFAULT_MODEL, version
from .bench import add_bench
from .demo import add_demo
from .eval_options import add_eval
from .options import add_eager, add_loading
from .serve import add_serve

PIPE_CLOSED = 141  # 128 + SIGPIPE, what a shell reports of a program that a closed pipe has ended
_INTERRUPTED = 130  # 128 + SIGINT
_REFUSED = 2

_MODEL_HELP = "a folder, a hub id (owner/name) or an embedded model"


class _Formatter(argparse.HelpFormatter):
    """Adds the defaults of options that a dataclass holds; it is imported for the help text only."""

    def __init__(self, prog: str, defaults: Callable[[], type] | None = None, **settings: Any) -> None:
        super().__init__(prog, **settings)
        self._defaults = defaults

    def _get_help_string(self, action: argparse.Action) -> str | None:
        known = {} if self._defaults is None else {f.name: f.default for f in fields(self._defaults())}
        if known.get(action.dest) is None or "(default: " in (action.help or ""):
            return action.help
        return f"{action.help} (default: {known[action.dest]})"


def _paint_options() -> type:
    from ...janus.image_generation import ImageGenerationOptions

    return ImageGenerationOptions


def _answer_options() -> type:
    from ...blocks.chat.text_generation import TextGenerationOptions

    return TextGenerationOptions


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="bifrons",
        description="Paint pictures from text and ask about pictures, with Janus-Pro and DeepSeek-VL2.",
    )
    parser.add_argument("--version", action="version", version=f"bifrons {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_generate, _add_ask, _add_chat, _add_locate, _add_encode, _add_decode):
        add(commands)
    add_demo(commands, _command)
    add_serve(commands, _command)
    for add in (_add_info, _add_convert):
        add(commands)
    add_eval(commands, _command, _add_json)
    add_bench(commands, _command, _add_json)
    return parser


def _command(commands: Any, name: str, text: str, defaults: Callable[[], type] | None = None) -> Any:
    about = text[0].upper() + text[1:] + "."
    formatter = partial(_Formatter, defaults=defaults)
    return commands.add_parser(name, help=text, description=about, formatter_class=formatter)


def _add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, and no more")


def _add_model(
    parser: Any, default: str | None = DEFAULT_MODEL, default_help: str = f"default: {DEFAULT_MODEL}"
) -> None:
    parser.add_argument("-m", "--model", default=default, help=f"{_MODEL_HELP} ({default_help})")
    add_loading(parser)


def _add_optional(parser: Any, options: Iterable[tuple[str, type, str]]) -> None:
    """Options whose defaults a dataclass holds: what is not given is not in the result."""
    for flag, kind, text in options:
        metavar = "TEXT" if kind is str else "X" if kind is float else "N"
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)


def _add_generate(commands: Any) -> None:
    parser = _command(commands, "generate", "paint pictures from sentences", _paint_options)
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="what to paint; several are allowed")
    _add_model(parser)
    add_eager(parser)
    parser.add_argument("-n", type=int, default=1, metavar="N", help="pictures per prompt (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of a prompt's first picture (default: random)")
    _add_optional(
        parser,
        [
            ("--guidance-scale", float, "1 is no guidance; some models bring their own default"),
            ("--temperature", float, "0 always takes the likeliest token"),
            ("--top-k", int, "sample from the N likeliest tokens; 0 is all"),
            ("--top-p", float, "sample from the likeliest tokens that reach this probability"),
            ("--negative-prompt", str, "what to stay away from"),
        ],
    )
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="a .png file for one picture, else a folder (default: out)"
    )
    _add_json(parser)


def _add_answering(parser: Any) -> None:
    _add_model(parser)
    add_eager(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="of sampling (default: random)")
    _add_optional(
        parser,
        [
            ("--max-new-tokens", int, "longest answer, in tokens"),
            ("--temperature", float, "0 always takes the likeliest token"),
            ("--top-p", float, "sample from the likeliest tokens that reach this probability"),
            ("--repetition-penalty", float, "above 1 makes repetition less likely"),
        ],
    )


def _add_ask(commands: Any) -> None:
    parser = _command(commands, "ask", "ask about pictures", _answer_options)
    parser.usage = "bifrons ask [options] [IMAGE ...] QUESTION"
    parser.add_argument(
        "items", nargs="+", metavar="IMAGE ... QUESTION", help="files of pictures, then the question"
    )
    _add_answering(parser)
    _add_json(parser)


def _add_chat(commands: Any) -> None:
    parser = _command(commands, "chat", "talk about pictures, turn by turn", _answer_options)
    parser.add_argument("--image", action="append", metavar="PATH", help="a picture for the first message")
    parser.add_argument("--system", metavar="TEXT", help="a system message (default: the model's own)")
    _add_answering(parser)


def _add_locate(commands: Any) -> None:
    parser = _command(commands, "locate", "find in a picture what a phrase names (DeepSeek-VL2)")
    parser.add_argument("image", metavar="IMAGE", help="the file of a picture")
    parser.add_argument("phrase", metavar="PHRASE", help="what to look for, such as: the red star")
    _add_model(parser, DEFAULT_FINDER, f"default: {DEFAULT_FINDER}")
    parser.add_argument("-o", "--output", metavar="FILE", help="a .png for the picture with the boxes drawn")
    _add_json(parser)


def _add_encode(commands: Any) -> None:
    parser = _command(commands, "encode", "turn a picture into codes of the image tokenizer")
    parser.add_argument("image", metavar="IMAGE")
    _add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="codes.json (codes, grid and model) or codes.npy (an array in the shape of the grid, without "
        "the model's name); default: JSON on stdout",
    )
    _add_json(parser)


def _add_decode(commands: Any) -> None:
    parser = _command(commands, "decode", "turn codes into a picture")
    parser.add_argument("codes", metavar="CODES", help="a .json or .npy file of `bifrons encode`")
    _add_model(parser, None, "default: the one that the file names")
    parser.add_argument("-o", "--output", metavar="PATH", help="a .png file (default: named after CODES)")
    _add_json(parser)


def _add_info(commands: Any) -> None:
    parser = _command(commands, "info", "tell what a model is, what it needs and whether its files are whole")
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    _add_json(parser)


def _add_convert(commands: Any) -> None:
    parser = _command(commands, "convert", "rewrite a model folder as safetensors in the original format")
    parser.add_argument("source", metavar="SRC", help=_MODEL_HELP)
    parser.add_argument("target", metavar="DST", help="a new folder")
    parser.add_argument("--quantize", metavar="KIND", help="int8, int4 or fp8 weights in the decoder")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="such as 500MB or 2GiB (default: 5GB)")
    _add_json(parser)


def _run(args: argparse.Namespace) -> int:
    if args.command == "demo":
        from .demo import demo

        return demo(args)
    if args.command == "serve":
        from .serve import serve

        return serve(args)
    if args.command == "bench":
        from .bench import bench

        return bench(args)
    if args.command == "eval":
        from .eval import evaluate

        return evaluate(args)
    if args.command in ("generate", "encode", "decode"):
        from . import images as module
    elif args.command == "locate":
        from .ground import find

        return find(args)
    elif args.command in ("ask", "chat"):
        from . import chat as module
    else:
        from . import models as module
    return getattr(module, args.command)(args)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for what was refused, 130 for Ctrl-C, or `info`'s 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows its escape
            stream.reconfigure(errors="backslashreplace")
    # torch's threads spin while they wait for each other, which on a machine that is busy with something else
    # made painting six times slower. It is read when torch is imported, and the user's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status = _guarded(argv)
        sys.stdout.flush()  # a closed pipe is noticed here, not when the interpreter ends
        return status
    except BrokenPipeError:
        # Whatever is still buffered would fail again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _guarded(argv: list[str] | None) -> int:
    """The command's status, with everything that a user can cause turned into a line of error."""
    args = argparse.Namespace()
    try:
        args = build_parser().parse_args(argv)
        return _run(args)
    except SystemExit as end:  # argparse, after help or a usage error
        return end.code if isinstance(end.code, int) else _REFUSED
    except BifronsError as error:
        print(f"error: {error}", file=sys.stderr)
        if getattr(args, "json", False):
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        return _REFUSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
