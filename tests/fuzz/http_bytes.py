"""HTTP as no client should speak it: request lines, headers, lengths, chunks, pipelines and ends."""

import random

from mutate import mutate_bytes

LENGTHS = (
    "-1",
    "+5",
    "0x5",
    "5, 5",
    "5, 6",
    "1e3",
    "9" * 30,
    "20000001",
    "",
    " ",
    "5;",
    "\u0665",
    "00000005",
    "5 5",
)
CODINGS = (
    "chunked",
    "Chunked",
    "chunked, chunked",
    "gzip, chunked",
    "chunked, gzip",
    "xchunked",
    "identity",
    "",
    "\x0bchunked",
)
HOSTS = (
    "evil.example",
    "127.0.0.1:99999",
    "",
    "a" * 5000,
    "127.0.0.1, evil",
    "[::1]",
    "user@127.0.0.1",
    "127.0.0.1\t",
    "%00",
)
LINES = (
    "GET /health HTTP/0.9", "GET /health", "GET /health HTTP/1.0", "GET /health HTTP/2.0",
    "GET /health HTTP/9.9", "get /health HTTP/1.1", "GET  /health  HTTP/1.1",
    "GET http://127.0.0.1/health HTTP/1.1", "GET http://evil.example/v1/models HTTP/1.1",
    "CONNECT 127.0.0.1:22 HTTP/1.1", "OPTIONS * HTTP/1.1", "GET /\x00 HTTP/1.1", "GET /%00%ff HTTP/1.1",
    "GET //v1//models HTTP/1.1", "GET /../../etc/passwd HTTP/1.1", "GET ? HTTP/1.1", "PRI * HTTP/2.0",
    "TRACE / HTTP/1.1", "GET /v1/models/" + "x" * 20_000 + " HTTP/1.1",
    "GET /" + "%2e%2e/" * 900 + " HTTP/1.1", "\xff\xfe / HTTP/1.1", "BREW /health HTTP/1.1",
    "GET /health?" + "a=b&" * 9000 + " HTTP/1.1", "HEAD /health HTTP/1.1", "POST /health HTTP/1.1",
    "GET #x HTTP/1.1", "", " ",
)  # fmt: skip
HEADERS = (
    "Expect: 100-continue", "Expect: 200-ok",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x", "Upgrade: h2c\r\nHTTP2-Settings: x",
    "Connection: keep-alive", "Connection: x, y, close", "X: a\r\n folded", " X: y", "X : y", "X", ": y",
    "X: \x00", "X: \x1b[31m", "X: \xff", "\xff: x", "X: " + "y" * 100_000, "Content-Encoding: gzip",
    "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Trailer: X",
    "Content-Type: application/json\r\nContent-Type: text/html", "Authorization: Bearer " + "x" * 9000,
    "Authorization: Basic \xff", "X-Forwarded-For: \x00", "X-Forwarded-Host: evil.example",
    "Cookie: " + "a=b;" * 4000, "Range: bytes=0-0,1-1", "Origin: http://evil.example",
    "Sec-Fetch-Site: cross-site",
)  # fmt: skip
STRANGERS = (
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(300), b"SSH-2.0-x\r\n", b"\x05\x01\0",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(99), b"\n\n\n\n", b"\r\n" * 5000, b"\0" * 70_000,
    b"{}\r\n\r\n", b"A" * 200_000, b"GET /health HTTP/1.1\nHost: x\n\n", b"HTTP/1.1 200 OK\r\n\r\n",
)  # fmt: skip


