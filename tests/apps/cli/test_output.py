"""Output that can't be written is told in one line, in any command; no traceback, and no abort."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ...models import SHAPES_JANUS

FULL = Path("/dev/full")
COMMANDS = [
    ("--help",),
    ("--version",),
    ("generate", "--help"),
    ("info", SHAPES_JANUS),
    ("info", SHAPES_JANUS, "--json"),
    ("info", "no-such-model", "--json"),
    ("ask", "What is red?", "--device", "cpu"),
    ("encode", "PICTURE", "--device", "cpu"),
]

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def run(words: tuple[str, ...], **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bifrons.apps.cli.main", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": more.pop("unbuffered", "")}
    return subprocess.run(command, text=True, env=environment, timeout=120, **more)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_full_disk_is_told_in_one_line(words, tmp_path):
    if "PICTURE" in words:
        Image.new("RGB", (64, 48)).save(tmp_path / "p.png")
        words = tuple(str(tmp_path / "p.png") if word == "PICTURE" else word for word in words)
    with FULL.open("w") as full:
        done = run(words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: the output can't be written: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_full_disk_without_buffering():
    with FULL.open("w") as full:
        done = run(("info", SHAPES_JANUS), stdout=full, stderr=subprocess.PIPE, unbuffered="1")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_closed_output_and_full_errors_change_no_status():
    done = run(("info", SHAPES_JANUS), preexec_fn=lambda: os.close(1), stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    with FULL.open("w") as full:
        assert run(("info", "no-such-model"), stderr=full).returncode == 1
        done = run(("info", SHAPES_JANUS), stdout=subprocess.PIPE, stderr=full)
    assert done.returncode == 0
    assert done.stdout.startswith(SHAPES_JANUS)
