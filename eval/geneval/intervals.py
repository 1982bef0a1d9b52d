"""Confidence intervals of GenEval scores, from a bootstrap over prompts.

Images of one prompt tend to succeed or fail together, so prompts are resampled, each with all of its images
and within its kind. The interval is for the score over prompts *of that kind*.

Shape suffixes: P prompts of one kind, V distinct values, B bootstrap samples.
"""

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ...blocks.errors import BifronsError, OptionError
from .schema import TAGS


class Interval(NamedTuple):
    """Lower and upper limit of a share, 0 to 1."""

    low: float
    high: float


def intervals(
    results_rows: Iterable[Mapping[str, Any]], level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> dict[str, Interval]:
    """An interval for each tag that occurs and for "overall", from results rows (tag, correct, metadata).

    See `intervals_of_counts` for the method. Raises BifronsError when there is no row or a tag is unknown,
    and OptionError for a level outside (0, 1) or fewer than 100 samples.
    """
    return intervals_of_counts(count_prompts(results_rows), level, samples, seed)


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


def intervals_of_counts(
    counts: Mapping[str, np.ndarray], level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> dict[str, Interval]:
    """Intervals from counts: per tag an integer array [P, 2] of correct and of all images per prompt.

    A percentile bootstrap would have no width where all images are correct, and cover too little with few
    prompts. Instead
    - the bootstrap gives the score's variance, drawing P - 1 of P prompts, which makes it unbiased (Rao and
      Wu 1988, J. Am. Stat. Assoc. 83:231);
    - a kind's limits are Wilson's at the effective sample size p(1 - p) / variance, reduced by the squared
      ratio of normal to t quantile with P - 1 degrees of freedom (Korn and Graubard 1998, Survey
      Methodology 24:193), and clamped between the number of prompts (images of a prompt fully agree) and of
      images (they are independent);
    - the overall limits combine those of the kinds (without the t reduction, which the sum does not need) by
      Zou and Donner's MOVER (2008, Statistics in Medicine 27:1693).
    """
    if not 0 < level < 1:
        raise OptionError(f"level is {level}; accepted: between 0 and 1, such as 0.95")
    if samples < 100:
        raise OptionError(f"samples is {samples}; accepted: at least 100")
    if not counts or not all(len(table) and table[:, 1].all() for table in counts.values()):
        raise BifronsError("counts lack a kind, a prompt or a picture; accepted: at least one of each")
    z = NormalDist().inv_cdf((1 + level) / 2)
    spans: dict[str, Interval] = {}
    scores, below, above = [], [], []
    for place, (tag, right_all_P2) in enumerate(counts.items()):
        prompts, (right, images) = len(right_all_P2), right_all_P2.sum(axis=0)
        score = float(right / images)
        variance = bootstrap_variance(right_all_P2, samples, np.random.default_rng([seed, place]))
        spans[tag] = _wilson(score, _effective(score, variance, prompts, int(images), z, small=True), z)
        span = _wilson(score, _effective(score, variance, prompts, int(images), z, small=False), z)
        scores.append(score)
        below.append(score - span.low)
        above.append(span.high - score)
    mean = sum(scores) / len(scores)
    low, high = (math.hypot(*side) / len(scores) for side in (below, above))
    spans["overall"] = Interval(max(0.0, mean - low), min(1.0, mean + high))
    return spans


def bootstrap_variance(right_all_P2: np.ndarray, samples: int, generator: np.random.Generator) -> float:
    """Variance of correct / all over `samples` resamplings of P - 1 prompts; 0 for a single prompt.

    Prompts with equal counts are exchangeable, so the counts of the V distinct values are one multinomial
    draw: the same distribution as drawing prompts one by one, at a cost independent of P.
    """
    prompts = len(right_all_P2)
    if prompts < 2:
        return 0.0
    values_V2, times_V = np.unique(right_all_P2, axis=0, return_counts=True)
    drawn_BV = generator.multinomial(prompts - 1, times_V / prompts, size=samples)
    right_B, images_B = (drawn_BV @ values_V2).T
    return float(np.var(right_B / images_B, ddof=1))


def _effective(score: float, variance: float, prompts: int, images: int, z: float, small: bool) -> float:
    """The effective sample size: how many independent images have this variance."""
    if score in (0.0, 1.0) or prompts == 1:
        return prompts  # the agreement within a prompt is unknown, and taken as full
    size = score * (1 - score) / variance if variance > 0 else math.inf
    if small:
        size *= (z / float(stats.t.ppf(NormalDist().cdf(z), prompts - 1))) ** 2
    return min(max(size, prompts), images)


def _wilson(score: float, n: float, z: float) -> Interval:
    """Wilson's score interval (1927, J. Am. Stat. Assoc. 22:209) for a share seen in n trials."""
    centre = (score + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(score * (1 - score) / n + z * z / (4 * n * n))
    return Interval(max(0.0, min(score, centre - half)), min(1.0, max(score, centre + half)))
