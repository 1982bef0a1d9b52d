"""The factory and the protocol: what each kind gives, what it asks for, and what it may be called."""

import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.eval.geneval.detectors import GenEvalDetector, WorldDetector, make_detector
from bifrons.eval.geneval.mask2former import CLASSES, Instances
from bifrons.eval.geneval.options import OFFICIAL, parse_options, select_boxes
from bifrons.eval.geneval.scoring import score_row
from bifrons.nano.world.catalog import PAINTS, things
from bifrons.nano.world.detector import Detection
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import Scene, SceneObject
from bifrons.nano.world.things_detector import CenterNet, save_detector
from PIL import Image


def test_shapes_sees_the_small_world():
    scene = Scene(
        (SceneObject("star", "red", 0.3, 0.3, 0.3), SceneObject("circle", "blue", 0.7, 0.7, 0.3)),
        (204, 208, 212),
    )
    detector = make_detector("shapes")
    seen = detector.detect(to_pil(scene), {"include": []})
    assert seen["colors"] == {"star": ["red"], "circle": ["blue"]}
    assert seen["boxes"]["star"][0][:4] == pytest.approx([19, 19, 58, 58], abs=2)
    assert not detector.comparable


@pytest.mark.parametrize("option", [{"weights": "x"}, {"clip": "x"}, {"device": "cuda"}])
def test_shapes_takes_no_options(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        make_detector("shapes", **option)


def test_the_world_detector_says_what_it_takes_and_where_its_weights_are_missing(tmp_path):
    with pytest.raises(OptionError, match="'world' takes no clip: it tells colours by itself"):
        make_detector("world", clip=tmp_path)
    with pytest.raises(OptionError, match="'world' takes no crop: it has no colour classifier"):
        make_detector("world", options=parse_options(["crop=0"]))
    with pytest.raises(BifronsError, match=r"has no weights in .*; train it with `python -m"):
        make_detector("world", weights=tmp_path, device="cpu")


def test_the_world_detector_says_its_errors_and_counts_above_every_threshold(tmp_path):
    torch.manual_seed(0)
    report = {"none recall": 0.9712, "none precision": 0.98, "none color": 1.0}
    save_detector(tmp_path, CenterNet(len(things()), len(PAINTS), 16), 16, report)
    detector = make_detector("world", weights=tmp_path, device="cpu")
    assert not detector.official
    assert not detector.comparable
    assert "on rendered scenes: recall 97.1%, precision 98.0%, color 100.0%" in detector.name
    assert len(detector.hashes["detector"]) == 64

    class Found:
        report: ClassVar[dict[str, float]] = {}

        def detect(self, image: Image.Image) -> list[Detection]:
            return [Detection("cat", "red", (0, 0, 9, 9), score) for score in (0.99, 0.31)]

    detector = WorldDetector(Found(), {})  # pyright: ignore
    assert "not measured" in detector.name
    boxes = detector.detect(Image.new("RGB", (32, 32)), {})["boxes"]["cat"]
    assert [len(select_boxes(np.array(boxes), tag, OFFICIAL)) for tag in ("counting", "colors")] == [2, 2]


def test_unknown_kind():
    with pytest.raises(OptionError, match="accepted: shapes, world, mask2former-official, mask2former-hf"):
        make_detector("yolo")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mask2former-official", r"(?s)swin-s-p4-w7-224.*743b7d99015f1224.*--detector-weights"),
        ("mask2former-hf", r"(?s)facebook/mask2former-swin-small-coco-instance.*--detector-weights"),
    ],
)
def test_missing_weights_say_what_to_get(kind, expected, tmp_path):
    with pytest.raises(BifronsError, match=expected):
        make_detector(kind)
    with pytest.raises(BifronsError, match=expected):
        make_detector(kind, weights=tmp_path / "none.pth", clip=tmp_path)


