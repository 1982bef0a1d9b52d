"""Confidence intervals of GenEval scores.

Images of one prompt tend to succeed or fail together, so that they count for fewer independent ones. The
interval is for the score over prompts *of that kind*.

Shape suffixes: P prompts of one kind; 2: correct and all images. Leading dimensions (...) are evaluations.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from ...blocks.errors import BifronsError, OptionError
from .schema import TAGS

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
        if tag not in TAGS:
            raise BifronsError(f"results row {number}: 'tag' is {tag!r}; accepted: {', '.join(TAGS)}")
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
    return {tag: np.array(list(counts[tag].values())) for tag in TAGS if tag in counts}


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
    scores, below, above = [], [], []
    for tag, right_all_P2 in counts.items():
        score, low, high = map(float, limits(right_all_P2, level))
        spans[tag] = Interval(low, high)
        score, low, high = map(float, limits(right_all_P2, level, few=False))
        scores.append(score)
        below.append(score - low)
        above.append(high - score)
    mean = sum(scores) / len(scores)
    low, high = (math.hypot(*side) / len(scores) for side in (below, above))
    spans["overall"] = Interval(max(0.0, mean - low), min(1.0, mean + high))
    return spans


def limits(
    right_all_P2: np.ndarray, level: float, few: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The score [...] of counts [..., P, 2], with the lower and the upper limit of its interval.

    The limits of a share seen in n trials, of which x are right, are quantiles of Beta(x + 1/4, n - x + 3/4)
    and Beta(x + 3/4, n - x + 1/4): halfway between Jeffreys's and Clopper and Pearson's. n is the
    `effective_size`. Where none or all are right, they are Clopper and Pearson's for as many prompts.
    Simulated with beta-binomial prompts and with mixtures of prompts that agree and that do not, this covers
    a kind's score in at least 94% of evaluations of 5 to 100 prompts (tests/eval/geneval/test_coverage.py).
    """
    score, size = effective_size(right_all_P2, level, few)
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


def effective_size(right_all_P2: np.ndarray, level: float, few: bool) -> tuple[np.ndarray, np.ndarray]:
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
    upper = (1 + level) / 2
    factor = (special.ndtri(upper) / special.stdtrit(prompts - 1, upper)) ** 2 if few and prompts > 1 else 1.0
    size = factor * total / (1 + (weighted - 1) * correlation)
    return score, np.where((score == 0) | (score == 1) | (prompts == 1), float(prompts), size)
