"""Invalid input to the commands: one line that explains it, a non-zero status and no traceback."""

import io
import json
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons import OptionError
from bifrons.apps.cli.models import byte_count
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 30), "red").save(path)
    return path


# --- models --------------------------------------------------------------------------------------------


def shard(folder: Path) -> None:
    """Split the weights into two shards with an index, and leave out the second shard."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:100]}, folder / first)
    where = {name: first if index < 100 else second for index, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["gen_embed.weight"] = tensors["gen_embed.weight"][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors")


def rename_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))


class Code:
    """Runs `print` when it is unpickled."""

    def __reduce__(self):
        return print, ("code ran",)


def put_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"gen_embed.weight": Code()}, folder / "pytorch_model.bin")


def put_old_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))


DAMAGES = [
    (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("{"), "can't be read as JSON"),
    (truncate, "is incomplete"),
    (shard, "1 of 2 weights files are missing: model-00002-of-00002"),
    (reshape, r"gen_embed.weight: \[511, 8\] in the file, \[512, 8\] in the model"),
    (rename_type, "model_type is 'llava'; accepted: multi_modality, janus, deepseek_vl_v2"),
    (put_code, "holds code or objects"),
    (put_old_code, "refused|damaged"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_models(bifrons, failed, folder, damage, message):
    damage(folder)
    assert re.search(message, failed("generate", "x", "-m", folder))
    report = bifrons("info", folder)
    assert report.status == 1
    assert re.search(message, report.out)
    assert "code ran" not in report.out
    assert "Traceback" not in report.err
    assert json.loads(bifrons("info", folder, "--json").out)["sound"] is False


def test_info_lists_missing_and_unknown_tensors(bifrons, folder):
    tensors = load_file(folder / "model.safetensors")
    missing = [name for name in tensors if name.startswith("gen_aligner.")]
    for name in missing:
        del tensors[name]
    save_file({**tensors, "surplus.weight": torch.zeros(2)}, folder / "model.safetensors")
    report = json.loads(bifrons("info", folder, "--json").out)["tensors"]
    assert sorted(line.split()[0] for line in report["missing"]) == sorted(missing)
    assert report["extra"] == ["surplus.weight"]
    assert (report["misshapen"], report["unused"], report["in_files"]) == ([], 14, len(tensors) + 1)
    result = bifrons("info", folder)
    assert result.status == 1
    assert all(f"\n    {name}" in result.out for name in (*missing, "surplus.weight"))


def test_info_reads_only_the_headers(bifrons, janus_mini, tmp_path):
    """A sparse file with only the header gives the same report; the config alone gives the parameters."""
    (tmp_path / "config.json").write_bytes((janus_mini / "config.json").read_bytes())
    alone = bifrons("info", tmp_path)
    assert alone.status == 1
    assert "Parameters: 5.18 M" in alone.out
    with (janus_mini / "model.safetensors").open("rb") as stream:
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(length + header)
        stream.truncate((janus_mini / "model.safetensors").stat().st_size)
    sparse, whole = bifrons("info", tmp_path, "--json"), bifrons("info", janus_mini, "--json")
    assert sparse.status == 0
    for key in ("memory", "parameters", "tensors"):
        assert json.loads(sparse.out)[key] == json.loads(whole.out)[key]


def test_missing_models(failed, tmp_path):
    assert "no folder" in failed("generate", "x", "-m", "nowhere")
    assert "no folder" in failed("info", tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in failed("ask", "x", "-m", tmp_path / "file")
    assert "is inside" in failed("convert", tmp_path, tmp_path / "b")


def test_a_model_of_the_wrong_family(refused, vl2_mini, picture, tmp_path):
    assert "neither paints" in refused("generate", "x", "-m", vl2_mini)
    assert "neither paints" in refused("encode", picture, "-m", vl2_mini)
    codes = tmp_path / "c.json"
    codes.write_text("[1, 2]")
    assert "neither paints" in refused("decode", codes, "-m", vl2_mini)


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "a prompt is empty"),
        (["fine", "  "], "a prompt is empty"),
        (["word " * 3000], "the context holds 2048"),
        (["x", "-n", "0"], "n is 0; accepted: at least 1"),
        (["x", "--guidance-scale", "nan"], "guidance_scale is nan; accepted: a finite number"),
        (["x", "--temperature", "-1"], "temperature is -1.0"),
        (["x", "--top-p", "0"], "top_p is 0"),
        (["x", "--seed", "-1"], "seed is -1"),
        (["x", "--negative-prompt", "y", "--guidance-scale", "1"], "works through guidance"),
        (["x", "--device", "abacus"], "device is 'abacus'"),
        (["x", "--dtype", "int3"], "dtype is 'int3'; accepted: float32"),
        (["a", "red", "star", "-o", "one.png"], "each of the 3 words is a prompt; put quotes around"),
        (["x", "-n", "2", "-o", "one.png"], "2 pictures are asked for; name a folder"),
        (["\udcff"], "not valid Unicode"),
    ],
)
def test_options_of_generate(refused, janus_mini, words, message):
    assert message in refused("generate", *words, "-m", janus_mini)


def test_options_are_refused_before_the_model_is_loaded(refused, monkeypatch):
    monkeypatch.setattr(JanusPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert "guidance_scale" in refused("generate", "x", "--guidance-scale", "inf", "-m", "no-such-model")
    assert "max_new_tokens" in refused("ask", "x", "--max-new-tokens", "0", "-m", "no-such-model")


def test_json_reports_errors_too(bifrons, janus_mini):
    result = bifrons("generate", "x", "-n", "0", "-m", janus_mini, "--json")
    assert result.status == 2
    assert json.loads(result.out)["error"] in result.err


@pytest.mark.parametrize("words", [[], ["paint"], ["encode"], ["generate", "x", "--top-k", "many"]])
def test_usage(bifrons, words):
    result = bifrons(*words)
    assert result.status == 2
    assert result.err.startswith("usage: bifrons")
    assert result.err.splitlines()[-1].startswith("error: ")


def test_byte_count():
    assert [byte_count(text) for text in ("5GB", "1.5 MiB", "7")] == [5_000_000_000, 1_572_864, 7]
    for text in ("", "0", "5 parsecs", "-1GB", "nan"):
        with pytest.raises(OptionError, match="max-shard-size"):
            byte_count(text)


# --- pictures and files ---------------------------------------------------------------------------------


def decompression_bomb(path: Path) -> None:
    """A tiny PNG whose valid header claims 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def truncated_picture(path: Path) -> None:
    noise = Image.effect_noise((200, 200), 90)
    stream = io.BytesIO()
    noise.save(stream, "PNG")
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("no picture"), "is not a picture"),
        (lambda path: path.write_bytes(b""), "is an empty file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "does not exist"),
        (truncated_picture, "is damaged"),
        (decompression_bomb, "pixels"),
    ],
)
def test_pictures(failed, janus_mini, tmp_path, make, message):
    path = tmp_path / "x.png"
    make(path)
    assert message in failed("ask", path, "What?", "-m", janus_mini)
    assert message in failed("encode", path, "-m", janus_mini)
    assert message in failed("chat", "--image", path, "-m", janus_mini)


