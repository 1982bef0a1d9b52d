"""What the front of replicas does with their answers and deaths, with stand-ins for Ray; and its options."""

import asyncio
import warnings
from typing import Any

import httpx
import pytest
from bifrons.apps.server.limits import ServerOptions
from bifrons.apps.server.setup import ServerSetup
from bifrons.blocks.errors import OptionError
from bifrons.scale.serve import front as front_module
from bifrons.scale.serve.app import Replicas, parse_replicas, reason
from bifrons.scale.serve.front import Front
from bifrons.scale.serve.replica import BEGUN


@pytest.fixture(scope="module")
def ray_serve() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of pydantic
        pytest.importorskip("ray.serve", reason="Ray Serve is not installed", exc_type=ImportError)


class FakeHandle:
    """A handle of Ray Serve, of which each call gives the next of some streams: messages, or errors."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams, self.answer, self.calls = list(streams), self, 0

    def options(self, stream: bool) -> "FakeHandle":
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> "FakeStream":
        self.calls += 1
        return FakeStream(self.streams.pop(0))


class FakeStream:
    def __init__(self, items: list[Any]) -> None:
        self.items = iter(items)

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> Any:
        item = next(self.items, None)
        if item is None:
            raise StopAsyncIteration
        if item == "hang":
            await asyncio.sleep(60)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self.items = iter(())


def ask(*streams: list[Any], count: int = 1) -> tuple[httpx.Response, int]:
    """The answer to a request that a handle with these streams gets, and how often it is called."""
    handle = FakeHandle(*streams)
    front = Front(handle, lambda: count, ServerSetup(("janus-nano",), ServerOptions()))

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://x") as client:
            return await client.post("/v1/chat/completions", json={})

    return asyncio.run(post()), handle.calls


def test_replicas_that_die_before_and_after_they_have_begun(ray_serve, monkeypatch) -> None:
    from ray.exceptions import ActorDiedError, ActorUnavailableError
    from ray.serve.exceptions import BackPressureError

    died, kind = ActorDiedError(), [(b"content-type", b"text/event-stream")]
    start = {"type": "http.response.start", "status": 200, "headers": kind}
    end = {"type": "http.response.body", "body": b"data: 1"}
    reply, calls = ask([died], [ActorUnavailableError("gone", b"0" * 16)], [BEGUN, start, end])
    assert (reply.status_code, reply.text, calls) == (200, "data: 1", 3)
    for streams, status, code, expected in (
        ([[died]] * 3, 503, "replica_died", 3),
        ([[BEGUN, died]], 503, "replica_died", 1),
        ([[BackPressureError(3, 2)]], 429, "queue_full", 1),
        ([[BEGUN, ValueError("a bug")]], 500, "internal_error", 1),
        ([[BEGUN]], 500, "internal_error", 1),
    ):
        reply, calls = ask(*streams)
        assert (reply.status_code, reply.json()["error"]["code"], calls) == (status, code, expected)
        assert ("retry-after" in reply.headers) == (status != 500)
    begun = {**end, "body": b"data: 1\n\n", "more_body": True}
    reply, _ = ask([BEGUN, start, begun, died])
    assert reply.text.startswith("data: 1\n\nevent: error\ndata: {")
    assert "replica_died" in reply.text
    monkeypatch.setattr(front_module, "_POLL", 0.01)
    reply, _ = ask(["hang"], count=-1)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_replica")


def test_numbers_of_replicas() -> None:
    assert parse_replicas("2") == Replicas(2, 2)
    assert parse_replicas("1:16") == Replicas(1, 16)
    for text in ("0", "3:2", "1:2:3", "many", "1:9999", ""):
        with pytest.raises(OptionError, match="accepted: N, or MIN:MAX, from 1 to 1024"):
            parse_replicas(text)


def test_why_a_deployment_failed() -> None:
    lines = ("Deploying failed:", "Traceback:", "  x", "bifrons.blocks.errors.ConfigError: no folder", "more")
    text = "\n".join(lines)
    assert reason(text) == "no folder"
    assert reason("no room") == "no room"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replicas", "2"], "--replicas with --ray"),
        (["--ray", "--device", "cpu"], "neither --device nor --device-map"),
        (["--ray", "--image-urls", "5"], "neither --adapters-from nor --image-urls"),
        (["--ray", "--replicas", "x"], "N, or MIN:MAX"),
        (["--ray", "http://cluster"], "auto, or HOST:PORT"),
    ],
)
def test_options_that_are_refused(options, words, bifrons_main, capsys) -> None:
    assert bifrons_main("serve", "--port", "0", *options) == 2
    assert words in capsys.readouterr().err
