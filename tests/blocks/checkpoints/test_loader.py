import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints import formats
from bifrons.blocks.checkpoints.key_mapping import ParameterSlice, check
from bifrons.blocks.checkpoints.loader import load_weights, progress_bar
from bifrons.blocks.checkpoints.reader import list_tensors, read_tensor
from bifrons.blocks.checkpoints.writer import write_safetensors
from bifrons.blocks.errors import CheckpointError
from safetensors.torch import load_file, save_file
from torch import nn

STATE = {
    "a.weight": torch.arange(12.0).view(3, 4),
    "b": torch.arange(5, dtype=torch.int64),
    "c": torch.tensor(2.5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "flag": torch.tensor([True, False, True]),
}


def same(folder: Path, state: dict[str, torch.Tensor]) -> None:
    entries = list_tensors(folder)
    assert entries.keys() == state.keys()
    for name, entry in entries.items():
        assert (entry.shape, entry.dtype) == (tuple(state[name].shape), state[name].dtype)
        tensor = read_tensor(entry)
        assert tensor.is_contiguous()
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        list_tensors(folder)
    for word in words:
        assert word in str(caught.value)


# --- what lies where -----------------------------------------------------------------------------------


def test_safetensors_single_under_any_name_and_preferred_to_bin(tmp_path):
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file(STATE, tmp_path / "model-00001-of-000001.safetensors")
    same(tmp_path, STATE)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_found_by_the_index_alone(tmp_path, kind):
    names = list(STATE)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    files = {f"part-x.{kind}": names[:2], f"{stem}-00002-of-000002.{kind}": names[2:]}
    for file, part in files.items():
        save = save_file if kind == "safetensors" else torch.save
        save({n: STATE[n] for n in part}, tmp_path / file)
    index = {"weight_map": {n: f for f, part in files.items() for n in part}}
    index_path = tmp_path / f"{stem}.{kind}.index.json"
    index_path.write_text(json.dumps(index))
    same(tmp_path, STATE)

    index["weight_map"]["ghost"] = f"part-x.{kind}"
    index_path.write_text(json.dumps(index))
    refused(tmp_path, "ghost", "part-x")
    index["weight_map"]["ghost"] = f"../part-x.{kind}"
    index_path.write_text(json.dumps(index))
    refused(tmp_path, "../part-x", "same folder")
    index["weight_map"]["ghost"] = f"gone.{kind}"
    index_path.write_text(json.dumps(index))
    refused(tmp_path, "1 of 3", f"gone.{kind}")
    shutil.copy(tmp_path / f"part-x.{kind}", tmp_path / f"gone.{kind}")
    refused(tmp_path, "twice", "part-x", "gone")
    index_path.write_text("{")
    refused(tmp_path, index_path.name, "JSON")


def test_missing_things_are_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "does not exist")
    refused(tmp_path, "holds no weights", "pytorch_model.bin")
    (tmp_path / "model.safetensors").touch()
    refused(tmp_path, "model.safetensors", "empty")
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").touch()
    refused(tmp_path, "a.safetensors, b.safetensors", "no index")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("cut", [1, 200, 6, "tail", "half"])
