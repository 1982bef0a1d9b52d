"""A self-test of renderer, detector and scorer with planted faults.

For each kind of fault, scenes of the world of shapes that fulfil a sentence are rendered as they are and
with the fault planted. The true image must be scored as correct, the faulty one as GenEval has it: as
wrong, except for an extra object, which only counting forbids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from PIL import Image

from ...blocks.errors import OptionError
from ...nano.world.renderer import to_pil
from ...nano.world.scene import (
    COLORS,
    HELD_OUT_COLORINGS,
    SHAPES,
    TRAINING_OBJECTS,
    Scene,
    SceneObject,
    box_of,
    place,
    relation,
)
from ...nano.world.sentences import Case, sample_case
from .detectors import Detector, make_detector
from .scoring import score_row

SIDE = 128
_TRIES = 200


@dataclass(frozen=True)
class Fault:
    """A fault in a scene. plant: gives the faulty scene, or None where the scene does not allow it.
    breaks: whether GenEval's rules count it as wrong."""

    name: str
    kind: str
    plant: Callable[[Case, Random], Scene | None]
    breaks: bool = True


@dataclass(frozen=True)
class FaultResult:
    """Verdicts for one kind of fault.

    true_right, planted_right: how many true and how many faulty images were scored as expected. wrong: a
    description of each unexpected verdict.
    """

    fault: str
    kind: str
    expected: str
    cases: int
    true_right: int
    planted_right: int
    wrong: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all verdicts were as expected."""
        return self.true_right == self.planted_right == self.cases


def _without_one(case: Case, rng: Random) -> Scene:
    drop = rng.randrange(len(case.scene.objects))
    return replace(case.scene, objects=tuple(t for i, t in enumerate(case.scene.objects) if i != drop))


def _with_one_more(case: Case, rng: Random) -> Scene | None:
    """Another object of the first one's shape and colour; all are placed anew."""
    objects = case.scene.objects
    if len(objects) == TRAINING_OBJECTS:
        return None
    shapes, colors = ([getattr(obj, field) for obj in (*objects, objects[0])] for field in ("shape", "color"))
    return replace(place(rng, shapes, colors, case.scene.aspect), background=case.scene.background)


def _with_a_stranger(case: Case, rng: Random) -> Scene:
    """Another object, of a shape that the sentence does not name; all are placed anew."""
    named = {clause["class"] for clause in case.metadata["include"]}
    shape = rng.choice([name for name in SHAPES if name not in named])
    shapes = [*(obj.shape for obj in case.scene.objects), shape]
    colors = [*(obj.color for obj in case.scene.objects), _another_color(rng, shape)]
    return replace(place(rng, shapes, colors, case.scene.aspect), background=case.scene.background)


def _other_color(case: Case, rng: Random) -> Scene:
    return _recolored(
        case.scene, 0, _another_color(rng, case.scene.objects[0].shape, case.scene.objects[0].color)
    )


def _swapped_colors(case: Case, rng: Random) -> Scene:
    first, second = case.scene.objects
    return _recolored(_recolored(case.scene, 0, second.color), 1, first.color)


def _other_shape(case: Case, rng: Random) -> Scene:
    """One object takes a shape that the sentence does not name."""
    named = {clause["class"] for clause in case.metadata["include"]}
    index = rng.randrange(len(case.scene.objects))
    obj = case.scene.objects[index]
    shape = rng.choice([name for name in SHAPES if name not in named])
    return _exchanged(case.scene, index, replace(obj, shape=shape))


def _mirrored(case: Case, rng: Random) -> Scene | None:
    """The two objects swapped, or None where the result is not clearly another relation."""
    first, second = case.scene.objects
    objects = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
    named = case.metadata["include"][1]["position"][0]
    actual = relation(box_of(objects[0]), box_of(objects[1]))
    inside = all(0.01 < edge < 0.99 for obj in objects for edge in box_of(obj))
    return replace(case.scene, objects=objects) if actual and named not in actual and inside else None


def _recolored(scene: Scene, index: int, color: str) -> Scene:
    return _exchanged(scene, index, replace(scene.objects[index], color=color))


