"""What the server says and does when an engine fails, and when only requests do."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bifrons.apps.server.app import create_app
from bifrons.apps.server.registry import ModelRegistry, ServedModel, ServerOptions
from bifrons.apps.server.supervision import ERRORS, SupervisedScheduler
from bifrons.blocks.engine.background import BackgroundScheduler

NAMES = ("janus-mini", "vl2-mini-mla")


class Panic(BaseException):
    """Like pyo3's PanicException."""


def fail(*args: object, **more: object) -> Any:
    raise Panic("called `Option::unwrap()` on a `None` value")


@pytest.fixture
def registry(janus_mini: Path) -> Iterator[ModelRegistry]:
    registry = ModelRegistry(ServerOptions(rows=4, context=256))
    for name in NAMES:
        registry.load(str(janus_mini.parent / name), "cpu", None)
    registry.open()
    registry.start()
    yield registry
    registry.close()


@pytest.fixture
def served(registry: ModelRegistry) -> ServedModel:
    return registry.get("janus-mini")


def chat(model: str = "janus-mini", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9, **more}


def exchange(registry: ModelRegistry, *requests: tuple[str, dict[str, Any] | None]) -> list[httpx.Response]:
    """The responses to requests that are sent together, each a path and a JSON body or None."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(registry), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
            sends = [http.get(p) if body is None else http.post(p, json=body) for p, body in requests]
            return await asyncio.wait_for(asyncio.gather(*sends), 60)

    return asyncio.run(run())


def ask(registry: ModelRegistry, *bodies: dict[str, Any]) -> list[httpx.Response]:
    return exchange(registry, *(("/v1/chat/completions", body) for body in bodies))


def health(registry: ModelRegistry) -> dict[str, tuple[int, str]]:
    paths = ("/health", "/readyz", "/livez")
    replies = exchange(registry, *((path, None) for path in paths))
    return {path: (one.status_code, one.json()["status"]) for path, one in zip(paths, replies, strict=True)}


def all_rows_free(registry: ModelRegistry) -> bool:
    deadline = time.monotonic() + 20
    while any(one.scheduler.rows_promised for one in registry.models.values()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def has_failed(served: ServedModel) -> bool:
    """Whether a probe, which runs after the rows of what failed are free, declares the engine failed."""
    deadline = time.monotonic() + 20
    while not served.scheduler.failed and time.monotonic() < deadline:
        time.sleep(0.005)
    return served.scheduler.failed


OK = {path: (200, "ok") for path in ("/health", "/readyz", "/livez")}
FAILED = {path: (503, "failed") for path in OK}


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_again_and_again_is_declared_failed(registry, served, monkeypatch, stream):
    monkeypatch.setattr(served.scheduler.runner, "step", fail)
    for _ in range(ERRORS):
        (reply,) = ask(registry, chat())
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "error")
    assert has_failed(served)
    assert all_rows_free(registry)
    assert health(registry) == FAILED
    assert exchange(registry, ("/health", None))[0].json()["failed"] == ["janus-mini"]
    assert 'engine_failed{model="janus-mini"} 1.0' in exchange(registry, ("/metrics", None))[0].text
    (reply,) = ask(registry, chat(stream=stream))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_failed")
    assert "has failed (Panic)" in reply.json()["error"]["message"]
    assert ask(registry, chat("vl2-mini-mla"))[0].status_code == 200


def test_requests_that_wait_for_a_failed_engine_end(registry, served, monkeypatch):
    """Also streamed ones and pictures; there are four rows, so most of them wait."""
    monkeypatch.setattr(served.scheduler.runner, "step", fail)
    paint = ("/v1/images/generations", {"prompt": "a red star", "model": "janus-mini"})
    bodies = [("/v1/chat/completions", chat(stream=index % 2 == 1)) for index in range(20)]
    replies = exchange(registry, *bodies, paint)
    codes = {reply.text.rpartition('"code": "')[2].partition('"')[0] for reply in replies}
    assert codes == {"error", "engine_failed"}
    assert has_failed(served)
    assert all_rows_free(registry)
    assert health(registry) == FAILED


def test_requests_that_fail_do_not_fail_the_engine(registry, served, monkeypatch):
    expected = ask(registry, chat())[0].json()["choices"]
    with monkeypatch.context() as patch:
        patch.setattr(served.pipe.model, "embed_prompts", fail)
        replies = ask(registry, *[chat()] * (3 * ERRORS + 1))
        assert {reply.status_code for reply in replies} == {500}
    assert all_rows_free(registry)
    assert health(registry) == OK
    assert ask(registry, chat())[0].json()["choices"] == expected


@pytest.mark.parametrize("body", [chat(), chat(stream=True)])
@pytest.mark.parametrize("where", ["chat_inputs", "decode"])
def test_a_panic_in_the_tokenizer_ends_one_request(registry, served, monkeypatch, where, body):
    expected = ask(registry, chat())[0].json()["choices"]
    with monkeypatch.context() as patch:
        pipe = served.pipe
        patch.setattr(pipe.processor if where == "chat_inputs" else pipe.tokenizer, where, fail)
        broken, other = ask(registry, body, chat("vl2-mini-mla"))
    if "text/event-stream" in broken.headers["content-type"]:
        assert '"code": "internal_error"' in broken.text
    else:
        assert (broken.status_code, broken.json()["error"]["code"]) == (500, "internal_error")
    assert other.status_code == 200
    assert ask(registry, chat())[0].json()["choices"] == expected
    assert health(registry) == OK


def test_a_thread_that_died_is_noticed(registry, served, monkeypatch):
    scheduler, run = served.scheduler, BackgroundScheduler._run
    died = SupervisedScheduler(scheduler.decoder, rows=2, context=64, max_waiting=4)
    monkeypatch.setattr(BackgroundScheduler, "_run", fail)
    died.start()
    died._thread.join(20)
    monkeypatch.setattr(BackgroundScheduler, "_run", run)
    served.scheduler = died
    assert health(registry) == FAILED
    assert ask(registry, chat())[0].json()["error"]["code"] == "engine_failed"
    served.scheduler = scheduler


def test_a_server_that_stops_is_alive_but_not_ready(registry):
    assert health(registry) == OK
    registry.stopping = True
    stopping = (503, "stopping")
    assert health(registry) == {"/health": stopping, "/readyz": stopping, "/livez": (200, "stopping")}
