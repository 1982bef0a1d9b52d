"""Sentences about the world of things: wordings, spelling, and how they are read."""

from collections import Counter
from random import Random

import pytest
from bifrons.blocks.errors import PromptError
from bifrons.nano.world.catalog import PAINTS, thing, things
from bifrons.nano.world.describing import describe, plain_sentence, restate
from bifrons.nano.world.names import OTHER_WORDS, article, plural, repair, vocabulary
from bifrons.nano.world.reading import read_request, unknown_words
from bifrons.nano.world.requests import (
    LINKS,
    MIRROR,
    Absence,
    Group,
    Link,
    Request,
    from_row,
    held_out_coloring,
    held_out_link,
    held_out_role,
    is_held_out,
    to_row,
)
from bifrons.nano.world.sampling import HELD_OUT_KINDS, KINDS, MORE_KINDS, sample_request


def _sides(request: Request):
    groups = request.groups
    links = sorted((groups[k.first].thing, k.name, groups[k.second].thing) for k in request.links)
    return sorted(map(str, groups)), links, sorted(map(str, request.absences)), request.place


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_each_sentence_is_read_as_its_request(kind: str):
    rng = Random(f"sentences {kind}")
    for _ in range(60):
        request = sample_request(kind, rng, "any")
        for text in (describe(request, rng), plain_sentence(request)):
            assert _sides(read_request(text)) == _sides(request), text


def test_wordings_are_many():
    rng, request = Random(0), Request((Group("car", 1, "gray"), Group("sheep", 2)), (Link(0, "left of", 1),))
    texts = {describe(request, rng) for _ in range(400)}
    assert len(texts) > 150
    words = Counter(word for text in texts for word in text.lower().strip(".!?").split())
    assert min(words["gray"], words["grey"], words["left"], words["paint"], words["photo"]) > 5
    assert words["sheep"] > 100
    assert any(text[0].isupper() for text in texts)
    assert any(text[0].islower() for text in texts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("person", "people"), ("sheep", "sheep"), ("knife", "knives"), ("skis", "skis"), ("bus", "buses"),
        ("scissors", "scissors"), ("computer mouse", "computer mice"), ("mouse", "mice"),
        ("bench", "benches"),
        ("wine glass", "wine glasses"), ("toothbrush", "toothbrushes"), ("mobile phone", "mobile phones"),
        ("cross", "crosses"), ("broccoli", "broccolis"), ("tennis racquet", "tennis racquets"),
    ],
)  # fmt: skip
def test_plurals(name: str, expected: str):
    assert plural(name) == expected
    assert read_request(f"three {expected}") == read_request(f"three {name}")


def test_articles():
    words = ("orange cat", "umbrella", "apple", "oven", "elephant", "car", "unicorn", "hot dog")
    assert [article(word).split()[0] for word in words] == ["an"] * 5 + ["a"] * 3


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("an orange", [Group("orange")]),
        ("An ORANGE orange, please!", [Group("orange", 1, "orange")]),
        ("a black orange and an orange dog", [Group("orange", 1, "black"), Group("dog", 1, "orange")]),
        ("a car that is orange", [Group("car", 1, "orange")]),
        ("two grey cats", [Group("cat", 2, "gray")]),
        ("a bus of the colour red", [Group("bus", 1, "red")]),
        ("3 blue-coloured mugs", [Group("cup", 3, "blue")]),
        ("a pair of red scissors", [Group("scissors", 1, "red")]),
        ("two pairs of skis", [Group("skis", 2)]),
        ("a pair of red cats", [Group("cat", 2, "red")]),
        ("a photo of four knifes", [Group("knife", 4)]),
        ("half a dozen tiny sheeps", [Group("sheep", 6, size="small")]),
        ("a hot dog, a dog and a teddy bear", [Group("hot dog"), Group("dog"), Group("teddy bear")]),
        ("Draw me a televison and a huge sofa", [Group("tv"), Group("couch", size="large")]),
        ("five grene frisbees", [Group("frisbee", 5, "green")]),
        ("a dgo", [Group("dog")]),
    ],
)
def test_things_counts_colors_and_spelling(text: str, groups: list[Group]):
    assert list(read_request(text).groups) == groups


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("a cat left of a dog", ("cat", "left of", "dog")),
        ("a cat on the right side of a dog", ("cat", "right of", "dog")),
        ("a dog with a cat to its left", ("cat", "left of", "dog")),
        ("a dog and, behind it, a cat", ("cat", "behind", "dog")),
        ("an apple in a bowl", ("apple", "inside", "bowl")),
        ("a bird on top of a bus", ("bird", "above", "bus")),
        ("a bird on a bus", ("bird", "above", "bus")),
        ("a bird beneath a bus", ("bird", "below", "bus")),
        ("a bird in front of a red bus", ("bird", "in front of", "bus")),
    ],
)
def test_relations(text: str, link: tuple[str, str, str]):
    request = read_request(text)
    names = [group.thing for group in request.groups]
    assert [(names[k.first], k.name, names[k.second]) for k in request.links] == [link]


