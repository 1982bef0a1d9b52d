"""More than a thousand bad requests to one server: each is refused with a reason, and the server goes on.

The requests come from tables (field x bad value) and from a seeded generator. Each states what its refusal
must mention, so that none is refused for a reason other than its own.
"""

import base64
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import bifrons
import httpx
import pytest

from ...models import SHAPES_JANUS

SHAPES, KEY = "shapes-janus", "open-sesame"
CHAT, IMAGES, EDITS = "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"
OWNER = {"Authorization": f"Bearer {KEY}"}
SENDER = {**OWNER, "Content-Type": "application/json"}
VALID = {
    CHAT: {"model": SHAPES, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
    IMAGES: {"prompt": "a photo of a red circle", "seed": 7},
}


def words(text: str) -> list[str]:
    return text.split()


class Bad(NamedTuple):
    """A request, and a text that the field or the message of its refusal must contain."""

    expected: str
    body: bytes = b""
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, Any] = SENDER
    status: int = 400
    chunked: bool = False


def with_fields(path: str, expected: str, literal: str | None = None, /, **fields: Any) -> Bad:
    """A valid request except for some fields; the JSON text `literal` replaces a field's value "@"."""
    body = json.dumps(VALID[path] | fields)
    return Bad(expected, body.replace('"@"', literal).encode() if literal else body.encode(), path)


# Sample values by type, for fields of another type. There is no null, which most fields accept.
SAMPLES: dict[str, list[Any]] = {
    "bool": [True, False],
    "number": [7, -3, 0.25, 10**9, -1.5e10],
    "text": ["", "5", "true", "null", "hot", "../..", "NaN"],
    "list": [[], [1], ["low", 2], [None], [[1]], [{}]],
    "object": [{}, {"a": 1}, {"$gt": 0}, {"": None}],
}
INTEGERS = {
    CHAT: ["max_tokens", "max_completion_tokens", "seed", "n", "top_logprobs"],
    IMAGES: ["n", "output_compression", "partial_images", "seed", "top_k"],
}
NUMBERS = {
    CHAT: ["temperature", "top_p", "repetition_penalty", "min_p"],
    IMAGES: ["guidance_scale", "temperature", "top_p"],
}
KINDS = {
    CHAT: {"model": "text", "user": "text", "stream": "bool", "logprobs": "bool", "messages": "list"}
    | {"stop": "text list", "stream_options": "object", "response_format": "object", "tool_choice": ""},
    IMAGES: dict.fromkeys(("prompt", "model", "size", "user", "negative_prompt"), "text")
    | dict.fromkeys(("response_format", "output_format", "quality", "background"), "")
    | {"stream": "bool"},
}
OUT_OF_RANGE = {
    CHAT: {"max_tokens": [0], "max_completion_tokens": [0, 10**7], "n": [0, 9, 10**9], "top_logprobs": [21]}
    | {"temperature": [2.001], "top_p": [0, 1.001], "user": ["x" * 257], "model": ["x" * 257]}
    | {"stop": [["a"] * 5, [""], ["x" * 257], [1]], "stream_options": [{"include_usage": 1}, {"x": True}]}
    | {"response_format": [{"type": "yaml"}, {"type": "json_schema", "json_schema": {}}]}
    | {"messages": [[], [{"role": "user", "content": "x"}] * 257], "top_k": [-2]},
    IMAGES: {"n": [0, 11, 10**9], "output_compression": [101], "partial_images": [4], "top_k": [10**7]}
    | {"guidance_scale": [100.5], "temperature": [2.001], "top_p": [0, 1.001], "user": ["x" * 257]}
    | {"size": ["1024x1024", "-1x-1", "x" * 33, "128x128 "], "prompt": ["", " \n", "x" * 32_001]}
    | {"negative_prompt": ["x" * 32_001]},
}
UNKNOWN = words("""
tools tool_choice functions function_call logit_bias audio modalities store metadata prediction
parallel_tool_calls reasoning_effort service_tier web_search_options verbosity image images mask style
moderation input_fidelity path file __proto__ __class__ Model max-tokens""")
CONTRADICTIONS = [
    with_fields(CHAT, "max_completion_tokens", max_completion_tokens=3),
    with_fields(CHAT, "top_logprobs", top_logprobs=2),
    with_fields(CHAT, "stream_options", stream_options={"include_usage": True}),
    *[with_fields(CHAT, "token", max_tokens=n) for n in (5000, 10**6)],
    with_fields(CHAT, "token", max_tokens=None, max_completion_tokens=5000),
    with_fields(CHAT, "token", messages=[{"role": "user", "content": "word " * 5000}]),
    with_fields(IMAGES, "token", prompt="word " * 5000),
    with_fields(IMAGES, "token", negative_prompt="word " * 5000, guidance_scale=3),
    with_fields(IMAGES, "negative_prompt", negative_prompt="y", guidance_scale=1),
    with_fields(IMAGES, "partial_images", partial_images=1),
    with_fields(IMAGES, "n must be 1", stream=True, n=2),
    with_fields(IMAGES, "output_compression", output_compression=5),
    *[Bad(name, json.dumps({k: v for k, v in body.items() if k != name}).encode(), path)
      for path, body in VALID.items() for name in ("model", "messages", "prompt") if name in body],
]  # fmt: skip


