"""One decoding step of the decoder through kernels; `Decoder.forward` is the definition.

R rows, D decoder width, S cache slots, K dimensions of a head. Products of one input are one product, of
weights that lie side by side (joining.py). Experts compute as they do elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from . import fused
from .decoder import Attention, Block, Decoder, Step
from .experts import blocked
from .feed_forward import FeedForward
from .joining import joined_weight
from .kv_cache import KVCache
from .latent_attention import LatentAttention
from .moe import Experts
from .norm import RMSNorm

if TYPE_CHECKING:
    from .kernel_products import Normed


class Kernels(NamedTuple):
    """The modules of kernels: sums and norms, attention of both kinds, products, and the draw."""

    step: ModuleType
    attention: ModuleType
    latent: ModuleType
    products: ModuleType
    draw: ModuleType


def import_kernels() -> Kernels:
    """An `ImportError` where there is no Triton: it comes with torch for CUDA on Linux only."""
    from . import attend_latent, kernel_attend, kernel_draw, kernel_products, kernels

    return Kernels(kernels, kernel_attend, attend_latent, kernel_products, kernel_draw)


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


def _product(kernels: Kernels, x: "Tensor | Normed", *layers: nn.Module) -> Tensor:
    """The outputs of all layers side by side."""
    whole = joined_weight(*layers)
    if whole is not None:
        return kernels.products.product(x, whole)
    rows = x if isinstance(x, Tensor) else x.rows
    return torch.cat([layer(rows) for layer in layers], dim=-1)


def _attention(
    kernels: Kernels, layer: Attention, x: "Normed", cache: KVCache, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """What the heads gather, side by side."""
    qkv_RC = _product(kernels, x, layer.q_proj, layer.k_proj, layer.v_proj)
    keys, values = (buffer[layer.layer] for buffer in cache.buffers)
    heads = qkv_RC.shape[1] // layer.head_dim - 2 * keys.shape[2]
    return kernels.attention.attend(qkv_RC, rotary, cache.positions, keys, values, heads, cache.arrivals)


def _latent_attention(kernels: Kernels, layer: LatentAttention, x: "Normed", step: Step) -> Tensor:
    """What the heads gather, side by side; `step` holds the tables of all positions."""
    first, second = layer.first_proj, layer.kv_a_proj_with_mqa
    whole = joined_weight(first, second)
    if whole is not None:
        width = layer.sizes.kv_rank + layer.sizes.rope_dim
        both_RC = kernels.products.product(x, whole)
        q_RC, kv_RC = both_RC[:, :-width], both_RC[:, -width:]
    else:
        q_RC, kv_RC = _product(kernels, x, first), _product(kernels, x, second)
    if layer.sizes.q_rank is not None:
        norm = layer.q_a_layernorm
        _, normed_RC = kernels.step.add_norm(q_RC, None, norm.weight, norm.eps)
        q_RC = _product(kernels, normed_RC, layer.q_b_proj)
    return kernels.latent.attend_latent(layer, q_RC[:, None], kv_RC[:, None], step, True)[:, 0]


def _hidden(kernels: Kernels, layer: FeedForward, x: "Normed") -> Tensor:
    """`silu(gate) * up`."""
    whole = joined_weight(layer.gate_proj, layer.up_proj)
    if whole is not None:
        return kernels.products.gated_product(x, whole)
    return kernels.step.swiglu(_product(kernels, x, layer.gate_proj, layer.up_proj))


def _norms(kernels: Kernels, layer: nn.Module, x_RD: Tensor) -> bool:
    """Whether the first product of a layer norms its rows."""
    if isinstance(layer, Attention):
        whole = joined_weight(layer.q_proj, layer.k_proj, layer.v_proj)
    elif isinstance(layer, FeedForward):
        whole = joined_weight(layer.gate_proj, layer.up_proj)
    else:
        return False
    return whole is not None and kernels.products.serves(x_RD, whole)


class _Stream:
    """The sum that all layers add to, and its norm for the layer that reads it next."""

    def __init__(self, kernels: Kernels, x_RD: Tensor, norm: RMSNorm) -> None:
        self._kernels = kernels
        self._total_RD, rows = kernels.step.add_norm(x_RD, None, norm.weight, norm.eps)
        self.normed: Normed = kernels.products.Normed(rows)

    def add(self, delta_RD: Tensor, norm: RMSNorm, out_RD: Tensor | None = None) -> None:
        self._total_RD, rows = self._kernels.step.add_norm(
            self._total_RD, delta_RD, norm.weight, norm.eps, out_RD
        )
        self.normed = self._kernels.products.Normed(rows)

    def add_product(
        self,
        x_RI: Tensor,
        layer: nn.Module,
        norm: RMSNorm,
        following: nn.Module | None,
        out_RD: Tensor | None = None,
    ) -> None:
        """`layer(x)`, in one launch if the layer that reads it norms its rows. Without one `out` does."""
        products, weight = self._kernels.products, joined_weight(layer)
        fits = weight is not None and products.adds(x_RI, weight)
        if fits and following is not None and _norms(self._kernels, following, self._total_RD):
            self._total_RD, self.normed = products.add_product(
                x_RI, weight, self._total_RD, norm.weight, norm.eps
            )
        else:
            self.add(_product(self._kernels, x_RI, layer), norm, out_RD)


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
    served = fused.serves(x_RD, *(layer.kv_b_proj.weight for layer in latent))
    if served or not latent:
        step = Step(cache.positions[:, None], rotary, None, cache)
    else:
        step = decoder.step(len(x_RD), 1, x_RD.device, cache)
    stream = _Stream(kernels, x_RD, blocks[0].input_layernorm)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        norm, layer = block.post_attention_layernorm, block.self_attn
        if isinstance(layer, LatentAttention) and not served:
            stream.add(layer(stream.normed.rows[:, None], step)[:, 0], norm)
        else:
            if isinstance(layer, LatentAttention):
                attended = _latent_attention(kernels, layer, stream.normed, step)
            else:
                layer = cast(Attention, layer)
                attended = _attention(kernels, layer, stream.normed, cache, rotary)
            stream.add_product(attended, layer.o_proj, norm, block.mlp)
        norm = decoder.norm if following is None else following.input_layernorm
        reader, out = (None, out_RD) if following is None else (following.self_attn, None)
        if isinstance(block.mlp, FeedForward):
            hidden = _hidden(kernels, block.mlp, stream.normed)
            stream.add_product(hidden, block.mlp.down_proj, norm, reader, out)
        else:
            stream.add(block.mlp(stream.normed.rows[:, None])[:, 0], norm, out)


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
