"""Fixtures of many rooms: the parity checkpoint of Janus, images by rule, models offloaded to the CPU."""

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import accelerate.hooks
import numpy as np
import pytest
import torch
from bifrons.apps.cli.main import main
from bifrons.blocks.checkpoints.loader import assign
from bifrons.blocks.checkpoints.quantize import decoder_name
from bifrons.blocks.engine.prefill import decode, prefill
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, Work
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.model.kv_slots import KVSlots
from bifrons.blocks.placement import layout, loading, offload
from bifrons.blocks.placement.layout import CPU, DevicePlacement, units
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .models import SHAPES_JANUS
from .triton_interpreter import interpret_kernels

interpret_kernels()

# Shells let background jobs ignore it, and these what they start: processes of tests begin with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Shared machines are slow now and then: a time limit an example would make a test fail for no reason of ours.
settings.register_profile("bifrons", deadline=None, derandomize=True, database=None)
settings.load_profile("bifrons")


@pytest.fixture(scope="session")
def bitwise_products() -> bool:
    """Whether float32 products of a row don't depend on the number of rows; measured on AMD's and Intel's
    processors with AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    measured = "AuthenticAMD" in text or "GenuineIntel" in text
    return measured and torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.fixture(scope="session")
def janus_mini() -> Path:
    """Folder of the small checkpoint in Janus-Pro's format, with the reference's figures."""
    return Path(__file__).parent / "data" / "janus-mini"


@pytest.fixture
def bifrons_main() -> Callable[..., int]:
    """`bifrons_main("info", folder)`: the status of one command."""

    def run(*argv: object) -> int:
        return main([str(word) for word in argv])

    return run


BOUNDED = """
import resource, sys
from pathlib import Path
import torch, tokenizers
from bifrons.blocks.checkpoints import reader
from bifrons.blocks.errors import BifronsError
size = next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]
limit = int(size) * 1024 + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""


@pytest.fixture(scope="session")
def run_bounded() -> Callable[..., str]:
    """`run_bounded(code, *arguments)`: what the code prints in a process that may take `memory` bytes more
    than its imports, and `seconds`; `sys.argv` has the arguments from 2 on. Fails on any other end."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads Linux's /proc")

    def run(code: str, *arguments: object, memory: int = 400 << 20, seconds: int = 100) -> str:
        command = [sys.executable, "-c", BOUNDED + code, str(memory), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def parity_picture() -> Callable[[int, int, int], Image.Image]:
    """`parity_picture(i, w, h)`: picture i, of w x h pixels, that the figures were made with."""

    def picture(i: int, w: int, h: int) -> Image.Image:
        yy, xx = np.mgrid[0:h, 0:w].astype(np.float64)
        r = 127 + 120 * np.sin(xx / (7 + i) + i)
        g = 127 + 120 * np.cos(yy / (5 + i))
        b = (3 * xx + 5 * yy + 40 * i) % 256
        a = np.stack([r, g, b], axis=-1)
        a[h // 4 : h // 2, w // 3 : w // 2] = (250, 20 * (i % 10), 5)
        return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))

    return picture


class WarmUpCapturer(GraphCapturer):
    """Runs the work while it is captured, as the capturer of CUDA graphs does to warm up."""

    def __call__(self, work: Work) -> Work:
        work()
        return super().__call__(work)


@pytest.fixture(scope="session")
def warm_up_capturer() -> type[GraphCapturer]:
    """A capturer for the CPU that runs the work while it is captured, as that of CUDA graphs does."""
    return WarmUpCapturer


@pytest.fixture
def load_offloaded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`load_offloaded(Pipeline, folder, stays=(), **options)`: a pipeline on the CPU with offloaded units.

    Their weights are present only while they compute. Units in `stays` are not offloaded.
    """

    def choose(stays, name, model, options, kind, keep_float32):
        devices = dict.fromkeys(units(model), CPU)
        return DevicePlacement(CPU, devices, frozenset(devices) - {*stays}), options.dtype or torch.float32

    def load(pipeline, folder, stays=(), **options):
        with monkeypatch.context() as patch:
            patch.setattr(loading, "choose_placement", partial(choose, stays))
            return pipeline.from_pretrained(folder, **options)

    return load


