"""The kind `pictures`: damaged and oversized pictures, read as the server and the command line read them."""

import random
from pathlib import Path

import numpy as np
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.apps.server.registry import ServerOptions
from bifrons.blocks.image_fit import Fit
from bifrons.blocks.image_io import open_image, text_chunks
from cases import Kind
from commands import JANUS, VL2
from mutate import INTEGERS, mutate_bytes
from picture_bases import BOMBS, sound_pictures, supported

BASES: dict[str, list[bytes]] = {}
FITS: list[Fit] = []
LIMITS = {"max_pixels": ServerOptions.max_pixels, "max_side": ServerOptions.max_side}


def prepare() -> None:
    """Make the sound pictures, and what fits pictures to the models."""
    BASES.update(sound_pictures())
    for pipeline, folder in ((JanusPipeline, JANUS), (VL2Pipeline, VL2)):
        FITS.append(pipeline.from_pretrained(folder, device="cpu").processor.fit(1))


def build(rng: random.Random, folder: Path) -> Path:
    """A picture file."""
    bombs = list(supported())
    what = rng.randrange(10)
    if what <= 2:
        kind = rng.choice(bombs)
        data = BOMBS[kind](rng)
        if rng.random() < 0.3:
            data = mutate_bytes(rng, data, 60)
    else:
        kind = rng.choice(sorted(BASES))
        data = _damaged(rng, rng.choice(BASES[kind]))
    path = folder / f"{rng.choice(('bytes', 'file'))}.{kind.lower()}"
    path.write_bytes(data)
    return path


def _damaged(rng: random.Random, data: bytes) -> bytes:
    what = rng.randrange(8)
    if what == 0:
        return data[: rng.randrange(len(data))]
    if what == 1:
        width = rng.choice((2, 4))
        at = rng.randrange(min(len(data), 200))
        number = (rng.choice(INTEGERS) % 256**width).to_bytes(width, rng.choice(("little", "big")))
        return data[:at] + number + data[at + width :]
    if what == 2:
        other = rng.choice(BASES[rng.choice(sorted(BASES))])
        at = rng.randrange(len(data))
        return data[:at] + other[rng.randrange(len(other)) :]
    if what == 3:
        return rng.choice((b"\0", b"%PDF-1.7\n", b"PK\x03\x04", b"8BPS", b"\0\0\1\0")) + data
    return mutate_bytes(rng, data, rng.choice((64, 300, len(data))))


def read(path: Path) -> None:
    """Open it, and fit it to both families."""
    if path.stem == "bytes":
        image = open_image(path.read_bytes(), **LIMITS, local_files=False)
    else:
        image = open_image(path, **LIMITS)
    assert image.mode == "RGB"
    text_chunks(image)
    for fit in FITS:
        fitted = fit(image)
        assert fitted.tiles.dtype == np.uint8
        assert fitted.tiles.ndim == 4


PICTURES = Kind("pictures", build, read, prepare=prepare, memory=640, seconds=15)
