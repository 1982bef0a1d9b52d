"""Kernels on quantized weights against the decoded ones; in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.engine.cuda_graphs import CudaGraphCapturer
from bifrons.blocks.engine.fused_weights import joined_weight
from bifrons.blocks.kernels import dispatch, gemv, moe_decode
from bifrons.blocks.kernels.gemv import product
from bifrons.blocks.kernels.row_products import as_operand
from bifrons.blocks.model.moe import MoE, MoEConfig
from bifrons.blocks.model.moe_dispatch import blocked, looped
from bifrons.blocks.model.quantized_linear import QuantizedWeight, Stack, Weight
from torch import nn

FP8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="its kernels want Ada"
)
kinds = pytest.mark.parametrize("kind", ["int8", "int4", pytest.param("fp8", marks=FP8)])
pytestmark = pytest.mark.usefixtures("few_blocks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(40, 72), (48, 160), (33, 20), (64, 576), (40, 512), (24, 128)]  # outputs, inputs
if DEVICE == "cuda":  # the interpreter is slow
    SHAPES += [(4096, 4096), (11008, 4096), (4096, 11008)]


def stored(weight: torch.Tensor, kind: str) -> QuantizedWeight:
    quantized = QuantizedWeight(kind, tuple(weight.shape))
    for leaf, tensor in quantized.encode(weight).items():
        setattr(quantized, leaf, tensor)
    return quantized.to(DEVICE)


def let_kernels_serve(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "device_serves", lambda device: True)
    monkeypatch.setattr(dispatch, "reads_float8", lambda device: True)


def made(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 20])
def test_product_is_that_of_the_decoded_weight(rows, shape, dtype, kind):
    weight = stored(made(0, *shape) / shape[1] ** 0.5, kind)
    x = made(1, rows, shape[1]).to(DEVICE, dtype)
    exact = x.double() @ weight.decode(torch.float32).double().T
    found = product(x, Weight(weight.codes, weight.scale, weight.zero, kind))
    assert found.shape == exact.shape
    assert found.dtype == dtype
    # int4 weights are taken as they decode to the dtype of the rows.
    # Sums are in float32, and their error grows with the root of their length.
    room = 4 * torch.finfo(dtype).eps + shape[1] ** 0.5 * torch.finfo(torch.float32).eps
    assert (found.double() - exact).abs().max() <= room * exact.abs().max() + 1e-6


@kinds
def test_a_linear_layer_takes_the_kernel_for_few_rows(kind, monkeypatch):
    weight, x = stored(made(0, 40, 64) / 8, kind), made(1, 2, 3, 64).to(DEVICE)
    plain = x @ weight.decode(torch.float32).T
    calls = []
    monkeypatch.setattr(gemv, "product", lambda *args: calls.append(1) or product(*args))
    let_kernels_serve(monkeypatch)
    torch.testing.assert_close(weight(x), plain, rtol=1e-4, atol=1e-5)
    assert calls == [1]
    weight(made(1, 65, 64).to(DEVICE))
    assert calls == [1]


@kinds
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("width", "inner"), [(64, 32), (128, 64), (72, 40)])
def test_experts_are_those_of_the_decoded_stacks(width, inner, tokens, kind, monkeypatch):
    """With shared experts: of the same groups, so that they join, and (40, twice 40) of others."""
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
        quantized = stored(part.weight if isinstance(part, nn.Linear) else part, kind)
        delattr(owner, leaf)
        setattr(owner, leaf, quantized)
    layer = layer.to(DEVICE)
    x = made(2, 1, tokens, width).to(DEVICE)
    chosen, weights = layer.gate(x[0])
    experts, shared = layer.experts, layer.shared_experts
    routed = looped(x[0], experts.gate_up.decode(x.dtype), experts.down.decode(x.dtype), chosen)
    gate, up = shared.gate_proj(x[0]), shared.up_proj(x[0])
    expected = (routed * weights[..., None]).sum(1) + shared.down_proj(nn.functional.silu(gate) * up)
    joined = []
    weighted = moe_decode.weighted
    monkeypatch.setattr(
        moe_decode, "weighted", lambda *args: joined.append(len(args) == 6) or weighted(*args)
    )
    let_kernels_serve(monkeypatch)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-5)
    halves = {as_operand(experts.down).half, as_operand(shared.down_proj).half}
    assert joined == [len(halves) == 1]


@pytest.mark.parametrize("reads", [True, False])
def test_fp8_is_decoded_where_kernels_do_not_read_it(reads, monkeypatch):
    """A linear layer, and a whole mixture of which one weight is fp8."""
    let_kernels_serve(monkeypatch)
    monkeypatch.setattr(dispatch, "reads_float8", lambda device: reads)
    weight, x = stored(made(0, 40, 64) / 8, "fp8"), made(1, 3, 64).to(DEVICE)
    layer = MoE(MoEConfig(6, 3, 32), 64).to(DEVICE)
    assert layer._few(x)
    down = stored(layer.experts.down, "fp8")
    del layer.experts.down
    layer.experts.down = down
    assert dispatch.serves(x)
    assert dispatch.serves(x, weight.codes) == layer._few(x) == reads
    assert (joined_weight(weight) is not None) == reads
    calls = []
    monkeypatch.setattr(gemv, "product", lambda *args: calls.append(1) or x[:, :40])
    weight(x)
    assert bool(calls) == reads


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("tokens", [3, 100])
def test_plain_path_on_a_gpu_is_that_of_the_cpu(tokens, kind, monkeypatch):
    """Codes are gathered and decoded alike; nothing waits for the device, so that it can be captured."""
    monkeypatch.setattr(dispatch, "device_serves", lambda device: False)
    gate_up, down = stored(made(0, 6, 64, 64) / 8, kind), stored(made(1, 6, 64, 32) / 6, kind)
    x, chosen = made(2, tokens, 64), torch.stack([torch.randperm(6)[:3] for _ in range(tokens)])
    wanted = looped(x, *(weight.decode(x.dtype).cpu() for weight in (gate_up, down)), chosen)
    x, chosen = x.to(DEVICE), chosen.to(DEVICE)
    found = []

    def step() -> None:
        found[:] = [blocked(x, Stack(gate_up, x.dtype), Stack(down, x.dtype), chosen)]

    replay = CudaGraphCapturer(torch.device("cuda", torch.cuda.current_device()))(step)
    replay()
    torch.testing.assert_close(found[0].cpu(), wanted, rtol=1e-4, atol=1e-5)
    half = gate_up.decode(torch.bfloat16)
    assert torch.equal(half.cpu(), gate_up.cpu().decode(torch.bfloat16))
