"""The text tokenizer and the training examples of `janus-nano`, generated on the CPU.

Usage: `python -m bifrons.nano.recipes.janus_data --help`. Takes about ten minutes on one core, and uses all.
"""

import argparse
import os
from functools import partial
from pathlib import Path

from ...learn.packed import build, save_rows
from .datasets import SHARD, conversation, conversation_shard, prompt_shard
from .janus import PAINT, READ
from .janus_spec import write_folder
from .things_janus_spec import PaintEncoder, TurnEncoder

PAINT_WIDTH, READ_WIDTH = 32, 240
"""Tokens of the longest image generation prompt and of the longest conversation."""


def make_examples(folder: Path, sentences: int, conversations: int, seed: int, workers: int) -> None:
    """Write the folder's JSON files and its examples."""
    write_folder(folder)
    paint = partial(prompt_shard, encode=PaintEncoder(folder), width=PAINT_WIDTH)
    read = partial(conversation_shard, converse=conversation, encode=TurnEncoder(folder), width=READ_WIDTH)
    save_rows(folder / PAINT, build(paint, max(1, sentences // SHARD), seed, workers))
    save_rows(folder / READ, build(read, max(1, conversations // SHARD), seed + 5000, workers))


def main() -> None:
    """Command line: write the tokenizer, configs and examples of janus-nano."""
    parser = argparse.ArgumentParser(description="Make janus-nano's text tokenizer and training examples.")
    parser.add_argument("--folder", type=Path, default=Path("runs/janus-nano"))
    parser.add_argument("--sentences", type=int, default=300_000)
    parser.add_argument("--conversations", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    make_examples(args.folder, args.sentences, args.conversations, args.seed, args.workers)


if __name__ == "__main__":
    main()
