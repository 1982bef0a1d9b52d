"""The kernels of experts against the definition; in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernels import dispatch, moe_decode
from bifrons.blocks.kernels.codec import WeightTensors
from bifrons.blocks.kernels.moe_decode import fused_experts
from bifrons.blocks.kernels.moe_dispatch import loop_experts
from bifrons.blocks.model.moe import Gate, MoE, MoEConfig

pytestmark = pytest.mark.usefixtures("few_blocks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [(72, 40), (256, 160)]  # model width, width of an expert
if DEVICE == "cuda":  # the interpreter is slow
    SIZES += [(1280, 896), (2048, 1408), (2560, 1536)]
cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def normal(seed: int, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def expected_sum(x, gate_up, down, expert_ids, weights) -> torch.Tensor:
    out_NKD = loop_experts(x.double(), gate_up.double(), down.double(), expert_ids)
    return (out_NKD * weights.double()[..., None]).sum(1)


def assert_close(actual: torch.Tensor, exact: torch.Tensor) -> None:
    # Hidden states are rounded between the products: a sum is off by the dtype's step of its largest parts.
    assert torch.isfinite(actual).all()
    error = (actual.double() - exact).abs().max() / exact.abs().max()
    assert error < 4 * torch.finfo(actual.dtype).eps + 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (1, 6), (5, 2), (9, 6)])
def test_fused_experts_equal_the_loop(dtype, size, tokens, top_k):
    if size[0] > 72 and tokens > 5 and DEVICE == "cpu":
        pytest.skip("the interpreter is slow")
    width, inner = size
    x = normal(0, tokens, width, dtype=dtype)
    gate_up = normal(1, 7, 2 * inner, width, dtype=dtype, scale=width**-0.5)
    down = normal(2, 7, width, inner, dtype=dtype, scale=inner**-0.5)
    expert_ids = torch.stack([torch.randperm(7)[:top_k] for _ in range(tokens)]).to(DEVICE)
    weights = normal(3, tokens, top_k, dtype=torch.float32).abs()
    actual = fused_experts(x, WeightTensors(gate_up), WeightTensors(down), expert_ids, weights)
    assert actual.shape == x.shape
    assert actual.dtype == dtype
    assert_close(actual, expected_sum(x, gate_up, down, expert_ids, weights))


@pytest.mark.parametrize("tokens", [17, 40])
def test_an_expert_with_several_tiles_of_tokens(tokens):
    """One expert takes the first place of every token, and the second of some as well."""
    x = normal(0, tokens, 64, dtype=torch.float32)
    gate_up = normal(1, 5, 64, 64, dtype=torch.float32, scale=0.1)
    down = normal(2, 5, 64, 32, dtype=torch.float32, scale=0.1)
    expert_ids = torch.tensor([[3, 3 if token % 4 == 0 else token % 5] for token in range(tokens)]).to(DEVICE)
    weights = normal(3, tokens, 2, dtype=torch.float32)
    arguments = (x, WeightTensors(gate_up), WeightTensors(down), expert_ids, weights)
    actual = fused_experts(*arguments)
    assert_close(actual, expected_sum(x, gate_up, down, expert_ids, weights))
    assert torch.equal(actual, fused_experts(*arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(
    "config",
    [
        MoEConfig(12, 3, 8),
        MoEConfig(12, 6, 8, scale=1.5, normalize=True),
        MoEConfig(12, 1, 8, scale=1.5, normalize=True),
        MoEConfig(64, 6, 8, scoring="sigmoid"),
        MoEConfig(72, 6, 8, scoring="sigmoid", method="noaux_tc", normalize=True, scale=2.0),
    ],
    ids=["greedy", "scaled", "one", "sigmoid", "noaux"],
)
def test_router_kernels_equal_the_gate(config, tokens, dtype):
    gate = Gate(config, 96).to(DEVICE, dtype)
    gate.weight.copy_(normal(4, config.num_experts, 96, dtype=dtype, scale=0.2))
    if config.method == "noaux_tc":
        gate.e_score_correction_bias.data = normal(5, config.num_experts, dtype=torch.float32, scale=0.1)
    x = normal(6, tokens, 96, dtype=dtype)
    expert_ids, weights = gate.forward_kernels(x)
    expected_ids, expected_weights = gate(x)
    assert expert_ids.dtype == torch.int64
    assert torch.equal(expert_ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-6)


def test_ties_go_to_the_first_experts():
    gate = Gate(MoEConfig(12, 3, 8), 32).to(DEVICE)
    gate.weight.zero_()
    expert_ids, _ = gate.forward_kernels(normal(0, 2, 32, dtype=torch.float32))
    assert expert_ids.tolist() == [[0, 1, 2]] * 2


@cuda
def test_nan_scores_select_existing_experts():
    gate = Gate(MoEConfig(12, 3, 8), 32).to(DEVICE)
    expert_ids, _ = gate.forward_kernels(torch.full((2, 32), torch.nan, device=DEVICE))
    assert ((expert_ids >= 0) & (expert_ids < 12)).all()


@pytest.mark.parametrize("tokens", [1, 4, 17])
@pytest.mark.parametrize(
    ("config", "width"),
    [
        (MoEConfig(9, 3, 64, num_shared=2), 128),
        (MoEConfig(9, 3, 40, num_shared=2), 72),
        (MoEConfig(9, 3, 64), 128),
        (MoEConfig(8, 2, 32, 1, 0, 1, "sigmoid", "noaux_tc", num_groups=4, topk_group=2), 64),
    ],
    ids=["two shared", "narrow", "none shared", "groups"],
)
def test_a_layer_goes_through_the_kernels_and_keeps_its_outputs(config, width, tokens, monkeypatch):
    torch.manual_seed(2)
    layer = MoE(config, width).to(DEVICE)
    x = normal(7, 1, tokens, width, dtype=torch.float32)
    calls = []
    monkeypatch.setattr(moe_decode, "fused_experts", lambda *args: calls.append(1) or fused_experts(*args))
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: False)
    plain = layer(x)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    actual = layer(x)
    assert calls == [1]
    torch.testing.assert_close(actual, plain, rtol=1e-4, atol=1e-5)
    with torch.enable_grad():
        layer(x)
    layer(normal(8, 1, 129, width, dtype=torch.float32))  # 258 pairs or more
    assert calls == [1]


@cuda
@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize(
    ("width", "config"), [(1280, MoEConfig(64, 6, 896, 2)), (2048, MoEConfig(64, 6, 1408, 2))]
)
def test_a_captured_layer_of_released_size(tokens, width, config):
    torch.manual_seed(0)
    with torch.device(DEVICE):
        layer = MoE(config, width).bfloat16()
    x = normal(9, tokens, 1, width, dtype=torch.bfloat16)
    other = normal(10, tokens, 1, width, dtype=torch.bfloat16)
    for _ in range(2):
        layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
    for inputs in (x.clone(), other):
        x.copy_(inputs)
        graph.replay()
        expert_ids, weights = layer.gate(x.flatten(0, 1))
        routed = loop_experts(x.flatten(0, 1), layer.experts.gate_up, layer.experts.down, expert_ids)
        plain = (routed.float() * weights[..., None]).sum(1) + layer.shared_experts(x).flatten(0, 1).float()
        error = (out.flatten(0, 1).float() - plain).abs().max() / plain.abs().max()
        assert error < 0.02
        assert torch.equal(out, layer(x))
