"""Answers taken out of texts, and their equality; hostile ones take no time."""

import time

import pytest
from bifrons.eval.math.extract import boxed, last_number, marked
from bifrons.eval.math.values import expected_answer, is_right, number_of, same_answer

EQUAL = [
    ("1/2", "0.5"), (r"\frac{1}{2}", "0.5"), (r"\dfrac12", "1/2"), (r"\tfrac{\sqrt{3}}{3}", r"1/\sqrt3"),
    ("1,000", "1000"), ("10{,}000", "10000"), ("1,234,567", "1234567"), (r"\$1,234.50", "1234.5"),
    ("50%", "0.5"), (r"50\%", "50"), ("5 cm", "5"), (r"5\text{ cm}", "5 cm"), (r"5\mathrm{cm}", "5"),
    (r"16\text{ square units}", "16"), ("3 dollars", r"\$3"), (r"45^\circ", "45"), ("45°", r"45^{\circ}"),
    ("45 degrees", "45°"), ("5 m/s^2", "5"), ("x=5", "5"), (r"x \in [0,1]", "[0,1]"), ("y = 2x+1", "2x+1"),
    ("-3", "\u22123"), ("+3", "3"), ("12.0", "12"), (".5", "0.5"), ("7.", "7"), ("1e3", "1000"),
    (r"1.5\times10^{-3}", "0.0015"), ("10^3", "1000"), ("2^{-1}", "1/2"), (r"-\frac{3}{4}", "-0.75"),
    (r"\frac{-3}{4}", "-.75"), (r"1\frac{1}{2}", "3/2"), ("1 1/2", "1.5"), (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\sqrt[3]{8}", "2"), (r"\pi/2", r"\frac{\pi}{2}"), ("√2", r"\sqrt{2}"), (r"\sin 30", r"\sin(30)"),
    ("x^2+2x+1", "(x+1)^2"), (r"\frac{x+2}{7}", "(x+2)/7"), ("(x-1)(x+1)", "x^2-1"), ("ab", "ba"),
    (r"\left( \frac{1}{2}, 3 \right)", "(0.5,3)"), (r"\{1,2\}", r"\{2, 1\}"), ("1, -2", "-2,1"),
    (r"3\text{ and }4", "4,3"), (r"3 \pm \sqrt{2}", r"3+\sqrt{2}, 3-\sqrt{2}"), ("[0, 1)", "[0,1)"),
    (r"(-\infty, 3]", r"(-\infty,3]"), (r"\text{Evelyn}", "evelyn"), ("(C)", "C"), (r"\text{(C)}", "C"),
    ("Yes.", "yes"), ("three", "3"), ("$\\frac{1}{3}$", "1/3"), (r"\(4\)", "4"), ("|-3|", "3"),
]  # fmt: skip
DIFFERENT = [
    ("1/3", "0.33"), ("5 cm", "5 m"), ("(1,2)", "(2,1)"), ("(0,1)", "[0,1]"), ("25", "0.25"), ("1,2", "1,3"),
    ("yes", "no"), ("x", "y"), ("12", "1,2"), ("1 2", "12"), ("3", "-3"), ("", "3"), ("2x", "x^2"),
    (r"\sqrt{2}", "1.414"), ("9" * 500, "8" * 500), ("A", "B"), ("1", "1,1"), ("5!", "5"),
    (r"\frac{1}{0}", "1"), ("1,000", "1"), ("(", "3"), (r"\frac", "3"), ("3.14", r"\pi"), ("left", "right"),
    ("__import__('os')", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_answers(one: str, other: str) -> None:
    assert same_answer(one, other)
    assert same_answer(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_answers(one: str, other: str) -> None:
    assert not same_answer(one, other)
    assert not same_answer(other, one)


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        (r"It is \boxed{\frac{\sqrt{4}}{4}}.", "0.5", True),
        (r"First \boxed{3}, no: \boxed{4}", "4", True),
        (r"\boxed{4} for 3 people", "4", True),
        (r"\boxed{5", "5", True),  # no box: the last number
        ("<think>2 and 1</think> <answer> 3 </answer>", "3", True),
        (r"<think>\boxed{3}</think> It is 4.", "3", False),
        (r"<think>It may be \boxed{3}", "3", False),
        (r"so \boxed{3}</think> \boxed{4}", "4", True),
        ("17 + 5 = 22", "22", True),
        ("The price is $1,250.50 for 1 day", "1", True),
        ("She pays $1,250.", "1250", True),
        ("In total -2/3", r"-\frac{2}{3}", True),
        ("some working\n#### 72", "72", True),
        ("a star, a heart\nfour.", "four", True),
        ("two three five", "5", True),
        ("one star, one heart: two", "two", True),
        ("The color is: Red.", "red", True),
        ("It is red, not blue", "red", False),
        ("the answer is 7", "8", False),
        ("", "3", False),
        ("no number", "3", False),
    ],
)
def test_answers_of_texts(text: str, expected: str, right: bool) -> None:
    assert is_right(text, expected) is right


def test_what_texts_mark() -> None:
    assert boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert boxed(r"\boxed{a{b}c} \fbox{d}") == "d"
    assert boxed(r"\boxed 5") == "5"
    assert boxed(r"\boxedfoo{1}") is None
    assert boxed(r"\boxed{1} \boxed{2") == "1"
    assert marked("<answer>1</answer> or <answer>2</answer>") == "2"
    assert marked("none") is None
    texts = ("3-5", "v1.2.3", "costs $1,000", "12,34", "50 %", "three of four")
    assert [*map(last_number, texts)] == ["5", None, "$1,000", "34", "50 %", "four"]
    assert expected_answer("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 1,072") == "1,072"
    assert expected_answer(r"Thus $x = \boxed{\frac12}$.") == r"\frac12"
    assert number_of("3 apples") == 3
    assert number_of("x+1") is number_of("red") is number_of("1,2") is None


@pytest.mark.parametrize(
    "text",
    [
        "9^" * 300 + "9", "(" * 900, r"\frac{" * 150, "{" * 1000 + "}" * 1000, "9" * 100_000,
        r"\boxed{" * 20_000, "2^2^2^2^2^2^2", "99999999^99999999", "0^-1", "(-1)^{0.5}", "1/0", "x" * 900,
        ",".join(["1"] * 400),
        r"\sqrt" * 190, "-" * 900 + "1", "1" + "+1" * 480, "e^e^e^e^e", "i^i", "ln 0", "|" * 900, "x_1" * 100,
        " " * 1_000_000 + "1", "1," * 1_000_000, r"\text{" * 300, "<answer>" * 100_000, "1/" * 100_000, 
        "$1" * 100_000, "\ud800", "\x00", "1" + " " * 100_000 + "/", "<think>" * 100_000,
    ],
)  # fmt: skip
def test_hostile_answers_are_bounded(text: str) -> None:
    start = time.perf_counter()
    assert is_right(text, "3") is False
    assert same_answer(text, text[:900] + "7") is False
    assert is_right("3", text) is False
    assert time.perf_counter() - start < 5
