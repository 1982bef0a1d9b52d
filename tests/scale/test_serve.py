"""The server on a Ray cluster of this machine: two replicas, of which one is killed, and a reload."""

import asyncio
import importlib.util
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
from typing import Any

import httpx
import pytest
from bifrons.apps.server.app import create_app
from bifrons.apps.server.limits import ServerOptions
from bifrons.apps.server.setup import ServerSetup

DATA = Path(__file__).parent.parent / "data"
MODELS = tuple(str(DATA / name) for name in ("janus-mini", "vl2-mini-mla"))
REQUESTS, AT_ONCE, KINDS = 200, 24, 20

needs_serve = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ray", "grpc"))),
    reason="Ray Serve is not installed: pip install 'bifrons[scale]'",
)


def body(kind: int, picture: str) -> tuple[str, dict[str, Any]]:
    """A request: by turns a picture, an answer about one, and chats."""
    if kind % 4 == 0:
        return "images/generations", {"model": "janus-mini", "prompt": f"thing {kind}", "seed": kind}
    content: Any = f"What is {kind}?"
    if kind % 4 == 1:
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": content}]
    chat = {"messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 1.0}
    return "chat/completions", {"model": ("janus-mini", "vl2-mini-mla")[kind % 2], "seed": kind, **chat}


def result(reply: httpx.Response) -> Any:
    """What a reply says, without what differs from time to time."""
    content = reply.json()
    choices = content.get("choices") or content.get("data")
    return reply.status_code, choices, content.get("error")


class RayServer:
    """`bifrons serve --ray` with two replicas, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        program = Path(__file__).with_name("serve_work.py")
        words = [sys.executable, program, "-m", MODELS[0], "-m", MODELS[1], "--replicas", "2", "--no-warmup"]
        home = {**os.environ, "HOME": str(folder)}  # where Ray writes a token
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(list(map(str, words)), stderr=log, env=home)
        self.log = folder / "log"
        self.url = self.logged(r"on (http://\S+)")

    def logged(self, pattern: str) -> str:
        """What the process has written on stderr, once it has."""
        for _ in range(1200):
            if found := re.search(pattern, self.log.read_text()):
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        pytest.fail(self.log.read_text())

    def replicas(self) -> set[int]:
        """The process ids of the replicas."""
        title = rf"ray::ServeReplica:bifrons-\S*-{self.url.rpartition(':')[2]}:Replica".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if re.match(title, path.read_bytes()):
                    found.add(int(path.parent.name))
            except OSError:  # it has just ended
                continue
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RayServer]:
    running = RayServer(tmp_path_factory.mktemp("ray"))
    yield running
    replicas = running.replicas()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(90) == 0, running.log.read_text()
    assert replicas
    assert not replicas & running.replicas()


@pytest.fixture(scope="module")
def bodies(picture_url: str) -> list[tuple[str, dict[str, Any]]]:
    return [body(kind, picture_url) for kind in range(KINDS)]


@pytest.fixture(scope="module")
def picture_url() -> str:
    import base64
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@pytest.fixture(scope="module")
def alone(bodies) -> list[Any]:
    """The result of each request, one after the other, by the plain server's application."""
    loading = {"device": "cpu", "dtype": None}
    registry = ServerSetup(MODELS, ServerOptions(), loading=loading, warm_up=False).open()

    async def ask() -> list[Any]:
        transport = httpx.ASGITransport(create_app(registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1/") as client:
            replies = [await client.post(path, json=content, timeout=60) for path, content in bodies]
        await registry.pictures.pool.close()
        return [result(reply) for reply in replies]

    results = asyncio.run(ask())
    registry.close()
    assert {status for status, _, _ in results} == {200}
    return results


@needs_serve
def test_a_replica_that_is_killed_costs_its_requests_in_flight_only(server, bodies, alone) -> None:
    killed = threading.Event()
    started, ended = [0.0] * REQUESTS, [0.0] * REQUESTS
    finished = 0
    kill_time = 0.0

    def ask(number: int) -> Any:
        nonlocal finished, kill_time
        path, content = bodies[number % KINDS]
        started[number] = time.monotonic()
        reply = client.post(f"{server.url}/v1/{path}", json=content)
        ended[number] = time.monotonic()
        finished += 1
        if finished >= REQUESTS // 3 and not killed.is_set():
            killed.set()
            kill_time = time.monotonic()
            os.kill(min(server.replicas()), signal.SIGKILL)
        return result(reply)

    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(ask, range(REQUESTS)))
    failed = [number for number, (status, _, _) in enumerate(results) if status != 200]
    in_flight = {n for n in range(REQUESTS) if started[n] < kill_time < ended[n]}
    assert failed
    assert set(failed) < in_flight  # some of them were the other replica's
    for number in failed:
        status, _, error = results[number]
        assert (status, error["code"]) == (503, "replica_died")
        assert "send it again" in error["message"]
    for number in set(range(REQUESTS)) - set(failed):
        assert results[number] == alone[number % KINDS]


@needs_serve
def test_replicas_are_replaced_one_by_one_without_a_refused_request(server, bodies, alone) -> None:
    before, refused, done = server.replicas(), [], False

    def ask() -> None:
        with httpx.Client(timeout=120) as client:
            while not done:
                path, content = bodies[2]
                found = result(client.post(f"{server.url}/v1/{path}", json=content))
                if found != alone[2]:
                    refused.append(found)

    thread = threading.Thread(target=ask)
    thread.start()
    server.process.send_signal(signal.SIGHUP)
    try:
        server.logged("(all replicas are new)")
    finally:
        done = True
        thread.join()
    assert refused == []
    assert not before & server.replicas()


@needs_serve
def test_what_the_plain_server_answers_too(server, bodies, alone) -> None:
    """Errors, streams, clients that go, and numbers of all replicas."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == [
            "janus-mini",
            "vl2-mini-mla",
        ]
        for path in ("/health", "/readyz", "/livez"):
            assert client.get(path).json() == {"status": "ok", "models": ["janus-mini", "vl2-mini-mla"]}
        refused = client.post("/v1/chat/completions", json={"model": "none", "messages": []})
        assert refused.status_code == 400
        assert refused.json()["error"]["type"] == "invalid_request_error"
        assert client.post("/v1/chat/completions", content=b"x" * 20_000_001).status_code == 413
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421
        path, content = bodies[2]
        streamed = client.post(f"/v1/{path}", json={**content, "stream": True}).text
        pieces = re.findall(r'"delta": {"content": "([^"]*)"', streamed)
        assert "".join(pieces) == alone[2][1][0]["message"]["content"]
        assert streamed.endswith("data: [DONE]\n\n")
        long = {**content, "max_tokens": 1500, "stream": True, "temperature": 0.0}
        with client.stream("POST", f"/v1/{path}", json=long) as reply:
            next(reply.iter_lines())
        for _ in range(100):
            numbers = client.get("/metrics").text
            used = re.findall(r'bifrons_engine_rows_used{model="janus-mini",replica="(\d)"} (\S+)', numbers)
            if sorted(used) == [("0", "0.0"), ("1", "0.0")]:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"the rows of a client that has gone are in use: {used}")
