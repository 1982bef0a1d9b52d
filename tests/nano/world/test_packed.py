"""Scenes of the world of things in binary form."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from bifrons.blocks.errors import OptionError
from bifrons.nano.world import packed
from bifrons.nano.world.painting import paint
from bifrons.nano.world.requests import Absence, Group, Link, Request
from bifrons.nano.world.sampling import KINDS, MORE_KINDS, sample_example


def test_a_packed_scene_is_the_same_request_and_the_same_picture(tmp_path: Path):
    rng = Random(0)
    examples = [
        sample_example(kind, rng, "any", 160, 128) for kind in (*KINDS, *MORE_KINDS) for _ in range(2)
    ]
    path = tmp_path / "scenes.npz"
    packed.save(path, [packed.pack(example.request, example.picture) for example in examples])
    assert path.stat().st_size < 200 * len(examples)
    scenes = packed.load(path)
    assert scenes.shape == (len(examples),)
    assert packed.SCENE.itemsize < 200
    for example, record in zip(examples, scenes, strict=True):
        again = packed.unpack(record)
        assert again.request == example.request
        assert (again.width, again.height) == (160, 128)
        picture = again.draw()
        assert (picture.pixels_HW3 == example.picture.pixels_HW3).all()
        assert (picture.owner_HW == example.picture.owner_HW).all()
        assert picture.seen == example.picture.seen


def test_what_a_packed_scene_does_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = Request((Group("cat"), Group("dog")), (Link(0, "left of", 1),), (Absence(None, "red"),) * 5)
    picture = paint(Request(request.groups, request.links), Random(0), 64, 64)
    with pytest.raises(OptionError, match="1 relations and 5 absences; a packed scene holds 4 and 4"):
        packed.pack(request, picture)
    few = Request(request.groups, request.links, request.absences[:2])
    record = packed.pack(few, picture)
    assert packed.unpack(record).request == few
    packed.save(tmp_path / "scenes.npz", [record])
    monkeypatch.setattr(packed, "SCENE", np.dtype("u1"))
    with pytest.raises(OptionError, match="written for a world with other things"):
        packed.load(tmp_path / "scenes.npz")
