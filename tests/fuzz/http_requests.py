"""The kind `requests`: damaged JSON and damaged HTTP, sent to a server in its own process.

Every complete request must get a response below 500. Afterwards the server is healthy, its log shows no
traceback, and its memory has not grown beyond the limit.
"""

import base64
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h11
import picture_files
from bifrons.apps.server.registry import ServerOptions
from bifrons.blocks.errors import BifronsError
from cases import CRASH, HANG, MEMORY, TRACEBACK, Broken, Kind
from commands import JANUS
from http_bytes import damaged_http
from mutate import mutate_json

GROWTH = 700
"""MB that the server may grow by, in all."""
QUIET = 0.3
"""Seconds without an answer after which a request that is not complete has been understood as such."""
PATIENCE = 15.0
CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
QUESTION = {"model": "janus-mini", "messages": [{"role": "user", "content": "What is red?"}], "max_tokens": 3}
PICTURE = {"model": "janus-mini", "prompt": "a red circle", "seed": 7, "n": 1}


class Case(NamedTuple):
    """Bytes to send, in pieces; how to end: `read` all, `close` at once, `reset`, or half `shut`."""

    pieces: list[bytes]
    end: str = "read"


class Server:
    """The server of one worker."""

    command: list[str] = []  # noqa: RUF012
    process: Any = None
    address: tuple[str, int] = ("", 0)
    log: Any = None
    log_read = 0
    memory = 0
    cases = 0
    answer: Any = None


SERVER = Server()


def start() -> None:
    """Start the project's server, and ask the question whose answer must stay the same."""
    command = [sys.executable, "-m", "bifrons.apps.cli.main", "serve", "-m", JANUS, "--port", 0, "--rows", 8]
    run_server([*command, "--context", 512, "--no-warmup"])
    SERVER.answer = _answer()
    assert SERVER.answer
    _answer(CHAT, {**QUESTION, "messages": _with_picture(picture_files.BASES["PNG"][0])})
    SERVER.memory = _memory()


def run_server(command: list[object]) -> None:
    """Start a server, which writes its address to stderr."""
    SERVER.command = list(map(str, command))
    SERVER.log, SERVER.log_read, text = tempfile.TemporaryFile(), 0, ""  # noqa: SIM115
    SERVER.process = subprocess.Popen(SERVER.command, stderr=SERVER.log)
    while not (found := re.search(r"on http://([\d.]+):(\d+)", text)):
        if SERVER.process.poll() is not None:
            raise RuntimeError(text)
        time.sleep(0.1)
        text += _new_log()
    SERVER.address, SERVER.memory = (found[1], int(found[2])), _memory()


def _memory() -> int:
    """The peak of the server's resident memory in MB."""
    text = Path(f"/proc/{SERVER.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) // 1000


def _answer(path: str = CHAT, body: Any = QUESTION) -> Any:
    response = _exchange(Case([_request(path, json.dumps(body).encode())]))
    reply = json.loads(response.partition(b"\r\n\r\n")[2] or b"null")
    return reply.get("choices") if isinstance(reply, dict) else None


def _with_picture(file: bytes) -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(file).decode()
    part = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]


