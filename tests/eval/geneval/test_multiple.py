"""Comparisons of several evaluations: family-wise errors, intervals that hold at once, and the words."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from bifrons.apps.cli.main import main
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.eval.geneval.multiple import compare_all, holm
from bifrons.eval.geneval.paired import Scored, difference_limits, label, overall_limits, p_value

IMAGES, TRIALS = 4, 1500


def draw(
    rng: np.random.Generator, trials: int, prompts: int, means: tuple[float, ...], alike: float, shared: float
) -> np.ndarray:
    """int [trials, P, R, 2]: of these true scores; a part `shared` of the prompts is as hard for all."""
    weight, mean = 1 / alike - 1, max(means)
    ease = rng.beta(mean * weight, (1 - mean) * weight, (trials, prompts, len(means)))
    ease = np.where(rng.random(ease.shape) < shared, ease[..., :1], ease) * (np.array(means) / mean)
    right = rng.binomial(IMAGES, ease)
    return np.stack([right, np.full_like(right, IMAGES)], axis=-1)


def pairs_of(counts: np.ndarray) -> np.ndarray:
    """[trials, C, P, 4]"""
    pairs = itertools.combinations(range(counts.shape[2]), 2)
    return np.stack([counts[:, :, list(pair)].reshape(*counts.shape[:2], 4) for pair in pairs], axis=1)


def as_scored(counts: np.ndarray) -> list[Scored]:
    """R runs of counts {kind: [P, R, 2]}, given as [kinds, P, R, 2]."""
    return [
        Scored(
            {
                f"kind {k}": {str(p): (float(n), int(of)) for p, (n, of) in enumerate(table[:, run])}
                for k, table in enumerate(counts)
            }
        )
        for run in range(counts.shape[2])
    ]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("prompts", [10, 40])
def test_equal_runs_are_called_different_in_at_most_5_percent(prompts: int) -> None:
    """In Holm's first step, which decides where all are equal: for six kinds, and for the overall score."""
    rng = np.random.default_rng(prompts)
    for number, mean, shared in ((3, 0.6, 0.0), (4, 0.6, 0.9), (3, 0.95, 0.5)):
        kinds = {
            str(k): pairs_of(draw(rng, TRIALS // 3, prompts, (mean,) * number, 0.4, shared)) for k in range(6)
        }
        m = number * (number - 1) // 2
        of_kinds = [difference_limits(table, 1 - 0.05 / (6 * m)) for table in kinds.values()]
        wrong = np.any([(low > 0) | (high < 0) for _, _, low, high in of_kinds], axis=(0, 2)).mean()
        assert wrong <= 0.055, (number, mean, shared)
        _, _, low, high = overall_limits(kinds, dict.fromkeys(kinds, 1 / 6), 1 - 0.05 / m)
        assert ((low > 0) | (high < 0)).any(axis=1).mean() <= 0.06, (number, mean, shared)


@pytest.mark.parametrize("means", [(0.6, 0.6, 0.6), (0.6, 0.3, 0.3), (0.8, 0.7, 0.3)])
def test_intervals_hold_all_differences_at_once(means: tuple[float, ...]) -> None:
    rng = np.random.default_rng(3)
    true = np.array([a - b for a, b in itertools.combinations(means, 2)])
    _, _, low, high = difference_limits(pairs_of(draw(rng, TRIALS, 40, means, 0.4, 0.5)), 1 - 0.05 / 3)
    assert ((low <= true) & (true <= high)).all(axis=1).mean() >= 0.94


def test_p_values_are_where_the_interval_ends_at_0() -> None:
    rng = np.random.default_rng(4)
    counts = pairs_of(draw(rng, 20, 30, (0.7, 0.5, 0.45), 0.4, 0.5))
    p = p_value(counts)
    assert p.shape == (20, 3)
    assert p.min() < 0.01 < 0.3 < p.max()
    for factor, out in ((0.999, False), (1.001, True)):
        _, _, low, high = difference_limits(counts, 1 - np.minimum(factor * p, 0.9999))
        assert (((low > 0) | (high < 0)) == out)[p < 0.999].all()


def test_p_values_and_intervals_agree_whatever_the_runs() -> None:
    rng = np.random.default_rng(5)
    differ = 0
    for _ in range(12):
        counts = np.concatenate([draw(rng, 1, 25, (0.8, 0.8, 0.5, 0.42), 0.3, 0.5) for _ in range(2)])
        found = compare_all(as_scored(counts))
        for tag, pairs in found.pairs.items():
            assert [(pair.first, pair.second) for pair in pairs] == list(itertools.combinations(range(4), 2))
            assert {pair.family for pair in pairs} == {6 if tag == "overall" else 12}
            for pair in pairs:
                assert pair.p_adjusted >= pair.p_value
                assert pair.significant == (pair.p_adjusted < 0.05)
                assert pair.interval.low <= pair.value <= pair.interval.high
                higher = label(pair.first if pair.value > 0 else pair.second)
                assert pair.verdict == (f"{higher} is higher" if pair.significant else "can't be told apart")
                differ += pair.significant
        of_kinds = [pair for tag, pairs in found.pairs.items() if tag != "overall" for pair in pairs]
        assert [pair.p_adjusted for pair in of_kinds] == holm([pair.p_value for pair in of_kinds])
    assert 30 < differ < 200


def test_too_few_prompts_are_not_tested_and_cost_the_others_nothing() -> None:
    rng = np.random.default_rng(6)
    many, few = (draw(rng, 1, prompts, (0.9, 0.4, 0.4), 0.3, 0.5) for prompts in (40, 4))
    runs = [
        Scored({"many": big.counts["kind 0"], "few": small.counts["kind 0"]})
        for big, small in zip(as_scored(many), as_scored(few), strict=True)
    ]
    found = compare_all(runs)
    assert {pair.verdict for pair in found.pairs["few"]} == {"too few prompts (4, below 10)"}
    assert {pair.family for pair in found.pairs["many"]} == {3}
    assert found.pairs["many"][0].verdict == "A is higher"
    to_first = compare_all(runs, to_first=True)
    assert [(pair.first, pair.second) for pair in to_first.pairs["many"]] == [(0, 1), (0, 2)]
    assert {pair.family for pair in to_first.pairs["many"]} == {2}


def test_prompts_that_not_all_have_are_left_out() -> None:
    rng = np.random.default_rng(7)
    runs = as_scored(draw(rng, 1, 20, (0.5, 0.5, 0.5), 0.3, 0.5))
    runs[1] = Scored({"kind 0": {key: runs[1].counts["kind 0"][key] for key in map(str, range(5, 20))}})
    found = compare_all(runs)
    assert found.left_out == [5, 0, 5]
    assert found.pairs["kind 0"][0].prompts == 15
    with pytest.raises(BifronsError, match="the runs have no prompt in common"):
        compare_all([*runs, Scored({"kind 0": {"other": (1, 4)}})])
    with pytest.raises(BifronsError, match=r"A and B were not scored alike \(judge: 'x', not 'y'\)"):
        compare_all([Scored(runs[0].counts, None, {"judge": name}) for name in "xy"])
    with pytest.raises(OptionError, match="two or more"):
        compare_all(runs[:1])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, right in (("a", 4), ("b", 4), ("c", 1)):
        rows = [
            {"tag": tag, "correct": j < right, "metadata": f"{tag} {p}"}
            for tag, prompts in (("counting", 30), ("colors", 5))
            for p in range(prompts)
            for j in range(4)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(path))
    assert main(["eval", "compare", *paths]) == 0
    out = capsys.readouterr().out
    assert f"C: {paths[2]}" in out
    assert "A - B        +0.00  [" in out
    assert "too few prompts (5, below 10)" in out
    assert "A - C       +75.00  [" in out
    assert "p < 0.0001  A is higher" in out
    assert main(["eval", "compare", *paths, "--to-first", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == paths
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]["counting"]] == [
        ("A", "B"),
        ("A", "C"),
    ]
    same, other = found["pairs"]["counting"]
    assert (same["verdict"], other["verdict"]) == ("can't be told apart", "A is higher")
    assert (other["names"], other["family"], other["difference"]) == ([paths[0], paths[2]], 2, 0.75)
    assert found["pairs"]["colors"][1]["p_adjusted"] is None
    assert found["scores"]["counting"][2]["score"] == 0.25
    assert main(["eval", "compare", *paths[:2], "--to-first"]) == 2
    capsys.readouterr()
    assert main(["eval", "compare", paths[0], paths[2], "--json"]) == 0
    two = json.loads(capsys.readouterr().out)
    assert two["names"] == [paths[0], paths[2]]
    assert two["kinds"]["counting"]["verdict"] == "A is higher"
    assert two["kinds"]["counting"]["p_value"] < 1e-6
