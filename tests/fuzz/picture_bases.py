"""Sound pictures of every format and mode that Pillow writes here, and large or endless ones made by hand."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, features

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": (
        {},
        {"progressive": True},
        {"subsampling": 2, "restart_marker_blocks": 1},
        {"dpi": (1, 1), "comment": b"x"},
    ),
    "JPEG2000": ({}, {"irreversible": True}, {"tile_size": (16, 16)}, {"num_resolutions": 1, "no_jp2": True}),
    "PNG": ({}, {"bits": 4}, {"save_all": True, "frames": 3}),
    "GIF": (
        {},
        {"interlace": 0},
        {"save_all": True, "frames": 4, "loop": 0, "disposal": 2, "transparency": 0},
    ),
    "BMP": ({},),
    "TIFF": (
        *(
            {"compression": name}
            for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd")
        ),
        *({"save_all": True, "frames": 3}, {"big_tiff": True}, {"strip_size": 100}),
    ),
    "WEBP": ({}, {"lossless": True}, {"save_all": True, "frames": 3}),
    "AVIF": (
        {},
        {"speed": 10, "max_threads": 1},
        {"save_all": True, "frames": 2, "speed": 10, "max_threads": 1},
    ),
    "MPO": ({}, {"save_all": True, "frames": 2}),
    "PPM": ({},),
}


def sound_pictures() -> dict[str, list[bytes]]:
    """By format: files of 48 x 36 pixels in all modes and with all options that Pillow can write."""
    red = Image.linear_gradient("L").resize((48, 36))
    colours = Image.merge("RGB", (red, red.rotate(90).resize((48, 36)), red.rotate(180)))
    found: dict[str, list[bytes]] = {}
    for kind, choices in OPTIONS.items():
        for mode in MODES:
            for options in choices:
                data = _saved(colours, kind, mode, dict(options))
                if data is not None:
                    found.setdefault(kind, []).append(data)
    found["PPM"] += [b"P1 4 3\n" + b"0 1 " * 6, b"P3 2 2 255\n" + b"9 " * 12, b"P2 #x\n3 2 1000 " + b"7 " * 6]
    found["PPM"] += [
        b"P5 4 2 65535\n" + bytes(16),
        b"Pf 2 2 -1.0\n" + struct.pack("<4f", 0, 1, float("nan"), 9),
    ]
    return found


def _saved(colours: Image.Image, kind: str, mode: str, options: dict[str, Any]) -> bytes | None:
    """The file, or None if the format does not have that."""
    if mode not in {"group4": ("1",), "jpeg": ("L", "RGB")}.get(options.get("compression", ""), (mode,)):
        return None  # libtiff crashes when it writes what it can't
    stream, frames = io.BytesIO(), options.pop("frames", 1)
    try:
        picture = colours.convert("L").convert("I").point(lambda v: v * 200) if mode == "I;16" else colours
        picture = picture.convert("RGBA").convert(mode) if mode == "PA" else picture.convert(mode)
        if frames > 1:
            options["append_images"] = [picture.rotate(30 * n) for n in range(1, frames)]
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(stream, kind, **options, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    except (OSError, ValueError, KeyError, SystemError, RuntimeError, TypeError):
        return None
    return stream.getvalue()


# --- large ones ----------------------------------------------------------------------------------------


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rng: random.Random) -> bytes:
    """Any size, depth and colour, with few or many chunks, some of which inflate."""
    width, height = rng.choice(SIZES)
    depth, colour = rng.choice(((1, 0), (8, 2), (16, 6), (8, 3), (16, 0), (2, 3), (8, 4), (3, 7)))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.choice((0, 0, 1, 9)))
    large = zlib.compress(bytes(rng.choice((99, 10**6, 50_000_000))), 1)
    more: list[bytes] = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.choice(
            (
                b"zTXt",
                b"iCCP",
                b"iTXt",
                b"tEXt",
                b"eXIf",
                b"PLTE",
                b"tRNS",
                b"acTL",
                b"fcTL",
                b"gAMA",
                b"pHYs",
            )
        )
        bodies = {b"zTXt": b"k\0\0" + large, b"iCCP": b"k\0\0" + large, b"iTXt": b"k\0\1\0\0\0" + large}
        bodies |= {
            b"PLTE": bytes(rng.choice((3, 768, 3000, 5))),
            b"acTL": struct.pack(">II", rng.choice((0, 2, 2**31)), 0),
        }
        body = bodies.get(kind, rng.randbytes(rng.choice((0, 4, 26, 300))))
        more += [_chunk(kind, body)] * rng.choice((1, 1, 1, 100, 20_000 if len(body) < 400 else 1))
    rows = zlib.compress(bytes(min(60_000_000, height * (1 + width * 8))), 1)
    parts = [rows] if rng.random() < 0.7 else [rows[i : i + 1] for i in range(min(len(rows), 50_000))]
    data = [_chunk(b"IDAT", part) for part in parts]
    return b"".join([b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head), *more, *data, _chunk(b"IEND", b"")])


SIZES = (
    (4000, 3999), (4001, 4001), (8000, 8000), (1, 16_000_000), (16_000_000, 1), (16_384, 900), (48, 36),
    (65_535, 65_535), (2**31 - 1, 1), (0, 5), (1, 1), (2**31, 2**31), (1, 60_000), (30_000, 30_000),
)  # fmt: skip


def jpeg(rng: random.Random) -> bytes:
    """A JPEG with many scans, segments or a large stated size."""
    stream = io.BytesIO()
    side = rng.choice((48, 300, 1500))
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(
        stream, "JPEG", progressive=rng.random() < 0.7
    )
    data = stream.getvalue()
    what = rng.randrange(5)
    if what <= 1:  # the last scan once more and again
        start = data.rindex(b"\xff\xda")
        scan = data[start:-2]
        return data[:-2] + scan * min(rng.choice((5, 200, 7000)), 2_000_000 // len(scan)) + data[-2:]
    if what == 2:
        at = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data)
        width, height = rng.choice(
            ((65_535, 65_535), (4000, 4000), (65_535, 1), (0, 0), (1, 65_500), (65_500, 200))
        )
        return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
    marker = bytes([0xFF, rng.choice((0xE0, 0xE1, 0xE2, 0xFE, 0xDB, 0xC4, 0xDD, 0xED))])
    body = rng.choice(
        (
            b"",
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
            b"ICC_PROFILE\0\1\xff",
            b"MPF\0II*\0\x08\0\0\0\x09\0",
            rng.randbytes(60),
        )
    )
    segment = marker + struct.pack(">H", len(body) + 2) + body
    return data[:2] + segment * rng.choice((1, 300, 60_000)) + data[2:]


def gif(rng: random.Random) -> bytes:
    """A GIF with many frames, or with frames that leave its screen."""
    screen = rng.choice(((48, 36), (4000, 4000), (65_535, 65_535), (0, 0)))
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF0, 0, 0) + bytes(6)
    left, top, width, height = (rng.choice((0, 0, 1, 48, 4000, 65_535)) for _ in range(4))
    frame = b"," + struct.pack("<HHHHB", left, top, width, height, rng.choice((0, 0x40, 0x87)))
    blocks = rng.choice(
        (
            b"\x02\x02\x4c\x01\0",
            b"\x0b" + b"\xff" + bytes(255) + b"\0",
            b"\x08" + (b"\xfe" + bytes(254)) * 99 + b"\0",
        )
    )
    control = b"!\xf9\x04" + bytes([rng.choice((0, 4, 9, 13)), 0, 0, 0]) + b"\0"
    comment = b"!\xfe" + (b"\xff" + b"x" * 255) * rng.choice((1, 3000)) + b"\0"
    body = rng.choice((frame + blocks, control + frame + blocks, comment))
    return head + body * rng.choice((1, 3, 100, 20_000 if len(body) < 500 else 3)) + frame + blocks + b";"


def tiff(rng: random.Random) -> bytes:
    """A TIFF with odd tags: counts, strips, tiles, samples, loops of directories."""
    order = rng.choice("<>")
    width, height = rng.choice(SIZES[:-1])
    samples = rng.choice((1, 1, 3, 4, 2, 200, 65_535))
    count = rng.choice((1, 1, 2, 5000, 1_000_000, 2**31, 2**32 - 1))
    tags: dict[int, tuple[int, int, int]] = {
        256: (4, 1, width), 257: (4, 1, height),
        258: (3, samples if samples < 3 else 1, rng.choice((1, 8, 8, 16, 32, 64))),
        259: (3, 1, rng.choice((1, 1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34676, 34712, 50000, 50001, 9))),
        262: (3, 1, rng.choice((0, 1, 2, 3, 5, 6, 8, 32803))), 273: (4, count, 8), 277: (3, 1, samples),
        278: (4, 1, rng.choice((1, 1, height, 0, 2**32 - 1))), 279: (4, count, rng.choice((20, 0, 2**31))),
        284: (3, 1, rng.choice((1, 2))), 317: (3, 1, rng.choice((1, 2, 3))),
        339: (3, 1, rng.choice((1, 2, 3, 6))),
    }  # fmt: skip
    for _ in range(rng.choice((0, 1, 3))):
        kind, number = rng.choice((1, 2, 3, 4, 5, 7, 12, 13, 16, 99)), rng.choice((0, 1, 9, 2**20, 2**32 - 1))
        tags[rng.choice((274, 320, 322, 323, 324, 330, 338, 347, 34665, 34853, 34675, 700, 50838))] = (
            kind,
            number,
            rng.choice((8, 1, 2**31)),
        )
    for name in rng.sample(sorted(tags), rng.choice((0, 0, 1, 4))):
        del tags[name]
    entries = b""
    for name, (kind, number, value) in sorted(tags.items()):
        short = kind == 3 and number == 1
        packed = struct.pack(
            order + ("HH" if short else "I"), *((value % 65_536, 0) if short else (value % 2**32,))
        )
        entries += struct.pack(order + "HHI", name, kind, number) + packed
    start = 8 + (filler := rng.choice((100, 3_000_000)))
    following = rng.choice((0, 0, start, 8, 2**32 - 1))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following)
    return mark + struct.pack(order + "I", start) + bytes(filler) + directory


def jpeg2000(rng: random.Random) -> bytes:
    """A code stream with a large size, tiny tiles or many components."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 8, 7)).save(stream, "JPEG2000", no_jp2=rng.random() < 0.7)
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\x51") + 6
    width, height = rng.choice(SIZES)
    struct.pack_into(">II", data, at, width % 2**32, height % 2**32)
    if rng.random() < 0.7:
        struct.pack_into(
            ">II",
            data,
            at + 16,
            *rng.choice(((1, 1), (16, 1), (width % 2**32, height % 2**32), (0, 0), (2**32 - 1, 9))),
        )
    if rng.random() < 0.2:
        struct.pack_into(">H", data, at + 32, rng.choice((1, 4, 16_384, 0)))
    cod = data.index(b"\xff\x52")
    if rng.random() < 0.3:
        struct.pack_into(">H", data, cod + 6, rng.choice((65_535, 0, 300)))
    if rng.random() < 0.3:
        data[cod + 9] = rng.choice((0, 32, 33, 255))
    return bytes(data)


