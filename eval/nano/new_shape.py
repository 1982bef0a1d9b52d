"""Whether a model paints houses, taught by `nano/recipes/new_shape.py`, and still what it could before.

`python -m bifrons.eval.nano.new_shape FOLDER [--adapter ADAPTER]` paints fresh sentences, none of which is a
caption in FOLDER, and judges the pictures by the exact detector of nine shapes.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...janus.pipeline import JanusPipeline
from ...nano.recipes.new_shape import house_cases, plain
from ...nano.world.detector import detect, to_geneval
from ...nano.world.sentences import suite
from ...nano.world.shapes import HOUSE, SHAPES
from ..geneval.scoring import score_row
from .janus import table_line, tally

NINE = (*SHAPES, HOUSE)


def score(pipe: JanusPipeline, rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, tuple[int, int]]:
    """(right, painted) by kind: one picture of each row's sentence."""
    prompts, right = [row["prompt"] for row in rows], []
    for number, picture in enumerate(pipe.generate(prompts, seed=list(range(seed, seed + len(rows))))):
        found = {"filename": f"{number}.png", "metadata": rows[number], **to_geneval(detect(picture, NINE))}
        right.append(score_row(found).correct)
    return tally([row["tag"] for row in rows], right)


def main() -> None:
    """Command line: print the shares of right pictures."""
    parser = argparse.ArgumentParser(description="Measure what was taught, and what was known before.")
    parser.add_argument("folder", type=Path, help="the folder of nano/recipes/new_shape.py")
    parser.add_argument("-m", "--model", default="janus-nano")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--sentences", type=int, default=200, help="of either sort")
    parser.add_argument("--seed", type=int, default=100_000)
    args = parser.parse_args()
    pipe = JanusPipeline.from_pretrained(args.model, progress=False)
    if args.adapter is not None:
        pipe.load_adapter(args.adapter)
    captions = frozenset(plain(path.read_text(encoding="utf-8")) for path in args.folder.glob("*/*.txt"))
    houses = [case.metadata for case in house_cases(args.sentences, args.seed, captions)]
    print(table_line("houses, fresh sentences", score(pipe, houses, args.seed)), flush=True)
    print(table_line("what was known before", score(pipe, suite(args.sentences, args.seed), args.seed)))


if __name__ == "__main__":
    main()
