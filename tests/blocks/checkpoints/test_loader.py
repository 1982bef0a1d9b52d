"""Loading into a model: pieces, dtypes, mismatches, peak memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints.key_mapping import ParameterSlice, check
from bifrons.blocks.checkpoints.loader import load_weights
from bifrons.blocks.checkpoints.reader import list_tensors
from bifrons.blocks.errors import CheckpointError
from safetensors.torch import save_file
from torch import nn


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
