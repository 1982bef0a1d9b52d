"""`bifrons bench serve`: the server under load, with random weights at released sizes."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .options import add_bench_model, given_fields

if TYPE_CHECKING:
    from ...eval.bench.serving import Load


def add_bench_serve(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parser of `bench serve`; imports nothing heavy."""
    parser = command(commands, "serve", "load the server with random weights of a released size")
    parser.add_argument("family", choices=("janus", "vl2"), help="model family")
    parser.add_argument(
        "--size", help="janus: 1b (default), 7b, nano; vl2: tiny (default), small, base, nano"
    )
    for flag, text in (
        ("--layers", "decoder layers, if memory is too small for all (default: all)"),
        ("--requests", "most requests of a load, and clients at once (default: 128)"),
        ("--tokens", "length of an answer (default: 128)"),
        ("--rows", "as of `bifrons serve`"),
        ("--context", "tokens of prompt and answer together (default: 2048)"),
    ):
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, metavar="N", help=text)
    add_bench_model(parser)
    add_json(parser)


def bench_serve(args: argparse.Namespace) -> int:
    """Print the figures of each load when they are there and a summary at the end, or JSON."""
    from ...eval.bench.run import DEFAULT_SIZE
    from ..files import print_json
    from ..pipelines import explain_out_of_memory
    from ..server.bench import ServeBenchOptions, bench_serving

    size = args.size or DEFAULT_SIZE[args.family]
    options = ServeBenchOptions(**{**given_fields(args, ServeBenchOptions), "size": size})

    def print_load(load: "Load") -> None:
        if not args.json:
            print(load_text(load), flush=True)

    with explain_out_of_memory(
        "measuring", lambda: "accepted: fewer --rows, fewer --layers, a smaller --size"
    ):
        report = bench_serving(options, print_load)
    if args.json:
        print_json(report)
    else:
        print("\n".join(serve_summary(report)))
    return 0


def load_text(load: "Load") -> str:
    """The figures of a load as one line."""
    from ...eval.bench.measure import duration_text

    text = f"{load.work:<26} {load.at_once:>3} at once {load.rate:>9.4g}/s"
    if load.tokens is not None:
        text += f" {load.tokens:>8,.0f} tokens/s"
    text += f"  latency {duration_text(load.latency_p50)} (p99 {duration_text(load.latency_p99)})"
    if load.first_p50 is not None and load.first_p99 is not None:
        text += f"  first piece {duration_text(load.first_p50)} (p99 {duration_text(load.first_p99)})"
    if load.at_once == 1:
        text += f"  the very first {duration_text(load.earliest)}"
    return text + (f"  {load.retries} retries" if load.retries else "")


def serve_summary(report: dict[str, Any]) -> list[str]:
    """Lines on the pipeline's own batches beside the server, a chat beside pictures, memory and machine."""
    from ...blocks.placement.memory_budget import size_text
    from ...eval.bench.measure import duration_text

    served = {(load["work"], load["at_once"]): load["rate"] for load in report["loads"]}
    lines = [
        f"{work:<26} the pipeline's batch of {size}: {rate:.4g}/s; served: x {served[work, size] / rate:.2f}"
        for work, rates in report["pipeline"].items()
        for size, rate in rates.items()
    ]
    if (gaps := report["gaps"]) is not None:
        p50, p99, longest, step = (duration_text(gaps[name]) for name in ("p50", "p99", "longest", "step"))
        lines.append(
            f"a chat while {gaps['pictures']} pictures are painted: {p50} between pieces, p99 {p99}, at most "
            f"{longest}; a step takes {step} (p99: {gaps['p99_steps']:.1f} steps)"
        )
    options, machine, ready = report["options"], report["machine"], duration_text(report["ready"])
    kind = f" with {options['quantize']} weights" if options["quantize"] else ""
    return [
        *lines,
        f"ready {ready} after the weights; {report['capacity']}; {size_text(report['held'])} of memory held",
        f"{options['family']} {options['size']}, {report['layers']} layers, {report['dtype']}{kind}, "
        f"{size_text(report['weights'])} of random weights",
        f"{machine['kind']}, {machine['device']}, torch {machine['torch']}, {machine['date']}",
    ]
