"""Measures the detector of the world of things on fresh scenes, whole and degraded ones.

`python -m bifrons.eval.nano.things_detector --help`. A thing is found where a detection of its class has an
IoU of 0.5 and more with its box; each detection counts for one thing. With `--write`, the figures go into the
weights' `config.json`, from where reports print them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image

from ...blocks.files import atomic_write
from ...nano.world.degrading import DEGRADATIONS, degrade
from ...nano.world.detector import Detection
from ...nano.world.requests import MIN_VISIBLE, Seen
from ...nano.world.sampling import KINDS, sample_example
from ...nano.world.things_detector import SIDE, WEIGHTS, ThingsDetector, load_detector
from ..geneval.detectors import WorldDetector
from ..geneval.scoring import score_row
from .vl2 import MIN_IOU, overlap


def match(found: Sequence[Detection], truth: Sequence[Seen]) -> list[tuple[Detection, Seen]]:
    """Pairs of detections, the surest first, and the things of their class that they cover best."""
    left, pairs = list(truth), []
    for one in found:
        near = [s for s in left if s.thing == one.label and overlap(one.box, s.box) >= MIN_IOU]
        if near:
            best = max(near, key=lambda s: overlap(one.box, s.box))
            left.remove(best)
            pairs.append((one, best))
    return pairs


def measure(detector: ThingsDetector, how: str, count: int, seed: int) -> dict[str, float]:
    """Figures for `count` pictures of GenEval's kinds that are degraded in this way ("none": not at all).

    recall: things that are found, of those that are visible enough. precision: detections that are things.
    color: found things with the right color. accepted: pictures that GenEval's rules find right, which all
    are unless they are cut.
    """
    rng, judge = Random(f"{seed} {how}"), WorldDetector(detector, {})
    things = detections = matched = colored = accepted = 0
    for i in range(count):
        example = sample_example(KINDS[i % len(KINDS)], rng, "any", SIDE, SIDE)
        pixels, seen = degrade(example.picture, how, rng)
        image = Image.fromarray(pixels)
        found = detector.detect(image)
        pairs = match(found, seen)
        things += sum(one.visible >= MIN_VISIBLE for one in seen)
        detections += len(found)
        matched += len(pairs)
        colored += sum(one.color == true.color for one, true in pairs)
        row = {
            "filename": "00000/samples/0000.png",
            "metadata": example.row,
            **judge.detect(image, example.row),
        }
        accepted += score_row(row).correct
    return {
        "recall": matched / things,
        "precision": matched / max(detections, 1),
        "color": colored / max(matched, 1),
        "accepted": accepted / count,
    }


def main() -> None:
    """Print a table of figures, a row for each degradation."""
    parser = argparse.ArgumentParser(description="Measure the detector of the world of things.")
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=600, help="pictures of each degradation")
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write the figures into config.json")
    args = parser.parse_args()
    detector = load_detector(args.folder, args.device)
    report = {}
    for how in ("none", *DEGRADATIONS):
        figures = measure(detector, how, args.count, args.seed)
        report |= {f"{how} {name}": round(value, 4) for name, value in figures.items()}
        print(how, *(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    if args.write:
        path = args.folder / "config.json"
        config = {**json.loads(path.read_text(encoding="utf-8")), "report": report}
        with atomic_write(path) as stream:
            stream.write((json.dumps(config, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
