"""Configuration of the decoder, and the context that its layers share during one forward call.

B rows, T positions of this call, S cache slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .kv_cache import KVCache
from .layers import rotary_table
from .moe import MoEConfig


@dataclass(frozen=True)
class LatentConfig:
    """Dimensions of multi-head latent attention. With `q_rank` None, queries have no low-rank projection."""

    kv_rank: int = 512
    q_rank: int | None = None
    nope_dim: int = 128
    rope_dim: int = 64
    value_dim: int = 128
    score_factor: float = 1.0
    """What scores are multiplied by beside `query_dim ** -0.5` (with YaRN)."""

    @property
    def query_dim(self) -> int:
        """Dimensions of a head's query and key: the parts without and with rotary position."""
        return self.nope_dim + self.rope_dim

    def absorbs(self, queries: int) -> bool:
        """Whether the absorbed form needs fewer multiplications for this many queries per row.

        Per head and slot, with R `kv_rank`, N `nope_dim`, P `rope_dim` and V `value_dim`, the expanded form
        costs R (N + V) once and N + P + V per query; the absorbed form costs 2 R + P per query.
        """
        extra = 2 * self.kv_rank - self.nope_dim - self.value_dim
        return queries * extra < self.kv_rank * (self.nope_dim + self.value_dim)


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the language model. Official files omit settings at `LlamaConfig`'s defaults, which
    are the defaults here."""

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
    frequencies: tuple[float, ...] | None = None
    rotary_scale: float = 1.0
    """Frequencies that don't follow from `rope_theta`, and `scale`: see `layers.rotary_table`."""
    qkv_bias: bool = False
    latent: LatentConfig | None = None
    """Multi-head latent attention; None is multi-head attention, which uses `head_dim` and `num_kv_heads`."""
    moe: MoEConfig | None = None
    """Mixture of experts; None makes the feed-forward of every layer dense."""

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that carry its position."""
        return self.head_dim if self.latent is None else self.latent.rope_dim

    def rotary_table(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions, `[B, T, rotary_dim]`."""
        dim, theta = self.rotary_dim, self.rope_theta
        return rotary_table(positions_BT, dim, theta, self.frequencies, self.rotary_scale)

    @property
    def cache_widths(self) -> tuple[tuple[int, int], ...]:
        """(heads, dimensions) of each cached buffer of a layer: key and value, or latent with rotary key."""
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
        """An empty cache. `layer_devices` are those of the layers' parts; by default all are on `device`."""
        widths, layers = self.cache_widths, self.num_layers
        return KVCache(layers, rows, slots, widths, device=device, dtype=dtype, layer_devices=layer_devices)


@dataclass(frozen=True)
class DeviceLayout:
    """How a decoder is spread over devices.

    Embeddings come in and hidden states go out on `main`; `layers` is the device where each layer computes.
    Offloaded weights are moved to `main` while they are used, at most `moved` bytes at a time.
    """

    main: torch.device
    layers: tuple[torch.device, ...]
    moved: int


def unchanged(x: Tensor) -> Tensor:
    """The sum over one rank."""
    return x


@dataclass(frozen=True)
class ForwardContext:
    """What all layers share during one forward call: positions, rotary table, mask and cache.

    Without a mask, attention is causal over the positions of this call alone. `sum_ranks` makes of a layer's
    two outputs their sums over the ranks of a tensor-parallel model.
    """

    positions_BT: Tensor
    rotary: tuple[Tensor, Tensor]
    mask_B1TS: Tensor | None
    cache: KVCache | None
    sum_ranks: Callable[[Tensor], Tensor] = unchanged
    copies: dict[torch.device, "ForwardContext"] = field(default_factory=dict, compare=False, repr=False)

    def to(self, device: torch.device, non_blocking: bool = False) -> "ForwardContext":
        """The same context for layers on another device; each device gets one copy."""
        if self.positions_BT.device == device:
            return self
        if device not in self.copies:
            cos, sin = (table.to(device, non_blocking=non_blocking) for table in self.rotary)
            mask = None if self.mask_B1TS is None else self.mask_B1TS.to(device, non_blocking=non_blocking)
            positions = self.positions_BT.to(device, non_blocking=non_blocking)
            cache = None if self.cache is None else self.cache.on(device)
            self.copies[device] = ForwardContext(positions, (cos, sin), mask, cache)
        return self.copies[device]


def attention_mask(positions_BT: Tensor, slots: int) -> Tensor:
    """Causal mask over cache slots, bool `[B, 1, T, S]`: a query sees the slots up to its own position."""
    return (torch.arange(slots, device=positions_BT.device) <= positions_BT[..., None])[:, None]