def _exchanged(scene: Scene, index: int, obj: SceneObject) -> Scene:
    return replace(scene, objects=(*scene.objects[:index], obj, *scene.objects[index + 1 :]))


def _another_color(rng: Random, shape: str, than: str | None = None) -> str:
    return rng.choice([name for name in COLORS if name != than and (shape, name) not in HELD_OUT_COLORINGS])


FAULTS: tuple[Fault, ...] = (
    Fault("missing object", "single_object", _without_one),
    Fault("missing object", "two_object", _without_one),
    Fault("one object is another", "two_object", _other_shape),
    Fault("extra object", "two_object", _with_a_stranger, breaks=False),
    Fault("one too few", "counting", _without_one),
    Fault("one too many", "counting", _with_one_more),
    Fault("wrong colour", "colors", _other_color),
    Fault("mirrored relation", "position", _mirrored),
    Fault("missing object", "position", _without_one),
    Fault("swapped colours", "color_attr", _swapped_colors),
    Fault("wrong colour", "color_attr", _other_color),
)


def run_selftest(
    cases_per_fault: int = 20, seed: int = 0, detector: Detector | None = None
) -> tuple[list[FaultResult], bool]:
    """Plant every fault in `cases_per_fault` scenes; returns the verdicts per fault, and whether all pass.

    detector: None takes the exact one of the world of shapes. Raises OptionError for fewer than one case.
    """
    if cases_per_fault < 1:
        raise OptionError(f"cases_per_fault is {cases_per_fault}; accepted: 1 or more")
    detector = detector or make_detector("shapes")
    results = [
        _run(fault, cases_per_fault, Random(f"{seed}-{fault.kind}-{fault.name}"), detector)
        for fault in FAULTS
    ]
    return results, all(result.passed for result in results)


def _run(fault: Fault, cases: int, rng: Random, detector: Detector) -> FaultResult:
    true_right = planted_right = 0
    wrong: list[str] = []
    for _ in range(cases):
        case, faulty = _planted(fault, rng)
        for scene, expected in ((case.scene, True), (faulty, not fault.breaks)):
            correct, reason = _judge(to_pil(scene, SIDE), case.metadata, detector)
            if correct == expected:
                true_right += scene is case.scene
                planted_right += scene is faulty
            else:
                what = "as it should be" if scene is case.scene else fault.name
                wrong.append(
                    f"{case.metadata['prompt']!r}, {what}: scored {correct}; {reason or 'no failure'}"
                )
    expected = "wrong" if fault.breaks else "right"
    return FaultResult(fault.name, fault.kind, expected, cases, true_right, planted_right, tuple(wrong))


def _planted(fault: Fault, rng: Random) -> tuple[Case, Scene]:
    for _ in range(_TRIES):
        case = sample_case(fault.kind, rng)
        faulty = fault.plant(case, rng)
        if faulty is not None:
            return case, faulty
    raise AssertionError(f"no scene of kind {fault.kind} has room for the fault {fault.name!r}")


def _judge(image: Image.Image, metadata: dict[str, Any], detector: Detector) -> tuple[bool, str]:
    verdict = score_row({"filename": "selftest", "metadata": metadata, **detector.detect(image, metadata)})
    return verdict.correct, verdict.reason


def format_selftest(results: Sequence[FaultResult]) -> str:
    """The results as plain text, with up to three unexpected verdicts per fault."""
    lines = [f"{'kind':<14} {'planted':<22} {'must be':<8} {'true pictures':>14} {'planted ones':>14}"]
    for result in results:
        counts = [f"{right} of {result.cases}" for right in (result.true_right, result.planted_right)]
        mark = "" if result.passed else "  FAILED"
        lines.append(
            f"{result.kind:<14} {result.fault:<22} {result.expected:<8} {counts[0]:>14} {counts[1]:>14}{mark}"
        )
        lines += [f"    {verdict}" for verdict in result.wrong[:3]]
    right = sum(result.true_right + result.planted_right for result in results)
    total = sum(2 * result.cases for result in results)
    lines.append(f"{right} of {total} verdicts as planted")
    return "\n".join(lines)
