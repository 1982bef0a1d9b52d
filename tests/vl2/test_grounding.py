"""Boxes: parsing, all kinds of malformed pieces, the round trip, drawing."""

import random

import pytest
from bifrons.blocks.errors import PictureError, PromptError
from bifrons.vl2.grounding import COLOURS, Box, draw_boxes, format_boxes, parse_grounding
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

SIZE = (640, 480)


def det(places: str) -> str:
    return f"<|ref|>dog<|/ref|><|det|>{places}<|/det|>"


def test_a_grounded_answer():
    text = (
        "<|grounding|>A <|ref|>dog<|/ref|><|det|>[[0, 10, 500, 999]]<|/det|> and "
        "<|ref|>two cats<|/ref|><|det|>[[1, 2, 3, 4], [580, 270, 999, 900]]<|/det|>."
    )
    found = parse_grounding(text, SIZE)
    assert found.text == "A dog and two cats."
    assert found.problems == ()
    assert [(box.label, box.normalized) for box in found.boxes] == [
        ("dog", (0, 10, 500, 999)),
        ("two cats", (1, 2, 3, 4)),
        ("two cats", (580, 270, 999, 900)),
    ]
    assert found.boxes[0].pixels == (0, int(10 / 999 * 480), int(500 / 999 * 640), 480)


@pytest.mark.parametrize(
    ("text", "boxes", "pieces"),
    [
        (det("[[1, 2, 3]]"), 0, ["[1, 2, 3]"]),
        (det("[[1, 2, 3, 4], [5, 6, 7, 1000]]"), 1, ["[5, 6, 7, 1000]"]),
        (det("[[1, 2, 3, 4], [9, 6, 7, 8], [5, 6, 7, 8]]"), 2, ["[9, 6, 7, 8]"]),
        (det("[[1, 2, 3, -4]]"), 0, ["[1, 2, 3, -4]"]),
        (det("[[1, 2, 3, 4.5]]"), 0, ["[1, 2, 3, 4.5]"]),
        (det("[[1, 2, 3, " + "9" * 5000 + "]]"), 0, ["[1, 2, 3, " + "9" * 5000 + "]"]),
        (det("[1, 2, 3, 4]"), 1, ["[1, 2, 3, 4]"]),
        (det("[[1, 2, 3, 4]"), 1, ["[[1, 2, 3, 4]"]),
        (det("[[1, 2, 3, 4] [5, 6, 7, 8]]"), 2, ["[[1, 2, 3, 4] [5, 6, 7, 8]]"]),
        (det("[[1, 2, 3, 4], #]"), 1, ["[[1, 2, 3, 4], #]"]),
        (det("__import__('os')"), 0, ["__import__('os')"]),
        (det(""), 0, [""]),
        (det("[]"), 0, []),
        ("<|det|>[[1, 2, 3, 4]]<|/det|>", 1, ["[[1, 2, 3, 4]]"]),
        ("<|ref|>dog<|/ref|> sits", 0, ["dog"]),
        ("<|ref|>dog<|det|>[[1, 2, 3, 4]]<|/det|>", 1, ["<|ref|>", "[[1, 2, 3, 4]]"]),
        ("<|ref|>dog<|/ref|><|det|>[[1, 2, 3, 4]]", 0, ["<|det|>", "dog"]),
        ("dog<|/ref|>" + det("[[1, 2, 3, 4]]"), 1, ["<|/ref|>"]),
    ],
)
def test_malformed_pieces_are_reported_and_the_rest_is_kept(text: str, boxes: int, pieces: list[str]):
    text = "before " + text + " " + det("[[7, 7, 8, 8]]") + " after"
    found = parse_grounding(text, SIZE)
    assert len(found.boxes) == boxes + 1
    assert found.boxes[-1].normalized == (7, 7, 8, 8)
    assert sorted(problem.text for problem in found.problems) == sorted(pieces)
    for problem in found.problems:
        assert text.startswith(problem.text, problem.position)
    assert found.text.startswith("before ")
    assert found.text.endswith(" after")


shreds = st.lists(st.sampled_from(["<|ref|>", "<|/det|>", "<|det|>", "[[", "1,", "]", "x"])).map("".join)


@given(st.text() | shreds)
def test_no_text_raises(text: str):
    parse_grounding(text, SIZE)


