"""The kernels of experts against the definition; in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernels import dispatch, moe_decode
from bifrons.blocks.kernels.codec import WeightTensors, encode
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


@pytest.mark.parametrize("tokens", [17, 70])
def test_an_expert_with_several_tiles_of_tokens(tokens):
    """One expert takes the first place of every token, and the second of some as well; one has none."""
    x = normal(0, tokens, 64, dtype=torch.float32)
    gate_up = normal(1, 6, 64, 64, dtype=torch.float32, scale=0.1)
    down = normal(2, 6, 64, 32, dtype=torch.float32, scale=0.1)
    expert_ids = torch.tensor([[3, 3 if token % 4 == 0 else token % 5] for token in range(tokens)]).to(DEVICE)
    weights = normal(3, tokens, 2, dtype=torch.float32)
    arguments = (x, WeightTensors(gate_up), WeightTensors(down), expert_ids, weights)
    actual = fused_experts(*arguments)
    assert_close(actual, expected_sum(x, gate_up, down, expert_ids, weights))
    assert torch.equal(actual, fused_experts(*arguments))


@pytest.mark.parametrize(("tokens", "top_k", "rows"), [(1, 1, 16), (40, 6, 16), (300, 3, 32), (999, 6, 64)])
def test_pairs_are_sorted_into_blocks_of_one_expert(tokens, top_k, rows):
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(tokens, 20, generator=generator) + torch.eye(20)[7]  # a favourite
    expert_ids = scores.topk(top_k).indices.to(DEVICE)
    experts, pairs, *_ = moe_decode._sort_pairs(expert_ids, 21, rows)
    wanted = []
    for expert in range(21):
        own = (expert_ids.flatten() == expert).nonzero()[:, 0].tolist()
        wanted += [(expert, own[first : first + rows]) for first in range(0, len(own), rows)]
    unused = len(experts) - len(wanted)
    assert unused >= 0
    assert experts.tolist() == [expert for expert, _ in wanted] + [-1] * unused
    padded = [own + [-1] * (rows - len(own)) for _, own in wanted]
    assert pairs[: len(wanted)].tolist() == padded


def stored(kind: str, seed: int, *shape: int, dtype: torch.dtype) -> WeightTensors:
    """A random weight, or a stack of them, plain or encoded."""
    weight = normal(seed, *shape, dtype=dtype, scale=shape[-1] ** -0.5)
    return WeightTensors(weight) if kind == "plain" else encode(weight, kind)


@pytest.mark.parametrize("kind", ["plain", "int8", "int4", "fp8"])
def test_a_token_has_the_same_bits_in_any_company(kind, monkeypatch):
    """Through blocks of one pair, blocks that look for their pairs, and sorted ones of all sizes."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    gate_up, down = stored(kind, 0, 6, 128, 128, dtype=dtype), stored(kind, 1, 6, 128, 64, dtype=dtype)
    shared = tuple(stored(kind, seed, 128, 128, dtype=dtype) for seed in (2, 3, 4))
    x, weights = normal(5, 43, 128, dtype=dtype), normal(6, 43, 3, dtype=torch.float32).abs()
    expert_ids = torch.stack([torch.randperm(6)[:3] for _ in range(43)]).to(DEVICE)
    blocks, kernel = [], moe_decode._make_blocks
    monkeypatch.setattr(moe_decode, "_SCANNED_PAIRS", 16)
    monkeypatch.setattr(moe_decode, "_make_blocks", lambda *args: blocks.append(kernel(*args)) or blocks[-1])
    together = fused_experts(x, gate_up, down, expert_ids, weights, shared)
    for part in (slice(2, 3), slice(1, 6), slice(0, 16), slice(1, 37)):
        found = fused_experts(x[part], gate_up, down, expert_ids[part], weights[part], shared)
        if DEVICE == "cuda":
            assert torch.equal(found, together[part])
        else:  # the interpreter's products are the library's, whose sums depend on the number of rows
            torch.testing.assert_close(found, together[part], rtol=1e-5, atol=1e-5)
    assert [block.rows for block in blocks] == [64 if DEVICE == "cuda" else 32, 8, 16, 16, 32]
    assert [block.scanned > 0 for block in blocks] == [False, True, True, False, False]


@pytest.mark.parametrize("dtype", DTYPES[1:] if DEVICE == "cuda" else DTYPES[2:])
def test_numbers_are_rounded_where_the_plain_functions_round(dtype):
    """Sums of gates and ups are exact here. What is left to differ are an exponential's last bits and the
    order of sums, which rarely show in half precision. (The interpreter's bfloat16 is cut off, not rounded.)
    """
    torch.manual_seed(0)
    layer = MoE(MoEConfig(9, 3, 32, num_shared=2), 64).to(DEVICE, dtype)
    for weight in layer.parameters():
        weight.copy_(torch.randint(-4, 5, weight.shape) / 8)
    x = (torch.randint(-4, 5, (20, 64)) / 8).to(DEVICE, dtype)
    expert_ids = torch.stack([torch.randperm(9)[:3] for _ in range(20)]).to(DEVICE)
    weights = normal(1, 20, 3, dtype=torch.float32).abs()
    mlp = layer.shared_experts
    gate_up, down = WeightTensors(layer.experts.gate_up), WeightTensors(layer.experts.down)
    shared = tuple(WeightTensors(part.weight) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    routed = loop_experts(x, gate_up.codes, down.codes, expert_ids)
    plain = (routed * weights[..., None]).sum(1).to(dtype) + mlp(x)
    found = fused_experts(x, gate_up, down, expert_ids, weights, shared)
    assert (found != plain).float().mean() < 0.03
    assert_close(found, plain.double())


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
        MoEConfig(
            256,
            8,
            8,
            scoring="sigmoid",
            method="noaux_tc",
            num_groups=8,
            topk_group=4,
            normalize=True,
            scale=2.5,
        ),
        MoEConfig(160, 6, 8, method="group_limited_greedy", num_groups=8, topk_group=3, scale=16.0),
        MoEConfig(12, 5, 8, method="group_limited_greedy", num_groups=4, topk_group=1),
    ],
    ids=["greedy", "scaled", "one", "sigmoid", "noaux", "V3", "V2", "few"],
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


@pytest.mark.parametrize(
    "config", [MoEConfig(12, 3, 8), MoEConfig(12, 3, 8, 0, 0, 1, "sigmoid", "noaux_tc", 4, 2)]
)
def test_routing_of_many_tokens_has_the_bits_of_each_alone(config):
    gate = Gate(config, 96).to(DEVICE)
    gate.weight.copy_(normal(4, 12, 96, dtype=torch.float32, scale=0.2))
    x = normal(6, 150, 96, dtype=torch.float32)  # more tokens than programs for them
    together = gate.forward_kernels(x)
    for token in (0, 1, 77, 149):
        alone = gate.forward_kernels(x[token : token + 1])
        assert all(torch.equal(one[0], many[token]) for one, many in zip(alone, together, strict=True))
    assert torch.equal(together[0], gate(x)[0])


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
