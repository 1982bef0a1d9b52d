"""Sentences about shapes agree with their scenes, in GenEval's schema."""

from collections import Counter
from random import Random

import pytest
from bifrons.blocks.errors import OptionError
from bifrons.nano.world.scene import (
    HELD_OUT_COLORINGS,
    HELD_OUT_RELATIONS,
    box_of,
    is_held_out,
    relation,
    sample_scene,
)
from bifrons.nano.world.sentences import HELD_OUT_KINDS, KINDS, sample_case


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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
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
        ("poem", "train"),
        ("colors", "test"),
    ):
        with pytest.raises(OptionError, match="accepted"):
            sample_case(kind, Random(0), split)
