"""Questions, phrases and captions about pictures of the world of things, and signs with words."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from bifrons.blocks.errors import OptionError
from bifrons.nano.world import asking, comparing, pointing
from bifrons.nano.world.painting import Picture, Sign, paint
from bifrons.nano.world.pictures import sample_pair, sample_size, sample_view
from bifrons.nano.world.reading import read_request
from bifrons.nano.world.requests import Seen, held_out_coloring
from bifrons.nano.world.signs import WORDS, hang_sign, held_out_word, sample_words
from bifrons.nano.world.view import View
from bifrons.vl2.grounding import parse_grounding


def _view(*seen: Seen, sign: Sign | None = None) -> View:
    """A picture of 300 x 200 pixels with these things, in a meadow."""
    drawn = paint(read_request("a cat in a meadow"), Random(0), 300, 200)
    return View(Picture(drawn.pixels_HW3, seen, drawn.owner_HW, drawn.layout, sign))


CAT = Seen("cat", "red", 0, (20, 80, 80, 140), 0, 1.0)
DOG = Seen("dog", "blue", 0, (210, 70, 290, 150), 1, 1.0)
DOG_2 = Seen("dog", "blue", 0, (130, 76, 190, 146), 2, 1.0)
SKIS = Seen("skis", "red", 0, (240, 10, 280, 60), 3, 1.0)
SIGN = Sign("Hot Tea", (100, 10, 180, 40))


def _answers(view: View, kind: str) -> dict[str, str]:
    rng = Random(kind)
    found = [asking.ask(view, rng, kind, "any") for _ in range(300)]
    return {question.text: question.answer for question in found if question}


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("what", "What is left of the dog?", "cat"),
        ("what", "Which thing is blue?", "dog"),
        ("color", "What colour is the cat?", "red"),
        ("count", "How many things are there?", "two"),
        ("count", "How many cats do you see?", "one"),
        ("compare", "Which is larger, the cat or the dog?", "dog"),
        ("exists", "Is there a cat?", "yes"),
        ("exists", "Is there no dog?", "no"),
        ("exists", "Is there a blue cat?", "no"),
        ("is color", "Is the cat red?", "yes"),
        ("is color", "Is the cat blue?", "no"),
        ("is related", "Is the dog right of the cat?", "yes"),
        ("is related", "Is the cat to the right of the dog?", "no"),
        ("is related", "Is the cat inside the dog?", "no"),
        ("same", "Do the cat and the dog have the same colour?", "no"),
        ("where", "Where is the cat, seen from the dog?", "left"),
        ("where", "Where is the dog?", "on the right"),
        ("where", "Where is this?", "in a meadow"),
        ("sign", "Is there a sign?", "no"),
    ],
)
def test_questions_about_a_cat_and_a_dog(kind: str, question: str, answer: str):
    assert _answers(_view(CAT, DOG), kind)[question] == answer


def test_questions_about_several_things_and_a_sign():
    view = _view(CAT, DOG, DOG_2, SKIS, sign=SIGN)
    assert _answers(view, "count")["Count the blue dogs."] == "two"
    assert _answers(view, "compare")["Are there more dogs than cats?"] == "yes"
    assert _answers(view, "compare")["Are there more cats or dogs?"] == "dogs"
    assert _answers(view, "color")["What color are the dogs?"] == "blue"
    assert _answers(view, "color")["What colour are the skis?"] == "red"
    assert _answers(view, "is color")["Are the skis red?"] == "yes"
    assert _answers(view, "same")["Does the cat have the same color as the skis?"] == "yes"
    signs = _answers(view, "sign")
    assert signs["What does the sign say?"] == "Hot Tea"
    assert signs["How many words are on the sign?"] == "two"
    assert signs["Is there a sign?"] == "yes"
    assert not any("the dog " in text for text in _answers(view, "where"))
    assert pointing.caption(view) == (
        'a red cat, two blue dogs, a pair of red skis and a sign that says "Hot Tea" in a meadow'
    )


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("list", "What things are in the picture?", "a cat, two dogs and a pair of skis"),
        ("sort", "How many animals are there?", "three"),
        ("sort", "Are there any vehicles?", "no"),
        ("number", "Are there two dogs?", "yes"),
        ("number", "Are there exactly 5 things?", "no"),
        ("number", "Are there more than two things?", "yes"),
        ("all", "Are all dogs blue?", "yes"),
        ("all", "Are all things red?", "no"),
        ("either", "Is there a cat and a dog?", "yes"),
        ("extreme", "What is the leftmost thing?", "cat"),
        ("extreme", "What is at the very top?", "skis"),
        ("place", "Is this in a meadow?", "yes"),
        ("place", "Is this in a room?", "no"),
        ("says", "Where is the sign?", "at the top"),
        ("says", 'Does the sign say "Hot Tea"?', "yes"),
    ],
)
def test_more_questions(kind: str, question: str, answer: str):
    assert _answers(_view(CAT, DOG, DOG_2, SKIS, sign=SIGN), kind)[question] == answer


def test_what_is_not_there_is_said_to_be_so():
    missing = _answers(_view(CAT), "missing")
    assert set(missing.values()) == {"It is not there."}
    assert not any("cat " in f"{text} ".replace("?", "") for text in missing)
    assert set(_answers(_view(CAT), "says").values()) == {"It is not there."}
    signs = _answers(_view(CAT, sign=SIGN), "says")
    assert sum(answer == "no" for text, answer in signs.items() if "say" in text) > 10
    assert _answers(_view(CAT), "extreme") == {}


def test_boxes_are_those_of_the_truth():
    view = _view(CAT, DOG, DOG_2, sign=SIGN)
    found = {}
    rng = Random(0)
    for _ in range(400):
        phrase = pointing.point(view, rng, split="any")
        found[phrase.text] = phrase.answer(view)
    assert found["the blue dogs"] == (
        "<|ref|>the blue dogs<|/ref|><|det|>[[433, 380, 633, 729], [699, 350, 966, 749]]<|/det|>"
    )
    assert found["the green cat"] == "It is not there."
    boxes = parse_grounding(found["the sign"], (300, 200)).boxes
    assert np.abs(np.subtract(boxes[0].pixels, SIGN.box)).max() <= 1
    text = pointing.boxed_caption(view)
    boxes = parse_grounding(text, (300, 200)).boxes
    assert [box.label for box in boxes] == ["a red cat", *["two blue dogs"] * 2, 'a sign that says "Hot Tea"']


@pytest.fixture(scope="module")
def views() -> list[View]:
    rng = Random(11)
    return [sample_view(rng) for _ in range(36)]


def test_yes_and_no_are_about_as_frequent(views: list[View]):
    rng = Random(2)
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in asking.KINDS}
    for view in views:
        for kind in ("exists", "is color", "is related"):
            for _ in range(12):
                if question := asking.ask(view, rng, kind):
                    answers[kind][question.answer] += 1
    for kind in ("exists", "is color", "is related"):
        assert 0.38 < answers[kind]["yes"] / answers[kind].total() < 0.62, kind


def test_training_names_nothing_that_is_held_out(views: list[View]):
    rng = Random(4)
    for view in views:
        assert not any(held_out_coloring(one.thing, one.color) for one in view.seen)
        assert view.picture.sign is None or not any(map(held_out_word, view.picture.sign.words.split()))
        for kind in asking.KINDS:
            question = asking.ask(view, rng, kind)
            assert question is None or not question.held_out
        assert not pointing.point(view, rng).held_out


def test_what_is_held_out_is_asked_on_its_own():
    assert held_out_coloring("cat", "yellow")
    view, rng = _view(Seen("cat", "yellow", 0, (20, 80, 80, 140), 0, 1.0)), Random(0)
    assert asking.ask(view, rng, "color") is None
    question = asking.ask(view, rng, "color", "held_out")
    assert question is not None
    assert (question.answer, question.held_out) == ("yellow", True)
    assert asking.ask(_view(CAT), rng, "color", "held_out") is None


def test_pictures_have_many_shapes_and_signs(views: list[View]):
    assert len({view.picture.pixels_HW3.shape for view in views}) > 10
    assert 5 < sum(view.picture.sign is not None for view in views) < 22
    rng = Random(5)
    for width, height in (sample_size(rng) for _ in range(200)):
        assert 160 <= min(width, height) <= 256
        assert max(width, height) <= 2.5 * min(width, height)


def test_signs_are_where_nothing_else_is_and_say_their_words():
    rng = Random(6)
    for _ in range(12):
        before = sample_view(rng, "any", (192, 192)).picture
        picture = hang_sign(before, sample_words(rng), rng)
        if picture is None or picture.sign is None:
            continue
        x0, y0, x1, y1 = map(int, picture.sign.box)
        changed = (picture.pixels_HW3 != before.pixels_HW3).any(-1)
        assert changed[y0:y1, x0:x1].mean() > 0.8
        assert not (changed & (picture.owner_HW >= 0)).any()
        assert 0 <= x0 < x1 <= 192
        assert 0 <= y0 < y1 <= 192


def test_words_on_signs():
    rng = Random(7)
    texts = [sample_words(rng) for _ in range(600)]
    assert {len(text.split()) for text in texts} == {1, 2, 3}
    assert max(map(len, texts)) <= 16
    assert 0.4 < sum(text.lower() in WORDS for text in texts if " " not in text) / 300 < 0.9
    assert not any(held_out_word(word) for text in texts for word in text.split())
    assert any(map(held_out_word, sample_words(rng, "held_out").split()))
    assert 0.04 < sum(map(held_out_word, WORDS)) / len(WORDS) < 0.16


def test_questions_about_two_pictures():
    first, second = _view(CAT, DOG, sign=SIGN), _view(Seen("cat", "green", 0, (20, 80, 80, 140), 0, 1.0))
    rng, found = Random(8), {}
    for kind in comparing.KINDS:
        for _ in range(600 if kind == "one" else 120):
            if question := comparing.compare(first, second, rng, kind, "any"):
                found[question.text] = question.answer
    assert found["Which picture shows a cat?"] == "both"
    assert found["In which picture is there a green cat?"] == "the second"
    assert found["Which picture has more things?"] == "the first"
    assert found["How many cats do both pictures show?"] == "two"
    assert found["Is the cat the same color in both pictures?"] == "no"
    assert found["What do both pictures show?"] == "cat"
    assert found["What is in the first picture, but not in the other?"] == "dog"
    assert found["Which picture has a sign?"] == "the first"
    assert found["What does the sign say?"] == "Hot Tea"
    colors = {
        name: {a for t, a in found.items() if name in t and "r is the cat" in t}
        for name in ("first", "second")
    }
    assert colors == {"first": {"red"}, "second": {"green"}}
    assert found["Which picture was taken in a meadow?"] == "both"


def test_pairs_have_things_in_common():
    rng = Random(9)
    pairs = [sample_pair(rng) for _ in range(12)]
    common = [{one.thing for one in a.seen} & {one.thing for one in b.seen} for a, b in pairs]
    assert sum(map(bool, common)) >= 6


def test_unknown_kinds_are_refused(views: list[View]):
    with pytest.raises(OptionError, match="no questions of kind 'taste'; accepted: what, color, "):
        asking.ask(views[0], Random(0), "taste")
    with pytest.raises(OptionError, match="'taste' about two pictures; accepted: which, more, "):
        comparing.compare(views[0], views[1], Random(0), "taste")
