"""`bifrons serve`: the HTTP server."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...blocks.adapter_choice import parse_named_adapter
from ...blocks.errors import OptionError
from ..defaults import DEFAULT_GROUNDING_MODEL, DEFAULT_MODEL, default_models
from ..notes import note
from .options import add_model, add_no_warmup, given_fields, loading_options
from .speculation import add_speculate

_LIMITS = {
    "--max-queue": "rows that may wait; an answer takes one, a picture with guidance two",
    "--rows": "rows that run together; fewer if memory is short (default: 256 with CUDA, else 32)",
    "--context": "tokens of prompt and answer (default: the model's own, less if memory is short)",
    "--max-new-tokens": "tokens of an answer (default: what its prompt leaves of the context)",
    "--max-images": "pictures in a request (default: as many as fit into the context)",
    "--image-urls": "MB of memory for pictures by URL, which are served for an hour (default: 0)",
}


def add_serve(commands: Any, command: Callable[..., Any]) -> None:
    """Add the parser of `serve`; imports nothing heavy."""
    parser = command(commands, "serve", "serve an OpenAI-compatible API over HTTP")
    default = f"default: BIFRONS_MODEL, else {DEFAULT_MODEL} and {DEFAULT_GROUNDING_MODEL}"
    add_model(parser, None, f"may be repeated; {default}", action="append", adapters="NAME=")
    _add_access(parser)
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of one computation (default: OMP_NUM_THREADS if set, else 1 for small models and "
        "all cores for larger ones)",
    )
    parser.add_argument(
        "--adapters-from",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="let clients load adapters from folders in DIR, and unload them, while the server runs",
    )
    _add_ray(parser)
    add_speculate(parser)
    add_no_warmup(parser)
    for flag, text in _LIMITS.items():
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, metavar="N", help=text)
    parser.add_argument(
        "--grace",
        type=float,
        default=argparse.SUPPRESS,
        metavar="SECONDS",
        help="time in which running requests may finish after SIGTERM or Ctrl-C (default: 6)",
    )


def _add_ray(parser: Any) -> None:
    """Replicas of the models on a Ray cluster."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="serve by replicas on a Ray cluster: HOST:PORT, or auto, the default, for the one that this "
        "machine is in; SIGHUP loads the models anew, replica by replica (needs bifrons[scale])",
    )
    parser.add_argument(
        "--replicas",
        metavar="N",
        help="replicas with --ray, each with --tensor-parallel GPUs, by default one, or a CPU where the "
        "cluster has no GPU; MIN:MAX for as many as requests need (default: 1)",
    )


def _add_access(parser: Any) -> None:
    """Where the server listens, and who may ask it."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port, or 0 for any free one (default: 8000)"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="API keys to accept, one per line")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a host name that requests may be addressed to, *.example.com or *; may be repeated (default: "
        "on 127.0.0.1 that address and localhost only, on other addresses any)",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin of web pages that may call the server, such as https://example.com, or * for all; "
        "may be repeated",
    )
    parser.add_argument(
        "--allow-url-fetch", action="store_true", help="fetch pictures from public URLs in requests"
    )


def serve(args: argparse.Namespace) -> int:
    """Load the models and serve them until SIGTERM or Ctrl-C."""
    from ..allowed_hosts import accepted_hosts, is_loopback, listen
    from ..server.app import create_app
    from ..server.app import serve as run_server
    from ..server.limits import ServerOptions
    from ..server.middleware import read_keys
    from ..server.normalize import allowed_origins
    from ..server.setup import ServerSetup

    origins = tuple(allowed_origins(args.allow_origin))
    options = ServerOptions(**given_fields(args, ServerOptions), allow_origins=origins)
    keys = None if args.api_key_file is None else read_keys(args.api_key_file)
    adapters = tuple(parse_named_adapter(text) for text in args.adapter or ())
    args.adapter = None  # they are models of their own
    models = tuple(args.model or default_models())
    setup = ServerSetup(models, options, adapters, loading_options(args), args.threads, not args.no_warmup)
    hosts = accepted_hosts(args.host, args.allowed_host)
    if args.ray is None and args.replicas is not None:
        raise OptionError("replicas are of a Ray cluster; accepted: --replicas with --ray")
    if keys is None and not is_loopback(args.host):
        note(f"note: without --api-key-file, anyone who reaches {args.host} may use it")
    with listen(args.host, args.port) as listener:
        if args.ray is not None:
            _serve_on_ray(args, setup, listener, keys, hosts)
        else:
            registry = setup.open()
            run_server(create_app(registry, keys, hosts), registry, setup.names, listener)
    return 0


def _serve_on_ray(
    args: argparse.Namespace, setup: Any, listener: Any, keys: list[bytes] | None, hosts: Any
) -> None:
    from ...scale.serve.app import Cluster, application_name, parse_replicas

    if args.device is not None or args.device_map is not None:
        raise OptionError(
            "a replica on a Ray cluster has GPUs of its own, or CPUs where the cluster has no GPU; accepted "
            "with --ray: --tensor-parallel, neither --device nor --device-map"
        )
    replicas = parse_replicas(args.replicas or "1")
    name = application_name(listener.getsockname()[1])
    Cluster(args.ray, setup, replicas, name).serve(listener, keys, hosts)
