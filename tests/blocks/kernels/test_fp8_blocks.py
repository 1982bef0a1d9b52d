"""Products with weights in fp8 blocks against those with the dequantized weights; kernels in Triton's
interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernels import codec, dispatch, gemv, moe_decode
from bifrons.blocks.kernels.codec import FP8_BLOCKS, WeightTensors, repeat_rows
from bifrons.blocks.kernels.moe_dispatch import loop_active_experts, loop_experts, padded_bmm
from bifrons.blocks.kernels.quantized_linear import quantized_linear
from bifrons.blocks.kernels.rmsnorm_swiglu import swiglu
from bifrons.blocks.model.moe import MoE, MoEConfig
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from torch import Tensor

CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.usefixtures("few_blocks"),
    pytest.mark.skipif(CUDA and torch.cuda.get_device_capability() < (8, 9), reason="kernels need Ada"),
]
DEVICE = "cuda" if CUDA else "cpu"
SHAPES = [(40, 72), (200, 300), (136, 640)]  # outputs, inputs


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def in_blocks(seed: int, *shape: int) -> tuple[WeightTensors, Tensor]:
    """A random weight, or a stack of them, with other scales in each block, and what it stands for."""
    codes = normal(seed, *shape).to(torch.float8_e4m3fn)
    *outer, outputs, inputs = shape
    blocks = (*outer, -(-outputs // 128), -(-inputs // 128))
    scale = (0.5 + normal(seed + 100, *blocks).abs()) / inputs**0.5
    whole = scale.repeat_interleave(128, -2).repeat_interleave(128, -1)[..., :outputs, :inputs]
    rows = torch.stack([repeat_rows(one, outputs) for one in scale.view(-1, *blocks[-2:])])
    return WeightTensors(codes, rows.view(*outer, outputs, -1), kind=FP8_BLOCKS), whole * codes.float()


def assert_close(actual: Tensor, exact: Tensor) -> None:
    tolerance = 4 * torch.finfo(actual.dtype).eps + 2e-6
    assert (actual.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_decoded(shape):
    weight, whole = in_blocks(0, *shape)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(codec.decode(weight, dtype), whole.to(dtype))
        if CUDA or dtype != torch.bfloat16:  # the interpreter's bfloat16 is cut off, not rounded
            assert torch.equal(gemv.decode(weight, dtype), whole.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 20, 40])
def test_linear(rows, shape, dtype):
    weight, whole = in_blocks(0, *shape)
    x = normal(1, rows, shape[1]).to(dtype)
    exact = x.double() @ whole.to(dtype).double().T
    assert_close(gemv.linear(x, weight), exact)
    assert_close(quantized_linear(x, weight), exact)
    gated = gemv.linear_swiglu(x, weight)
    torch.testing.assert_close(gated, swiglu(exact.to(dtype)), rtol=2e-2, atol=2e-3)


def test_linear_in_parts():
    weight, whole = in_blocks(0, 24, 1200)
    x = normal(1, 2, 1200)
    parts = gemv.linear_in_parts(x, weight)
    assert parts.ndim == 3
    assert_close(gemv.add_parts(parts, x.dtype), x.double() @ whole.double().T)


@pytest.mark.skipif(not CUDA, reason="in the interpreter, products depend on the tiles")
@pytest.mark.parametrize("shape", [(2112, 7168), (4096, 2048)])
def test_a_row_does_not_depend_on_the_others(shape):
    weight, x = in_blocks(0, *shape)[0], normal(1, 128, shape[1]).bfloat16()
    one_by_one = torch.cat([gemv.linear(row[None], weight) for row in x])
    for rows in (2, 8, 9, 17, 33, 65, 128):
        assert torch.equal(gemv.linear(x[:rows], weight), one_by_one[:rows])


@pytest.mark.parametrize("tokens", [1, 40])
def test_plain_experts(tokens):
    (gate_up, whole), (down, whole_down) = in_blocks(0, 5, 272, 160), in_blocks(1, 5, 160, 136)
    x, expert_ids = normal(2, tokens, 160), torch.stack([torch.randperm(5)[:3] for _ in range(tokens)])
    expected = loop_experts(x, whole, whole_down, expert_ids.to(DEVICE))
    for function in (loop_active_experts, padded_bmm):
        found = function(x, gate_up, down, expert_ids.to(DEVICE))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "inner", "dtype"), [(160, 136, torch.float32), (256, 256, torch.float16)])
def test_experts(width, inner, dtype, monkeypatch):
    """With shared ones of twice the width, whose 272 inputs take fewer blocks than twice 136."""
    tile, tokens = moe_decode.Tile(64, 256, 4, 2), 3
    if not CUDA:
        monkeypatch.setattr(moe_decode, "QUANTIZED_TILES", dict.fromkeys(moe_decode.TILES, (tile, tile)))
    torch.manual_seed(0)
    layer = MoE(MoEConfig(4, 2, inner, num_shared=2), width).to(DEVICE, dtype)
    expected = MoE(layer.gate.config, width).to(DEVICE, dtype)
    expected.load_state_dict(layer.state_dict())
    shapes = {"experts.gate_up": (4, 2 * inner, width), "experts.down": (4, width, inner)}
    shapes |= {f"shared_experts.{name}_proj": (2 * inner, width) for name in ("gate", "up")}
    shapes["shared_experts.down_proj"] = (width, 2 * inner)
    for seed, (name, shape) in enumerate(shapes.items()):
        tensors, whole = in_blocks(seed, *shape)
        parent, _, leaf = name.rpartition(".")
        expected.get_parameter(name if leaf in ("gate_up", "down") else f"{name}.weight").copy_(whole)
        weight = QuantizedWeight(FP8_BLOCKS, shape).to(DEVICE)
        assert weight.scale.shape == tensors.scale.shape
        weight.codes, weight.scale = tensors.codes, tensors.scale
        delattr(layer.get_submodule(parent), leaf)
        setattr(layer.get_submodule(parent), leaf, weight)
    x, fused, kernel = normal(9, 1, tokens, width).to(dtype), [], moe_decode.fused_experts
    monkeypatch.setattr(
        moe_decode, "fused_experts", lambda *args: fused.append(len(args) == 6) or kernel(*args)
    )
    plain = expected.experts(x[0], *expected.gate(x[0])) + expected.shared_experts(x[0])
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    monkeypatch.setattr(dispatch, "supports_float8", lambda device: True)
    scale = 1e-2 if dtype == torch.float16 else 1e-4
    torch.testing.assert_close(layer(x)[0], plain, rtol=scale, atol=scale)
    assert fused == [True]
