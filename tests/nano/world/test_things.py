"""The world of things: drawings, sprites, pictures with their truth, and GenEval's prompts."""

import gzip
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from bifrons.blocks.errors import OptionError
from bifrons.eval.geneval.mask2former import CLASSES
from bifrons.eval.geneval.scoring import score_row
from bifrons.nano.world.catalog import PAINTS, places, thing, things
from bifrons.nano.world.painting import Picture, paint
from bifrons.nano.world.pieces import PAINTED
from bifrons.nano.world.reading import read_request
from bifrons.nano.world.requests import Group, Link, Request, from_row, holds, members_of
from bifrons.nano.world.sampling import KINDS, MORE_KINDS, sample_example, sample_request
from bifrons.nano.world.scene import RELATIONS
from bifrons.nano.world.shapes import SHAPES
from bifrons.nano.world.sprites import MASTER, rasterize, sprite

CASES = Path(__file__).parents[2] / "data" / "geneval" / "cases.jsonl.gz"
with gzip.open(CASES, "rt", encoding="utf-8") as _stream:
    PROMPTS = [json.loads(line)["metadata"] for line in _stream]


def test_the_things_are_genevals_classes_and_the_shapes():
    assert set(things()) == {*CLASSES, *SHAPES}
    assert len(things()) == 88
    for name in CLASSES:
        assert len(thing(name).poses) >= 2, name
    with pytest.raises(OptionError, match="'unicorn' is no thing of this world; accepted: airplane, "):
        thing("unicorn")


@pytest.mark.parametrize("name", sorted({*CLASSES, *SHAPES}))
def test_each_pose_shows_its_main_color(name: str):
    """A tenth of its pixels and more; and the drawing is inside its canvas."""
    for index, pose in enumerate(thing(name).poses):
        red, blue = (sprite(name, index, color, 64) for color in ("red", "blue"))
        assert (red.mask_HW == blue.mask_HW).all()
        changed = np.abs(red.paint_HW3 - blue.paint_HW3).max(-1) > 60
        assert changed.sum() > 0.1 * red.area, pose.name
        assert max(red.paint_HW3.shape[:2]) == 64


def test_sprites_are_the_drawing_in_that_color():
    """Recoloring is exact: the pixels are linear in the main color."""
    drawing = thing("boat")
    color = "rgb({}, {}, {})".format(*PAINTS["purple"])
    start = drawing.opening.index(">")
    svg = (
        f'{drawing.opening[:start]} color="{color}"{drawing.opening[start:]}{drawing.poses[0].elements}</svg>'
    )
    whole = rasterize(svg, MASTER, MASTER).astype(float)
    rows, columns = (np.flatnonzero((whole[..., 3] > 8).any(axis)) for axis in (1, 0))
    whole = whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    whole[..., :3] *= whole[..., 3:] / 255
    made = sprite("boat", 0, "purple", max(whole.shape))
    assert np.abs(made.paint_HW3 - whole[..., :3]).max() <= 3
    assert np.abs(made.through_HW3 - (1 - whole[..., 3:] / 255)).max() <= 3 / 255
    boat, other = (sprite("boat", 0, "purple", 60, flip=flip) for flip in (False, True))
    assert (boat.paint_HW3[:, ::-1] == other.paint_HW3).all()
    assert (boat.mask_HW[:, ::-1] == other.mask_HW).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("boat", 0, "teal", 60), "color 'teal' is unknown; accepted: red, "),
        (("boat", 9, "red", 60), "boat has no pose 9; accepted: 0 to 1"),
        (("boat", 0, "red", 3), "size 3 at 0 degrees; accepted: from 4 pixels"),
        (("boat", 0, "red", 60, False, 45), "size 60 at 45 degrees; accepted: .* -20 to 20 degrees"),
    ],
)
def test_sprites_that_there_are_none_of(arguments, message: str):
    with pytest.raises(OptionError, match=message):
        sprite(*arguments)


def _verdict(metadata: dict, picture: Picture) -> bool:
    """GenEval's own scorer, given the truth as detections."""
    boxes = {}
    colors = {}
    for one in picture.seen:
        boxes.setdefault(one.thing, []).append([*one.box, 0.99])
        colors.setdefault(one.thing, []).append(one.color)
    row = {"filename": "00000/samples/0000.png", "metadata": metadata, "boxes": boxes, "colors": colors}
    return score_row(row).correct


def _same(a: Request, b: Request) -> bool:
    def sides(request: Request):
        groups = request.groups
        links = {(groups[k.first], k.name, groups[k.second]) for k in request.links}
        return sorted(map(str, groups)), links, set(request.absences), request.place

    return sides(a) == sides(b)


@pytest.mark.parametrize("tag", KINDS)
def test_genevals_prompts_are_read_and_painted(tag: str):
    """All 553: the sentence makes the row's request, and GenEval's scorer accepts a picture of it."""
    rng = Random(f"geneval {tag}")
    rows = [row for row in PROMPTS if row["tag"] == tag]
    assert len(rows) == {"single_object": 80, "two_object": 99, "colors": 94, "counting": 80}.get(tag, 100)
    for row in rows:
        request = read_request(row["prompt"])
        assert _same(request, from_row(row)), row["prompt"]
        assert _verdict(row, paint(request, rng, 128, 128)), row["prompt"]


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_examples_show_what_they_say(kind: str):
    rng = Random(f"examples {kind}")
    for _ in range(8):
        example = sample_example(kind, rng)
        assert _verdict({**example.row, "tag": "chain"}, example.picture), example.prompt
        assert len(example.picture.seen) == example.request.total
        for link in example.request.links:
            first, second = (
                members_of(example.request.groups[i], example.picture.seen) for i in (link.first, link.second)
            )
            assert any(holds(a, link.name, b) for a in first for b in second), example.prompt


