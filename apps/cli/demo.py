"""`bifrons demo`: the web page."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...blocks.errors import OptionError
from ..defaults import default_models
from ..notes import note
from .options import add_model, add_no_warmup, loading_options

if TYPE_CHECKING:
    from ..demo.models import LoadedModel

DEFAULT_PORT = 7860


def add_demo(commands: Any, command: Callable[..., Any]) -> None:
    """Add the parser of `demo`; imports nothing heavy."""
    parser = command(commands, "demo", "serve a web page to paint, ask and locate")
    add_model(
        parser,
        None,
        "several are allowed; default: BIFRONS_MODEL, else the embedded models",
        nargs="+",
        action="extend",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for the whole network (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"port to listen on (default: {DEFAULT_PORT})"
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="also serve it at a public address, through Gradio's tunnel",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a host name that the page may be addressed by, *.example.com or *; may be repeated (default: "
        "on 127.0.0.1 that address and localhost only, on other addresses any)",
    )
    add_no_warmup(parser)


def demo(args: argparse.Namespace) -> int:
    """Load the models and serve the page until Ctrl-C."""
    if not 0 < args.port < 65536:
        raise OptionError(f"port is {args.port}; accepted: 1 to 65535")
    from ..allowed_hosts import accepted_hosts, is_loopback, listen

    accepted_hosts(args.host, args.allowed_host)  # refuses what is no host
    if not is_loopback(args.host):
        note(f"note: the page asks for no key: anyone who reaches {args.host} may use it")
    if args.share:
        note("note: anyone who has the public address may use the page")
    from ..demo.app import serve

    with listen(args.host, args.port):  # before the models are loaded, which may take minutes
        models = _load(args)
    serve(models, args.host, args.port, args.share, args.allowed_host)
    return 0


def _load(args: argparse.Namespace) -> "list[LoadedModel]":
    from ..demo.models import load_models

    models = load_models(args.model or default_models(), **loading_options(args))
    if not args.no_warmup:
        from ...blocks.engine.generate import scheduler_of
        from ..warmup import warm_up

        for loaded in models:
            warm_up(loaded.name, loaded.pipe, scheduler_of(loaded.pipe.model.decoder))
    return models
