"""`bifrons warmup`: compiles a model's kernels, such as while an image of a container is built."""

import argparse
import time
from collections.abc import Callable
from typing import Any

from .options import add_model, loading_options


def add_warmup(commands: Any, command: Callable[..., Any]) -> None:
    """Add the parser of `warmup`; imports nothing heavy."""
    parser = command(commands, "warmup", "compile a model's kernels, so that serve and demo start faster")
    add_model(parser)


def warmup(args: argparse.Namespace) -> int:
    """Load a model as `serve` does, warm it up, and say how long it took and where the kernels are."""
    from ...blocks.device import resolve_device

    device = resolve_device(args.device)
    if device.type != "cuda" and args.device_map is None:
        print(f"nothing to do: kernels are compiled for CUDA only, and the device is {device}")
        return 0
    from ..server.registry import ModelRegistry, ServerOptions
    from ..warmup import kernel_cache, warm_up

    started = time.monotonic()
    registry = ModelRegistry(ServerOptions())
    served = registry.load(args.model, **loading_options(args))
    loaded = time.monotonic() - started
    registry.open()
    seconds = warm_up(served.name, served.pipe, served.scheduler)
    registry.close()
    if seconds is None:
        print("nothing to do: a model that is spread over devices is not captured")
    else:
        print(
            f"loaded in {loaded:.1f} s, warm after another {seconds:.1f} s; kernels are in {kernel_cache()}"
        )
    return 0
