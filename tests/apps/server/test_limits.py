"""Slow, idle and hostile clients of a server in a process of its own."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ...models import SHAPES_JANUS

SHAPES, CHAT, IMAGES = "shapes-janus", "/v1/chat/completions", "/v1/images/generations"
MINI = Path(__file__).parent.parent.parent / "data" / "janus-mini"
QUESTION: dict[str, Any] = {"model": SHAPES, "messages": [{"role": "user", "content": "What is red?"}]}
LONG: dict[str, Any] = {**QUESTION, "model": "janus-mini", "temperature": 1.0, "max_tokens": 900, "seed": 1}
LARGE = 19_000_000


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("-m", SHAPES_JANUS, "-m", MINI, "--rows", 8, "--context", 1024)


IMPATIENT = """
from bifrons.apps.server import connections, middleware
connections.HEAD_SECONDS, connections.WRITE_SECONDS, middleware.BODY_IDLE_SECONDS = 5.0, 5.0, 3.0
"""


@pytest.fixture(scope="module")
def impatient_server(start_server):
    """With shorter limits of time, and few open files."""
    models = ["-m", SHAPES_JANUS, "-m", MINI]
    return start_server(*models, "--rows", 8, "--context", 1024, files=96, first=IMPATIENT)


class Link:
    """A raw connection to a server."""

    def __init__(self, server: Any) -> None:
        target = urlsplit(server.url)
        self.socket = socket.create_connection((target.hostname, target.port), timeout=30)

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def post(self, body: bytes, length: int | None = None, path: str = CHAT, more: str = "") -> None:
        length = len(body) if length is None else length
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
        self.send(f"{head}Content-Length: {length}\r\n\r\n".encode(), body)

    def read(self, seconds: float = 30.0) -> bytes:
        """What comes until the server closes the connection."""
        self.socket.settimeout(seconds)
        text = b""
        try:
            while piece := self.socket.recv(65_536):
                text += piece
        except ConnectionResetError:
            pass
        return text


@contextmanager
def links(server: Any, count: int) -> Iterator[list[Link]]:
    with ExitStack() as stack:
        made = [Link(server) for _ in range(count)]
        for link in made:
            stack.enter_context(link.socket)
        yield made


def health_delays(server: Any, work: Callable[[], Any]) -> list[float]:
    """Seconds that /health takes while something else happens."""
    thread, delays = threading.Thread(target=work), []
    thread.start()
    while thread.is_alive() or len(delays) < 3:
        started = time.monotonic()
        assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200
        delays.append(time.monotonic() - started)
        time.sleep(0.02)
    return delays


def many_keys(place: str) -> bytes:
    keys = ",".join(f'"k{i}":1' for i in range(1_500_000))
    return {"top": f"{{{keys}}}", "message": f'{{"messages":[{{"role":"user",{keys}}}]}}'}[place].encode()


HEAVY: dict[str, Callable[[], bytes]] = {
    "keys": lambda: many_keys("top"),
    "keys of a message": lambda: many_keys("message"),
    "keys in UTF-16": lambda: many_keys("top").decode()[: LARGE // 2 - 10].encode("utf-16"),
    "an array": lambda: b'{"stop":[' + b"1," * (LARGE // 2) + b"1]}",
    "messages": lambda: json.dumps({**QUESTION, "messages": [{"role": "user"}] * 600_000}).encode(),
    "escapes": lambda: b'{"model":"' + b"\\n" * (LARGE // 2) + b'"}',
    "quotes": lambda: b'{"model":"' + b'\\"' * (LARGE // 2) + b'"}',
    "digits": lambda: b'{"seed":' + b"1" * LARGE + b"}",
    "nesting": lambda: b'{"messages":' + b"[" * (LARGE // 2) + b"]" * (LARGE // 2) + b"}",
    "nested objects": lambda: b'{"model":' * 2_000_000,
    "nothing": lambda: b" " * LARGE,
}


@pytest.mark.parametrize("name", HEAVY)
def test_large_bodies_do_not_hold_up_others(server, name):
    body, replies = HEAVY[name](), []

    def send() -> None:
        for _ in range(2):
            head = {"Content-Type": "application/json"}
            replies.append(httpx.post(f"{server.url}{CHAT}", content=body, headers=head, timeout=60))

    assert max(health_delays(server, send)) < 2
    assert [reply.status_code for reply in replies] == [400, 400]
    assert replies[0].json()["error"]["message"]


def test_of_many_unknown_fields_the_first_is_named(server):
    body = {**QUESTION, **{f"k{i}": 1 for i in range(20_000)}}
    reply = httpx.post(f"{server.url}{CHAT}", json=body, timeout=30)
    assert reply.json()["error"] == {
        "message": "k0: this field is not supported",
        "type": "invalid_request_error",
        "param": "k0",
        "code": "unknown_parameter",
    }


def test_two_lengths_close_the_connection(server):
    with links(server, 1) as (link,):
        smuggled = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        link.post(smuggled, more="Transfer-Encoding: chunked\r\n")
        text = link.read()
    assert text.startswith(b"HTTP/1.1 400")
    assert b"Transfer-Encoding" in text
    assert text.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "x"]
)
def test_other_hosts_are_refused_on_loopback(server, host):
    for path in ("/health", "/v1/models", "/openapi.json"):
        reply = httpx.get(f"{server.url}{path}", headers={"Host": host})
        assert reply.status_code == 421
        assert "--allowed-host" in reply.json()["error"]["message"]
    for own in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8000"):
        assert httpx.get(f"{server.url}/health", headers={"Host": own}).status_code == 200


def test_unfinished_bodies_hold_bounded_memory(server):
    before = server.memory()
    with links(server, 40) as many:
        for link in many:
            link.socket.settimeout(1)
            with suppress(TimeoutError):
                link.post(b'{"x":"' + b"x" * (LARGE - 1000), LARGE)
        delays = health_delays(server, lambda: None)
        assert server.memory() - before < 400
        started = time.monotonic()
        assert httpx.post(f"{server.url}{CHAT}", json=QUESTION, timeout=30).status_code == 200
        assert time.monotonic() - started < 5
        assert max(delays) < 2
        head = {"Content-Type": "application/json"}
        reply = httpx.post(f"{server.url}{CHAT}", content=b'"' + b"x" * LARGE, headers=head, timeout=30)
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) > 0


def test_idle_connections_leave_room_for_others(impatient_server):
    server = impatient_server
    with links(server, 300) as idle:
        for link in idle[200:]:
            with suppress(OSError):  # it may have been closed to make room
                link.send(b"GET /health HTTP/1.1\r\nHost: ")
        assert max(health_delays(server, lambda: time.sleep(3))) < 2
        deadline = time.monotonic() + 20
        for link in idle:
            assert link.read(deadline - time.monotonic()) == b""
    with links(server, 1) as (link,):
        started = time.monotonic()
        for _ in range(40):  # a head that never ends
            try:
                link.send(b"X: y\r\n" if _ else b"GET /health HTTP/1.1\r\n")
            except OSError:
                break
            time.sleep(0.5)
        assert 2.5 < time.monotonic() - started < 14
    assert len(server.lines) < 20


def test_a_body_that_stops_is_refused(impatient_server):
    with links(impatient_server, 1) as (link,):
        link.post(b'{"model":', 1000)
        text = link.read()
    assert text.startswith(b"HTTP/1.1 408")
    assert b"no more of the body" in text


def test_streams_that_nobody_reads_end(impatient_server):
    """What waits for such a client is bounded, and the connection is closed after a while."""
    server = impatient_server
    body = json.dumps({**LONG, "stream": True, "n": 2, "logprobs": True, "top_logprobs": 20}).encode()
    with links(server, 3) as many:
        for link in many:
            link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.post(body)
        deadline = time.monotonic() + 60
        while server.metric("rows_promised", "janus-mini") and time.monotonic() < deadline:
            time.sleep(0.5)
        assert server.metric("rows_promised", "janus-mini") == 0
    assert httpx.post(f"{server.url}{CHAT}", json=QUESTION, timeout=30).status_code == 200


def test_sigterm_ends_everything_within_ten_seconds(start_server):
    """Slow bodies, streams that are read or not, and more pictures than can be painted in that time."""
    server = start_server("-m", SHAPES_JANUS, "-m", MINI, "--rows", 8, "--context", 1024, "--grace", 3)
    stream = json.dumps({**LONG, "stream": True, "n": 4}).encode()
    paint = json.dumps({"model": SHAPES, "prompt": "a red circle", "n": 8}).encode()
    with links(server, 6) as (slow, idle, unread, read, painting, _):
        slow.post(b'{"model":', 1_000_000)
        idle.send(b"GET /health HTTP/1.1\r\n")
        for link in (unread, read):
            link.post(stream)
        for _ in range(2):
            painting.post(paint, path=IMAGES)
        texts = {}
        readers = [
            threading.Thread(target=lambda link=link: texts.update({link: link.read()}))
            for link in (slow, read, painting)
        ]
        for reader in readers:
            reader.start()
        deadline = time.monotonic() + 30
        while server.metric("rows_promised", SHAPES) < 16 and time.monotonic() < deadline:
            time.sleep(0.1)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10
        for reader in readers:
            reader.join(10)
        assert texts[slow].startswith(b"HTTP/1.1 503")
        assert texts[painting].startswith(b"HTTP/1.1 503")
        assert b"the server is stopping" in texts[painting]
        assert texts[read].startswith(b"HTTP/1.1 200")
    assert any("still ran after 3 seconds" in line for line in server.lines)
