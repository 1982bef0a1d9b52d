"""One decoding step of the decoder through kernels; `Decoder.forward` is the definition.

R rows, D decoder width, S cache slots, K dimensions of a head. Products of one input are one product, of
weights that lie side by side (joining.py). Experts compute as they do elsewhere.
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
from .fused_weights import joined_weight

SPAN = 128
"""Steps that must know how many slots are read are captured for multiples of so many."""


class Kernels(NamedTuple):
    """The modules of kernels: sums and norms, multi-head attention, products, and the draw."""

    step: ModuleType
    attention: ModuleType
    products: ModuleType
    draw: ModuleType


def import_kernels() -> Kernels:
    """An `ImportError` where there is no Triton: it comes with torch for CUDA on Linux only."""
    from ..kernels import decode_attention, gemv, rmsnorm_swiglu, sampling_triton

    return Kernels(rmsnorm_swiglu, decode_attention, gemv, sampling_triton)


def load_kernels(device: torch.device) -> Kernels | None:
    """The kernels where they serve, else None."""
    if not dispatch.device_has_kernels(device):
        return None
    try:
        return import_kernels()
    except ImportError:  # a Triton without launches that overlap
        return None


def reads_positions(decoder: Decoder) -> bool:
    """Whether all attention goes by the positions on the device, so that steps do not depend on the span."""
    return all(isinstance(cast(Block, block).self_attn, Attention) for block in decoder.layers)


def _product(kernels: Kernels, x_RD: Tensor, *layers: nn.Module) -> Tensor:
    """The outputs of all layers side by side."""
    whole = joined_weight(*layers)
    if whole is not None:
        return kernels.products.linear(x_RD, whole)
    return torch.cat([layer(x_RD) for layer in layers], dim=-1)


def _attention(
    kernels: Kernels, layer: Attention, x_RD: Tensor, cache: KVCache, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    qkv_RC = _product(kernels, x_RD, layer.q_proj, layer.k_proj, layer.v_proj)
    keys, values = (buffer[layer.layer] for buffer in cache.buffers)
    heads = qkv_RC.shape[1] // layer.head_dim - 2 * keys.shape[2]
    attended = kernels.attention.attend(qkv_RC, rotary, cache.positions, keys, values, heads, cache.arrivals)
    return _product(kernels, attended, layer.o_proj)


def _latent_attention(
    kernels: Kernels, layer: LatentAttention, x_RD: Tensor, context: ForwardContext
) -> Tensor:
    """The context holds the rotary tables of all positions."""
    first, second = layer.first_proj, layer.kv_a_proj_with_mqa
    whole = joined_weight(first, second)
    if whole is not None:
        width = layer.latent.kv_rank + layer.latent.rope_dim
        both_RC = kernels.products.linear(x_RD, whole)
        q_RC, kv_RC = both_RC[:, :-width], both_RC[:, -width:]
    else:
        q_RC, kv_RC = _product(kernels, x_RD, first), _product(kernels, x_RD, second)
    if layer.latent.q_rank is not None:
        norm = layer.q_a_layernorm
        _, normed_RC = kernels.step.add_norm(q_RC, None, norm.weight, norm.eps)
        q_RC = _product(kernels, normed_RC, layer.q_b_proj)
    attended_R1C = layer.decode(q_RC[:, None], kv_RC[:, None], context, rotary_of_slots=True)
    return _product(kernels, attended_R1C[:, 0], layer.o_proj)


def _feed_forward(kernels: Kernels, layer: nn.Module, x_RD: Tensor) -> Tensor:
    if not isinstance(layer, FeedForward):
        return layer(x_RD[:, None])[:, 0]
    whole = joined_weight(layer.gate_proj, layer.up_proj)
    if whole is not None:
        inner_RI = kernels.products.linear_swiglu(x_RD, whole)
    else:
        inner_RI = kernels.step.swiglu(_product(kernels, x_RD, layer.gate_proj, layer.up_proj))
    return _product(kernels, inner_RI, layer.down_proj)


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
    blocks = [cast(Block, block) for block in decoder.layers]
    latent = [block.self_attn for block in blocks if isinstance(block.self_attn, LatentAttention)]
    served = dispatch.can_use_kernels(x_RD, *(layer.kv_b_proj.weight for layer in latent))
    if served or not latent:
        context = ForwardContext(cache.positions[:, None], rotary, None, cache)
    else:
        context = decoder.forward_context(len(x_RD), 1, x_RD.device, cache)
    norms = [*(block.input_layernorm for block in blocks[1:]), decoder.norm]
    first = blocks[0].input_layernorm
    x_RD, normed_RD = kernels.step.add_norm(x_RD, None, first.weight, first.eps)
    for block, following in zip(blocks, norms, strict=True):
        if isinstance(block.self_attn, Attention):
            attended = _attention(kernels, block.self_attn, normed_RD, cache, rotary)
        elif served:
            attended = _latent_attention(kernels, cast(LatentAttention, block.self_attn), normed_RD, context)
        else:
            attended = block.self_attn(normed_RD[:, None], context)[:, 0]
        between: RMSNorm = block.post_attention_layernorm
        x_RD, normed_RD = kernels.step.add_norm(x_RD, attended, between.weight, between.eps)
        changed = _feed_forward(kernels, block.mlp, normed_RD)
        out = out_RD if following is decoder.norm else None
        x_RD, normed_RD = kernels.step.add_norm(x_RD, changed, following.weight, following.eps, out)


@contextmanager
def sync_free_experts(decoder: Decoder) -> Iterator[None]:
    """Experts in a form that never asks the device how many tokens they got, for the time of a capture."""
    experts = [module for module in decoder.modules() if isinstance(module, Experts)]
    asking = [module for module in experts if module.implementation is None]
    if decoder.embed_tokens.weight.dtype == torch.bfloat16:  # the grouped product does not ask in this one
        asking = []
    for module in asking:
        module.implementation = padded_bmm
    try:
        yield
    finally:
        for module in asking:
            module.implementation = None


class StaticDecodeStep:
    """One position of every row of a cache with so many slots, in a form that can be captured."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        device, config = decoder.device, decoder.config
        self.slots, self.kernels = slots, load_kernels(device)
        self.by_position = self.kernels is not None and reads_positions(decoder)
        positions = torch.arange(slots, device=device)
        cos, sin = rotary_table(positions[None], config.rotary_dim, config.rope_theta)
        self.rotary = (cos[0], sin[0])

    @property
    def sampling_kernel(self) -> ModuleType | None:
        return None if self.kernels is None else self.kernels.draw

    def span(self, filled: int) -> int:
        """Slots that a step with so many filled ones reads, a multiple of `SPAN`; 0 where the step goes by
        the positions on the device and one capture serves all."""
        return 0 if self.by_position else min(-(-filled // SPAN) * SPAN, allocated_slots(self.slots))

    def run(self, decoder: Decoder, x_RD: Tensor, cache: KVCache, span: int, out_RD: Tensor) -> None:
        """Run the decoder at `cache.positions`, which it leaves as they are; hidden states go into `out`."""
        cache.filled = min(span, self.slots)
        if self.kernels is None:
            out_RD.copy_(decoder(x_RD[:, None], cache)[:, 0])
        else:
            decode_fast(self.kernels, decoder, x_RD, cache, self.rotary, out_RD)
