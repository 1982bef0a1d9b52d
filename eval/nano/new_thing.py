"""What a model was taught by `nano/recipes/new_thing.py`, and whether it still can what it could before.

`python -m bifrons.eval.nano.new_thing --adapter ADAPTER` paints sentences about mushrooms, in other wordings
than those that were taught, and sentences of the world that the model knew, without the adapter and with it,
from the same seeds. Mushrooms are found by comparison with their drawing, all else by the learned detector.

Shape suffixes: C colors, H height, W width; 3 is red, green, blue.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...janus.pipeline import JanusPipeline
from ...nano.recipes.new_thing import THING, mushroom_cases, mushrooms_known
from ...nano.world.catalog import PAINTS
from ...nano.world.detector import Detection
from ...nano.world.sampling import HELD_OUT_KINDS, KINDS
from ...nano.world.sprites import sprite
from ...nano.world.things_detector import ThingsDetector, load_detector
from ..read.metrics import iou
from .janus import Painter, Prompt, sentences
from .scores import figures, shown

MOST_ERROR = 30.0
"""Root mean square of the difference, of 255, from which on it is no mushroom."""
_SIDE = 96  # pixels of the pictures that are compared
_SIZES = range(16, 73, 4)  # of mushrooms in them
_OVERLAP = 0.2  # intersection over union from which on two are one


def find_mushrooms(image: Image.Image) -> list[Detection]:
    """The upright mushrooms of a square picture, the surest first: where the drawing in one of the colors and
    sizes differs from the picture by less than `MOST_ERROR`."""
    small = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    pixels_3HW = torch.from_numpy(small).permute(2, 0, 1)
    found: list[Detection] = []
    with mushrooms_known():
        for size in _SIZES:
            found += _of_size(pixels_3HW, size, image.width / _SIDE)
    chosen: list[Detection] = []
    for one in sorted(found, key=lambda detection: -detection.score):
        if all(iou(one.box, other.box) < _OVERLAP for other in chosen):
            chosen.append(one)
    return chosen


def _of_size(pixels_3HW: torch.Tensor, size: int, scale: float) -> list[Detection]:
    drawn = [sprite(THING, 0, color, size) for color in PAINTS]
    inside_HW = torch.from_numpy(drawn[0].through_HW3[..., 0] < 0.02).float()
    paint_C3HW = torch.stack([torch.from_numpy(one.paint_HW3).permute(2, 0, 1) for one in drawn]) * inside_HW
    mask_3HW = inside_HW.expand(3, -1, -1)
    squares_HW = F.conv2d(pixels_3HW[None] ** 2, mask_3HW[None])[0, 0]
    cross_CHW = F.conv2d(pixels_3HW[None], paint_C3HW)[0]
    own_C11 = (paint_C3HW**2).sum((1, 2, 3))[:, None, None]
    error_CHW = ((squares_HW - 2 * cross_CHW + own_C11).clamp(min=0) / mask_3HW.sum()).sqrt()
    least_HW, color_HW = error_CHW.min(0)
    rows, columns = torch.nonzero(least_HW < MOST_ERROR, as_tuple=True)
    detections = []
    for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
        box = (x * scale, y * scale, (x + drawn[0].width) * scale, (y + drawn[0].height) * scale)
        score = 1 - least_HW[y, x].item() / MOST_ERROR
        detections.append(Detection(THING, list(PAINTS)[int(color_HW[y, x])], box, score))
    return detections


class MushroomDetector(ThingsDetector):
    """The detector of the world of things, and the mushrooms."""

    def detect_all(self, images: Sequence[Image.Image], batch: int = 64) -> list[list[Detection]]:
        """See `ThingsDetector.detect_all`."""
        found = super().detect_all(images, batch)
        return [boxes + find_mushrooms(image) for boxes, image in zip(found, images, strict=True)]


def main() -> None:
    """Command line: print the shares of right pictures, before and after."""
    parser = argparse.ArgumentParser(description="Measure what was taught, and what was known before.")
    parser.add_argument("-m", "--model", default="janus-nano")
    parser.add_argument("--adapter", type=Path, help="what was trained (default: none)")
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="that the model computes in")
    parser.add_argument("--sentences", type=int, default=200, help="of each of the three sorts, about")
    parser.add_argument("--batch-size", type=int, default=24, help="pictures that are painted together")
    parser.add_argument("--seed", type=int, default=100_000)
    args = parser.parse_args()
    cases = mushroom_cases(args.sentences, args.seed, fresh=True)
    each, left_out = (-(-args.sentences // len(kinds)) for kinds in (KINDS, HELD_OUT_KINDS))
    sorts = {
        "mushrooms, fresh sentences": [Prompt(case.kind, case.row) for case in cases],
        "known before, combinations seen": sentences(KINDS, each, args.seed, "train"),
        "known before, combinations left out": sentences(HELD_OUT_KINDS, left_out, args.seed, "held_out"),
    }
    pipe = JanusPipeline.from_pretrained(args.model, args.device, args.dtype, progress=False)
    known = load_detector(device=pipe.device)
    detector = MushroomDetector(known.model, known.classes, known.report, known.threshold)
    painter = Painter(pipe, detector, args.batch_size, {})
    for when in ("before", "after"):
        if when == "after":
            pipe.load_adapter(args.adapter)
        for title, prompts in sorts.items():
            counts, *_ = painter.score(prompts, 1, args.seed)
            print(f"{title}: {when} {shown(figures(counts, pooled=True)['overall'])}", flush=True)
        if args.adapter is None:
            break


if __name__ == "__main__":
    main()
