"""One decode step by kernels; `Decoder.forward` is the definition.

R rows, D decoder width, S cache slots, K dimensions of a head, C columns of fused outputs, I feed-forward
width. Layers with the same input are one product of fused weights (`fused_weights.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..kernels import dispatch
from ..kernels.moe_dispatch import padded_bmm
from ..model.context import ForwardContext
from ..model.decoder import Attention, Block, Decoder
from ..model.kv_cache import KVCache, allocated_slots
from ..model.layers import FeedForward, RMSNorm, rotary_table
from ..model.mla import LatentAttention
from ..model.moe import Experts
from .fused_weights import fused_weight

SPAN_MULTIPLE = 128
"""Steps that read a fixed number of slots are captured for multiples of this many."""


class Kernels(NamedTuple):
    """The Triton modules that a step uses, imported only where there is Triton."""

    rmsnorm_swiglu: ModuleType
    decode_attention: ModuleType
    gemv: ModuleType
    sampling: ModuleType


def import_kernels() -> Kernels:
    """The kernels. Raises `ImportError` without Triton, which comes with torch for CUDA on Linux only."""
    from ..kernels import decode_attention, gemv, rmsnorm_swiglu, sampling_triton

    return Kernels(rmsnorm_swiglu, decode_attention, gemv, sampling_triton)


def load_kernels(device: torch.device) -> Kernels | None:
    """The kernels if the device can run them, else None."""
    if not dispatch.device_has_kernels(device):
        return None
    try:
        return import_kernels()
    except ImportError:  # a Triton without programmatic dependent launch
        return None


def is_span_independent(decoder: Decoder) -> bool:
    """Whether all attention kernels read the rows' positions on the device, so that one captured step serves
    any number of filled slots."""
    return all(isinstance(cast(Block, block).self_attn, Attention) for block in decoder.layers)


def _product(kernels: Kernels, x_RD: Tensor, *layers: nn.Module) -> Tensor:
    """The outputs of all layers, concatenated."""
    weight = fused_weight(*layers)
    if weight is not None:
        return kernels.gemv.linear(x_RD, weight)
    return torch.cat([layer(x_RD) for layer in layers], dim=-1)


def _attention(
    kernels: Kernels, layer: Attention, x_RD: Tensor, cache: KVCache, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    qkv_RC = _product(kernels, x_RD, layer.q_proj, layer.k_proj, layer.v_proj)
    keys, values = (buffer[layer.layer] for buffer in cache.buffers)
    heads = qkv_RC.shape[1] // layer.head_dim - 2 * keys.shape[2]
    attended = kernels.decode_attention.attend(
        qkv_RC, rotary, cache.positions, keys, values, heads, cache.arrivals
    )
    return _product(kernels, attended, layer.o_proj)


def _latent_attention(
    kernels: Kernels, layer: LatentAttention, x_RD: Tensor, context: ForwardContext
) -> Tensor:
    """Latent attention by kernels. The context's rotary tables cover all positions."""
    q_proj, kv_proj = layer.first_proj, layer.kv_a_proj_with_mqa
    weight = fused_weight(q_proj, kv_proj)
    if weight is not None:
        width = layer.latent.kv_rank + layer.latent.rope_dim
        both_RC = kernels.gemv.linear(x_RD, weight)
        q_RC, kv_RC = both_RC[:, :-width], both_RC[:, -width:]
    else:
        q_RC, kv_RC = _product(kernels, x_RD, q_proj), _product(kernels, x_RD, kv_proj)
    if layer.latent.q_rank is not None:
        norm = layer.q_a_layernorm
        _, normed_RC = kernels.rmsnorm_swiglu.add_norm(q_RC, None, norm.weight, norm.eps)
        q_RC = _product(kernels, normed_RC, layer.q_b_proj)
    attended_R1C = layer.decode(q_RC[:, None], kv_RC[:, None], context, rotary_of_slots=True)
    return _product(kernels, attended_R1C[:, 0], layer.o_proj)


def _feed_forward(kernels: Kernels, layer: nn.Module, x_RD: Tensor) -> Tensor:
    if not isinstance(layer, FeedForward):
        return layer(x_RD[:, None])[:, 0]
    weight = fused_weight(layer.gate_proj, layer.up_proj)
    if weight is not None:
        inner_RI = kernels.gemv.linear_swiglu(x_RD, weight)
    else:
        inner_RI = kernels.rmsnorm_swiglu.swiglu(_product(kernels, x_RD, layer.gate_proj, layer.up_proj))
    return _product(kernels, inner_RI, layer.down_proj)