def test_a_hundred_thousand_mutated_texts():
    draw = random.Random(7)
    base = "A " + det("[[1, 2, 3, 4], [580, 270, 999, 900]]") + "<|grounding|>b"
    marks = ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "[", "]", ",", "9" * 30, "\x00"]
    boxes = problems = 0
    for _ in range(100_000):
        i, j = sorted((draw.randrange(len(base)), draw.randrange(len(base))))
        kind = draw.randrange(3)
        if kind == 0:
            text = base[:i] + base[j:]
        elif kind == 1:
            text = base[:i] + marks[draw.randrange(len(marks))] + base[i:]
        else:
            text = base[:j] + base[i:]
        found = parse_grounding(text, SIZE)
        boxes += len(found.boxes)
        problems += len(found.problems)
    assert boxes > 100_000
    assert problems > 50_000


def test_long_texts_take_linear_time():
    for text in ("<|ref|>" * 50_000, "[" * 200_000, det("[" * 200_000), "<|det|>[[1, 2" * 30_000):
        parse_grounding(text, SIZE)


numbers = st.integers(0, 999)
labels = st.text(min_size=1, max_size=9).filter(lambda label: "<|" not in label)


@given(
    st.lists(st.tuples(labels, numbers, numbers, numbers, numbers), max_size=5),
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_boxes_survive_a_round_trip_exactly(rows, size: tuple[int, int]):
    boxes = [
        Box.from_normalized(label, (min(a, c), min(b, d), max(a, c), max(b, d)), size)
        for label, a, b, c, d in rows
    ]
    found = parse_grounding(format_boxes(boxes), size)
    assert list(found.boxes) == boxes
    assert found.problems == ()


@given(st.tuples(*[st.integers(1, 4000)] * 2), st.tuples(*[st.floats(0, 1)] * 4))
def test_pixel_boxes_survive_to_the_rounding(size: tuple[int, int], parts):
    (x1, x2), (y1, y2) = (
        sorted((int(parts[axis] * size[axis]), int(parts[axis + 2] * size[axis]))) for axis in (0, 1)
    )
    box = Box("it", x1, y1, x2, y2)
    (found,) = parse_grounding(format_boxes([box], size), size).boxes
    for axis, (before, after) in enumerate(zip(box.pixels, found.pixels, strict=True)):
        assert abs(before - after) <= size[axis % 2] / 999 / 2 + 1


def test_boxes_that_can_not_be_written():
    with pytest.raises(PromptError, match="size of its picture"):
        format_boxes([Box("a", 1, 2, 3, 4)])
    with pytest.raises(PromptError, match="not inside"):
        format_boxes([Box("a", 1, 2, 300, 4)], (100, 100))
    with pytest.raises(PromptError, match="mark"):
        format_boxes([Box("a<|/ref|>", 1, 2, 3, 4)], (100, 100))


def test_drawing_outlines_and_names_without_touching_the_original():
    picture = Image.new("RGB", (300, 200), "white")
    boxes = [Box("dog", 50, 60, 120, 150), Box("at the edge", 280, 0, 299, 40), Box("dog", 1, 1, 9, 9)]
    drawn = draw_boxes(picture, boxes)
    assert picture.getcolors() == [(300 * 200, (255, 255, 255))]
    assert drawn.getpixel((50, 100)) == drawn.getpixel((1, 5)) == COLOURS[0]
    assert drawn.getpixel((298, 35)) == COLOURS[1]
    plate = drawn.crop((50, 44, 80, 60)).getcolors(1 << 16) or []
    assert any(isinstance(colour, tuple) and min(colour) > 240 for _, colour in plate)  # the letters
    assert drawn.getpixel((85, 100)) == (255, 255, 255)  # the inside stays
    assert draw_boxes(picture, []).getcolors() == picture.getcolors()


def test_drawing_takes_a_path_and_one_box_and_turns_photos_upright_as_locate_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / "photo.png"
    Image.new("RGB", (300, 200), "white").save(path, exif=exif)
    box = Box("", 20, 220, 180, 290)  # inside of 200 x 300 only
    with Image.open(path) as picture:
        for source in (path, picture):
            drawn = draw_boxes(source, box)
            assert drawn.size == (200, 300)
            assert drawn.getpixel((20, 250)) == COLOURS[0]
            assert draw_boxes(source, [box], exif="ignore").size == (300, 200)
    with pytest.raises(PictureError, match="does not exist"):
        draw_boxes(tmp_path / "none.png", box)
