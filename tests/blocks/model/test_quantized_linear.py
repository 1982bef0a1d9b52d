"""Quantized weights against the numbers they represent, and products with them against plain ones."""

import pytest
import torch
import torch.nn.functional as F
from bifrons.blocks.checkpoints.quantize import check_device
from bifrons.blocks.errors import OptionError
from bifrons.blocks.kernels.codec import group_size, unpack_int4
from bifrons.blocks.kernels.moe_dispatch import loop_active_experts, loop_experts, padded_bmm
from bifrons.blocks.kernels.quantized_linear import quantized_linear
from bifrons.blocks.model.quantized_weight import QuantizedWeight


def quantize(weight: torch.Tensor, kind: str) -> QuantizedWeight:
    quantized = QuantizedWeight(kind, tuple(weight.shape))
    for leaf, tensor in quantized.encode(weight).items():
        assert tensor.shape == getattr(quantized, leaf).shape
        assert tensor.dtype == getattr(quantized, leaf).dtype
        setattr(quantized, leaf, tensor)
    return quantized


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    normal = torch.randn(48, 192) * 0.02
    heavy = normal * torch.rand(48, 1).pow(4) * torch.where(torch.rand(48, 192) > 0.99, 30.0, 1.0)
    return {
        "normal": normal,
        "outliers": heavy,
        "shifted": normal + 0.1,
        "one sign": normal.abs() + 1e-6,
        "large": normal * 1e4,
        "bfloat16": normal.bfloat16(),
        "odd group": torch.randn(5, 20),
    }


@pytest.mark.parametrize("case", list(weights()))
def test_int8_is_off_by_half_a_step_at_most(case):
    weight = weights()[case]
    quantized = quantize(weight, "int8")
    step = weight.float().abs().amax(-1, keepdim=True) / 127
    error = (quantized.decode(torch.float32) - weight.float()).abs()
    assert (error <= step * (0.5 + 2**-8)).all()
    assert quantized.codes.abs().max() == 127


@pytest.mark.parametrize("case", list(weights()))
def test_fp8_is_off_by_half_a_step_at_most(case):
    """A step is 1/8 of the power of two below a number; for subnormals, of the smallest normal number."""
    weight = weights()[case]
    quantized = quantize(weight, "fp8")
    assert quantized.codes.float().abs().amax(-1).eq(448).all()
    decoded, scale = quantized.decode(torch.float32), quantized.scale.float()[:, None]
    codes = (weight.float() / scale).abs()
    step = 2 ** codes.log2().floor().clamp(-6, 8) / 8
    error = (decoded - weight.float()).abs()
    top = weight.float().abs().amax(-1, keepdim=True)
    assert (error <= step * scale / 2 * (1 + 1e-5) + top * 2**-9).all()
    inner = codes < 440
    assert (error <= step * scale / 2 * (1 + 1e-5))[inner].all()


def test_fp8_saturates_and_never_makes_nan():
    """Whichever way the scale is rounded, the largest weight of a row becomes the largest code."""
    weight = torch.linspace(0.5, 2.0, 999)[:, None] * torch.tensor([1.0, -1.0, 1e-9, 0.0])
    quantized = quantize(weight, "fp8")
    assert quantized.codes.float().abs().max() == 448 == torch.finfo(torch.float8_e4m3fn).max
    assert (quantized.scale.float() * 448 < weight[:, 0]).any()
    assert quantized.decode(torch.float32).isfinite().all()
    tiny = quantize(torch.tensor([[1e-39, 0.0], [0.0, 0.0]]), "fp8")
    assert tiny.decode(torch.float32).isfinite().all()


