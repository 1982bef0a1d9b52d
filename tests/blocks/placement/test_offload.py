"""Caches, batches and memory of a decoder over several devices."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bifrons.blocks.model.context import DecoderConfig, DeviceLayout
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.kv_slots import KVSlots
from bifrons.blocks.placement import memory_budget
from bifrons.blocks.placement.layout import CPU
from bifrons.blocks.placement.memory_budget import batch_over_devices, batch_that_fits, rows_that_fit
from bifrons.blocks.placement.memory_estimate import decoder_workload
from safetensors.torch import save_file

GPU = [torch.device("cuda", number) for number in range(2)]
CONFIG = DecoderConfig(64, 64, 128, 2, 4, 2, 16)


def test_a_cache_in_layers_is_the_cache():
    config = CONFIG

    def fill(layer_devices) -> list:
        decoder = Decoder(config)
        if layer_devices is not None:
            decoder.layout = DeviceLayout(CPU, tuple(layer_devices), 0)
        slots = KVSlots(decoder, 4, 40)
        torch.manual_seed(0)
        slots.add([5, 9, 7])
        view = slots.view(0, 3, 9)
        for layer in range(config.num_layers):
            value = torch.randn(3, 9, config.num_kv_heads, config.head_dim)
            placement = torch.arange(9).expand(3, 9)
            view.write(layer, placement, (value, value + 1))
        slots.copy([(0, 1, 4), (1, 2, 5)])
        slots.drop(0)
        return [buffer[layer] for buffer in slots.cache.buffers for layer in range(config.num_layers)]

    layers = [CPU] * config.num_layers
    assert all(torch.equal(a, b) for a, b in zip(fill(None), fill(layers), strict=True))


def test_batches_go_by_the_fullest_device(monkeypatch):
    work = decoder_workload("an image", CONFIG, 256, 20, 16, rows=2)
    each = work.cache_bytes(1, torch.bfloat16)
    free = {GPU[0]: 200 * each, GPU[1]: 200 * each}
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: free[device])
    alone = batch_that_fits(work, GPU[0], torch.bfloat16)
    both = batch_over_devices(work, DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0), torch.bfloat16)
    assert alone < both <= 2 * alone + 1
    assert batch_over_devices(work, DeviceLayout(GPU[0], (GPU[0], GPU[1]), 100 * each), torch.bfloat16) < both
    free[GPU[1]] = each
    assert batch_over_devices(work, DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0), torch.bfloat16) == 1


def test_rows_of_an_engine_go_by_the_fullest_device(monkeypatch):
    free = {GPU[0]: 1000, GPU[1]: 1000}
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: free[device])
    assert rows_that_fit(8, GPU[0]) == 100
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0)) == 200
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[0], GPU[1]), 500)) == 100
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[1], GPU[1]), 500)) == 100
    free[GPU[1]] = 0
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0)) == 1


MEMORY = """
import re, sys, torch
from pathlib import Path
from torch import nn
from bifrons.blocks.checkpoints.key_mapping import ParameterSlice
from bifrons.blocks.checkpoints.loader import load_weights
from bifrons.blocks.model.context import DecoderConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.placement.layout import CPU, DevicePlacement, units
from bifrons.blocks.placement.offload import attach_hooks
with torch.device("meta"):
    model = nn.ModuleDict({"model": Decoder(DecoderConfig(64, 1024, 4096, 8, 8, 8))})
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
names = units(model)
import torch._dynamo  # as what moves weights does, in a hundred megabytes
placement = DevicePlacement(CPU, dict.fromkeys(names, CPU), frozenset(names))
before = peak()
load_weights(model, Path(sys.argv[1]), ParameterSlice, device=placement.device_of, dtype=torch.bfloat16)
attach_hooks(model, placement)
with torch.no_grad():
    model["model"](torch.zeros(1, 2, 1024, dtype=torch.bfloat16))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_of_loading_and_computing_peaks_near_the_files_size(tmp_path):
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"model": Decoder(DecoderConfig(64, 1024, 4096, 8, 8, 8))})
    state = {name: torch.full(w.shape, 0.01, dtype=torch.bfloat16) for name, w in model.named_parameters()}
    save_file(state, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert 0.9 < int(run.stdout) / (tmp_path / "model.safetensors").stat().st_size < 1.3
