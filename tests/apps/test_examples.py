"""The scripts of examples/ run as they stand, and print and write what they say. Where pictures needn't be
good, a smaller model than the embedded one paints, which is quicker."""

import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bifrons
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from ..models import SHAPES_JANUS

FOLDER = Path(bifrons.__file__).parent / "examples"
NOTEBOOKS = ("first_picture.ipynb", "reading_and_pointing.ipynb")
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))

UNKNOWN_WORDS = pytest.mark.filterwarnings("ignore::bifrons.blocks.errors.UnknownWordsWarning")
PAINT_SMALLER = f"""
from bifrons import JanusPipeline
load = JanusPipeline.from_pretrained
JanusPipeline.from_pretrained = lambda name, **options: load({SHAPES_JANUS!r}, **options)
"""
"""What a notebook's kernel runs first."""

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("guidance.py", ...)` runs a script in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def size_of(name: str) -> tuple[int, int]:
    with Image.open(name) as picture:
        picture.load()
        return picture.size


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_say_what_they_do(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 40


def test_there_are_ten() -> None:
    assert len(SCRIPTS) == 10


def test_first_picture(run: Run) -> None:
    assert run("first_picture.py") == "elephant\n"
    assert size_of("first-picture.png") == (192, 192)


@UNKNOWN_WORDS
def test_picture_grid(run: Run) -> None:
    previews, grid = run("picture_grid.py", SHAPES_JANUS).splitlines()
    assert previews == "previews.png: 4 pictures of 128 x 128 pixels"
    assert grid == "grid.png: 4 pictures of 128 x 128 pixels"
    assert size_of("previews.png") == size_of("grid.png") == (256, 256)
    with Image.open("previews.png") as picture:
        assert picture.getchannel("A").getextrema() == (0, 255)


@UNKNOWN_WORDS
def test_guidance(run: Run) -> None:
    lines = run("guidance.py", SHAPES_JANUS).splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["1.0", "2.5", "2.5"]
    assert size_of("guidance.png") == (384, 128)


def test_structured_answers(run: Run) -> None:
    color, count, answer = run("structured_answers.py").splitlines()
    assert color == "color: red"
    assert count == "count: one"
    assert answer == "as JSON: {'color': 'red'}"


def test_compare_pictures(run: Run) -> None:
    more, both = run("compare_pictures.py").splitlines()
    assert more == "Which picture has more things? the second"
    assert both == "How many things do both pictures show? five"


def test_find_and_draw(run: Run) -> None:
    (line,) = run("find_and_draw.py").splitlines()
    left, top, right, bottom = map(int, re.findall(r"\d+", line))
    assert line.startswith("the elephant: left ")
    assert left < 70 < right  # where the elephant's middle is
    assert top < 140 < bottom
    assert size_of("found.png") == (192, 192)


def test_streaming_chat(run: Run) -> None:
    lines = run("streaming_chat.py").splitlines()
    assert lines == ["> How many things are there?", "two", "> What color is the elephant?", "red"]


def test_openai_client(run: Run, start_server: Callable[..., object]) -> None:
    server: Any = start_server("-m", "janus-nano", "--rows", 8, "--context", 1024)
    assert run("openai_client.py", f"{server.url}/v1") == "red\n"
    assert size_of("served.png") == (192, 192)


def test_image_tokens(run: Run) -> None:
    lines = run("image_tokens.py").splitlines()
    assert lines[0].startswith("576 image tokens")
    assert lines[2].endswith("of 576 are the same")
    assert size_of("decoded.png") == (192, 192)


@UNKNOWN_WORDS
def test_evaluate(run: Run) -> None:
    *lines, last = run("evaluate.py", SHAPES_JANUS).splitlines()
    verdicts = [line for line in lines if " -> " in line]  # a reason may go on in the next line
    assert len(verdicts) == 3
    assert last == f"{sum(line.endswith('-> correct') for line in verdicts)} of 3 pictures are correct"


def run_notebook(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str = "") -> list[str]:
    """The values of a notebook's cells as texts (`image` for a picture), run after the code `first`."""
    for picture in FOLDER.glob("*.png"):
        shutil.copy(picture, tmp_path)
    package = str(FOLDER.parents[1])
    monkeypatch.setenv("PYTHONPATH", package)  # also where another copy of the package is installed
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(FOLDER / name, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    data = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result"
    ]
    return ["image" if "image/png" in item else item["text/plain"] for item in data]


def test_notebook_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, settings, answer, seeds, second = run_notebook(
        NOTEBOOKS[0], tmp_path, monkeypatch, PAINT_SMALLER
    )
    assert picture == second == "image"
    assert "'seed': '1'" in settings
    assert re.fullmatch("'.+'", answer)
    assert seeds == "['5', '6']"
    assert (tmp_path / "first-picture.png").exists()


def test_notebook_reading_and_pointing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, elephant, umbrella, more, boxes, drawn = run_notebook(NOTEBOOKS[1], tmp_path, monkeypatch)
    assert picture == drawn == "image"
    assert (elephant, umbrella, more) == ("'red'", "'blue'", "'the second'")
    assert re.fullmatch(r"\[\('the elephant', \(\d+, \d+, \d+, \d+\)\)\]", boxes)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_without_outputs(name: str) -> None:
    cells = nbformat.read(FOLDER / name, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells)
