"""Scores and intervals of groups, against intervals of GenEval's and by simulation."""

import numpy as np
import pytest
from bifrons.blocks.errors import BifronsError
from bifrons.eval.geneval.intervals import intervals_of_counts
from bifrons.eval.suites.suite import Item
from bifrons.eval.suites.summary import summarize


def test_zeros_and_ones_have_genevals_intervals() -> None:
    counts = {"counting": [(3, 4), (4, 4), (0, 4)], "colors": [(1, 4), (2, 4), (4, 4), (4, 4)]}
    items = {
        (tag, i): [[Item(tag, float(j < right))] for j in range(total)]
        for tag, prompts in counts.items()
        for i, (right, total) in enumerate(prompts)
    }
    summary = summarize(lambda groups: dict.fromkeys(groups, 0.5), items)
    expected = intervals_of_counts({tag: np.array(prompts) for tag, prompts in counts.items()})
    for tag in counts:
        assert summary.groups[tag].interval == pytest.approx(expected[tag])
    assert summary.interval == pytest.approx(expected["overall"])
    assert summary.overall == pytest.approx((7 / 12 + 11 / 16) / 2)


def test_a_weighted_group_that_is_missing() -> None:
    summary = summarize(lambda groups: {"a": 0.5, "b": 0.5}, {0: [[Item("a", 1.0)]]})
    assert (summary.overall, summary.interval, summary.missing) == (None, None, ("b",))
    with pytest.raises(BifronsError, match="no judged picture"):
        summarize(lambda groups: {}, {0: [[]]})


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2, 1), (8, 0.4), (1, 9)])
def test_intervals_of_probabilities_cover(a: float, b: float) -> None:
    """Prompts with a mean from Beta(a, b), two pictures each near it."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(400):
        means = random.beta(a, b, 40)
        values = np.clip(
            means[:, None] + random.normal(0, 0.1, (40, 2)) * (means * (1 - means))[:, None], 0, 1
        )
        items = {i: [[Item("p", float(v))] for v in of_prompt] for i, of_prompt in enumerate(values)}
        low, high = summarize(lambda groups: {"p": 1.0}, items).groups["p"].interval
        covered += low <= a / (a + b) <= high
    assert covered / 400 > 0.925  # 95% less two standard errors
