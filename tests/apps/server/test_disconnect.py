"""Fifty clients that disconnect midway through a streamed answer, a streamed image, or the wait for one."""

import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ...models import SHAPES_JANUS

MINI, SHAPES = "janus-mini", "shapes-janus"
CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
PICTURE: dict[str, Any] = {"model": SHAPES, "prompt": "a photo of a red circle", "seed": 7}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with a timeout of 0: close with a reset


# Two long answers: the untrained checkpoint rarely samples the end token.
ANSWERS: dict[str, Any] = {"model": MINI, "messages": [{"role": "user", "content": "Tell me everything."}]}
ANSWERS |= {"temperature": 1.0, "max_tokens": 900, "seed": 1, "n": 2}
STREAMED: dict[str, dict[str, Any]] = {CHAT: {"stream": True}, IMAGES: {"stream": True, "partial_images": 3}}


def leave(url: str, path: str, streamed: bool, number: int) -> bytes:
    """Send a request, read a part of its stream (or wait a while) and close; returns what was read."""
    body = (ANSWERS if path == CHAT else PICTURE) | (STREAMED[path] if streamed else {})
    content, target = json.dumps(body).encode(), urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    read = b""
    with socket.create_connection((target.hostname, target.port), timeout=60) as link:
        link.sendall(f"{head}{len(content)}\r\n\r\n".encode() + content)
        if not streamed:
            time.sleep(0.1 + number / 25)
        while streamed and read.count(b"data: ") < (6 if path == CHAT else 1):
            piece = link.recv(500)
            assert piece, read
            read += piece
        if number % 3 == 0:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return read


@pytest.fixture(scope="module")
def server(start_server):
    mini = Path(__file__).parent.parent.parent / "data" / MINI
    return start_server("-m", mini, "-m", SHAPES_JANUS, "--rows", 16, "--context", 1024)


def test_fifty_disconnecting_clients_free_their_rows(server):
    with httpx.Client(base_url=server.url, timeout=60) as http:

        def ask(path: str, body: dict[str, Any]) -> Any:
            reply = http.post(path, json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()

        def answers() -> tuple[Any, Any]:
            return ask(CHAT, ANSWERS), ask(IMAGES, PICTURE)

        before, models = answers(), (MINI, SHAPES)
        tokens_before = {model: server.metric("tokens_total", model) for model in models}
        clients = [(path, i % 4 > 0, i) for i in range(25) for path in (CHAT, IMAGES)]
        with ThreadPoolExecutor(len(clients)) as pool:
            read = list(pool.map(lambda client: leave(server.url, *client), clients))
        started = [part.startswith(b"HTTP/1.1 200") for part in read]
        assert started == [streamed for _, streamed, _ in clients]
        assert not any(b"[DONE]" in part or b"image_generation.completed" in part for part in read)
        deadline = time.monotonic() + 20
        while any(server.metric("rows_promised", model) for model in models) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all(server.metric(name, m) == 0 for name in ("rows_promised", "rows_used") for m in models)
        counts = before[0]["usage"]["completion_tokens"], before[1]["usage"]["output_tokens"]
        whole = {MINI: 25 * counts[0], SHAPES: 25 * counts[1]}
        spent = {model: server.metric("tokens_total", model) - tokens_before[model] for model in models}
        assert all(0 < spent[model] < whole[model] for model in models)
        after = answers()
    assert after[0]["choices"] == before[0]["choices"]
    assert after[1]["data"] == before[1]["data"]
