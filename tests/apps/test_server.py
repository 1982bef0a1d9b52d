"""The official OpenAI client against a server in a process of its own."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from bifrons import JanusPipeline
from PIL import Image

DATA = Path(__file__).parent.parent / "data"
NANO = "janus-nano"


class Running:
    """A server process on a free port."""

    def __init__(self, *options: object) -> None:
        words = [sys.executable, "-m", "bifrons.apps.cli", "serve", "--port", "0", *map(str, options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"on (http://\S+)", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(self.lines))
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, name: str, model: str, **more) -> float:
        text = httpx.get(f"{self.url}/metrics", **more).text
        found = re.search(rf'^bifrons_engine_{name}{{model="{model}"}} (\S+)$', text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.reader.join(10)
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = ["-m", DATA / "janus-mini", "-m", NANO, "-m", DATA / "vl2-mini-mla"]
    running = Running(*models, "--context", 1024)
    yield running
    assert running.stop() == 0
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def pipe() -> JanusPipeline:
    return JanusPipeline.from_pretrained(NANO, device="cpu", progress=False)


def data_url(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def about(pictures: list[Image.Image], question: str) -> list:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


RED, BLUE = Image.new("RGB", (64, 48), (220, 20, 20)), Image.new("RGB", (30, 60), (20, 20, 220))
SMALL = {"model": "janus-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}


def test_models_tell_what_they_are(client):
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == ["janus-mini", NANO, "vl2-mini-mla"]
    assert client.models.retrieve(NANO).model_extra["image_size"] == "128x128"
    assert "demonstration" in cards[NANO].model_extra["note"]
    assert not cards["vl2-mini-mla"].model_extra["paints"]


def test_pictures_and_answers_at_once_are_those_of_the_pipeline(client, pipe):
    prompts = ["a photo of a red circle", "a photo of two blue squares"]
    messages = about([RED, BLUE], "What colour is it?")
    with ThreadPoolExecutor(4) as pool:
        paint = {"model": NANO, "n": 1, "extra_body": {"seed": 7, "guidance_scale": 2.0}}
        painted = [pool.submit(client.images.generate, prompt=prompt, **paint) for prompt in prompts]
        drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 12}
        asked = pool.submit(client.chat.completions.create, model=NANO, messages=messages, **drawn)
        replies, answer = [one.result() for one in painted], asked.result()
    wanted = pipe.generate(prompts, seed=7, guidance_scale=2.0)
    for reply, picture in zip(replies, wanted, strict=True):
        got = opened(reply.data[0].b64_json)
        assert got.tobytes() == picture.tobytes()
        assert got.text["seed"] == "7"
        assert reply.usage.output_tokens == 256
    own = pipe.chat(messages, 12, 1.0, seed=3)
    assert answer.choices[0].message.content == own


def test_a_streamed_answer_is_the_whole_one(client):
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
    assert usage == whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    told = [choice.logprobs.content for choice in whole.choices]
    assert sum(map(len, told)) == usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told[0])
    again = client.chat.completions.create(**SMALL, temperature=1.0, seed=6)
    assert again.choices[0].message.content == texts[1]


def test_a_stop_string_ends_the_answer(client):
    ask = dict(SMALL, max_tokens=40, temperature=1.0, seed=1)
    text = client.chat.completions.create(**ask).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    choice = client.chat.completions.create(**ask, stop=[stop, "never"]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == text[: text.index(stop)].strip()


def test_a_picture_streams_partial_ones(client):
    ask = {"model": "janus-mini", "prompt": "x", "extra_body": {"seed": 2}, "output_format": "webp"}
    events = list(client.images.generate(**ask, stream=True, partial_images=3))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    whole = client.images.generate(**ask)
    assert events[-1].b64_json == whole.data[0].b64_json
    assert opened(events[-1].b64_json).format == "WEBP"
    assert events[-1].size == whole.size == "{}x{}".format(*opened(events[0].b64_json).size)


def test_vl2_answers_about_pictures_but_does_not_paint(client):
    answer = client.chat.completions.create(
        model="vl2-mini-mla", messages=about([RED], "What?"), max_tokens=4
    )
    assert answer.usage.completion_tokens <= 4
    with pytest.raises(openai.BadRequestError, match="does not paint"):
        client.images.generate(model="vl2-mini-mla", prompt="x")


def bomb() -> str:
    """A PNG of 50,000 x 50,000 pixels in few bytes: only its header is honest about it."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return "data:image/png;base64," + base64.b64encode(file + chunk(b"IEND", b"")).decode()


def chat(**fields) -> dict:
    return {**SMALL, **fields}


def picture(url: object) -> dict:
    return chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])


