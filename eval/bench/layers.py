"""Times of the layers that only DeepSeek-VL2 has, while decoding on CUDA, in captured steps.

    python -m bifrons.eval.bench.layers --size small --rows 1 8 [--quantize int8] [--plain]

A step runs eight layers of one kind, each with weights and slots of its own, so that little comes from the
GPU's cache. The limit of a layer is the time to read once what its step reads, at the speed of a copy.
"""

import argparse
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ...blocks.engine.cuda_graphs import GraphRecorder
from ...blocks.kernels import dispatch
from ...blocks.memory import held_bytes
from ...blocks.model.decoder import Decoder
from ...blocks.model.mla import LatentAttention
from ...blocks.model.moe import MoE
from ...blocks.model.quantized_linear import KINDS
from ...vl2.model import VL2Model
from .configs import VL2, pick_config, random_model
from .measure import bandwidth
from .workloads import filled_cache

_LAYERS = 8
_FILLED = 1063  # slots in use
_REPEATS = 50


def seconds(step: Callable[[], None]) -> float:
    """Of one captured step: the mean of many replays."""
    replay = GraphRecorder(torch.device("cuda", torch.cuda.current_device()))(step)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    replay()
    start.record()
    for _ in range(_REPEATS):
        replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / _REPEATS / 1000


def launches(step: Callable[[], None]) -> int:
    """Kernels and copies that a step launches."""
    step()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in found.events() or ())


def mixture_bytes(layer: MoE, x_BTD: Tensor) -> int:
    """What a layer of experts reads: its chosen experts once, its gate and its shared experts."""
    chosen = len(layer.gate(x_BTD.flatten(0, -2))[0].unique())
    routed = held_bytes(layer.experts)
    rest = held_bytes(layer) - routed
    return routed * chosen // layer.gate.config.num_experts + rest


def report(what: str, layers: nn.ModuleList | list, run: Callable[[nn.Module], object], limit: float) -> None:
    def step() -> None:
        for layer in layers:
            run(layer)

    each, count = seconds(step) / len(layers), launches(step) / len(layers)
    print(f"{what}: {each * 1e6:.1f} us a layer, limit {limit * 1e6:.1f}, {count:g} launches", flush=True)


@torch.no_grad()
def bench_layers(decoder: Decoder, rows: int, speed: float) -> None:
    dtype = decoder.dtype
    x_BTD = torch.randn(rows, 1, decoder.config.hidden_size, device=decoder.device).to(dtype)
    blocks = list(decoder.layers)[-_LAYERS:]
    mixtures = [block.mlp for block in blocks if isinstance(block.mlp, MoE)]
    limit = mixture_bytes(mixtures[0], x_BTD) / speed
    report(f"experts, {rows} rows", mixtures, lambda layer: layer(x_BTD), limit)
    attentions = [block.self_attn for block in blocks if isinstance(block.self_attn, LatentAttention)]
    if not attentions:
        return
    cache = filled_cache(decoder, rows, _FILLED, 137)
    cache.reserve(_FILLED + 137)
    step = decoder.step(rows, 1, decoder.device, cache)
    slots = rows * _FILLED * sum(heads * width for heads, width in decoder.config.cache_widths)
    limit = (held_bytes(attentions[0]) + slots * dtype.itemsize) / speed
    report(f"latent attention, {rows} rows", attentions, lambda layer: layer(x_BTD, step), limit)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of DeepSeek-VL2's layers while decoding on CUDA.")
    parser.add_argument("--size", choices=tuple(VL2), default="small")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="conversations (default: 1 8)")
    parser.add_argument("--quantize", choices=KINDS)
    parser.add_argument("--plain", action="store_true", help="without the kernels, for comparison")
    args = parser.parse_args()
    device = torch.device("cuda")
    speed = bandwidth(device)
    print(f"{torch.cuda.get_device_name(device)}, {speed / 1e12:.2f} TB/s, VL2 {args.size}", flush=True)
    config = pick_config("vl2", args.size, 1 + _LAYERS)
    model = random_model(config, device, torch.bfloat16, args.quantize)
    assert isinstance(model, VL2Model)
    serves = (lambda device: False) if args.plain else dispatch.device_serves
    with patch.object(dispatch, "device_serves", serves):
        for rows in args.rows:
            bench_layers(model.decoder, rows, speed)


if __name__ == "__main__":
    main()
