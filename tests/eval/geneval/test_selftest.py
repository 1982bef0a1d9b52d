"""The self-test passes with the exact detector, and a detector with a flaw makes exactly its faults fail."""

from collections.abc import Callable
from typing import Any

import pytest
from bifrons.blocks.errors import OptionError
from bifrons.eval.geneval.detectors import make_detector
from bifrons.eval.geneval.scoring import TAGS
from bifrons.eval.geneval.selftest import FAULTS, format_selftest, run_selftest

Change = Callable[[dict[str, Any], dict[str, Any]], None]


class Flawed:
    """The exact detector, whose findings are changed before they are scored."""

    name, comparable = "flawed", False

    def __init__(self, change: Change) -> None:
        self.change, self.exact = change, make_detector("shapes")

    def detect(self, picture, metadata):
        seen = self.exact.detect(picture, metadata)
        self.change(seen, metadata)
        return seen


def no_color_sense(seen, metadata):
    for clause in metadata["include"]:
        if "color" in clause and clause["class"] in seen["colors"]:
            seen["colors"][clause["class"]] = [clause["color"]] * len(seen["boxes"][clause["class"]])


def no_fifth(seen, metadata):
    """Never sees more things of a class than were asked for."""
    for clause in metadata["include"]:
        for part in ("boxes", "colors"):
            if clause["class"] in seen[part]:
                del seen[part][clause["class"]][clause["count"] :]


def everything_moves(seen, metadata):
    """Always finds the asked relation."""
    for clause in metadata["include"]:
        if "position" in clause and clause["class"] in seen["boxes"]:
            x, y = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[
                clause["position"][0]
            ]
            seen["boxes"][clause["class"]] = [
                [1000 * x, 1000 * y, 1000 * x + 30, 1000 * y + 30, 1.0]
                for _ in seen["boxes"][clause["class"]]
            ]


def test_every_verdict_as_planted():
    results, passed = run_selftest(cases_per_fault=2, seed=5)
    assert passed, format_selftest(results)
    assert {result.kind for result in results} == set(TAGS)
    assert [result.true_right for result in results] == [2] * len(FAULTS)
    assert format_selftest(results).endswith(f"{4 * len(FAULTS)} of {4 * len(FAULTS)} verdicts as planted")


@pytest.mark.parametrize(
    ("flaw", "missed"),
    [
        (no_color_sense, {"wrong colour", "swapped colours"}),
        (no_fifth, {"one too many"}),
        (everything_moves, {"mirrored relation"}),
    ],
)
def test_a_flawed_detector_fails_where_it_is_flawed(flaw: Change, missed: set[str]):
    results, passed = run_selftest(cases_per_fault=1, seed=1, detector=Flawed(flaw))
    assert not passed
    failed = {result.fault for result in results if not result.passed}
    assert failed == missed
    assert all(result.planted_right == 0 for result in results if result.fault in missed)
    assert format_selftest(results).count("FAILED") == sum(result.fault in missed for result in results)


class Blind:
    """Sees nothing, and keeps the pictures."""

    name, comparable = "blind", False

    def __init__(self) -> None:
        self.shown: list[bytes] = []

    def detect(self, picture, metadata):
        self.shown.append(picture.tobytes())
        return {"boxes": {}, "colors": {}}


def test_the_seed_decides():
    shown = []
    for seed in (2, 2, 3):
        detector = Blind()
        results, passed = run_selftest(1, seed, detector)
        shown.append(detector.shown)
        assert not passed
        assert not any(result.true_right for result in results)
    assert shown[0] == shown[1] != shown[2]
    with pytest.raises(OptionError, match="1 or more"):
        run_selftest(0)
