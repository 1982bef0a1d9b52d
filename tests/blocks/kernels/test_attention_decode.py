"""The decode attention kernel over the pooled cache; in Triton's interpreter where there is no GPU.

N tokens, H heads, J key/value heads, K dimensions of a head, S slots of the pool.
"""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from bifrons.blocks.kernels import attention_decode
from bifrons.blocks.kernels.attention_decode import CHUNK, UNSPLIT_PROGRAMS, attend, plan_splits
from bifrons.blocks.model.layers import rotary_table, rotate
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter truncates bfloat16 where the device rounds.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
ON_CUDA = pytest.mark.skipif(DEVICE.type != "cuda", reason="real sizes take too long in the interpreter")
SPAN = 128
POSITIONS = (0, 1, 32, 33, 64, 127)


def close(out: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


class Pool:
    """A pool whose sequences lie one after the other, with unwritten slots (NaN) around them.

    A sequence's contents depend on its position and `seed` only, not on its place.
    """

    def __init__(
        self,
        positions: Sequence[int],
        heads: tuple[int, int],
        dim: int,
        dtype: torch.dtype = torch.float32,
        gap: int = 3,
        seed: int = 0,
    ) -> None:
        self.heads, kv_heads = heads
        self.positions = torch.tensor(positions, device=DEVICE)
        lengths = self.positions + 1 + gap
        self.starts = gap + lengths.cumsum(0) - lengths
        shape = (kv_heads, int(lengths.sum()) + gap, dim)
        self.keys, self.values = (torch.full(shape, torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
        for position, start in zip(positions, self.starts.tolist(), strict=True):
            slots = slice(start, start + position)
            self.keys[:, slots], self.values[:, slots] = normal(
                2, kv_heads, position, dim, dtype=dtype, seed=1000 * seed + position
            )
        width = (self.heads + 2 * kv_heads) * dim
        self.qkv = torch.stack([normal(width, dtype=dtype, seed=9000 + p) for p in positions])
        cos, sin = rotary_table(torch.arange(int(self.positions.max()) + 1, device=DEVICE)[None], dim, 1e4)
        self.rotary = cos[0], sin[0]

    def attend(self, span: int = SPAN) -> Tensor:
        arrivals = torch.zeros(len(self.qkv) * self.heads, dtype=torch.int32, device=DEVICE)
        cache = self.keys, self.values
        out = attend(self.qkv, self.rotary, self.positions, self.starts, *cache, self.heads, arrivals, span)
        assert not arrivals.any()
        return out

    def plain(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output, keys and values of the same step by the plain functions."""
        keys, values = self.keys.clone(), self.values.clone()
        kv_heads, _, dim = keys.shape
        q, k, v = self.qkv.unflatten(1, (-1, dim)).split((self.heads, kv_heads, kv_heads), dim=1)
        table = rotary_table(self.positions[:, None], dim, 1e4)
        q, k = (rotate(x[:, :, None], table)[:, :, 0] for x in (q, k))
        own = self.starts + self.positions
        keys[:, own], values[:, own] = k.transpose(0, 1), v.transpose(0, 1)
        outs = []
        for token, (start, last) in enumerate(zip(self.starts.tolist(), own.tolist(), strict=True)):
            sequence = (x[None, :, start : last + 1].float() for x in (keys, values))
            query = q[token, None, :, None].float()
            outs.append(F.scaled_dot_product_attention(query, *sequence, enable_gqa=True))
        return torch.cat(outs).flatten(1), keys, values


@pytest.fixture(params=["whole", "split"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one program per head, or up to four that share its chunks."""
    monkeypatch.setattr(attention_decode, "UNSPLIT_PROGRAMS", 1 if request.param == "whole" else 1 << 20)
    monkeypatch.setattr(attention_decode, "_MAX_SPLITS", 4)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [((4, 2), 24), ((2, 2), 128), ((1, 1), 8)])
def test_equals_the_plain_attention(dtype: torch.dtype, heads: tuple[int, int], dim: int, form: str) -> None:
    pool = Pool(POSITIONS[::2], heads, dim, dtype)
    expected, expected_keys, expected_values = pool.plain()
    close(pool.attend(), expected, dtype)
    torch.testing.assert_close(
        pool.keys, expected_keys, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], equal_nan=True
    )
    torch.testing.assert_close(pool.values, expected_values, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("heads", "dim", "positions", "span"),
    [
        ((2, 2), 32, POSITIONS, SPAN),
        ((4, 2), 16, POSITIONS[2:], SPAN),
        pytest.param((16, 16), 128, (*POSITIONS, *range(500, 700, 7)), 1024, marks=ON_CUDA),
        pytest.param((32, 8), 128, (*POSITIONS, *range(900, 1000, 9)), 1024, marks=ON_CUDA),
    ],
)
def test_tokens_do_not_depend_on_the_rest(
    heads: tuple[int, int],
    dim: int,
    positions: tuple[int, ...],
    span: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dtype = torch.float32 if span == SPAN else torch.bfloat16
    monkeypatch.setattr(attention_decode, "UNSPLIT_PROGRAMS", 1)
    together = Pool(positions, heads, dim, dtype).attend(span)
    monkeypatch.setattr(attention_decode, "UNSPLIT_PROGRAMS", 1 << 20)
    for splits in (2, 3):
        monkeypatch.setattr(attention_decode, "_MAX_SPLITS", splits)
        assert torch.equal(Pool(positions, heads, dim, dtype, gap=splits).attend(span), together)
    for token, position in enumerate(positions):
        alone = Pool([position], heads, dim, dtype, gap=5)
        assert torch.equal(alone.attend(2 * span)[0], together[token])


def test_strides_of_the_pool_do_not_matter(form: str) -> None:
    pool = Pool(POSITIONS, (2, 2), 24)
    expected = pool.attend()
    pool = Pool(POSITIONS, (2, 2), 24)
    pool.keys, pool.values = (
        x.transpose(0, 1).contiguous().transpose(0, 1) for x in (pool.keys, pool.values)
    )
    assert torch.equal(pool.attend(), expected)


def test_padding_tokens_change_nothing(form: str) -> None:
    expected = Pool([40], (2, 2), 16).attend()
    padded = Pool([40, 0, 0, 0], (2, 2), 16)
    padded.starts[1:] = padded.starts[1]
    out = padded.attend()
    assert torch.equal(out[:1], expected)
    assert out.isfinite().all()


def test_every_chunk_has_a_program() -> None:
    for programs in (1, 10, 64, 400, UNSPLIT_PROGRAMS, 5000):
        for span in (16, 32, 64, 1024, 131072):
            splits = plan_splits(programs, span)
            assert 1 <= splits <= max(1, span // CHUNK)
            assert splits == 1 or programs < UNSPLIT_PROGRAMS
