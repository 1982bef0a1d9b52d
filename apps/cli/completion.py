"""`bifrons completion`: a script for a shell, which completes commands, options, files, models and words.

It runs whenever a shell starts, so it imports nothing heavy.
"""

import argparse
from typing import Any

from ...blocks.errors import OptionError
from ..defaults import DEFAULT_GROUNDING_MODEL, DEFAULT_MODEL
from .parsers import build_parser

FILES = ("FILE", "PATH", "PATH[:WEIGHT]", "IMAGE", "IMAGE ... QUESTION", "CODES", "A", "B", "C", "RUN")
"""Metavars of arguments whose values are files or folders."""
FOLDERS = ("DIR", "R", "DST", "FOLDER", "FOLDER[:SCALE]", "[NAME=]FOLDER[:SCALE]")
MODELS = ("MODEL", "SRC")
WORDS = {
    "dtype": ("float32", "bfloat16", "float16"),
    "quantize": ("int8", "int4", "fp8"),
    "device": ("cpu", "cuda", "mps"),
    "suite": (
        "shapes",
        "shapes-hard",
        "geneval",
        "geneval2",
        "wise",
        "geneval++",
        "dpg",
        "genai",
        "questions",
    ),
    "benchmark": ("refcoco", "chartqa", "docvqa", "mme", "pope", "mmbench"),
}
"""Words that arguments take, by the end of their names."""
_NAMES = f"{DEFAULT_MODEL} {DEFAULT_GROUNDING_MODEL}"
_MODEL_NAMES: Any = {
    "bash": "_bifrons_model_dirs",
    "zsh": "_bifrons_models",
    "fish": f"{_NAMES} (__fish_complete_directories)",
    "tcsh": "d",
    "preamble": {
        "bash": f'_bifrons_model_dirs() {{ compgen -W "{_NAMES}" -- "$1"; compgen -d -- "$1"; }}',
        "zsh": f"_bifrons_models() {{ _alternative 'models:model:({_NAMES})' 'folders:folder:_files -/' }}",
    },
}


def completion(args: argparse.Namespace) -> int:
    """Print a script that completes in a shell. Raises `OptionError` where the installed shtab can't."""
    import shtab

    if args.shell not in shtab.SUPPORTED_SHELLS:
        accepted = ", ".join(shtab.SUPPORTED_SHELLS)
        raise OptionError(f"the installed shtab completes in {accepted}, not in {args.shell}")
    kinds = {**dict.fromkeys(FILES, shtab.FILE), **dict.fromkeys(FOLDERS, shtab.DIRECTORY)}
    parser = build_parser()
    _describe(parser, {**kinds, **dict.fromkeys(MODELS, _MODEL_NAMES)})
    print(shtab.complete(parser, args.shell))
    return 0


def _describe(parser: argparse.ArgumentParser, kinds: dict[str, Any]) -> None:
    """Say of the arguments of a parser and of its subcommands what completes them."""
    parser.formatter_class = argparse.HelpFormatter  # ours imports what it shows the defaults of
    for action in parser._actions:
        words = WORDS.get(action.dest.rpartition("_")[2])
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _describe(child, kinds)
        elif action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
        elif words is not None and action.choices is None and action.nargs is None:
            action.choices = words
