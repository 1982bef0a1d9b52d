"""The detectors behind one protocol, and the factory that makes them by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageOps

from ...blocks.device import resolve_device
from ...blocks.errors import BifronsError, OptionError
from ...nano.world.detector import detect, to_geneval
from ..transformers_loading import import_transformers, quiet
from .clip_colors import MISSING_CLIP, ColorClassifier, load_colors
from .mask2former import MISSING_HF, MISSING_OFFICIAL, Instances, Segmenter, load_folder, load_official
from .scoring import COUNTING_THRESHOLD, THRESHOLD, keep

KINDS = ("shapes", "mask2former-official", "mask2former-hf")


class Detector(Protocol):
    """Finds things in pictures. `comparable`: scores from it may be called GenEval."""

    name: str
    comparable: bool

    def detect(self, picture: Image.Image, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """{"boxes": {class: [[x0, y0, x1, y1, score], ...]}, "colors": {class: [name, ...]}}.

        Boxes in pixels. A class's colours match its boxes in number; None where no clause of `metadata`
        asks.
        """
        ...


def make_detector(
    kind: str, weights: str | Path | None = None, clip: str | Path | None = None, device: str | None = None
) -> Detector:
    """A detector by name; nothing is ever taken in another's place.

    kind: "shapes", the small world's exact detector, which needs no weights and runs on the CPU;
    "mask2former-official", GenEval's own, with `weights` its mmdet `.pth`; "mask2former-hf", with `weights`
    a folder of transformers' Mask2Former. Both Mask2Formers take colours from CLIP in the folder `clip`.
    Raises OptionError for another kind or an option that the kind has no use for, and BifronsError (saying
    what to get, and which flag takes it) where weights, or the package transformers, are missing.
    """
    if kind not in KINDS:
        raise OptionError(f"detector is {kind!r}; accepted: {', '.join(KINDS)}")
    if kind == "shapes":
        given = {"weights": weights, "clip": clip, "device": None if device == "cpu" else device}
        useless = [name for name, value in given.items() if value is not None]
        if useless:
            raise OptionError(
                f"the detector 'shapes' takes no {' or '.join(useless)}: it runs on the CPU alone"
            )
        return ShapesDetector()
    official = kind == "mask2former-official"
    source = _existing(weights, MISSING_OFFICIAL if official else MISSING_HF, want_file=official)
    folder = _existing(clip, MISSING_CLIP, want_file=False)
    place = resolve_device(device)
    transformers = import_transformers()
    with quiet(transformers):
        model = load_official(source, transformers) if official else load_folder(source, transformers)
        colors = load_colors(folder, transformers)
    model.to(place)
    colors.model.to(place)
    return GenEvalDetector(Segmenter(model), colors, official)


def _existing(path: str | Path | None, missing: str, want_file: bool) -> Path:
    if path is None:
        raise BifronsError(missing)
    found = Path(path).expanduser()
    if not (found.is_file() if want_file else found.is_dir()):
        raise BifronsError(f"{found} is no {'file' if want_file else 'folder'}. {missing}")
    return found


class ShapesDetector:
    """The exact detector of the small world; for any other picture it says nothing of use."""

    name = "shapes (the small world's exact detector)"
    comparable = False

    def detect(self, picture: Image.Image, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """As `Detector.detect`; every colour is named, so `metadata` changes nothing. See nano.detector."""
        return to_geneval(detect(picture))


class GenEvalDetector:
    """Mask2Former for things and CLIP for their colours, as GenEval's scorer puts them together."""

    def __init__(self, segmenter: Segmenter, colors: ColorClassifier, official: bool) -> None:
        self._segmenter = segmenter
        self._colors = colors
        self.comparable = official and colors.verified
        self.name = self._name(official)

    def _name(self, official: bool) -> str:
        if self.comparable:
            return "GenEval's Mask2Former Swin-S (mmdet) with CLIP ViT-L/14 (OpenAI)"
        if official:
            return (
                "GenEval's Mask2Former Swin-S (mmdet) with a CLIP that is not known to be OpenAI's ViT-L/14: "
                "colours not comparable"
            )
        return "Hugging Face's Mask2Former (other weights than GenEval's) with CLIP: not comparable"

    def detect(self, picture: Image.Image, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """As `Detector.detect`. Colours are looked at for the boxes that the scorer will look at, as the
        official scorer does: per clause with a colour, its `count` best above the threshold."""
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        seen = self._segmenter(upright)
        boxes: dict[str, list[list[float]]] = {}
        colors: dict[str, list[str | None]] = {}
        asked = colored_counts(metadata)
        for label, name in enumerate(self._segmenter.classes):
            mine = (seen.labels == label).nonzero()[0]
            if not len(mine):
                continue
            boxes[name] = [[*map(float, seen.boxes[i]), float(seen.scores[i])] for i in mine]
            colors[name] = [None] * len(mine)
            if name in asked:
                self._name_colors(upright, seen, mine, asked[name], metadata, name, colors[name])
        return {"boxes": boxes, "colors": colors}

    def _name_colors(
        self,
        picture: Image.Image,
        seen: Instances,
        mine: Any,
        count: int,
        metadata: Mapping[str, Any],
        name: str,
        into: list[str | None],
    ) -> None:
        threshold = COUNTING_THRESHOLD if metadata.get("tag") == "counting" else THRESHOLD
        wanted = keep(seen.scores[mine], threshold)[:count]
        if len(wanted):
            which = mine[wanted]
            named = self._colors.names(picture, seen.boxes[which], seen.masks[which], name)
            for place, color in zip(wanted, named, strict=True):
                into[int(place)] = color


def colored_counts(metadata: Mapping[str, Any]) -> dict[str, int]:
    """For each class whose colour a clause asks for, how many of its best boxes are looked at."""
    counts: dict[str, int] = {}
    for clause in metadata.get("include", ()):
        if "color" in clause:
            counts[clause["class"]] = max(counts.get(clause["class"], 0), clause["count"])
    return counts