@pytest.mark.parametrize("case", list(weights()))
def test_int4_is_off_by_half_a_step_at_most(case):
    """Half a step, plus what rounding of scale and zero, by 2^-9 of themselves, moves a group's ends by."""
    weight = weights()[case]
    quantized = quantize(weight, "int4")
    assert quantized.codes.shape == (weight.shape[0], weight.shape[1] // 2)
    groups = weight.float().unflatten(-1, (-1, group_size(weight.shape[1])))
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    moved = 8 * step * 2**-9 + (groups.amin(-1) + 8 * step).abs() * 2**-9
    error = (quantized.decode(torch.float32).view_as(groups) - groups).abs().amax(-1)
    assert (error <= step / 2 * (1 + 2**-8) + moved + 1e-9).all()
    assert set(unpack_int4(quantized.codes).unique().tolist()) == set(range(16))


def test_zero_weights_and_constant_groups_are_exact():
    weight = torch.cat((torch.zeros(2, 64), torch.full((1, 64), -0.5)))
    assert quantize(weight, "int4").decode(torch.float32).equal(weight)
    assert quantize(weight, "int8").decode(torch.float32)[:2].equal(weight[:2])
    assert quantize(weight, "fp8").decode(torch.float32)[:2].equal(weight[:2])


def test_even_inputs_are_in_the_low_half_of_a_byte():
    weight = torch.arange(16.0).repeat(1, 4)
    assert unpack_int4(quantize(weight, "int4").codes)[0, :16].tolist() == list(range(16))
    assert quantize(weight, "int4").codes[0, 0] == 0x10


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_forward_equals_that_of_the_decoded_weight(kind, dtype):
    quantized = quantize(weights()["normal"], kind)
    x = torch.randn(2, 9, 192, dtype=dtype)
    exact = x.double() @ quantized.decode(torch.float32).double().T
    actual = quantized(x)
    assert actual.shape == (2, 9, 48)
    assert actual.dtype == dtype
    assert (actual - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.skipif(not hasattr(torch, "_weight_int8pack_mm"), reason="this torch has no int8 product")
@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("shape", [(64, 192), (576, 64), (896, 1280), (33, 64), (64, 96)])
def test_int8_product_equals_the_plain_one(rows, shape, monkeypatch):
    torch.manual_seed(rows)
    quantized = quantize(torch.randn(shape), "int8")
    x = torch.randn(rows, shape[1]).bfloat16()
    calls = []
    kernel = torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *args: calls.append(1) or kernel(*args))
    fast = quantized(x).float()
    # torch's product crashes at other sizes, so it must not be asked there.
    assert calls == ([1] if shape[0] % 64 == shape[1] % 64 == 0 else [])
    plain = F.linear(x.float(), quantized.decode(torch.float32))
    assert (fast - plain).abs().max() <= 2**-7 * plain.abs().max()
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    assert (quantized(x).float() - plain).abs().max() <= 2**-7 * plain.abs().max()


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_experts_equal_the_definition_on_decoded_stacks(kind, tokens):
    torch.manual_seed(1)
    gate_up, down = quantize(torch.randn(6, 32, 64) / 8, kind), quantize(torch.randn(6, 64, 16) / 4, kind)
    x, expert_ids = torch.randn(tokens, 64), torch.rand(tokens, 6).topk(3).indices
    expected = loop_experts(x, gate_up.decode(x.dtype), down.decode(x.dtype), expert_ids)
    for implementation in (loop_active_experts, padded_bmm):
        torch.testing.assert_close(implementation(x, gate_up.tensors, down.tensors, expert_ids), expected)
    alone = F.linear(x, gate_up.decode(x.dtype)[2])
    torch.testing.assert_close(quantized_linear(x, gate_up.tensors[2]), alone)


def test_casting_a_model_keeps_the_dtypes_of_codes_and_scales():
    quantized = quantize(torch.randn(4, 64), "int4").to(torch.float16).float()
    assert quantized.scale.dtype == quantized.zero.dtype == torch.bfloat16
    assert quantized.codes.dtype == torch.uint8
    quantized = quantize(torch.randn(4, 64), "fp8")
    moved = quantized.codes.clone()
    assert quantized.to(torch.bfloat16).half().double().codes.view(torch.uint8).equal(moved.view(torch.uint8))


def test_odd_inputs_are_refused():
    with pytest.raises(OptionError, match=r"int4 packs pairs of inputs.*\[3, 7\].*accepted: int8, fp8"):
        QuantizedWeight("int4", (3, 7))


def test_devices_without_float8_are_refused(monkeypatch):
    """Where torch can't make such a tensor."""

    def fail(*args, device, **options):
        raise TypeError("no such dtype there")

    monkeypatch.setattr(torch, "zeros", fail)
    apple = torch.device("mps")
    with pytest.raises(OptionError, match=r"fp8 weights can't be on mps.*no such.*accepted: int8, int4"):
        check_device("fp8", apple)
    check_device(None, apple)
    check_device("fp8", torch.device("cpu"))
