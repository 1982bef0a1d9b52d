"""`ask --images`: one question about many pictures, as JSON lines that can be gone on with."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from bifrons.apps.cli import ask_many
from bifrons.blocks.chat.pipeline import ChatPipeline
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image

pytestmark = pytest.mark.usefixtures("loaded")


@pytest.fixture
def pictures(tmp_path: Path, parity_picture) -> Path:
    """A folder with three pictures, a text and a hidden file."""
    folder = tmp_path / "pictures [1]"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b c.jpg", "Ä.WEBP")):
        parity_picture(number, 60, 40).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def names(text: str) -> list[str]:
    return [Path(json.loads(line)["image"]).name for line in text.splitlines()]


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """The sizes of the batches that are answered."""
    found, real = [], ChatPipeline.chat_batch

    def spy(self, conversations, *args, **options):
        found.append(len(conversations))
        return real(self, conversations, *args, **options)

    monkeypatch.setattr(ChatPipeline, "chat_batch", spy)
    return found


@pytest.mark.parametrize("family", ["janus", "vl2"])
def test_answers_are_those_of_asking_alone(bifrons, janus_mini, vl2_mini, pictures, tmp_path, family, sizes):
    model = ("-m", janus_mini if family == "janus" else vl2_mini, "--max-new-tokens", 5, "--temperature", 0.8)
    result = bifrons("ask", "What?", "--images", pictures, *model, "--seed", 3, "-o", tmp_path / "c.jsonl")
    assert (result.status, result.out) == (0, "")
    assert sizes == [3]
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text("utf-8").splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.png", "b c.jpg", "Ä.WEBP"]
    for line in lines:
        alone = bifrons("ask", line["image"], "What?", *model, "--seed", 3, "--json")
        alone = json.loads(alone.out)
        assert line["answer"] == alone["answer"]
        assert (line["question"], line["seed"], line["temperature"]) == ("What?", 3, 0.8)


def test_pictures_are_named_in_many_ways(bifrons, janus_mini, pictures, monkeypatch):
    words = ("-m", janus_mini, "--max-new-tokens", 1)
    monkeypatch.setenv("HOME", str(pictures.parent))
    (pictures.parent / "plain").symlink_to(pictures)
    for given, expected in [
        ([pictures / "a.png", pictures / "b c.jpg"], ["a.png", "b c.jpg"]),
        (["~/plain/*.[pj]*g"], ["a.png", "b c.jpg"]),
        ([pictures / "a.png", pictures, pictures / "a.png"], ["a.png", "b c.jpg", "Ä.WEBP"]),
        ([f"file://{pictures}/b%20c.jpg"], ["b c.jpg"]),
    ]:
        assert names(bifrons("ask", "Hm?", "--images", *given, *words).out) == expected
    # A shell's expansion swallows a question that stands behind it.
    assert names(bifrons("ask", "--images", pictures / "a.png", "Hm?", *words).out) == ["a.png"]
    output = json.loads(bifrons("ask", "Hm?", "--images", pictures / "a.png", *words, "--json").out)
    assert [line["image"] for line in output["answers"]] == [str(pictures / "a.png")]


def test_one_that_cannot_be_read_stops_nothing(bifrons, janus_mini, pictures, tmp_path, sizes):
    words = ("-m", janus_mini, "--max-new-tokens", 1, "-o", tmp_path / "c.jsonl", "--batch-size", 2)
    result = bifrons("ask", "Hm?", "--images", f"{pictures.parent}/*/*", tmp_path / "none.png", *words)
    assert result.status == 1
    assert result.err.splitlines()[-1] == "2 of 5 pictures could not be answered"
    text = (tmp_path / "c.jsonl").read_text("utf-8")
    assert names(text) == ["a.png", "b c.jpg", "notes.txt", "Ä.WEBP", "none.png"]
    errors = [json.loads(line).get("error", "") for line in text.splitlines()]
    assert [message[-14:] for message in errors if message] == [errors[2][-14:], "does not exist"]
    assert "is not a picture" in errors[2]
    assert f"notes.txt: {errors[2]}" in result.err
    # Again: answers stay, errors are tried again, and those that stay are not written twice.
    Image.new("RGB", (9, 9)).save(tmp_path / "none.png")
    result = bifrons("ask", "Hm?", "--images", f"{pictures.parent}/*/*", tmp_path / "none.png", *words)
    assert "answered already: 3 of 5 pictures" in result.err
    added = (tmp_path / "c.jsonl").read_text("utf-8").removeprefix(text)
    assert names(added) == ["none.png"]
    assert "answer" in json.loads(added)
    assert sizes == [2, 1, 1]


def test_too_long_a_conversation_is_an_error_of_its_own_line(bifrons, janus_mini, pictures, monkeypatch):
    real = JanusPipeline.prompts

    def prompts(self, conversations, *args, **options):
        if any(one[0]["content"][0]["image"].size == (60, 41) for one in conversations):
            raise ask_many.PromptError("it is too long")
        return real(self, conversations, *args, **options)

    monkeypatch.setattr(JanusPipeline, "prompts", prompts)
    Image.new("RGB", (60, 41)).save(pictures / "b c.jpg")
    result = bifrons("ask", "Hm?", "--images", pictures, "-m", janus_mini, "--max-new-tokens", 1)
    assert result.status == 1
    assert [json.loads(line).get("error") for line in result.out.splitlines()] == [
        None,
        "it is too long",
        None,
    ]


def test_lines_count_only_with_the_same_settings(bifrons, refused, janus_mini, pictures, tmp_path, sizes):
    path = tmp_path / "c.jsonl"
    words = ("--images", pictures, "-m", janus_mini, "-o", path, "--max-new-tokens")
    assert bifrons("ask", "Hm?", *words, 1).status == 0
    content = path.read_bytes()
    assert bifrons("ask", "Hm?", *words, 1).status == 0
    assert path.read_bytes() == content
    for other in (("ask", "Hm?", *words, 2), ("ask", "What?", *words, 1)):
        bifrons(*other)
    assert sizes == [3, 3, 3]
    path.write_bytes(content[:-1])  # an editor may drop the last line feed
    bifrons("ask", "Hm?", *words, 1)
    assert path.read_bytes() == content
    path.write_bytes(content[:-20])  # what a crash leaves
    assert "the last line is incomplete and is dropped" in bifrons("ask", "Hm?", *words, 1).err
    assert names(path.read_text("utf-8")) == ["a.png", "b c.jpg", "Ä.WEBP"]
    assert sizes == [3, 3, 3, 1]
    for other in (b"a,b\n1,2\n", b"[1]\n", b'{"prompt": "x"}\n'):
        path.write_bytes(other)
        assert "line 1 is " in refused("ask", "Hm?", *words, 1)
        assert path.read_bytes() == other


def interrupt():
    raise KeyboardInterrupt


def exhaust():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def fill_the_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (interrupt, 130, "interrupted; answered: 2 of 3 pictures in "),
        (exhaust, 1, "out of memory while answering about 1 picture; accepted: a smaller max-new-tokens"),
        (fill_the_disk, 1, "No space left on device; answered: 2 of 3 pictures in "),
    ],
)
def test_finished_batches_stay(
    bifrons, janus_mini, pictures, tmp_path, monkeypatch, failure, status, message
):
    real, calls = ChatPipeline.chat_batch, []

    def fail(self, conversations, *args, **options):
        calls.append(len(conversations))
        if len(calls) == 2 and failure is not fill_the_disk:
            failure()
        return real(self, conversations, *args, **options)

    def sync(stream):
        if len(calls) == 2:
            failure()

    monkeypatch.setattr(ChatPipeline, "chat_batch", fail)
    monkeypatch.setattr(ask_many, "sync", sync)
    path = tmp_path / "c.jsonl"
    words = ("--images", pictures, "-m", janus_mini, "-o", path, "--max-new-tokens", 1, "--batch-size", 2)
    result = bifrons("ask", "Hm?", *words)
    assert result.status == status
    assert message in result.err.splitlines()[-1]
    assert "the same command goes on with the rest" in result.err
    assert names(path.read_text("utf-8")) == ["a.png", "b c.jpg"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Hm?", "--images", "none/*.png"], "no file matches 'none/*.png'"),
        (["Hm?", "--images", "EMPTY"], "is a folder without pictures; accepted: .apng, .avif"),
        (["Hm?", "--images", "file://host/a.png"], "is on another machine"),
        (["Hm?", "--images", "a.png", "-o", "c.txt"], "ends in .jsonl"),
        (["a.png", "Hm?", "--images", "b.png"], "also stand before the question"),
        (["--images", "a.png"], "have no question"),
        ([" ", "--images", "a.png"], "the question is ' '"),
        (["Hm?", "-o", "c.jsonl"], "output is 'c.jsonl'; accepted with --images"),
        (["Hm?", "--batch-size", "3"], "batch-size is 3; accepted with --images"),
        (["Hm?", "--images", "a.png", "--batch-size", "0"], "batch_size is 0"),
        ([], "there is no question"),
    ],
)
def test_refused(refused, tmp_path, words, message):
    words = [str(tmp_path) if word == "EMPTY" else word for word in words]
    unread = any(part in message for part in ("no file", "without pictures", "another machine"))
    assert message in refused("ask", *words, "-m", "no-such-model", status=1 if unread else 2)
