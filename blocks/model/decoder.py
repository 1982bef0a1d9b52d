"""The transformer decoder of both families: pre-norm blocks of attention and feed-forward.

B rows, T positions of this call, D model width, H heads, K dimensions of a head, S cache slots.
Module names are those of the official checkpoints (Llama's), so keys need no renaming.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import cpu_attention
from ..kernels.batch_invariant import attend, is_batch_invariant
from .context import DecoderConfig, DeviceLayout, ForwardContext, attention_mask, unchanged
from .kv_cache import KVCache
from .layers import FeedForward, Linear, RMSNorm, rotate
from .mla import LatentAttention
from .moe import MoE


class Attention(nn.Module):
    """Multi-head attention with rotary positions; grouped-query if there are fewer key/value heads."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, width, bias=False)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = Linear(width, config.hidden_size, bias=False)
        # Beside the layers, so that these may be quantized, adapted and fused like any others.
        for name, size in (("q_bias", width), ("k_bias", kv_width), ("v_bias", kv_width)):
            self.register_parameter(name, nn.Parameter(torch.zeros(size)) if config.qkv_bias else None)

    def forward(self, x_BTD: Tensor, context: ForwardContext) -> Tensor:
        qkv = [project(x_BTD) for project in (self.q_proj, self.k_proj, self.v_proj)]
        if self.q_bias is not None:
            qkv = [x + bias for x, bias in zip(qkv, (self.q_bias, self.k_bias, self.v_bias), strict=True)]
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in qkv)
        q_BHTK = rotate(q.transpose(1, 2), context.rotary)
        k_BTHK = rotate(k.transpose(1, 2), context.rotary).transpose(1, 2)
        if context.cache is not None:
            stored = context.cache.write(self.layer, context.positions_BT, (k_BTHK, v))
            k_BTHK, v = (k_BTHK, v) if context.mask_B1TS is None else stored
        if context.mask_B1TS is not None and cpu_attention.is_faster(q_BHTK, k_BTHK):
            out_BHTK = cpu_attention.attend_one(q_BHTK, k_BTHK, v, context.mask_B1TS)
            return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))
        out_BHTK = attend(q_BHTK, k_BTHK.transpose(1, 2), v.transpose(1, 2), context.mask_B1TS)
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One pre-norm layer: attention and feed-forward, each with a residual connection."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        attention = Attention if config.latent is None else LatentAttention
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.moe is not None and config.moe.has_experts(layer):
            self.mlp = MoE(config.moe, config.hidden_size)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, x_BTD: Tensor, context: ForwardContext) -> Tensor:
        x_BTD = x_BTD + context.sum_ranks(self.self_attn(self.input_layernorm(x_BTD), context))
        return x_BTD + context.sum_ranks(self.mlp(self.post_attention_layernorm(x_BTD)))


class Decoder(nn.Module):
    """Embeddings in, hidden states after the final norm out; each family has its own heads.

    `capture` says whether decode steps, prefill and image encoding are captured as CUDA graphs; None captures
    wherever that is possible. `layout` is None unless the decoder is spread over several devices.
    """

    capture: bool | None = None
    layout: DeviceLayout | None = None
    group: Any = None
    """The ranks that each hold a part of every layer (`placement/tensor_parallel.py`); None for one."""
    scheduler: Any = None
    """What `engine.generate.scheduler_of` keeps here, so that it lives as long as the decoder."""
    ahead: tuple[Any, ...] = ()
    """A layer beside the decoder that drafts its tokens (`text/model.py: AheadLayer`); no module of this."""
    base: Any = None
    """The decoder over whose layers this one has `adapters`, by their numbers: its scheduler runs both."""
    adapters: tuple[int, ...] = ()
    variants: dict[int, Any] = {}  # noqa: RUF012
    """Those in use whose `base` this is, by the last of their numbers; replaced, never changed."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.randn(config.vocab_size, config.hidden_size)  # `normal_` on meta imports a compiler
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings and of the hidden states that come out."""
        return self.embed_tokens.weight.device if self.layout is None else self.layout.main

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and of the cache."""
        return self.embed_tokens.weight.dtype

    def new_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache, each layer's part on the device of that layer."""
        layers = None if self.layout is None else self.layout.layers
        cache = self.config.new_cache(rows, slots, device=self.device, dtype=self.dtype, layer_devices=layers)
        return cache if self.group is None else self.group.mirrored(cache)

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None, from_start: bool = False) -> Tensor:
        """`x_BTD` embeddings -> hidden states `[B, T, D]`.

        With a cache, the T positions follow each row's `cache.positions` and are stored; the caller
        reserves the slots beforehand, and advances `cache.positions` afterwards (padded rows by less than T).
        Without one, the rows are whole sequences from position 0 (training, scoring). `from_start` asserts
        that all rows are at position 0: nothing is then read from the cache, and attention is causal without
        a mask (batch-invariant attention still needs the mask).
        """
        if self.group is not None:
            return self.group.forward(self, x_BTD, cache, from_start)
        return self.compute(x_BTD, cache, from_start)

    def compute(self, x_BTD: Tensor, cache: KVCache | None, from_start: bool) -> Tensor:
        """`forward` with this rank's part of the weights, at the same time as the other ranks."""
        masked = cache is not None and (not from_start or is_batch_invariant(x_BTD))
        context = self.forward_context(x_BTD.shape[0], x_BTD.shape[1], x_BTD.device, cache, masked)
        for block in self.layers:
            x_BTD = block(x_BTD, context)
        hidden_BTD = self.norm(x_BTD)
        return hidden_BTD if self.layout is None else hidden_BTD.to(self.layout.main)

    def forward_context(
        self, rows: int, length: int, device: torch.device, cache: KVCache | None, masked: bool = True
    ) -> ForwardContext:
        """The context of a call over `length` positions; `masked` may be False only if all start at 0."""
        offsets = torch.arange(length, device=device).expand(rows, length)
        positions = offsets if cache is None else cache.positions[:, None] + offsets
        return ForwardContext(
            positions_BT=positions,
            rotary=self.config.rotary_table(positions),
            mask_B1TS=attention_mask(positions, cache.span) if cache is not None and masked else None,
            cache=cache,
            sum_ranks=unchanged if self.group is None else self.group.sum,
        )