def decode_fast(
    kernels: Kernels,
    decoder: Decoder,
    x_RD: Tensor,
    cache: KVCache,
    rotary: tuple[Tensor, Tensor],
    out_RD: Tensor,
) -> None:
    """Run one position of every row, at `cache.positions`, which are not advanced; hidden states go into
    `out_RD`.

    `rotary` holds the cosines and sines of all slots, `[S, K]`. Latent attention reads `cache.span` slots.
    """
    blocks = [cast(Block, block) for block in decoder.layers]
    latent = [block.self_attn for block in blocks if isinstance(block.self_attn, LatentAttention)]
    latent_kernels = dispatch.can_use_kernels(x_RD, *(layer.kv_b_proj.weight for layer in latent))
    if latent_kernels or not latent:
        context = ForwardContext(cache.positions[:, None], rotary, None, cache)
    else:
        context = decoder.forward_context(len(x_RD), 1, x_RD.device, cache)
    add_norm = kernels.rmsnorm_swiglu.add_norm
    next_norms = [*(block.input_layernorm for block in blocks[1:]), decoder.norm]
    norm: RMSNorm = blocks[0].input_layernorm
    x_RD, normed_RD = add_norm(x_RD, None, norm.weight, norm.eps)
    for block, next_norm in zip(blocks, next_norms, strict=True):
        if isinstance(block.self_attn, Attention):
            attended_RD = _attention(kernels, block.self_attn, normed_RD, cache, rotary)
        elif latent_kernels:
            attention = cast(LatentAttention, block.self_attn)
            attended_RD = _latent_attention(kernels, attention, normed_RD, context)
        else:
            attended_RD = block.self_attn(normed_RD[:, None], context)[:, 0]
        norm = block.post_attention_layernorm
        x_RD, normed_RD = add_norm(x_RD, attended_RD, norm.weight, norm.eps)
        mlp_RD = _feed_forward(kernels, block.mlp, normed_RD)
        out = out_RD if next_norm is decoder.norm else None
        x_RD, normed_RD = add_norm(x_RD, mlp_RD, next_norm.weight, next_norm.eps, out)


@contextmanager
def sync_free_experts(decoder: Decoder) -> Iterator[None]:
    """Within the context, experts never read token counts from the device, which a capture forbids."""
    experts = [module for module in decoder.modules() if isinstance(module, Experts)]
    synchronizing = [module for module in experts if module.implementation is None]
    if decoder.embed_tokens.weight.dtype == torch.bfloat16:  # its grouped product does not synchronize
        synchronizing = []
    for module in synchronizing:
        module.implementation = padded_bmm
    try:
        yield
    finally:
        for module in synchronizing:
            module.implementation = None


class StaticDecodeStep:
    """A decode step of one position per row that can be captured, over a cache of `slots` slots."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        device, config = decoder.device, decoder.config
        self.slots, self.kernels = slots, load_kernels(device)
        self.span_independent = self.kernels is not None and is_span_independent(decoder)
        positions = torch.arange(slots, device=device)
        cos, sin = rotary_table(positions[None], config.rotary_dim, config.rope_theta)
        self.rotary = (cos[0], sin[0])

    @property
    def sampling_kernel(self) -> ModuleType | None:
        return None if self.kernels is None else self.kernels.sampling

    def span(self, filled: int) -> int:
        """Slots that a step reads where `filled` are in use: a multiple of `SPAN_MULTIPLE`, or 0 for a
        `span_independent` step, of which one capture is enough."""
        if self.span_independent:
            return 0
        return min(-(-filled // SPAN_MULTIPLE) * SPAN_MULTIPLE, allocated_slots(self.slots))

    def run(self, decoder: Decoder, x_RD: Tensor, cache: KVCache, span: int, out_RD: Tensor) -> None:
        """Run the decoder at `cache.positions`, which are not advanced; hidden states go into `out_RD`."""
        cache.filled = min(span, self.slots)
        if self.kernels is None:
            out_RD.copy_(decoder(x_RD[:, None], cache)[:, 0])
        else:
            decode_fast(self.kernels, decoder, x_RD, cache, self.rotary, out_RD)
