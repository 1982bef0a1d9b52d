"""Metrics of reading, with values worked out by hand from the benchmarks' definitions."""

import pytest
from bifrons.eval.read.metrics import (
    anls,
    chosen_letter,
    iou,
    levenshtein,
    mme_verdict,
    pope_verdict,
    relaxed_match,
)

OPTIONS = (("A", "a cat"), ("B", "two dogs"), ("C", "Both"), ("D", ""))


def test_boxes() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert iou((0, 0, 10, 10), (20, 20, 30, 30)) == 0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("105", "100", True), ("105.1", "100", False), ("-95", "-100", True), ("5%", "0.05", True),
        ("5", "5%", False), ("0", "0", True), ("0.0", "0", False), ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("1,000", "1000", False), ("nan", "5", False), ("12", "twelve", False),
    ],
)  # fmt: skip
def test_charts(answer: str, target: str, right: bool) -> None:
    assert relaxed_match(answer, target) is right


def test_documents() -> None:
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == 3
    assert anls("The  Cat", ["the cat"]) == 1
    assert anls("ab", ["abcd"]) == 0.5
    assert anls("a", ["abcd"]) == 0
    assert anls("abcx", ["zzzz", "abcd"]) == 0.75
    assert anls("", ["abc"]) == 0


def test_yes_and_no() -> None:
    assert [mme_verdict(text) for text in ("Yes, it is", "no", " NO.", "The yes", "It is")] == [
        "yes", "no", "no", "other", "other",
    ]  # fmt: skip
    said = {"Yes": "yes", "No, there is": "no", "There is not one": "no", "A cat. No dog": "yes", "": "yes"}
    assert {text: pope_verdict(text) for text in said} == said


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("B. two dogs", "B"), ("(C)", "C"), ("A", "A"), ("A.", "A"), ("The answer is B.", "B"),
        ("two dogs", "B"), ("I see two dogs there", "B"), ("A dog and two dogs", "B"), ("B or C", "B"),
        ("a cat or both", None), ("A bird", None), ("E", None), ("", None), ("either B or C", None),
    ],
)  # fmt: skip
def test_choices(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, OPTIONS) == letter
