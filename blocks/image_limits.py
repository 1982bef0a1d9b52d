"""What the header of an image file may ask of a decoder: counted in the file, before anything is decoded.

Decoders take the numbers in a header at their word. Files of some kilobytes can so cost minutes or gigabytes,
however few pixels they have. The limits are far above what cameras, scanners and programs write.
"""

import io
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import BinaryIO

from .errors import PictureError

MAX_SCANS = 100
"""Scans of a JPEG file. Progressive files have about 10; each costs a pass over all pixels."""
MAX_SEGMENTS = 5_000
"""Segments of a JPEG file or of a JPEG 2000 file's header, blocks of a GIF file before its first frame."""
MAX_EXIF = 1_000_000
"""Bytes of EXIF data."""
MAX_CHUNKS = 100_000
"""Chunks of a PNG file. libpng writes 8 kB of compressed data into each."""
MAX_DIRECTORIES, MAX_ENTRIES, MAX_STRIPS = 2_000, 50_000, 300_000
"""Directories of a TIFF file (one for each page), entries of all of them, strips or tiles of a page."""
MAX_TILES, MAX_PRECINCTS = 5_000, 500_000
"""Tiles and precincts of a JPEG 2000 file."""

_BLOCK = 1 << 16
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_PRECINCTS = {b"\xff\x52": (0, 5, 10), b"\xff\x53": (1, 2, 7)}
"""Of the segments COD and COC of a JPEG 2000 file: where their flags, levels and sizes of precincts are."""
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TIFF_LAYOUT = {273: "strips", 279: "strips", 324: "tiles", 325: "tiles"}
_TIFF_TILE_SIDES = (322, 323)
_TIFF_NUMBERS = {3: "H", 4: "L", 13: "L", 16: "Q"}
_TIFF_DIRECTORIES = (330, 34665, 34853, 40965)


_EXIF = b"Exif\0\0"


_MALFORMED = (EOFError, struct.error, IndexError, ZeroDivisionError, OverflowError)
"""What the checks raise where a file ends or contradicts itself."""


def check_header(stream: BinaryIO, max_pixels: int) -> None:
    """Raise `PictureError` for a file that would cost more than its pixels do; leaves `stream` at its start.

    What is malformed in other ways passes: decoders refuse it.
    """
    start = _read(stream, 0, 16)
    with suppress(*_MALFORMED):
        for magic, check in _CHECKS.items():
            if start.startswith(magic):
                check(stream, max_pixels)
    stream.seek(0)


def check_exif(data: bytes) -> None:
    """`check_header` for EXIF data, which are a TIFF file."""
    data = data.removeprefix(_EXIF)
    _limit(len(data), MAX_EXIF, "bytes of EXIF data")
    with suppress(*_MALFORMED):
        _check_directories(io.BytesIO(data), len(data))


def _read(stream: BinaryIO, place: int, count: int) -> bytes:
    stream.seek(place)
    return stream.read(count)


def _unpack(layout: str, stream: BinaryIO, place: int) -> tuple[int, ...]:
    return struct.unpack(layout, _read(stream, place, struct.calcsize(layout)))


def _limit(count: int, most: int, what: str) -> None:
    if count > most:
        raise PictureError(f"it has more than {most:,} {what}; accepted: one saved in the usual way")


def _check_jpeg(stream: BinaryIO, max_pixels: int) -> None:
    """Follows libjpeg: it skips bytes up to the next marker, in compressed data and between segments."""
    place = segments = scans = 0
    exif = b""
    while True:
        place = _next_marker(stream, place) + 2
        (marker,) = _unpack("B", stream, place - 1)
        if marker == 0xD9:
            return
        segments += 1
        _limit(segments, MAX_SEGMENTS, "segments")
        if marker == 0xD8:
            continue
        (length,) = _unpack(">H", stream, place)
        if marker == 0xDA:
            scans += 1
            _limit(scans, MAX_SCANS, "scans")
            if scans == 1:
                check_exif(exif)
        elif marker == 0xE1 and _read(stream, place + 2, 6) == _EXIF:
            exif += _read(stream, place + 8, length - 8)
            _limit(len(exif), MAX_EXIF, "bytes of EXIF data")
        place += max(length, 2)


def _next_marker(stream: BinaryIO, place: int) -> int:
    while block := _read(stream, place, _BLOCK):
        if found := _JPEG_MARKER.search(block):
            return place + found.start()
        place += max(1, len(block) - 1)  # a marker may begin with the last byte
    raise EOFError


def _check_png(stream: BinaryIO, max_pixels: int) -> None:
    place, chunks = 8, 0
    while (head := _read(stream, place, 8)) and head[4:] != b"IEND":
        chunks += 1
        _limit(chunks, MAX_CHUNKS, "chunks")
        place += 12 + struct.unpack(">I", head[:4])[0]


