"""The decode attention kernel against plain attention; in Triton's interpreter where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from bifrons.blocks.kernels import decode_attention
from bifrons.blocks.model.layers import rotary_table, rotate
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter truncates bfloat16 where the device rounds.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def close(out: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "dim", "slots"),
    [(4, 2, 2, 16, 160), (2, 6, 2, 24, 96), (3, 4, 1, 64, 64), (2, 3, 3, 128, 192), (8, 2, 2, 8, 96)],
)
def test_attention_equals_the_plain_attention(
    dtype: torch.dtype,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    slots: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode_attention, "ENOUGH_PROGRAMS", 16)  # the last case is not split
    keys, values = (normal(rows, kv_heads, slots, dim, dtype=dtype, seed=i).transpose(1, 2) for i in range(2))
    qkv = normal(rows, (heads + 2 * kv_heads) * dim, dtype=dtype, seed=2)
    positions = torch.randint(slots, (rows,), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    positions[0], positions[1] = 0, min(64, slots - 1)
    expected, expected_keys, expected_values = plain_attention(qkv, positions, keys, values, heads)
    cos, sin = rotary_table(torch.arange(slots, device=DEVICE)[None], dim, 1e4)
    arrivals = torch.zeros(rows * kv_heads, dtype=torch.int32, device=DEVICE)
    out = decode_attention.attend(qkv, (cos[0], sin[0]), positions, keys, values, heads, arrivals)
    assert not arrivals.any()
    close(out, expected, dtype)
    close(keys, expected_keys, dtype)
    assert torch.equal(values, expected_values)


def plain_attention(
    qkv: Tensor, positions: Tensor, keys: Tensor, values: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, keys and values of the same step by the plain functions."""
    keys, values = keys.clone(), values.clone()
    rows, slots, kv_heads, dim = keys.shape
    q, k, v = qkv.unflatten(1, (-1, dim)).split((heads, kv_heads, kv_heads), dim=1)
    table = rotary_table(positions[:, None], dim, 1e4)
    q, k = (rotate(x[:, :, None], table) for x in (q, k))
    places = torch.arange(rows, device=DEVICE)
    keys[places, positions], values[places, positions] = k[:, :, 0], v
    mask = (torch.arange(slots, device=DEVICE) <= positions[:, None])[:, None, None]
    out = F.scaled_dot_product_attention(
        q.float(),
        keys.transpose(1, 2).float(),
        values.transpose(1, 2).float(),
        attn_mask=mask,
        enable_gqa=True,
    )
    return out.flatten(1), keys, values


def test_splits_cover_the_slots() -> None:
    for programs in (1, 10, 64, 400, 512, 5000):
        for slots in (32, 64, 96, 768, 4096, 131072):
            chunk, splits = decode_attention.plan_splits(programs, slots)
            assert chunk * (splits - 1) < slots <= chunk * splits
            assert splits <= 64
