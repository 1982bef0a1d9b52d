"""docs/errors.md: its examples are run, and end as it says."""

import os
import re
import shlex
from pathlib import Path

import pytest
from bifrons import BifronsError
from bifrons.apps.cli.main import main
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image

PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text("utf-8")
REFUSED, FAILED = PAGE.split("**Failed at work**")
COMMANDS = [
    (*found, status)
    for part, status in ((REFUSED, 2), (FAILED, 1))
    for found in re.findall(r"^\$ bifrons (.*)\n(.*)$", part, re.MULTILINE)
]
CALLS = re.findall(r"^>>> (.*)\n(.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files that the examples name."""
    path = tmp_path_factory.mktemp("errors")
    Image.new("RGB", (8, 8)).save(path / "photo.png")
    (path / "notes.txt").write_text("no picture")
    (path / "prompts.jsonl").write_text('{"prompt": "a red star"}\n{"prompt": "a heart", "cfg": 3}\n')
    (path / "latin1.txt").write_bytes("ein grüner Stern\n".encode("latin-1"))
    (path / "empty").mkdir()
    return path


@pytest.mark.parametrize(("words", "expected", "status"), COMMANDS)
def test_commands_end_as_the_page_says(words, expected, status, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(shlex.split(words)) == status
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert sorted(os.listdir(folder)) == ["empty", "latin1.txt", "notes.txt", "photo.png", "prompts.jsonl"]


@pytest.fixture(scope="module")
def pipe(janus_mini) -> JanusPipeline:
    return JanusPipeline.from_pretrained(janus_mini, "cpu")


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_calls_raise_what_the_page_says(call, expected, pipe):
    with pytest.raises(BifronsError) as error:
        eval(call, {"pipe": pipe})  # the page is ours
    assert f"{type(error.value).__name__}: {error.value}" == expected
    assert call in PAGE


def test_the_page_has_examples():
    assert len(COMMANDS) > 20
    assert len(CALLS) >= 10
