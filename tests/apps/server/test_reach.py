"""What clients and pages expect around the API: origins, HEAD, slashes, URLs and sizes of pictures."""

import base64
import io

import httpx
import openai
import pytest
from bifrons.apps.cli.main import main
from bifrons.apps.server import image_files
from bifrons.apps.server.errors import ApiError
from bifrons.apps.server.image_files import ImageFiles
from bifrons.apps.server.normalize import allowed_origins
from bifrons.blocks.errors import OptionError
from PIL import Image, ImageChops

KEY, PAGE = "open-sesame", "https://app.example.com"
OWNER = {"Authorization": f"Bearer {KEY}"}
PAINT = {"prompt": "a red circle", "seed": 1}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(start_server, tmp_path_factory, janus_mini):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    options = (
        "--rows",
        4,
        "--context",
        512,
        "--api-key-file",
        keys,
        "--image-urls",
        3,
        "--max-new-tokens",
        60,
    )
    return start_server(
        "-m", janus_mini, *options, "--allow-origin", PAGE, "--allow-origin", "http://[::1]:3000"
    )


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def preflight(http, path, origin):
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    return http.options(path, headers={"Origin": origin, **asked})


@pytest.mark.parametrize("path", [CHAT, "/v1/images/generations", "/v1/models", "/health"])
def test_allowed_pages_may_ask_without_a_key(http, path):
    reply = preflight(http, path, PAGE)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "x-stainless-os" in reply.headers["access-control-allow-headers"]
    for other in ("https://evil.example.com", "http://app.example.com", f"{PAGE}:8443", "null"):
        refused = preflight(http, path, other)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


def test_allowed_pages_read_answers_and_refusals(http):
    for path, head, status in (("/v1/models", OWNER, 200), ("/v1/models", {}, 401), ("/none", OWNER, 404)):
        reply = http.get(path, headers={**head, "Origin": PAGE})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, PAGE)
        assert (
            "access-control-allow-origin"
            not in http.get(path, headers={**head, "Origin": "http://x.example"}).headers
        )


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://a.example/", "https://a.example/x", "", "null", "https://"]
)
def test_origins_are_written_as_browsers_write_them(origin, capsys):
    with pytest.raises(OptionError, match="allow-origin"):
        allowed_origins([origin])
    assert main(["serve", "--allow-origin", origin]) == 2
    assert "allow-origin" in capsys.readouterr().err
    assert allowed_origins(["*", "HTTP://Localhost:3000"]) == ["*", "http://localhost:3000"]


def test_head_is_get_without_its_body(http):
    for path, head in (
        ("/health", {}),
        ("/livez", {}),
        ("/readyz", {}),
        ("/v1/models", OWNER),
        ("/metrics", OWNER),
    ):
        got, head_reply = http.get(path, headers=head), http.head(path, headers=head)
        assert (head_reply.status_code, head_reply.content) == (got.status_code, b"") == (200, b"")
        assert head_reply.headers["content-type"] == got.headers["content-type"]
    assert http.head("/v1/models").status_code == 401
    assert http.head("/none", headers=OWNER).status_code == 404
    assert http.head(CHAT, headers=OWNER).status_code == 405
    assert http.get("/health").json()["status"] == "ok"


