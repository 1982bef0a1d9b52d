"""Sentences agree with their scenes, in GenEval's schema; questions agree with theirs."""

from collections import Counter
from random import Random

import pytest
from bifrons.blocks.errors import OptionError
from bifrons.nano.world import questions
from bifrons.nano.world.questions import sample_question
from bifrons.nano.world.relations import GRID_CELLS
from bifrons.nano.world.scene import (
    COLORS,
    HELD_OUT_COLORINGS,
    HELD_OUT_RELATIONS,
    SHAPES,
    box_of,
    is_held_out,
    relation,
    sample_scene,
)
from bifrons.nano.world.sentences import HELD_OUT_KINDS, KINDS, sample_case, suite
from bifrons.nano.world.wording import NUMBER_WORDS

ALL_KINDS = (*KINDS, "mixed")


def _fulfils(metadata, scene) -> bool:
    """Official include and exclude clauses, read off the scene itself, and nothing besides them."""
    groups = []
    for clause in metadata["include"]:
        found = [t for t in scene.objects if t.shape == clause["class"]]
        if len(found) != clause["count"]:
            return False
        if "color" in clause and any(t.color != clause["color"] for t in found):
            return False
        if "position" in clause:
            name, index = clause["position"]
            if any(relation(box_of(a), box_of(b)) != {name} for a in found for b in groups[index]):
                return False
        groups.append(found)
    return sum(map(len, groups)) == len(scene.objects)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_scene_shows_exactly_what_its_sentence_says(kind):
    rng = Random(1)
    own = 0
    for _ in range(300):
        case = sample_case(kind, rng, "any")
        assert case.metadata["tag"] == kind
        assert _fulfils(case.metadata, case.scene), case
        assert all(clause["class"] in case.metadata["prompt"] for clause in case.metadata["include"])
        own += case.metadata["prompt"].startswith("a photo of ")
    assert 120 < own < 240
    counted = case.metadata.get("exclude")
    assert (kind == "counting") <= (counted is not None)


def test_the_clause_with_the_position_comes_second():
    rng = Random(0)
    plain = [
        (row, words)
        for row in (sample_case("position", rng).metadata for _ in range(300))
        if row["prompt"].startswith("a photo of a ")
        and len(words := row["prompt"].rstrip(".").split(" ")) in (8, 9)
    ]
    seen = Counter()
    for row, words in plain:
        name = " ".join(words[5:-2])
        if name in ("left of", "right of", "above", "below"):
            b, a = row["include"]
            assert (a["class"], b["class"], a["position"]) == (words[4], words[-1], [name, 0])
            seen[name] += 1
    assert len(seen) == 4


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_training_shows_nothing_left_out(kind):
    rng = Random(2)
    assert not any(is_held_out(sample_case(kind, rng, "train").scene) for _ in range(300))
    assert not any(is_held_out(sample_scene(rng, "train")) for _ in range(100))


@pytest.mark.parametrize("kind", HELD_OUT_KINDS)
def test_held_out_sentences_name_a_held_out_combination(kind):
    rng = Random(3)
    for _ in range(200):
        case = sample_case(kind, rng, "held_out")
        assert _fulfils(case.metadata, case.scene)
        include = case.metadata["include"]
        if kind == "position":
            assert (include[1]["class"], include[1]["position"][0], include[0]["class"]) in HELD_OUT_RELATIONS
        else:
            assert any((c["class"], c["color"]) in HELD_OUT_COLORINGS for c in include)


def test_sampling_mistakes_are_named():
    for kind, split in (
        ("counting", "held_out"),
        ("mixed", "held_out"),
        ("poem", "train"),
        ("colors", "test"),
    ):
        with pytest.raises(OptionError, match="accepted"):
            sample_case(kind, Random(0), split)
    with pytest.raises(OptionError, match="accepted"):
        sample_question(sample_scene(Random(0)), Random(0), "why")


def test_a_suite_cycles_and_repeats():
    rows = suite(60, 5)
    assert Counter(row["tag"] for row in rows) == dict.fromkeys(KINDS, 10)
    assert rows == suite(60, 5) != suite(60, 6)
    assert Counter(row["tag"] for row in suite(9, 5, "held_out")) == dict.fromkeys(HELD_OUT_KINDS, 3)


def _words(text: str) -> list[str]:
    plural = {**{s + "s": s for s in SHAPES}, "crosses": "cross"}
    return [plural.get(word, word) for word in text.lower().rstrip("?.").replace(",", "").split()]


def _count_asked(words: list[str], objects) -> int:
    shape = next((s for s in SHAPES if s in words), None)
    color = next((c for c in COLORS if c in words), None)
    return sum(shape in (None, t.shape) and color in (None, t.color) for t in objects)


def test_answers_are_true_of_the_scene():
    """Read the question back from its words and answer it again, from the scene."""
    rng = Random(7)
    kinds = Counter()
    places = {cell for row in GRID_CELLS for cell in row}
    for _ in range(3000):
        scene = sample_scene(rng, "any")
        q = sample_question(scene, rng)
        words, kinds[q.kind] = _words(q.text), kinds[q.kind] + 1
        named = [t for t in scene.objects if t.shape in words]
        if q.kind == "count":
            assert NUMBER_WORDS.index(q.answer) == _count_asked(words, scene.objects), q
        elif q.kind == "color":
            assert q.answer in COLORS
            assert not named or {t.color for t in named} == {q.answer}, q
        elif q.kind == "what":
            color = next((c for c in COLORS if c in words), None)
            assert q.answer in {t.shape for t in scene.objects if color in (None, t.color)}, q
        elif q.kind == "where":
            assert q.answer in places | {"above", "below"}
            if q.answer in ("above", "below"):
                a, b = (next(t for t in named if t.shape == w) for w in words if w in SHAPES)
                assert relation(box_of(a), box_of(b)) == {q.answer}
        elif words[:2] == ["is", "there"] and "exactly" not in words and named:
            assert (q.answer == "yes") == (_count_asked(words, scene.objects) > 0), q
        elif words[0] == "is" and len([w for w in words if w in SHAPES]) == 2:
            a, b = (next(t for t in named if t.shape == w) for w in words if w in SHAPES)
            name = next(n for n in ("left of", "right of", "above", "below") if n in q.text)
            assert (q.answer == "yes") == (name in relation(box_of(a), box_of(b))), q
    assert set(kinds) == set(questions.KINDS)


def test_yes_and_no_are_balanced_for_every_wording():
    rng = Random(8)
    answers: dict[str, Counter] = {}
    for _ in range(4000):
        q = sample_question(sample_scene(rng), rng, "yesno")
        form = " ".join(w for w in _words(q.text)[:3] if w not in (*SHAPES, *COLORS, "a", "an"))
        answers.setdefault(form, Counter())[q.answer] += 1
    total = sum(answers.values(), Counter())
    assert 0.46 < total["yes"] / total.total() < 0.54
    assert all(0.3 < c["yes"] / c.total() < 0.7 for c in answers.values() if c.total() > 100), answers


def test_training_questions_never_name_a_held_out_combination():
    rng = Random(9)
    assert not any(sample_question(sample_scene(rng, "train"), rng).held_out for _ in range(1000))
    marked = [sample_question(sample_scene(rng, "held_out"), rng).held_out for _ in range(300)]
    assert 0.1 < sum(marked) / 300 < 0.6
