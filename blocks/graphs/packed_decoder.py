"""The decoder's forward pass by kernels, over tokens of several sequences packed into one batch;
`Decoder.forward` is the definition.

N tokens, D decoder width, P positions, K dimensions of a head, C columns of fused outputs, I feed-forward
width. Layers with the same input are one product of fused weights (`fused_weights.py`). A token's result has
the same bits whatever other tokens are in the batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..kernels import dispatch
from ..model.decoder import Attention, Block, Decoder
from ..model.layers import FeedForward, RMSNorm
from ..model.mla import LatentAttention
from .adapter_slots import AdapterSlots, Stack
from .fused_weights import fused_bias, fused_weight
from .kv_pool import KVPool, LayerSlots


class Kernels(NamedTuple):
    """The Triton modules that a pass uses, imported only where there is Triton."""

    rmsnorm_swiglu: ModuleType
    attention_decode: ModuleType
    attention_prefill: ModuleType
    attention_window: ModuleType
    mla: ModuleType
    gemv: ModuleType
    low_rank: ModuleType
    sampling: ModuleType


def import_kernels() -> Kernels:
    """The kernels. Raises `ImportError` without Triton, which comes with torch for CUDA on Linux only."""
    from ..kernels import (
        attention_decode,
        attention_prefill,
        attention_window,
        gemv,
        low_rank,
        mla_decode,
        rmsnorm_swiglu,
        sampling_triton,
    )

    attention = attention_decode, attention_prefill, attention_window
    return Kernels(rmsnorm_swiglu, *attention, mla_decode, gemv, low_rank, sampling_triton)


def load_kernels(device: torch.device, interpreted: bool = False) -> Kernels | None:
    """The kernels if the device can run them, else None. Triton's interpreter runs them on the CPU."""
    if not interpreted and not dispatch.device_has_kernels(device):
        return None
    try:
        return import_kernels()
    except ImportError:  # a Triton without programmatic dependent launch
        return None


class TokenSlots(NamedTuple):
    """Where the tokens of a pass are: their positions, and the first slots of their sequences, int64 `[N]`.

    `span` is an upper bound of positions + 1. `adapters_N` are the slots of their adapters, -1 for none; None
    if no token has one. With `prefill` the tokens are chunks of prompts in blocks of
    `attention_prefill.PREFILL_BLOCK`, otherwise one token of each sequence, or with `windows`, pairs of a
    number of sequences and a number of tokens, so many of each (see `attention_window.attend`).
    """

    positions_N: Tensor
    starts_N: Tensor
    span: int
    prefill: bool = False
    adapters_N: Tensor | None = None
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def parts(self) -> list[tuple[slice, int]]:
        """Where the tokens of windows of equal width are, and this width."""
        parts, start = [], 0
        for count, width in self.windows or ((len(self.positions_N), 1),):
            parts.append((slice(start, start + count * width), width))
            start += count * width
        return parts