def test_missing_clip_says_what_to_get(tmp_path):
    (tmp_path / "m.pth").touch()
    with pytest.raises(BifronsError, match=r"(?s)openai/clip-vit-large-patch14.*--clip-weights"):
        make_detector("mask2former-official", weights=tmp_path / "m.pth")


def test_a_missing_package_says_how_to_install(tmp_path, monkeypatch):
    (tmp_path / "m.pth").touch()
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, "cv2", None)  # makes its import fail
    with pytest.raises(BifronsError, match=r"pip install 'bifrons\[eval\]'"):
        make_detector("mask2former-official", weights=tmp_path / "m.pth", clip=tmp_path, device="cpu")


CAT, COW, SIZE = CLASSES.index("cat"), CLASSES.index("cow"), (40, 60)


class FixedSegmenter:
    """Three cows (scores 0.95, 0.5 and 0.2, in another order) and a cat, whatever the picture."""

    classes = CLASSES

    def __call__(self, picture: Image.Image) -> Instances:
        self.size = picture.size
        boxes = np.array([[0, 0, 9, 9], [10, 0, 19, 9], [20, 0, 29, 9], [30, 0, 39, 9]], np.float32)
        masks = np.zeros((4, *SIZE), bool)
        for i in range(4):
            masks[i, 0:9, 10 * i : 10 * i + 9] = True
        scores = np.array([0.5, 0.8, 0.95, 0.2], np.float32)
        return Instances(boxes, scores, np.array([COW, CAT, COW, COW]), masks)


class NotingColors:
    """Calls everything white, and remembers what it was asked."""

    def __init__(self, verified: bool = True) -> None:
        self.verified = verified
        self.asked: list[tuple[str, list[float]]] = []

    def classify(self, picture, boxes, masks, name) -> list[str]:
        assert all(mask[0, int(box[0])] for box, mask in zip(boxes, masks, strict=True))
        self.asked.append((name, [float(box[0]) for box in boxes]))
        return ["white"] * len(boxes)


def metadata(tag: str, count: int, **more) -> dict:
    return {"tag": tag, "prompt": "p", "include": [{"class": "cow", "count": count, **more}]}


@pytest.mark.parametrize(
    ("clause", "asked", "named"),
    [
        (metadata("colors", 1, color="white"), [("cow", [20.0])], [None, "white", None]),
        (metadata("colors", 3, color="white"), [("cow", [20.0, 0.0])], ["white", "white", None]),
        (metadata("counting", 2, color="white"), [("cow", [20.0])], [None, "white", None]),
        (metadata("counting", 2), [], [None, None, None]),
    ],
)
def test_colours_are_asked_for_what_the_scorer_looks_at(clause, asked, named):
    colors = NotingColors()
    detector = GenEvalDetector(FixedSegmenter(), colors, official=True)  # type: ignore[arg-type]
    seen = detector.detect(Image.new("RGB", (SIZE[1], SIZE[0])), clause)
    assert colors.asked == asked
    assert seen["colors"]["cow"] == named
    assert [round(box[4], 6) for box in seen["boxes"]["cow"]] == [0.5, 0.95, 0.2]
    assert seen["boxes"].keys() == {"cow", "cat"}
    row = {"filename": "f", "metadata": clause, **seen}
    assert score_row(row).correct == (clause["tag"] == "colors" and clause["include"][0]["count"] == 1)


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path):
    picture, exif = Image.new("RGB", (60, 40)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    segmenter = FixedSegmenter()
    GenEvalDetector(segmenter, NotingColors(), True).detect(  # type: ignore[arg-type]
        Image.open(tmp_path / "turned.jpg"), {"include": []}
    )
    assert segmenter.size == (40, 60)


@pytest.mark.parametrize(
    ("official", "verified"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_only_the_official_pair_may_be_called_geneval(official, verified):
    detector = GenEvalDetector(FixedSegmenter(), NotingColors(verified), official)  # type: ignore[arg-type]
    assert detector.comparable == (official and verified)
    assert detector.comparable != ("not comparable" in detector.name)
