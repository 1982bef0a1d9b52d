"""The page on small random checkpoints of both families, and on small trained ones at an address."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bifrons.apps.demo import app, history
from bifrons.apps.demo.app import Page
from bifrons.apps.demo.models import LoadedModel, load_models
from PIL import Image

from ...models import SHAPES_JANUS, SHAPES_VL2

DATA = Path(__file__).parent.parent.parent / "data"
REQUEST = SimpleNamespace(session_hash="me")
BOX = "<|ref|>the star<|/ref|><|det|>[[100, 100, 500, 500], [0, 0, 99, 99]]<|/det|>"


@pytest.fixture(scope="module")
def models() -> list[LoadedModel]:
    """A Janus and a VL2 model with random weights."""
    return load_models([str(DATA / "janus-mini"), str(DATA / "vl2-mini-mla")], "cpu")


@pytest.fixture
def page_of(tmp_path) -> Callable[[list[LoadedModel]], Page]:
    """Makes a page in a running event loop; otherwise Gradio opens several loops and never closes them."""

    async def make(models: list[LoadedModel]) -> Page:
        return Page(models, tmp_path)

    return lambda models: asyncio.run(make(models))


@pytest.fixture
def page(models, page_of) -> Page:
    return page_of(models)


@pytest.fixture
def star(tmp_path) -> str:
    """The file of a red picture of 200 x 100 pixels."""
    path = tmp_path / "star.png"
    Image.new("RGB", (200, 100), (250, 20, 20)).save(path)
    return str(path)


@pytest.fixture
def box_answers(models, monkeypatch):
    """Let VL2 answer with two boxes; the random checkpoint itself writes noise."""
    monkeypatch.setattr(models[1].pipe, "chat", lambda *given, **settings: iter(BOX))


@pytest.fixture
def form_values(page) -> dict[Any, Any]:
    """What a visitor's browser sends with a press of *Paint* before anything was changed."""
    create = page.create
    values = {component: component.value for component in create.form.components}
    return values | {create.files: [], create.chosen: 0, create.history.state: []}


@pytest.fixture
def paint(page, form_values) -> Callable[..., Iterator[dict[Any, Any]]]:
    """The updates of *Paint* with these inputs, named as in `ImageForm`."""

    def run(before=(), **changes: Any) -> Iterator[dict[Any, Any]]:
        defaults = {"prompt": "b", "count": 2, "seed": "7", "guidance": 2.0}
        changed = {getattr(page.create.form, name): value for name, value in (defaults | changes).items()}
        return page.create.paint(form_values | changed | {page.create.files: list(before)}, REQUEST)

    return run


@pytest.fixture(scope="module")
def trained() -> Iterator[list[LoadedModel]]:
    """A small trained model of each family."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # spinning torch threads would starve the browser
    yield load_models([SHAPES_JANUS, SHAPES_VL2], "cpu")
    torch.set_num_threads(threads)


@contextmanager
def launched(models: list[LoadedModel], folder: Path, cache: Path) -> Iterator[tuple[Page, str]]:
    """The page on some models, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def start() -> tuple[Page, str]:
        page = Page(models, folder)
        return page, page.launch("127.0.0.1", port)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        page, address = asyncio.run(start())
        yield page, address
        page.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory) -> Iterator[tuple[Page, str]]:
    """The page on the trained models, which have painted its examples, and its address."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (app, history):
            patch.setattr(module, "EXAMPLES", DATA / "shapes-examples")
        history.load_examples.cache_clear()
        with launched(trained, tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("cache")) as made:
            yield made
    history.load_examples.cache_clear()
