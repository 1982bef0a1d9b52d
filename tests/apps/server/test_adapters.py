"""Several adapters of one model in a server: by name, at the same time, over the same weights."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from bifrons import JanusPipeline
from bifrons.apps.server.registry import ModelRegistry, ServerOptions
from bifrons.blocks.adapter_choice import AdapterChoice
from bifrons.blocks.errors import CheckpointError, OptionError
from PIL import Image

from ...models import SHAPES_VL2

NAMES = ("janus-mini", "stripes", "dots")


@pytest.fixture(scope="module")
def folders(random_adapter, janus_mini):
    return {
        "stripes": random_adapter(str(janus_mini), 1, image_head=True),
        "dots": random_adapter(str(janus_mini), 2),
    }


@pytest.fixture(scope="module")
def client(start_server, janus_mini, folders):
    named = [word for name, folder in folders.items() for word in ("--adapter", f"{name}={folder}")]
    root = folders["dots"].parent.parent
    return start_server("-m", janus_mini, *named, "--device", "cpu", "--adapters-from", root).client()


def paint(client, model):
    options = {"seed": 5, "guidance_scale": 2}
    reply = client.images.generate(prompt="a red star", model=model, extra_body=options)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json))))


def answer(client, model):
    messages = [{"role": "user", "content": "What is red?"}]
    options = {"max_tokens": 12, "temperature": 1, "seed": 3}
    reply = client.chat.completions.create(model=model, messages=messages, **options)
    return reply.choices[0].message.content


def test_requests_with_different_adapters_share_the_engine(client, janus_mini, folders):
    listed = client.models.list().data
    assert [one.id for one in listed] == list(NAMES)
    assert [one.model_extra["parent"] for one in listed] == [None, "janus-mini", "janus-mini"]
    work = [(ask, model) for model in NAMES for ask in (paint, answer)]
    alone = [ask(client, model) for ask, model in work]
    with ThreadPoolExecutor(len(work)) as pool:
        together = list(pool.map(lambda one: one[0](client, one[1]), work * 2))
    for first, *others in zip(alone, together[: len(work)], together[len(work) :], strict=True):
        assert all(np.array_equal(first, other) for other in others)
    pictures = alone[::2]
    assert all(not np.array_equal(a, b) for a, b in zip(pictures, pictures[1:] + pictures[:1], strict=True))
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu", progress=False)
    beside = {name: pipe.with_adapter(folder) for name, folder in folders.items()}
    for name, picture in zip(NAMES, pictures, strict=True):
        own = beside.get(name, pipe).generate("a red star", seed=5, guidance_scale=2)[0]
        assert np.array_equal(np.asarray(own), picture)


def change(client, action, **fields):
    return client.post(f"/{action}_lora_adapter", body=fields, cast_to=dict[str, object])


def test_adapters_are_loaded_and_unloaded_while_the_server_runs(client, folders):
    expected, path = answer(client, "dots"), str(folders["dots"])
    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(paint, client, "stripes")
        card = change(client, "load", lora_name="more", lora_path=path)
        assert (card["id"], card["parent"]) == ("more", "janus-mini")
        assert answer(client, "more") == expected
        assert np.array_equal(meanwhile.result(), paint(client, "stripes"))
    for name, folder, message in (
        ("more", path, "two models are called more"),
        ("a b", path, "accepted: up to 100 letters"),
        ("new", "..", "is no folder in the server's folder of adapters"),
        ("new", "/etc", "is no folder in"),
        ("new", "a\0b", "is no folder in"),
        ("new", str(folders["dots"].parent), "is no adapter"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            change(client, "load", lora_name=name, lora_path=folder)
    with pytest.raises(openai.BadRequestError, match="'janus-mini' is a model, no adapter"):
        change(client, "unload", lora_name="janus-mini")
    document = httpx.get(str(client.base_url.join("/openapi.json"))).json()
    assert {"LoadAdapterRequest", "UnloadAdapterRequest"} <= document["components"]["schemas"].keys()
    assert change(client, "unload", lora_name="more")["id"] == "more"
    assert [one.id for one in client.models.list().data] == list(NAMES)
    with pytest.raises(openai.NotFoundError, match="there is no model 'more'"):
        answer(client, "more")


def test_a_name_that_there_is_not(client):
    with pytest.raises(openai.NotFoundError, match="available: janus-mini, stripes, dots"):
        answer(client, "checks")


def test_what_a_server_refuses(janus_mini, folders, random_adapter):
    registry = ModelRegistry(ServerOptions())
    registry.load(str(janus_mini), "cpu", None)
    registry.add_adapter(AdapterChoice(folders["dots"], name="dots"))
    with pytest.raises(OptionError, match="two models are called dots"):
        registry.add_adapter(AdapterChoice(folders["stripes"], name="dots"))
    with pytest.raises(CheckpointError, match="belongs to another"):
        registry.add_adapter(AdapterChoice(random_adapter(SHAPES_VL2, 1)))
    assert list(registry.models) == ["janus-mini", "dots"]