def _request(path: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *more]
    lines += [f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def build(rng: random.Random, folder: Path) -> Case:
    """A request, or what looks like one; its bytes are saved."""
    what = rng.randrange(10)
    if what <= 3:
        case = Case([_request(*_json_body(rng))])
    elif what == 4:
        picture = picture_files.build(rng, folder).read_bytes()
        messages = _with_picture(picture) * rng.choice((1, 1, 1, 2))
        case = Case([_request(CHAT, json.dumps({**QUESTION, "messages": messages}).encode())])
    else:
        path, body = rng.choice(((CHAT, QUESTION), (IMAGES, PICTURE), (CHAT, QUESTION)))
        case = Case(*damaged_http(rng, path, json.dumps(body).encode()))
    for number, piece in enumerate(case.pieces[:50]):
        (folder / f"piece-{number:02}").write_bytes(piece)
    (folder / "end").write_text(case.end)
    return case


def _json_body(rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.01:
        keys = ",".join(f'"k{number}":0' for number in range(1_500_000))
        return CHAT, b"{" + keys.encode() + b"}"
    chat = {
        **QUESTION,
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "stop": ["x"],
        "logprobs": False,
    }
    chat |= {"stream_options": {"include_usage": True}, "seed": 3, "user": "me"}
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat["messages"] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Yes."},
        *_with_picture(picture_files.BASES["PNG"][0]),
    ]
    paint = {
        **PICTURE,
        "size": "96x96",
        "output_format": "webp",
        "output_compression": 50,
        "guidance_scale": 2.0,
    }
    paint |= {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "negative_prompt": "x", "stream": False}
    path, body = rng.choice(((CHAT, QUESTION), (CHAT, chat), (IMAGES, PICTURE), (IMAGES, paint)))
    return path, mutate_json(rng, body)


def read(case: Case) -> None:
    """Send the bytes, judge the response and the server's state."""
    if SERVER.process.poll() is not None:
        run_server(SERVER.command)  # the case before has ended it
    began = time.monotonic()
    try:
        response = _exchange(case)
    finally:
        _check_server(began)
    statuses = [int(found) for found in re.findall(rb"(?:^|\n)HTTP/1\.[01] (\d{3})", response)]
    if any(status >= 500 for status in statuses) or b'"server_error"' in response:
        raise Broken(TRACEBACK, f"status {statuses}: {response[:600]!r}")
    if case.end == "read" and _is_complete(case) and not statuses:
        raise Broken(TRACEBACK, "a complete request gets no response")
    if any(status >= 400 for status in statuses) or not statuses:
        raise BifronsError(f"status {statuses}")


def _is_complete(case: Case) -> bool:
    """Whether these bytes begin with a whole request, or with something that is none.

    What is far larger than the server reads may be cut off, and its response with it.
    """
    if sum(map(len, case.pieces)) > 3 * ServerOptions.max_body:
        return False
    parser = h11.Connection(h11.SERVER)
    try:
        parser.receive_data(b"".join(case.pieces))
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return False
            if isinstance(event, h11.EndOfMessage) or event is h11.PAUSED:
                return True
    except h11.RemoteProtocolError:
        return True


def _exchange(case: Case) -> bytes:
    """What the server sends in return."""
    received = b""
    patience = PATIENCE if case.end == "read" and _is_complete(case) else QUIET
    try:
        with socket.create_connection(SERVER.address, timeout=PATIENCE) as link:
            for piece in case.pieces:
                link.sendall(piece)
            if case.end == "reset":
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if case.end in ("reset", "close"):
                return b""
            if case.end == "shut":
                link.shutdown(socket.SHUT_WR)
            link.settimeout(patience)
            try:
                while data := link.recv(65_536):
                    received += data
            except TimeoutError:
                if patience == PATIENCE and not received:
                    raise Broken(HANG, f"no response within {PATIENCE:.0f} s") from None
    except TimeoutError:
        raise Broken(HANG, f"the server takes nothing for {PATIENCE:.0f} s") from None
    except OSError:
        pass  # refused early, with or without the reason, which `read` judges
    return received


def _check_server(began: float) -> None:
    """Raise `Broken` unless the server is as it should be."""
    SERVER.cases += 1
    try:
        health = _exchange(Case([b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"]))
    except (Broken, TimeoutError):
        SERVER.process.kill()
        SERVER.process.wait()
        raise Broken(
            HANG, f"no answer of /health, {time.monotonic() - began:.0f} s after the request"
        ) from None
    log = _new_log()
    if not health:
        with suppress(subprocess.TimeoutExpired):
            raise Broken(CRASH, f"the server ended with {SERVER.process.wait(2)}: {log[-2000:]}")
    if b" 200 " not in health[:20]:
        raise Broken(TRACEBACK, f"/health: {health[:300]!r}, log: {log[-1500:]}")
    if "Traceback" in log or "Exception" in log:
        raise Broken(TRACEBACK, f"the log: {log[-2500:]}")
    if (grown := _memory() - SERVER.memory) > GROWTH:
        SERVER.memory += grown
        raise Broken(MEMORY, f"the server has grown by {grown} MB")
    if SERVER.cases % 50 == 0 and (answer := _answer()) != SERVER.answer:
        raise Broken(TRACEBACK, f"another answer than before: {answer}")


def _new_log() -> str:
    """What the server has logged since the last call."""
    data = os.pread(SERVER.log.fileno(), 10_000_000, SERVER.log_read)
    SERVER.log_read += len(data)
    return data.decode(errors="backslashreplace")


REQUESTS = Kind("requests", build, read, picture_files.prepare, start, seconds=40, cases_a_worker=10**9)