def test_questions(refused, janus_mini, picture):
    assert "no question" in refused("ask", picture, "-m", janus_mini)
    assert "question is ' '" in refused("ask", picture, " ", "-m", janus_mini)
    assert "context holds 2048" in refused("ask", picture, "word " * 3000, "-m", janus_mini)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "can't be read as codes"),
        ("a.json", '{"codes": "x"}', "holds no codes"),
        ("a.json", '{"codes": [1.5]}', "holds no codes"),
        ("a.json", '{"codes": [1], "grid": [1]}', "has the grid"),
        ("a.json", '{"codes": [1], "grid": [1, 1]}', r"accepted by .*: [6, 6]"),
        ("a.json", json.dumps({"codes": [512] * 36}), "accepted: 0 to 511"),
        ("a.json", "[1, 2]", "accepted: [36]"),
        ("a.npy", "[1, 2]", "can't be read as codes"),
        ("missing.json", None, "No such file"),
    ],
)
def test_codes(refused, janus_mini, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    unread = any(part in message for part in ("can't be read", "No such file"))
    text = refused("decode", tmp_path / name, "-m", janus_mini, status=1 if unread else 2)
    assert all(part in text for part in message.split(".*"))


def test_pickled_objects_among_codes_run_no_code(failed, janus_mini, tmp_path):
    np.save(tmp_path / "a.npy", np.array([Code()], dtype=object), allow_pickle=True)
    assert "can't be read as codes" in failed("decode", tmp_path / "a.npy", "-m", janus_mini)


def test_outputs(refused, failed, janus_mini, picture, tmp_path):
    (tmp_path / "file").write_text("x")
    blocked = tmp_path / "file" / "x.png"
    assert "can't write" in failed("generate", "x", "-m", janus_mini, "-o", blocked)
    assert ".json or .npy" in refused("encode", picture, "-m", janus_mini, "-o", "x.txt")
    (tmp_path / "codes.json").write_text("[1]")
    assert "ends in .png" in refused("decode", tmp_path / "codes.json", "-m", janus_mini, "-o", "x.gif")