Ahead = Callable[[Tensor, Tensor, TokenSlots], Tensor]
"""`PackedDecoder.forward_ahead` with a pool."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class PackedDecoder:
    """A decoder's forward pass over packed tokens. `pool` may be replaced by a larger one."""

    def __init__(self, decoder: Decoder, kernels: Kernels) -> None:
        config, device = decoder.config, decoder.device
        self.decoder, self.kernels = decoder, kernels
        self.adapters = AdapterSlots(decoder)
        self.group = decoder.group
        self.remote = None if self.group is None else self.group.runner()
        """What the other ranks keep for this one, if it is the first of several."""
        positions = torch.arange(config.max_positions, device=device)
        cos, sin = config.rotary_table(positions[None])
        self.rotary = (cos[0].contiguous(), sin[0].contiguous())
        self._arrivals = torch.zeros(0, dtype=torch.int32, device=device)

    def reserve(self, tokens: int) -> None:
        """Prepare for decoding up to this many tokens at once."""
        self._arrivals = self._arrivals.new_zeros(tokens * self.decoder.config.num_heads)
        if self.remote is not None:
            self.remote.reserve(tokens)

    def forward(self, x_ND: Tensor, slots: TokenSlots, pool: KVPool, out_ND: Tensor | None = None) -> Tensor:
        """Run embeddings through all layers; writes keys and values to the pool, returns the hidden states
        `[N, D]`, in `out_ND` if it is given."""
        blocks = [cast(Block, block) for block in self.decoder.layers]
        if self.group is not None:
            self.group.share((slots.positions_N, slots.starts_N, x_ND))
        add_norm = self.kernels.rmsnorm_swiglu.add_norm
        next_norms = [*(block.input_layernorm for block in blocks[1:]), self.decoder.norm]
        norm: RMSNorm = blocks[0].input_layernorm
        x_ND, normed_ND = add_norm(x_ND, None, norm.weight, norm.eps)
        for block, next_norm in zip(blocks, next_norms, strict=True):
            out = out_ND if next_norm is self.decoder.norm else None
            x_ND, normed_ND = self._block(block, next_norm, (x_ND, normed_ND), slots, pool, out)
        return normed_ND

    def _block(
        self,
        block: Block,
        next_norm: RMSNorm,
        inputs: tuple[Tensor, Tensor],
        slots: TokenSlots,
        pool: KVPool | LayerSlots,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A layer: its input and this normed -> its output and this normed by `next_norm`."""
        add_norm, (x_ND, normed_ND) = self.kernels.rmsnorm_swiglu.add_norm, inputs
        if isinstance(block.self_attn, Attention):
            attended_ND = self._attend(block.self_attn, normed_ND, slots, pool)
        else:
            attended_ND = self._attend_latent(block.self_attn, normed_ND, slots, pool)
        norm = block.post_attention_layernorm
        x_ND, normed_ND = add_norm(x_ND, self._summed(attended_ND), norm.weight, norm.eps)
        mlp_ND = self._feed_forward(block.mlp, normed_ND, slots)
        return add_norm(x_ND, self._summed(mlp_ND), next_norm.weight, next_norm.eps, out)

    def forward_ahead(self, next_ND: Tensor, hidden_ND: Tensor, slots: TokenSlots, pool: KVPool) -> Tensor:
        """The layer that drafts (`Decoder.ahead`) over the embeddings of the tokens after these and their
        hidden states: `[N, D]`, hidden states of the tokens after those."""
        (ahead,) = self.decoder.ahead
        norm: RMSNorm = ahead.block.input_layernorm
        x_ND = ahead.joined(next_ND[None], hidden_ND[None])[0]
        inputs = self.kernels.rmsnorm_swiglu.add_norm(x_ND, None, norm.weight, norm.eps)
        return self._block(ahead.block, ahead.norm, inputs, slots, pool.last_layer)[1]

    def forward_here(self, x_ND: Tensor, slots: TokenSlots, pool: KVPool) -> Tensor:
        """`forward` outside of graphs; the other ranks are told of it."""
        if self.remote is None:
            return self.forward(x_ND, slots, pool)
        with self.remote.passes((len(x_ND), slots.span, slots.prefill, slots.windows)):
            return self.forward(x_ND, slots, pool)

    def _summed(self, x_ND: Tensor) -> Tensor:
        return x_ND if self.group is None else self.group.sum(x_ND)

    def ahead_over(self, pool: KVPool) -> Ahead | None:
        """`forward_ahead` with the cache in this pool, if there is such a layer and no other rank."""
        return partial(self.forward_ahead, pool=pool) if self.decoder.ahead and self.group is None else None

    def _attend(self, layer: Attention, x_ND: Tensor, slots: TokenSlots, pool: KVPool | LayerSlots) -> Tensor:
        qkv_NC = self._product(x_ND, slots, layer.q_proj, layer.k_proj, layer.v_proj, bias=fused_bias(layer))
        keys, values = (buffer[layer.layer] for buffer in pool.buffers)
        heads = qkv_NC.shape[1] // layer.head_dim - 2 * len(keys)
        outs = []
        for part, width in slots.parts:
            places = slots.positions_N[part], slots.starts_N[part]
            args = (qkv_NC[part], self.rotary, *places, keys, values, heads)
            if slots.prefill:
                outs.append(self.kernels.attention_prefill.attend(*args))
            elif width > 1:
                outs.append(self.kernels.attention_window.attend(*args, width, slots.span))
            else:
                outs.append(self.kernels.attention_decode.attend(*args, self._arrivals, slots.span))
        return self._residual(joined(outs), slots, layer.o_proj)

    def _attend_latent(
        self, layer: LatentAttention, x_ND: Tensor, slots: TokenSlots, pool: KVPool | LayerSlots
    ) -> Tensor:
        latent = layer.latent
        q_proj, kv_proj = layer.first_proj, layer.kv_a_proj_with_mqa
        both_NC = self._product(x_ND, slots, q_proj, kv_proj)
        width = latent.kv_rank + latent.rope_dim
        q_NC, kv_NC = both_NC[:, :-width], both_NC[:, -width:]
        if latent.q_rank is not None:
            norm = layer.q_a_layernorm
            _, normed_NC = self.kernels.rmsnorm_swiglu.add_norm(q_NC, None, norm.weight, norm.eps)
            q_NC = self._product(normed_NC, slots, layer.q_b_proj)
        outs = [
            self.kernels.mla.attend_pooled(
                q_NC[part],
                kv_NC[part],
                pool.buffers[0][layer.layer, 0],
                slots.positions_N[part],
                slots.starts_N[part],
                self.rotary,
                (layer.kv_a_layernorm.weight, layer.kv_a_layernorm.eps),
                layer.kv_b_proj.weight,
                nope_dim=latent.nope_dim,
                score_factor=latent.score_factor,
                span=slots.span,
                block=self.kernels.attention_prefill.PREFILL_BLOCK if slots.prefill else width,
            )
            for part, width in slots.parts
        ]
        return self._residual(joined(outs), slots, layer.o_proj)

    def _feed_forward(self, layer: nn.Module, x_ND: Tensor, slots: TokenSlots) -> Tensor:
        if not isinstance(layer, FeedForward):
            return layer(x_ND[:, None])[:, 0]
        weight = fused_weight(layer.gate_proj, layer.up_proj)
        if weight is not None and self._stack(slots, layer.gate_proj) is None:
            inner_NI = self.kernels.gemv.linear_swiglu(x_ND, weight)
        else:
            gate_up = self._product(x_ND, slots, layer.gate_proj, layer.up_proj)
            inner_NI = self.kernels.rmsnorm_swiglu.swiglu(gate_up)
        return self._residual(inner_NI, slots, layer.down_proj)

    def _product(
        self, x_ND: Tensor, slots: TokenSlots, *layers: nn.Module, bias: Tensor | None = None
    ) -> Tensor:
        """The outputs of all layers, concatenated, with the `bias` of all and the products of the tokens'
        adapters added."""
        weight = fused_weight(*layers)
        if weight is not None:
            out = self.kernels.gemv.linear(x_ND, weight, bias)
        else:
            out = torch.cat([layer(x_ND) for layer in layers], dim=-1)
            out = out if bias is None else out + bias
        return self._adapted(out, x_ND, slots, layers[0])

    def _residual(self, x_ND: Tensor, slots: TokenSlots, layer: nn.Module) -> Tensor:
        """The outputs of a layer that `add_norm` adds to its input; of generated tokens maybe in parts, which
        ranks would have to exchange one by one."""
        weight = fused_weight(layer)
        if weight is None or slots.prefill or self.group is not None:
            return self._product(x_ND, slots, layer)
        out = self.kernels.gemv.linear_in_parts(x_ND, weight)
        if self._stack(slots, layer) is not None:
            out = self.kernels.gemv.add_parts(out, x_ND.dtype)
        return self._adapted(out, x_ND, slots, layer)

    def _adapted(self, out: Tensor, x_ND: Tensor, slots: TokenSlots, layer: nn.Module) -> Tensor:
        """Outputs of a group of layers, of which this is the first, with the products of the tokens' adapters
        added."""
        if (stack := self._stack(slots, layer)) is not None:
            adapters_N = cast(Tensor, slots.adapters_N)
            self.kernels.low_rank.add_low_rank(out, x_ND, stack.a_SPRI, stack.b_SOR, adapters_N, stack.widths)
        return out

    def _stack(self, slots: TokenSlots, layer: nn.Module) -> Stack | None:
        """The adapters that the tokens may have for a group of layers, of which this is the first."""
        return None if slots.adapters_N is None else self.adapters.stack_of(layer)
