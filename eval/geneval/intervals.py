"""Confidence intervals of GenEval scores.

Images of one prompt tend to succeed or fail together, so that they count for fewer independent ones. The
interval is for the score over prompts *of that kind*.

Shape suffixes: P prompts of one kind; 2: correct and all images. Leading dimensions (...) are evaluations.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from ...blocks.errors import BifronsError, OptionError
from .schema import ALL_TAGS

METHOD = "beta limits at the effective sample size"
"""Written beside intervals, which other versions of this package computed otherwise."""
SHRINKAGE = 2.0
"""How many prompts' worth of full agreement is added to what the data say; see `effective_size`."""


class Interval(NamedTuple):
    """Lower and upper limit of a share, 0 to 1."""

    low: float
    high: float


def intervals(results_rows: Iterable[Mapping[str, Any]], level: float = 0.95) -> dict[str, Interval]:
    """An interval for each tag that occurs and for "overall", from results rows (tag, correct, metadata).

    See `intervals_of_counts` for the method. Raises BifronsError when there is no row or a tag is unknown,
    and OptionError for a level outside (0, 1).
    """
    return intervals_of_counts(count_prompts(results_rows), level)


def count_prompts(results_rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Per tag that occurs, in GenEval's order, int [P, 2]: correct and all images of each prompt.

    Raises BifronsError when there is no row, or one has an unknown tag or lacks a field.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for number, row in enumerate(results_rows, 1):
        tag, correct, prompt = row.get("tag"), row.get("correct"), row.get("metadata")
        if tag not in ALL_TAGS:
            raise BifronsError(f"results row {number}: 'tag' is {tag!r}; accepted: {', '.join(ALL_TAGS)}")
        if not isinstance(correct, bool | np.bool_) or not isinstance(prompt, str):
            raise BifronsError(
                f"results row {number}: 'correct' is {correct!r} and 'metadata' a {type(prompt).__name__}; "
                "accepted: true or false, and a text"
            )
        cell = counts.setdefault(tag, {}).setdefault(prompt, [0, 0])
        cell[0] += bool(correct)
        cell[1] += 1
    if not counts:
        raise BifronsError("there are no results; accepted: at least one row")
    return {tag: np.array(list(counts[tag].values())) for tag in ALL_TAGS if tag in counts}


def intervals_of_counts(counts: Mapping[str, np.ndarray], level: float = 0.95) -> dict[str, Interval]:
    """Intervals from counts: per tag an integer array [P, 2] of correct and of all images per prompt.

    A kind's limits are those of `limits`. The overall limits combine those of the kinds (without the
    correction for few prompts, which the sum does not need) by Zou and Donner's MOVER (2008, Statistics in
    Medicine 27:1693).
    """
    if not 0 < level < 1:
        raise OptionError(f"level is {level}; accepted: between 0 and 1, such as 0.95")
    if not counts or not all(len(table) and table[:, 1].all() for table in counts.values()):
        raise BifronsError("counts lack a kind, a prompt or a picture; accepted: at least one of each")
    spans: dict[str, Interval] = {}
    for tag, right_all_P2 in counts.items():
        _, low, high = map(float, limits(right_all_P2, level))
        spans[tag] = Interval(low, high)
    _, low, high = map(float, weighted_limits(counts, dict.fromkeys(counts, 1 / len(counts)), level))
    return {**spans, "overall": Interval(low, high)}


def weighted_limits(
    counts: Mapping[str, np.ndarray], weights: Mapping[str, float], level: float, few: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weighted sum [...] of kinds' scores, of counts [..., P, 2] each, and the limits of its interval."""
    sides = {tag: limits(counts[tag], level, few) for tag in weights}
    score = np.asarray(sum(weights[tag] * side[0] for tag, side in sides.items()))
    below, above = summed_distances(sides, weights)
    return score, np.maximum(score - below, 0.0), np.minimum(score + above, 1.0)


def summed_distances(
    sides: Mapping[str, tuple[np.ndarray, ...]], weights: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """How far the limits of a weighted sum lie below and above it, given each kind's (value, low, high): the
    root of the kinds' summed squares."""
    below = sum((weights[kind] * (value - low)) ** 2 for kind, (value, low, _) in sides.items())
    above = sum((weights[kind] * (high - value)) ** 2 for kind, (value, _, high) in sides.items())
    return np.sqrt(below), np.sqrt(above)


def limits(
    right_all_P2: np.ndarray, level: float | np.ndarray, few: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The score [...] of counts [..., P, 2], with the lower and the upper limit of its interval.

    The limits of a share seen in n trials, of which x are right, are quantiles of Beta(x + 1/4, n - x + 3/4)
    and Beta(x + 3/4, n - x + 1/4): halfway between Jeffreys's and Clopper and Pearson's. n is the
    `effective_size`. Where none or all are right, they are Clopper and Pearson's for as many prompts.
    Simulated with beta-binomial prompts and with mixtures of prompts that agree and that do not, this covers
    a kind's score in at least 94% of evaluations of 5 to 100 prompts (tests/eval/geneval/test_coverage.py).

    Sums of values between 0 and 1 may stand in place of numbers of right images; n is then that of
    `size_of_mean`.
    """
    binary = (right_all_P2[..., 0] == np.floor(right_all_P2[..., 0])).all()
    score, size = (effective_size if binary else size_of_mean)(right_all_P2, level, few)
    right = size * score
    wrong = size - right
    edge = (score == 0) | (score == 1)
    near, far = np.where(edge, 0.0, 0.25), np.where(edge, 1.0, 0.75)
    lower, upper = (1 - level) / 2, (1 + level) / 2
    low = special.betaincinv(np.maximum(right + near, 1e-300), wrong + far, lower)
    high = special.betaincinv(right + far, np.maximum(wrong + near, 1e-300), upper)
    return (
        score,
        np.where(score == 0, 0.0, np.minimum(low, score)),
        np.where(score == 1, 1.0, np.maximum(high, score)),
    )


def effective_size(
    right_all_P2: np.ndarray, level: float | np.ndarray, few: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The score [...] and how many independent images it is worth [...], of counts [..., P, 2].

    The images' number is divided by 1 + (K - 1) r (Kish 1965, Survey Sampling, 5.4), where K is their mean
    number in a prompt, weighted by itself, and r their correlation in a prompt, by the analysis of variance
    (Ridout, Demetrio and Firth 1999, Biometrics 55:137). r is little known where few prompts tell: m, those
    with any wrong image where the score is at least 1/2, else with any right one. It is therefore drawn
    towards 1, to (r m + SHRINKAGE) / (m + SHRINKAGE). With `few` the result is multiplied by the
    squared ratio of the normal to the t quantile with P - 1 degrees of freedom (Korn and Graubard 1998,
    Survey Methodology 24:193). At a score of 0 or 1, or for a single prompt, images count as one a prompt.
    """
    right, images = right_all_P2[..., 0].astype(float), right_all_P2[..., 1].astype(float)
    prompts, total = right.shape[-1], images.sum(-1)
    score = right.sum(-1) / total
    share = right / images
    weighted = (images * images).sum(-1) / total
    between = (images * (share - score[..., None]) ** 2).sum(-1) / max(prompts - 1, 1)
    within = (images * share * (1 - share)).sum(-1) / np.maximum(total - prompts, 1)
    spread = (total - weighted) / max(prompts - 1, 1)  # the images of a prompt, as the variances see them
    whole = between + (spread - 1) * within
    correlation = np.clip((between - within) / np.where(whole > 0, whole, 1), 0, 1)
    telling = np.where(score >= 0.5, (right < images).sum(-1), (right > 0).sum(-1))
    correlation = (correlation * telling + SHRINKAGE) / (telling + SHRINKAGE)
    size = _factor(prompts, level, few) * total / (1 + (weighted - 1) * correlation)
    return score, np.where((score == 0) | (score == 1) | (prompts == 1), float(prompts), size)


def size_of_mean(
    sum_all_P2: np.ndarray, level: float | np.ndarray, few: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The mean [...] of values between 0 and 1, and how many 0s and 1s have its variance [...], but at least
    one a prompt; of the sums and numbers [..., P, 2] of each prompt's values.

    The variance is that of a ratio of sums over prompts (Cochran 1977, Sampling Techniques, 11.8). `few`: see
    `effective_size`.
    """
    prompts, total = sum_all_P2.shape[-2], sum_all_P2[..., 1].sum(-1)
    score = np.minimum(sum_all_P2[..., 0].sum(-1) / total, 1.0)
    residuals = sum_all_P2[..., 0] - score[..., None] * sum_all_P2[..., 1]
    variance = prompts / max(prompts - 1, 1) * (residuals**2).sum(-1) / total**2
    size = np.where(variance > 0, score * (1 - score) / np.where(variance > 0, variance, 1), 0.0)
    return score, _factor(prompts, level, few) * np.maximum(size, float(prompts))


def _factor(prompts: int, level: float | np.ndarray, few: bool) -> float | np.ndarray:
    if not few or prompts == 1:
        return 1.0
    upper = (1 + level) / 2
    return (special.ndtri(upper) / special.stdtrit(prompts - 1, upper)) ** 2
