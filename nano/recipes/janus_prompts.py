"""Sentences for training `janus-nano` by rewards: `python -m bifrons.nano.recipes.janus_prompts --help`.

Rows of GenEval's metadata, which the detector's reward reads; no pictures are needed.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from ...blocks.files import atomic_write
from ..world.sampling import HELD_OUT_KINDS, KINDS, sample_example

_SIDE = 96  # pixels of the pictures that show that a sentence has one


def prompt_rows(count: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """Rows of GenEval's kinds in turn, of combinations seen in training or left out of it."""
    rng = Random(f"prompts {seed} {split}")
    kinds = [kind for kind in KINDS if split == "train" or kind in HELD_OUT_KINDS]
    for index in range(count):
        yield sample_example(kinds[index % len(kinds)], rng, split, _SIDE, _SIDE).row


def main() -> None:
    """Write a prompts file."""
    parser = argparse.ArgumentParser(description="Sentences of the world of things for training by rewards.")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .jsonl file")
    parser.add_argument("--seen", type=int, default=1000, help="sentences of combinations seen in training")
    parser.add_argument("--left-out", type=int, default=3000, help="sentences of those left out of it")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows = [
        *prompt_rows(args.seen, args.seed, "train"),
        *prompt_rows(args.left_out, args.seed, "held_out"),
    ]
    with atomic_write(args.output) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main()