def test_the_truth_is_what_the_pixels_show():
    """Each thing's visible pixels are inside its box and reach its sides where nothing hides it."""
    rng = Random(3)
    for _ in range(12):
        picture = sample_example("mixed", rng).picture
        for number, one in enumerate(picture.seen):
            rows, columns = (np.flatnonzero((picture.owner_HW == number).any(axis)) for axis in (1, 0))
            x0, y0, x1, y1 = one.box
            found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert x0 <= found[0]
            assert found[2] <= x1
            assert np.abs(np.subtract(found, (x0, y0, x1, y1))).max() <= 2
            color = np.median(picture.pixels_HW3[picture.owner_HW == number].astype(float), axis=0)
            assert color.shape == (3,)
            assert one.visible > 0.97


def test_the_same_seed_gives_the_same_picture():
    request = read_request("three red cats and a blue bowl in a room")
    first, second, other = (paint(request, Random(seed), 240, 192) for seed in (5, 5, 6))
    assert first.pixels_HW3.shape == (192, 240, 3)
    assert (first.pixels_HW3 == second.pixels_HW3).all()
    assert first.seen == second.seen
    assert not np.array_equal(first.pixels_HW3, other.pixels_HW3)
    assert first.place == "room"


def test_a_thing_inside_another_is_partly_hidden_by_it():
    request = Request((Group("teddy bear"), Group("bowl")), (Link(0, "inside", 1),))
    for seed in range(5):
        bowl, bear = paint(request, Random(seed)).seen
        assert (bowl.thing, bear.thing) == ("bowl", "teddy bear")
        assert bear.visible < 0.97
        assert bowl.box[0] <= bear.box[0]
        assert bear.box[2] <= bowl.box[2]


@pytest.mark.parametrize(("counts", "seeds"), [((3, 2), 8), ((2, 1), 12)])
def test_things_in_rows_are_in_the_order_of_the_request(counts: tuple[int, int], seeds: int):
    request = Request((Group("cat", counts[0]), Group("bus", counts[1])))
    grounds = set()
    for seed in range(seeds):
        picture = paint(request, Random(seed), variety=PAINTED)
        grounds.add(places()[picture.place].ground is not None)
        rows = []
        for piece in picture.layout.pieces:
            x0, y0, x1, y1 = piece.box
            below = (y0 + y1) / 2 > 96 and max(p.box[1] for p in picture.layout.pieces) > 96
            rows.append((below and not places()[picture.place].ground, x0 + x1, piece.group))
        assert [group for _, _, group in sorted(rows)] == [0] * counts[0] + [1] * counts[1]
    assert grounds == ({False} if sum(counts) > 4 else {False, True})


def test_things_to_paint_look_alike_in_all_pictures():
    """Of a number of things each has one size, stands on the lattice, and few backgrounds are behind it."""
    request, sizes, backgrounds = Request((Group("cat"), Group("bus"))), set(), set()
    for seed in range(60):
        layout = paint(request, Random(seed), variety=PAINTED).layout
        backgrounds.add((layout.place.name, layout.variant, layout.color))
        for piece in layout.pieces:
            sizes.add((piece.thing.name, piece.size))
            assert (piece.pose, piece.flip, piece.angle) == (0, False, 0)
            assert piece.left % 8 == piece.top % 8 == 0
    assert len(sizes) == 2
    assert {name for name, _, _ in backgrounds} > {"plain"}
    assert len(backgrounds) <= 4 + len(places())


@pytest.mark.parametrize("name", RELATIONS)
def test_two_related_things_to_paint_stand_in_halves(name: str):
    for seed in range(8):
        request = Request((Group("cat"), Group("bus")), (Link(seed % 2, name, 1 - seed % 2),))
        pieces = {
            piece.group: piece.box for piece in paint(request, Random(seed), variety=PAINTED).layout.pieces
        }
        first, second = pieces[seed % 2], pieces[1 - seed % 2]
        first, second = (second, first) if name in ("right of", "below") else (first, second)
        axis = 1 if name in ("above", "below") else 0
        assert first[axis + 2] <= 96 <= second[axis]


def test_what_no_picture_shows_is_refused():
    cat_and_dog = (Group("cat"), Group("dog"))
    with pytest.raises(OptionError, match="do its relations contradict each other"):
        paint(Request(cat_and_dog, (Link(0, "left of", 1), Link(0, "right of", 1))), Random(0))
    with pytest.raises(OptionError, match="1 to 6 things, not 7"):
        Request((Group("cat", 7),))
    with pytest.raises(OptionError, match="no relation of two groups"):
        Request(cat_and_dog, (Link(0, "left of", 2),))
    with pytest.raises(OptionError, match="sides of 64 to 2048"):
        paint(Request(cat_and_dog), Random(0), 32, 192)


def test_places_are_named_in_sentences():
    for name, place in places().items():
        assert {read_request(f"a cat {words}").place for words in place.words} <= {name}
    assert {name for name, place in places().items() if place.ground} == {"meadow", "room", "street", "table"}


def test_unknown_kinds_and_splits_are_refused():
    with pytest.raises(OptionError, match="no train requests of kind 'poem'; accepted: single_object, "):
        sample_request("poem", Random(0))
    with pytest.raises(OptionError, match="no held_out requests of kind 'counting'; accepted: colors, "):
        sample_request("counting", Random(0), "held_out")
