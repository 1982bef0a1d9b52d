"""`python tests/fuzz`: hostile inputs of every kind, in processes with limits of memory and time.

A case is determined by its kind, the seed and its index, so that it can be repeated. Hypothesis would not do
for the cases, since it neither isolates them nor survives a crash; atheris would not either, since what is
worth covering here lies in C and Rust libraries that are not instrumented.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}

import PIL
import tokenizers
import torch
from adapter_files import ADAPTERS
from bin_files import BIN
from cases import ACCEPTED, FAULTS, REFUSED, Outcome
from http_requests import REQUESTS
from json_files import JSON
from picture_files import PICTURES
from planted import PLANTED, PLANTED_REQUESTS
from runner import Tally, run_kind
from safetensors_files import SAFETENSORS
from settings_files import SETTINGS_KIND
from special_files import SPECIAL
from tokenizer_files import TOKENIZERS

ALL = (SAFETENSORS, BIN, ADAPTERS, JSON, TOKENIZERS, PICTURES, SETTINGS_KIND, SPECIAL, REQUESTS)
KINDS = {kind.name: kind for kind in ALL}
TRIALS = {kind.name: kind for kind in (PLANTED, PLANTED_REQUESTS)}
"""Kinds that test the detectors."""


def main(argv: list[str] | None = None) -> int:
    """Run the kinds and print the table; the status is 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument(
        "--cases", type=int, default=100, metavar="N", help="cases of each kind (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="index of the first case (default: 0)"
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), metavar="S", help="stop each kind after this"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("out/fuzz"), metavar="DIR", help="for cases with a fault"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(
        f"seed {args.seed}, Python {sys.version.split()[0]}, torch {torch.__version__}, "
        f"tokenizers {tokenizers.__version__}, Pillow {PIL.__version__}"
    )
    tallies = []
    for name in args.kinds or KINDS:
        indices = iter(range(args.first, args.first + args.cases))
        end = time.monotonic() + args.seconds
        tallies.append(run_kind((KINDS | TRIALS)[name], args.seed, indices, args.keep, args.workers, end))
        print_faults(tallies[-1], args)
    print_table(tallies)
    return int(any(tally.faults for tally in tallies))


def print_faults(tally: Tally, args: argparse.Namespace) -> None:
    """Each distinct fault once, with the way to repeat it."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for fault in tally.faults:
        groups[fault.key].append(fault)
    for key, faults in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = min(faults, key=lambda fault: fault.index)
        print(f"\n{tally.kind}: {len(faults)} x {key}\n{first.detail[-1500:]}")
        print(f"the files are in {args.keep}/{tally.kind}-{args.seed}-{first.index}; to repeat it:")
        print(
            f"    python tests/fuzz {tally.kind} --seed {args.seed} --first {first.index} --cases 1",
            flush=True,
        )


def print_table(tallies: list[Tally]) -> None:
    """Counts by kind."""
    columns = (ACCEPTED, REFUSED, *FAULTS)
    print(
        f"\n{'kind':<18}{'cases':>8}"
        + "".join(f"{name:>12}" for name in columns)
        + f"{'minutes':>9}  slowest"
    )
    for tally in tallies:
        counts = "".join(f"{tally.counts.get(name, 0):>12}" for name in columns)
        slowest = f"{tally.slowest.seconds:.1f} s ({tally.slowest.index})"
        print(f"{tally.kind:<18}{sum(tally.counts.values()):>8}{counts}{tally.seconds / 60:>9.1f}  {slowest}")
    print(f"{'all':<18}{sum(sum(tally.counts.values()) for tally in tallies):>8}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
