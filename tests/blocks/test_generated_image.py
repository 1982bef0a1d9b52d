"""Generated images: what they were generated from is in the files that a plain `save` writes."""

import copy
import io
import json
import pickle

import pytest
from bifrons.blocks.errors import OptionError, PictureError
from bifrons.blocks.generated_image import ASCII, EXIF_IFD, USER_COMMENT, GeneratedImage
from bifrons.blocks.image_io import open_generated, write_png
from PIL import Image, ImageDraw, features
from PIL.PngImagePlugin import PngInfo

SETTINGS = {"prompt": "ein roter Stern ⭐\n(rot)", "seed": "7"}
FORMATS = ["PNG", "JPEG", "WEBP", *(["AVIF"] if features.check("avif") else [])]


@pytest.fixture
def image() -> GeneratedImage:
    return GeneratedImage.of(Image.linear_gradient("L").resize((40, 30)).convert("RGB"), SETTINGS)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def own_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = "mine"
    return exif


@pytest.mark.parametrize("kind", FORMATS)
def test_settings_are_in_the_file_of_a_plain_save(kind, image, tmp_path):
    path = tmp_path / f"a.{'jpg' if kind == 'JPEG' else kind.lower()}"
    image.save(path)
    opened, found = open_generated(path)
    assert opened.size == (40, 30)
    assert found == {**SETTINGS, "pixels": image.info["pixels"]}
    assert open_generated(saved(image, kind.lower()))[1] == found
    with path.open("wb") as stream:
        image.save(stream)
    assert open_generated(path)[1] == found


@pytest.mark.parametrize("kind", FORMATS)
def test_exif_of_the_caller_is_written_too(kind, image):
    for exif in (own_exif(), own_exif().tobytes()):
        content = saved(image, kind, exif=exif)
        assert Image.open(io.BytesIO(content)).getexif()[0x010E] == "mine"
        assert open_generated(content)[1].items() >= SETTINGS.items()
    commented = own_exif()
    commented.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + b"mine"
    read = Image.open(io.BytesIO(saved(image, "JPEG", exif=commented))).getexif()
    assert read.get_ifd(EXIF_IFD)[USER_COMMENT] == ASCII + b"mine"


def test_text_chunks_of_the_caller_win(image):
    chunks = PngInfo()
    chunks.add_text("prompt", "mine")
    chunks.add_itxt("author", "Änne")
    found = open_generated(saved(image, "PNG", pnginfo=chunks))[1]
    assert found == {"prompt": "mine", "author": "Änne", "seed": "7", "pixels": image.info["pixels"]}
    assert len(chunks.chunks) == 2  # the caller's object is as it was


def test_without_info_nothing_is_written(image):
    image.info.clear()
    for kind in FORMATS:
        assert open_generated(saved(image, kind))[1].keys() & {"prompt", "seed", "pixels"} == set()


@pytest.mark.parametrize("way", ["copy()", "copy", "deepcopy", "pickle"])
def test_copies_keep_settings_of_their_own(way, image):
    found = {
        "copy()": image.copy,
        "copy": lambda: copy.copy(image),
        "deepcopy": lambda: copy.deepcopy(image),
        "pickle": lambda: pickle.loads(pickle.dumps(image)),
    }[way]()
    assert isinstance(found, GeneratedImage)
    assert found == image
    found.info["seed"] = "8"
    assert image.info["seed"] == "7"
    assert open_generated(saved(found, "PNG"))[1]["seed"] == "8"


def test_what_is_made_from_it_is_a_plain_image(image):
    assert isinstance(image, Image.Image)
    for made in (image.resize((9, 9)), image.crop((0, 0, 9, 9)), image.convert("L"), image.rotate(20)):
        assert type(made) is Image.Image
        assert open_generated(saved(made, "PNG"))[1] == {}
    assert "prompt" in open_generated_of_writer(image)


def open_generated_of_writer(image: Image.Image) -> dict[str, str]:
    stream = io.BytesIO()
    write_png(image, stream)
    return open_generated(stream.getvalue())[1]


def test_the_digest_tells_other_pixels(image):
    digest = image.info["pixels"]
    assert GeneratedImage.of(image, SETTINGS).info["pixels"] == digest
    ImageDraw.Draw(image).point((3, 3), (255, 0, 0))
    assert image.info["pixels"] == digest
    assert GeneratedImage.of(image, SETTINGS).info["pixels"] != digest


def test_settings_too_long_for_exif_are_refused(image):
    image.info["prompt"] = "x" * 70_000
    with pytest.raises(OptionError, match=r"take 70,\d+ bytes, and EXIF holds 65,000; accepted: a PNG file"):
        saved(image, "JPEG")
    assert open_generated(saved(image, "PNG"))[1]["prompt"] == "x" * 70_000


def test_unknown_formats_are_those_of_pil(image, tmp_path):
    with pytest.raises(ValueError, match="unknown file extension"):
        image.save(tmp_path / "a.nothing")
    image.save(tmp_path / "a.bmp")
    assert open_generated(tmp_path / "a.bmp")[1] == {}


@pytest.mark.parametrize(
    "comment", [b"", ASCII, ASCII + b"[1]", ASCII + b'{"prompt": 1}', ASCII + b"[" * 900, ASCII + b"\xff"]
)
def test_other_comments_hold_no_settings(comment, image):
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    plain = Image.new("RGB", (8, 8))
    assert open_generated(saved(plain, "WEBP", exif=exif))[1] == {}


def test_exif_is_bounded_and_files_are_pictures(image):
    settings = json.dumps({"prompt": "x" * 1_200_000}).encode()
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + settings
    with pytest.raises(PictureError, match="1,000,000 bytes of EXIF"):
        open_generated(saved(Image.new("RGB", (8, 8)), "WEBP", exif=exif))
    with pytest.raises(PictureError, match="is not a picture"):
        open_generated(b"no picture at all")
