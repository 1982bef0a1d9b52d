"""`bifrons bench`: how fast models of the released sizes work on this machine."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..defaults import QUANTIZE_HELP

if TYPE_CHECKING:
    from ...eval.bench.measure import Line


def add_bench(
    commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]
) -> None:
    """Add the parser of `bench`; imports nothing heavy."""
    parser = command(commands, "bench", "measure speed with random weights, beside what the memory allows")
    parser.add_argument("family", choices=("janus", "vl2"), help="the family of models")
    parser.add_argument("--size", help="janus: 1b (default), 7b, nano; vl2: tiny (default), small, base")
    for flag, about in (
        ("--layers", "decoder layers, where memory has no room for all"),
        ("--batch", "pictures or conversations at once (default: 1)"),
        ("--steps", "decoding steps of a run (default: 16 on the CPU, else 64)"),
        ("--repeats", "runs; the median counts (default: 5)"),
    ):
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, metavar="N", help=about)
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: bfloat16)")
    parser.add_argument("--quantize", help=QUANTIZE_HELP.partition(" (")[0] + " (default: none)")
    parser.add_argument("--eager", action="store_true", help="capture no steps as CUDA graphs")
    parser.add_argument("--peers", action="store_true", help="also measure transformers on the same work")
    add_json(parser)


def bench(args: argparse.Namespace) -> int:
    """Measure, printing each line as it is ready, then a summary; or JSON."""
    from ...eval.bench.run import DEFAULT_SIZE, BenchOptions, run_bench
    from ..files import print_json
    from ..pipelines import explain_memory

    given = {f.name: getattr(args, f.name) for f in fields(BenchOptions) if f.name in args}
    options = BenchOptions(**{**given, "size": args.size or DEFAULT_SIZE[args.family]})

    def print_line(line: "Line") -> None:
        if not args.json:
            print(text(line), flush=True)

    with explain_memory("measuring", lambda: "accepted: fewer --layers, a smaller --batch or --size"):
        found = run_bench(options, print_line)
    if args.json:
        print_json(found)
    else:
        print("\n".join(summary(found)))
    return 0


def text(line: "Line") -> str:
    """One measurement as text, with its note on a second line."""
    from ...blocks.placement.memory_budget import size_text

    limit = "" if line.limit is None else f", limit {seconds(line.limit)} (x {line.ratio:.2f})"
    words = f"{line.who:<24} {line.work:<52} {seconds(line.seconds):>9} (best {seconds(line.best)}{limit})"
    words += f", {line.rate:.4g}{line.unit}, peak {size_text(line.peak)}"
    return words + (f"\n{'':<24} {line.note}" if line.note else "")


def seconds(value: float) -> str:
    """A duration as text, such as `12.3 ms`."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def summary(found: dict[str, Any]) -> list[str]:
    """What was measured, and on which machine."""
    from ...blocks.placement.memory_budget import size_text

    machine, options = found["machine"], found["options"]
    kind = f" with {options['quantize']} weights" if options["quantize"] else ""
    load = f", load {machine['load_before']} on {machine['cores']} cores before" if "cores" in machine else ""
    return [
        *found.get("failed", ()),
        f"steps: {found['steps']}",
        f"{options['family']} {options['size']}, {found['layers']} layers, {found['dtype']}{kind}, "
        f"{size_text(found['weights'])} of random weights, median of {options['repeats']}",
        f"{machine['kind']}, {machine['device']}, {machine['threads']} threads{load}, "
        f"torch {machine['torch']}, {machine['date']}; bandwidth {size_text(int(found['bandwidth']))}/s",
    ]
