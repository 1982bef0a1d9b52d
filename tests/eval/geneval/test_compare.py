"""Differences of two evaluations, against what is known of synthetic ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from bifrons.apps.cli.main import main
from bifrons.blocks.errors import BifronsError
from bifrons.eval.geneval.compare import compare

KINDS = ("single_object", "position")


def rows(right: dict[str, np.ndarray], images: int) -> list[dict[str, object]]:
    """`right[tag]` int [P]: how many of the pictures of each prompt are right."""
    return [
        {"tag": tag, "correct": j < right[tag][p], "metadata": f"{tag} {p}"}
        for tag in right
        for p in range(len(right[tag]))
        for j in range(images)
    ]


def plain(content: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**row, "correct": bool(row["correct"])} for row in content]


def test_figures_and_prompts_that_are_not_common() -> None:
    a = plain(rows({"single_object": np.array([4, 2, 0, 4]), "position": np.array([1, 1])}, 4))
    b = plain(rows({"single_object": np.array([4, 0, 0]), "position": np.array([1, 3, 2])}, 4))
    found = compare(a, b)
    single, position, overall = (found.kinds[tag] for tag in (*KINDS, "overall"))
    assert (single.a, single.b, single.prompts) == (6 / 12, 4 / 12, 3)
    assert (position.a, position.b, position.prompts) == (2 / 8, 4 / 8, 2)
    assert overall.value == pytest.approx((1 / 6 - 1 / 4) / 2)
    assert (found.only_a, found.only_b) == (1, 1)
    turned = compare(b, a)
    for tag, kind in found.kinds.items():
        low, high = turned.kinds[tag].interval
        assert kind.interval == pytest.approx((-high, -low), abs=0.01)
        assert kind.interval.low <= kind.value <= kind.interval.high
    with pytest.raises(BifronsError, match="no prompt in common"):
        compare(a[:4], b[4:])
    with pytest.raises(BifronsError, match="results of B, row 1"):
        compare(a, [{"tag": "x"}])


def test_prompts_that_are_hard_for_both_do_not_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    ease = rng.beta(0.3, 0.3, 100)
    a, b = (plain(rows({"colors": rng.binomial(4, ease)}, 4)) for _ in range(2))
    paired = compare(a, b).kinds["colors"].interval
    shuffled = [{**row, "metadata": f"colors {int(str(row['metadata']).split()[1]) * 37 % 100}"} for row in b]
    unpaired = compare(a, shuffled).kinds["colors"].interval
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_intervals_cover_the_true_difference() -> None:
    """150 pairs of runs of two kinds, 40 prompts each, whose shares of ease differ by known amounts."""
    rng, hits, trials = np.random.default_rng(1), {"single_object": 0, "position": 0, "overall": 0}, 150
    truth = {"single_object": 0.0, "position": 0.1, "overall": 0.05}
    for _ in range(trials):
        sides = []
        ease = {tag: rng.uniform(0.2, 0.85, 40) for tag in KINDS}
        for more in (truth, dict.fromkeys(KINDS, 0.0)):
            right = {tag: rng.binomial(4, ease[tag] + more[tag]) for tag in KINDS}
            sides.append(plain(rows(right, 4)))
        found = compare(*sides)
        for tag, kind in found.kinds.items():
            hits[tag] += kind.interval.low <= truth[tag] <= kind.interval.high
    for tag, count in hits.items():
        assert 0.91 <= count / trials <= 0.99, (tag, count)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, right in (("a", 4), ("b", 0)):
        content = plain(rows({"counting": np.full(40, right)}, 4))
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    arguments = ["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b" / "results.jsonl")]
    assert main(arguments) == 0
    assert "+100.00" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kinds"]["counting"]["difference"] == 1.0
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "can't be told apart" in capsys.readouterr().out
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path)]) == 1