def test_paths_may_end_with_a_slash(http):
    assert http.get("/health/").json() == http.get("/health").json()
    assert http.get("/v1/models/", headers=OWNER).json() == http.get("/v1/models", headers=OWNER).json()
    body = {"model": "janus-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    assert http.post(f"{CHAT}/", json=body, headers=OWNER).status_code == 200
    assert http.get("/health//").status_code == 401
    assert http.get("//", headers=OWNER).status_code == 404


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP"])
def test_compressed_bodies_are_refused_in_words(http, encoding):
    reply = http.post(
        CHAT,
        content=b"x",
        headers={**OWNER, "Content-Type": "application/json", "Content-Encoding": encoding},
    )
    assert reply.status_code == 415
    assert encoding.lower() in reply.json()["error"]["message"]
    assert "compressed" in reply.json()["error"]["message"]


def test_limits_are_on_the_card_and_in_errors(http):
    card = http.get("/v1/models/janus-mini", headers=OWNER).json()
    assert card["max_model_len"] == card["context"] == 512
    body = {"model": "janus-mini", "messages": [{"role": "user", "content": "word " * 600}]}
    error = http.post(CHAT, json=body, headers=OWNER).json()["error"]
    assert (error["code"], "--context" in error["message"]) == ("context_length_exceeded", True)
    body = {"model": "janus-mini", "messages": [{"role": "user", "content": "hi"}]}
    error = http.post(CHAT, json={**body, "max_tokens": 61}, headers=OWNER).json()["error"]
    assert "--max-new-tokens" in error["message"]
    usage = http.post(CHAT, json=body, headers=OWNER).json()["usage"]
    assert usage["completion_tokens"] <= 60


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_changes_of_pictures_are_refused_in_words(server, http, path):
    for more in ({"json": {"prompt": "x"}}, {"files": {"image": b"x"}}, {}):
        reply = http.post(path, headers=OWNER, **more)
        assert reply.status_code == 400
        assert "weren't trained" in reply.json()["error"]["message"]
    images = server.client(KEY).images
    with pytest.raises(openai.BadRequestError, match="/v1/images/generations"):
        images.edit(image=b"x", prompt="y") if "edits" in path else images.create_variation(image=b"x")


def test_pictures_by_url_are_those_in_base64(server, http):
    images = server.client(KEY).images
    for extra in ({}, {"output_format": "webp"}):
        by_url = images.generate(
            prompt="a red circle", n=2, response_format="url", extra_body={"seed": 1}, **extra
        )
        within = images.generate(prompt="a red circle", n=2, extra_body={"seed": 1}, **extra)
        for one, other in zip(by_url.data, within.data, strict=True):
            assert one.url.startswith(f"{server.url}/v1/images/files/")
            assert one.b64_json is None
            got = http.get(one.url)
            assert got.status_code == 200
            assert got.headers["content-type"] == f"image/{extra.get('output_format', 'png')}"
            assert got.content == base64.b64decode(other.b64_json)
    assert http.get("/v1/images/files/none.png").status_code == 404
    paint = {**PAINT, "response_format": "url"}
    assert (
        http.post("/v1/images/generations", json={**paint, "stream": True}, headers=OWNER).status_code == 400
    )
    full = http.post(
        "/v1/images/generations", json={**paint, "n": 10, "size": "64x64", "resize": True}, headers=OWNER
    )
    assert full.status_code == 400
    assert "--image-urls" in full.json()["error"]["message"]


def test_pictures_by_url_are_gone_after_an_hour_and_never_exceed_their_memory():
    now = [0.0]
    files = ImageFiles(1_000_000, lambda: now[0])
    with files.room(2, (100, 100)):
        paths = [files.add(bytes(200_000), "image/png") for _ in range(2)]
    names = [path.removeprefix(image_files.FILES) for path in paths]
    assert files.held == 400_000
    assert len(set(names)) == 2
    assert all(len(name) > 30 for name in names)
    with files.room(1, (100, 100)), pytest.raises(ApiError) as full, files.room(1, (100, 100)):
        pass
    assert full.value.status == 429
    now[0] = image_files.SECONDS - 1
    assert files.get(names[0]) == (bytes(200_000), "image/png")
    now[0] = image_files.SECONDS
    with pytest.raises(ApiError) as gone:
        files.get(names[0])
    assert (gone.value.status, files.held) == (404, 0)
    with pytest.raises(ApiError, match="no pictures by URL"), ImageFiles(0).room(1, (1, 1)):
        pass


def test_sizes_are_scaled_where_that_is_asked_for(http):
    own, url = http.get("/v1/models/janus-mini", headers=OWNER).json()["image_size"], "/v1/images/generations"

    def picture(**fields):
        reply = http.post(url, json={**PAINT, **fields}, headers=OWNER).json()
        return Image.open(io.BytesIO(base64.b64decode(reply["data"][0]["b64_json"]))), reply["size"]

    whole, size = picture()
    assert (size, "{}x{}".format(*whole.size)) == (own, own)
    scaled, size = picture(size="150x70", resize=True)
    assert (size, scaled.size) == ("150x70", (150, 70))
    assert ImageChops.difference(scaled, whole.resize((150, 70), Image.Resampling.LANCZOS)).getbbox() is None
    assert scaled.text["seed"] == "1"
    for size, resize in (
        ("150x70", False),
        ("150x70", None),
        ("15x70", True),
        ("4097x70", True),
        ("0x0", True),
        ("9e9x9", True),
    ):
        error = http.post(url, json={**PAINT, "size": size, "resize": resize}, headers=OWNER).json()["error"]
        assert error["param"] == "size"
        assert f"paints {own.replace('x', ' x ')} only" in error["message"]
        assert "resize: true" in error["message"]
