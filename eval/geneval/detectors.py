"""Object detectors behind one protocol, and the factory that makes them by name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from ...blocks.device import resolve_device
from ...blocks.errors import BifronsError, OptionError
from ...nano.world.detector import Detection, detect, to_geneval
from ...nano.world.things_detector import FILE, WEIGHTS, ThingsDetector, load_detector
from ..optional_packages import import_opencv, quiet
from .clip_colors import MISSING_CLIP, ColorClassifier, load_color_classifier
from .mask2former import MISSING_HF, MISSING_OFFICIAL, Segmenter, load_folder, load_official
from .mask2former_convert import sha256
from .options import OFFICIAL, ScorerOptions, select_boxes

KINDS = ("shapes", "world", "mask2former-official", "mask2former-hf")


class Detector(Protocol):
    """Detects objects and their colours. official: its weights are GenEval's. comparable: scores from it may
    be called GenEval. hashes: sha256 of each weights file, by its part in the detector."""

    name: str
    official: bool
    comparable: bool
    hashes: Mapping[str, str]

    def detect(self, image: Image.Image, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """{"boxes": {class: [[x0, y0, x1, y1, score], ...]}, "colors": {class: [name, ...]}}.

        Boxes are in pixels. Each box has a colour, which is None where no clause of `metadata` needs it.
        """
        ...


def make_detector(
    kind: str,
    weights: str | Path | None = None,
    clip: str | Path | None = None,
    device: str | None = None,
    options: ScorerOptions = OFFICIAL,
) -> Detector:
    """A detector by name, never another one in its place.

    kind: "shapes", the exact detector of the world of shapes, which needs no weights and runs on the CPU;
    "world", the learned detector of the world of things, with embedded weights or those in the folder
    `weights`;
    "mask2former-official", GenEval's own, whose `weights` are its mmdet `.pth`; "mask2former-hf", whose
    `weights` are a folder of transformers' Mask2Former. Both use CLIP in the folder `clip` for colours.
    options: the scorer's; they decide which boxes get a colour, and how it is classified.
    Raises OptionError for another kind or an option that the kind does not take, and BifronsError (with
    what to get, and the flag for it) where weights or a package are missing.
    """
    if kind not in KINDS:
        raise OptionError(f"detector is {kind!r}; accepted: {', '.join(KINDS)}")
    if kind in ("shapes", "world"):
        return _own_detector(kind, weights, clip, device, options)
    official = kind == "mask2former-official"
    source = _existing(weights, MISSING_OFFICIAL if official else MISSING_HF, want_file=official)
    folder = _existing(clip, MISSING_CLIP, want_file=False)
    place = resolve_device(device)
    import transformers  # takes seconds: only here

    import_opencv()  # for the segmenter: better missed here than at the first image
    with quiet(transformers):
        model = load_official(source, transformers) if official else load_folder(source, transformers)
        colors = load_color_classifier(folder, transformers, options)
    model.to(place)
    colors.model.to(place)
    hashes = {"detector": sha256(weights_file(source)), "clip": colors.sha256 or ""}
    hashes["clip's tensors"] = colors.tensors or ""
    return GenEvalDetector(Segmenter(model), colors, official, options, hashes)


def _own_detector(
    kind: str, weights: str | Path | None, clip: str | Path | None, device: str | None, options: ScorerOptions
) -> Detector:
    """The detector of one of the embedded worlds."""
    given = {"weights": weights, "clip": clip, "device": None if device == "cpu" else device}
    if kind == "world":
        given = {"clip": clip}
    if refused := [name for name, value in given.items() if value is not None]:
        why = "it runs on the CPU alone" if kind == "shapes" else "it tells colours by itself"
        raise OptionError(f"the detector {kind!r} takes no {' or '.join(refused)}: {why}")
    if refused := {"bgcolor", "crop"} & set(options.changed()):
        raise OptionError(
            f"the detector {kind!r} takes no {' or '.join(sorted(refused))}: it has no colour classifier"
        )
    if kind == "shapes":
        return ShapesDetector()
    folder = WEIGHTS if weights is None else Path(weights).expanduser()
    return WorldDetector(load_detector(folder, resolve_device(device)), {"detector": sha256(folder / FILE)})


def weights_file(source: Path) -> Path:
    """The file of a detector's weights: `source` itself, or the one in that folder."""
    if os.path.isfile(source):
        return source
    names = ("model.safetensors", "pytorch_model.bin")
    return next((source / name for name in names if os.path.isfile(source / name)), source / names[0])


