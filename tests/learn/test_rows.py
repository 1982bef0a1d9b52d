"""Training data in the forms that people have it in, and what is said about bad rows."""

import json
from pathlib import Path

import pytest
from bifrons.blocks.errors import OptionError
from bifrons.learn.rows import PaintRow, ReadRow, read_rows
from PIL import Image


def paint(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)


def test_pictures_with_captions(tmp_path) -> None:
    paint(tmp_path, "a.png", "sub/b.jpg", "c.webp", "d.png")
    (tmp_path / "a.txt").write_text("a red star\n")
    (tmp_path / "sub" / "b.txt").write_text("two hearts")
    (tmp_path / "c.txt").write_text("  \n")
    rows, faults = read_rows(tmp_path)
    assert rows == [
        PaintRow("a.png", "a red star", tmp_path / "a.png"),
        PaintRow("sub/b.jpg", "two hearts", tmp_path / "sub" / "b.jpg"),
    ]
    assert [str(fault) for fault in faults] == [
        "c.webp: c.txt is empty",
        "d.png: it has no caption; write one to d.txt beside it",
    ]


@pytest.mark.parametrize("key", ["text", "prompt", "caption"])
def test_an_imagefolder_of_hugging_face(tmp_path, key) -> None:
    paint(tmp_path, "a.png", "b.png")
    lines = [{"file_name": "a.png", key: "a star"}, {"file_name": "b.png", key: "a heart", "other": 3}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows, faults = read_rows(tmp_path)
    assert rows == [
        PaintRow("metadata.jsonl line 1", "a star", tmp_path / "a.png"),
        PaintRow("metadata.jsonl line 2", "a heart", tmp_path / "b.png"),
    ]
    assert not faults
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text(f"file_name,{key}\na.png,a star\n")
    assert read_rows(tmp_path)[0] == [PaintRow("metadata.csv line 2", "a star", tmp_path / "a.png")]


def test_conversations_name_pictures_relative_to_their_file(tmp_path) -> None:
    paint(tmp_path, "a.png")
    question = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What is it?"}]
    official = {"role": "<|User|>", "content": "<image>\nWhat?", "images": ["a.png"]}
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "a star"}]},
        {"messages": [official, {"role": "<|Assistant|>", "content": "a star"}]},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found, faults = read_rows(tmp_path / "rows.json")
    assert not faults
    first, second = (row.messages[0] for row in found if isinstance(row, ReadRow))
    assert first["content"][0]["image_url"]["url"] == str(tmp_path / "a.png")
    assert second["images"] == [str(tmp_path / "a.png")]


def test_each_bad_row_is_named(tmp_path) -> None:
    paint(tmp_path, "a.png")
    lines = [
        '{"prompt": "a star", "image": "a.png"}',
        "{no json",
        "[1]",
        '{"image": "a.png"}',
        '{"prompt": " ", "image": "a.png"}',
        '{"prompt": "a star"}',
        '{"prompt": "a star", "image": "b.png"}',
        '{"messages": [{"role": "user", "content": "Hi"}]}',
        '{"messages": "Hi"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows, faults = read_rows(tmp_path / "rows.jsonl")
    assert [row.where for row in rows] == ["rows.jsonl line 1"]
    assert [fault.where for fault in faults] == [f"rows.jsonl line {n}" for n in range(2, 10)]
    expected = ["JSON", "an object", "no prompt", "not empty", "no picture", "b.png", "answer", "a list"]
    assert all(word in fault.reason for word, fault in zip(expected, faults, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("rows.txt", "x", "a folder"), ("rows.json", "{}", "a list"), ("rows.jsonl", "\n", "no rows")],
)
def test_what_is_no_data_is_refused(tmp_path, name, content, said) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match=said):
        read_rows(tmp_path / name)
    with pytest.raises(OptionError, match="can't be read"):
        read_rows(tmp_path / "missing.jsonl")
