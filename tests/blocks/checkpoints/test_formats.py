"""PyTorch's `.bin` files: read by offsets, never running code."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints import formats
from bifrons.blocks.checkpoints.reader import list_tensors


def test_bin_is_read_by_place_without_loading(tmp_path, monkeypatch, odd_state, assert_holds):
    torch.save(odd_state, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(formats, "load_bin", None)  # would fail if the file were loaded whole
    assert_holds(tmp_path, odd_state)
    assert {n for n, e in list_tensors(tmp_path).items() if e.strides} == {"transposed", "expanded"}


def test_bin_is_read_by_place_under_fake_tensors_too(tmp_path, monkeypatch, state, assert_holds):
    torch.save(state, tmp_path / "pytorch_model.bin")
    plain = formats._torch_load
    monkeypatch.setattr(formats, "load_bin", None)
    fake = lambda path, skeleton: plain(path, skeleton=skeleton, fake=True)  # noqa: E731
    monkeypatch.setattr(formats, "_torch_load", fake)
    assert_holds(tmp_path, state)


def repack(source: Path, target: Path, compression: int, change=lambda name, data: data) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))


def test_bin_files_of_unknown_layout_are_loaded_whole(tmp_path, odd_state, assert_holds):
    path = tmp_path / "pytorch_model.bin"
    torch.save(odd_state, path, _use_new_zipfile_serialization=False)
    assert_holds(tmp_path, odd_state)
    assert all(entry.whole_file for entry in list_tensors(tmp_path).values())
    torch.save(odd_state, tmp_path / "new")
    repack(tmp_path / "new", path, zipfile.ZIP_STORED)  # other alignment than torch computes
    assert_holds(tmp_path, odd_state)


def test_bin_saved_on_a_gpu_loads_without_one(tmp_path, state, assert_holds):
    torch.save({"x": state["a.weight"]}, tmp_path / "cpu")

    def to_gpu(name: str, data: bytes) -> bytes:
        return data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0") if name.endswith("data.pkl") else data

    repack(tmp_path / "cpu", tmp_path / "pytorch_model.bin", zipfile.ZIP_STORED, to_gpu)
    assert b"cuda:0" in (tmp_path / "pytorch_model.bin").read_bytes()
    assert_holds(tmp_path, {"x": state["a.weight"]})


class Evil:
    def __reduce__(self):
        return os.system, ("echo pwned > pwned",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_bin_with_code_is_refused_and_not_run(tmp_path, monkeypatch, new_format, assert_refused):
    monkeypatch.chdir(tmp_path)
    state = {"x": torch.zeros(2), "y": Evil()}
    torch.save(state, "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    assert_refused(tmp_path, "pytorch_model.bin", "holds code", "safetensors")
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"state_dict": {"x": torch.zeros(1)}}, "'state_dict'"),
        ({"x": 3}, "int"),
        ([torch.zeros(1)], "list"),
        ({}, "no tensors"),
        ({1: torch.zeros(1)}, "1"),
        (b"just some bytes, not a pickle at all", "not a PyTorch checkpoint"),
        (b"PK\x03\x04 a zip that is none", "not a PyTorch checkpoint"),
    ],
)
def test_bins_of_another_kind_are_refused(tmp_path, content, word, assert_refused):
    path = tmp_path / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert_refused(tmp_path, "pytorch_model.bin", word)


def test_a_torchscript_archive_is_refused(tmp_path, assert_refused):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("model/data.pkl", b"")
        archive.writestr("model/constants.pkl", b"")
    assert_refused(tmp_path, "pytorch_model.bin", "holds code")
