"""Multi-head latent attention (DeepSeek-V2, 2024, sec. 2.1): keys and values are projected from one small
latent vector.

B rows, T positions of this call, S cache slots, H heads, D model width, R rank of the latent, P dimensions
of the rotary part, N dimensions of the rest of a query or key, V dimensions of a value, C = R + P.

The cache holds a position's latent and its one rotary key, R + P numbers shared by all heads. There are two
forms of the computation, equal up to rounding. Expanded: every slot's latent is projected to keys and values
of all heads. Absorbed: the queries are projected into the latent space and the attention output is projected
back, which is cheaper for few queries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.batch_invariant import attend, is_batch_invariant, missing_rows, per_head_matmul
from .context import DecoderConfig, ForwardContext
from .layers import Linear, RMSNorm, rotate_pairs


class LatentAttention(nn.Module):
    """Causal latent attention with decoupled rotary positions; the weights' rotary layout is interleaved."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.layer, self.latent, self.num_heads = layer, latent, config.num_heads
        width, heads = config.hidden_size, config.num_heads
        if latent.q_rank is None:
            self.q_proj = Linear(width, heads * latent.query_dim, bias=False)
        else:
            self.q_a_proj = Linear(width, latent.q_rank, bias=False)
            self.q_a_layernorm = RMSNorm(latent.q_rank)
            self.q_b_proj = Linear(latent.q_rank, heads * latent.query_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(width, latent.kv_rank + latent.rope_dim, bias=False)
        # In the reference this norm has its own default eps, not the model's rms_norm_eps.
        self.kv_a_layernorm = RMSNorm(latent.kv_rank, 1e-6)
        self.kv_b_proj = Linear(latent.kv_rank, heads * (latent.nope_dim + latent.value_dim), bias=False)
        self.kv_b_proj.prepacks = False  # the absorbed form reads its weight
        self.o_proj = Linear(heads * latent.value_dim, width, bias=False)

    @property
    def first_proj(self) -> nn.Module:
        """The first projection of the queries, which has the same input as `kv_a_proj_with_mqa`."""
        return self.q_proj if self.latent.q_rank is None else self.q_a_proj

    def forward(self, x_BTD: Tensor, context: ForwardContext) -> Tensor:
        latent = self.latent
        if latent.q_rank is None:
            q = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        if latent.score_factor != 1:
            q = q * latent.score_factor
        kv_BTC = self.kv_a_proj_with_mqa(x_BTD)
        queries = x_BTD.shape[1]
        q_BHTK = q.unflatten(-1, (self.num_heads, latent.query_dim)).transpose(1, 2)
        q_nope_BHTN, q_rope_BHTP = q_BHTK.split((latent.nope_dim, latent.rope_dim), dim=-1)
        q_rope_BHTP = rotate_pairs(q_rope_BHTP, context.rotary)
        latent_BTR, k_rope_BTP = kv_BTC.split((latent.kv_rank, latent.rope_dim), dim=-1)
        k_rope_BTP = rotate_pairs(k_rope_BTP[:, None], context.rotary)[:, 0]
        slots_BSC = torch.cat((self.kv_a_layernorm(latent_BTR), k_rope_BTP), dim=-1)
        if context.cache is not None:
            (cached_BS1C,) = context.cache.write(self.layer, context.positions_BT, (slots_BSC[:, :, None],))
            slots_BSC = slots_BSC if context.mask_B1TS is None else cached_BS1C[:, :, 0]
        # For batch invariance, the form must not depend on a longer prompt in the same batch.
        decoding = context.cache is not None and context.cache.decoding
        cheaper = decoding if is_batch_invariant(x_BTD) else latent.absorbs(queries)
        form = self.absorbed if context.mask_B1TS is not None and cheaper else self.expanded
        out_BHTV = form(q_nope_BHTN, q_rope_BHTP, slots_BSC, context.mask_B1TS)
        return self.o_proj(out_BHTV.transpose(1, 2).flatten(2))

    def expanded(
        self, q_nope_BHTN: Tensor, q_rope_BHTP: Tensor, slots_BSC: Tensor, mask_B1TS: Tensor | None
    ) -> Tensor:
        """Attention `[B, H, T, V]` with per-head keys and values; a slot is a latent and a rotary key."""
        latent = self.latent
        latent_BSR, k_rope_BSP = slots_BSC.split((latent.kv_rank, latent.rope_dim), dim=-1)
        kv_BHSK = self.kv_b_proj(latent_BSR).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_nope_BHSN, v_BHSV = kv_BHSK.split((latent.nope_dim, latent.value_dim), dim=-1)
        k_rope_BHSP = k_rope_BSP[:, None].expand(-1, self.num_heads, -1, -1)
        q_BHTK = torch.cat((q_nope_BHTN, q_rope_BHTP), dim=-1)
        return attend(q_BHTK, torch.cat((k_nope_BHSN, k_rope_BHSP), dim=-1), v_BHSV, mask_B1TS)

    def absorbed(
        self, q_nope_BHTN: Tensor, q_rope_BHTP: Tensor, slots_BSC: Tensor, mask_B1TS: Tensor | None
    ) -> Tensor:
        """Attention `[B, H, T, V]` in the latent space: all heads read the same slots."""
        latent = self.latent
        weight_HKR = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        into_HNR, out_of_HVR = weight_HKR.split((latent.nope_dim, latent.value_dim), dim=1)
        q_latent_BHTR = per_head_matmul(q_nope_BHTN, into_HNR)
        q_BHTC = torch.cat((q_latent_BHTR, q_rope_BHTP), dim=-1) * latent.query_dim**-0.5
        if is_batch_invariant(slots_BSC):
            slots_BSC = slots_BSC.contiguous()  # the strides of a view affect the order of the sums
        q_BMC = q_BHTC.flatten(1, 2)
        if is_batch_invariant(slots_BSC):
            q_BMC = F.pad(q_BMC, (0, 0, 0, missing_rows(*q_BMC.shape[1:])))
        scores = torch.bmm(q_BMC, slots_BSC.transpose(1, 2))[:, : q_BHTC[0, :, :, 0].numel()]
        scores_BHTS = scores.unflatten(1, q_BHTC.shape[1:3]).float()
        if mask_B1TS is not None:
            scores_BHTS = scores_BHTS.masked_fill(~mask_B1TS, -torch.inf)
        weights_BHTS = scores_BHTS.softmax(-1).to(slots_BSC.dtype)
        out = torch.bmm(weights_BHTS.flatten(1, 2), slots_BSC[..., : latent.kv_rank])
        return per_head_matmul(out.unflatten(1, q_BHTC.shape[1:3]), out_of_HVR.transpose(1, 2))
