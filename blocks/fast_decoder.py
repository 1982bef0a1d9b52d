"""One decoding step of the decoder through kernels; `Decoder.forward` is the definition.

R rows, D decoder width, S cache slots, K dimensions of a head. Products of one input are one product, of
weights that lie side by side (joining.py). Latent attention and experts compute as they do elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from . import fused
from .decoder import Attention, Block, Decoder, Step
from .experts import blocked
from .feed_forward import FeedForward
from .joining import joined_weight
from .kv_cache import KVCache
from .moe import Experts
from .norm import RMSNorm


class Kernels(NamedTuple):
    """The modules of kernels: sums and norms, attention, products, and the draw."""

    step: ModuleType
    attention: ModuleType
    products: ModuleType
    draw: ModuleType


def import_kernels() -> Kernels:
    """An `ImportError` where there is no Triton: it comes with torch for CUDA on Linux only."""
    from . import kernel_attend, kernel_draw, kernel_products, kernels

    return Kernels(kernels, kernel_attend, kernel_products, kernel_draw)


def load_kernels(device: torch.device) -> Kernels | None:
    """The kernels where they serve, else None."""
    if not fused.device_serves(device):
        return None
    try:
        return import_kernels()
    except ImportError:  # a Triton without launches that overlap
        return None


def reads_positions(decoder: Decoder) -> bool:
    """Whether all attention goes by the positions on the device, so that steps do not depend on the span."""
    return all(isinstance(cast(Block, block).self_attn, Attention) for block in decoder.layers)


class Flow(NamedTuple):
    """What runs past the layers, `total + delta` `[R, D]`, and, where a product made the total, the sums of
    its squares."""

    total_RD: Tensor
    delta_RD: Tensor | None = None
    squares: Tensor | None = None


def _normed(kernels: Kernels, flow: Flow, norm: RMSNorm, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The flow as one sum, and its norm."""
    return kernels.step.add_norm(flow.total_RD, flow.delta_RD, norm.weight, norm.eps, out)


def _out_of(
    kernels: Kernels, flow: Flow, norm: RMSNorm, *layers: nn.Module, gated: bool = False
) -> tuple[Tensor, Tensor]:
    """The flow as one sum, and the outputs of all layers for its norm side by side; `gated`: of a gate and an
    up projection, `silu(gate) * up`."""
    whole, products = joined_weight(*layers), kernels.products
    if whole is None:
        total, normed = _normed(kernels, flow, norm)
        beside = torch.cat([layer(normed) for layer in layers], dim=-1)
        return total, kernels.step.swiglu(beside) if gated else beside
    multiply = products.gated_product if gated else products.product
    if flow.squares is not None and products.fuses(flow.total_RD, whole):
        how = products.Normed(flow.squares, norm.weight, norm.eps)
        return flow.total_RD, multiply(flow.total_RD, whole, how)
    total, normed = _normed(kernels, flow, norm)
    return total, multiply(normed, whole)


def _onto(kernels: Kernels, total_RD: Tensor, x_RI: Tensor, layer: nn.Module) -> Flow:
    """The flow after a layer's outputs came to it."""
    weight, products = joined_weight(layer), kernels.products
    if weight is None:
        return Flow(total_RD, layer(x_RI))
    if not products.fuses(x_RI, weight):
        return Flow(total_RD, products.product(x_RI, weight))
    total_RD, squares = products.added_product(x_RI, weight, total_RD)
    return Flow(total_RD, None, squares)


def _attention(
    kernels: Kernels, block: Block, flow: Flow, cache: KVCache, rotary: tuple[Tensor, Tensor]
) -> Flow:
    layer = cast(Attention, block.self_attn)
    total, qkv_RC = _out_of(kernels, flow, block.input_layernorm, layer.q_proj, layer.k_proj, layer.v_proj)
    keys, values = (buffer[layer.layer] for buffer in cache.buffers)
    heads = qkv_RC.shape[1] // layer.head_dim - 2 * keys.shape[2]
    attended = kernels.attention.attend(qkv_RC, rotary, cache.positions, keys, values, heads, cache.arrivals)
    return _onto(kernels, total, attended, layer.o_proj)


def _feed_forward(kernels: Kernels, block: Block, flow: Flow) -> Flow:
    layer, norm = block.mlp, block.post_attention_layernorm
    if not isinstance(layer, FeedForward):
        total, normed = _normed(kernels, flow, norm)
        return Flow(total, layer(normed[:, None])[:, 0])
    total, inner_RI = _out_of(kernels, flow, norm, layer.gate_proj, layer.up_proj, gated=True)
    return _onto(kernels, total, inner_RI, layer.down_proj)


def decode_fast(
    kernels: Kernels,
    decoder: Decoder,
    x_RD: Tensor,
    cache: KVCache,
    rotary: tuple[Tensor, Tensor],
    out_RD: Tensor,
) -> None:
    """One position of every row, at `cache.positions`, which stay; hidden states go into `out`.

    `rotary` are cosines and sines of all slots, `[S, K]`. Attention that does not go by the positions reads
    `cache.span` slots.
    """
    step: Step | None = None
    if not reads_positions(decoder):
        step = decoder.step(len(x_RD), 1, x_RD.device, cache)
    flow = Flow(x_RD)
    for block in (cast(Block, block) for block in decoder.layers):
        if step is None:
            flow = _attention(kernels, block, flow, cache, rotary)
        else:
            total, normed = _normed(kernels, flow, block.input_layernorm)
            flow = Flow(total, block.self_attn(normed[:, None], step)[:, 0])
        flow = _feed_forward(kernels, block, flow)
    _normed(kernels, flow, decoder.norm, out_RD)


@contextmanager
def host_free(decoder: Decoder) -> Iterator[None]:
    """Experts in a form that never asks the device how many tokens they got, for the time of a capture."""
    asking = [module for module in decoder.modules() if isinstance(module, Experts) and module.form is None]
    if decoder.embed_tokens.weight.dtype == torch.bfloat16:  # the grouped product does not ask in this one
        asking = []
    for module in asking:
        module.form = blocked
    try:
        yield
    finally:
        for module in asking:
            module.form = None
