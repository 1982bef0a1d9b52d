"""Products whose rows do not depend on how many other rows there are: in float32 on the CPU, bit for bit.

A library's matrix product takes another path, with another order of summation, for one to three rows than for
more, and attention splits its work by the whole batch. The difference is in the last bits, but a draw that is
nearly a tie turns on it: one picture in some hundreds would depend on what else is painted beside it. So few
rows are filled up to a multiple of four, and attention is made of plain products. What was measured (MKL on a
Zen 4 processor): products of 4, 8 and of 12 or more rows agree in every bit of a row, as do sums over 32, 64
and more slots of which the last weigh nothing. Other dtypes and devices take their fastest way.

B rows, H heads, T positions, S cache slots, K dimensions of a head, M rows of a product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu_onednn

ROWS = 4
_ENOUGH = 12
VECTOR = 32
"""Numbers that a loop over a tensor takes at a time, at most (two vectors of 16); the rest go one by one."""
_MOST_SCORES = 1 << 24
"""Scores of a row's heads that are kept at once (64 MiB); longer prompts go to the fused attention."""
_USES = 4  # after which a weight is packed, which takes as long as some ten products


def exact(x: Tensor) -> bool:
    """Whether results for this tensor are made not to depend on the rows beside them."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def missing_rows(count: int) -> int:
    """How many rows a product of so many is to be filled up with."""
    return 0 if count >= _ENOUGH else -count % ROWS


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; see above."""
    if not exact(x):
        return F.linear(x, weight, bias)
    count = x.numel() // x.shape[-1]
    missing = missing_rows(count)
    if not missing:
        return F.linear(x, weight, bias)
    filled = F.pad(x.reshape(count, -1), (0, 0, 0, missing))
    return F.linear(filled, weight, bias)[:count].view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`.

    Where `packed` is faster, the weight of a layer that is used for few rows again and again is packed in its
    place. Whatever copies, moves, stores or trains the layer finds the plain weight again; what reads the
    weight itself sets `packs` False, or calls `unpack` before.
    """

    packs = True
    _uses = 0

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if weight.is_mkldnn:
            return cpu_onednn.product(input, weight, self.bias)
        if self.packs and cpu_onednn.packs(input, weight):
            self._uses += 1
            if self._uses > _USES and not hasattr(self, "_hf_hook"):  # accelerate's, which move weights
                self.weight = nn.Parameter(cpu_onednn.packed(weight), requires_grad=False)
        return linear(input, weight, self.bias)

    def unpack(self) -> None:
        """Put the plain weight back, until the layer was used as often again."""
        self._uses = 0
        if self.weight.is_mkldnn:
            weight = cpu_onednn.unpacked(self.weight)
            self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)

    def train(self, mode: bool = True) -> "Linear":
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self.unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):  # type: ignore[no-untyped-def]
        self.unpack()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, object]:
        self.unpack()
        return dict(self.__dict__)


def sigmoid(x_MN: Tensor) -> Tensor:
    """`torch.sigmoid`, of rows filled up to whole vectors: the last numbers of all are computed otherwise."""
    width = x_MN.shape[1]
    missing = -width % VECTOR if exact(x_MN) else 0
    return F.pad(x_MN, (0, missing)).sigmoid()[:, :width]


def row_sums(x_MN: Tensor) -> Tensor:
    """Sums of short rows, `[M, 1]`, from left to right."""
    if not exact(x_MN):
        return x_MN.sum(-1, keepdim=True)
    return torch.stack(x_MN.unbind(-1)).cumsum(0)[-1][:, None]


def product(x_HMK: Tensor, weight_HKN: Tensor) -> Tensor:
    """`torch.bmm` of each head's rows with its own weights, `[H, M, N]`."""
    count = x_HMK.shape[1]
    missing = missing_rows(count) if exact(x_HMK) else 0
    return torch.bmm(F.pad(x_HMK, (0, 0, 0, missing)), weight_HKN)[:, :count]


def by_head(x_BHTK: Tensor, weight_HKN: Tensor) -> Tensor:
    """Every head's rows by the head's own weights, `[B, H, T, N]`."""
    rows_HMK = x_BHTK.transpose(0, 1).flatten(1, 2)
    return product(rows_HMK, weight_HKN).unflatten(1, (len(x_BHTK), -1)).transpose(0, 1)


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_B1TS: Tensor | None) -> Tensor:
    """Attention `[B, H, T, K]` under a mask (None: causal); fewer key/value heads than heads are shared."""
    heads, kv_heads = q_BHTK.shape[1], k_BHSK.shape[1]
    scores = heads * q_BHTK.shape[2] * k_BHSK.shape[2]
    if mask_B1TS is None or not exact(q_BHTK) or q_BHTK.requires_grad or scores > _MOST_SCORES:
        return F.scaled_dot_product_attention(
            q_BHTK,
            k_BHSK,
            v_BHSK,
            attn_mask=mask_B1TS,
            is_causal=mask_B1TS is None,
            enable_gqa=heads != kv_heads,
        )
    if heads != kv_heads:
        k_BHSK, v_BHSK = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_BHSK, v_BHSK))
    count = q_BHTK.shape[2]
    missing = missing_rows(count) if count > 1 else 0  # one query takes one path, with and without others
    q_BHTK = F.pad(q_BHTK * q_BHTK.shape[-1] ** -0.5, (0, 0, 0, missing))
    mask_B1TS = F.pad(mask_B1TS, (0, 0, 0, missing), value=True)
    # In the cache's layout no key is copied here; strides are the same for one row and for many.
    scores = torch.bmm(q_BHTK.flatten(0, 1), k_BHSK.flatten(0, 1).transpose(1, 2))
    scores_BHTS = scores.unflatten(0, q_BHTK.shape[:2]).masked_fill(~mask_B1TS, -torch.inf)
    out = torch.bmm(scores_BHTS.softmax(-1).flatten(0, 1), v_BHSK.flatten(0, 1))
    return out.unflatten(0, q_BHTK.shape[:2])[:, :, :count]