def bmp(rng: random.Random) -> bytes:
    """A BMP with any size, depth, compression, masks and number of colours."""
    width, height = rng.choice(SIZES)
    bits, compression = rng.choice((1, 4, 8, 16, 24, 32, 5)), rng.choice((0, 0, 1, 2, 3, 4, 6))
    colours = rng.choice((0, 2, 256, 2**31, 2**32 - 1))
    size = rng.choice((40, 12, 52, 56, 64, 108, 124, 0, 2**31))
    sides = (width + 2**31) % 2**32 - 2**31, rng.choice((1, -1)) * (height % 2**31)
    information = struct.pack("<iiHHIIiiII", *sides, 1, bits, compression, 0, 1, 1, colours, 0)
    pixels = rng.choice((rng.randbytes(300), b"\0\2\xff\xff" * 999, b"\xff\0" * 9999, bytes(60_000)))
    offset = rng.choice((54, 14, 1078, 2**31, 0))
    masks = struct.pack("<IIII", *(rng.choice((0xFF0000, 0xFF00, 0xFF, 0, 1, 2**32 - 1)) for _ in range(4)))
    return (
        b"BM" + struct.pack("<IHHI", 0, 0, 0, offset) + struct.pack("<I", size) + information + masks + pixels
    )


def ppm(rng: random.Random) -> bytes:
    """A portable map with any size and maximum, in text or bytes."""
    mark = rng.choice((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"P7", b"Py", b"P0CMYK", b"PyCMYK"))
    width, height = rng.choice(SIZES)
    maximum = rng.choice((b"255", b"65535", b"65536", b"0", b"1", b"9" * 30, b"-1", b"1e3"))
    note = rng.choice((b"", b"#" + b"x" * 10**6 + b"\n", b"# a\n" * 9999))
    body = rng.choice((bytes(300), b"1 " * 300_000, b"9" * 10**6, b"#", b" " * 10**6))
    return mark + b" " + note + b"%d %d " % (width, height) + maximum + b"\n" + body


