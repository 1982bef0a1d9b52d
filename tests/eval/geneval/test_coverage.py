"""How often intervals hold the true score: simulated evaluations of models whose scores are known.

Prompts are beta-binomial, or a mixture of prompts whose pictures all agree and of ones whose pictures do not;
both have the given correlation of pictures within a prompt.
"""

import itertools

import numpy as np
import pytest
from bifrons.eval.geneval.intervals import limits
from bifrons.eval.geneval.paired import difference_limits
from scipy import special, stats

TRIALS = 3000
CORRELATIONS = (0.0, 0.3, 0.6, 0.9, 0.99)
MEANS = (0.02, 0.1, 0.5, 0.8, 0.95, 0.97, 0.99)


def draw(rng: np.random.Generator, prompts: int, images: int, alike: float, mean: float, family: str):
    """int [TRIALS, P, 2]"""
    shape = TRIALS, prompts
    if family == "mixture":
        together = images * rng.binomial(1, mean, shape)
        right = np.where(rng.random(shape) < alike, together, rng.binomial(images, mean, shape))
    elif not alike:
        right = rng.binomial(images, mean, shape)
    else:
        weight = 1 / alike - 1
        right = rng.binomial(images, rng.beta(mean * weight, (1 - mean) * weight, shape))
    return np.stack([right, np.full(shape, images)], axis=-1)


@pytest.mark.parametrize("prompts", [10, 20, 50, 100])
def test_a_kinds_interval_holds_the_true_score_in_every_cell(prompts):
    rng = np.random.default_rng(prompts)
    for images, alike, mean, family in itertools.product((2, 4), CORRELATIONS, MEANS, ("beta", "mixture")):
        if family == "mixture" and not alike:
            continue  # the same as beta-binomial
        _, low, high = limits(draw(rng, prompts, images, alike, mean, family), 0.95)
        covered = ((low <= mean) & (mean <= high)).mean()
        assert covered >= 0.94, (images, alike, mean, family)


@pytest.mark.parametrize("prompts", [5, 10, 25, 50, 80, 99, 100])
def test_prompts_that_fully_agree_are_counted_once(prompts):
    """Then the score is a binomial share, and the coverage can be computed rather than simulated."""
    outcomes = np.arange(prompts + 1)
    right = 4 * (np.arange(prompts) < outcomes[:, None])
    _, low, high = limits(np.stack([right, np.full_like(right, 4)], axis=-1), 0.95)
    for mean in MEANS:
        inside = (low <= mean) & (mean <= high)
        assert stats.binom.pmf(outcomes, prompts, mean)[inside].sum() >= 0.94


def test_limits_are_those_of_the_formula():
    """By hand: 20 prompts of 4 pictures, 12 all right, 5 half right, 3 all wrong."""
    right = np.array([4] * 12 + [2] * 5 + [0] * 3)
    score, low, high = limits(np.stack([right, np.full(20, 4)], axis=-1), 0.95)
    assert score == 58 / 80
    share = right / 4
    between = 4 * ((share - 0.725) ** 2).sum() / 19
    within = 4 * (share * (1 - share)).sum() / 60
    alike = (between - within) / (between + 3 * within)
    alike = (alike * 8 + 2) / (8 + 2)  # 8 prompts have a wrong picture
    size = 80 / (1 + 3 * alike) * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 19)) ** 2
    x = 0.725 * size
    assert low == pytest.approx(stats.beta.ppf(0.025, x + 0.25, size - x + 0.75))
    assert high == pytest.approx(stats.beta.ppf(0.975, x + 0.75, size - x + 0.25))


def test_unequal_numbers_of_pictures():
    """A lost picture changes little, and prompts with 1 to 6 pictures keep what the level promises."""
    right = np.array([4] * 12 + [2] * 5 + [0] * 3)
    images = np.full(20, 4)
    whole = np.array(limits(np.stack([right, images], axis=-1), 0.95))
    right[0] = images[0] = 3
    assert np.abs(np.array(limits(np.stack([right, images], axis=-1), 0.95)) - whole).max() < 0.01
    rng = np.random.default_rng(0)
    images = np.broadcast_to(1 + np.arange(60) % 6, (TRIALS, 60))
    right = rng.binomial(images, rng.beta(3.6, 0.4, (TRIALS, 60)))
    _, low, high = limits(np.stack([right, images], axis=-1), 0.95)
    assert ((low <= 0.9) & (high >= 0.9)).mean() >= 0.94


PAIRS = ((0.5, 0.5), (0.7, 0.2), (0.9, 0.8), (0.97, 0.97), (0.97, 0.9), (0.05, 0.02))


@pytest.mark.parametrize("prompts", [10, 50])
def test_the_interval_of_a_difference_holds_the_true_one_in_every_cell(prompts):
    """shared: the part of the prompts whose difficulty is the same for both."""
    rng = np.random.default_rng(prompts)
    grid = np.linspace(0, 1, 501)
    for alike, (a, b), shared in itertools.product((0.2, 0.8), PAIRS, (0.0, 0.5, 1.0)):
        ease_a = rng.random((1000, prompts))
        ease_b = np.where(rng.random(ease_a.shape) < shared, ease_a, rng.random(ease_a.shape))
        weight, counts = 1 / alike - 1, []
        for mean, ease in ((a, ease_a), (b, ease_b)):
            quantiles = special.betaincinv(mean * weight, (1 - mean) * weight, grid)
            true = np.trapezoid(quantiles, grid)
            right = rng.binomial(4, np.clip(np.interp(ease, grid, quantiles) + mean - true, 0, 1))
            counts += [right, np.full_like(right, 4)]
        _, _, low, high = difference_limits(np.stack(counts, axis=-1), 0.95)
        assert ((low <= a - b) & (a - b <= high)).mean() > 0.93, (alike, a, b, shared)
