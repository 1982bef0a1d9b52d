"""The options of the published scorer, and its words for failures."""

import json
from pathlib import Path

import numpy as np
import pytest
from bifrons.apps.cli.main import main
from bifrons.blocks.errors import OptionError
from bifrons.eval.geneval.detectors import GenEvalDetector, make_detector
from bifrons.eval.geneval.options import OFFICIAL, ScorerOptions, overlap, parse_options, select_boxes
from bifrons.eval.geneval.scoring import relations, score_row


def row_of(include, boxes, colors=None, tag="single_object", exclude=None) -> dict:
    metadata = {"tag": tag, "prompt": "p", "include": include, **({"exclude": exclude} if exclude else {})}
    return {"filename": "f", "metadata": metadata, "boxes": boxes, "colors": colors or {}}


def test_options_are_read_as_the_script_reads_them():
    assert parse_options([]) == OFFICIAL
    assert OFFICIAL.changed() == {}
    options = parse_options(
        ["threshold=0.4", "max_objects=3", "bgcolor=original", "crop=0", "max_overlap=.5"]
    )
    assert options == ScorerOptions(
        threshold=0.4, max_objects=3, bgcolor="original", crop=False, max_overlap=0.5
    )
    assert options.changed().keys() == {"threshold", "max_objects", "bgcolor", "crop", "max_overlap"}
    assert ScorerOptions().background == (0x99, 0x99, 0x99)
    for wrong in (
        "threshold",
        "threshold=x",
        "speed=1",
        "threshold=2",
        "max_objects=0",
        "crop=yes",
        "bgcolor=9",
    ):
        with pytest.raises(OptionError, match="accepted"):
            parse_options([wrong])


def test_thresholds_and_the_number_of_objects():
    boxes = {"cow": [[0, 0, 9, 9, score] for score in (0.95, 0.5, 0.2)]}
    row = row_of([{"class": "cow", "count": 3}], boxes)
    assert not score_row(row).correct
    assert score_row(row, ScorerOptions(threshold=0.1)).correct
    assert not score_row(row, ScorerOptions(threshold=0.1, max_objects=2)).correct
    counting = row_of([{"class": "cow", "count": 2}], boxes, tag="counting")
    assert not score_row(counting).correct
    assert score_row(counting, ScorerOptions(counting_threshold=0.4)).correct


def official_selection(boxes: np.ndarray, threshold: float, limit: int, most: float) -> list[int]:
    """The published scorer's loop."""
    ordering = np.argsort(boxes[:, 4])[::-1]
    ordering = ordering[boxes[ordering, 4] > np.float32(threshold)][:limit].tolist()
    chosen = []
    while ordering:
        best = ordering.pop(0)
        chosen.append(best)
        ordering = [i for i in ordering if most == 1 or iou(boxes[best], boxes[i]) < most]
    return chosen


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """On a grid of pixels: a box [x0, y0, x1, y1] covers x1 - x0 + 1 columns."""
    grid = np.zeros((2, 64, 64), bool)
    for plane, (x0, y0, x1, y1, _) in zip(grid, (a.astype(int), b.astype(int)), strict=True):
        plane[y0 : y1 + 1, x0 : x1 + 1] = True
    return float(grid.all(0).sum() / grid.any(0).sum())


def test_overlapping_boxes_are_dropped_as_in_the_published_loop():
    rng = np.random.default_rng(0)
    for _ in range(100):
        corner, side = rng.integers(0, 30, (12, 2)), rng.integers(4, 30, (12, 2))
        boxes = np.column_stack([corner, corner + side, rng.random(12)]).astype(np.float32)
        a, b = boxes[:2]
        assert overlap(a, b) == pytest.approx(iou(a, b))
        for most in (0.2, 0.5, 1.0):
            options = ScorerOptions(max_overlap=most, max_objects=8)
            assert select_boxes(boxes, "colors", options).tolist() == official_selection(boxes, 0.3, 8, most)


def test_the_slack_of_positions():
    a, b = (np.array(box, np.float32) for box in ([0, 0, 10, 10, 1], [9, 14, 19, 24, 1]))
    assert relations(a, b) == {"above"}
    assert relations(a, b, 0.0) == {"left of", "above"}


def test_reasons_in_the_published_words():
    include = [
        {"class": "cow", "count": 2},
        {"class": "dog", "count": 1, "color": "red"},
        {"class": "cat", "count": 1, "position": ["left of", 0]},
        {"class": "car", "count": 1},
        {"class": "cup", "count": 1, "position": ["above", 3]},
        {"class": "bed", "count": 1, "position": ["above", 3]},
    ]
    box = [20, 20, 30, 30, 0.95]
    boxes = {name: [box] for name in ("cow", "dog", "cat", "car", "bed")} | {"cup": [[60, 60, 70, 70, 0.9]]}
    row = row_of(include, boxes, {"dog": ["black"]}, exclude=[{"class": "cow", "count": 1}])
    assert score_row(row, official_reasons=True).reason.splitlines() == [
        "expected cow>=2, found 1",
        "expected red dog>=1, found 0 red; and 1 black",
        "no target for cat to be left of",
        "expected cup above target, found right of and below target",
        "expected bed above target, found  target",
        "expected cow<1, found 1",
    ]
    assert score_row(row).reason.startswith("cow: at least 2 wanted, 1 detected\n")
    two = row_of(
        [{"class": "cow", "count": 3, "color": "red"}], {"cow": [box] * 3}, {"cow": ["white", "red", "red"]}
    )
    assert score_row(two, official_reasons=True).reason == (
        "expected red cow>=3, found 2 red; and 2 red, 1 white"
    )


def test_other_options_are_never_called_geneval():
    class Colors:
        verified = True

    for options, comparable in ((OFFICIAL, True), (ScorerOptions(threshold=0.4), False)):
        detector = GenEvalDetector(None, Colors(), True, options)  # type: ignore[arg-type]
        assert detector.comparable is comparable
        assert ("not comparable" in detector.name) is not comparable
    with pytest.raises(OptionError, match="takes no bgcolor or crop"):
        make_detector("shapes", options=ScorerOptions(bgcolor="white", crop=False))


def test_british_spelling():
    assert parse_options(["bgcolour=grey"]) == parse_options(["bgcolor=gray"])
    assert parse_options(["bgcolour=grey"]).background == (128, 128, 128)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row_of([{"class": "cow", "count": 1}], {"cow": [[0, 0, 9, 9, 0.35]]})]
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "score", "--detections", str(source), "--output", str(tmp_path / "results.jsonl")]
    assert main([*command, "--options", "threshold=0.4", "--official-reasons"]) == 0
    assert json.loads((tmp_path / "results.jsonl").read_text())["reason"] == "expected cow>=1, found 0"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["overall"], summary["options"]["threshold"]) == (0, 0.4)
    assert summary["schema"] == 2
    assert summary["breakdown"]["class"] == {"cow": {"correct": 0, "images": 1, "prompts": 1}}
    before = (tmp_path / "results.jsonl").read_bytes()
    assert main(command) == 2
    assert "results.jsonl exists; accepted: another --output, or --force" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["overall"] == 1
    capsys.readouterr()
    assert main([*command, "--options", "speed=1"]) == 2
    assert "threshold, counting_threshold" in capsys.readouterr().err
