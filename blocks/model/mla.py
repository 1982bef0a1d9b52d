"""Multi-head latent attention (DeepSeek-V2, 2024, sec. 2.1): keys and values share one small latent vector.

B rows, T positions of this call, S cache slots, H heads, D model width, R rank of the latent, P dimensions
of the rotary part, N dimensions of the rest of a query or key, V dimensions of a value.

The cache keeps the latent and the one rotary key of a position, R + P numbers for all heads together. There
are two ways to attend, equal up to rounding. Expanded: every slot's latent becomes keys and values of all
heads. Absorbed: queries go into the latent's space instead, and what they gather comes back from it; that
spares expanding the slots, which pays off while the queries are few.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..kernels import dispatch
from ..kernels.batch_invariant import Linear, attend, is_batch_invariant, per_head_matmul
from .layers import RMSNorm
from .rope import rotate_pairs

if TYPE_CHECKING:
    from .decoder import DecoderConfig, Step


@dataclass(frozen=True)
class LatentConfig:
    """Sizes of latent attention; `q_rank` None projects queries in one step."""

    kv_rank: int = 512
    q_rank: int | None = None
    nope_dim: int = 128
    rope_dim: int = 64
    value_dim: int = 128

    def absorbs(self, queries: int) -> bool:
        """Whether the absorbed form needs fewer products for so many queries a row.

        Per head and slot: expanding costs R (N + V) once and N + P + V a query, absorbing 2 R + P a query.
        """
        extra = 2 * self.kv_rank - self.nope_dim - self.value_dim
        return queries * extra < self.kv_rank * (self.nope_dim + self.value_dim)


class LatentAttention(nn.Module):
    """Causal latent attention with decoupled rotary positions, whose weights are in interleaved layout."""

    def __init__(self, config: "DecoderConfig", layer: int) -> None:
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.layer, self.sizes, self.num_heads = layer, latent, config.num_heads
        self.query_dim = latent.nope_dim + latent.rope_dim
        width, heads = config.hidden_size, config.num_heads
        if latent.q_rank is None:
            self.q_proj = Linear(width, heads * self.query_dim, bias=False)
        else:
            self.q_a_proj = Linear(width, latent.q_rank, bias=False)
            self.q_a_layernorm = RMSNorm(latent.q_rank)
            self.q_b_proj = Linear(latent.q_rank, heads * self.query_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(width, latent.kv_rank + latent.rope_dim, bias=False)
        # eps is this norm's own default in the reference, not the model's rms_norm_eps.
        self.kv_a_layernorm = RMSNorm(latent.kv_rank, 1e-6)
        self.kv_b_proj = Linear(latent.kv_rank, heads * (latent.nope_dim + latent.value_dim), bias=False)
        self.kv_b_proj.prepacks = False  # the absorbed form reads it
        self.o_proj = Linear(heads * latent.value_dim, width, bias=False)

    @property
    def first_proj(self) -> nn.Module:
        """Where queries begin: it has the same inputs as `kv_a_proj_with_mqa`."""
        return self.q_proj if self.sizes.q_rank is None else self.q_a_proj

    def forward(self, x_BTD: Tensor, step: "Step") -> Tensor:
        sizes = self.sizes
        if sizes.q_rank is None:
            q = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        kv_BTC = self.kv_a_proj_with_mqa(x_BTD)
        queries = x_BTD.shape[1]
        if queries == 1 and step.cache is not None and dispatch.serves(x_BTD, self.kv_b_proj.weight):
            from ..kernels.mla_decode import attend_latent  # needs Triton

            return self.o_proj(attend_latent(self, q, kv_BTC, step))
        q_BHTK = q.unflatten(-1, (self.num_heads, self.query_dim)).transpose(1, 2)
        q_nope_BHTN, q_rope_BHTP = q_BHTK.split((sizes.nope_dim, sizes.rope_dim), dim=-1)
        q_rope_BHTP = rotate_pairs(q_rope_BHTP, step.rotary)
        latent_BTR, k_rope_BTP = kv_BTC.split((sizes.kv_rank, sizes.rope_dim), dim=-1)
        k_rope_BTP = rotate_pairs(k_rope_BTP[:, None], step.rotary)[:, 0]
        slots_BSC = torch.cat((self.kv_a_layernorm(latent_BTR), k_rope_BTP), dim=-1)
        if step.cache is not None:
            (cached_BS1C,) = step.cache.write(self.layer, step.positions_BT, (slots_BSC[:, :, None],))
            slots_BSC = slots_BSC if step.mask_B1TS is None else cached_BS1C[:, :, 0]
        # Where rows must not depend on each other, neither may the form on a neighbour's longer prompt.
        pays_off = queries == 1 if is_batch_invariant(x_BTD) else sizes.absorbs(queries)
        few = step.mask_B1TS is not None and pays_off
        attend = self.absorbed if few else self.expanded
        out_BHTV = attend(q_nope_BHTN, q_rope_BHTP, slots_BSC, step.mask_B1TS)
        return self.o_proj(out_BHTV.transpose(1, 2).flatten(2))

    def expanded(
        self, q_nope_BHTN: Tensor, q_rope_BHTP: Tensor, slots_BSC: Tensor, mask_B1TS: Tensor | None
    ) -> Tensor:
        """Attention in the heads' own spaces, `[B, H, T, V]`; the slots hold latent and rotary key."""
        sizes = self.sizes
        latent_BSR, k_rope_BSP = slots_BSC.split((sizes.kv_rank, sizes.rope_dim), dim=-1)
        kv_BHSK = self.kv_b_proj(latent_BSR).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_nope_BHSN, v_BHSV = kv_BHSK.split((sizes.nope_dim, sizes.value_dim), dim=-1)
        k_rope_BHSP = k_rope_BSP[:, None].expand(-1, self.num_heads, -1, -1)
        q_BHTK = torch.cat((q_nope_BHTN, q_rope_BHTP), dim=-1)
        return attend(q_BHTK, torch.cat((k_nope_BHSN, k_rope_BHSP), dim=-1), v_BHSV, mask_B1TS)

    def absorbed(
        self, q_nope_BHTN: Tensor, q_rope_BHTP: Tensor, slots_BSC: Tensor, mask_B1TS: Tensor | None
    ) -> Tensor:
        """Attention in the latent's space, `[B, H, T, V]`: all heads read the same slots, uncopied."""
        sizes = self.sizes
        weight_HKR = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        to_latent_HNR, from_latent_HVR = weight_HKR.split((sizes.nope_dim, sizes.value_dim), dim=1)
        q_latent_BHTR = per_head_matmul(q_nope_BHTN, to_latent_HNR)
        q_BHTC = torch.cat((q_latent_BHTR, q_rope_BHTP), dim=-1) * self.query_dim**-0.5
        if is_batch_invariant(slots_BSC):
            slots_BSC = slots_BSC.contiguous()  # a view's strides would decide the path of the product
        scores = torch.bmm(q_BHTC.flatten(1, 2), slots_BSC.transpose(1, 2))
        scores_BHTS = scores.unflatten(1, q_BHTC.shape[1:3]).float()
        if mask_B1TS is not None:
            scores_BHTS = scores_BHTS.masked_fill(~mask_B1TS, -torch.inf)
        weights_BHTS = scores_BHTS.softmax(-1).to(slots_BSC.dtype)
        gathered = torch.bmm(weights_BHTS.flatten(1, 2), slots_BSC[..., : sizes.kv_rank])
        return per_head_matmul(gathered.unflatten(1, q_BHTC.shape[1:3]), from_latent_HVR.transpose(1, 2))