def damaged_http(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    """Pieces to send, and how to end."""
    makers = (
        _changed,
        _changed,
        _line,
        _headers,
        _many,
        _lengths,
        _lengths,
        _chunks,
        _chunks,
        _pipeline,
        _stranger,
        _leaving,
        _leaving,
    )
    pieces, end = rng.choice(makers)(rng, path, body)
    if rng.random() < 0.1:
        end = rng.choice(("close", "reset", "shut"))
    if rng.random() < 0.1:
        data = b"".join(pieces)
        at = rng.randrange(len(data) + 1)
        pieces = [data[:at], data[at:]]
    return pieces, end


def _head(path: str, *lines: str, method: str = "POST") -> bytes:
    first = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1", "replace")


def _sound(path: str, body: bytes) -> bytes:
    return _head(path, f"Content-Length: {len(body)}", "Connection: close") + body


def _changed(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    """A sound request with changed bytes, most of them in the head."""
    return [mutate_bytes(rng, _sound(path, body), 200)], "read"


def _line(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    head = "\r\n".join([rng.choice(LINES), "Host: 127.0.0.1", "Connection: close", "", ""])
    return [head.encode("latin-1", "replace")], "read"


def _headers(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    lines = [rng.choice(HEADERS) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.3:
        lines.append(f"Host: {rng.choice(HOSTS)}")
    data = _head(path, *lines, f"Content-Length: {len(body)}", "Connection: close") + body
    if rng.random() < 0.3:
        data = data.replace(b"Host: 127.0.0.1", b"Host: " + rng.choice(HOSTS).encode(), 1)
    elif rng.random() < 0.1:
        data = data.replace(b"Host: 127.0.0.1\r\n", b"", 1)
    return [data], "read"


def _many(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    """Very many headers, or a head that never ends."""
    count = rng.choice((90, 200, 20_000))
    lines = [f"X-{number}: {'y' * rng.choice((1, 20))}" for number in range(count)]
    data = _head(path, *lines, f"Content-Length: {len(body)}", "Connection: close") + body
    return [data if rng.random() < 0.6 else data.partition(b"\r\n\r\n")[0]], "read"


def _lengths(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    """Lengths that are wrong, doubled, or stand beside a coding."""
    length, coding = f"Content-Length: {len(body)}", f"Transfer-Encoding: {rng.choice(CODINGS)}"
    odd = f"Content-Length: {rng.choice(LENGTHS)}"
    choices = (
        [odd],
        [length, odd],
        [odd, length],
        [length, coding],
        [coding, length],
        [coding],
        [coding, "Transfer-Encoding: chunked"],
        [],
    )
    chunked = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    smuggled = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: evil\r\n\r\n"
    return [
        _head(path, *rng.choice(choices), "Connection: close") + rng.choice((body, chunked, smuggled))
    ], "read"


def _chunks(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    """A chunked body with odd sizes, extensions, ends or trailers."""
    sizes = (
        b"%x" % len(body),
        b"-1",
        b"FFFFFFFFFFFFFFFFF",
        b"7fffffff",
        b"0x5",
        b"5 ",
        b" 5",
        b"",
        b"g",
        b"0" * 99 + b"5",
        b"5" * 5000,
    )
    size = rng.choice((sizes[0], *sizes))
    extension = rng.choice((b"", b"", b";a=b", b";" + b"x" * 30_000, b";\x00", b";a=\r"))
    end = rng.choice((b"\r\n", b"\r\n", b"\n", b"", b"\r", b"xx"))
    tail = rng.choice(
        (
            b"0\r\n\r\n",
            b"0\r\nX: y\r\n\r\n",
            b"0\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
            b"",
            b"0\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
        )
    )
    data = size + extension + b"\r\n" + body + end + tail
    if rng.random() < 0.2:
        data = b"".join(b"1\r\n%c\r\n" % byte for byte in body * rng.choice((1, 100))) + b"0\r\n\r\n"
    return [_head(path, "Transfer-Encoding: chunked", "Connection: close"), data], "read"


def _pipeline(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    """Several requests at once, the last of which may be damaged."""
    if rng.random() < 0.5:
        first = _head("/health", method=rng.choice(("GET", "HEAD"))) * rng.choice((1, 5, 200))
    else:
        first = (_head(path, f"Content-Length: {len(body)}") + body) * rng.choice((1, 5))
    last = _sound(path, body)
    return [first + (last if rng.random() < 0.5 else mutate_bytes(rng, last, 200))], "read"


def _stranger(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    return [rng.choice((*STRANGERS, rng.randbytes(rng.choice((1, 40, 5000)))))], "read"


def _leaving(rng: random.Random, path: str, body: bytes) -> tuple[list[bytes], str]:
    """A client that leaves before its request or its response has ended."""
    data = _sound(path, body.replace(b"{", b'{"stream": true, ', 1) if rng.random() < 0.5 else body)
    cut = len(data) if rng.random() < 0.5 else rng.randrange(len(data))
    return [data[:cut]], rng.choice(("close", "reset", "shut"))
