"""`run_bench`: how fast a model of a released size runs on this machine, beside the hardware's limit and
peers.

On CUDA whole images are generated. On the CPU a number of steps is measured instead, since an image of a
large model takes minutes there.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...blocks.checkpoints.quantize import check_kind
from ...blocks.device import module_bytes, release_cached_memory, resolve_device, resolve_dtype
from ...blocks.errors import OptionError, check_integer
from ...blocks.graphs.packed_decoder import load_kernels
from ...janus.config import JanusConfig
from ...janus.model import JanusModel
from ...text.model import TextModel
from ...vl2.config import VL2Config
from ...vl2.model import VL2Model
from .configs import TEXT, Config, pick_config, random_model, random_parallel_model
from .measure import Bench, Line, bandwidth, machine
from .peers import bench_peers
from .text import bench_text, bench_text_peer
from .vllm_peer import bench_vllm, import_vllm
from .workloads import Amount, answering_limit, bench_janus, bench_vl2, painting_limit

DEFAULT_SIZE = {"janus": "1b", "vl2": "tiny", "text": "r1-1.5b"}
PEERS = {"janus": "transformers", "vl2": "vllm", "text": "transformers"}
"""What else is measured, by family: transformers has no DeepSeek-VL2."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. `layers` None is all; `steps` None is 16 on the CPU and 64 elsewhere. With
    `tensor_parallel` the model is measured over so many processes too, one a GPU, after one.

    Raises `OptionError` for a value outside its range.
    """

    family: str
    size: str
    layers: int | None = None
    batch: int = 1
    steps: int | None = None
    repeats: int = 5
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    peers: str | None = None
    eager: bool = False
    tensor_parallel: int | None = None

    def __post_init__(self) -> None:
        check_integer("batch", self.batch, low=1)
        check_integer("repeats", self.repeats, low=1)
        if self.steps is not None:
            check_integer("steps", self.steps, low=1, high=512)
        check_kind(self.quantize)
        if self.tensor_parallel is not None:
            check_integer("tensor_parallel", self.tensor_parallel, low=2)
            if self.quantize or self.peers:
                raise OptionError("tensor_parallel is measured without quantize and peers")
        if self.peers not in (None, PEERS[self.family]):
            accepted = PEERS[self.family]
            raise OptionError(f"peers is {self.peers!r}; accepted for {self.family}: {accepted}")


def how_steps_run(device: torch.device, eager: bool) -> str:
    """Describes how decoding steps run: captured or not, and through which kernels."""
    if device.type != "cuda" or eager:
        return "every operation launched by itself"
    kernels = load_kernels(device)
    if kernels is None:
        return "captured as CUDA graphs, without kernels: there is no Triton"
    version = kernels.rmsnorm_swiglu.triton.__version__
    from ...blocks.kernels import pdl  # needs Triton

    order = "overlapping" if pdl.ENABLED else "one after the other"
    return f"captured as CUDA graphs, with kernels by Triton {version}, {order}"


def run_bench(options: BenchOptions, on_line: Callable[[Line], object]) -> dict[str, Any]:
    """Measure; `on_line` gets each line when it is there. Returns everything, ready for JSON.

    Raises `OptionError` where the model does not fit.
    """
    if options.peers == "vllm":
        import_vllm()
    config = pick_config(options.family, options.size, options.layers)
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype or ("bfloat16" if device.type == "cpu" else None), device)
    report = {"machine": machine(device), "options": vars(options), "layers": config.decoder.num_layers}
    report["dtype"] = str(dtype).removeprefix("torch.")
    steps = options.steps or (16 if device.type == "cpu" else 64)
    amount = Amount(steps, options.repeats, whole=device.type != "cpu")
    report["bandwidth"] = speed = bandwidth(device)
    bench = Bench(device, on_line)
    model = random_model(config, device, dtype, options.quantize)
    model.decoder.capture = False if options.eager else None
    report["steps"] = how_steps_run(device, options.eager)
    report["weights"] = module_bytes(model)
    _bench_model(bench, model, options.batch, speed, amount)
    del model
    gc.collect()
    release_cached_memory(device)
    if options.tensor_parallel is not None:
        _bench_parallel(bench, config, options, dtype, speed, amount)
    elif options.peers:
        report["failed"] = _bench_peers(bench, config, options, dtype, speed, amount)
    report["lines"] = [line.as_json() for line in bench.lines]
    return report


def _bench_model(
    bench: Bench, model: JanusModel | VL2Model | TextModel, batch: int, speed: float, amount: Amount
) -> None:
    if isinstance(model, JanusModel):
        bench_janus(bench, model, batch, speed, amount)
    elif isinstance(model, VL2Model):
        bench_vl2(bench, model, batch, speed, amount)
    else:
        bench_text(bench, model, batch, speed, amount)


def _bench_peers(
    bench: Bench, config: Config, options: BenchOptions, dtype: torch.dtype, speed: float, amount: Amount
) -> list[str]:
    """What failed of the peers. They read plain weights, so their limit is that of plain weights."""
    batch = options.batch
    if isinstance(config, JanusConfig):
        with torch.device("meta"):
            limit = painting_limit(JanusModel(config).to(dtype), batch, speed)
        return bench_peers(bench, config, dtype, batch, limit, amount)
    if isinstance(config, VL2Config):
        with torch.device("meta"):
            limit = answering_limit(VL2Model(config).to(dtype), batch, speed, amount)
        return bench_vllm(bench, config, dtype, batch, limit, amount)
    bench_text_peer(bench, TEXT[options.size], options.layers, dtype, batch, speed, amount)
    return []


def _bench_parallel(
    bench: Bench, config: Config, options: BenchOptions, dtype: torch.dtype, speed: float, amount: Amount
) -> None:
    """The same lines over several processes; each note has the time beside that of one."""
    assert options.tensor_parallel is not None
    alone = {line.work: line.seconds for line in bench.lines}
    model = random_parallel_model(config, bench.device, dtype, options.tensor_parallel)
    model.decoder.capture = False if options.eager else None
    bench.form, bench.beside = f", {options.tensor_parallel} processes", alone
    _bench_model(bench, model, options.batch, speed, amount)
