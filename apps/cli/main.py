"""Entry point of the `bifrons` command: the dispatch to one function per command, exit statuses and errors.

Parsing imports nothing heavy; the modules of the commands are imported when they run.
"""

import argparse
import json
import logging
import os
import sys
from importlib import import_module
from typing import NoReturn

from ...blocks.errors import BifronsError, printable
from ...learn.processes import has_launcher
from ..notes import heading, notes
from .arguments import UsageError
from .long_work import FAILED, INTERRUPTED, REFUSED, StoppedError, status_of
from .options import apply_revision
from .output import OutputError, discard_output, prepare_streams
from .parsers import build_parser

PIPE_CLOSED = 141  # 128 + SIGPIPE, what a shell reports for a program that SIGPIPE has ended

_FUNCTIONS = {
    "generate": ("generate", "generate"),
    "ask": ("chat", "ask"),
    "chat": ("chat", "chat"),
    "complete": ("complete", "complete"),
    "locate": ("ground", "locate"),
    "batch": ("batch", "batch"),
    "encode": ("images", "encode"),
    "decode": ("images", "decode"),
    "show": ("show", "show"),
    "demo": ("demo", "demo"),
    "serve": ("serve", "serve"),
    "models": ("catalog", "models"),
    "completion": ("completion", "completion"),
    "info": ("models", "info"),
    "convert": ("models", "convert"),
    "eval": ("eval", "evaluate"),
    "bench": ("bench", "bench"),
    "warmup": ("warmup", "warmup"),
    "train": ("train", "train"),
}
"""Module and function of each command."""


def _run(args: argparse.Namespace) -> int:
    module, function = _FUNCTIONS[args.command]
    return getattr(import_module(f".{module}", __package__), function)(args)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    It is 0 for success, 1 for what failed at work or has a fault, 2 for a command line that is refused, 130
    after Ctrl-C, 143 after SIGTERM and 141 for a closed pipe.
    """
    prepare_streams()
    # By default torch's threads spin while they wait for each other, which made image generation six times
    # slower on a busy machine. The variable is read when torch is imported; a value set by the user wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status = _parse_and_run(argv)
        if sys.stdout is not None:  # as it is where the shell has closed it
            sys.stdout.flush()  # so that a closed pipe or a full disk is noticed here, not at exit
        return status
    except BrokenPipeError:
        discard_output()
        return PIPE_CLOSED
    except OutputError as error:
        discard_output()
        print(f"{heading('error:', 31)} the output can't be written: {error}", file=sys.stderr)
        return FAILED


def _parse_and_run(argv: list[str] | None) -> int:
    """The exit status; errors that a user can cause are printed as one line."""
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words[: words.index("--") if "--" in words else len(words)]
    try:
        args = build_parser().parse_args(words, argparse.Namespace(words=words))
        with notes(args.quiet):
            apply_revision(args)
            return _run(args)
    except SystemExit as end:  # argparse, after help
        return end.code if isinstance(end.code, int) else REFUSED
    except UsageError as error:
        print(error.usage, end="", file=sys.stderr)
        return _report(StoppedError(str(error), REFUSED), as_json)
    except BifronsError as error:
        return _report(StoppedError(str(error), status_of(error)), as_json)
    except StoppedError as error:
        return _report(error, as_json)
    except KeyboardInterrupt:
        if has_launcher():
            return INTERRUPTED  # the command that started this process speaks
        return _report(StoppedError("interrupted", INTERRUPTED), as_json)


def _report(error: StoppedError, as_json: bool) -> int:
    """Print an error as one line, with `--json` also as JSON beside what was done before it; returns the exit
    status."""
    prefix = f"{heading('error:', 31)} " if error.status in (FAILED, REFUSED) else ""
    print(f"{prefix}{printable(str(error))}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": str(error), **error.content}, ensure_ascii=False))
    return error.status


def run() -> NoReturn:
    """The `bifrons` command: `main`, and the end of the process.

    A server ends at once when its work has: Python would take seconds to take apart what it holds, and wait
    for its threads. So does one of several processes, which would wait for others that have failed.
    """
    status = main()
    if "serve" in sys.argv[1:] or ("train" in sys.argv[1:] and "RANK" in os.environ):
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
