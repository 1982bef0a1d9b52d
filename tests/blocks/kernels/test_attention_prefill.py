"""The attention kernels for prompts over the pooled cache; in Triton's interpreter where there is no GPU.

N tokens, C columns of the fused product, H heads, J key/value heads, K dimensions of a head, S slots of the
pool.
"""

import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from bifrons.blocks.kernels.attention_prefill import PREFILL_BLOCK, attend
from bifrons.blocks.model.layers import rotary_table, rotate
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter truncates bfloat16 where the device rounds.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 3e-3}
ON_CUDA = pytest.mark.skipif(DEVICE.type != "cuda", reason="real sizes take too long in the interpreter")
SLOTS, POSITIONS = 2048, 1536


class Chunk(NamedTuple):
    """Tokens `first` to `stop` of prompt `prompt`, whose slots begin at `start`."""

    prompt: int
    start: int
    first: int
    stop: int


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


class Pool:
    """A pool whose unwritten slots are NaN; its last slot is scratch."""

    def __init__(self, heads: tuple[int, int], dim: int, dtype: torch.dtype = torch.float32) -> None:
        self.heads, self.kv_heads = heads
        self.dim, self.dtype = dim, dtype
        shape = (self.kv_heads, SLOTS, dim)
        self.keys, self.values = (torch.full(shape, torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
        cos, sin = rotary_table(torch.arange(POSITIONS, device=DEVICE)[None], dim, 1e4)
        self.rotary = cos[0], sin[0]

    def prompt(self, index: int) -> Tensor:
        """`[POSITIONS, C]`: the fused product of a long prompt."""
        width = (self.heads + 2 * self.kv_heads) * self.dim
        return normal(POSITIONS, width, dtype=self.dtype, seed=index)

    def attend(self, *chunks: Chunk) -> list[Tensor]:
        """Outputs of chunks that are computed together; each is padded to whole blocks."""
        qkv, positions, starts = [], [], []
        for prompt, start, first, stop in chunks:
            missing = (first - stop) % PREFILL_BLOCK
            qkv.append(F.pad(self.prompt(prompt)[first:stop], (0, 0, 0, missing), value=3.0))
            positions += [*range(first, stop), *[0] * missing]
            starts += [start] * (stop - first) + [SLOTS - 1] * missing
        places = torch.tensor([positions, starts], device=DEVICE)
        out = attend(torch.cat(qkv), self.rotary, *places, self.keys, self.values, self.heads)
        assert out.isfinite().all()
        parts = out.split([len(part) for part in qkv])
        return [part[: chunk.stop - chunk.first] for part, chunk in zip(parts, chunks, strict=True)]

    def plain(self, prompt: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Output, keys and values of a whole prompt by the plain functions."""
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        qkv_1HTK = self.prompt(prompt)[None, :length].unflatten(2, (-1, self.dim)).transpose(1, 2)
        q, k, v = qkv_1HTK.split(sizes, dim=1)
        table = rotary_table(torch.arange(length, device=DEVICE)[None], self.dim, 1e4)
        q, k = rotate(q, table), rotate(k, table)
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1), k[0], v[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [((4, 2), 24), ((2, 2), 128), ((1, 1), 8)])
def test_equals_the_plain_attention(dtype: torch.dtype, heads: tuple[int, int], dim: int) -> None:
    pool, tolerance = Pool(heads, dim, dtype), TOLERANCE[dtype]
    chunks = Chunk(0, 100, 0, 70), Chunk(1, 400, 0, 20), Chunk(2, 300, 0, 32)
    for chunk, out in zip(chunks, pool.attend(*chunks), strict=True):
        expected, keys, values = pool.plain(chunk.prompt, chunk.stop)
        torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
        slots = slice(chunk.start, chunk.start + chunk.stop)
        torch.testing.assert_close(pool.keys[:, slots], keys, atol=tolerance, rtol=tolerance)
        assert torch.equal(pool.values[:, slots], values)
        assert pool.keys[:, slots.stop].isnan().all()


@pytest.mark.parametrize(
    ("heads", "dim", "dtype", "cuts"),
    [
        ((2, 1), 32, torch.float32, (64, 96)),
        ((1, 1), 16, torch.float32, (20, 21, 90, 100)),
        pytest.param((16, 16), 128, torch.bfloat16, (512, 1024, 1500), marks=ON_CUDA),
        pytest.param((32, 8), 128, torch.float16, (1, 33, 700, 1499, 1500), marks=ON_CUDA),
    ],
)
def test_chunks_of_a_prompt_make_the_whole(
    heads: tuple[int, int], dim: int, dtype: torch.dtype, cuts: tuple[int, ...]
) -> None:
    whole, pool = Pool(heads, dim, dtype), Pool(heads, dim, dtype)
    (expected,) = whole.attend(Chunk(0, 5, 0, cuts[-1]))
    parts = [pool.attend(Chunk(0, 77, *ends))[0] for ends in itertools.pairwise((0, *cuts))]
    assert torch.equal(torch.cat(parts), expected)
    assert torch.equal(pool.keys[:, 77 : 77 + cuts[-1]], whole.keys[:, 5 : 5 + cuts[-1]])


def test_prompts_do_not_depend_on_each_other() -> None:
    chunks = Chunk(0, 0, 0, 40), Chunk(1, 100, 0, 20), Chunk(2, 200, 0, 33), Chunk(3, 260, 0, 1)
    alone = [Pool((2, 2), 16).attend(chunk._replace(start=3))[0] for chunk in chunks]
    for order in ((0, 1, 2, 3), (3, 0, 2, 1)):
        outs = Pool((2, 2), 16).attend(*(chunks[i] for i in order))
        for i, out in zip(order, outs, strict=True):
            assert torch.equal(out, alone[i])


def test_blocks_of_padding_change_nothing() -> None:
    (expected,) = Pool((2, 2), 16).attend(Chunk(0, 0, 0, 40))
    out, *_ = Pool((2, 2), 16).attend(Chunk(0, 9, 0, 40), *[Chunk(1, SLOTS - 1, 0, 1)] * 2)
    assert torch.equal(out, expected)


def test_strides_of_the_pool_do_not_matter() -> None:
    (expected,) = Pool((2, 2), 24).attend(Chunk(0, 0, 0, 40))
    pool = Pool((2, 2), 24)
    shape = (SLOTS, 2, 24)
    pool.keys, pool.values = (torch.full(shape, torch.nan, device=DEVICE).transpose(0, 1) for _ in range(2))
    assert torch.equal(pool.attend(Chunk(0, 50, 0, 40))[0], expected)
