"""The model that lmms-eval finds by its entry point, with a stand-in for lmms-eval's two classes."""

import importlib
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bifrons
import pytest
from bifrons.blocks.errors import BifronsError
from PIL import Image

from ...models import SHAPES_VL2


@pytest.fixture
def model_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that the entry point of pyproject.toml leads to."""
    for name in (
        "lmms_eval",
        "lmms_eval.api",
        "lmms_eval.api.model",
        "lmms_eval.models",
        "lmms_eval.models.registry_v2",
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = type("lmms", (), {"task_dict": {}})  # type: ignore[attr-defined]
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "bifrons.eval.read.lmms_eval_model", raising=False)
    project = tomllib.loads((Path(bifrons.__file__).parent / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["bifrons"].partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest.model_id == "bifrons"
    module, _, name = manifest.simple_class_path.rpartition(".")
    yield getattr(importlib.import_module(module), name)
    sys.modules.pop(module)


def request(text: str, pictures: list[Any], doc_id: int = 0, **options: Any) -> Any:
    return SimpleNamespace(args=(text, options, lambda doc: pictures, doc_id, "task", "test"))


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    image.paste((200, 30, 30), (20, 20, 44, 44))
    return image


def test_it_reads(model_class: Any, picture: Image.Image) -> None:
    model = model_class(pretrained=SHAPES_VL2, device="cuda:0", batch_size="2")
    model.task_dict = {"task": {"test": [0, 1, 2]}}
    question = "What color is the square?"
    requests = [
        request(question, [picture], max_new_tokens=8, temperature=0),
        request(f"<image>\n{question}", [picture], 1, max_new_tokens=8, do_sample=False, temperature=0.5),
        request(question, [picture], 2, max_new_tokens=8, until=["e"]),
        request("Is there a star?", [picture], max_new_tokens=8, temperature=0),
    ]
    answers = model.generate_until(requests)
    right = model._pipe.ask(picture, question, 8)
    assert answers[:2] == [right, right]
    assert answers[2] == right.partition("e")[0] != right
    assert answers[3] == model._pipe.ask(picture, "Is there a star?", 8)
    with pytest.raises(BifronsError, match="1 marks <image> for 0 pictures"):
        model.generate_until([request("<image> ?", [])])
    with pytest.raises(BifronsError, match="compares likelihoods"):
        model.loglikelihood([])


def test_it_paints(model_class: Any, janus_mini: Path, tmp_path: Path) -> None:
    model = model_class(pretrained=str(janus_mini), mode="paint", output_dir=str(tmp_path / "out"), seed=7)
    model.task_dict = {"task": {"test": [0, 1, 2]}}
    (answer,) = model.generate_until([request("a red circle", [], 2, max_new_tokens=8)])
    content = json.loads(answer)
    assert content == {"text": "", "images": [str(tmp_path / "out" / "task-test-2.png")]}
    (image,) = model._pipe.generate("a red circle", seed=9)
    assert Image.open(content["images"][0]).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pretrained": SHAPES_VL2, "mode": "paint"},
            "shapes-vl2 doesn't paint; accepted with mode=paint: a Janus",
        ),
        ({"mode": "draw"}, "mode is 'draw'; accepted: read, paint"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_is_refused(model_class: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BifronsError, match=message):
        model_class(**options)
