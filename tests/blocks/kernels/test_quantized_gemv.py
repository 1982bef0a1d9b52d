"""Kernels on quantized weights against the decoded ones; in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.graphs.cuda_graphs import CudaGraphCapturer
from bifrons.blocks.graphs.fused_weights import fused_weight
from bifrons.blocks.kernels import dispatch, gemv, moe_decode
from bifrons.blocks.kernels.moe_dispatch import loop_experts, padded_bmm
from bifrons.blocks.kernels.rmsnorm_swiglu import swiglu
from bifrons.blocks.model.moe import MoE, MoEConfig
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from torch import nn

FP8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="its kernels need Ada"
)
kinds = pytest.mark.parametrize("kind", ["int8", "int4", pytest.param("fp8", marks=FP8)])
pytestmark = pytest.mark.usefixtures("few_blocks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(40, 72), (48, 160), (33, 20), (64, 576), (40, 512), (24, 128)]  # outputs, inputs
DTYPES = [torch.float32, torch.float16]
if DEVICE == "cuda":  # the interpreter is slow, and truncates to bfloat16
    DTYPES.append(torch.bfloat16)
    SHAPES += [(4096, 4096), (11008, 4096), (4096, 11008)]


def quantized(weight: torch.Tensor, kind: str) -> QuantizedWeight:
    module = QuantizedWeight(kind, tuple(weight.shape))
    for name, tensor in module.encode(weight).items():
        setattr(module, name, tensor)
    return module.to(DEVICE)


def let_kernels_serve(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    monkeypatch.setattr(dispatch, "supports_float8", lambda device: True)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 20, 40, 130])
def test_linear_equals_that_of_the_decoded_weight(rows, shape, dtype, kind):
    weight = quantized(normal(0, *shape) / shape[1] ** 0.5, kind)
    x = normal(1, rows, shape[1]).to(DEVICE, dtype)
    exact = x.double() @ weight.decode(dtype).double().T
    actual = gemv.linear(x, weight.tensors)
    assert actual.shape == exact.shape
    assert actual.dtype == dtype
    # Sums are in float32, and their error grows with the root of their length.
    tolerance = 4 * torch.finfo(dtype).eps + shape[1] ** 0.5 * torch.finfo(torch.float32).eps
    assert (actual.double() - exact).abs().max() <= tolerance * exact.abs().max() + 1e-6


@kinds
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[:5])
def test_the_decoding_kernel_rounds_as_the_definition(shape, dtype, kind):
    weight = quantized(normal(0, *shape), kind)
    assert torch.equal(gemv.decode(weight.tensors, dtype), weight.decode(dtype))


@pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter, products depend on the tiles")
@kinds
@pytest.mark.parametrize("shape", [(6144, 2048), (2 * 11008, 4096)])
def test_a_row_does_not_depend_on_the_others(shape, kind):
    """Nor on the tile, nor on whether the two halves are gates and ups."""
    weight, x = quantized(normal(0, *shape) / 64, kind), normal(1, 128, shape[1]).to(DEVICE, torch.bfloat16)
    one_by_one = torch.cat([gemv.linear(row[None], weight.tensors) for row in x])
    gated = torch.cat([gemv.linear_swiglu(row[None], weight.tensors) for row in x])
    assert torch.equal(gated, swiglu(one_by_one))
    for rows in (2, 8, 9, 16, 17, 32, 33, 64, 65, 128):
        assert torch.equal(gemv.linear(x[:rows], weight.tensors), one_by_one[:rows])
        assert torch.equal(gemv.linear_swiglu(x[:rows], weight.tensors), gated[:rows])


@kinds
def test_a_linear_layer_takes_the_kernels(kind, monkeypatch):
    weight, x = quantized(normal(0, 40, 64) / 8, kind), normal(1, 2, 3, 64).to(DEVICE)
    plain = x @ weight.decode(torch.float32).T
    calls, kernel = [], gemv.linear
    monkeypatch.setattr(gemv, "linear", lambda *args: calls.append(1) or kernel(*args))
    let_kernels_serve(monkeypatch)
    torch.testing.assert_close(weight(x), plain, rtol=1e-4, atol=1e-5)
    assert calls == [1]


@kinds
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("width", "inner"), [(64, 32), (128, 64), (72, 40)])
def test_experts_equal_those_of_the_decoded_stacks(width, inner, tokens, kind, monkeypatch):
    """With shared experts: of the same groups, so that they are fused, and (40, twice 40) of others."""
    torch.manual_seed(0)
    layer = MoE(MoEConfig(6, 3, inner, num_shared=2), width)
    for path in (
        "experts.gate_up",
        "experts.down",
        *(f"shared_experts.{n}_proj" for n in ("gate", "up", "down")),
    ):
        parent, _, leaf = path.rpartition(".")
        owner = layer.get_submodule(parent)
        part = getattr(owner, leaf)
        replacement = quantized(part.weight if isinstance(part, nn.Linear) else part, kind)
        delattr(owner, leaf)
        setattr(owner, leaf, replacement)
    layer = layer.to(DEVICE)
    x = normal(2, 1, tokens, width).to(DEVICE)
    expert_ids, weights = layer.gate(x[0])
    experts, shared = layer.experts, layer.shared_experts
    routed = loop_experts(x[0], experts.gate_up.decode(x.dtype), experts.down.decode(x.dtype), expert_ids)
    gate, up = shared.gate_proj(x[0]), shared.up_proj(x[0])
    expected = (routed * weights[..., None]).sum(1) + shared.down_proj(nn.functional.silu(gate) * up)
    fused, kernel = [], moe_decode.fused_experts
    monkeypatch.setattr(
        moe_decode, "fused_experts", lambda *args: fused.append(len(args) == 6) or kernel(*args)
    )
    let_kernels_serve(monkeypatch)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-5)
    group_sizes = {experts.down.tensors.group_columns, shared.down_proj.tensors.group_columns}
    assert fused == [len(group_sizes) == 1]


@pytest.mark.parametrize("reads", [True, False])
def test_fp8_is_decoded_where_kernels_do_not_read_it(reads, monkeypatch):
    """A linear layer, and a whole mixture of which one weight is fp8."""
    let_kernels_serve(monkeypatch)
    monkeypatch.setattr(dispatch, "supports_float8", lambda device: reads)
    weight, x = quantized(normal(0, 40, 64) / 8, "fp8"), normal(1, 3, 64).to(DEVICE)
    layer = MoE(MoEConfig(6, 3, 32), 64).to(DEVICE)
    calls = []
    monkeypatch.setattr(moe_decode, "fused_experts", lambda x, *args: calls.append("kernels") or x)
    monkeypatch.setattr(layer.experts, "forward", lambda x, *routing: calls.append("plain") or x)
    layer(x)
    down = quantized(layer.experts.down, "fp8")
    del layer.experts.down
    layer.experts.down = down
    layer(x)
    assert calls == ["kernels", "kernels" if reads else "plain"]
    assert dispatch.can_use_kernels(x)
    assert dispatch.can_use_kernels(x, weight.codes) == reads
    assert (fused_weight(weight) is not None) == reads
    monkeypatch.setattr(gemv, "linear", lambda *args: calls.append("linear") or x[:, :40])
    weight(x)
    assert ("linear" in calls) == reads


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("tokens", [3, 100])
def test_the_plain_path_on_a_gpu_equals_that_on_the_cpu(tokens, kind, monkeypatch):
    """Codes are gathered and decoded alike; nothing waits for the device, so that it can be captured."""
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: False)
    gate_up, down = quantized(normal(0, 6, 64, 64) / 8, kind), quantized(normal(1, 6, 64, 32) / 6, kind)
    x, expert_ids = normal(2, tokens, 64), torch.stack([torch.randperm(6)[:3] for _ in range(tokens)])
    expected = loop_experts(x, *(weight.decode(x.dtype).cpu() for weight in (gate_up, down)), expert_ids)
    x, expert_ids = x.to(DEVICE), expert_ids.to(DEVICE)
    outputs = []

    def step() -> None:
        outputs[:] = [padded_bmm(x, gate_up.tensors, down.tensors, expert_ids)]

    replay = CudaGraphCapturer(torch.device("cuda", torch.cuda.current_device()))(step)
    replay()
    torch.testing.assert_close(outputs[0].cpu(), expected, rtol=1e-4, atol=1e-5)
    half = gate_up.decode(torch.bfloat16)
    assert torch.equal(half.cpu(), gate_up.cpu().decode(torch.bfloat16))
