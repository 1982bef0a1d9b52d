"""The world of shapes: placement, relations, what stays out of training, and the renderer."""

import itertools
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.nano.world.renderer import pack, render, render_packed, to_pil
from bifrons.nano.world.scene import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_COLORINGS,
    HELD_OUT_RELATIONS,
    MIRROR,
    Scene,
    SceneObject,
    box_of,
    extent,
    is_held_out,
    place,
    relation,
    sample_scene,
)
from bifrons.nano.world.shapes import EXTENTS, HALF_SPAN, OUTLINES, SHAPES, signed_distance


def _far(a, b) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


def test_the_palette_is_well_apart():
    assert tuple(COLORS) == (
        "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
    )  # fmt: skip
    assert min(_far(a, b) for a, b in itertools.combinations(COLORS.values(), 2)) > 95
    assert min(_far(a, b) for a in BACKGROUNDS for b in COLORS.values()) >= 60
    assert min(_far(a, b) for a, b in itertools.combinations(BACKGROUNDS, 2)) > 50


def test_left_out_tables_are_closed_and_spread():
    assert {s for s, _ in HELD_OUT_COLORINGS} == set(SHAPES)
    assert len({c for _, c in HELD_OUT_COLORINGS}) == len(HELD_OUT_COLORINGS) == 8
    assert len(HELD_OUT_RELATIONS) == 24
    assert {(b, MIRROR[r], a) for a, r, b in HELD_OUT_RELATIONS} == HELD_OUT_RELATIONS
    assert all(n == 3 for n in Counter(a for a, _, _ in HELD_OUT_RELATIONS).values())
    assert all(n == 1 for n in Counter((a, b) for a, _, b in HELD_OUT_RELATIONS).values())
    # Models were trained against these very tables: a change of the rule would leak.
    assert ("star", "red") in HELD_OUT_COLORINGS
    assert ("circle", "left of", "star") in HELD_OUT_RELATIONS


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        ((0, 40, 20, 60), {"left of"}),
        ((100, 40, 120, 60), {"right of"}),
        ((50, 0, 70, 20), {"above"}),
        ((50, 90, 70, 110), {"below"}),
        ((0, 0, 20, 20), {"left of", "above"}),  # (50-4, 40-4)/64 = (.72, .56)
        ((52, 42, 72, 62), set()),  # nearer than a tenth of both sizes: no relation
    ],
)
def test_relation_follows_genevals_rule(a, expected):
    b = (50, 40, 70, 60)
    assert relation(a, b) == expected
    assert relation(b, a) == {MIRROR[name] for name in expected}


def test_held_out_scenes_are_recognised():
    background = BACKGROUNDS[0]
    plain = SceneObject("circle", "red", 0.2, 0.5, 0.2)
    right_star, left_star = (SceneObject("star", "blue", x, 0.5, 0.2) for x in (0.8, 0.2))
    assert is_held_out(Scene((plain, right_star), background))
    assert not is_held_out(Scene((left_star, SceneObject("circle", "red", 0.8, 0.5, 0.2)), background))
    assert is_held_out(Scene((SceneObject("star", "red", 0.5, 0.5, 0.3),), background))


@pytest.mark.parametrize("aspect", [1.0, 0.6, 1.5])
def test_things_keep_their_distance(aspect):
    rng = Random(3)
    width, height = extent(aspect)
    for _ in range(300):
        scene = sample_scene(rng, "any", aspect)
        boxes = [box_of(obj) for obj in scene.objects]
        for x0, y0, x1, y1 in boxes:
            assert min(x0, y0, width - x1, height - y1) > 0.029
        for a, b in itertools.combinations(boxes, 2):
            assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) > 0.049
        assert all(obj.size >= 0.18 for obj in scene.objects)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box(shape):
    points = np.array(OUTLINES[shape])
    assert np.ptp(points, axis=0) == pytest.approx(EXTENTS[shape])
    assert max(EXTENTS[shape]) == pytest.approx(1)
    assert signed_distance(OUTLINES[shape], np.array([[0.0, 0.0], [HALF_SPAN, 0.0]]))[0] < -0.1


def test_edges_are_one_pixel_wide_and_areas_right():
    """Coverage is a ramp of the exact signed distance, and sums to the polygon's area."""
    size, axis = 96, (np.arange(96) + 0.5) / 96
    for shape in SHAPES:
        obj = SceneObject(shape, "black", 0.503, 0.497, 0.42)
        picture = render([Scene((obj,), (204, 208, 212))], size)[0, 0].numpy().astype(float)
        covered = (204 - picture) / (204 - COLORS["black"][0])
        grid = np.stack(np.meshgrid((axis - obj.x) / obj.size, (axis - obj.y) / obj.size), -1)
        pixels = signed_distance(OUTLINES[shape], grid.reshape(-1, 2)).reshape(size, size) * obj.size * size
        assert np.abs(covered - np.clip(0.5 - pixels, 0, 1)).max() < 0.12, shape
        x, y = np.array(OUTLINES[shape]).T
        area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 * (obj.size * size) ** 2
        assert covered.sum() == pytest.approx(area, rel=0.01), shape


def test_batches_give_what_each_scene_gives_alone():
    rng = Random(4)
    scenes = [sample_scene(rng, "any") for _ in range(20)]
    together = render(scenes, 64)
    assert together.dtype == torch.uint8
    assert together.shape == (20, 3, 64, 64)
    packed = pack(scenes)
    rows = torch.tensor([7, 3])
    some = {name: t if name == "aspect" else t[rows] for name, t in packed.items()}
    assert torch.equal(render_packed(some, 64, "cpu"), together[rows])
    assert torch.equal(render(scenes[5:6], 64)[0], together[5])
    if torch.cuda.is_available():
        on_gpu = render(scenes, 64, "cuda").cpu()
        assert (on_gpu.int() - together.int()).abs().max() <= 1


def test_sizes_and_mistakes():
    scene = place(Random(0), ["star"], ["red"], 1.5)
    assert to_pil(scene, 100).size == (150, 100)
    assert to_pil(place(Random(0), ["star"], ["red"], 0.5), 100).size == (100, 200)
    with pytest.raises(OptionError, match="aspect"):
        pack([scene, place(Random(0), ["star"], ["red"])])
    with pytest.raises(OptionError, match="at least one"):
        pack([])
    with pytest.raises(OptionError, match="1 to 6"):
        place(Random(0), ["star"] * 7, ["red"] * 7)
