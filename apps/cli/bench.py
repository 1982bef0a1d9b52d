"""`bifrons bench`: the speed of models of the released sizes on this machine."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .bench_serve import add_bench_serve, bench_serve
from .bench_train import add_bench_train, bench_train
from .options import add_bench_model, given_fields

if TYPE_CHECKING:
    from ...eval.bench.measure import Line


def add_bench(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parser of `bench`; imports nothing heavy."""
    parser = command(
        commands, "bench", "measure speed with random weights, compared with the memory bandwidth limit"
    )
    subjects = parser.add_subparsers(dest="subject", metavar="{janus,vl2,text,serve,train}", required=True)
    for family, sizes in (
        ("janus", "1b (default), 7b, nano"),
        ("vl2", "tiny (default), small, base, nano"),
        ("text", "r1-1.5b (default), r1-7b, r1-8b, v3-mini (V3's layers, smaller)"),
    ):
        model = command(subjects, family, f"measure a {family} model")
        model.set_defaults(family=family)
        model.add_argument("--size", help=sizes)
        _add_options(model, "vllm" if family == "vl2" else "transformers")
        add_json(model)
    add_bench_serve(subjects, command, add_json)
    add_bench_train(subjects, command, add_json)


def _add_options(parser: Any, peer: str) -> None:
    for flag, text in (
        ("--layers", "decoder layers, if memory is too small for all (default: all)"),
        ("--batch", "pictures or conversations at once (default: 1)"),
        ("--steps", "decoding steps per run (default: 16 on the CPU, else 64)"),
        ("--repeats", "runs, of which the median is reported (default: 5)"),
    ):
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, metavar="N", help=text)
    add_bench_model(parser)
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="also measure the model over N processes, one a GPU, beside one",
    )
    parser.add_argument(
        "--peers",
        nargs="?",
        const=peer,
        choices=(peer,),
        help=f"also measure {'vLLM, if it is installed,' if peer == 'vllm' else peer} on the same workloads",
    )


def bench(args: argparse.Namespace) -> int:
    """Print each measurement when it is done and a summary at the end, or JSON."""
    if args.subject == "serve":
        return bench_serve(args)
    if args.subject == "train":
        return bench_train(args, line_text)
    from ...eval.bench.run import DEFAULT_SIZE, BenchOptions, run_bench
    from ..files import print_json
    from ..pipelines import explain_out_of_memory

    size = args.size or DEFAULT_SIZE[args.family]
    options = BenchOptions(**{**given_fields(args, BenchOptions), "size": size})

    def print_line(line: "Line") -> None:
        if not args.json:
            print(line_text(line), flush=True)

    with explain_out_of_memory("measuring", lambda: "accepted: fewer --layers, a smaller --batch or --size"):
        results = run_bench(options, print_line)
    if args.json:
        print_json(results)
    else:
        print("\n".join(summary(results)))
    return 0


def line_text(line: "Line") -> str:
    """One measurement as text, with its note on a second line."""
    from ...blocks.placement.memory_budget import size_text
    from ...eval.bench.measure import duration_text

    limit = "" if line.limit is None else f", limit {duration_text(line.limit)} (x {line.ratio:.2f})"
    times = f"{duration_text(line.seconds):>9} (best {duration_text(line.best)}{limit})"
    text = f"{line.who:<24} {line.work:<52} {times}"
    text += f", {line.rate:.4g}{line.unit}, peak {size_text(line.peak)}"
    return text + (f"\n{'':<24} {line.note}" if line.note else "")


def summary(results: dict[str, Any]) -> list[str]:
    """Lines that say what was measured, and on which machine."""
    from ...blocks.placement.memory_budget import size_text

    machine, options = results["machine"], results["options"]
    kind = f" with {options['quantize']} weights" if options["quantize"] else ""
    load = f", load {machine['load_before']} on {machine['cores']} cores before" if "cores" in machine else ""
    return [
        *results.get("failed", ()),
        f"steps: {results['steps']}",
        f"{options['family']} {options['size']}, {results['layers']} layers, {results['dtype']}{kind}, "
        f"{size_text(results['weights'])} of random weights, median of {options['repeats']}",
        f"{machine['kind']}, {machine['device']}, {machine['threads']} threads{load}, "
        f"torch {machine['torch']}, {machine['date']}; bandwidth {size_text(int(results['bandwidth']))}/s",
    ]