@pytest.fixture(scope="session")
def offloaded_units() -> Callable[[nn.Module], set[str]]:
    """`offloaded_units(model)`: names of the units whose weights are not there now."""

    def read(model: nn.Module) -> set[str]:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        kinds = {name: {t.is_meta for n, t in tensors if n.startswith(f"{name}.")} for name in units(model)}
        assert all(len(found) == 1 for found in kinds.values())
        return {name for name, found in kinds.items() if found == {True}}

    return read


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """PyTorch's fake tensors, which hold no numbers but refuse to compute across devices; without Triton's
    kernels and real streams."""
    if torch.cuda.is_available():
        pytest.skip("real GPUs are there")

    @contextmanager
    def current(device):
        yield

    def put(module, name, device, value=None, **_):  # accelerate's makes a parameter by its type
        path, _, leaf = name.rpartition(".")
        module = module.get_submodule(path)
        tensor = (getattr(module, leaf) if value is None else value).to(device)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor

    monkeypatch.setattr(offload, "_current", current)
    for user in (offload, accelerate.hooks):
        monkeypatch.setattr(user, "set_module_tensor_to_device", put)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: False)
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture
def on_fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTensorMode]:
    """`on_fake_gpu(model, dtype)`: puts a model of the meta device on a fake GPU without Triton's kernels;
    returns the mode to run it in."""
    if torch.cuda.is_available():
        pytest.skip("a real GPU is there")
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: False)

    def move(model: nn.Module, dtype: torch.dtype) -> FakeTensorMode:
        with (mode := FakeTensorMode()):
            for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
                parent, _, leaf = path.rpartition(".")
                fake: Tensor = torch.empty(tensor.shape, dtype=dtype, device="cuda")
                if isinstance(tensor, nn.Parameter):
                    fake = nn.Parameter(fake, requires_grad=False)
                delattr(owner := model.get_submodule(parent), leaf)
                setattr(owner, leaf, fake)
        model.eval()
        return mode

    return move


@pytest.fixture(scope="session")
def spread_over_two_gpus() -> Callable[[Any], None]:
    """`spread_over_two_gpus(model)`: half of the layers on one GPU, the others and the head on the other; a
    layer and what computes once per image are offloaded. Weights are uninitialized."""

    def spread(model: Any) -> None:
        first, second = (torch.device("cuda", number) for number in range(2))
        devices, path = dict.fromkeys(units(model), first), decoder_name(model)
        count = len(model.decoder.layers)
        layers = [f"{path}.layers.{number}" for number in range(count)]
        devices |= dict.fromkeys([*layers[count // 2 :], f"{path}.norm"], second)
        devices[path.replace(".model", ".lm_head")] = second
        devices |= dict.fromkeys([layers[0], *model.per_image_modules], CPU)
        placement = DevicePlacement(first, devices, layout.offloaded_units(devices, first))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            device = placement.device_of(name)
            assign(model, name, torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        offload.attach_hooks(model.eval(), placement)

    return spread


@pytest.fixture(scope="session")
def check_decoder_over_two_gpus() -> Callable[[Any], Tensor]:
    """Prefill, decode and serve rows with a model that is spread over two GPUs; returns hidden states."""

    def check(model: Any) -> Tensor:
        first, second = (torch.device("cuda", number) for number in range(2))
        decoder = model.decoder
        assert decoder.device == first
        rows = [model.embed_text(torch.arange(length, device=first)) for length in (5, 9)]
        cache = decoder.new_cache(2, 12)
        assert {cache.buffers[0][layer].device for layer in range(len(decoder.layers))} == {first, second}
        hidden = prefill(decoder, rows, cache, chunk=4)
        hidden = decode(decoder, hidden[:, None], cache)[:, 0]
        assert hidden.device == first
        assert model.text_logits(hidden).device == first
        assert decoder(rows[0][None]).device == first
        slots = KVSlots(decoder, 3, 16)
        slots.add([4, 4])
        prefill(decoder, [rows[0][:4]] * 2, slots.view(0, 2, 4))
        decode(decoder, hidden[:, None], slots.view(0, 2, 4))[:, 0]
        slots.lengths[:2] = [5, 5]
        slots.drop(0)
        return hidden

    return check


@pytest.fixture(scope="session")
def evil_jpeg() -> Callable[[tuple[int, int]], bytes]:
    """`evil_jpeg(size)`: a progressive JPEG file of some 400 kB whose last scan comes 6,600 times."""

    def make(size: tuple[int, int]) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", size, (200, 30, 30)).save(stream, "JPEG", progressive=True)
        data = stream.getvalue()
        scan = data[data.rindex(b"\xff\xda") : -2]
        return data[:-2] + scan * 6_600 + data[-2:]

    return make


@pytest.fixture(scope="session")
def random_adapter(tmp_path_factory) -> Callable[..., Path]:
    """`random_adapter(model, seed)`: the folder of a PEFT adapter with random numbers, the same each time."""
    pytest.importorskip("peft")
    from bifrons import JanusPipeline, VL2Pipeline
    from bifrons.learn.adapters import LoraOptions, add_adapter, save_adapter

    made: dict[tuple[str, int, bool], Path] = {}

    def make(model: str = SHAPES_JANUS, seed: int = 0, image_head: bool = False) -> Path:
        if (key := (model, seed, image_head)) not in made:
            kind = JanusPipeline if "janus" in Path(model).name else VL2Pipeline
            network = kind.from_pretrained(model, "cpu", progress=False).model.requires_grad_(False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                options = LoraOptions(4, 32.0, "whole" if image_head else None, kind is VL2Pipeline)
                config = add_adapter(network, options, model)
            generator = torch.Generator().manual_seed(seed)
            for name, weight in network.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    noise = torch.randn(weight.shape, generator=generator)
                    weight.data.add_(noise, alpha=0.05 if "lora_" in name else 0.01)
            made[key] = tmp_path_factory.mktemp("adapters") / f"{Path(model).name}-{seed}-{image_head}"
            save_adapter(network, config, made[key])
        return made[key]

    return make
