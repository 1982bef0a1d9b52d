"""The loss of GRPO (Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300, eq. 3 and 4), and what it is made of.

P prompts, G samples of each (a group), N sampled tokens of several samples one after another, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks.sampling.request import SamplingParams
from ..blocks.sampling.sampling import filter_logits, guide


def group_advantages(scores_PG: Tensor) -> Tensor:
    """`(r - mean) / (std + 1e-4)` within each group; NaN for samples without a score (NaN), which don't
    count.

    Where a group has one score alone, or equal ones, the advantages are zero: there is nothing to learn.
    The standard deviation is that of a sample (divided by the number of scores less one).
    """
    scored_PG = scores_PG.isfinite()
    count_P1 = scored_PG.sum(1, keepdim=True)
    mean_P1 = scores_PG.where(scored_PG, 0.0).sum(1, keepdim=True) / count_P1.clamp(min=1)
    centered_PG = (scores_PG - mean_P1).where(scored_PG, 0.0)
    std_P1 = (centered_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    highest_P1 = scores_PG.where(scored_PG, -torch.inf).amax(1, keepdim=True)
    lowest_P1 = scores_PG.where(scored_PG, torch.inf).amin(1, keepdim=True)
    # Rounding of the mean must not make a difference where all scores are equal.
    advantages_PG = (centered_PG / (std_P1 + 1e-4)).where(highest_P1 > lowest_P1, 0.0)
    return advantages_PG.where(scored_PG, torch.nan)


def drawn_from(cond_NV: Tensor, uncond_NV: Tensor | None, sampling: SamplingParams) -> Tensor:
    """Logits of the distribution that tokens are drawn from, before filters: with guidance
    `u + scale * (c - u)`, of which `u` gets no gradient, divided by the temperature. Float32."""
    logits_NV = cond_NV.float()
    if uncond_NV is not None:
        assert sampling.guidance_scale is not None
        logits_NV = guide(logits_NV, uncond_NV.detach().float(), sampling.guidance_scale)
    return logits_NV / sampling.temperature


@torch.no_grad()
def kept_tokens(logits_NV: Tensor, tokens_N: Tensor, sampling: SamplingParams) -> Tensor | None:
    """The tokens that top-k, top-p and min-p keep, bool `[N, V]`; None where they keep all.

    `logits_NV` are those of `drawn_from`. The token that was drawn is kept even if rounding, or an update
    since, has moved it across the border.
    """
    if not sampling.mode.filtered:
        return None
    one_N = logits_NV.new_ones(len(logits_NV))
    filters = (sampling.top_k * one_N.long(), sampling.top_p * one_N, sampling.min_p * one_N)
    kept_NV = filter_logits(logits_NV.detach(), one_N, *filters).isfinite()
    return kept_NV.scatter(1, tokens_N[:, None], True)


def log_probabilities(logits_NV: Tensor, tokens_N: Tensor, kept_NV: Tensor | None) -> Tensor:
    """Log-probabilities `[N]` of tokens among those kept."""
    if kept_NV is not None:
        logits_NV = logits_NV.masked_fill(~kept_NV, -torch.inf)
    return logits_NV.gather(1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


@dataclass(frozen=True)
class TokenLosses:
    """Of each token, `[N]`: its loss, its part in the KL divergence, and whether its ratio was clipped."""

    loss: Tensor
    divergence: Tensor
    clipped: Tensor


def token_losses(
    log_probs_N: Tensor,
    old_N: Tensor,
    reference_N: Tensor | None,
    advantages_N: Tensor,
    clip: float,
    beta: float,
) -> TokenLosses:
    """The clipped surrogate loss of each token, plus `beta` times its KL divergence from the reference.

    `old_N` are the log-probabilities when the tokens were drawn. The divergence is estimated by
    `exp(d) - d - 1` with `d = reference - log_probs` (Schulman 2020, "k3"); without a reference it is zero.
    """
    ratio_N = (log_probs_N - old_N).exp()
    bounded_N = ratio_N.clamp(1 - clip, 1 + clip)
    gain_N = torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)
    clipped_N = bounded_N * advantages_N < ratio_N * advantages_N
    if reference_N is None:
        return TokenLosses(-gain_N, torch.zeros_like(gain_N), clipped_N)
    difference_N = reference_N - log_probs_N
    divergence_N = difference_N.exp() - difference_N - 1
    return TokenLosses(beta * divergence_N - gain_N, divergence_N, clipped_N)
