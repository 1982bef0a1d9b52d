"""A stand-in judge: an OpenAI endpoint whose answers follow from picture and question alone."""

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

WORDS = ("Yes", "No", "three", "Three", "3", " ", "two", "red", "The")


def stand_in(body: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Text and first-token log-probabilities, by the hash of the last message and the wanted length."""
    digest = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).digest()
    weights = [1 + byte for byte in digest[: len(WORDS)]]
    first = {word: math.log(w / sum(weights)) for word, w in zip(WORDS, weights, strict=True)}
    if body["max_tokens"] == 500:
        return f"**Score**: {digest[0] % 2}", first
    if body["max_tokens"] == 200:
        verdict = {"correct": digest[0] % 2, "reason": "so"}
        return f"```json\n{json.dumps(verdict)}\n```", first
    return ("Yes." if digest[0] % 3 else "no"), first


class StandIn(ThreadingHTTPServer):
    """Counts the questions by picture and text, and the most at once. fail(number) may give a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.fail: Callable[[int], int] = lambda number: 200
        self.pause, self.now, self.most, self.number = 0.0, 0, 0, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._reply(200, {"object": "list", "data": [{"id": "fake/stand-in"}]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.now += 1
            server.number += 1
            number = server.number
            server.most = max(server.most, server.now)
            server.keys.add(self.headers.get("Authorization"))
        time.sleep(server.pause)
        status = server.fail(number)
        text, first = stand_in(body)
        with server.lock:
            server.now -= 1
            if status == 200:
                server.asked[hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()] += 1
                server.bodies.append(body)
        if status != 200:
            self._reply(status, {"error": {"message": f"fault {status}"}})
            return
        top = [{"token": token, "logprob": value} for token, value in first.items()]
        logprobs = {"content": [{"token": "?", "logprob": 0.0, "top_logprobs": top}]}
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": logprobs if body.get("logprobs") else None}
        self._reply(200, {"object": "chat.completion", "choices": [choice]})

    def _reply(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def judge_server() -> Iterator[StandIn]:
    """A running stand-in judge."""
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