def webp(rng: random.Random) -> bytes:
    """A WebP with a large canvas or many frames."""
    stream = io.BytesIO()
    frames = [Image.frombytes("RGB", (48, 36), rng.randbytes(48 * 36 * 3)) for _ in range(3)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    data = stream.getvalue()
    at = data.index(b"ANMF")
    frame = data[at : at + 8 + struct.unpack("<I", data[at + 4 : at + 8])[0]]
    side = rng.choice((0, 47, 3999, 16_383, 2**24 - 1)).to_bytes(3, "little")
    canvas = data[12:24] + side * 2 if rng.random() < 0.6 else data[12:30]
    body = b"WEBP" + canvas + data[30:at] + frame * rng.choice((1, 10, 20_000))
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS: dict[str, Callable[[random.Random], bytes]] = {
    "PNG": png, "JPEG": jpeg, "GIF": gif, "TIFF": tiff, "JPEG2000": jpeg2000, "BMP": bmp, "PPM": ppm,
    "WEBP": webp,
}  # fmt: skip


def supported() -> Iterator[str]:
    """The kinds of bombs that this Pillow can make."""
    needs = {"JPEG2000": "jpg_2000", "WEBP": "webp"}
    return (kind for kind in BOMBS if kind not in needs or features.check(needs[kind]))
