"""Small files that would cost minutes or gigabytes are refused from their headers, soon and cheaply."""

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from bifrons.blocks.errors import PictureError
from bifrons.blocks.image_io import open_image
from PIL import Image, ImageFile, PngImagePlugin

SECONDS, MEGABYTES = 30, 300
LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({MEGABYTES << 20},) * 2)
from bifrons.blocks.errors import PictureError
from bifrons.blocks.image_io import open_image
try:
    open_image(sys.argv[1])
except PictureError as error:
    print(error)
"""


def _refusal(path):
    """What `open_image` says in a process with little memory and time."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.copy().save(buffer, kind, **options)  # a copy, since PIL keeps options of the last format
    return buffer.getvalue()


def _noise(size=(64, 48)):
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _pages():
    return [_noise((640, 480)) for _ in range(10)]


def _scans(evil_jpeg):
    return evil_jpeg((500, 500))


def _segments(_):
    data = _saved(_noise(), "JPEG")
    return data[:2] + b"\xff\xd8" * 200_000 + b"\xff\xfe\x00\x02" * 200_000 + data[2:]


def _tiff(entries, following=0, order="<"):
    body = b"".join(struct.pack(order + "HHLL", *entry) for entry in sorted(entries))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    end = struct.pack(order + "L", following)
    return magic + struct.pack(order + "L", 8) + struct.pack(order + "H", len(entries)) + body + end


PAGE = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
STRIP = [(273, 4, 1, 8), (278, 3, 1, 8), (279, 4, 1, 64)]


def _overlapping_values(count=2000, size=500_000):
    return _tiff([*PAGE, *STRIP, *((1000 + tag, 7, size, 8) for tag in range(count))]) + bytes(size)


def _exif(_):
    exif = b"Exif\0\0" + _overlapping_values(3000, 20_000)
    data = _saved(_noise(), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def _exif_in_png(_):
    return _saved(_noise(), "PNG", exif=_overlapping_values())


def _chain(_):
    """A directory of no entry at every sixth byte, each pointing to the next."""
    places = range(200, 2_000_000, 6)
    links = b"".join(struct.pack("<HL", 0, place + 6) for place in places)
    return _tiff([*PAGE, *STRIP], 200).ljust(200, b"\0") + links


def _huge_tile(_):
    tile = [(322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 64)]
    return _tiff([*[(*entry[:3], 8) if entry[0] == 259 else entry for entry in PAGE], *tile]) + bytes(100)


def _many_strips(_):
    strips = [(273, 1, 4_000_000, 8), (278, 3, 1, 1), (279, 1, 4_000_000, 8)]
    return _tiff([*PAGE, *strips], order="<") + bytes(4_000_000)


def _chunks(_):
    chunk = struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))
    data = _saved(_noise(), "PNG")
    return data[:33] + chunk * 500_000 + data[33:]


def _comment(_):
    data = _saved(Image.new("P", (8, 8)), "GIF")
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:place] + b"!\xfe" + (b"\xff" + b"a" * 255) * 80_000 + b"\0" + data[place:]


def _tiny_tiles(_):
    data = bytearray(_saved(_noise((256, 256)), "JPEG2000"))
    place = data.index(b"\xff\x4f\xff\x51") + 2
    data[place + 22 : place + 30] = struct.pack(">II", 1, 1)
    return bytes(data)


def _tiny_precincts(_):
    data = bytearray(_saved(Image.new("L", (4000, 4000)), "JPEG2000", precinct_size=(128, 128)))
    place = data.index(b"\xff\x52")
    (length,) = struct.unpack(">H", data[place + 2 : place + 4])
    data[place + 14 : place + 2 + length] = bytes(length - 12)
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_scans, "more than 100 scans"),
        (_segments, "segments"),
        (lambda _: _overlapping_values(), "bytes in a directory"),
        (_exif, "bytes in a directory"),
        (_exif_in_png, "bytes"),
        (_chain, "directories"),
        (_huge_tile, "pixels in a tile"),
        (_many_strips, "strips"),
        (_chunks, "chunks"),
        (_comment, "blocks before its first frame"),
        (_tiny_tiles, "tiles"),
        (_tiny_precincts, "precincts"),
    ],
)
def test_costly_files_are_refused(tmp_path, evil_jpeg, make, message):
    path = tmp_path / "costly"
    path.write_bytes(make(evil_jpeg))
    assert message in (said := _refusal(path))
    assert "is refused" in said


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [_fifo, _socket, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_opened(tmp_path, make):
    make(tmp_path / "p")
    assert "can't be opened" in _refusal(tmp_path / "p")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "WEBP", "TIFF"])
def test_too_little_memory_is_told_as_that(tmp_path, kind):
    path = tmp_path / "large"
    options = {"speed": 10} if kind == "AVIF" else {}
    Image.new("RGB", (9000, 7000)).save(path, kind, **options)
    assert "memory" in (said := _refusal(path))
    assert "damaged" not in said


def test_usual_files_are_within_the_limits():
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "x" * 30_000, 1
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + b"y" * 20_000
    info = PngImagePlugin.PngInfo()
    for number in range(500):
        info.add_text(f"key {number}", "z" * 100, zip=True)
    picture = _noise((640, 480))
    for data in (
        _saved(picture, "JPEG", progressive=True, exif=exif, icc_profile=bytes(300_000)),
        _saved(picture, "JPEG", comment="c" * 60_000, restart_marker_blocks=1),
        _saved(picture, "MPO", save_all=True, append_images=_pages()),
        _saved(picture, "PNG", pnginfo=info, exif=exif),
        _saved(picture, "GIF", save_all=True, append_images=_pages(), comment="c" * 100_000),
        _saved(picture, "WEBP", save_all=True, append_images=_pages(), exif=exif),
        _saved(picture, "JPEG2000", tile_size=(64, 64), num_resolutions=3, precinct_size=(32, 32)),
        _saved(picture, "TIFF", save_all=True, append_images=_pages(), icc_profile=bytes(300_000)),
        _saved(picture, "TIFF", compression="tiff_lzw", big_tiff=True),
        _saved(picture, "TIFF", compression="tiff_deflate", tiffinfo={278: 1}),
    ):
        assert open_image(data).size == (640, 480)


def test_one_picture_does_not_wait_for_another_to_be_decoded(monkeypatch):
    started, release, load = threading.Event(), threading.Event(), ImageFile.ImageFile.load

    def slow(self):
        if self.width == 9 and self.tile:
            started.set()
            assert release.wait(SECONDS)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", slow)
    sizes = []
    data = _saved(_noise((9, 9)), "PNG")
    thread = threading.Thread(target=lambda: sizes.append(open_image(data).size))
    thread.start()
    assert started.wait(SECONDS)
    assert open_image(_saved(_noise((8, 8)), "PNG")).size == (8, 8)
    assert sizes == []
    release.set()
    thread.join()
    assert sizes == [(9, 9)]


def test_pixels_and_sides_are_limited():
    with pytest.raises(PictureError, match="at most 65,535 a side"):
        open_image(Image.new("L", (70_000, 1)))
    with pytest.raises(PictureError, match="at most 90 a side"):
        open_image(_saved(Image.new("L", (100, 1)), "PNG"), max_side=90)
