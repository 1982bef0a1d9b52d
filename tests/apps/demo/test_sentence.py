"""What sentences ask to see, and the numbers in answers."""

import pytest
from bifrons.apps.demo.sentence import MAX_THINGS, Thing, named_things, number_in


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a photo of a red star and a blue circle", [("red star", 1), ("blue circle", 1)]),
        ("Three green hearts.", [("green hearts", 3)]),
        ("an image of 12 dogs", [("dogs", 12)]),
        ("a photo of a bench left of a bear", [("bench", 1), ("bear", 1)]),
        ("two cats on top of the sofa, no dog", [("cats", 2), ("sofa", 1), ("dog", 0)]),
        ("cats", [("cats", None)]),
        ("a red star and a red star", [("red star", 1)]),
        ("  ", []),
    ],
)
def test_things_of_a_sentence(sentence, expected):
    assert [(thing.phrase, thing.count) for thing in named_things(sentence)] == expected


def test_a_sentence_of_any_length_names_few_things():
    assert len(named_things("a dog and " * 10 + ", ".join(f"a b{i}" for i in range(100_000)))) == MAX_THINGS


def test_verdicts():
    hearts = Thing("green hearts", 3)
    assert hearts.verdict(3) == (True, "3 of 3 green hearts")
    assert hearts.verdict(2) == (False, "2 of 3 green hearts")
    assert Thing("cats", None).verdict(0) == (False, "cats: 0")
    assert Thing("cats", None).verdict(5) == (True, "cats: 5")


@pytest.mark.parametrize(
    ("answer", "number"), [("three", 3), ("There are 12 of them.", 12), ("None.", 0), ("I can't say", None)]
)
def test_numbers_in_answers(answer, number):
    assert number_in(answer) == number