def fields() -> Iterator[Bad]:
    for path in (CHAT, IMAGES):
        kinds = KINDS[path] | dict.fromkeys(INTEGERS[path] + NUMBERS[path], "number")
        for name, kind in kinds.items():
            for other in SAMPLES:
                for value in SAMPLES[other] if other not in kind.split() else ():
                    yield with_fields(path, name, **{name: value})
        for name in INTEGERS[path] + NUMBERS[path]:
            for literal in ("NaN", "Infinity", "-Infinity", "1e400", "1e308", "-1e308", "1" + "0" * 40):
                yield with_fields(path, name, literal, **{name: "@"})
            for value in (-1, -(10**9), *([0.5, 1.0, 2**64] if name in INTEGERS[path] else [-1e-9])):
                yield with_fields(path, name, **{name: value})
        for name, values in OUT_OF_RANGE[path].items():
            for value in values:
                yield with_fields(path, name, **{name: value})
        for name in UNKNOWN:
            yield with_fields(path, name, **{name: ["x"]})


USER, BOT, SYSTEM = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
CONVERSATIONS: list[tuple[str, list[Any]]] = [
    *[("messages[0]", [one]) for one in (5, None, "hi", [], {}, {"content": "x"}, {"role": "user"})],
    *[("role", [{"role": role, "content": "x"}])
      for role in ("function", "User", "root", "", 5, None, ["user"], "<|User|>", "user\n")],
    *[("content", [{"role": "user", "content": value}]) for value in (5, None, True, {}, {"type": ""}, [])],
    *[("content[0]", [{"role": "user", "content": [part]}]) for part in (5, "x", None, [], {}, {"type": 5})],
    *[("type", [{"role": "user", "content": [{"type": kind, kind: "/etc/passwd"}]}])
      for kind in ("image", "input_audio", "file", "refusal", "audio", "__class__")],
    *[("text", [{"role": "user", "content": [{"type": "text", "text": value}]}])
      for value in (5, None, [], {}, True, "x" * 200_001)],
    *[("image_url", [{"role": "user", "content": [{"type": "image_url", "image_url": value}]}])
      for value in (5, None, "data:,x", [], {}, {"url": 5}, {"url": None}, {"url": [""]}, {"url": ""})],
    *[("detail", [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x", "detail": d}}]}])
      for d in ("medium", 5, "")],
    *[(name, [{**USER, name: ["/etc/passwd"]}]) for name in ("images", "name", "tool_calls", "audio")],
    ("type", [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, USER]),
    *[("tool_calls", [USER, {**BOT, "tool_calls": [{}]}, USER]), ("no message of the user", [BOT])],
    *[("end with", [SYSTEM]), ("end with", [SYSTEM, BOT]), ("end with", [{**BOT, "content": None}])],
    *[("empty", [*before, {"role": "user", "content": text}])
      for text in ("", " ", "\n\t ") for before in ([], [USER, BOT], [SYSTEM])],
    *[("unicode", [{"role": "user", "content": "\ud800" * n}]) for n in (1, 2)],
]  # fmt: skip
ADDRESSES = words(r"""
http://127.0.0.1/x.png http://localhost:22/ HTTP://169.254.169.254/latest https://example.org/x.png https:x
http://[::1]/ ftp://127.0.0.1/x.png file:///etc/passwd FILE:///etc/hostname file://localhost/etc/passwd ~
/etc/passwd /proc/self/environ /dev/zero /dev/stdin ../../etc/passwd ~/.ssh/id_rsa C:\boot.ini \\host\share
./x.png x.png gopher://x jar:file:///x!/y blob:x javascript:alert(1) about:blank %2fetc%2fpasswd php://input
data data: data:, data:image/png data:image/png;base64 data:image/png;base64, data:;base64,=== ///etc/passwd
data:image/png;base64,@@@@ data:image/png;base64,A data:image/png,hello data:text/html,<script> é""")


def question_about(url: str, *more: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": one}} for one in (url, *more)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What colour is it?"}]}]


