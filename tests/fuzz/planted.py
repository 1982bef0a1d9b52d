"""Faults that are there on purpose: the kinds `planted` and `planted-requests` show that each is detected.

Run as a program, this is a small HTTP server with faults.
"""

import ctypes
import os
import random
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import http_requests
from bifrons.blocks.errors import PictureError
from cases import Kind

HELD: list[bytearray] = []


def _refuse() -> None:
    raise PictureError("no picture")


def _refuse_for_memory() -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise PictureError("no picture") from error


def _hold(megabytes: int) -> None:
    HELD.append(bytearray(b"x") * (megabytes << 20))
    HELD.clear()


FAULTS: dict[str, Callable[[], object]] = {
    "fine": lambda: None,
    "refused": _refuse,
    "an exception": lambda: 1 // 0,
    "an exit": lambda: sys.exit(0),
    "an abort": os.abort,
    "a segmentation fault": lambda: ctypes.string_at(0),
    "an end without a word": lambda: os._exit(0),
    "a hang in Python": lambda: time.sleep(10**6),
    "a loop": lambda: [None for _ in iter(int, 1)],
    "memory, used and given back": lambda: _hold(600),
    "memory beyond the limit": lambda: _hold(100_000),
    "memory, refused by us": _refuse_for_memory,
}


def _name(rng: random.Random, folder: Path) -> str:
    """The fault whose number is the case's index."""
    return list(FAULTS)[int(folder.name) % len(FAULTS)]


PLANTED = Kind("planted", _name, lambda name: FAULTS[name](), memory=500, seconds=8)


# --- a server ------------------------------------------------------------------------------------------

PATHS = ("/fine", "/refused", "/500", "/nothing", "/traceback", "/hang", "/memory", "/exit")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/traceback":
            print("Traceback (most recent call last):", file=sys.stderr, flush=True)
        elif self.path == "/hang":
            time.sleep(10**6)
        elif self.path == "/memory":
            _hold(900)
        elif self.path == "/exit":
            os._exit(3)
        if self.path != "/nothing":
            self.send_response({"/500": 500, "/refused": 400}.get(self.path, 200))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing: what stands in the log is judged."""


def _start() -> None:
    http_requests.PATIENCE = 4.0
    http_requests.run_server([sys.executable, __file__])


def _request(rng: random.Random, folder: Path) -> http_requests.Case:
    path = PATHS[int(folder.name) % len(PATHS)]
    return http_requests.Case([f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()])


PLANTED_REQUESTS = Kind("planted-requests", _request, http_requests.read, start=_start, seconds=40)

if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    print(f"on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()
