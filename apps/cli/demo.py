"""`bifrons demo`: the web page."""

import argparse

from ...blocks.errors import OptionError
from ..demo.models import embedded_models, load_models
from .options import loading


def demo(args: argparse.Namespace) -> int:
    if not 0 < args.port < 65536:
        raise OptionError(f"port is {args.port}; accepted: 1 to 65535")
    models = load_models(args.model or embedded_models(), **loading(args))
    from ..demo.app import serve

    serve(models, args.host, args.port, args.share)
    return 0