def _check_gif(stream: BinaryIO, max_pixels: int) -> None:
    (flags,) = _unpack("B", stream, 10)
    place, blocks = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while (kind := _read(stream, place, 1)) and kind not in b",;":
        place += 2 if kind == b"!" else 1
        while kind == b"!" and (size := _read(stream, place, 1)) and size != b"\0":
            place += 1 + size[0]
            blocks += 1
            _limit(blocks, MAX_SEGMENTS, "blocks before its first frame")
        place += kind == b"!"


def _check_tiff(stream: BinaryIO, max_pixels: int) -> None:
    _check_directories(stream, stream.seek(0, 2), max_pixels)


def _check_directories(stream: BinaryIO, end: int, max_pixels: int | None = None) -> None:
    """The directories of a TIFF file of `end` bytes, each of which is visited once."""
    order = {b"II": "<", b"MM": ">"}.get(_read(stream, 0, 2))
    if order is None:
        return
    big = _unpack(order + "H", stream, 2)[0] == 43
    number, place = (order + "Q", 8) if big else (order + "L", 4)
    waiting, seen = [_unpack(number, stream, place)[0]], set[int]()
    entries = 0
    while waiting:
        place = waiting.pop()
        if place in seen or not 0 < place < end:
            continue
        seen.add(place)
        _limit(len(seen), MAX_DIRECTORIES, "directories")
        (size,) = _unpack(order + ("Q" if big else "H"), stream, place)
        entries += size
        _limit(entries, MAX_ENTRIES, "directory entries")
        place += 8 if big else 2
        waiting += _check_directory(stream, end, order, big, place, size, max_pixels)
        waiting += _unpack(number, stream, place + size * (20 if big else 12))


def _check_directory(
    stream: BinaryIO, end: int, order: str, big: bool, place: int, size: int, max_pixels: int | None
) -> list[int]:
    """Check a directory of `size` entries, and return the places of those that it points to."""
    layout, inline = (order + "HHQ", 8) if big else (order + "HHL", 4)
    value_bytes, sides, found = 0, [], []
    step = 20 if big else 12
    for entry in range(place, place + size * step, step):
        tag, kind, amount = _unpack(layout, stream, entry)
        count_bytes = amount * _TIFF_SIZES.get(kind, 0)
        # Pillow reads the values of all entries into memory. In a file that is made well they don't overlap.
        value_bytes += count_bytes
        _limit(value_bytes, end + _BLOCK, "bytes in a directory, which is its size")
        if tag in _TIFF_LAYOUT:
            _limit(amount, MAX_STRIPS, _TIFF_LAYOUT[tag])
        if amount == 1 and kind in _TIFF_NUMBERS and count_bytes <= inline:
            (value,) = _unpack(order + _TIFF_NUMBERS[kind], stream, entry + 4 + inline)
            sides += [value] if tag in _TIFF_TILE_SIDES else []
            found += [value] if tag in _TIFF_DIRECTORIES else []
    if max_pixels is not None and len(sides) == 2:
        _limit(sides[0] * sides[1], max_pixels, "pixels in a tile")
    return found


def _check_jpeg2000(stream: BinaryIO, max_pixels: int) -> None:
    """The main header of the codestream, in a JP2 file or alone."""
    place, previous = 0, b""
    while block := _read(stream, place, _BLOCK):
        if (found := (previous + block).find(b"\xff\x4f\xff\x51")) >= 0:
            place += found - len(previous) + 2
            break
        place, previous = place + len(block), block[-3:]
    length, _, *sizes = _unpack(">HH8I", stream, place + 2)
    width, height, _, _, tile_width, tile_height, tile_left, tile_top = sizes
    columns, rows = -(-(width - tile_left) // tile_width), -(-(height - tile_top) // tile_height)
    _limit(columns * rows, MAX_TILES, "tiles")
    place += 2 + length
    for segment in count():
        _limit(segment, MAX_SEGMENTS, "segments")
        if (marker := _read(stream, place, 2)) == b"\xff\x90":
            return
        (length,) = _unpack(">H", stream, place + 2)
        if marker in _PRECINCTS:
            flags, levels, sides = _PRECINCTS[marker]
            body = _read(stream, place + 4, length - 2)
            precincts = 0
            for resolution, side in enumerate(body[sides:] if body[flags] & 1 else b""):
                scale = max(body[levels] - resolution, 0)
                columns, rows = width >> scale + (side & 15), height >> scale + (side >> 4)
                precincts += (columns + 1) * (rows + 1)
            _limit(precincts, MAX_PRECINCTS, "precincts")
        place += 2 + length


_CHECKS: dict[bytes, Callable[[BinaryIO, int], None]] = {
    b"\xff\xd8\xff": _check_jpeg,
    b"\x89PNG\r\n\x1a\n": _check_png,
    b"GIF8": _check_gif,
    b"II": _check_tiff,
    b"MM": _check_tiff,
    b"\xff\x4f\xff\x51": _check_jpeg2000,
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": _check_jpeg2000,
}
"""By the first bytes of a file. WebP and AVIF files have sizes in their headers that the decoders check."""
