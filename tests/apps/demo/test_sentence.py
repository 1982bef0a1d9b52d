"""What sentences ask to see, and the numbers in answers."""

import pytest
from bifrons.apps.demo.sentence import (
    MAX_THINGS,
    Relation,
    Thing,
    named_relations,
    named_things,
    number_in,
)
from bifrons.blocks.vocabulary import Vocabulary
from bifrons.nano.world.catalog import things

WORLD = Vocabulary(tuple(things()), ("red",), 6, frozenset(), frozenset(), {})


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
        ("it", []),
        ("Paint three stars, all red!", [("red stars", 3)]),
        ("a star that is red and a circle which is blue", [("red star", 1), ("blue circle", 1)]),
        ("a black and white photo of the hearts", [("hearts", None)]),
        ("at least two dogs without a leash", [("dogs", None), ("leash", 0)]),
        ("no stars or circles", [("stars", 0), ("circles", 0)]),
        ("a star on the left and a circle in the top right corner", [("star", 1), ("circle", 1)]),
        ("a star on a white background", [("star", 1)]),
        ("there are a couple of dogs and a dozen eggs", [("dogs", 2), ("eggs", 12)]),
        ("a woman wearing a hat", [("woman", 1), ("hat", 1)]),
    ],
)
def test_things_of_a_sentence(sentence, expected):
    assert [(thing.phrase, thing.count) for thing in named_things(sentence)] == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a photo of a red star to the left of the blue circle", [("red star", "left of", "blue circle")]),
        ("a heart higher than a cross", [("heart", "above", "cross")]),
        ("the star is under the circle", [("star", "below", "circle")]),
        ("a circle with a star to its right", [("star", "right of", "circle")]),
        ("a red star with a blue circle below it", [("blue circle", "below", "red star")]),
        ("a circle and, above it, a star", [("star", "above", "circle")]),
        (
            "two hearts left of a star and above a circle",
            [("hearts", "left of", "star"), ("hearts", "above", "circle")],
        ),
        (
            "a star left of a circle, the square is above the heart",
            [("star", "left of", "circle"), ("square", "above", "heart")],
        ),
        ("a star on the left, a circle on the right, waves below", []),
        ("left of it", []),
    ],
)
def test_relations_of_a_sentence(sentence, expected):
    assert [(one.first, one.name, one.second) for one in named_relations(sentence)] == expected


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("I'd like a pair of red scissors, please", [("red scissors", 1)]),
        ("can you draw a sigle hot dog on the grass?", [("hot dog", 1)]),
        ("three sheep that are not black", [("sheep", 3), ("black sheep", 0)]),
        ("a small cat of the colour grey", [("gray cat", 1)]),
        ("two red foxes", [("red foxes", 2)]),  # no thing of that world: read as by any other model
    ],
)
def test_sentences_of_the_world_of_things(sentence, named):
    assert [(thing.phrase, thing.count) for thing in named_things(sentence, WORLD)] == named


def test_relations_of_the_world_of_things_are_those_that_boxes_show():
    sentence = "a spoon inside a cup and a bear at the left side of the cup"
    (only,) = named_relations("a dog with a red kite to its left", WORLD)
    assert only == Relation("red kite", "left of", "dog")
    assert "inside" not in [one.name for one in named_relations(sentence, WORLD)]


def test_a_sentence_of_any_length_names_few_things():
    assert len(named_things("a dog and " * 10 + ", ".join(f"a b{i}" for i in range(100_000)))) == MAX_THINGS


def test_verdicts():
    hearts = Thing("green hearts", 3)
    assert hearts.verdict(3) == (True, "3 of 3 green hearts")
    assert hearts.verdict(2) == (False, "2 of 3 green hearts")
    assert hearts.verdict(4) == (False, "3 green hearts asked for, 4 seen")
    assert Thing("cats", None).verdict(0) == (False, "cats asked for, none seen")
    assert Thing("cats", None).verdict(5) == (True, "cats asked for, 5 seen")
    assert Thing("dog", 0).verdict(0) == (True, "no dog asked for, none seen")
    assert Thing("dog", 0).verdict(1) == (False, "no dog asked for, 1 seen")
    above = Relation("star", "above", "circle")
    assert above.verdict(True) == (True, "star above circle: yes")
    assert above.verdict(False) == (False, "star above circle: no")
    assert above.verdict(None) == (None, "star above circle: that isn't clear")


@pytest.mark.parametrize(
    ("answer", "number"), [("three", 3), ("There are 12 of them.", 12), ("None.", 0), ("I can't say", None)]
)
def test_numbers_in_answers(answer, number):
    assert number_in(answer) == number
