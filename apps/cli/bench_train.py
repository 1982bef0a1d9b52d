"""`bifrons bench train`: fine-tuning with random weights at released sizes."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .options import given_fields
from .train_options import add_gpus

if TYPE_CHECKING:
    from ...eval.bench.measure import Line


def add_bench_train(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parser of `bench train`; imports nothing heavy."""
    parser = command(commands, "train", "fine-tune a Janus model of a released size with random weights")
    parser.add_argument("--size", default="1b", help="1b (default), 7b, nano")
    parser.add_argument("--mode", default="full", help="full (default) or lora")
    for flag, text in (
        ("--rows", "pictures of a step on each GPU (default: 16 of 1b, 8 of 7b)"),
        ("--layers", "decoder layers, if memory is too small for all (default: all)"),
        ("--repeats", "runs of four steps, of which the median is reported (default: 3)"),
    ):
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, metavar="N", help=text)
    parser.add_argument("--recompute", action="store_true", help="recompute activations: less memory, slower")
    parser.add_argument("--device", help="cuda (default where there is one), cpu")
    add_gpus(parser, "1")
    parser.add_argument("--dtype", default=argparse.SUPPRESS, help="bfloat16 (default on a GPU), float32")
    parser.add_argument(
        "--peers", action="store_true", help="also measure transformers and PEFT on the same work"
    )
    add_json(parser)


def bench_train(args: argparse.Namespace, line_text: Callable[["Line"], str]) -> int:
    """Print each measurement when it is done, by `line_text`, and a summary at the end, or JSON."""
    from ...learn.processes import is_launched
    from .train_processes import as_one_of_several, processes_to_start, start_processes

    if args.gpus is None and not is_launched():
        args.gpus = 1
    if (processes := processes_to_start(args)) > 1:
        return start_processes(args, processes)
    if is_launched():
        return as_one_of_several(lambda args: _measure(args, line_text), args)
    return _measure(args, line_text)


def _measure(args: argparse.Namespace, line_text: Callable[["Line"], str]) -> int:
    from ...eval.bench.training import TrainBenchOptions, bench_training
    from ...learn import distributed
    from ..files import print_json
    from ..pipelines import explain_out_of_memory

    fewer = "accepted: --recompute, fewer --rows, fewer --layers, a smaller --size"
    with explain_out_of_memory("measuring", lambda: fewer), distributed.joined(args.device) as device:
        speaks = distributed.rank() == 0
        options = TrainBenchOptions(**given_fields(args, TrainBenchOptions))
        shows = speaks and not args.json
        results = bench_training(
            options, device, lambda line: print(line_text(line), flush=True) if shows else None
        )
    if speaks and args.json:
        print_json(results)
    elif speaks:
        machine, faster = results["machine"], results.get("times_faster")
        if faster is not None:
            print(f"{faster:.2f} times as fast as transformers")
        print(f"{results['processes']} x {machine['kind']}, torch {machine['torch']}, {machine['date']}")
    return 0
