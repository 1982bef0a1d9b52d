"""The page in a process of its own: how it starts and ends."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from ...models import SHAPES_JANUS


class RunningPage:
    """`bifrons demo` on a free port, and what it wrote to stderr until it was ready."""

    def __init__(self, port: int, *options: str) -> None:
        words = ["demo", "--port", str(port), "--no-warmup", "-m", SHAPES_JANUS, "--device", "cpu", *options]
        command = [sys.executable, "-m", "bifrons.apps.cli.main", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.url, self.log = f"http://127.0.0.1:{port}", ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if " is at " in line:
                return
        pytest.fail(self.log)

    def paint(self) -> Iterator[str]:
        """Begin to paint eight pictures; yields the events of the page."""
        tree = httpx.get(f"{self.url}/config", timeout=30).json()
        components = {one["id"]: one["props"] for one in tree["components"]}
        (button,) = (number for number, props in components.items() if props.get("elem_id") == "paint")
        (handler, inputs) = next(
            (one["id"], one["inputs"])
            for one in tree["dependencies"]
            if one["inputs"] and any(target[0] == button for target in one["targets"])
        )
        changed = {"prompt": "a red star", "count": 8, "seed": "1"}
        props = [components[number] for number in inputs]
        data = [changed.get(one.get("elem_id", ""), one.get("value")) for one in props]
        body = {"data": data, "fn_index": handler, "session_hash": "visitor"}
        httpx.post(f"{self.url}/gradio_api/queue/join", json=body, timeout=30).raise_for_status()
        events = f"{self.url}/gradio_api/queue/data?session_hash=visitor"
        with httpx.stream("GET", events, timeout=60) as reply:
            yield from reply.iter_lines()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(free_port) -> Iterator[Callable[..., RunningPage]]:
    started: list[RunningPage] = []

    def run(*options: str) -> RunningPage:
        started.append(RunningPage(free_port, *options))
        return started[-1]

    yield run
    for page in started:
        page.process.kill()
        page.process.communicate()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_paints_ends_it_in_time(start, kind):
    page = start()
    events = page.paint()
    assert next(event for event in events if re.search(r"[1-9]\d* of \d+|Painting", event))
    started = time.monotonic()
    page.process.send_signal(kind)
    _, log = page.process.communicate(timeout=60)
    assert (page.process.returncode, log) == (0, "")
    assert time.monotonic() - started < 20  # it takes two seconds on an idle machine


def test_other_hosts_and_large_bodies_are_refused(start):
    """Host names by which a page elsewhere could reach this one (DNS rebinding)."""
    page = start("--allowed-host", "page.example")
    for host in ("evil.example", "127.0.0.1.evil.example", "page.example.evil", ""):
        for path in ("/", "/config", "/gradio_api/info"):
            reply = httpx.get(page.url + path, headers={"Host": host}, timeout=30)
            assert reply.status_code == 421, (host, path)
            assert "--allowed-host" in reply.text
    for host in ("localhost:7860", "127.0.0.1", "PAGE.example", "page.example:80"):
        assert httpx.get(f"{page.url}/config", headers={"Host": host}, timeout=30).status_code == 200
    for path, size in (("queue/join", 1_000_001), ("upload", 121_000_001)):
        content = {"content": b" " * size, "headers": {"Content-Type": "application/json"}}
        if path == "upload":
            content = {"files": {"files": ("a.png", b" " * size)}}
        reply = httpx.post(f"{page.url}/gradio_api/{path}", **content, timeout=60)
        assert reply.status_code == 413, path
    assert httpx.get(f"{page.url}/config", timeout=30).status_code == 200


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (("--host", "0.0.0.0"), "anyone who reaches 0.0.0.0 may use it"),
        (("--share",), "anyone who has the public address may use the page"),
    ],
)
def test_an_open_page_is_announced(bifrons, free_port, monkeypatch, options, note):
    from bifrons.apps.demo import app, models

    monkeypatch.setattr(models, "load_models", lambda *args, **more: [])
    monkeypatch.setattr(app, "serve", lambda *args: None)
    result = bifrons("demo", "--port", free_port, "--no-warmup", *options)
    assert (result.status, note in result.err) == (0, True)
    assert bifrons("demo", "--port", free_port, "--no-warmup").err == ""
    assert bifrons("demo", "--allowed-host", "http://a").status == 2


def test_a_taken_port_is_refused_before_a_model_is_loaded(failed, monkeypatch):
    from bifrons.apps.demo import models

    monkeypatch.setattr(models, "load_models", lambda *args, **more: pytest.fail("a model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"port {port}" in failed("demo", "--port", port)
