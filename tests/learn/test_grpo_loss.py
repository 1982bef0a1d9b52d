"""GRPO's loss and gradient, beside the formulas of the paper written out."""

import pytest
import torch
from bifrons.blocks.sampling.request import SamplingParams
from bifrons.learn.grpo_loss import (
    drawn_from,
    group_advantages,
    kept_tokens,
    log_probabilities,
    token_losses,
)

NAN = torch.nan


def reference_loss(cond, uncond, tokens, old, reference, rewards, scale, clip, beta):
    """GRPO of one group of G samples of T tokens, logits `[G, T, V]`, as the paper writes it."""
    guided = uncond.detach() + scale * (cond - uncond.detach())
    log_probs = guided.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    ratio = torch.exp(log_probs - old)
    surrogate = torch.min(ratio * advantages[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages[:, None])
    kl = torch.exp(reference - log_probs) - (reference - log_probs) - 1
    return -(surrogate - beta * kl).mean(1).mean(0)


def test_loss_and_gradient_equal_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = (torch.randn(4, 6, 11, generator=generator).requires_grad_() for _ in range(2))
    tokens = torch.randint(0, 11, (4, 6), generator=generator)
    rewards = torch.tensor([1.0, 0.0, 0.25, 1.0])
    sampling = SamplingParams(guidance_scale=5.0)
    now = log_probabilities(
        drawn_from(cond.flatten(0, 1), uncond.flatten(0, 1), sampling), tokens.flatten(), None
    )
    old = (now.detach() + 0.4 * torch.randn(24, generator=generator)).view(4, 6)
    reference = (now.detach() + 0.4 * torch.randn(24, generator=generator)).view(4, 6)
    advantages = group_advantages(rewards[None].double()).flatten().float().repeat_interleave(6)
    losses = token_losses(now, old.flatten(), reference.flatten(), advantages, 0.2, 0.1)
    assert 0 < losses.clipped.sum() < 24
    found = losses.loss.mean()
    expected = reference_loss(cond, uncond, tokens, old, reference, rewards, 5.0, 0.2, 0.1)
    assert torch.allclose(found, expected, rtol=1e-5)
    (ours,) = torch.autograd.grad(found, cond)
    (theirs,) = torch.autograd.grad(expected, cond)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert ours.abs().max() > 0


def test_advantages_by_group() -> None:
    scores = torch.tensor([[1, 0, 0, 0], [0.1, 0.1, 0.1, 0.1], [NAN, 1, NAN, 0], [NAN, NAN, 2, NAN]]).double()
    found = group_advantages(scores)
    assert torch.allclose(found[0], torch.tensor([0.75, -0.25, -0.25, -0.25]).double() / (0.5 + 1e-4))
    assert found[1].tolist() == [0, 0, 0, 0]
    half = 0.5 / (0.5**0.5 + 1e-4)
    assert torch.allclose(found[2], torch.tensor([NAN, half, NAN, -half]).double(), equal_nan=True)
    assert found[3][2] == 0
    assert found[3].isfinite().tolist() == [False, False, True, False]


def test_the_unconditional_row_gets_no_gradient() -> None:
    cond, uncond = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    log_probabilities(
        drawn_from(cond, uncond, SamplingParams(guidance_scale=2.0)), torch.tensor([0, 1, 2]), None
    ).sum().backward()
    assert uncond.grad is None
    assert cond.grad is not None


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.4}])
def test_filters_drop_tokens_but_never_the_one_drawn(options) -> None:
    sampling = SamplingParams(temperature=0.5, **options)
    logits = drawn_from(torch.tensor([[3.0, 2.5, 0.0, -1.0]]).repeat(2, 1), None, sampling)
    tokens = torch.tensor([0, 3])
    kept = kept_tokens(logits, tokens, sampling)
    assert kept is not None
    assert kept[1, 3]
    assert not kept[0, 2:].any()
    found = log_probabilities(logits, tokens, kept)
    assert found.isfinite().all()
    assert torch.allclose(found[0], logits[0, kept[0]].log_softmax(-1)[0])
    assert kept_tokens(logits, tokens, SamplingParams()) is None


def test_without_a_reference_there_is_no_divergence() -> None:
    now = torch.tensor([-1.0, -2.0])
    losses = token_losses(now, now, None, torch.tensor([1.0, -1.0]), 0.2, 0.01)
    assert losses.loss.tolist() == [-1.0, 1.0]
    assert losses.divergence.tolist() == [0.0, 0.0]
    assert not losses.clipped.any()
