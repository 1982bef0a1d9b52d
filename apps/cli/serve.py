"""`bifrons serve`: the HTTP server."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..defaults import DEFAULT_FINDER, DEFAULT_MODEL
from .options import add_eager, add_loading, loading

_LOCAL = ("127.0.0.1", "::1", "localhost")


def add_serve(commands: Any, command: Callable[..., Any]) -> None:
    """Add the parser of `serve`; imports nothing heavy."""
    parser = command(commands, "serve", "answer requests of OpenAI clients over HTTP")
    parser.add_argument(
        "-m",
        "--model",
        action="append",
        metavar="MODEL",
        help="a folder, a hub id (owner/name) or an embedded model; may be given again "
        f"(default: {DEFAULT_MODEL} and {DEFAULT_FINDER})",
    )
    add_loading(parser)
    add_eager(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: 8000)"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys to accept, one a line")
    parser.add_argument(
        "--allow-url-fetch", action="store_true", help="fetch pictures that requests name by public address"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of a computation on the CPU (default: OMP_NUM_THREADS; else 1 for small models, "
        "all cores for others)",
    )
    for flag, about in (
        ("--max-queue", "rows that may wait (an answer is one, a picture with guidance two)"),
        ("--rows", "rows that run together; fewer where memory is short"),
        ("--context", "tokens of a row, prompt and answer"),
    ):
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, metavar="N", help=about)


def serve(args: argparse.Namespace) -> int:
    """Load the models and serve them until SIGTERM or Ctrl-C."""
    from ..server.app import serve as run
    from ..server.middleware import read_keys
    from ..server.registry import ModelRegistry, ServerOptions, set_num_threads

    names = ("max_queue", "rows", "context")
    given = {name: getattr(args, name) for name in names if name in args}
    options = ServerOptions(**given, allow_url_fetch=args.allow_url_fetch)
    keys = None if args.api_key_file is None else read_keys(args.api_key_file)
    if keys is None and args.host not in _LOCAL:
        print(f"note: without --api-key-file, anyone who reaches {args.host} may use it", file=sys.stderr)
    registry = ModelRegistry(options)
    for model in args.model or [DEFAULT_MODEL, DEFAULT_FINDER]:
        registry.load(model, **loading(args), eager=args.eager)
    set_num_threads(args.threads, [served.pipe.model.decoder for served in registry.models.values()])
    run(registry, args.host, args.port, keys)
    return 0
