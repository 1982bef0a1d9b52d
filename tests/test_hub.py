"""Downloads from a hub: a small server of our own answers as the hub's endpoints do."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from bifrons import CheckpointError, JanusPipeline
from bifrons.apps.cli.main import main
from bifrons.blocks.checkpoints.hub import find_model_folder
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

MINI = Path(__file__).parent / "data" / "janus-mini"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
NAME = "deepseek-ai/mini"


class Hub:
    """Models by name and revision, each a folder, and what was asked for."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], Path] = {}
        self.errors: dict[str, tuple[int, str]] = {}
        self.sent: dict[str, int] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self, True)

            def do_HEAD(self) -> None:
                hub.answer(self, False)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: Any, body: bool) -> None:
        parts = unquote(urlsplit(request.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner_name = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        revision = next((name for name, commit in COMMITS.items() if commit == revision), revision)
        folder = self.models.get((owner_name, revision))
        status, code = self.errors.get(owner_name, (200, ""))
        if folder is None and status == 200:
            known = any(name == owner_name for name, _ in self.models)
            status, code = (404, "RevisionNotFound") if known else (401, "RepoNotFound")
        if status != 200:
            request.send_response(status)
            request.send_header("X-Error-Code", code)
            request.send_header("X-Error-Message", "refused")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        assert folder is not None
        if api:
            self._model(request, folder, revision, owner_name, rest[:1] == ["tree"])
        else:
            self._file(request, folder, "/".join(rest[2:]), COMMITS[revision], body)

    def _model(self, request: Any, folder: Path, revision: str, name: str, tree: bool) -> None:
        sizes = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        answer: Any = {"id": name, "sha": COMMITS[revision]}
        answer["siblings"] = [{"rfilename": file, "size": size} for file, size in sizes.items()]
        if tree:
            file = {"type": "file", "oid": "0" * 40}
            answer = [{**file, "path": name, "size": size} for name, size in sizes.items()]
        content = json.dumps(answer).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _file(self, request: Any, folder: Path, file: str, commit: str, body: bool) -> None:
        content, total = (folder / file).read_bytes(), (folder / file).stat().st_size
        digest = hashlib.sha256(content).hexdigest()
        span = request.headers.get("range")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
        request.send_response(206 if span else 200)
        for name, value in (("ETag", f'"{digest}"'), ("X-Repo-Commit", commit), ("Accept-Ranges", "bytes")):
            request.send_header(name, value)
        if span:
            request.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{total}")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body:
            self.sent[file] = self.sent.get(file, 0) + len(content)
            request.wfile.write(content)

    def add(self, folder: Path, name: str = NAME, revision: str = "main") -> None:
        self.models[name, revision] = folder


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    running = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder on the hub: shards with an index, the same weights in other formats, and more below."""
    folder = shutil.copytree(MINI, tmp_path / "on-hub")
    for name in ("figures.json", "figures.safetensors", "keys.json"):
        (folder / name).unlink()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    where = {}
    for index in range(2):
        shard = f"model-{index + 1:05}-of-00002.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[index::2]}
        save_file(part, folder / shard)
        where |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (folder / "original").mkdir()
    (folder / "original" / "config.json").write_text("{}")
    (folder / "README.md").write_text("x")
    return folder


SMALL = {
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "processor_config.json", "preprocessor_config.json", "model.safetensors.index.json",
}  # fmt: skip
SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def test_one_format_of_the_top_folder_is_downloaded_once(hub, model):
    hub.add(model)
    pipe = JanusPipeline.from_pretrained(NAME, device="cpu", progress=False)
    assert pipe.name == NAME
    assert set(hub.sent) == SMALL | SHARDS
    hub.sent.clear()
    find_model_folder(NAME)
    assert hub.sent == {}
    hub.server.shutdown()
    hub.server.server_close()
    assert (find_model_folder(NAME) / "config.json").exists()


@pytest.mark.parametrize("index", [True, False])
def test_bin_files_where_there_is_nothing_else(hub, model, index):
    for path in model.glob("*.safetensors*"):
        path.unlink()
    (model / "training_args.bin").write_bytes(b"x")
    expected = {"pytorch_model.bin"}
    if index:
        (model / "pytorch_model.bin").rename(model / "part.bin")
        (model / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "part.bin"}}')
        expected = {"part.bin", "pytorch_model.bin.index.json"}
    hub.add(model)
    find_model_folder(NAME)
    assert set(hub.sent) == SMALL - {"model.safetensors.index.json"} | expected


def test_a_revision(hub, model, tmp_path, capsys):
    other = shutil.copytree(model, tmp_path / "other")
    (other / "generation_config.json").write_text('{"guidance_scale": 2.5}')
    hub.add(model)
    hub.add(other, revision="v1")
    pipe = JanusPipeline.from_pretrained(NAME, device="cpu", progress=False, revision="v1")
    assert (pipe.guidance_scale, pipe.name) == (2.5, f"{NAME}@v1")
    assert JanusPipeline.from_pretrained(NAME, device="cpu", progress=False).guidance_scale == 5
    assert main(["convert", NAME, str(tmp_path / "x"), "--revision", "v2"]) == 1
    assert "has no revision 'v2'; accepted: a branch, tag or commit" in capsys.readouterr().err
    assert main(["info", NAME, "--revision", "v1", "--json"]) == 0
    assert "generation_config.json" in capsys.readouterr().out


def test_info_fetches_configs_and_headers_only(hub, model, capsys):
    hub.add(model)
    assert main(["info", NAME, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["info", str(MINI), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert {file["name"]: file["bytes"] for file in report["files"]}[
        "model-00001-of-00002.safetensors"
    ] > 10**6
    for key in ("tensors", "parameters", "memory"):
        assert report[key] == whole[key]
    assert report["format"]["weights"] == sorted(SHARDS)
    assert set(hub.sent) == SMALL | SHARDS
    assert all(hub.sent[name] <= 100_001 for name in SHARDS)


def test_info_of_bin_files_fetches_none_of_them(hub, model, capsys):
    for path in model.glob("*.safetensors*"):
        path.unlink()
    hub.add(model)
    assert main(["info", NAME]) == 0
    out = capsys.readouterr().out
    assert "Parameters: 5.18 M" in out
    assert "pytorch_model.bin" in out
    assert "once they are downloaded" in out
    assert "pytorch_model.bin" not in hub.sent


@pytest.mark.parametrize(
    ("status", "code", "token", "message"),
    [
        (
            403,
            "GatedRepo",
            "",
            "gated: accept its terms at https://huggingface.co/deepseek-ai/mini and give a token",
        ),
        (
            404,
            "RepoNotFound",
            "",
            r"no such model, or it is private: check the name, or give a token \(`hf auth login`",
        ),
        (401, "RepoNotFound", "", "no such model, or it is private"),
        (401, "", "hf_x", "refuses the token in HF_TOKEN"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(hub, model, monkeypatch, status, code, token, message):
    hub.add(model)
    hub.errors[NAME] = (status, code)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(CheckpointError, match=message):
        find_model_folder(NAME)


@pytest.mark.parametrize("how", ["offline", "no server", "local_files_only"])
def test_without_a_network(hub, monkeypatch, how):
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.server.shutdown()
    hub.server.server_close()
    options = {"local_files_only": True} if how == "local_files_only" else {}
    with pytest.raises(CheckpointError, match=r"not in the cache and can't be fetched.*give the folder"):
        find_model_folder("deepseek-ai/nowhere", **options)


def test_an_adapter_on_the_hub_is_named(hub, model, capsys):
    for path in model.iterdir():
        if path.is_file():
            path.unlink()
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "deepseek-ai/Janus-Pro-1B"}')
    (model / "adapter_model.safetensors").write_bytes(b"x")
    hub.add(model)
    with pytest.raises(CheckpointError, match="is a LoRA adapter of 'deepseek-ai/Janus-Pro-1B'"):
        find_model_folder(NAME)
