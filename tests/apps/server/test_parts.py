"""Parts of the server without a server process: URLs, stop strings, API keys, threads, slow bodies."""

import asyncio
import socket

import httpcore
import pytest
import torch
from bifrons.apps.cli.main import main
from bifrons.apps.pipelines import public_name
from bifrons.apps.server import middleware, registry
from bifrons.apps.server.middleware import BodyLimit, key_matches, read_keys
from bifrons.apps.server.setup import set_num_threads
from bifrons.apps.server.stream_text import StopStringFilter
from bifrons.apps.server.url_fetch import GuardedBackend, check_url, fetch, is_public
from bifrons.blocks import torch_threads
from bifrons.blocks.errors import OptionError, PictureError
from bifrons.blocks.model.context import DecoderConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.torch_threads import SMALL_DECODER
from hypothesis import given
from hypothesis import strategies as st

from ...models import SHAPES_JANUS

PUBLIC = ["93.184.216.34", "8.8.8.8", "192.88.98.1", "2606:4700::1111", "2001:4860:4860::8888"]
NOT_PUBLIC = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd12::1",
    "ff02::1",
    "ff0e::1",
    "2001:db8::1",
    "100::1",
    "100:0:0:1::1",
    "192.0.0.9",
    "192.88.99.1",
    "192.88.99.255",
    "192.175.48.6",
    "2001:20::1",
    "2001:1::1",
    "2001:30::1",
    "3fff::1",
    "3fff:fff:ffff::1",
    "5f00::1",
    "4000::1",
    "::ffff:192.88.99.1",
    "localhost",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "http:///a",
        "gopher://x",
        "http://user:pw@example.org/",
        "http://example.org:22/",
        "http://example.org:99999/",
        "http://[::1",
        "http://exämple.org/",
        "http://a/%0a\tb",
    ],
)
def test_refused_urls(url):
    with pytest.raises(PictureError):
        check_url(url)


class Network:
    """A fake resolver that gives the answers in turn, and servers with scripted replies."""

    def __init__(self, monkeypatch, *answers: list[str]) -> None:
        self.answers, self.asked, self.reached = list(answers), [], []
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)

    def getaddrinfo(self, host, port, *args, **more):
        self.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in self.answers.pop(0)]

    def fetch(self, url: str, *replies: bytes, limit: int = 1000) -> bytes:
        backend, network, unsent = GuardedBackend(), self, list(replies)

        class Scripted(httpcore.AsyncMockBackend):
            async def connect_tcp(self, host, port, *args, **more):
                network.reached.append(host)
                return httpcore.AsyncMockStream([unsent.pop(0)])

        backend._inner = Scripted([])
        return asyncio.run(fetch(url, limit, backend))


def reply(status: str, body: bytes = b"", head: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def test_a_name_is_resolved_once_and_the_checked_address_is_reached(monkeypatch):
    network = Network(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    assert network.fetch("http://rebinding.test/a.png", reply("200 OK", b"bytes")) == b"bytes"
    assert network.reached == ["8.8.8.8"]
    assert network.asked == ["rebinding.test"]


def test_a_redirect_to_a_private_address_is_refused(monkeypatch):
    network = Network(monkeypatch, ["8.8.8.8"], ["169.254.169.254"])
    with pytest.raises(PictureError, match="not an address of the public internet"):
        network.fetch("http://a.test/", reply("302 Found", head="Location: http://inner.test/key\r\n"))
    assert network.reached == ["8.8.8.8"]


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        (
            [reply("302 Found", head=f"Location: http://b{i}.test/\r\n") for i in range(4)],
            "more than 3 times",
        ),
        ([reply("302 Found", head="Location: file:///etc/passwd\r\n")], "no http or https"),
        ([reply("302 Found")], "to nowhere"),
        ([reply("404 Not Found")], "status 404"),
        ([reply("200 OK", b"x" * 1001)], "more than 1,000 bytes"),
        ([b"nonsense\r\n\r\n"], "did not answer"),
    ],
)
def test_responses_without_an_image(monkeypatch, replies, message):
    network = Network(monkeypatch, *[["8.8.8.8"]] * 4)
    with pytest.raises(PictureError, match=message):
        network.fetch("http://a.test/", *replies)


