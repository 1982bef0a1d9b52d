"""Recipe 4: pictures that `janus-nano` painted itself and that are right, to learn from beside rendered ones.
`python -m bifrons.nano.recipe_own --help`; after it, recipe 3 again with `--start`.

Rejection sampling (Dong et al. 2023, "RAFT", arXiv 2304.06767): the exact detector chooses. It teaches what
copying rendered pictures does not, to end up with the right number of things however a picture has begun.
Pictures of the model's likeliest tokens are kept, so its own draw gets surer too.

N pictures, L prompt tokens (padded on the right), T image tokens.
"""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..janus.pipeline import JanusPipeline
from .datasets import PAINT_MIX
from .janus_format import PaintEncoder
from .judging import is_right
from .recipe_data import PAINT_WIDTH
from .sentences import sample_case

OWN = "own.safetensors"
TOP_P = 0.95
AT_ONCE = 512
_MARGIN = 10.0  # seconds left for what is still being judged


def judge(pictures: Sequence[Image.Image], rows: Sequence[dict[str, Any]]) -> list[bool]:
    torch.set_num_threads(1)
    return [is_right(picture, row) for picture, row in zip(pictures, rows, strict=True)]


def judge_all(
    pool: ProcessPoolExecutor, pictures: Sequence[Image.Image], rows: Sequence[dict[str, Any]]
) -> list[Future[list[bool]]]:
    """Pieces of a batch, each on its way to some process, in their order."""
    pieces = range(0, len(rows), 32)
    return [pool.submit(judge, pictures[i : i + 32], rows[i : i + 32]) for i in pieces]


def paint_right(
    pipe: JanusPipeline, folder: Path, seconds: float, seed: int, workers: int
) -> tuple[dict[str, Tensor], int]:
    """Ids, lengths and codes of right pictures, and how many pictures were painted for them."""
    rng, encode, began = Random(seed), PaintEncoder(folder), time.monotonic()
    batches: list[tuple[list[list[int]], Tensor, list[Future[list[bool]]]]] = []
    # Forked children of a process that has used torch's threads can hang: start them afresh.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        while not batches or time.monotonic() - began < seconds - _MARGIN:
            kinds = rng.choices(list(PAINT_MIX), list(PAINT_MIX.values()), k=AT_ONCE)
            rows = [sample_case(kind, rng).metadata for kind in kinds]
            prompts = [row["prompt"] for row in rows]
            seeds = [rng.getrandbits(31) for _ in rows]
            codes = cast(Tensor, pipe.generate(prompts, seed=seeds, top_p=TOP_P, output_type="codes"))
            judged = judge_all(pool, pipe.decode_codes(codes), rows)
            batches.append(([encode(prompt) for prompt in prompts], codes, judged))
        kept: list[tuple[list[int], Tensor]] = []
        for ids, codes, judged in batches:
            right = [verdict for piece in judged for verdict in piece.result()]
            kept += [(ids[i], codes[i]) for i, good in enumerate(right) if good]
    ids_NL = torch.zeros(len(kept), PAINT_WIDTH, dtype=torch.int16)
    for row, (ids, _) in zip(ids_NL, kept, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    lengths = torch.tensor([len(ids) for ids, _ in kept])
    codes_NT = torch.stack([codes for _, codes in kept]).short()
    return {"ids": ids_NL, "lengths": lengths, "codes": codes_NT}, AT_ONCE * len(batches)


def load_own(folder: Path) -> dict[str, Tensor] | None:
    """All right pictures that the folder holds so far."""
    return load_file(folder / OWN) if (folder / OWN).exists() else None


def add_own(folder: Path, found: dict[str, Tensor]) -> int:
    """Add right pictures to those of the folder; how many it then holds."""
    before = load_own(folder)
    if before is not None:
        found = {name: torch.cat((before[name], value)) for name, value in found.items()}
    partial = folder / f".{OWN}.partial"
    save_file(found, partial)
    os.replace(partial, folder / OWN)
    return len(found["codes"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Paint with janus-nano; keep what is right."
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/janus-nano"), help="where the pictures go")
    parser.add_argument("--model", help="whose pictures; the folder's own by default")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device")
    args = parser.parse_args()
    pipe = JanusPipeline.from_pretrained(args.model or str(args.folder), args.device)
    found, painted = paint_right(pipe, args.folder, args.seconds, args.seed, args.workers)
    share = len(found["codes"]) / painted
    print(
        f"{painted} painted, {share:.1%} right; the folder holds {add_own(args.folder, found)} now",
        flush=True,
    )


if __name__ == "__main__":
    main()