def test_a_truncated_file_is_found_before_loading(tmp_path, file, cut):
    save_file(STATE, tmp_path / "s")
    torch.save(STATE, tmp_path / "b")
    data = (tmp_path / ("s" if file.endswith("s") else "b")).read_bytes()
    keep = {"tail": len(data) - 1, "half": len(data) // 2}.get(cut, cut)
    (tmp_path / file).write_bytes(data[:keep])
    refused(tmp_path, file, str(keep))


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
def test_bad_safetensors_headers_are_refused(tmp_path, head, word):
    header(tmp_path / "model.safetensors", head)
    refused(tmp_path, "model.safetensors", word)


# --- PyTorch .bin --------------------------------------------------------------------------------------


def odd_state() -> OrderedDict[str, torch.Tensor]:
    base = torch.arange(100.0, dtype=torch.bfloat16)
    state = OrderedDict(STATE)
    state["slice"] = base[10:30]
    state["transposed"] = base[40:90].view(5, 10).t()
    state["expanded"] = base[3:6, None].expand(3, 4)
    state["param"] = nn.Parameter(torch.randn(2, 3))
    return state


def test_bin_is_read_by_place_without_loading(tmp_path, monkeypatch):
    state = odd_state()
    torch.save(state, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(formats, "load_bin", None)  # would fail if the file were loaded whole
    same(tmp_path, state)
    assert {n for n, e in list_tensors(tmp_path).items() if e.strides} == {"transposed", "expanded"}


def test_bin_is_read_by_place_under_fake_tensors_too(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    plain = formats._torch_load
    monkeypatch.setattr(formats, "load_bin", None)
    fake = lambda path, skeleton: plain(path, skeleton=skeleton, fake=True)  # noqa: E731
    monkeypatch.setattr(formats, "_torch_load", fake)
    same(tmp_path, STATE)


def repack(source: Path, target: Path, compression: int, change=lambda name, data: data) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))


def test_bin_files_of_unknown_layout_are_loaded_whole(tmp_path):
    state, path = odd_state(), tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    same(tmp_path, state)
    assert all(entry.whole_file for entry in list_tensors(tmp_path).values())
    torch.save(state, tmp_path / "new")
    repack(tmp_path / "new", path, zipfile.ZIP_STORED)  # other alignment than torch computes
    same(tmp_path, state)


def test_bin_saved_on_a_gpu_loads_without_one(tmp_path):
    torch.save({"x": STATE["a.weight"]}, tmp_path / "cpu")

    def to_gpu(name: str, data: bytes) -> bytes:
        return data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0") if name.endswith("data.pkl") else data

    repack(tmp_path / "cpu", tmp_path / "pytorch_model.bin", zipfile.ZIP_STORED, to_gpu)
    assert b"cuda:0" in (tmp_path / "pytorch_model.bin").read_bytes()
    same(tmp_path, {"x": STATE["a.weight"]})


class Evil:
    def __reduce__(self):
        return os.system, ("echo pwned > pwned",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_bin_with_code_is_refused_and_not_run(tmp_path, monkeypatch, new_format):
    monkeypatch.chdir(tmp_path)
    state = {"x": torch.zeros(2), "y": Evil()}
    torch.save(state, "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    refused(tmp_path, "pytorch_model.bin", "holds code", "safetensors")
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
def test_bins_of_another_kind_are_refused(tmp_path, content, word):
    path = tmp_path / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    refused(tmp_path, "pytorch_model.bin", word)


def test_a_torchscript_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("model/data.pkl", b"")
        archive.writestr("model/constants.pkl", b"")
    refused(tmp_path, "pytorch_model.bin", "holds code")


# --- into a model --------------------------------------------------------------------------------------


class Toy(nn.Module):
    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 6)
        self.gate_up = nn.Parameter(torch.empty(experts, 4, 2))
        self.pos = nn.Parameter(torch.empty(1, 3, 2))
        self.bias = nn.Parameter(torch.empty(2))
        self.register_buffer("count", torch.empty(2, dtype=torch.int64))
        with torch.device("cpu"):
            self.register_buffer("table", torch.ones(2), persistent=False)


def toy_keys(name: str) -> ParameterSlice | None:
    if name == "old":
        return None
    kind, _, rest = name.partition(".")
    if kind in ("q", "k", "v"):
        return ParameterSlice(f"qkv.{rest}", part=("qkv".index(kind), 3))
    if kind in ("gate", "up"):
        return ParameterSlice("gate_up", select=(int(rest),), part=(kind == "up", 2))
    return {n: ParameterSlice(n, reshape=n == "pos") for n in ("pos", "bias", "count")}[name]


def toy_state() -> dict[str, torch.Tensor]:
    state = {"pos": torch.randn(3, 2), "bias": torch.randn(2), "count": torch.tensor([7, 8])}
    state |= {"old": torch.zeros(1)}
    state |= {f"{k}.weight": torch.randn(2, 4) for k in "qkv"} | {f"{k}.bias": torch.randn(2) for k in "qkv"}
    state |= {f"{k}.{e}": torch.randn(2, 2) for k in ("gate", "up") for e in range(3)}
    return state


def load_toy(folder: Path, **options) -> Toy:
    with torch.device("meta"):
        model = Toy()
    options = {"device": "cpu", "dtype": None} | options
    report = load_weights(model, folder, toy_keys, **options)
    assert report.ok
    assert report.unused == ("old",)
    return model


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_pieces_come_together(tmp_path, kind):
    state = toy_state()
    if kind == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    model = load_toy(tmp_path)
    assert torch.equal(model.qkv.weight, torch.cat([state[f"{k}.weight"] for k in "qkv"]))
    assert torch.equal(model.qkv.bias, torch.cat([state[f"{k}.bias"] for k in "qkv"]))
    expert = [torch.cat([state[f"gate.{e}"], state[f"up.{e}"]]) for e in range(3)]
    assert torch.equal(model.gate_up, torch.stack(expert))
    assert torch.equal(model.pos, state["pos"][None])
    assert torch.equal(model.get_buffer("count"), state["count"])
    assert torch.equal(model.get_buffer("table"), torch.ones(2))
    assert not any(p.requires_grad for p in model.parameters())


def test_dtype_casts_floats_only_and_keeps_what_is_asked(tmp_path):
    state = toy_state()
    state["bias"] = state["bias"].double()
    save_file(state, tmp_path / "model.safetensors")
    model = load_toy(tmp_path, dtype=torch.bfloat16, keep_float32=lambda name: name == "bias")
    assert model.qkv.weight.dtype == model.gate_up.dtype == torch.bfloat16
    assert model.bias.dtype == torch.float32
    assert model.get_buffer("count").dtype == torch.int64
    assert torch.equal(model.qkv.weight[:2], state["q.weight"].bfloat16())
    assert load_toy(tmp_path).bias.dtype == torch.float64


def test_every_mismatch_is_reported_before_anything_is_loaded(tmp_path):
    state = toy_state()
    del state["k.weight"], state["up.1"], state["bias"]
    state |= {"stranger": torch.zeros(1), "gate.7": torch.zeros(2, 2), "pos": torch.zeros(5)}
    state["v.weight"] = torch.zeros(2, 5)
    state["count"] = torch.zeros(2)
    save_file(state, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = Toy()
    report = check(model, list_tensors(tmp_path), toy_keys)
    assert not report.ok
    assert [m.split(" ")[0] for m in report.missing] == ["bias", "gate_up:", "qkv.weight:"]
    assert "[1] part 2 of 2" in report.missing[1]
    assert "part 2 of 3" in report.missing[2]
    assert [e.split(" ")[0] for e in report.extra] == ["gate.7", "stranger"]
    assert [m.split(":")[0] for m in report.misshapen] == ["count", "pos", "v.weight"]
    assert "[2, 5] in the file, [2, 4] in the model" in report.summary()
    with pytest.raises(CheckpointError, match="3 missing from the file") as caught:
        load_weights(model, tmp_path, toy_keys, device="cpu", dtype=None)
    assert "stranger" in str(caught.value)
    assert all(p.is_meta for p in model.parameters())


def test_a_place_filled_twice_is_reported(tmp_path):
    state = toy_state() | {"bias2": torch.zeros(2), "whole": torch.zeros(6, 4)}
    save_file(state, tmp_path / "model.safetensors")
    more = {"bias2": ParameterSlice("bias"), "whole": ParameterSlice("qkv.weight")}
    with torch.device("meta"):
        model = Toy()
    report = check(model, list_tensors(tmp_path), lambda name: more.get(name) or toy_keys(name))
    assert len(report.twice) == 2
    assert not report.ok
    assert "bias and bias2" in report.twice[0]
    assert "whole" in report.twice[1]


def test_summary_lists_ten_names_and_counts_the_rest():
    with torch.device("meta"):
        model = nn.ModuleList(nn.Linear(1, 1) for _ in range(8))
    text = check(model, {}, toy_keys).summary()
    assert text.count("\n") == 11
    assert "16 missing" in text
    assert "and 6 more" in text


def test_one_tensor_may_fill_two_places(tmp_path):
    save_file({"e": torch.randn(2, 2)}, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = nn.ModuleDict({k: nn.Linear(2, 2, bias=False) for k in "ab"})
    both = (ParameterSlice("a.weight"), ParameterSlice("b.weight"))
    load_weights(model, tmp_path, lambda name: both, device="cpu", dtype=None)
    a, b = (model.get_parameter(f"{k}.weight") for k in "ab")
    assert torch.equal(a, b)
    assert a.data_ptr() != b.data_ptr()


def test_a_buffer_that_nobody_can_fill_is_our_own_error(tmp_path):
    save_file(toy_state(), tmp_path / "model.safetensors")
    model = Toy().to("meta")
    with pytest.raises(AssertionError, match="table"):
        load_weights(model, tmp_path, toy_keys, device="cpu", dtype=None)


MEMORY = """
import re, sys, torch
from pathlib import Path
from torch import nn
from bifrons.blocks.checkpoints.key_mapping import ParameterSlice
from bifrons.blocks.checkpoints.loader import load_weights
with torch.device("meta"):
    model = nn.ModuleList(nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16) for _ in range(9))
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
load_weights(model, Path(sys.argv[1]), ParameterSlice, device="cpu", dtype=torch.bfloat16)
print((peak() - before) / (9 * 4096 * 4096 * 2), float(sum(p.float().sum() for p in model.parameters())))
"""


# The kernel's own high-water mark: getrusage's would start with that of the process which started this one.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_memory_peaks_near_the_files_size(tmp_path, kind):
    state = {f"{i}.weight": torch.full((4096, 4096), i + 1, dtype=torch.bfloat16) for i in range(9)}
    if kind == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    del state
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    times, total = map(float, run.stdout.split())
    assert total == pytest.approx(45 * 4096 * 4096)
    assert 0.9 < times < 1.3


def test_the_bar_shows_without_a_terminal_and_only_when_it_takes_long(capsys):
    for show, wait in ((True, 0.0), (False, 9.0), (True, 9.0)):
        with progress_bar(2000, "loading weights", show) as bar:
            bar.start_t = bar.last_print_t = bar.start_t - wait if show else 0.0
            bar.update(1000)
        shown = capsys.readouterr().err
        assert ("loading weights:  50%" in shown) == (show and wait > 0)
    assert "1.00k/2.00k" in shown


# --- writing -------------------------------------------------------------------------------------------


def specs(state):
    return [(n, lambda n=n: state[n], tuple(t.shape), t.dtype) for n, t in state.items()]


def test_written_files_read_back_here_and_in_safetensors(tmp_path):
    state = odd_state() | {"ü": torch.zeros(3, dtype=torch.uint8)}
    assert [p.name for p in write_safetensors(tmp_path / "one", specs(state))] == ["model.safetensors"]
    same(tmp_path / "one", state)
    loaded = load_file(tmp_path / "one" / "model.safetensors")
    assert all(torch.equal(loaded[n], t) for n, t in state.items())

    files = write_safetensors(tmp_path / "many", specs(state), max_shard_bytes=60)
    assert files[-1].name == "model.safetensors.index.json"
    assert files[0].name == f"model-00001-of-{len(files) - 1:05d}.safetensors"
    assert len(files) > 3
    same(tmp_path / "many", state)
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == sorted(p.name for p in files)
    with pytest.raises(CheckpointError, match="other weights"):
        write_safetensors(tmp_path / "many", specs(state))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path, error):
    write_safetensors(tmp_path, specs(STATE))

    def fail() -> torch.Tensor:
        raise error

    bad = [*specs({"x": torch.zeros(4)}), ("y", fail, (2,), torch.float32)]
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
        write_safetensors(tmp_path, bad)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    same(tmp_path, STATE)


def test_a_full_disk_is_noticed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(CheckpointError, match="0 bytes free"):
        write_safetensors(tmp_path, specs(STATE))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't write"):
        write_safetensors(tmp_path / "file" / "folder", specs(STATE))
