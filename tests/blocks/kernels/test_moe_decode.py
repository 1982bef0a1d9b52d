"""The experts' kernels against the definition; in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernels import dispatch, moe_decode
from bifrons.blocks.kernels.moe_decode import weighted
from bifrons.blocks.kernels.moe_router import choose
from bifrons.blocks.kernels.row_products import as_operand
from bifrons.blocks.model.moe import Gate, MoE, MoEConfig
from bifrons.blocks.model.moe_dispatch import looped

pytestmark = pytest.mark.usefixtures("few_blocks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [(72, 40), (256, 160)]  # model width, width of an expert
if DEVICE == "cuda":  # the interpreter is slow
    SIZES += [(1280, 896), (2048, 1408), (2560, 1536)]
cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def made(seed: int, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def expected_sum(x, gate_up, down, chosen, weights) -> torch.Tensor:
    out_NKD = looped(x.double(), gate_up.double(), down.double(), chosen)
    return (out_NKD * weights.double()[..., None]).sum(1)


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    # What is kept between the products is rounded, so a sum is off by the dtype's step of its largest parts.
    assert torch.isfinite(found).all()
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert error < 4 * torch.finfo(found.dtype).eps + 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (1, 6), (5, 2), (9, 6)])
def test_weighted_sum_is_that_of_the_loop(dtype, size, tokens, top_k):
    if size[0] > 72 and tokens > 5 and DEVICE == "cpu":
        pytest.skip("the interpreter is slow")
    width, inner = size
    x = made(0, tokens, width, dtype=dtype)
    gate_up = made(1, 7, 2 * inner, width, dtype=dtype, scale=width**-0.5)
    down = made(2, 7, width, inner, dtype=dtype, scale=inner**-0.5)
    chosen = torch.stack([torch.randperm(7)[:top_k] for _ in range(tokens)]).to(DEVICE)
    weights = made(3, tokens, top_k, dtype=torch.float32).abs()
    found = weighted(x, as_operand(gate_up), as_operand(down), chosen, weights)
    assert found.shape == x.shape
    assert found.dtype == dtype
    close(found, expected_sum(x, gate_up, down, chosen, weights))


@pytest.mark.parametrize("tokens", [17, 40])
def test_many_tokens_share_an_expert(tokens):
    """One expert takes all first choices (several tiles of its pairs), and some of the second ones again."""
    x, gate_up = made(0, tokens, 64, dtype=torch.float32), made(1, 5, 64, 64, dtype=torch.float32, scale=0.1)
    down = made(2, 5, 64, 32, dtype=torch.float32, scale=0.1)
    chosen = torch.tensor([[3, 3 if token % 4 == 0 else token % 5] for token in range(tokens)]).to(DEVICE)
    weights = made(3, tokens, 2, dtype=torch.float32)
    found = weighted(x, as_operand(gate_up), as_operand(down), chosen, weights)
    close(found, expected_sum(x, gate_up, down, chosen, weights))
    assert torch.equal(found, weighted(x, as_operand(gate_up), as_operand(down), chosen, weights))


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
def test_choice_is_the_gates(config, tokens, dtype):
    gate = Gate(config, 96).to(DEVICE, dtype)
    gate.weight.copy_(made(4, config.num_experts, 96, dtype=dtype, scale=0.2))
    if config.method == "noaux_tc":
        gate.e_score_correction_bias.data = made(5, config.num_experts, dtype=torch.float32, scale=0.1)
    x = made(6, tokens, 96, dtype=dtype)
    chosen, weights = choose(gate, x)
    expected, expected_weights = gate(x)
    assert chosen.dtype == torch.int64
    assert torch.equal(chosen, expected)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-6)


def test_equal_scores_go_to_the_first():
    gate = Gate(MoEConfig(12, 3, 8), 32).to(DEVICE)
    gate.weight.zero_()
    assert choose(gate, made(0, 2, 32, dtype=torch.float32))[0].tolist() == [[0, 1, 2]] * 2


@cuda
def test_scores_that_are_not_numbers_stay_inside_the_tables():
    gate = Gate(MoEConfig(12, 3, 8), 32).to(DEVICE)
    chosen, _ = choose(gate, torch.full((2, 32), torch.nan, device=DEVICE))
    assert ((chosen >= 0) & (chosen < 12)).all()


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
def test_a_layer_takes_the_kernels_and_keeps_its_numbers(config, width, tokens, monkeypatch):
    torch.manual_seed(2)
    layer = MoE(config, width).to(DEVICE)
    x = made(7, 1, tokens, width, dtype=torch.float32)
    calls = []
    kernels = moe_decode.mixture
    monkeypatch.setattr(moe_decode, "mixture", lambda *args: calls.append(1) or kernels(*args))
    monkeypatch.setattr(dispatch, "device_serves", lambda device: False)
    plain = layer(x)
    monkeypatch.setattr(dispatch, "device_serves", lambda device: True)
    found = layer(x)
    assert calls == [1]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    with torch.enable_grad():
        layer(x)
    layer(made(8, 1, 129, width, dtype=torch.float32))  # 258 pairs or more
    assert calls == [1]


@cuda
@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize(
    ("width", "config"), [(1280, MoEConfig(64, 6, 896, 2)), (2048, MoEConfig(64, 6, 1408, 2))]
)
def test_a_captured_layer_of_released_size_repeats_itself(tokens, width, config):
    torch.manual_seed(0)
    with torch.device(DEVICE):
        layer = MoE(config, width).bfloat16()
    x = made(9, tokens, 1, width, dtype=torch.bfloat16)
    other = made(10, tokens, 1, width, dtype=torch.bfloat16)
    for _ in range(2):
        layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
    for given in (x.clone(), other):
        x.copy_(given)
        graph.replay()
        chosen, weights = layer.gate(x.flatten(0, 1))
        routed = looped(x.flatten(0, 1), layer.experts.gate_up, layer.experts.down, chosen)
        plain = (routed.float() * weights[..., None]).sum(1) + layer.shared_experts(x).flatten(0, 1).float()
        error = (out.flatten(0, 1).float() - plain).abs().max() / plain.abs().max()
        assert error < 0.02
        assert torch.equal(out, layer(x))
