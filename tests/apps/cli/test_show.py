"""`bifrons show` and `generate --like`: what a picture's file says of it, and painting it again."""

import json
from pathlib import Path

import pytest
from bifrons.apps.cli import show
from bifrons.blocks.generated_image import GeneratedImage
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image

pytestmark = pytest.mark.usefixtures("loaded")
SETTINGS = {"prompt": "a", "seed": "1", "model": "janus-nano", "dtype": "float32", "quantize": "none"}


@pytest.fixture(scope="module")
def painted(janus_mini: Path, tmp_path_factory) -> Path:
    """A folder with one picture of the pipeline in three formats."""
    folder = tmp_path_factory.mktemp("painted")
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu", "bfloat16", quantize="int8", progress=False)
    picture = pipe.generate("a red cube", seed=2**64 - 1, top_k=40, negative_prompt="blue")[0]
    for suffix in ("png", "jpg", "webp"):
        picture.save(folder / f"a.{suffix}")
    picture.resize((48, 48)).save(folder / "plain.png")
    return folder


def write(path: Path, **settings: str) -> Path:
    image = Image.new("RGB", (16, 16))
    image.info = {**SETTINGS, **settings}
    GeneratedImage.of(image).save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_settings_are_shown(suffix, painted, bifrons, janus_mini):
    lines = bifrons("show", painted / f"a.{suffix}").out.splitlines()
    shown = dict(line.split(": ", 1) for line in lines)
    assert shown.pop("pixels").split(":")[0] == ("as painted" if suffix == "png" else "changed since")
    assert len(shown.pop("fingerprint")) == 16
    assert shown == {
        "prompt": "a red cube",
        "negative_prompt": "blue",
        "seed": str(2**64 - 1),
        "guidance_scale": "5.0",
        "temperature": "1.0",
        "top_k": "40",
        "top_p": "1.0",
        "model": str(janus_mini),
        "dtype": "bfloat16",
        "quantize": "int8",
        "device": "cpu",
        "software": "Bifrons",
        "version": "0.1.0",
        "deterministic": "in the same batch",
    }
    found = json.loads(bifrons("show", painted / f"a.{suffix}", "--json").out)
    assert (found["seed"], found["top_k"], found["temperature"]) == (2**64 - 1, 40, 1.0)
    assert found["unchanged"] is (suffix == "png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_is_painted_again_bit_for_bit(suffix, painted, bifrons, tmp_path):
    done = bifrons("generate", "--like", painted / f"a.{suffix}", "-o", tmp_path / "b.png")
    assert (done.status, done.out.strip()) == (0, str(tmp_path / "b.png"))
    assert f"painted again: the same pixels as {painted / f'a.{suffix}'}\n" in done.err
    with Image.open(tmp_path / "b.png") as again, Image.open(painted / "a.png") as first:
        assert again.tobytes() == first.tobytes()
        assert again.info == first.info


def test_options_that_are_given_win(painted, bifrons, tmp_path, janus_mini):
    out = ("-o", tmp_path, "--json")
    found = json.loads(bifrons("generate", "--like", painted / "a.png", "--seed", 5, "-n", 2, *out).out)
    assert [one["seed"] for one in found["pictures"]] == [5, 6]
    assert {one["negative_prompt"] for one in found["pictures"]} == {"blue"}
    assert "same_pixels" not in found
    done = bifrons("generate", "--like", painted / "a.png", "--dtype", "float32", "-m", janus_mini, *out)
    assert json.loads(done.out)["same_pixels"] is False
    assert "not with the same pixels" in done.err
    assert "dtype is float32, there bfloat16" in done.err


def test_a_size_travels_too(painted, bifrons, tmp_path):
    for source, name in ((painted / "a.png", "big.png"), (tmp_path / "big.png", "again.png")):
        size = ("--resize", "64x32") if name == "big.png" else ()
        assert "the same pixels" in bifrons("generate", "--like", source, *size, "-o", tmp_path / name).err
    assert "resize: 64x32" in bifrons("show", tmp_path / "again.png").out
    assert (tmp_path / "big.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_files_without_settings_fail(painted, failed, tmp_path):
    for command in (("show",), ("generate", "--like")):
        text = failed(*command, painted / "plain.png")
        assert "plain.png holds no settings of a generated picture; accepted: a PNG, JPEG, WebP" in text
        assert "nothing.png" in failed(*command, tmp_path / "nothing.png")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": "-1"}, "holds the seed '-1'"),
        ({"seed": "9" * 20}, "seed is 99999999999999999999"),
        ({"seed": "1" * 5000}, "holds the seed"),
        ({"top_p": "nan"}, "holds the top_p 'nan'"),
        ({"top_p": "7"}, "top_p is 7"),
        ({"temperature": "1e999"}, "temperature is inf"),
        ({"guidance_scale": "1", "negative_prompt": "b"}, "negative_prompt works through guidance"),
        ({"dtype": "int3"}, "holds the dtype 'int3'"),
        ({"quantize": "all"}, "holds the quantize 'all'"),
        ({"device": "meta"}, "holds the device 'meta'"),
        ({"model": "a\nb"}, "holds the model"),
        ({"prompt": "x" * 200_000}, "holds the prompt"),
        ({"resize": "99999x99999"}, "resize is '99999x99999'"),
    ],
)
def test_hostile_settings_are_refused(settings, message, failed, tmp_path):
    path = write(tmp_path / "a.png", **settings)
    assert message in failed("generate", "--like", path)
    assert message in failed("show", path)


@pytest.mark.parametrize("model", ["someone/large", "//host/share/model", "\\\\host\\share", "no-folder"])
def test_a_name_in_a_file_downloads_nothing(model, failed, tmp_path, monkeypatch):
    asked = []
    real = show.open_model
    monkeypatch.setattr(show, "open_model", lambda *args, **more: (asked.append(more), real(*args, **more)))
    text = failed("generate", "--like", write(tmp_path / "a.png", model=model))
    assert "which is not on this machine; accepted: its name or folder by -m" in text
    assert asked == ([] if model.startswith(("/", "\\")) else [{"local_files_only": True}])


def test_control_characters_are_not_printed(bifrons, tmp_path):
    path = write(tmp_path / "a.png", prompt="a\x1b[2J\nseed: 9")
    assert "prompt: a\\u001b[2J\\nseed: 9\n" in bifrons("show", path).out
