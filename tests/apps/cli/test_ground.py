"""`bifrons locate` with a trained model, and with a small random DeepSeek-VL2 whose answers don't matter."""

import json
from pathlib import Path

import pytest
from bifrons.apps.cli.main import main
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import Scene, SceneObject, box_of
from bifrons.vl2.grounding import Box, Grounding, Problem
from bifrons.vl2.pipeline import VL2Pipeline
from PIL import Image

from ...models import SHAPES_JANUS, SHAPES_VL2

MINI = str(Path(__file__).parent.parent.parent / "data" / "vl2-mini-mha")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "p.png"
    Image.new("RGB", (200, 100), "navy").save(path)
    return str(path)


@pytest.fixture
def _fixed_answer(monkeypatch) -> None:
    box = Box.from_normalized("the star", (100, 200, 500, 999), (200, 100))
    grounding = Grounding("the star", (box,), (Problem("<|det|>", 9, "a mark that is not closed"),))
    monkeypatch.setattr(VL2Pipeline, "ground", lambda *_: grounding)


@pytest.mark.usefixtures("_fixed_answer")
def test_boxes_are_printed_and_drawn(picture, tmp_path, capsys) -> None:
    assert main(["locate", picture, "the star", "-m", MINI, "-o", str(tmp_path / "out.png"), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["boxes"] == [
        {"label": "the star", "box": [20, 20, 100, 100], "normalized": [100, 200, 500, 999]}
    ]
    assert output["problems"] == [{"text": "<|det|>", "position": 9, "reason": "a mark that is not closed"}]
    with Image.open(output["file"]) as drawn:
        assert drawn.size == (200, 100)
        assert len(drawn.convert("RGB").getcolors()) > 1
    assert main(["locate", picture, "the star", "-m", MINI]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["the star: 20 20 100 100"]
    assert "not read: '<|det|>': a mark that is not closed" in printed.err


def test_a_trained_model_locates_the_right_thing(tmp_path, capsys) -> None:
    star, circle = SceneObject("star", "red", 0.25, 0.25, 0.3), SceneObject("circle", "blue", 0.7, 0.7, 0.3)
    picture = tmp_path / "scene.png"
    to_pil(Scene((star, circle), (230, 230, 230)), 128).save(picture)
    assert main(["locate", str(picture), "the red star", "-m", SHAPES_VL2, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    (box,) = output["boxes"]
    assert box["label"] == "the red star"
    assert box["normalized"] == pytest.approx([999 * side for side in box_of(star)], abs=40)
    assert main(["locate", str(picture), "the green heart", "-m", SHAPES_VL2]) == 0
    assert capsys.readouterr().out == "the green heart: not found\n"


def test_an_answer_without_boxes_is_printed_as_not_found(picture, capsys) -> None:
    assert main(["locate", picture, "the star", "-m", MINI]) == 0
    assert "the star" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["the star", "-m", SHAPES_JANUS], "does not point at things"),
        (["  ", "-m", MINI], "phrase is empty"),
        (["the star", "-m", MINI, "-o", "x.gif"], "ends in .png, .jpg, .jpeg or .webp"),
    ],
)
def test_refusals(picture, capsys, arguments, message) -> None:
    assert main(["locate", picture, *arguments]) == 2
    assert message in capsys.readouterr().err
