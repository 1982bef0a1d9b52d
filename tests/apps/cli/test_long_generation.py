"""`generate` of many pictures: what ends it early loses one batch, and it goes on where it stopped."""

import errno
import json
import os
import signal
from itertools import count
from pathlib import Path

import pytest
import torch
from bifrons.apps.cli import generate, outputs
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image

pytestmark = pytest.mark.usefixtures("loaded")


def fail_in_call(monkeypatch, number: int, failure) -> list[int]:
    """Make the `number`th call of `JanusPipeline.generate` fail; returns the batches' sizes."""
    sizes, real = [], JanusPipeline.generate

    def spy(self, prompts, *args, **options):
        sizes.append(len(prompts))
        if len(sizes) == number:
            failure()
        return real(self, prompts, *args, **options)

    monkeypatch.setattr(JanusPipeline, "generate", spy)
    return sizes


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def hang_up():
    os.kill(os.getpid(), signal.SIGHUP)


def exhaust_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def exhaust_cpu():
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")


ENDS = [
    (interrupt, 130, "interrupted; 2 of 5 pictures are written to "),
    (terminate, 143, "terminated; 2 of 5 pictures are written to "),
    (hang_up, 129, "terminated; 2 of 5 pictures are written to "),
    (exhaust_cuda, 1, "out of memory while painting 2 pictures; "),
    (exhaust_cpu, 1, "out of memory while painting 2 pictures; "),
]


@pytest.mark.parametrize(
    ("failure", "status", "message"), ENDS, ids=lambda value: getattr(value, "__name__", "")
)
def test_finished_batches_stay(bifrons, janus_mini, tmp_path, monkeypatch, failure, status, message):
    words = ("generate", "x", "-n", 5, "--seed", 1, "-m", janus_mini, "-o", tmp_path, "--batch-size", 2)
    with monkeypatch.context() as patch:
        sizes = fail_in_call(patch, 2, failure)
        result = bifrons(*words)
    assert result.status == status
    last = result.err.splitlines()[-1]
    assert message in last
    assert "--skip-existing goes on" in last
    assert ("accepted: --batch-size 1, a smaller dtype or another device" in last) == (status == 1)
    assert "Traceback" not in result.err
    assert sizes == [2, 2]
    names = ["1-x-seed1.png", "2-x-seed2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [Path(line).name for line in result.out.splitlines()] == names
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_rest_is_painted_later(bifrons, janus_mini, tmp_path, monkeypatch, bitwise_products):
    words = ("generate", "x", "-n", 5, "--seed", 1, "-m", janus_mini, "-o", tmp_path, "--batch-size", 2)
    with monkeypatch.context() as patch:
        fail_in_call(patch, 2, interrupt)
        stopped = json.loads(bifrons(*words, "--json").out)
    assert stopped["error"].startswith("interrupted; 2 of 5")
    assert [Path(one["file"]).name for one in stopped["pictures"]] == ["1-x-seed1.png", "2-x-seed2.png"]
    sizes = fail_in_call(monkeypatch, -1, None)
    result = bifrons(*words, "--skip-existing")
    assert result.status == 0
    assert "there already: 2 of 5 pictures" in result.err
    assert sizes == [2, 1]
    assert [Path(line).name for line in result.out.splitlines()] == [f"{i}-x-seed{i}.png" for i in (3, 4, 5)]
    again = json.loads(bifrons(*words, "--skip-existing", "--json").out)["pictures"]
    assert [one["skipped"] for one in again] == [True] * 5
    assert sizes == [2, 1]
    together = JanusPipeline.from_pretrained(janus_mini, "cpu").generate("x", 5, 1)
    if bitwise_products:
        for path, image in zip(sorted(tmp_path.iterdir()), together, strict=True):
            assert Image.open(path).tobytes() == image.tobytes()


def test_a_full_disk_keeps_what_is_written(bifrons, janus_mini, tmp_path, monkeypatch):
    calls, real = count(1), outputs.write_picture

    def write(image, suffix, stream):
        real(image, suffix, stream)
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outputs, "write_picture", write)
    words = ("-n", 5, "--seed", 1, "-m", janus_mini, "-o", tmp_path, "--batch-size", 2)
    result = bifrons("generate", "x", *words)
    assert result.status == 1
    assert "4-x-seed4.png: No space left on device; 3 of 5 pictures are written" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i}-x-seed{i}.png" for i in (1, 2, 3)]
    assert len(result.out.splitlines()) == 3


def test_what_is_there_must_have_the_same_settings(refused, failed, bifrons, janus_mini, tmp_path):
    words = ("generate", "x", "-m", janus_mini, "-o", tmp_path, "--skip-existing")
    assert "knows pictures by their seeds" in refused(*words)
    assert bifrons(*words, "--seed", 1, "--guidance-scale", 2).status == 0
    assert "is there with another guidance_scale: 2.0, not 5.0" in refused(*words, "--seed", 1)
    text = refused(*words, "--seed", 1, "--guidance-scale", 2, "--resize", "32x32")
    assert "is there with another resize: None, not 32x32" in text
    (tmp_path / "1-x-seed1.png").write_bytes(b"\x89PNG")
    assert "remove it, and it is painted again" in failed(*words, "--seed", 1)


def test_batches_follow_the_memory(bifrons, janus_mini, tmp_path, monkeypatch):
    sizes = fail_in_call(monkeypatch, -1, None)
    words = ("generate", "x", "--temperature", 0, "-m", janus_mini, "-o", tmp_path)
    assert bifrons(*words, "-n", 18).status == 0
    assert sizes == [16, 2]
    monkeypatch.setattr(generate, "image_batch_size", lambda model, guided, longest: 3 if guided else 4)
    assert bifrons(*words, "-n", 4).status == 0
    assert bifrons(*words, "-n", 4, "--guidance-scale", 1).status == 0
    assert sizes[2:] == [3, 1, 4]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(failed, tmp_path):
    tmp_path.chmod(0o500)
    assert "may not be written to" in failed("generate", "x", "-m", "no-such-model", "-o", tmp_path / "a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-o", "a.gif"],
            "output is a.gif; accepted: a folder or a name that ends in .png, .jpg, .jpeg or .webp",
        ),
        (["-n", "2000000"], "2,000,000 pictures are asked for; accepted: at most 1,000,000"),
        (["--batch-size", "0"], "batch_size is 0; accepted: at least 1"),
        (["--resize", "big"], "resize is 'big'; accepted: WIDTHxHEIGHT in pixels"),
        (["--resize", "8x4000"], "each from 16 to 4096"),
        (["--resize", "99999x99999"], "each from 16 to 4096"),
    ],
)
def test_refused_before_the_model_is_loaded(refused, words, message):
    assert message in refused("generate", "x", "-m", "no-such-model", *words)


def test_a_folder_that_is_none(failed):
    assert "/dev/null is no folder" in failed("generate", "x", "-m", "no-such-model", "-o", "/dev/null")


def test_resize(bifrons, janus_mini, tmp_path):
    words = ("generate", "x", "--seed", 1, "-m", janus_mini, "-o")
    output = json.loads(bifrons(*words, tmp_path / "a.png", "--resize", "120x90", "--json").out)["pictures"][
        0
    ]
    bifrons(*words, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as scaled, Image.open(tmp_path / "b.png") as whole:
        assert scaled.size == (120, 90)
        expected = whole.convert("RGB").resize((120, 90), Image.Resampling.LANCZOS)
        assert scaled.tobytes() == expected.tobytes()
        texts = scaled.text  # pyright: ignore
        assert texts["resize"] == output["resize"] == "120x90"
        assert texts["prompt"] == "x"
