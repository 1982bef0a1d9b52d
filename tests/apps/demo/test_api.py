"""The page's named endpoints, called by `gradio_client` as other programs do."""

# pyright: reportAttributeAccessIssue=false

import json
from pathlib import Path
from urllib.request import urlopen

import pytest
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import Scene, SceneObject
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

pytestmark = pytest.mark.filterwarnings(r"ignore:::gradio\.queueing")  # its use of pandas
SCENE = Scene(
    (SceneObject("star", "red", 0.3, 0.3, 0.3), SceneObject("star", "blue", 0.7, 0.6, 0.25)), (235, 230, 220)
)


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    client = Client(served[1], verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    to_pil(SCENE, 128).save(path)
    return handle_file(path)


def test_the_endpoints_are_described(served):
    with urlopen(f"{served[1]}gradio_api/info") as answer:
        endpoints = json.load(answer)["named_endpoints"]
    assert endpoints.keys() == {"/generate", "/ask", "/locate"}
    names = [parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]]
    assert names == [
        "prompt", "negative_prompt", "count", "seed", "guidance_scale", "temperature", "top_k", "top_p",
        "model",
    ]  # fmt: skip
    assert endpoints["/locate"]["returns"][0]["label"] == "boxes"


def test_generate(client, trained):
    (picture,) = client.predict(prompt="three green hearts", seed=12, api_name="/generate")
    assert picture["caption"] == "seed 12"
    with Image.open(picture["image"]) as image:
        assert image.text["prompt"] == "three green hearts"
        (expected,) = trained[0].pipe.generate("three green hearts", 1, 12)
        assert image.convert("RGB").tobytes() == expected.tobytes()


def test_old_pictures_leave_the_disk(client, served, monkeypatch):
    """Gradio makes no copies of them, which would stay for hours."""
    monkeypatch.setattr("bifrons.apps.demo.history._MOST_FILES", 2)
    cache = Path(served[0].blocks.GRADIO_CACHE)
    for seed in range(4):
        (picture,) = client.predict(prompt="a red star", seed=str(seed), api_name="/generate")
    assert len(list(cache.rglob("a-red-star-seed*.png"))) == 2
    with Image.open(picture["image"]) as image:
        assert image.text["seed"] == "3"


def test_ask_and_locate(client, scene, trained):
    question = "How many stars are there?"
    answer = client.predict(pictures=[scene], question=question, model="shapes-vl2", api_name="/ask")
    assert answer == trained[1].pipe.ask(to_pil(SCENE, 128), question)
    (box,) = client.predict(picture=scene, phrase="the red star", api_name="/locate")
    (expected,) = trained[1].pipe.locate(to_pil(SCENE, 128), "the red star")
    assert box["label"] == "the red star"
    assert (box["box"], box["normalized"]) == (list(expected.pixels), list(expected.normalized))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "a", "count": 100}, "100"),
        ({"prompt": "a", "model": "shapes-vl2"}, "accepted: shapes-janus"),
        ({"prompt": "a", "top_p": 2}, "top_p is 2"),
    ],
)
def test_what_is_wrong_is_said(client, given, message):
    with pytest.raises(AppError, match=message):
        client.predict(**given, api_name="/generate")
