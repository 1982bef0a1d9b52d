"""Every code block of the documentation is run, or at least checked to be what its command or Python accepts.

`<!-- test: parse -->` before a block marks what needs an official checkpoint, a GPU, a network or much time.
The blocks of a page share a folder and names, in their order.
"""

# pyright: reportMissingImports=false
import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.apps.cli import main as command_line
from bifrons.nano.world.painting import paint
from bifrons.nano.world.reading import read_request
from PIL import Image

from ..models import SHAPES_JANUS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "nano/weights/*/*.md")
    for path in ROOT.glob(pattern)
)
RUN_ELSEWHERE = {
    "docs/recipes.md": "tests/apps/server/test_client_libraries.py",
    "docs/errors.md": "tests/test_errors_page.py",
}
BLOCK = re.compile(r"^(?:<!-- test: (\w+) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"
FIRST_PAGE = "README.md"
"""Its pictures must be good. On other pages a smaller, quicker model paints, which doesn't know all words."""
UNENDING = ("serve", "demo", "chat")
"""Commands that wait for somebody: their options are parsed."""
OTHERS = ("hf", "lmms-eval", "curl", "git", "cd")
"""Programs that are not ours, which only a block that is run tries."""


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    only_parsed: bool
    where: str
    line: int


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        mark, language, code = match.groups()
        assert mark in (None, "parse"), f"{page}: unknown mark {mark}"
        line = text[: match.start(3)].count("\n")
        found.append(Block(language, code, mark is not None, f"{page}, line {line}", line))
    assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(found), f"{page}: a block is not seen"
    return found


@pytest.fixture(scope="module")
def shared_pipelines() -> Iterator[None]:
    """Models are loaded once, whoever asks for them."""
    loaded: dict[str, Any] = {}

    def share(load: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            names = [str(getattr(one, "path", one)).rpartition("/")[2] for one in given]
            key = f"{load.__self__} {names} {sorted(options.items(), key=str)}"
            if key not in loaded:
                loaded[key] = load(*given, **options)
            return loaded[key]

        return call

    with pytest.MonkeyPatch.context() as patch:
        for family in (JanusPipeline, VL2Pipeline):
            patch.setattr(family, "from_pretrained", share(family.from_pretrained))
        yield


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    """What the pages' examples are about, drawn."""
    sentences = {
        "elephant.png": "a photo of a red elephant left of a blue umbrella",
        "bears.png": "three blue teddy bears",
        "herd.png": "two green elephants",
    }
    return {name: paint(read_request(text), Random(3)).image() for name, text in sentences.items()}


@pytest.fixture
def painter(shared_pipelines, page, request, monkeypatch) -> None:
    """Let the small model paint what needn't be good."""
    if page == FIRST_PAGE:
        return
    load = JanusPipeline.from_pretrained

    def smaller(folder: Any, *given: Any, **options: Any) -> Any:
        name = Path(getattr(folder, "path", folder)).name
        return load(SHAPES_JANUS if name == "janus-nano" else folder, *given, **options)

    monkeypatch.setattr(JanusPipeline, "from_pretrained", smaller)
    request.applymarker(pytest.mark.filterwarnings("ignore::bifrons.blocks.errors.UnknownWordsWarning"))


@pytest.fixture
def folder(painter, pictures, page, tmp_path, monkeypatch) -> Path:
    """With those pictures that the page doesn't make itself."""
    text = (ROOT / page).read_text("utf-8")
    for name, picture in pictures.items():
        if f"-o {name}" not in text:
            picture.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def address(start_server) -> Callable[[], str]:
    started: list[str] = []

    def get() -> str:
        if not started:
            started.append(start_server("--rows", 8, "--context", 2048).url)
        return started[0]

    return get


def commands(code: str) -> list[list[str]]:
    """The words of each command of a block."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in ("&&", ";", "|", "&"):
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def bifrons_command(words: list[str], where: str, only_parsed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if only_parsed or words[0] in UNENDING:
            patch.setattr(command_line, "_run", lambda args: 0)
        status = command_line.main(words)
    assert status == 0, f"{where}: bifrons {shlex.join(words)} ends with {status}"


def check_other(words: list[str], where: str) -> None:
    """A command that isn't ours: what it names exists."""
    program, *rest = words
    while re.fullmatch(r"[A-Z_]+=\S*", program):
        program, *rest = rest
    if program == "make":
        (target, *_) = rest
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: {target}"
    elif program == "pip":
        extras = re.findall(r"\[(.*)\]", rest[-1])
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert rest[0] == "install", where
        assert set(",".join(extras).split(",")) <= {*known, ""}, where
    elif program.endswith("python") and rest[0] == "-m":
        assert find_spec(rest[1]), f"{where}: {rest[1]}"
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests/")), where
    elif program.endswith("python") and rest[0] == "-c":
        ast.parse(rest[1])
    else:
        assert program in OTHERS or program.endswith("python"), f"{where}: {program}"


def run_shell(block: Block, address: Callable[[], str]) -> None:
    for words in commands(block.code):
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        if words[0] == "bifrons":
            bifrons_command(words[1:], block.where, block.only_parsed)
        else:
            check_other(words, block.where)
    if "curl" in block.code and not block.only_parsed:
        code = re.sub(r"^bifrons serve.*$", "", block.code, flags=re.MULTILINE).replace(ADDRESS, address())
        done = subprocess.run(
            ["bash", "-ec", code.replace("curl ", "curl -sf ")], capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block.where}: {done.stderr}"
        assert json.loads(done.stdout), block.where


def run_python(block: Block, names: dict[str, Any], address: Callable[[], str]) -> None:
    code = "\n" * block.line + block.code
    if ADDRESS in code and not block.only_parsed:
        code = code.replace(ADDRESS, address())
    program = compile(code, str(ROOT / block.where.partition(",")[0]), "exec")
    if not block.only_parsed:
        exec(program, names)  # the page is ours


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE])
def test_blocks_run(page: str, folder: Path, address, capsys) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            run_python(block, names, address)
            said = re.findall(r"print\(.*\) +# (\w+)$", block.code, re.MULTILINE)
            assert set(said) <= set(capsys.readouterr().out.splitlines()), block.where
        elif block.language in ("sh", "bash"):
            run_shell(block, address)
        elif block.language == "json":
            decoder, rest = json.JSONDecoder(), block.code.strip()
            while rest:  # one value, or one a line
                rest = rest[decoder.raw_decode(rest)[1] :].strip()
        else:
            assert block.language == "text", f"{block.where}: {block.language or 'no language'}"


@pytest.mark.parametrize(("page", "test"), RUN_ELSEWHERE.items())
def test_blocks_of_other_pages_are_run_by_a_test(page: str, test: str) -> None:
    assert Path(page).name in (ROOT / test).read_text()
    assert {block.language for block in blocks(page)} <= {"bash", "console", "pycon", "python", "yaml"}
