"""The kind `settings`: pictures whose settings were changed, for `show` and `generate --like`."""

import random
from pathlib import Path

from bifrons.blocks.generated_image import ASCII, EXIF_IFD, USER_COMMENT, GeneratedImage
from cases import Kind
from commands import JANUS, VL2, run_commands, warm_up
from mutate import INTEGERS, WORDS, mutate_bytes, mutate_json
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SETTINGS = {
    "prompt": "a red star", "negative_prompt": "blue", "seed": "7", "guidance_scale": "2.5",
    "temperature": "1.0", "top_k": "0", "top_p": "1.0", "resize": "48x48", "model": str(JANUS),
    "fingerprint": "0" * 16, "dtype": "float32", "quantize": "none", "device": "cpu",
    "software": "Bifrons", "version": "0.1.0", "deterministic": "True",
}  # fmt: skip
SUFFIXES = (".png", ".png", ".jpg", ".webp")
NUMBERS = ("nan", "inf", "-1", "1e400", "1e-400", "0x10", "١", "²", "1_000", "9" * 400, "4.5.6", "+1", "1e5")
SIZES = ("0x0", "1x1", "99999x99999", "64", "x", "48x48x48", "-8x8")


def build(rng: random.Random, folder: Path) -> list[list[object]]:
    """A case: the commands that read the settings of a picture."""
    path = folder / f"picture{rng.choice(SUFFIXES)}"
    image = Image.new("RGB", (48, 48), "red")
    settings = _changed(rng)
    if rng.random() < 0.3:
        _write_foreign(rng, image, settings, path)
    else:
        if path.suffix != ".png":  # EXIF is short
            settings = {name: value[:2000] for name, value in settings.items()}
        GeneratedImage.of(image, settings).save(path)
    if rng.random() < 0.2:
        path.write_bytes(mutate_bytes(rng, path.read_bytes(), 300))
    like = ["generate", "--like", path, "--eager", "-o", folder / "out.png"]
    model = rng.choice(([], ["-m", JANUS], ["-m", VL2]))
    return [["show", path, *rng.choice(([], ["--json"]))], [*like, *model]]


def _changed(rng: random.Random) -> dict[str, str]:
    settings = dict(SETTINGS)
    if rng.random() < 0.1:
        settings["adapters"] = rng.choice((f"{JANUS}:1.0@{'0' * 16}", "a:1@0", "/:-1@ffffffffffffffff"))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        name = rng.choice(sorted(settings))
        what = rng.randrange(6)
        if what == 0:
            del settings[name]
        elif what == 1:
            settings[name] = rng.choice(WORDS).replace("\ud800", "\ufffd")
        elif what == 2:
            settings[name] = str(rng.choice(INTEGERS) * rng.choice((1, -1)))
        elif what == 3:
            settings[name] = rng.choice(NUMBERS + SIZES)
        elif what == 4:
            settings[name] = settings[rng.choice(sorted(settings))]
        else:
            settings[name] *= rng.choice((2, 50, 1500))
    return settings


def _write_foreign(rng: random.Random, image: Image.Image, settings: dict[str, str], path: Path) -> None:
    """Write settings as other software might: compressed chunks, chunks twice, JSON of any kind in EXIF."""
    if path.suffix == ".png":
        chunks = PngInfo()
        for name, value in settings.items():
            for _ in range(rng.choice((1, 1, 2))):
                chunks.add_text(name, value, zip=rng.random() < 0.3)
        if rng.random() < 0.2:
            chunks.add_text("prompt", "x" * 5_000_000, zip=True)
        image.save(path, pnginfo=chunks)
        return
    comment = mutate_json(rng, settings)[:60_000]
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = rng.choice((ASCII, ASCII, b"", b"UNICODE\0")) + comment
    image.save(path, exif=exif.tobytes())


SETTINGS_KIND = Kind("settings", build, run_commands, prepare=warm_up, memory=1000, seconds=30)
