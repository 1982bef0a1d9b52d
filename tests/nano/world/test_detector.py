"""The exact detector against what was rendered: right, soft, faulty and spoiled pictures."""

import io
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import PictureError
from bifrons.nano.world.detector import UNKNOWN, detect, to_geneval
from bifrons.nano.world.renderer import coverage, render, to_pil
from bifrons.nano.world.scene import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    Scene,
    SceneObject,
    box_of,
    relation,
    sample_scene,
)
from PIL import Image, ImageDraw, ImageFilter


def _right(scene: Scene, found, size: int, tolerance: float) -> bool:
    """Every thing found once with its shape, colour and box, and nothing else."""
    left = list(found)
    for obj in scene.objects:
        box = np.array(box_of(obj)) * size
        same = [
            d
            for d in left
            if (d.label, d.color) == (obj.shape, obj.color)
            and np.abs(np.array(d.box) - box).max() <= tolerance
        ]
        if not same:
            return False
        left.remove(same[0])
    return not left


def _off_grid(rng: Random, aspect: float = 1.0) -> Scene:
    """A scene moved and scaled by a hair, so that its edges fall anywhere between the pixels."""
    scene, dx, dy = sample_scene(rng, "any", aspect), rng.uniform(-0.01, 0.01), rng.uniform(-0.01, 0.01)
    moved = [replace(t, x=t.x + dx, y=t.y + dy, size=t.size * rng.uniform(0.97, 1.03)) for t in scene.objects]
    return replace(scene, objects=tuple(moved))


@pytest.mark.parametrize(
    ("size", "aspect", "count"),
    [(128, 1.0, 40), (96, 1.0, 12), (384, 1.0, 3), (160, 1.5, 6), (128, 0.6, 6)],
)
def test_rendered_scenes_are_read_without_fault(size, aspect, count):
    rng = Random(11)
    scenes = [_off_grid(rng, aspect) for _ in range(count)]
    pictures = render(scenes, size).permute(0, 2, 3, 1).numpy()
    wrong = [s for s, p in zip(scenes, pictures, strict=True) if not _right(s, detect(p), size, 1.5)]
    assert not wrong


def _soft(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(1)).save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


def test_soft_edges_and_compression_are_withstood():
    rng = Random(12)
    scenes = [_off_grid(rng) for _ in range(30)]
    wrong = [s for s in scenes if not _right(s, detect(_soft(to_pil(s))), 128, 2.5)]
    assert len(wrong) <= 1


def test_a_drifting_noisy_background_is_withstood():
    rng, noise = Random(13), np.random.default_rng(0)
    for _ in range(5):
        scene = _off_grid(rng)
        pixels = np.asarray(to_pil(scene), dtype=float)
        pixels = pixels + np.linspace(-8, 8, 128)[None, :, None] + noise.normal(0, 4, pixels.shape)
        assert _right(scene, detect(pixels.clip(0, 255).astype(np.uint8)), 128, 1.5)


def _scene(*objects: tuple[str, str, float, float]) -> Scene:
    return Scene(tuple(SceneObject(s, c, x, y, 0.25) for s, c, x, y in objects), BACKGROUNDS[0])


def test_planted_faults_come_out_as_planted():
    said = _scene(("star", "orange", 0.25, 0.5), ("heart", "blue", 0.75, 0.5))
    mirrored = to_geneval(detect(to_pil(said).transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    star, heart = (mirrored["boxes"][name][0][:4] for name in ("star", "heart"))
    assert relation(star, heart) == {"right of"}
    swapped = to_geneval(detect(to_pil(_scene(("star", "blue", 0.25, 0.5), ("heart", "orange", 0.75, 0.5)))))
    assert swapped["colors"] == {"star": ["blue"], "heart": ["orange"]}
    four = [("cross", "red", x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)]
    for count in (3, 4):
        rows = to_geneval(detect(to_pil(_scene(*four[:count]))))
        assert len(rows["boxes"]["cross"]) == count
        assert all(row[4] > 0.9 for row in rows["boxes"]["cross"])  # GenEval counts only above 0.9


def test_touching_things_of_two_colors_are_told_apart():
    scene = _scene(("square", "red", 0.38, 0.5), ("circle", "blue", 0.63, 0.5))
    assert _right(scene, detect(to_pil(scene)), 128, 1.5)


def _paint(opacity_HW: np.ndarray, color: str = "purple") -> np.ndarray:
    opacity = opacity_HW[..., None]
    return (opacity * COLORS[color] + (1 - opacity) * BACKGROUNDS[4] + 0.5).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [26, 40])
def test_half_erased_shapes_are_not_called_by_their_name(shape, size):
    """Erasing the right half leaves no shape at all (a diamond's top half would be a fair triangle)."""
    place = torch.tensor([[64.0, 64.0, float(size)]])
    opacity = coverage(torch.tensor([SHAPES.index(shape)]), place, 128, 128, 1)[0].numpy()
    assert [d.label for d in detect(_paint(opacity))] == [shape]
    opacity[:, 64:] = 0
    assert [d.label for d in detect(_paint(opacity))] == [UNKNOWN]


def test_blobs_and_strange_colors_are_not_forced_into_a_class():
    noise, named = np.random.default_rng(1), 0
    for _ in range(30):
        angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        waves = [noise.normal(0, 0.5 / k) * np.cos(k * angle + noise.uniform(0, 6.3)) for k in range(2, 7)]
        radius = 80 * np.clip(1 + sum(waves), 0.2, 2)
        sheet = Image.new("L", (512, 512))
        points = [(256 + r * np.cos(a), 256 + r * np.sin(a)) for r, a in zip(radius, angle, strict=True)]
        ImageDraw.Draw(sheet).polygon(points, fill=255)
        found = detect(_paint(np.asarray(sheet.resize((128, 128), Image.Resampling.BOX)) / 255))
        named += any(d.label != UNKNOWN for d in found)
    assert named <= 3
    pixels = np.asarray(to_pil(_scene(("circle", "red", 0.5, 0.5)))).copy()
    pixels[(pixels == COLORS["red"]).all(-1)] = (120, 255, 255)
    assert [(d.label, d.color) for d in detect(pixels)] == [(UNKNOWN, UNKNOWN)]
    assert to_geneval(detect(pixels)) == {"boxes": {}, "colors": {}}


def test_an_empty_picture_and_mistakes():
    assert detect(np.full((96, 128, 3), 200, dtype=np.uint8)) == []
    with pytest.raises(PictureError, match="uint8"):
        detect(np.zeros((64, 64)))
    with pytest.raises(PictureError, match="at least 32"):
        detect(np.zeros((8, 64, 3), dtype=np.uint8))
