"""The gate against a literal reading of its rules, and the implementations of experts against each other."""

import pytest
import torch
from bifrons.blocks.errors import ConfigError
from bifrons.blocks.kernels.moe_dispatch import (
    grouped_gemm,
    loop_experts,
    padded_bmm,
    pick_implementation,
)
from bifrons.blocks.model.moe import Gate, MoE, MoEConfig


def literal_selection(logits: list[float], bias: list[float], config: MoEConfig) -> dict[int, float]:
    """One token's experts and weights, by lists and loops."""
    values = torch.tensor(logits, dtype=torch.float64)
    scores = (values.softmax(0) if config.scoring == "softmax" else values.sigmoid()).tolist()
    ranks = list(scores)
    if config.method == "noaux_tc":
        ranks = [s + b for s, b in zip(scores, bias, strict=True)]
    size, best = config.num_experts // config.num_groups, 2 if config.method == "noaux_tc" else 1
    if config.method != "greedy":
        groups = [ranks[g * size : (g + 1) * size] for g in range(config.num_groups)]
        merit = [sum(sorted(group)[-best:]) for group in groups]
        best_groups = sorted(range(config.num_groups), key=lambda g: -merit[g])[: config.topk_group]
        ranks = [rank if e // size in best_groups else 0.0 for e, rank in enumerate(ranks)]
    selected = sorted(range(config.num_experts), key=lambda e: -ranks[e])[: config.top_k]
    total = sum(scores[e] for e in selected) + 1e-20 if config.normalize and config.top_k > 1 else 1.0
    return {e: scores[e] / total * config.scale for e in selected}


@pytest.mark.parametrize(
    "config",
    [
        MoEConfig(12, 3, 8),
        MoEConfig(12, 3, 8, scale=1.5, normalize=True),
        MoEConfig(12, 1, 8, scale=1.5, normalize=True),
        MoEConfig(12, 3, 8, method="group_limited_greedy", num_groups=4, topk_group=2),
        MoEConfig(12, 3, 8, scoring="sigmoid", method="noaux_tc", normalize=True, scale=2.0),
        MoEConfig(12, 3, 8, 0, 0, 1, "sigmoid", "noaux_tc", num_groups=4, topk_group=2, normalize=True),
    ],
    ids=["greedy", "scaled", "one", "grouped_greedy", "noaux", "noaux_grouped"],
)
def test_gate_follows_its_rules(config: MoEConfig):
    torch.manual_seed(3)
    gate = Gate(config, 16)
    bias = torch.randn(12) * 0.3
    if config.method == "noaux_tc":
        gate.e_score_correction_bias.data.copy_(bias)
    x = torch.randn(50, 16) * 3
    expert_ids, weights = gate(x)
    logits = x.double() @ gate.weight.double().T
    for row in range(50):
        expected = literal_selection(logits[row].tolist(), bias.tolist(), config)
        actual = dict(zip(expert_ids[row].tolist(), weights[row].tolist(), strict=True))
        assert actual.keys() == expected.keys()
        assert all(abs(actual[e] - expected[e]) < 1e-5 for e in expected)


def test_gate_computes_in_float32_whatever_the_weights_are():
    gate = Gate(MoEConfig(8, 2, 4), 16).bfloat16()
    x = torch.randn(4, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        scores = gate.scores(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, (x.float() @ gate.weight.float().T).softmax(-1))


@pytest.mark.parametrize("tokens", [1, 5, 300])
@pytest.mark.parametrize("implementation", [grouped_gemm, padded_bmm])
def test_implementations_equal_the_loop_and_so_do_their_gradients(implementation, tokens: int):
    torch.manual_seed(0)
    x = torch.randn(tokens, 32)
    expert_ids = torch.stack([torch.randperm(9)[:3] for _ in range(tokens)])
    expert_ids[expert_ids == 4] = 5  # an expert without tokens, and one selected twice by a token
    gate_up, down = torch.randn(9, 48, 32) * 0.2, torch.randn(9, 32, 24) * 0.2
    weight = torch.randn(tokens, 3, 32)
    results = []
    for compute in (loop_experts, implementation):
        inputs = [t.clone().requires_grad_() for t in (x, gate_up, down)]
        out = compute(*inputs, expert_ids)
        (out * weight).sum().backward()
        results.append([out.detach(), *(t.grad for t in inputs)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_dense_experts_equal_the_others_and_so_do_their_gradients():
    torch.manual_seed(0)
    config = MoEConfig(6, 2, 16)
    x, results = torch.randn(40, 32), []
    for dense in (False, True):
        torch.manual_seed(1)
        moe = MoE(config, 32)
        moe.experts.dense = dense
        inputs = x.clone().requires_grad_()
        out = moe(inputs)
        (out * out).sum().backward()
        results.append([out.detach(), inputs.grad, *(p.grad for p in moe.parameters())])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_grouped_product_is_used_where_the_device_has_one():
    x, gate_up = torch.zeros(2, 32), torch.zeros(4, 48, 32)
    assert pick_implementation(x, gate_up, 6) is grouped_gemm
    assert pick_implementation(torch.zeros(2, 33), torch.zeros(4, 48, 33), 6) is loop_experts
    assert pick_implementation(x.to("meta"), gate_up.to("meta"), 6) is padded_bmm


def test_moe_adds_the_shared_experts_and_keeps_shape_and_dtype():
    torch.manual_seed(1)
    moe = MoE(MoEConfig(6, 2, 16, num_shared=2), 32)
    x = torch.randn(2, 3, 32)
    expert_ids, weights = moe.gate(x.flatten(0, 1))
    expected = moe.shared_experts(x).flatten(0, 1)
    routed = loop_experts(x.flatten(0, 1), moe.experts.gate_up, moe.experts.down, expert_ids)
    expected = expected + (routed * weights[..., None]).sum(1)
    torch.testing.assert_close(moe(x).flatten(0, 1), expected)
    assert moe.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [
        {"scoring": "tanh"},
        {"method": "gready"},
        {"num_groups": 5},
        {"num_groups": 4, "topk_group": 5},
        {"top_k": 13},
        {"method": "noaux_tc", "num_groups": 12},
        {"every": 0},
    ],
)
def test_meaningless_settings_are_refused(wrong: dict):
    with pytest.raises(ConfigError, match=r"accepted|must"):
        MoEConfig(**{"num_experts": 12, "top_k": 3, "expert_width": 8, **wrong})
