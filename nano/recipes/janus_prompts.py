"""Sentences for training `janus-nano` by rewards: `python -m bifrons.nano.recipes.janus_prompts --help`.

Rows of GenEval's metadata, which the detector's reward reads; no pictures are needed.
"""

import argparse
import json
from pathlib import Path

from ...blocks.files import atomic_write
from ..world.sentences import suite


def main() -> None:
    """Write a prompts file."""
    parser = argparse.ArgumentParser(description="Sentences of the small world for training by rewards.")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .jsonl file")
    parser.add_argument("--seen", type=int, default=1000, help="sentences of combinations seen in training")
    parser.add_argument("--left-out", type=int, default=3000, help="sentences of those left out of it")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows = [*suite(args.seen, args.seed, "train"), *suite(args.left_out, args.seed, "held_out")]
    with atomic_write(args.output) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main()