BAD_CHATS = [
    *[[], 5, "text", None, {}],
    *[chat(messages=m) for m in ([], "hi", [5], [{}], [{"role": "user"}])],
    chat(messages=[{"role": "tool", "content": "x"}]),
    chat(messages=[{"role": "assistant", "content": "I begin"}]),
    chat(messages=[{"role": "user", "content": ""}]),
    chat(messages=[{"role": "user", "content": "<image_placeholder>"}]),
    chat(messages=[{"role": "user", "content": "x", "images": ["/etc/passwd"]}]),
    chat(messages=[{"role": "user", "content": "\ud800"}]),
    chat(messages=[{"role": "user", "content": "word " * 5000}]),
    chat(messages=[{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]),
    *[chat(max_tokens=n) for n in (0, -1, 1.5, "7", 10**6, 10**30, True)],
    *[chat(temperature=t) for t in (-0.1, 2.1, "hot", 1e308, [1])],
    *[chat(top_p=p) for p in (0, 1.1, -1)],
    *[chat(seed=s) for s in (-1, 2**63, "x", 0.5)],
    *[chat(n=n) for n in (0, 9, 10**9)],
    *[chat(stop=s) for s in ("", ["a"] * 5, [1], 7)],
    *[chat(top_logprobs=2), chat(logprobs=True, top_logprobs=21), chat(logprobs="yes")],
    *[chat(stream_options={"include_usage": True}), chat(frequency_penalty=1), chat(tools=[]), chat(oops=1)],
    chat(max_completion_tokens=3),
    *[picture(u) for u in ("", 5, "data:", "data:image/png;base64,@@@", "data:image/png;base64,aGVsbG8=")],
    *[picture(u) for u in ("/etc/passwd", "file:///etc/passwd", "../x.png", "http://127.0.0.1/", "HTTPS://a/b")],
    picture(bomb()),
    chat(messages=about([RED] * 9, "What?")),
]
BAD_IMAGES = [
    *[{}, {"prompt": ""}, {"prompt": "  "}, {"prompt": 5}, {"prompt": "x" * 32_001}],
    {"prompt": "word " * 5000},
    *[{"prompt": "x", "size": s} for s in ("1024x1024", "", 5, "-1x-1")],
    *[{"prompt": "x", "n": n} for n in (0, 11, "2")],
    *[{"prompt": "x", "response_format": "url"}, {"prompt": "x", "output_format": "gif"}],
    *[{"prompt": "x", "guidance_scale": g} for g in (-1, 101, "5", 1e400)],
    *[{"prompt": "x", "partial_images": 1}, {"prompt": "x", "stream": True, "n": 2}],
    *[{"prompt": "x", "output_compression": 5}, {"prompt": "x", "negative_prompt": "y", "guidance_scale": 1}],
    *[{"prompt": "x", "top_k": -1}, {"prompt": "x", "style": "vivid"}],
    {"prompt": "x", "background": "transparent"},
]


def refusal(reply: httpx.Response, status: int = 400) -> dict:
    assert reply.status_code == status, reply.text[:300]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_bad_requests_are_refused_in_words_and_the_server_goes_on(server, client):
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for path, bodies in (("chat/completions", BAD_CHATS), ("images/generations", BAD_IMAGES)):
            for body in bodies:
                refusal(http.post(f"/v1/{path}", content=json.dumps(body)))
        endless = b'{"n": 1' + b"0" * 5000 + b"}"
        for raw in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}', endless):
            refusal(http.post("/v1/chat/completions", content=raw))
        large = b'{"messages": "' + b"x" * 30_000_000 + b'"}'
        assert refusal(http.post("/v1/chat/completions", content=large), 413)["code"] == "body_too_large"
        pieces = (large[i : i + 2**20] for i in range(0, len(large), 2**20))
        refusal(http.post("/v1/chat/completions", content=pieces), 413)
        unknown = refusal(http.post("/v1/chat/completions", json=chat(model="gpt-9")), 404)
        assert unknown["code"] == "model_not_found"
        assert refusal(http.post("/v1/images/generations", json={"prompt": "x", "model": "../x"}), 404)
        refusal(http.get("/v1/models/none"), 404)
        refusal(http.get("/nothing"), 404)
        refusal(http.delete("/v1/models"), 405)
        long = refusal(http.post("/v1/chat/completions", json=chat(max_tokens=5000)))
        assert long["code"] == "context_length_exceeded"
    assert client.chat.completions.create(**SMALL).usage.completion_tokens > 0


def test_clients_that_leave_free_their_rows(server, client):
    body = {"model": NANO, "prompt": "a photo of a red circle"}

    def leave(number: int) -> None:
        stream = {"stream": True, "partial_images": 1} if number % 2 else {}
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{server.url}/v1/images/generations", json=body | stream, timeout=0.5)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(leave, range(12)))
    deadline = time.monotonic() + 20
    while server.metric("rows_promised", NANO) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("rows_promised", NANO) == server.metric("rows_used", NANO) == 0
    # Twelve pictures would have taken 3,072 tokens.
    assert server.metric("tokens_total", NANO) < 3072
    assert client.chat.completions.create(**dict(SMALL, model=NANO)).choices


def test_the_schema_is_exact(server, tmp_path):
    """schemathesis over the served schema: no 5xx, no status or body that the schema lacks."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
    words += ["--checks", checks, "--max-examples", "15", "--seed", "1", "--phases", "fuzzing"]
    words += ["--generation-database", "none", "--no-color"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_a_full_queue_a_key_and_an_orderly_end(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    running = Running("-m", NANO, "--rows", 2, "--max-queue", 2, "--api-key-file", keys)
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        running.client("wrong").models.list()
    assert httpx.get(f"{running.url}/health").json()["status"] == "ok"
    assert httpx.get(f"{running.url}/metrics").status_code == 401
    client, head = running.client("open-sesame"), {"headers": {"Authorization": "Bearer open-sesame"}}
    with pytest.raises(openai.BadRequestError, match="rows at once"):
        client.images.generate(prompt="x", n=3)
    with ThreadPoolExecutor(2) as pool:
        paint = {"prompt": "a photo of a red circle", "extra_body": {"seed": 1}}
        working = [pool.submit(client.images.generate, **paint) for _ in range(2)]
        while running.metric("rows_promised", NANO, **head) < 4:
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