def test_absences_and_places():
    request = read_request("Two red cats without any dogs or birds in a room, but no black cars.")
    assert request.groups == (Group("cat", 2, "red"),)
    assert request.absences == (Absence("dog"), Absence("bird"), Absence("car", "black"))
    assert request.place == "room"
    assert read_request("0 dogs and a cat") == read_request("a cat, no dog")
    assert read_request("a cat but not black").absences == (Absence("cat", "black"),)


def test_unknown_words_are_named():
    assert unknown_words("a unicorn and a Red cat, eine Katze") == ["unicorn", "eine", "katze"]
    with pytest.raises(
        PromptError, match=r"unknown words: unicorn; a picture can show airplane, apple, .* red"
    ):
        read_request("a unicorn")
    with pytest.raises(PromptError, match="the sentence names no thing to show"):
        read_request("draw")
    for text, total in (("four cats and four dogs", 8), ("nine cats", 9), ("12 cats", 12)):
        with pytest.raises(PromptError, match=f"1 to 6 things, not {total}"):
            read_request(text)


def test_common_words_are_no_spelling_mistakes():
    assert OTHER_WORDS & vocabulary() == frozenset()
    assert [
        word for word in ("goat", "pear", "lake", "house", "shoes", "tree", "love", "fine") if repair(word)
    ] == []
    assert repair("elephnat") == "elephant"
    assert repair("elephaxy") is None


@pytest.mark.parametrize("kind", HELD_OUT_KINDS)
def test_held_out_combinations_stay_out_of_training(kind: str):
    rng = Random(f"split {kind}")
    assert [is_held_out(sample_request(kind, rng)) for _ in range(40)] == [False] * 40
    assert [is_held_out(sample_request(kind, rng, "held_out")) for _ in range(10)] == [True] * 10


def test_a_tenth_is_held_out_and_nothing_usual():
    names = list(things())
    colorings = [held_out_coloring(name, color) for name in names for color in PAINTS]
    assert 0.08 < sum(colorings) / len(colorings) < 0.12
    usual = [(name, color) for name in names for color in thing(name).colors if thing(name).kind != "shape"]
    assert not any(held_out_coloring(name, color) for name, color in usual)
    pairs = [(a, link, b) for a in names for b in names if a != b for link in LINKS]
    held = [triple for triple in pairs if held_out_link(*triple)]
    assert 0.08 < len(held) / len(pairs) < 0.12
    assert all(held_out_link(b, MIRROR[link], a) for a, link, b in held if link in MIRROR)
    roles = [(name, color, link) for name in names for color in PAINTS for link in LINKS]
    assert 0.08 < sum(held_out_role(*role) for role in roles) / len(roles) < 0.12


def test_what_is_held_out_depends_on_names_only():
    """A thing that is added, or another order, changes nothing: the split is that of published weights."""
    assert [color for color in PAINTS if held_out_coloring("cat", color)] == ["yellow", "purple"]
    assert [link for link in LINKS if held_out_link("dog", link, "cat")] == ["inside"]
    held = [(c, k) for c in ("red", "blue", "green") for k in LINKS if held_out_role("cat", c, k)]
    assert held == [("red", "left of"), ("green", "above")]


def test_a_colored_thing_in_a_relation_can_be_held_out_where_its_parts_are_not():
    color, name = next((c, k) for c in PAINTS for k in LINKS[:4] if held_out_role("cat", c, k))
    other = next(n for n in things() if n != "cat" and not held_out_link("cat", name, n))
    cat, link = Group("cat", 1, color), Link(0, name, 1)
    assert is_held_out(Request((cat, Group(other)), (link,)))
    assert is_held_out(Request((Group(other), cat), (Link(0, MIRROR[name], 1),)))
    assert not is_held_out(Request((Group("cat"), Group(other)), (link,)))
    assert is_held_out(Request((cat, Group(other)))) == held_out_coloring("cat", color)


def test_metadata_rows_and_back():
    request = Request(
        (Group("cat", 1, "red"), Group("dog"), Group("bird")), (Link(0, "left of", 1), Link(1, "above", 2))
    )
    row = to_row(request, "chain", "a sentence")
    assert [clause["class"] for clause in row["include"]] == ["bird", "dog", "cat"]
    assert row["include"][2] == {"class": "cat", "count": 1, "color": "red", "position": ["left of", 1]}
    assert _sides(from_row(row)) == _sides(request)
    assert to_row(Request((Group("cat", 3),)), "counting", "three cats")["exclude"] == [
        {"class": "cat", "count": 4}
    ]


def test_a_request_is_restated_thing_by_thing():
    groups = (Group("backpack", 1, "purple"), Group("cup", 2, "yellow", "small"), Group("cat"))
    request = Request(groups, (Link(0, "above", 1), Link(2, "inside", 0)), (Absence("dog", "red"),), "meadow")
    assert restate(request) == (
        "one backpack: purple, above cups, around cat; two cups: small, yellow, below backpack; "
        "one cat: inside backpack; no red dog; meadow"
    )
