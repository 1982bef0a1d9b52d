"""Rotation by a kernel, in Triton's interpreter where there is no GPU; and the sort of pairs."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.graphs.cuda_graphs import CudaGraphCapturer
from bifrons.blocks.kernels import dispatch, prefill_fused
from bifrons.blocks.kernels.moe_dispatch import sort_by_expert
from bifrons.blocks.model.layers import deinterleave, rotary_table, rotate, rotate_pairs

pytestmark = pytest.mark.usefixtures("few_blocks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTH = 1152 if DEVICE == "cuda" else 5  # the interpreter is slow
cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def made(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def let_kernels_serve(monkeypatch: pytest.MonkeyPatch, serve: bool = True) -> None:
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: serve)


def heads(layout: str, count: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """`[2, H, T, K]`."""
    if layout == "contiguous":
        return made(0, 2, count, LENGTH, dim, dtype=dtype)
    if layout == "transposed":
        return made(0, 2, LENGTH, count, dim, dtype=dtype).transpose(1, 2)
    return made(0, 2, LENGTH, count, dim + 24, dtype=dtype).transpose(1, 2)[..., 24:]  # as queries are cut


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    if found.dtype == torch.bfloat16 and DEVICE == "cpu":  # the interpreter cuts off where the device rounds
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0)
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "cut"])
@pytest.mark.parametrize(("count", "dim"), [(1, 64), (3, 24), (10, 128), (4, 80)])
def test_rotation_has_the_bits_of_the_plain_one(count, dim, layout, dtype, monkeypatch):
    x = heads(layout, count, dim, dtype)
    positions = torch.stack([torch.arange(LENGTH) + first for first in (0, 700)]).to(DEVICE)
    calls, kernel = [], prefill_fused.rotate
    for table in (rotary_table(positions, dim, 10000.0), rotary_table(positions[1:], dim, 10000.0)):
        let_kernels_serve(monkeypatch, False)
        wanted = rotate(x, table), rotate(deinterleave(x), table)
        let_kernels_serve(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(prefill_fused, "rotate", lambda *a, **k: calls.append(1) or kernel(*a, **k))
            found = rotate(x, table), rotate_pairs(x, table)
        assert calls == [1, 1]
        calls.clear()
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
        if layout != "cut":
            assert found[0].stride() == x.stride()


def test_autocast_takes_the_plain_rotation(monkeypatch):
    let_kernels_serve(monkeypatch)
    monkeypatch.setattr(prefill_fused, "rotate", lambda *args, **options: pytest.fail("a kernel ran"))
    x = made(0, 1, 2, 4, 16)
    table = rotary_table(torch.arange(4, device=DEVICE)[None], 16, 10000.0)
    with torch.autocast(DEVICE, torch.bfloat16):
        rotate(x, table)
        rotate_pairs(x, table)


@pytest.mark.parametrize("function", [rotate, rotate_pairs])
def test_kernels_of_the_rotation_have_the_gradient_of_the_plain_one(function, monkeypatch):
    x, grad = made(0, 1, 2, 4, 16).float(), made(1, 1, 2, 4, 16).float()
    table = rotary_table(torch.arange(4, device=DEVICE)[None], 16, 10000.0)

    def gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            function(leaf, table).backward(grad)
        assert leaf.grad is not None
        return leaf.grad

    wanted, calls, kernel = gradient(), [], prefill_fused.rotate
    let_kernels_serve(monkeypatch)
    monkeypatch.setattr(prefill_fused, "rotate", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    assert torch.allclose(gradient(), wanted, rtol=1e-5, atol=1e-6)
    assert calls == [1]


def choices(tokens: int, top_k: int, experts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]
    return torch.stack(rows).to(DEVICE)


@pytest.mark.parametrize("experts", [9, 40_000])
def test_pairs_are_sorted_as_whole_numbers_are(experts):
    chosen = choices(60, 6, experts)
    chosen[:, 0] = 8
    order, sorted_numbers, counts = sort_by_expert(chosen, experts)
    wanted, places = chosen.flatten().sort(stable=True)
    assert torch.equal(order, places)
    assert torch.equal(sorted_numbers, wanted)
    assert sorted_numbers.dtype == torch.long
    assert torch.equal(counts, torch.bincount(chosen.flatten(), minlength=experts))


@cuda
def test_a_rotation_is_captured():
    """Nothing waits for the device."""
    x, table = made(0, 1, 2, LENGTH, 64), rotary_table(torch.arange(LENGTH, device=DEVICE)[None], 64, 10000.0)
    found = []

    def step() -> None:
        found[:] = [rotate(x, table), rotate_pairs(x, table)]

    replay = CudaGraphCapturer(torch.device("cuda", torch.cuda.current_device()))(step)
    replay()
    captured = list(found)
    step()
    assert all(torch.equal(one, other) for one, other in zip(found, captured, strict=True))
