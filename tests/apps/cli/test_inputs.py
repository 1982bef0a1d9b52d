"""Codes, pictures and chats in the forms in which people's shells and terminals send them."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image

pytestmark = pytest.mark.usefixtures("loaded")
CODES = [(7 * number) % 512 for number in range(36)]
ROWS = [CODES[row * 6 : row * 6 + 6] for row in range(6)]


@pytest.fixture
def picture(tmp_path: Path, parity_picture) -> Path:
    path = tmp_path / "a b.png"
    parity_picture(1, 70, 50).save(path)
    return path


def pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)), "utf-8"))


@pytest.fixture
def decode(bifrons, janus_mini, tmp_path):
    """`decode(source)`: the pixels."""

    def run(source):
        output = json.loads(
            bifrons("decode", source, "-m", janus_mini, "-o", tmp_path / "x.png", "--force", "--json").out
        )
        return Image.open(output["file"]).tobytes()

    return run


def test_codes_in_all_shapes_and_encodings(decode, janus_mini, tmp_path, monkeypatch):
    expected = JanusPipeline.from_pretrained(janus_mini, "cpu").decode_codes(CODES)[0].tobytes()
    path = tmp_path / "codes.json"
    for value in (CODES, [CODES], ROWS, [ROWS], {"codes": [CODES], "grid": [6, 6]}, {"codes": ROWS}):
        path.write_text(json.dumps(value))
        assert decode(path) == expected
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        path.write_bytes((json.dumps({"codes": CODES, "model": "Ä"}) + "\r\n").encode(encoding))
        assert decode(path) == expected
    for shape in ((36,), (1, 36), (6, 6), (1, 6, 6)):
        np.save(tmp_path / "codes.npy", np.array(CODES, np.int64).reshape(shape))
        assert decode(tmp_path / "codes.npy") == expected
    pipe(monkeypatch, json.dumps(CODES).encode("utf-16"))
    assert decode("-") == expected
    pipe(monkeypatch, (tmp_path / "codes.npy").read_bytes())
    assert decode("-") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([CODES, CODES], "holds codes in a grid of [2, 36]"),
        ([CODES, CODES[1:]], "accepted: [36]"),
        ([[]], "holds no codes of one picture"),
        ([[[CODES], [CODES]]], "holds no codes of one picture"),
        ([[1, 2], 3], "holds no codes of one picture"),
    ],
)
def test_codes_of_other_shapes(refused, janus_mini, tmp_path, value, message):
    path = tmp_path / "codes.json"
    path.write_text(json.dumps(value))
    assert message in refused("decode", path, "-m", janus_mini)


def test_pictures_from_a_pipe(bifrons, refused, failed, janus_mini, vl2_mini, picture, monkeypatch):
    model = ("-m", janus_mini, "--max-new-tokens", 3)
    expected = bifrons("ask", picture, "What?", *model).out
    pipe(monkeypatch, picture.read_bytes())
    assert bifrons("ask", "-", "What?", *model).out == expected
    expected = bifrons("encode", picture, "-m", janus_mini).out
    pipe(monkeypatch, picture.read_bytes())
    assert bifrons("encode", "-", "-m", janus_mini).out == expected
    pipe(monkeypatch, picture.read_bytes())
    assert bifrons("locate", "-", "the dog", "-m", vl2_mini).status == 0
    pipe(monkeypatch, b"no picture")
    assert "is not a picture" in failed("encode", "-", "-m", janus_mini)
    pipe(monkeypatch, picture.read_bytes())
    assert "no question" in refused("ask", "-", *model)
    monkeypatch.setattr(sys, "stdin", None)
    assert "- reads standard input" in refused("ask", "-", "What?", *model)


def test_home_folders_within_quotes(bifrons, janus_mini, picture, monkeypatch):
    monkeypatch.setenv("HOME", str(picture.parent))
    assert bifrons("ask", "~/a b.png", "What?", "-m", janus_mini, "--max-new-tokens", 1).status == 0
    assert bifrons("encode", "~/a b.png", "-m", janus_mini, "-o", "~/codes.json").status == 0
    assert bifrons("decode", "~/codes.json", "-m", janus_mini, "-o", "~/back.png").status == 0
    assert bifrons("generate", "x", "-m", janus_mini, "-o", "~/out").status == 0
    found = {path.name for path in picture.parent.iterdir()}
    assert found == {"a b.png", "codes.json", "back.png", "out"}


def test_the_question_comes_last(refused, janus_mini, picture):
    for words in ((picture,), (picture, picture), ("How many?", picture)):
        assert "write the question after it" in refused("ask", *words, "-m", janus_mini)


OTHERS = {
    "is codes, not a picture; bifrons decode makes their picture": json.dumps(
        {"grid": [6, 6], "codes": CODES}
    ),
    "is codes, not": "\ufeff" + json.dumps(ROWS),
    "is a PDF, not a picture; save its pages as pictures": "%PDF-1.7",
    "is an archive, not a picture; unpack it": "PK\x03\x04\x14\0",
    "is a safetensors file of weights, not a picture": '\x40\0\0\0\0\0\0\0{"a": {}}',
    "is a video, not a picture": "\0\0\0\x20ftypisom",
    "is a HEIC picture, not a picture": "\0\0\0\x20ftypheic",
    "is a saved web page": "<!doctype html>",
}


@pytest.mark.parametrize(("message", "content"), OTHERS.items())
def test_files_of_another_kind_in_the_place_of_a_picture(failed, tmp_path, message, content, monkeypatch):
    path = tmp_path / "given.png"
    path.write_bytes(content.encode("utf-16-le" if content[0] == "\ufeff" else "utf-8"))
    for words in (("encode", path), ("ask", path, "What?"), ("locate", path, "a star"), ("show", path)):
        assert f"given.png {message}" in failed(*words)
    pipe(monkeypatch, path.read_bytes())
    assert f"- {message}" in failed("encode", "-")


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff", ".ppm", ".avif", ".jp2"]
)
def test_pictures_in_the_place_of_another_kind(failed, refused, picture, suffix):
    path = picture.with_name(f"given{suffix}")
    Image.open(picture).save(path)
    for wanted, words in (("codes", ("decode", path)), ("prompts", ("generate", "--prompts", path))):
        assert (
            f"{suffix} is a picture, not {wanted}; bifrons encode writes its codes, bifrons show"
            in failed(*words)
        )
    assert "there is a picture, " in refused("ask", path)


def test_files_in_the_place_of_a_text(refused, picture, tmp_path):
    (tmp_path / "prompts.txt").write_text("P3 racing cars\n")
    given = tmp_path / "prompts.txt"
    assert "--prompts FILE reads prompts" in refused("generate", given)
    assert "--like FILE paints a picture again" in refused("generate", picture)
    assert "the question is the name of a file" in refused("ask", picture, given)
    assert "bifrons locate PICTURE PHRASE" in refused("locate", "a star", picture)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_questions_are_refused_before_a_model_is_loaded(refused, picture, question):
    for words in ((picture, question), (question,), (question, "--images", picture)):
        assert "accepted: a text that is not empty" in refused("ask", *words, "-m", "no/such-model")
    assert "the phrase is empty" in refused("locate", picture, question, "-m", "no/such-model")


def test_globs_before_a_question(bifrons, failed, janus_mini, picture, monkeypatch):
    """As the shell of Windows passes them on."""
    monkeypatch.chdir(picture.parent)
    words = ("ask", "*.png", picture, "Hm?", "-m", janus_mini, "--max-new-tokens", 1, "--json")
    assert json.loads(bifrons(*words).out)["images"] == ["a b.png", str(picture)]
    assert "no file matches '*.gif'" in failed("ask", "*.gif", "Hm?", "-m", janus_mini)


def test_exif(bifrons, janus_mini, vl2_mini, tmp_path, parity_picture, monkeypatch):
    """Pictures are upright; with `--exif ignore` they are as stored, whatever the pipeline would do."""
    stored, exif = parity_picture(3, 60, 40), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    names = "phone.png", "upright.png", "stored.png"
    phone, upright, plain = (tmp_path / name for name in names)
    stored.save(phone, exif=exif)
    stored.transpose(Image.Transpose.ROTATE_270).save(upright)
    stored.save(plain)
    for words in (
        ("encode", "PICTURE", "-m", janus_mini),
        ("ask", "PICTURE", "What?", "-m", janus_mini, "--max-new-tokens", 6),
        ("locate", "PICTURE", "a dog", "-m", vl2_mini),
    ):
        run = {
            one: bifrons(*(one if word == "PICTURE" else word for word in words)).out
            for one in (upright, plain)
        }
        at = words.index("PICTURE")
        given = [*words[:at], phone, *words[at + 1 :]]
        assert bifrons(*given).out == run[upright]
        assert bifrons(*given, "--exif", "ignore").out == run[plain]
    encoded = [bifrons("encode", one, "-m", janus_mini).out for one in (upright, plain)]
    assert encoded[0] != encoded[1]
    lines = f"/image {phone}\n".encode()
    for option, size in ((), "40 x 60"), (("--exif", "ignore"), "60 x 40"):
        pipe(monkeypatch, lines)
        assert f"phone.png: {size}," in bifrons("chat", "-m", janus_mini, *option).err
    many = ("ask", "Hm?", "--images", phone, "-m", janus_mini, "--max-new-tokens", 1, "--exif", "ignore")
    assert json.loads(bifrons(*many).out)["exif"] == "ignore"


SEEN = "(PATH: 70 x 50, goes with your next message)"


@pytest.mark.parametrize(
    "line",
    [
        "/image PATH",
        "/image 'PATH'",
        '/image   "PATH"  ',
        "/image ESCAPED",
        "/image ~/a\\ b.png",
        "/image '~/a b.png'",
        "/image file://URL",
        "/image FOLDER",
        "/image 'FOLDER/*.png'",
        "'PATH'",
        "ESCAPED ",
        "file://URL",
        "~/a\\ b.png",
    ],
)
def test_pictures_in_a_chat(bifrons, janus_mini, picture, monkeypatch, line):
    monkeypatch.setenv("HOME", str(picture.parent))
    forms = {
        "PATH": str(picture),
        "ESCAPED": str(picture).replace(" ", "\\ "),
        "URL": str(picture).replace(" ", "%20"),
        "FOLDER": str(picture.parent),
    }
    for name, form in forms.items():
        line = line.replace(name, form)
    pipe(monkeypatch, f"{line}\nWhat?\n".encode())
    result = bifrons("chat", "-m", janus_mini, "--max-new-tokens", 2)
    assert result.status == 0
    assert SEEN.replace("PATH", str(picture)) in result.err
    assert result.out == bifrons("ask", picture, "What?", "-m", janus_mini, "--max-new-tokens", 2).out


def test_several_pictures_in_a_chat_or_none(bifrons, janus_mini, picture, monkeypatch, parity_picture):
    parity_picture(2, 30, 40).save(picture.parent / "it's.png")
    lines = f"/image '{picture}' nowhere.png\n/image \"{picture}\n/image\n/image {picture.parent}/it's.png\n"
    pipe(monkeypatch, f"{lines}'{picture}' \"{picture.parent}/it's.png\"\n".encode("utf-16"))
    result = bifrons("chat", "-m", janus_mini)
    assert result.status == 1
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert [message[-50:] for message in errors] == [
        errors[0][-50:],
        errors[1][-50:],
        "error: which picture? accepted: /image PATH, with several paths too"[-50:],
    ]
    assert "'nowhere.png' does not exist" in errors[0]
    assert "No closing quotation" in errors[1]
    assert result.err.count("goes with your next message") == 3
