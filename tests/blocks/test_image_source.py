"""Pictures in every form in which programs hold them, and what is refused in few words."""

import base64
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import PictureError
from bifrons.blocks.image_io import open_image
from bifrons.blocks.image_source import as_image_list
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
GREY = np.repeat(PIXELS[:, :, :1], 3, axis=2)


def _png():
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")  # after which the stream is at its end
    return buffer


def _base64(kind="PNG"):
    buffer = io.BytesIO()
    PICTURE.resize((70, 50)).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def test_open_files_are_read_from_their_beginning(tmp_path):
    (tmp_path / "p.png").write_bytes(_png().getvalue())
    with (tmp_path / "p.png").open("rb") as stream, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(_png().getvalue())
        for source in (_png(), stream, spooled, stream):
            assert open_image(source).tobytes() == PICTURE.tobytes()
        assert not stream.closed


def test_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    PICTURE.save(tmp_path / "p.png")
    for source in ("~/p.png", Path("~/p.png"), b"~/p.png".decode()):
        assert open_image(source).tobytes() == PICTURE.tobytes()
    with pytest.raises(PictureError, match=r"'~/q\.png' does not exist"):
        open_image("~/q.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_bare_base64(kind):
    text = _base64(kind)
    lines, url_safe = f" {text[:76]}\n{text[76:]}\r\n", text.replace("+", "-").replace("/", "_")
    for source in (text, text.rstrip("="), lines, url_safe):
        for local_files in (True, False):
            assert open_image(source, local_files=local_files).size == (70, 50)


def test_a_file_that_is_named_like_base64_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = _base64("JPEG").lstrip("/")[:40].replace("/", "_")
    PICTURE.save(name, "PNG")
    assert open_image(name).size == PICTURE.size


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS[::-1, ::-1], PIXELS[::-1, ::-1]),
        (PIXELS[:, :, 0], GREY),
        (PIXELS[:, :, :1], GREY),
        (np.dstack([PIXELS, PIXELS[:, :, :1]]), PIXELS),
        (PIXELS.transpose(2, 0, 1), PIXELS),
        (PIXELS.transpose(2, 0, 1)[:1], GREY),
        (PIXELS.astype(np.int64), PIXELS),
        (PIXELS.astype(np.uint16) * 257, PIXELS),
        *[((PIXELS / 255).astype(kind), PIXELS) for kind in (np.float16, np.float32, np.float64)],
    ],
)
def test_arrays_and_tensors(values, expected):
    assert (np.asarray(open_image(values)) == expected).all()
    if values.dtype != np.uint16:
        tensor = torch.from_numpy(values.copy())
        tensor = tensor.requires_grad_() if tensor.is_floating_point() else tensor
        assert (np.asarray(open_image(tensor)) == expected).all()


def test_a_tensor_of_bfloat16():
    found = np.asarray(open_image(torch.from_numpy(PIXELS / 255).to(torch.bfloat16)), int)
    assert np.abs(found - PIXELS).max() <= 1


WRONG = {
    "shape .2, 5, 7, 3.; accepted: one picture": np.zeros((2, 5, 7, 3), np.uint8),
    "shape .5.; ": np.zeros(5, np.uint8),
    "shape ..; ": np.uint8(5),
    "shape .5, 7, 2.; ": np.zeros((5, 7, 2), np.uint8),
    "shape .0, 7, 3.; ": np.zeros((0, 7, 3), np.uint8),
    "64,500,000 pixels; at most 64,000,000": np.broadcast_to(np.uint8(0), (64_500, 1000)),
    "float32 from 0.0 to 255.0; accepted: 0 to 1": np.float32([[0, 255]]),
    "float64 from -1.0 to 1.0; accepted: 0 to 1": np.array([[-1.0, 1.0]]),
    "float64 from nan": np.array([[0.5, np.nan]]),
    "int64 from 0 to 256; accepted: 0 to 255": np.array([[0, 256]]),
    "int32 from -1": np.array([[-1]], np.int32),
    "holds bool; accepted: whole numbers": np.zeros((5, 7), bool),
    "holds <U1": np.array([["a"]]),
    "holds complex": np.zeros((2, 2), complex),
    "gives text; accepted: one opened with": io.StringIO("x"),
    "has 0 bytes": io.BytesIO(),
    "can't be read: I/O operation on closed": _png(),
    "can't be a dict; accepted: path, bytes": {"url": "x"},
    "can't be a float": 0.5,
}
WRONG["can't be read: I/O operation on closed"].close()


@pytest.mark.parametrize("message", WRONG)
def test_what_is_refused(message):
    with pytest.raises(PictureError, match=message):
        open_image(WRONG[message])


@pytest.mark.parametrize("source", [_base64()[:40] + "!" + "A" * 30_000, "x" * 10**6, "data:" + "x" * 30_000])
def test_long_texts_get_short_errors(source):
    for local_files in (True, False):
        with pytest.raises(PictureError) as caught:
            open_image(source, local_files=local_files)
        assert len(str(caught.value)) < 300


def test_as_list():
    picture = Image.new("RGB", (2, 2))
    assert as_image_list(None) == []
    assert as_image_list("a.png") == ["a.png"]
    assert as_image_list((picture, b"x")) == [picture, b"x"]
    assert as_image_list([]) == []
    assert [array is PIXELS for array in as_image_list(PIXELS)] == [True]
