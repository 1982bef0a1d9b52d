"""What workers answer and locate, by small models; painting is in test_batch.py."""

import io
from pathlib import Path

import pytest
from bifrons.janus.pipeline import JanusPipeline
from bifrons.scale.models import ModelChoice
from bifrons.scale.rows import Row, Source
from bifrons.scale.tasks import Ask, Locate, Paint, Result, Task
from bifrons.scale.worker import Worker
from PIL import Image


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two pictures, beside the list and within it, and one that isn't there."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    lines = ['{"image": "red.png", "id": "a"}', '{"image": "gone.png"}', '{"image": "./red.png", "id": "b"}']
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def results(task: Task, path: Path) -> list[Result]:
    rows: list[Row] = list(Source(path, task.columns, task.check, 3).rows())
    assert [row.problem for row in rows] == [None] * len(rows)
    return Worker(task, "cpu").results(rows)


def test_answers_are_those_of_each_row_alone(rows: Path, janus_mini: Path) -> None:
    choice = ModelChoice("janus", str(janus_mini), "float32")
    task = Ask(choice, rows.parent, "what is it?", options={"max_new_tokens": 6, "temperature": 1.0})
    first, gone, last = results(task, rows)
    assert "gone.png" in gone.record["error"]
    pipe = JanusPipeline.from_pretrained(janus_mini, device="cpu", parts="read")
    for result in (first, last):
        record = result.record
        answer = pipe.ask(rows.parent / "red.png", "what is it?", 6, 1.0, seed=record["seed"])
        assert record["answer"] == answer
        assert record["image"].endswith("red.png")
        assert record["max_new_tokens"] == 6
    assert first.record["seed"] != last.record["seed"]


def test_boxes_of_phrases(rows: Path) -> None:
    mini = Path(__file__).parents[1] / "data" / "vl2-mini-mla"
    task = Locate(ModelChoice("vl2", str(mini), "float32"), rows.parent, "the red star")
    first, gone, last = results(task, rows)
    assert "gone.png" in gone.record["error"]
    assert first.record["phrase"] == "the red star"
    assert {**last.record, "id": "a", "image": first.record["image"]} == first.record
    row = Row(0, "c", content={"image": b"png", "phrase": "x"})
    text = "<|ref|>x<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|><|ref|>y<|/ref|><|det|>[[1]]<|/det|>"
    record = task.open("cpu").finish(row, ((40, 30), text)).record
    assert (record["id"], record["image"]) == ("c", None)
    assert record["boxes"] == [{"label": "x", "box": [0, 0, 40, 15]}]
    assert len(record["problems"]) == 1


def test_a_prompt_that_is_too_long_fails_alone(tmp_path: Path, janus_mini: Path) -> None:
    task = Paint(ModelChoice("janus", str(janus_mini), "float32"), {"guidance_scale": 1})
    path = tmp_path / "rows.csv"
    path.write_text("prompt\na star\n" + "star " * 20_000 + "\n")
    good, long = results(task, path)
    assert Image.open(io.BytesIO(good.png)).info["prompt"] == "a star"
    assert good.record["guidance_scale"] == 1.0
    assert "error" in long.record
    assert not long.png
