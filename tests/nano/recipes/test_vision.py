"""Patches are labelled by what a picture shows."""

from random import Random

import numpy as np
from bifrons.nano.recipes import vision
from bifrons.nano.recipes.vision import (
    LETTERS,
    NO_LETTER,
    NO_SLOT,
    SIGN,
    SIGN_SLOT,
    frames_in,
    label_patches,
)
from bifrons.nano.world.painting import Picture, paint
from bifrons.nano.world.reading import read_request
from bifrons.nano.world.signs import hang_sign


def _picture() -> Picture:
    return paint(read_request("a red cat and a dog"), Random(192), 192, 192)


def test_patches_are_labelled_with_what_is_visible_in_them():
    picture = _picture()
    frames = [box for size in (96, 192) for box in frames_in((192, 192), (size, size), 96)]
    labels = label_patches(picture, frames, 12)
    owner = picture.owner_HW.reshape(24, 8, 24, 8).transpose(0, 2, 1, 3).reshape(24, 24, 64)
    slots = labels["slot"][1:].reshape(2, 2, 12, 12).transpose(0, 2, 1, 3).reshape(24, 24)
    for number, one in enumerate(picture.seen):
        share = (owner == number).mean(-1)
        assert (slots[share > 0.5] == number).all()
        assert (share[slots == number] > 0.1).all()
        whole = labels["box"][0, number].astype(float) * 192
        assert np.allclose(whole, one.box, atol=0.2)
    assert (slots[(owner < 0).mean(-1) > 0.9] == NO_SLOT).all()
    assert (labels["letter"] == NO_LETTER).all()


def test_patches_of_signs_are_labelled_with_their_letters():
    picture = hang_sign(_picture(), "Hot Tea 7", Random(2))
    assert picture is not None
    assert picture.sign is not None
    written = picture.sign.letters
    assert "".join(letter for letter, _ in written) == "HotTea7"
    x0, y0, x1, y1 = picture.sign.box
    assert all(x0 <= a < c <= x1 and y0 <= b < d <= y1 for _, (a, b, c, d) in written)
    labels = label_patches(picture, frames_in((192, 192), (192, 192), 192), 24)
    assert {LETTERS[i] for i in labels["letter"][0] if i != NO_LETTER} == set("HotTea7")
    assert (labels["slot"][0][labels["letter"][0] != NO_LETTER] == SIGN_SLOT).all()
    assert labels["kind"][SIGN_SLOT] == SIGN
    # The letters' boxes hold their ink: nothing is written beside them on the board.
    light = picture.pixels_HW3.astype(int).mean(-1)
    board = np.median(light[round(y0) : round(y1), round(x0) : round(x1)])
    for _, (a, b, c, d) in written:
        inside = light[round(b) : round(d), round(a) : round(c)]
        assert np.abs(inside - board).max() > 60


def test_janus_reads_pictures_of_any_shape(monkeypatch):
    monkeypatch.setattr(vision, "SHARD", 3)
    arrays = vision.janus_shard(1)
    assert arrays["tiles"].shape == (3, 1, 3, 192, 192)
    assert arrays["slot"].shape == (3, 1, 144)
    assert ((arrays["slot"] < NO_SLOT).sum((1, 2)) > 0).all()
