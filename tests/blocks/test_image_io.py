"""Pictures that people hand in: all kinds that are read, and all that must be refused with clear words."""

import base64
import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from bifrons.blocks.errors import OptionError, PictureError
from bifrons.blocks.image_io import open_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(mode="RGB", size=(64, 48)):
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).convert(mode)


def _bomb(side=30_000):
    """A true PNG of side x side 1-bit pixels: 113 MB of rows in about 110 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_path_text_bytes_url_and_pil_give_the_same(tmp_path):
    picture = _noise()
    data = _saved(picture, "PNG")
    path = tmp_path / "käse bild.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), memoryview(data), url, "DATA" + url[4:], picture):
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert opened.tobytes() == picture.tobytes()


def test_pil_picture_is_left_alone():
    picture = Image.new("RGB", (4, 4), RED)
    open_image(picture).paste(BLUE, (0, 0, 4, 4))
    assert picture.getpixel((0, 0)) == RED
    grey = Image.new("LA", (4, 4))
    open_image(grey)
    assert grey.mode == "LA"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == RED


def test_cmyk_jpeg():
    pixel = open_image(_saved(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG")).getpixel((8, 8))
    assert np.abs(np.subtract(pixel, RED)).max() < 8


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 25_700, 40_000, 65_535]], dtype=np.uint16)
    for source in (_saved(Image.fromarray(values), "PNG"), Image.fromarray(values.astype(np.int32))):
        rgb = np.asarray(open_image(source))
        assert rgb[0, :, 0].tolist() == [0, 1, 100, 156, 255]
        assert (rgb == rgb[..., :1]).all()
    assert open_image(Image.fromarray(np.array([[7, 255]], np.int32))).getpixel((1, 0)) == (255,) * 3


def test_alpha_is_dropped_and_hidden_colours_show():
    clear = Image.new("RGBA", (4, 4), (*BLUE, 0))
    assert open_image(_saved(clear, "PNG")).getpixel((0, 0)) == BLUE
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*RED, *BLUE])
    # An alpha for each entry is the kind that makes PIL warn on conversion.
    assert open_image(_saved(palette, "PNG", transparency=b"\xff\x00")).getpixel((0, 0)) == BLUE
    assert open_image(Image.new("LA", (2, 2), (9, 0))).getpixel((0, 0)) == (9, 9, 9)
    assert open_image(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)


UPRIGHT = Image.fromarray(np.arange(32 * 16 * 3, dtype=np.uint32).reshape(16, 32, 3).astype(np.uint8))
LYING = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
LYING |= {7: "TRANSVERSE", 8: "ROTATE_270"}
"""What a camera did to the picture, for each orientation that it states in EXIF."""


def _lying(orientation, kind="PNG", **options):
    picture, exif = UPRIGHT, Image.Exif()
    if orientation in LYING:
        picture = UPRIGHT.transpose(Image.Transpose[LYING[orientation]])
    exif[0x0112] = orientation
    return picture, _saved(picture, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_unless_it_is_to_be_ignored(orientation, kind):
    lying, data = _lying(orientation, kind, **({"lossless": True} if kind == "WEBP" else {}))
    for source in (data, Image.open(io.BytesIO(data))):
        upright = open_image(source)
        assert (upright.size, upright.tobytes()) == (UPRIGHT.size, UPRIGHT.tobytes())
        assert open_image(upright).tobytes() == UPRIGHT.tobytes()  # and not applied again
        lying = UPRIGHT if kind == "TIFF" else lying  # which Pillow itself turns
        as_stored = open_image(source, exif="ignore")
        assert (as_stored.size, as_stored.tobytes()) == (lying.size, lying.tobytes())
        assert open_image(as_stored).tobytes() == lying.tobytes()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_phones_jpeg_is_upright(orientation):
    lying, data = _lying(orientation, "JPEG", quality=95)
    assert open_image(data).size == (32, 16)
    assert np.abs(np.asarray(open_image(data), int) - np.asarray(UPRIGHT)).mean() < 12
    assert open_image(data, exif="ignore").size == lying.size


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x" * 40])
def test_damaged_exif_is_ignored(exif):
    picture = Image.new("RGB", (9, 5), RED)
    for kind in ("PNG", "JPEG", "WEBP"):
        assert open_image(_saved(picture, kind, exif=exif)).size == (9, 5)
    picture.info["exif"] = exif
    assert open_image(picture).size == (9, 5)
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n 8\nno hex")
    assert open_image(_saved(Image.new("RGB", (9, 5)), "PNG", pnginfo=info)).size == (9, 5)


@pytest.mark.parametrize("exif", ["", "Apply", None, True])
def test_what_exif_may_be(exif):
    with pytest.raises(OptionError, match=f"exif is {exif!r}; accepted: apply or ignore"):
        open_image(UPRIGHT, exif=exif)


def test_trailing_bytes_do_not_matter():
    assert open_image(_saved(Image.new("RGB", (4, 4), RED), "PNG") + b"PK\x03\x04 zip").size == (4, 4)


def test_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_bomb())
    with pytest.raises(PictureError, match="64,000,000"):
        open_image(path)


def test_limit_is_inclusive_and_holds_for_pil_pictures():
    # 100 million pixels: over PIL's own warning, which must not be seen.
    header = _bomb(8)[:16] + struct.pack(">II", 10_000, 10_000) + b"\x01\x00\x00\x00\x00"
    header += struct.pack(">I", zlib.crc32(header[12:29]))
    with pytest.raises(PictureError, match="10,000 x 10,000"):
        open_image(header + _bomb(8)[33:])
    assert open_image(Image.new("RGB", (4, 4)), max_pixels=16).size == (4, 4)
    with pytest.raises(PictureError, match="at most 15"):
        open_image(Image.new("RGB", (4, 4)), max_pixels=15)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind):
    data = _saved(_noise(), kind)
    for length in (len(data) // 2, len(data) - len(data) // 8):
        with pytest.raises(PictureError):
            open_image(data[:length])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.png", "does not exist"),
        (lambda folder: folder, "folder"),
        (lambda folder: _file(folder, b"hello\n"), "not a picture"),
        (lambda folder: _file(folder, b""), "empty file"),
        (lambda folder: _file(folder, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a picture"),
        (lambda folder: _file(folder, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not a picture"),
        (lambda _: "/dev/null", "regular file"),
        (lambda _: "a\0b", "does not exist|opened"),
        (lambda _: "x" * 5000, "does not exist|opened"),
        (lambda _: b"", "0 bytes"),
        (lambda _: b"\x89PNG\r\n\x1a\n" + bytes(100), "the picture of 108 bytes"),
        (lambda _: "https://example.org/cat.png", "nothing is downloaded"),
        (lambda _: "data:image/png", "base64"),
        (lambda _: "data:image/png;base64,???", "base64"),
        (lambda _: "data:image/png;base64,", "0 bytes"),
        (lambda _: Image.new("RGB", (0, 5)), "no pixels"),
        (lambda _: Image.new("F", (2, 2)), "floating-point"),
        (lambda _: Image.fromarray(np.array([[-1, 70_000]], np.int32)), "70000"),
        (lambda _: 7, "can't be a int"),
        (lambda _: None, "NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, make, message):
    with pytest.raises(PictureError, match=message):
        open_image(make(tmp_path))


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "file.png"
    path.write_bytes(data)
    return path


def test_random_bytes_behind_a_true_header_never_escape_as_other_errors():
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = bytearray(_saved(_noise(size=(16, 16)), kind))
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(8, len(data), 5):
                data[place] = rng.integers(256)
            with contextlib.suppress(PictureError):
                assert open_image(bytes(data)).mode == "RGB"


def test_paths_can_be_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    for source in (path, str(path)):
        with pytest.raises(PictureError, match="data: URL"):
            open_image(source, local_files=False)
    assert open_image(path.read_bytes(), local_files=False).size == (2, 2)
