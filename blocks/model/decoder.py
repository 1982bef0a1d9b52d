"""The one transformer decoder of both families: pre-norm blocks of attention and feed-forward.

B rows, T positions of this call, D model width, H heads, K dimensions of a head, S cache slots.
Module names are those of the official checkpoints (Llama's), so keys need no renaming.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..kernels import cpu_attention
from ..kernels.batch_invariant import Linear, attend, is_batch_invariant
from .feed_forward import FeedForward
from .kv_cache import KVCache
from .layers import RMSNorm
from .mla import LatentAttention, LatentConfig
from .moe import MoE, MoEConfig
from .rope import rotary_table, rotate


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the language model; the defaults are `LlamaConfig`'s, which official files omit."""

    vocab_size: int
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    max_positions: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    latent: LatentConfig | None = None
    """Latent attention; None is multi-head attention, and then `head_dim` and `num_kv_heads` count."""
    moe: MoEConfig | None = None
    """Experts; None makes every layer's feed-forward dense."""

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that carry its position."""
        return self.head_dim if self.latent is None else self.latent.rope_dim

    @property
    def cache_widths(self) -> tuple[tuple[int, int], ...]:
        """(heads, dimensions) of each buffer that a layer caches per position: key and value, or the latent
        with the rotary key."""
        if self.latent is not None:
            return ((1, self.latent.kv_rank + self.latent.rope_dim),)
        return ((self.num_kv_heads, self.head_dim),) * 2

    def new_cache(
        self,
        rows: int,
        slots: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        layer_devices: Sequence[torch.device] | None = None,
    ) -> KVCache:
        """`layer_devices` (None: `device`) says where each layer's part lies."""
        widths, layers = self.cache_widths, self.num_layers
        return KVCache(layers, rows, slots, widths, device=device, dtype=dtype, layer_devices=layer_devices)


@dataclass(frozen=True)
class Layout:
    """How a decoder is spread over devices.

    Embeddings come to `main`, and hidden states are given back there; `layers` says where each layer
    computes. Weights that rest in the machine's memory are moved to `main` for the time of their work, at
    most `moved` bytes at once.
    """

    main: torch.device
    layers: tuple[torch.device, ...]
    moved: int


@dataclass(frozen=True)
class Step:
    """What all layers of one forward call share: where the rows stand and what they may see.

    Without a mask the positions of the call see those before them among themselves, and nothing else.
    """

    positions_BT: Tensor
    rotary: tuple[Tensor, Tensor]
    mask_B1TS: Tensor | None
    cache: KVCache | None
    copies: dict[torch.device, "Step"] = field(default_factory=dict, compare=False, repr=False)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Step":
        """The same for layers on another device; it is copied there once."""
        if self.positions_BT.device == device:
            return self
        if device not in self.copies:
            cos, sin = (table.to(device, non_blocking=non_blocking) for table in self.rotary)
            mask = None if self.mask_B1TS is None else self.mask_B1TS.to(device, non_blocking=non_blocking)
            positions = self.positions_BT.to(device, non_blocking=non_blocking)
            cache = None if self.cache is None else self.cache.on(device)
            self.copies[device] = Step(positions, (cos, sin), mask, cache)
        return self.copies[device]


def attention_mask(positions_BT: Tensor, slots: int) -> Tensor:
    """True where a query may see a slot: slots up to and including its own position. `[B, 1, T, S]`."""
    return (torch.arange(slots, device=positions_BT.device) <= positions_BT[..., None])[:, None]


class Attention(nn.Module):
    """Multi-head attention with rotary positions; fewer key/value heads than heads is grouped-query."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, width, bias=False)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, step: Step) -> Tensor:
        q, k, v = (
            project(x_BTD).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTK = rotate(q.transpose(1, 2), step.rotary)
        k_BTHK = rotate(k.transpose(1, 2), step.rotary).transpose(1, 2)
        if step.cache is not None:
            stored = step.cache.write(self.layer, step.positions_BT, (k_BTHK, v))
            k_BTHK, v = (k_BTHK, v) if step.mask_B1TS is None else stored
        if step.mask_B1TS is not None and cpu_attention.serves(q_BHTK, k_BTHK):
            out_BHTK = cpu_attention.attend_one(q_BHTK, k_BTHK, v, step.mask_B1TS)
            return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))
        out_BHTK = attend(q_BHTK, k_BTHK.transpose(1, 2), v.transpose(1, 2), step.mask_B1TS)
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))


def make_attention(config: DecoderConfig, layer: int) -> nn.Module:
    """The attention of one layer: latent where the config has it, else multi-head."""
    return Attention(config, layer) if config.latent is None else LatentAttention(config, layer)


def make_feed_forward(config: DecoderConfig, layer: int) -> nn.Module:
    """The feed-forward of one layer: a mixture of experts where the config has it, else dense."""
    if config.moe is not None and config.moe.has_experts(layer):
        return MoE(config.moe, config.hidden_size)
    return FeedForward(config.hidden_size, config.intermediate_size)


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = make_attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = make_feed_forward(config, layer)

    def forward(self, x_BTD: Tensor, step: Step) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), step)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embeddings in, hidden states after the final norm out; heads are the families' own.

    `capture` says whether generation's steps, and the reading of prompts and pictures, are captured; None:
    where that is possible, on CUDA. `layout` is that of a decoder which is spread over devices
    (spreading.py).
    """

    capture: bool | None = None
    layout: Layout | None = None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def device(self) -> torch.device:
        """Where embeddings are to be, and hidden states come out."""
        return self.embed_tokens.weight.device if self.layout is None else self.layout.main

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def new_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache for this decoder, with its layers."""
        layers = None if self.layout is None else self.layout.layers
        return self.config.new_cache(
            rows, slots, device=self.device, dtype=self.dtype, layer_devices=layers
        )

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None, begins: bool = False) -> Tensor:
        """`x_BTD` embeddings -> hidden states `[B, T, D]`.

        With a cache, the T positions follow each row's `cache.positions` and are stored; the caller
        has reserved the slots, and moves `cache.positions` on afterwards (padded rows by less than T).
        Without one, the rows are whole sequences from position 0 (training, scoring). `begins` says that all
        rows stand at position 0: then nothing is read from the cache, and attention takes its causal form,
        which leaves out what a mask would only hide.
        """
        masked = cache is not None and (not begins or is_batch_invariant(x_BTD))
        step = self.step(x_BTD.shape[0], x_BTD.shape[1], x_BTD.device, cache, masked)
        for block in self.layers:
            x_BTD = block(x_BTD, step)
        hidden_BTD = self.norm(x_BTD)
        return hidden_BTD if self.layout is None else hidden_BTD.to(self.layout.main)

    def step(
        self, rows: int, length: int, device: torch.device, cache: KVCache | None, masked: bool = True
    ) -> Step:
        """What the layers share of a call over `length` positions of each row. Only rows that begin with the
        call may go without a mask."""
        offsets = torch.arange(length, device=device).expand(rows, length)
        positions = offsets if cache is None else cache.positions[:, None] + offsets
        return Step(
            positions_BT=positions,
            rotary=rotary_table(positions, self.config.rotary_dim, self.config.rope_theta),
            mask_B1TS=attention_mask(positions, cache.span) if cache is not None and masked else None,
            cache=cache,
        )
