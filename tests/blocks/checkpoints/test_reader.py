"""Which tensors a folder holds: indices, shards, safetensors headers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


def test_safetensors_single_under_any_name_and_preferred_to_bin(tmp_path, state, assert_holds):
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file(state, tmp_path / "model-00001-of-000001.safetensors")
    assert_holds(tmp_path, state)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_found_by_the_index_alone(tmp_path, kind, state, assert_holds, assert_refused):
    names = list(state)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    files = {f"part-x.{kind}": names[:2], f"{stem}-00002-of-000002.{kind}": names[2:]}
    for file, part in files.items():
        save = save_file if kind == "safetensors" else torch.save
        save({n: state[n] for n in part}, tmp_path / file)
    index = {"weight_map": {n: f for f, part in files.items() for n in part}}
    index_path = tmp_path / f"{stem}.{kind}.index.json"
    index_path.write_text(json.dumps(index))
    assert_holds(tmp_path, state)

    index["weight_map"]["ghost"] = f"part-x.{kind}"
    index_path.write_text(json.dumps(index))
    assert_refused(tmp_path, "ghost", "part-x")
    index["weight_map"]["ghost"] = f"../part-x.{kind}"
    index_path.write_text(json.dumps(index))
    assert_refused(tmp_path, "../part-x", "same folder")
    index["weight_map"]["ghost"] = f"gone.{kind}"
    index_path.write_text(json.dumps(index))
    assert_refused(tmp_path, "1 of 3", f"gone.{kind}")
    shutil.copy(tmp_path / f"part-x.{kind}", tmp_path / f"gone.{kind}")
    assert_refused(tmp_path, "twice", "part-x", "gone")
    index_path.write_text("{")
    assert_refused(tmp_path, index_path.name, "JSON")


def test_missing_things_are_named(tmp_path, assert_refused):
    assert_refused(tmp_path / "nowhere", "nowhere", "does not exist")
    assert_refused(tmp_path, "holds no weights", "pytorch_model.bin")
    (tmp_path / "model.safetensors").touch()
    assert_refused(tmp_path, "model.safetensors", "empty")
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").touch()
    assert_refused(tmp_path, "a.safetensors, b.safetensors", "no index")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("cut", [1, 200, 6, "tail", "half"])
def test_a_truncated_file_is_found_before_loading(tmp_path, file, cut, state, assert_refused):
    save_file(state, tmp_path / "s")
    torch.save(state, tmp_path / "b")
    data = (tmp_path / ("s" if file.endswith("s") else "b")).read_bytes()
    keep = {"tail": len(data) - 1, "half": len(data) // 2}.get(cut, cut)
    (tmp_path / file).write_bytes(data[:keep])
    assert_refused(tmp_path, file, str(keep))


def header(path: Path, head: object, body: bytes = bytes(8)) -> None:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(
    ("head", "word"),
    [
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}, "16 bytes"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "gap"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "damaged"),
        ({"x": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}, "accepted"),
        ({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "malformed"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "malformed"),
        ({"x": [1]}, "malformed"),
        ([1, 2], "JSON object"),
        ({"__metadata__": {}}, "no tensors"),
        (b"{nonsense", "JSON"),
        (b'{"x": 1, "x": 2}', "twice"),
        ({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "xy"}, "overlaps"),
    ],
)
def test_bad_safetensors_headers_are_refused(tmp_path, head, word, assert_refused):
    header(tmp_path / "model.safetensors", head)
    assert_refused(tmp_path, "model.safetensors", word)


@pytest.mark.parametrize(
    "value", [["a.safetensors"], {"a": 1}, 3, None, "a\x1b[31m.safetensors", "../a.safetensors", "a" * 2000]
)
def test_an_index_names_files(tmp_path, value, assert_refused):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": value}}))
    assert_refused(tmp_path, index.name, "accepted are .safetensors files in the same folder")
    index.write_text(json.dumps({"weight_map": {"x": "a" * 300 + ".safetensors"}}))
    assert_refused(tmp_path, "1 of 1 weights files are missing")
    index.write_bytes(b'{"weight_map":' * 10**5)
    assert_refused(tmp_path, index.name, "64 levels")
