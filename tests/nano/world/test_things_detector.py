"""The learned detector of the world of things: its targets, its reading of maps, and its weights."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import BifronsError, CheckpointError, OptionError
from bifrons.eval.nano.detector import measure, scenes
from bifrons.nano.recipes import detector as recipe
from bifrons.nano.recipes import pictures as pictures
from bifrons.nano.recipes.parts import Job
from bifrons.nano.world.catalog import PAINTS, things
from bifrons.nano.world.degrading import DEGRADATIONS, degrade
from bifrons.nano.world.sampling import sample_example
from bifrons.nano.world.things_detector import (
    SIDE,
    STRIDE,
    CenterNet,
    Maps,
    ThingsDetector,
    load_detector,
    prepare,
    save_detector,
)
from PIL import Image
from torch import nn


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "SHARD", 6)
        return {name: torch.from_numpy(array) for name, array in recipe.shard(3_000_009).items()}


def perfect_maps(batch: dict[str, torch.Tensor]) -> Maps:
    """What a network without errors says."""
    size = SIDE // STRIDE
    heat = recipe.heat_targets(batch, size, size)
    sides = torch.ones(len(heat), 4, size, size)
    thing = torch.zeros(len(heat), len(things()), size, size)
    color = torch.zeros(len(heat), len(PAINTS), size, size)
    grid = (torch.arange(size) + 0.5) * STRIDE
    for i, slots in enumerate(batch["there"]):
        for n in slots.nonzero()[:, 0].tolist():
            x0, y0, x1, y1 = batch["box"][i, n].tolist()
            row, column = int((y0 + y1) / 2 / STRIDE), int((x0 + x1) / 2 / STRIDE)
            rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
            for side, value in enumerate((grid - x0, grid - y0, x1 - grid, y1 - grid)):
                along = value[columns] if side in (0, 2) else value[rows, None]
                sides[i, side, rows, columns] = along.expand(sides[i, side, rows, columns].shape)
            for part, name in ((thing, "thing"), (color, "color")):
                part[i, :, rows, columns] = 0
                part[i, int(batch[name][i, n]), rows, columns] = 20
    return Maps(torch.logit(heat.clamp(1e-4, 1 - 1e-4)), sides, thing, color)


def test_pictures_of_the_recipe_have_their_truth(batch: dict[str, torch.Tensor]):
    assert batch["pixels"].shape == (6, SIDE, SIDE, 3)
    assert batch["there"].sum(1).min() >= 1
    box = batch["box"][batch["there"] > 0]
    assert (box[:, 2:] > box[:, :2]).all()
    assert box.min() >= 0
    assert box.max() <= SIDE


def test_perfect_maps_have_no_loss_and_are_read_as_the_truth(batch: dict[str, torch.Tensor]):
    maps = perfect_maps(batch)
    good = recipe.detector_losses(maps, batch)
    assert good["box"] < 0.05
    assert max(good["thing"], good["color"]) < 0.05
    assert max(good["wrong thing"], good["wrong color"]) < 0.02
    other = recipe.detector_losses(
        Maps(maps.heat.flip(1), maps.sides, maps.thing.roll(1, 1), maps.color.roll(1, 1)), batch
    )
    assert other["heat"] > 5 * good["heat"]
    assert min(other["thing"], other["color"]) > 19
    assert min(other["wrong thing"], other["wrong color"]) > 0.95

    class Perfect(nn.Module):
        stem = nn.Sequential(nn.Conv2d(3, 1, 1))
        at = 0

        def forward(self, pixels: torch.Tensor) -> Maps:
            return Maps(*(part[self.at : self.at + 1] for part in maps))

    names, paints = tuple(things()), tuple(PAINTS)
    model = Perfect()
    detector = ThingsDetector(model, names, {})  # pyright: ignore
    for i in range(len(batch["there"])):
        model.at = i
        found = detector.detect(Image.fromarray(batch["pixels"][i].numpy()))
        slots = [n for n in range(6) if batch["there"][i, n]]
        truth = sorted((names[batch["thing"][i, n]], paints[batch["color"][i, n]]) for n in slots)
        assert sorted((one.label, one.color) for one in found) == truth
        for n in slots:
            box = batch["box"][i, n].numpy()
            assert min(np.abs(np.subtract(one.box, box)).max() for one in found) < 0.01


def test_gradients_reach_every_weight(batch: dict[str, torch.Tensor]):
    torch.manual_seed(0)
    model = CenterNet(len(things()), len(PAINTS), 16)
    pixels = recipe.augment(batch["pixels"][:2].permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1)
    assert pixels.abs().max() <= 1
    losses = recipe.detector_losses(model(pixels), {name: array[:2] for name, array in batch.items()})
    sum(value for value in losses.values() if value.requires_grad).backward()  # pyright: ignore
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_pictures_of_any_shape_are_scaled_and_padded():
    pixels, scale = prepare(Image.new("RGB", (300, 400), "white"))
    assert pixels.shape == (3, 256, 192)
    assert scale == 192 / 300
    assert prepare(Image.new("RGB", (100, 1000)))[0].shape == (3, 768, 96)
    padded = prepare(Image.new("RGB", (192, 200), "white"))[0]
    assert padded.shape == (3, 224, 192)
    assert padded[:, :200].min() == 1
    assert padded[:, 200:].abs().max() == 0


def test_weights_are_saved_and_loaded(tmp_path: Path):
    with pytest.raises(BifronsError, match=r"has no weights in .*; train it with `python -m bifrons"):
        load_detector(tmp_path)
    model = CenterNet(len(things()), len(PAINTS), 16)
    save_detector(tmp_path, model, 16, {"recall": 0.5})
    detector = load_detector(tmp_path)
    assert detector.classes == tuple(things())
    assert detector.report == {"recall": 0.5}
    image = sample_example("two_object", Random(0)).picture.image()
    assert all(one.color in PAINTS for one in detector.detect(image))
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"width": 32}, "has other tensors"),
        ({"width": 24}, "width is 24; accepted: multiples of 16 to 256"),
        ({"colors": ["red"]}, "other things or colors"),
        ({"classes": ["unicorn"]}, "other things or colors"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_detector(tmp_path)


def test_the_embedded_detector_finds_the_things_of_fresh_pictures():
    shown = list(scenes("none", 18, seed=71))
    figures = measure(shown, load_detector().detect_all([one.image for one in shown]), seed=0)
    assert figures["recall"] >= 0.97
    assert figures["precision"] >= 0.97
    assert figures["color"] >= 0.97
    assert min(figures["accepted"], figures["refused"]) >= 0.94


@pytest.mark.parametrize("how", ["none", *DEGRADATIONS])
def test_degraded_pictures(how: str):
    rng = Random(how)
    for _ in range(6):
        picture = sample_example("mixed", rng).picture
        pixels, seen = degrade(picture, how, rng)
        assert pixels.shape == picture.pixels_HW3.shape
        assert (pixels.dtype, len(seen)) == (np.uint8, len(picture.seen))
        changed = (pixels != picture.pixels_HW3).any()
        lost = [before.visible - after.visible for before, after in zip(picture.seen, seen, strict=True)]
        assert changed == (how != "none")
        assert (max(lost) > 0.02) == (how == "cut")


def test_an_unknown_degradation_is_refused():
    with pytest.raises(OptionError, match="'melted' is no degradation; accepted: none, blurred, "):
        degrade(sample_example("colors", Random(0)).picture, "melted", Random(0))


def test_the_recipe_trains_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (recipe, pictures):
        monkeypatch.setattr(module, "SHARD", 4)
    job = Job(tmp_path, (2,), (4,), 0, 1, torch.device("cpu"))
    objective, write = recipe.make_detector(job)
    losses = objective.losses()
    assert {"heat", "box", "thing", "color"} <= set(losses)
    assert all(torch.isfinite(loss) for loss in losses.values())
    write()
    assert load_detector(tmp_path).model.width == recipe.WIDTH