def test_one_private_address_among_public_ones_is_refused(monkeypatch):
    network = Network(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(PictureError, match="public internet"):
        network.fetch("https://a.test/")
    assert network.reached == []


def filtered(pieces, stops=()) -> tuple[str, bool]:
    stop_filter = StopStringFilter(stops)
    text = ""
    for piece in pieces:
        text += stop_filter.feed(piece)
        if stop_filter.stopped:
            return text, True
    return text + stop_filter.finish(), False


def test_text_ends_before_the_first_stop_string():
    assert filtered(["one S", "TO", "P two"], ["STOP", "two"]) == ("one", True)
    assert filtered(["one ST", "ONE"], ["STOP"]) == ("one STONE", False)
    assert filtered(["  a", " b \n"]) == ("a b", False)
    assert filtered(["aba"], ["aba", "b"]) == ("a", True)
    assert filtered(["ab"], ["ab", "b"]) == ("", True)


@given(st.text("ab \n", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2), st.data())
def test_text_does_not_depend_on_how_it_is_cut(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert filtered(pieces, stops) == filtered(list(text), stops)


def test_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("first\n\n second \n")
    keys = read_keys(file)
    assert [key_matches(given, keys) for given in (b"first", b"second", b"", b"firs", b"\xff")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    file.write_text("\n")
    with pytest.raises(OptionError, match="holds no key"):
        read_keys(file)
    with pytest.raises(OptionError, match="can't be read"):
        read_keys(tmp_path / "none")


def test_the_name_of_a_model_in_a_folder_omits_its_path(janus_mini):
    assert public_name(str(janus_mini)) == "janus-mini"
    assert public_name("deepseek-ai/Janus-Pro-1B") == "deepseek-ai/Janus-Pro-1B"


@pytest.mark.parametrize(
    ("asked", "environment", "widths", "expected"),
    [
        (None, None, [64], 1),
        (None, None, [64, 3000], None),
        (None, "2", [64], None),
        (3, None, [64], 3),
        (3, "2", [3000], 3),
        (None, None, [], 1),
    ],
)
def test_small_models_run_on_one_thread_by_default(monkeypatch, asked, environment, widths, expected):
    set_to = []
    monkeypatch.setattr(torch_threads, "_chosen", False)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    configs = [DecoderConfig(16, width, width, 2, 1, 1, width) for width in widths]
    decoders = [Decoder(config) for config in configs]
    assert [sum(w.numel() for w in decoder.parameters()) > SMALL_DECODER for decoder in decoders] == [
        width == 3000 for width in widths
    ]
    set_num_threads(asked, decoders)
    assert set_to == ([] if expected is None else [expected])


@pytest.mark.parametrize("flags", [[], ["--eager"]])
def test_eager_reaches_the_model(flags, monkeypatch):
    asked = []

    def load(*_, **options):
        asked.append(options["eager"])
        raise OptionError("that is enough")

    monkeypatch.setattr(registry, "load_pipeline", load)
    assert main(["serve", "-m", SHAPES_JANUS, *flags]) == 2
    assert asked == [bool(flags)]


@pytest.mark.parametrize("threads", [0, -1])
def test_thread_counts_below_one_are_refused(threads):
    with pytest.raises(OptionError, match="threads"):
        set_num_threads(threads, [])


def test_a_slow_body_is_refused(monkeypatch):
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    sent = []

    async def never(*_):
        raise AssertionError("the application saw a request without its body")

    async def receive():
        if not receive.pieces:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": receive.pieces.pop(), "more_body": True}

    async def send(message):
        sent.append(message)

    receive.pieces = [b'{"model":']
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    asyncio.run(BodyLimit(never, 1000)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"the body took more than" in sent[1]["body"]
