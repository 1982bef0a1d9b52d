"""Intervals: the coverage they claim, measured on made-up models whose true scores are known."""

import numpy as np
import pytest
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.eval.geneval.scoring import TAGS, intervals, intervals_of_counts

TRUTH = dict(zip(TAGS, (0.97, 0.82, 0.51, 0.89, 0.65, 0.56), strict=True))
FULL = dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))


def draw(generator: np.random.Generator, prompts: dict[str, int], alike: float, images: int = 4):
    """Counts of a model with the scores TRUTH; a prompt's pictures correlate by `alike` (beta-binomial)."""
    counts = {}
    for tag, truth in TRUTH.items():
        weight = 1 / alike - 1
        chance = generator.beta(truth * weight, (1 - truth) * weight, prompts[tag])
        counts[tag] = np.stack([generator.binomial(images, chance), np.full(prompts[tag], images)], axis=1)
    return counts


def coverage(prompts: dict[str, int], alike: float, trials: int, level: float = 0.95) -> dict[str, float]:
    generator = np.random.default_rng(7)
    truth = {**TRUTH, "overall": sum(TRUTH.values()) / 6}
    hits = dict.fromkeys(truth, 0)
    for _ in range(trials):
        spans = intervals_of_counts(draw(generator, prompts, alike), level)
        for tag, span in spans.items():
            hits[tag] += span.low <= truth[tag] <= span.high
    return {tag: hit / trials for tag, hit in hits.items()}


@pytest.mark.parametrize("alike", [0.02, 0.4, 0.8])
def test_coverage_on_all_prompts(alike):
    covered = coverage(FULL, alike, 600)
    assert 0.93 <= covered["overall"] <= 0.98
    assert 0.95 <= np.mean([covered[tag] for tag in TAGS]) <= 0.98
    assert min(covered.values()) >= 0.93


def test_coverage_with_few_prompts():
    covered = coverage(dict.fromkeys(TAGS, 10), 0.4, 600)
    assert 0.93 <= covered["overall"] <= 0.98
    assert 0.95 <= np.mean([covered[tag] for tag in TAGS]) <= 0.995
    assert min(covered.values()) >= 0.93


def test_coverage_follows_the_level():
    covered = coverage(FULL, 0.4, 400, level=0.8)
    assert 0.75 <= covered["overall"] <= 0.85


def rows(counts: dict[str, np.ndarray]) -> list[dict]:
    return [
        {"tag": tag, "metadata": f"{tag} {prompt}", "correct": i < right}
        for tag, table in counts.items()
        for prompt, (right, images) in enumerate(table)
        for i in range(images)
    ]


def test_from_rows_in_any_order():
    counts = draw(np.random.default_rng(1), FULL, 0.4)
    ordered = rows(counts)
    scattered = [ordered[i] for i in np.random.default_rng(2).permutation(len(ordered))]
    spans = intervals(scattered)
    for others in (intervals_of_counts(counts), intervals(ordered)):
        assert list(spans) == list(others)
        assert np.array(list(spans.values())) == pytest.approx(np.array(list(others.values())), abs=1e-12)
    assert list(spans) == [*TAGS, "overall"]
    for tag, table in counts.items():
        right, images = table.sum(axis=0)
        assert 0 <= spans[tag].low < right / images < spans[tag].high <= 1


def test_pictures_of_a_prompt_are_kept_together():
    alike = {"colors": np.array([[4, 4]] * 50 + [[0, 4]] * 50)}
    mixed = {"colors": np.array([[2, 4]] * 100)}
    wide, narrow = (intervals_of_counts(counts)["colors"] for counts in (alike, mixed))
    # Worth 100 and 400 independent pictures, for which Clopper and Pearson give 0.2033 and 0.1004.
    assert wide.high - wide.low == pytest.approx(0.201, abs=0.002)
    assert narrow.high - narrow.low == pytest.approx(0.103, abs=0.002)


@pytest.mark.parametrize("right", [0, 4])
def test_all_alike_has_a_width(right):
    spans = intervals_of_counts({"colors": np.array([[right, 4]] * 80)})
    edge = right / 4
    for span in spans.values():
        assert edge in span
        assert 0.03 < span.high - span.low < 0.06  # near the rule of three: 3 / 80


def test_one_prompt_is_wide_open():
    span = intervals_of_counts({"colors": np.array([[3, 4]])})["colors"]
    assert span.high - span.low > 0.7


def test_refusals():
    good = {"colors": np.array([[3, 4]])}
    with pytest.raises(OptionError, match="level"):
        intervals_of_counts(good, level=95)
    for counts in ({}, {"colors": np.zeros((0, 2), int)}, {"colors": np.array([[0, 0]])}):
        with pytest.raises(BifronsError, match="at least one"):
            intervals_of_counts(counts)
    with pytest.raises(BifronsError, match="at least one row"):
        intervals([])
