"""The official OpenAI client against a server in a process of its own."""

import base64
import io
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import torch
from bifrons import JanusPipeline
from PIL import Image

from ...models import SHAPES_JANUS

DATA = Path(__file__).parent.parent.parent / "data"
SHAPES = "shapes-janus"


@pytest.fixture(scope="module")
def server(start_server):
    models = ["-m", DATA / "janus-mini", "-m", SHAPES_JANUS, "-m", DATA / "vl2-mini-mla"]
    limits = ["--context", 1024, "--max-new-tokens", 48]  # as schemathesis asks for long answers
    return start_server(*models, *limits, "--speculate", 8)


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def pipe() -> Iterator[JanusPipeline]:
    """With one thread, like the server with these models; with more, colours may differ by 1 of 255."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield JanusPipeline.from_pretrained(SHAPES_JANUS, device="cpu", progress=False)
    torch.set_num_threads(threads)


def data_url(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def messages_with_images(pictures: list[Image.Image], question: str) -> list:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def decoded_image(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


RED, BLUE = Image.new("RGB", (64, 48), (220, 20, 20)), Image.new("RGB", (30, 60), (20, 20, 220))
SMALL = {"model": "janus-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}


def test_model_cards(client):
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == ["janus-mini", SHAPES, "vl2-mini-mla"]
    assert client.models.retrieve(SHAPES).model_extra["image_size"] == "128x128"
    assert not cards["vl2-mini-mla"].model_extra["paints"]


def test_concurrent_images_and_answers_equal_those_of_the_pipeline(server, client, pipe):
    before = [server.metric(f"{name}_total", SHAPES) for name in ("tokens", "passes")]
    prompts = ["a photo of a red circle", "a photo of two blue squares"]
    messages = messages_with_images([RED, BLUE], "What colour is it?")
    with ThreadPoolExecutor(4) as pool:
        paint = {"model": SHAPES, "n": 1, "extra_body": {"seed": 7, "guidance_scale": 2.0}}
        painted = [pool.submit(client.images.generate, prompt=prompt, **paint) for prompt in prompts]
        drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 12}
        asked = pool.submit(client.chat.completions.create, model=SHAPES, messages=messages, **drawn)
        replies, answer = [one.result() for one in painted], asked.result()
    tokens, passes = (server.metric(f"{name}_total", SHAPES) for name in ("tokens", "passes"))
    assert tokens - before[0] > 1.5 * (passes - before[1])  # drafts of few rows
    expected = pipe.generate(prompts, seed=7, guidance_scale=2.0, speculate=False)
    for reply, picture in zip(replies, expected, strict=True):
        got = decoded_image(reply.data[0].b64_json)
        assert got.tobytes() == picture.tobytes()
        assert got.info["seed"] == "7"
        assert reply.usage.output_tokens == 256
    own = pipe.chat(messages, 12, 1.0, seed=3, speculate=False)
    assert answer.choices[0].message.content == own


def test_32_mixed_answers_with_drafts_equal_those_of_plain_steps(client, pipe):
    """Each its own alone, whatever it is sampled with and whatever runs beside it."""
    ways: tuple[dict[str, Any], ...] = (
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.3, "frequency_penalty": 1.0},
        {"temperature": 0.7, "presence_penalty": 0.5},
    )
    words = ("red red red red", "a blue circle, a blue circle", "two cats", "one two three one two")
    asked = [
        ([{"role": "user", "content": f"{words[i // 4 % 4]} {i}"}], {**ways[i % 4], "seed": i})
        for i in range(32)
    ]
    create = client.chat.completions.create
    with ThreadPoolExecutor(32) as pool:
        sent = [pool.submit(create, model=SHAPES, messages=m, max_tokens=10, **way) for m, way in asked]
        answers = [one.result().choices[0].message.content for one in sent]
    assert answers == [pipe.chat(m, 10, speculate=False, **way) for m, way in asked]


def test_a_streamed_answer_equals_the_complete_one(client):
    ask = chat(temperature=1.0, seed=5, n=2)
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    texts, ends, usage = ["", ""], {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage is not None
    assert usage == whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    logprobs = [choice.logprobs.content for choice in whole.choices]
    assert sum(map(len, logprobs)) == usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs[0])
    again = client.chat.completions.create(**SMALL, temperature=1.0, seed=6)
    assert again.choices[0].message.content == texts[1]


def test_a_stop_string_ends_the_answer(client):
    ask = dict(SMALL, max_tokens=40, temperature=1.0, seed=1)
    text = client.chat.completions.create(**ask).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    choice = client.chat.completions.create(**ask, stop=[stop, "never"]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == text[: text.index(stop)].strip()


def test_partial_images_are_streamed(client):
    ask = {"model": "janus-mini", "prompt": "x", "extra_body": {"seed": 2}, "output_format": "webp"}
    events = list(client.images.generate(**ask, stream=True, partial_images=3))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    whole = client.images.generate(**ask)
    assert events[-1].b64_json == whole.data[0].b64_json
    assert decoded_image(events[-1].b64_json).format == "WEBP"
    assert events[-1].size == whole.size == "{}x{}".format(*decoded_image(events[0].b64_json).size)


def test_partial_images_are_the_previews_of_python(client, pipe):
    mini, previews = JanusPipeline.from_pretrained(DATA / "janus-mini", device="cpu", progress=False), {}

    def keep(step, total, codes):
        previews[step] = step.preview()[0].convert("RGB")

    mini.generate("x", seed=2, callback=keep)
    ask = {"model": "janus-mini", "prompt": "x", "extra_body": {"seed": 2}, "output_format": "png"}
    *partial, _ = client.images.generate(**ask, stream=True, partial_images=3)
    total = len(previews)
    for event, step in zip(partial, (total // 4, total // 2, total * 3 // 4), strict=True):
        assert decoded_image(event.b64_json).tobytes() == previews[step].tobytes()


def test_vl2_answers_about_images_but_generates_none(client):
    answer = client.chat.completions.create(
        model="vl2-mini-mla", messages=messages_with_images([RED], "What?"), max_tokens=4
    )
    assert answer.usage.completion_tokens <= 4
    with pytest.raises(openai.BadRequestError, match="does not paint"):
        client.images.generate(model="vl2-mini-mla", prompt="x")


def chat(**fields) -> dict:
    return {**SMALL, **fields}


MALFORMED = {
    "no request": b"hello\r\n\r\n",
    "no number": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "endless head": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000,
    "bad chunk": b"POST /none HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_http_is_refused(server, raw):
    """By uvicorn: a 4xx status without OpenAI's error object."""
    target = urlsplit(server.url)
    with socket.create_connection((target.hostname, target.port), timeout=10) as link:
        link.sendall(raw)
        assert link.recv(100).startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_responses_conform_to_the_openapi_schema(server, tmp_path):
    """schemathesis over the served schema: no 5xx, no status or body that the schema lacks."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
    words += ["--checks", checks, "--max-examples", "15", "--seed", "1", "--phases", "fuzzing"]
    words += ["--generation-database", "none", "--no-color"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_full_queue_api_keys_and_graceful_shutdown(start_server, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    limits = ("--rows", 2, "--max-queue", 2, "--grace", 60)
    running = start_server("-m", SHAPES_JANUS, *limits, "--api-key-file", keys)
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        running.client("wrong").models.list()
    assert httpx.get(f"{running.url}/health").json()["status"] == "ok"
    assert httpx.get(f"{running.url}/metrics").status_code == 401
    client = running.client("open-sesame")
    head: dict[str, Any] = {"headers": {"Authorization": "Bearer open-sesame"}}
    with pytest.raises(openai.BadRequestError, match="rows at once"):
        client.images.generate(prompt="x", n=3)
    with ThreadPoolExecutor(2) as pool:
        paint = {"prompt": "a photo of a red circle", "extra_body": {"seed": 1}}
        working = [pool.submit(client.images.generate, **paint) for _ in range(2)]
        while running.metric("rows_promised", SHAPES, **head) < 4:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as full:
            client.images.generate(prompt="x")
        assert int(full.value.response.headers["retry-after"]) > 0
        running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while True:
            try:
                late = httpx.post(f"{running.url}/v1/images/generations", json={"prompt": "x"}, **head)
                assert late.status_code in (429, 503)
            except httpx.TransportError:
                break
            assert time.monotonic() < deadline
        first, second = (one.result().data[0].b64_json for one in working)
    assert first == second
    assert running.stop() == 0
