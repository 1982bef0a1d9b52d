"""Attention of windows has the bits of attention of single tokens; in Triton's interpreter where there is no
GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernels import attention_decode, attention_window
from bifrons.blocks.model.layers import rotary_table
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CUDA = pytest.mark.skipif(DEVICE.type != "cuda", reason="real sizes take too long in the interpreter")
CASES = [
    (torch.float32, (2, 2), 32, (0, 5, 30), 4, 64),
    (torch.float32, (4, 2), 24, (14, 33), 7, 64),
    *(
        pytest.param(dtype, heads, dim, (0, 1, 31, 300, 607), width, 1024, marks=ON_CUDA)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for heads, dim in (((16, 16), 128), ((32, 8), 128), ((6, 6), 64))
        for width in (4, 16)
    ),
]


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def ints(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, device=DEVICE)


@pytest.mark.parametrize("group", ["whole", "groups"])
@pytest.mark.parametrize(("dtype", "heads", "dim", "lengths", "width", "span"), CASES)
def test_windows_have_the_bits_of_single_tokens(
    dtype: torch.dtype,
    heads: tuple[int, int],
    dim: int,
    lengths: tuple[int, ...],
    width: int,
    span: int,
    group: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each sequence has so many slots and a window after them; the last window ends with tokens of none."""
    if group == "groups":
        monkeypatch.setattr(attention_window, "_MAX_PARTS", 1)
    scratch, slots = 2, 2 + sum(lengths) + len(lengths) * width
    keys, values = normal(2, heads[1], slots, dim, dtype=dtype, seed=1)
    keys[:, 0] = values[:, 0] = 0
    qkv = normal(len(lengths) * width, (heads[0] + 2 * heads[1]) * dim, dtype=dtype, seed=2)
    cos, sin = rotary_table(torch.arange(span, device=DEVICE)[None], dim, 1e4)
    rotary = cos[0], sin[0]
    starts, positions, start = [], [], scratch
    for length in lengths:
        starts += [start] * width
        positions += range(length, length + width)
        start += length + width
    starts[-1], positions[-1] = 0, 0
    expected, single_keys, single_values = [], keys.clone(), values.clone()
    arrivals = torch.zeros(heads[0], dtype=torch.int32, device=DEVICE)
    for token in range(len(qkv) - 1):
        place = ints(positions[token : token + 1]), ints(starts[token : token + 1])
        one = qkv[token : token + 1], rotary, *place, single_keys, single_values
        expected.append(attention_decode.attend(*one, heads[0], arrivals, span))
    # What earlier windows left behind counts as empty, whatever it is.
    for start, position in zip(starts[:-1], positions[:-1], strict=True):
        keys[:, start + position] = values[:, start + position] = torch.nan
    out = attention_window.attend(
        qkv, rotary, ints(positions), ints(starts), keys, values, heads[0], width, span
    )
    assert torch.equal(out[:-1], torch.cat(expected))
    assert torch.equal(keys[:, 1:], single_keys[:, 1:])
    assert torch.equal(values[:, 1:], single_values[:, 1:])
