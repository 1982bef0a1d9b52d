"""What a model was taught by `nano/recipes/new_shape.py`, and whether it still can what it could before.

`python -m bifrons.eval.nano.new_shape FOLDER --adapter ADAPTER` paints fresh sentences about houses, none of
which is a caption in FOLDER, and sentences of the world that the model knew, without the adapter and with it,
from the same seeds. The exact detector of nine shapes judges the pictures.
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
AT_ONCE = 48
"""Pictures that are painted together."""


def score(pipe: JanusPipeline, rows: Sequence[Mapping[str, Any]], seed: int) -> list[bool]:
    """Whether a picture of each row's sentence is right."""
    right: list[bool] = []
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        seeds = list(range(seed + start, seed + start + len(part)))
        pictures = pipe.generate([row["prompt"] for row in part], seed=seeds, progress=False)
        for row, picture in zip(part, pictures, strict=True):
            found = {"filename": f"{len(right)}.png", "metadata": row, **to_geneval(detect(picture, NINE))}
            right.append(score_row(found).correct)
    return right


def main() -> None:
    """Command line: print the shares of right pictures, before and after."""
    parser = argparse.ArgumentParser(description="Measure what was taught, and what was known before.")
    parser.add_argument("folder", type=Path, help="the folder of nano/recipes/new_shape.py")
    parser.add_argument("-m", "--model", default="janus-nano")
    parser.add_argument("--adapter", type=Path, help="what was trained (default: none)")
    parser.add_argument("--dtype", help="that the model computes in")
    parser.add_argument("--sentences", type=int, default=200, help="of each of the three sorts")
    parser.add_argument("--seed", type=int, default=100_000)
    args = parser.parse_args()
    captions = frozenset(plain(path.read_text(encoding="utf-8")) for path in args.folder.glob("*/*.txt"))
    sorts = {
        "houses, fresh sentences": [c.metadata for c in house_cases(args.sentences, args.seed, captions)],
        "known before, combinations seen": suite(args.sentences, args.seed),
        "known before, combinations left out": suite(args.sentences, args.seed, "held_out"),
    }
    pipe = JanusPipeline.from_pretrained(args.model, dtype=args.dtype, progress=False)
    before = {title: score(pipe, rows, args.seed) for title, rows in sorts.items()}
    if args.adapter is not None:
        pipe.load_adapter(args.adapter)
    for title, rows in sorts.items():
        tags = [row["tag"] for row in rows]
        print(table_line(f"{title}: before", tally(tags, before[title])), flush=True)
        if args.adapter is not None:
            after = score(pipe, rows, args.seed)
            print(table_line(f"{title}: after", tally(tags, after)), flush=True)


if __name__ == "__main__":
    main()
