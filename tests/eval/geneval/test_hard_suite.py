"""The harder suite of shapes: the exact detector's verdicts on right and on wrong pictures, and a run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bifrons.eval.geneval.scoring import score_row
from bifrons.eval.geneval.suites import hard_prompts, lines_sha256, shapes_prompts
from bifrons.nano.world.detector import detect, to_geneval
from bifrons.nano.world.levels import HARD_KINDS, sample_hard_case
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import Scene
from bifrons.nano.world.sentences import Case


def verdict(case: Case, scene: Scene) -> tuple[bool, str]:
    found = to_geneval(detect(to_pil(scene, 128)))
    result = score_row({"filename": "x", "metadata": case.metadata, **found})
    return result.correct, result.reason


def spoilt(case: Case, scene: Scene) -> Scene:
    """Without a thing; with two things of a chain exchanged; with what was not to be there."""
    objects = scene.objects
    if case.metadata["tag"] == "many":
        return replace(scene, objects=objects[1:])
    if case.metadata["tag"] == "chain":
        first, second = objects[:2]
        moved = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
        return replace(scene, objects=(*moved, *objects[2:]))
    (banned,) = case.metadata["exclude"]
    fields = {"color": banned["color"]} if "color" in banned else {"shape": banned["class"]}
    return replace(scene, objects=(replace(objects[0], **fields), *objects[1:]))


@pytest.mark.parametrize("kind", HARD_KINDS)
def test_verdicts(kind: str) -> None:
    rng, reasons = Random(5), ""
    for _ in range(12):
        case = sample_hard_case(kind, rng)
        assert verdict(case, case.scene) == (True, "")
        correct, reason = verdict(case, spoilt(case, case.scene))
        assert not correct, case.metadata["prompt"]
        reasons += reason
    assert {"many": "at least", "chain": "wanted", "negation": "fewer than 1 allowed, 1 detected"}[
        kind
    ] in reasons


def test_one_too_many() -> None:
    metadata = {"tag": "many", "include": [{"class": "star", "count": 5}],
                "exclude": [{"class": "star", "count": 6}], "prompt": "five stars"}  # fmt: skip
    row: dict[str, Any] = {"filename": "x", "metadata": metadata, "colors": {}}
    boxes = [[10 * i, 0, 10 * i + 5, 5, 0.95] for i in range(6)]
    assert score_row({**row, "boxes": {"star": boxes[:5]}}).correct
    assert score_row({**row, "boxes": {"star": boxes}}).reason == "star: fewer than 6 allowed, 6 detected"


def test_a_color_that_is_not_to_be_there() -> None:
    metadata = {"tag": "negation", "include": [{"class": "star", "count": 1}],
                "exclude": [{"class": "star", "count": 1, "color": "red"}], "prompt": "not red"}  # fmt: skip
    boxes = {"star": [[0, 0, 5, 5, 0.95], [9, 0, 14, 5, 0.95]]}
    for colors, reason in (
        (["blue", "pink"], ""),
        (["blue", "red"], "red star: fewer than 1 allowed, 1 detected"),
    ):
        row = {"filename": "x", "metadata": metadata, "boxes": boxes, "colors": {"star": colors}}
        assert score_row(row).reason == reason


def test_the_suites_sentences_stay_what_they_are() -> None:
    rows = hard_prompts(0)
    assert [row["tag"] for row in rows] == [kind for kind in HARD_KINDS for _ in range(100)]
    assert len({row["prompt"] for row in rows}) == 300
    assert hard_prompts(1) != rows == hard_prompts(0)
    assert (
        lines_sha256(shapes_prompts(0)) == "5a0878e7f456e8a6589c0b02198a7716b004e9355fd8e0f20411127616443c94"
    )
    assert lines_sha256(rows) == "c1654c96cf5b831bd2f4e780b72c0997688b0e873123bc763b599cf602a09a7c"


def test_a_run(tmp_path: Path, janus_mini: Path, bifrons_main: Callable[..., int], capsys: Any) -> None:
    root = tmp_path / "run"
    arguments = ("eval", "run", "-R", root, "--suite", "shapes-hard", "-m", janus_mini, "--limit", "6",
                 "--images-per-prompt", "1", "--device", "cpu", "--processes", "1")  # fmt: skip
    assert bifrons_main(*arguments) == 0
    out = capsys.readouterr().out
    assert "mean of 3 kinds\n" in out
    summary = json.loads((root / "summary.json").read_bytes())
    assert list(summary["kinds"]) == list(HARD_KINDS)
    assert [summary["kinds"][kind]["prompts"] for kind in HARD_KINDS] == [2, 2, 2]
    report = (root / "report.md").read_text()
    assert "the suite is shapes-hard" in report
    assert "GenEval's order: five or six things, chain of relations, negation, overall." in report
    assert bifrons_main("eval", "compare", root, root) == 0
    assert "negation" in capsys.readouterr().out