def _existing(path: str | Path | None, missing: str, want_file: bool) -> Path:
    if path is None:
        raise BifronsError(missing)
    path = Path(path).expanduser()
    if not (os.path.isfile(path) if want_file else os.path.isdir(path)):
        raise BifronsError(f"{path} is no {'file' if want_file else 'folder'}. {missing}")
    return path


class ShapesDetector:
    """The exact detector of the world of shapes, of no use for any other image."""

    name = "shapes (the exact detector of the world of shapes)"
    official = False
    comparable = False
    hashes: Mapping[str, str] = {}

    def detect(self, image: Image.Image, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """See `Detector.detect`. Every box gets its colour, so `metadata` is not used."""
        return to_geneval(detect(image))


class WorldDetector:
    """The learned detector of the world of things, of no use for photographs."""

    official = False
    comparable = False

    def __init__(self, detector: ThingsDetector, hashes: Mapping[str, str]) -> None:
        self._detector, self.hashes = detector, hashes
        figures = [
            f"{name} {detector.report[f'none {name}']:.1%}"
            for name in ("recall", "precision", "color")
            if f"none {name}" in detector.report
        ]
        measured = f"on rendered scenes: {', '.join(figures)}" if figures else "not measured"
        self.name = f"world (the world of things' learned detector, {measured})"

    def detect(self, image: Image.Image, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """See `Detector.detect`. Every box gets its colour, so `metadata` is not used."""
        return as_row(self._detector.detect(ImageOps.exif_transpose(image).convert("RGB")))


def as_row(found: Sequence[Detection]) -> dict[str, Any]:
    """What the detector of the world of things has found as "boxes" and "colors" of a row.

    Scores are moved above 0.9, GenEval's threshold for counting: this detector has one threshold of its own
    for all prompts.
    """
    return to_geneval([replace(one, score=0.9 + 0.1 * one.score) for one in found])


class GenEvalDetector:
    """Mask2Former for objects and CLIP for their colours, combined as in GenEval's scorer."""

    def __init__(
        self,
        segmenter: Segmenter,
        colors: ColorClassifier,
        official: bool,
        options: ScorerOptions = OFFICIAL,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        self._segmenter = segmenter
        self._colors = colors
        self._options = options
        self.hashes = hashes or {}
        self.official = official and colors.verified
        self.comparable = self.official and options == OFFICIAL
        self.name = self._name(official)

    def _name(self, official: bool) -> str:
        if official and self._colors.verified:
            name = "GenEval's Mask2Former Swin-S (mmdet) with CLIP ViT-L/14 (OpenAI)"
            return name if self.comparable else f"{name}, options not the official ones: not comparable"
        if official:
            return (
                "GenEval's Mask2Former Swin-S (mmdet) with a CLIP that is not known to be OpenAI's ViT-L/14: "
                "colours not comparable"
            )
        return "Hugging Face's Mask2Former (other weights than GenEval's) with CLIP: not comparable"

    def detect(self, image: Image.Image, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """See `Detector.detect`. As in the official scorer, only boxes that the scorer checks get a colour:
        per clause with a colour, its `count` best above the threshold."""
        upright = ImageOps.exif_transpose(image).convert("RGB")
        instances = self._segmenter(upright)
        boxes: dict[str, list[list[float]]] = {}
        colors: dict[str, list[str | None]] = {}
        counts = colored_counts(metadata)
        for label, name in enumerate(self._segmenter.classes):
            of_class = (instances.labels == label).nonzero()[0]
            if not len(of_class):
                continue
            boxes_N5 = np.column_stack((instances.boxes[of_class], instances.scores[of_class]))
            boxes[name] = boxes_N5.tolist()
            colors[name] = [None] * len(of_class)
            checked = select_boxes(boxes_N5, metadata.get("tag"), self._options)[: counts.get(name, 0)]
            if len(checked):
                chosen = of_class[checked]
                classified = self._colors.classify(
                    upright, instances.boxes[chosen], instances.masks[chosen], name
                )
                for i, color in zip(checked, classified, strict=True):
                    colors[name][int(i)] = color
        return {"boxes": boxes, "colors": colors}


def colored_counts(metadata: Mapping[str, Any]) -> dict[str, int]:
    """For each class that a clause wants in a colour, how many of its best boxes are checked."""
    counts: dict[str, int] = {}
    for clause in metadata.get("include", ()):
        if "color" in clause:
            counts[clause["class"]] = max(counts.get(clause["class"], 0), clause["count"])
    return counts
