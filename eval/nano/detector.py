"""Measures the detector of the world of things on fresh scenes, whole and degraded ones.

`python -m bifrons.eval.nano.detector --help`. A thing is found where a detection of its class has an
IoU of 0.5 and more with its box; each detection counts for one thing. With `--write`, the threshold is chosen
on other scenes, and both go into the weights' `config.json`, from where reports print the errors.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from ...blocks.files import atomic_write
from ...janus.pipeline import JanusPipeline
from ...nano.world.catalog import PAINTS, things
from ...nano.world.degrading import DEGRADATIONS, degrade
from ...nano.world.detector import Detection
from ...nano.world.requests import MIN_VISIBLE, OPPOSITE, Seen
from ...nano.world.sampling import KINDS, sample_example
from ...nano.world.things_detector import SIDE, WEIGHTS, ThingsDetector, load_detector
from ..geneval.detectors import as_row
from ..geneval.scoring import score_row
from ..read.metrics import iou
from .scores import MIN_IOU

THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(15))
"""Those that are tried."""
Coder = Callable[[Image.Image], Image.Image]
"""Encodes and decodes a picture by an image tokenizer."""


@dataclass(frozen=True)
class Shown:
    """A degraded picture, what is in it, and the GenEval row that it was made for."""

    image: Image.Image
    seen: tuple[Seen, ...]
    row: dict[str, Any]


def scenes(how: str, count: int, seed: int, coder: Coder | None = None) -> Iterator[Shown]:
    """Pictures of GenEval's kinds. how: one of DEGRADATIONS, "none", or "coded": by `coder`."""
    rng = Random(f"{seed} {how}")
    for i in range(count):
        example = sample_example(KINDS[i % len(KINDS)], rng, "any", SIDE, SIDE)
        pixels, seen = degrade(example.picture, "none" if how == "coded" else how, rng)
        image = Image.fromarray(pixels)
        yield Shown(coder(image) if coder and how == "coded" else image, seen, example.row)


def near_miss(row: dict[str, Any], rng: Random) -> dict[str, Any]:
    """A row that a picture of `row` does not show: another count, color, relation or class."""
    other = deepcopy(row)
    first, last = other["include"][0], other["include"][-1]
    if row["tag"] == "counting":
        first["count"] += -1 if first["count"] > 2 and rng.random() < 0.5 else 1
        other["exclude"] = [{"class": first["class"], "count": first["count"] + 1}]
    elif "color" in first:
        first["color"] = rng.choice([color for color in PAINTS if color != first["color"]])
    elif linked := [clause for clause in other["include"] if "position" in clause]:
        name, target = linked[0]["position"]
        linked[0]["position"] = [OPPOSITE[name], target]
    else:
        named = {clause["class"] for clause in other["include"]}
        last["class"] = rng.choice([name for name in things() if name not in named])
    return other


def match(found: Sequence[Detection], truth: Sequence[Seen]) -> list[tuple[Detection, Seen]]:
    """Pairs of detections, the surest first, and the things of their class that they cover best."""
    left, pairs = list(truth), []
    for one in found:
        near = [s for s in left if s.thing == one.label and iou(one.box, s.box) >= MIN_IOU]
        if near:
            best = max(near, key=lambda s: iou(one.box, s.box))
            left.remove(best)
            pairs.append((one, best))
    return pairs


def measure(shown: Sequence[Shown], found: Sequence[Sequence[Detection]], seed: int) -> dict[str, float]:
    """Figures for what was found in pictures.

    recall: things that are found, of those that are visible enough. precision: detections that are things.
    color: found things with the right color. accepted: pictures that GenEval's rules find right, which all
    are unless they are cut. refused: near misses (`near_miss`) that the rules find wrong, as they are.
    """
    rng = Random(seed)
    wanted = detections = matched = colored = accepted = refused = 0
    for one, boxes in zip(shown, found, strict=True):
        pairs = match(boxes, one.seen)
        wanted += sum(thing.visible >= MIN_VISIBLE for thing in one.seen)
        detections += len(boxes)
        matched += len(pairs)
        colored += sum(detection.color == true.color for detection, true in pairs)
        accepted += _is_right(one.row, boxes)
        refused += not _is_right(near_miss(one.row, rng), boxes)
    return {
        "recall": matched / wanted,
        "precision": matched / max(detections, 1),
        "color": colored / max(matched, 1),
        "accepted": accepted / len(shown),
        "refused": refused / len(shown),
    }


def _is_right(metadata: dict[str, Any], found: Sequence[Detection]) -> bool:
    row = {"filename": "00000/samples/0000.png", "metadata": metadata, **as_row(found)}
    return score_row(row).correct


def choose_threshold(detector: ThingsDetector, shown: Sequence[Shown]) -> float:
    """The one of THRESHOLDS with the largest F1 of things (harmonic mean of recall and precision); of those
    within a thousandth of it the middle one."""
    usual, detector.threshold = detector.threshold, THRESHOLDS[0]
    found = detector.detect_all([one.image for one in shown])
    detector.threshold = usual
    scores = []
    for least in THRESHOLDS:
        figures = measure(shown, [[d for d in boxes if d.score > least] for boxes in found], 0)
        recall, precision = figures["recall"], figures["precision"]
        scores.append(2 * recall * precision / max(recall + precision, 1e-9))
    good = np.flatnonzero(np.array(scores) > max(scores) - 1e-3)
    return THRESHOLDS[int(good[len(good) // 2])]


def _coder(model: str, device: str) -> Coder:
    pipe = JanusPipeline.from_pretrained(model, device, "float32")
    return lambda image: pipe.decode_codes(pipe.encode_image(image))[0]


def _write(path: Path, changes: dict[str, Any]) -> None:
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    with atomic_write(path) as stream:
        stream.write((json.dumps(config, indent=2) + "\n").encode())


def main() -> None:
    """Print a table of figures, a row for each degradation."""
    parser = argparse.ArgumentParser(description="Measure the detector of the world of things.")
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=600, help="pictures of each degradation")
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--coder", metavar="MODEL", help="a Janus model whose image tokenizer codes pictures")
    parser.add_argument(
        "--write", action="store_true", help="choose the threshold, and write it and the figures"
    )
    args = parser.parse_args()
    detector, ways = load_detector(args.folder, args.device), ("none", *DEGRADATIONS)
    coder = _coder(args.coder, args.device) if args.coder else None
    ways = (*ways, "coded") if coder else ways
    if args.write:
        plain = [way for way in ways if way != "cut"]
        chosen_on = [s for way in plain for s in scenes(way, args.count // 2, args.seed + 1, coder)]
        detector.threshold = choose_threshold(detector, chosen_on)
        print(f"threshold {detector.threshold:g}, chosen on {len(chosen_on)} other pictures", flush=True)
    report = {}
    for how in ways:
        shown = list(scenes(how, args.count, args.seed, coder))
        figures = measure(shown, detector.detect_all([one.image for one in shown]), args.seed)
        report |= {f"{how} {name}": round(value, 4) for name, value in figures.items()}
        print(f"{how:<8}", *(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    if args.write:
        _write(args.folder / "config.json", {"threshold": detector.threshold, "report": report})


if __name__ == "__main__":
    main()