def data_url(file: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def pictures(strange_files: Any) -> Iterator[Bad]:
    def request_with(expected: str, *urls: str) -> Bad:
        return with_fields(CHAT, expected, messages=question_about(*urls))

    rng, right = random.Random(3), data_url(strange_files.valid)
    kinds = ["image/png", "image/jpeg", "text/html", "application/pdf", "image/svg+xml", "", "x"]
    yield from (request_with("data: URL" if len(url) > 0 else "url", url) for url in ADDRESSES)
    for number, file in enumerate(strange_files.invalid):
        yield request_with("picture", data_url(file, kinds[number % len(kinds)]))
    for _ in range(60):
        place = rng.randrange(22, len(right))
        yield request_with("base64", right[:place] + rng.choice("@!-_*<é~") + right[place:])
    yield from (request_with("base64", right + end) for end in ("=", "A", "====A", "%3D", "%00"))
    yield from (request_with("pictures", *[right] * count) for count in (9, 20, 63))
    yield request_with("64 items", *[right] * 64)


def bodies() -> Iterator[Bad]:
    """Bodies that are not JSON, don't match their headers, or are too large."""
    rng = random.Random(4)
    for path, body in VALID.items():
        right = json.dumps(body).encode()
        cuts = range(0, len(right), max(1, len(right) // 35))
        yield from (Bad("body", right[:cut], path) for cut in cuts)
        for _ in range(25):
            place = rng.randrange(4, len(right))
            yield Bad("body", right[:place] + rng.choice([b"\xff", b"\xc0", b"\xf8"]) + right[place:], path)
        yield from (Bad("body", rng.randbytes(rng.randrange(1, 99)), path) for _ in range(25))
        for other in (b"[]", b"5", b'"x"', b"null", b"true", b"[{}]", b"NaN", b"-", b"\xef\xbb\xbf", b"'x'"):
            yield Bad("body", other, path)
        for kind in words("text/plain x text/json multipart/form-data;boundary=x application/xml */*"):
            yield Bad("content type", right, path, headers={**SENDER, "Content-Type": kind}, status=415)
        yield Bad("content type", right, path, headers=OWNER, status=415)
        yield Bad("compressed", right, path, headers={**SENDER, "Content-Encoding": "deflate"}, status=415)
        yield from (Bad("body", b"[" * depth, path) for depth in (1, 900, 10**5, 10**6))
        yield from (Bad("body", b'{"a":' * depth + b"1" + b"}" * depth, path) for depth in (10**4, 10**5))
        deep = "[" * 400 + "]" * 400
        yield from (with_fields(path, name, deep, **{name: "@"}) for name in (*KINDS[path], "x"))
        large = json.dumps(body | {"user": "x" * 30_000_000}).encode()
        yield from (Bad("bytes", large, path, status=413, chunked=chunked) for chunked in (False, True))


def routes() -> Iterator[Bad]:
    """Unknown models and paths, wrong keys and methods."""
    rng = random.Random(5)
    names = ["gpt-4o", "", " ", f"{SHAPES} ", SHAPES.upper(), f"../{SHAPES}", "/etc/passwd", f"{SHAPES}\0"]
    names += ["deepseek-ai/Janus-Pro-7B", "janus-nano", "a" * 256, ".", "~", "http://127.0.0.1", "é", "%s%n"]
    names += ["".join(rng.choices("ab-/.\\", k=9)) for _ in range(20)]
    for name in names:
        for path in (CHAT, IMAGES):
            yield with_fields(path, "no model", model=name)._replace(status=404)
        if name.strip("./~ "):
            yield Bad("no model", path=f"/v1/models/{quote(name, safe='')}", method="GET", status=404)
    keys = ["x", "", "Bearer", KEY, f"Basic {KEY}", f"Token {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
    keys += [f"Bearer {KEY.upper()}", f"Bearer Bearer {KEY}", f"Bearer {KEY},{KEY}", f"Bearer\t{KEY}"]
    keys += ["Bearer " + "x" * 5000, *[f"Bearer {rng.randbytes(8).hex()}" for _ in range(15)]]
    tries: list[dict[str, Any]] = [{"Authorization": key} for key in keys]
    tries += [{}, {"Api-Key": KEY}, {"X-Api-Key": KEY}, {"Authorization": b"Bearer \xff\xfe"}]
    for headers in tries:
        for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("GET", "/metrics"), ("GET", "/none")):
            yield Bad("API key", b"", path, method, headers, status=401)
    paths = {CHAT: "POST", IMAGES: "POST", EDITS: "POST", "/v1/models": "GET", f"/v1/models/{SHAPES}": "GET"}
    for path, right in {**paths, "/health": "GET", "/metrics": "GET", "/openapi.json": "GET"}.items():
        for method in words("GET POST PUT PATCH DELETE OPTIONS TRACE BREW"):
            if method != right:
                yield Bad("Not Allowed", b"", path, method, OWNER, status=405)
    wrong = words("""/ /v1 /v1/ /v2/models /V1/models /v1//models /health// /docs /redoc /v1/completion /.env
    /v1/embeddings /v1/chat /v1/chat/completions// /x/%2e%2e/%2e%2e/etc/passwd /%00 /%ff""")
    for path in wrong + [f"/{rng.randbytes(5).hex()}" for _ in range(30)]:
        yield Bad("Not Found", b"", path, "GET", OWNER, status=404)


def conversations() -> Iterator[Bad]:
    return (with_fields(CHAT, expected, messages=messages) for expected, messages in CONVERSATIONS)


@pytest.fixture(scope="module")
def server(start_server, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    return start_server("-m", SHAPES_JANUS, "--rows", 8, "--context", 512, "--api-key-file", keys)


@pytest.fixture
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def send(http: httpx.Client, bad: Bad) -> httpx.Response:
    content = (bad.body[i : i + 2**20] for i in range(0, len(bad.body), 2**20)) if bad.chunked else bad.body
    return http.request(bad.method, bad.path, content=content, headers=bad.headers)


def problem(bad: Bad, reply: httpx.Response) -> str | None:
    """What is wrong with the response to a bad request, or None."""
    if reply.status_code != bad.status:
        return f"status {reply.status_code}"
    error = reply.json()["error"]
    if set(error) != {"message", "type", "param", "code"} or not error["message"].strip():
        return "not OpenAI's error object"
    if not all(error[name] is None or isinstance(error[name], str) for name in ("param", "code")):
        return "not OpenAI's types"
    if bad.expected not in f"{error['param']}: {error['message']}":
        return f"does not mention {bad.expected!r}"
    inner = ("Traceback", 'File "', "site-packages", str(Path(bifrons.__file__).parent), sys.prefix)
    return next((f"reveals {word!r}" for word in inner if word in reply.text), None)


def test_bad_requests_are_refused_with_a_reason(server, http, strange_files):
    """Afterwards the server's answers, rows, health and memory are as before."""
    picture = {**VALID[CHAT], "messages": question_about(data_url(strange_files.valid))}
    questions = [(CHAT, VALID[CHAT]), (CHAT, picture), (IMAGES, VALID[IMAGES])]

    def answers() -> list[Any]:
        replies = [http.post(path, json=body, headers=OWNER).json() for path, body in questions]
        return [reply.get("choices") or reply["data"] for reply in replies]

    requests = [*fields(), *CONTRADICTIONS, *conversations(), *pictures(strange_files), *bodies(), *routes()]
    distinct = {(bad.method, bad.path, bad.body, str(bad.headers), bad.chunked): bad for bad in requests}
    bads = list(distinct.values())
    assert len(bads) >= 1000
    random.Random(6).shuffle(bads)
    before, memory = answers(), server.memory()
    refusals = [(problem(bad, reply), bad, reply) for bad in bads for reply in [send(http, bad)]]
    wrong = [f"{text}: {str(bad)[:300]} -> {reply.text[:200]}" for text, bad, reply in refusals if text]
    assert not wrong, f"{len(wrong)} of {len(bads)}:\n" + "\n".join(wrong[:40])
    assert server.memory() - memory < 100
    assert answers() == before
    assert http.get("/health").json() == {"status": "ok", "models": [SHAPES]}
    assert server.metric("rows_promised", SHAPES, headers=OWNER) == 0
