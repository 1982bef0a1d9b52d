"""PyTorch's `.bin` files: read by offsets, never running code."""

import os
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons.blocks.checkpoints.reader import list_tensors
from safetensors.torch import save_file


def test_bin_is_read_by_place_without_loading(tmp_path, monkeypatch, odd_state, assert_holds):
    torch.save(odd_state, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", None)  # would fail if the file were loaded whole
    assert_holds(tmp_path, odd_state)
    assert {n for n, e in list_tensors(tmp_path).items() if e.strides} == {"transposed", "expanded"}


def repack(source: Path, target: Path, compression: int, change=lambda name, data: data) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))


def test_bin_files_of_other_layouts(tmp_path, monkeypatch, odd_state, assert_holds):
    path = tmp_path / "pytorch_model.bin"
    torch.save(odd_state, path, _use_new_zipfile_serialization=False)
    torch.save(odd_state, tmp_path / "new")
    monkeypatch.setattr(torch, "load", None)
    assert_holds(tmp_path, odd_state)  # the format before torch 1.6
    repack(tmp_path / "new", path, zipfile.ZIP_STORED)  # other alignment than torch computes
    assert_holds(tmp_path, odd_state)
    repack(tmp_path / "new", path, zipfile.ZIP_DEFLATED)
    assert_holds(tmp_path, odd_state)
    assert all(entry.member for entry in list_tensors(tmp_path).values() if entry.nbytes)


def other_byte_order(name: str, data: bytes, widths: dict[str, int]) -> bytes:
    """A member of torch's zip as a machine of the other byte order writes it."""
    if name.endswith("byteorder"):
        return b"big" if sys.byteorder == "little" else b"little"
    if "/data/" not in name:
        return data
    return np.frombuffer(data, f"u{widths[name.rpartition('/')[2]]}").byteswap().tobytes()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_other_byte_order_is_swapped(tmp_path, compression, assert_holds):
    state = {
        "f32": torch.randn(3, 4),
        "bf16": torch.randn(5).bfloat16(),
        "i64": torch.arange(4),
        "complex": torch.randn(3, dtype=torch.complex64),
        "bool": torch.tensor([True, False]),
    }
    torch.save(state, tmp_path / "native")
    widths = {"0": 4, "1": 2, "2": 8, "3": 4, "4": 1}
    change = partial(other_byte_order, widths=widths)
    repack(tmp_path / "native", tmp_path / "pytorch_model.bin", compression, change)
    assert_holds(tmp_path, state)


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


NAMES = ("a\x1b[31m", "a\x9b1m", "a\u202eb", "a\nb", "a" * 2000)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_can_not_be_printed_are_refused(tmp_path, name, assert_refused):
    for path in (tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin"):
        (save_file if path.suffix == ".safetensors" else torch.save)({name: torch.zeros(1)}, path)
        assert_refused(tmp_path, path.name, "accepted: printable names")
        path.unlink()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be", "utf-8-sig"])
def test_headers_in_other_encodings_are_refused(tmp_path, encoding, assert_refused):
    """Python's reader of JSON would take them; the reference reader doesn't."""
    header = '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode(encoding)
    content = len(header).to_bytes(8, "little") + header + b"0"
    (tmp_path / "model.safetensors").write_bytes(content)
    assert_refused(tmp_path, "model.safetensors is not a safetensors file", "JSON")


@pytest.mark.parametrize(
    "header",
    [b"[" * 10**6, b'{"a":' * 10**5, b"[" + b"[]," * 3_000_000 + b"0]", b'{"a":' + b"1" * 5000 + b"}"],
)
def test_headers_that_ask_for_too_much_are_refused(tmp_path, header, assert_refused):
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert_refused(tmp_path, "model.safetensors is not a safetensors file", "JSON")


def test_weights_that_are_no_regular_files_are_refused(tmp_path, assert_refused):
    for name in ("model.safetensors", "pytorch_model.bin"):
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
            make(tmp_path / name)
            assert_refused(tmp_path, name, "not a regular file")
            (os.rmdir if (tmp_path / name).is_dir() else os.remove)(tmp_path / name)
