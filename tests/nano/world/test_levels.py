"""Harder sentences say what their scenes show: read back from the words alone."""

import re
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from bifrons.blocks.errors import OptionError
from bifrons.nano.world.levels import HARD_KINDS, sample_hard_case
from bifrons.nano.world.scene import COLORS, RELATIONS, SHAPES, box_of, relation
from bifrons.nano.world.wording import NUMBER_WORDS, plural

SINGULAR = {plural(shape): shape for shape in SHAPES} | {shape: shape for shape in SHAPES}
THING = re.compile(
    rf"\b(an?|{'|'.join(NUMBER_WORDS)}) (?:({'|'.join(COLORS)}) )?({'|'.join(SINGULAR)})\b", re.IGNORECASE
)


def things(text: str) -> list[tuple[int, str | None, str]]:
    """(count, color, shape) of each noun phrase."""
    numbers = {"a": 1, "an": 1} | {word: number for number, word in enumerate(NUMBER_WORDS)}
    return [(numbers[n.lower()], color or None, SINGULAR[s]) for n, color, s in THING.findall(text)]


def test_many() -> None:
    rng, sizes = Random(1), Counter()
    for _ in range(150):
        case = sample_hard_case("many", rng)
        named = things(case.metadata["prompt"])
        objects = case.scene.objects
        sizes[len(objects)] += 1
        assert sum(count for count, _, _ in named) == len(objects)
        for count, color, shape in named:
            found = [obj for obj in objects if obj.shape == shape]
            assert len(found) == count
            assert color is None or {obj.color for obj in found} == {color}
        assert [(c["class"], c["count"], c.get("color")) for c in case.metadata["include"]] == [
            (shape, count, color) for count, color, shape in named
        ]
        assert case.metadata["exclude"] == [{"class": s, "count": n + 1} for n, _, s in named]
    assert set(sizes) == {5, 6}


def test_chains() -> None:
    rng, lengths = Random(2), Counter()
    for _ in range(150):
        case = sample_hard_case("chain", rng)
        text, objects = case.metadata["prompt"], case.scene.objects
        named = things(text)
        assert [(1, obj.shape) for obj in objects] == [(count, shape) for count, _, shape in named]
        said = re.findall("|".join(RELATIONS), text)
        assert len(said) == len(objects) - 1
        for name, (a, b) in zip(said, pairwise(objects), strict=True):
            assert relation(box_of(a), box_of(b)) == {name}
        lengths[len(objects)] += 1
        rows = case.metadata["include"][::-1]
        assert [row["class"] for row in rows] == [obj.shape for obj in objects]
        assert [row["position"] for row in rows[:-1]] == [
            [name, len(said) - 1 - i] for i, name in enumerate(said)
        ]
    assert set(lengths) == {3, 4}


def test_negation() -> None:
    rng, forms = Random(3), Counter()
    for _ in range(150):
        case = sample_hard_case("negation", rng)
        text, (wanted,), (banned,) = (
            case.metadata["prompt"],
            case.metadata["include"],
            case.metadata["exclude"],
        )
        count, color, shape = things(text)[0]
        assert (count, color, shape) == (wanted["count"], wanted.get("color"), wanted["class"])
        assert [obj.shape for obj in case.scene.objects] == [shape] * count
        assert banned["count"] == 1
        if "color" in banned:
            assert re.search(rf"(not|none of them|but) {banned['color']}\b", text)
            assert banned["class"] == shape
            assert banned["color"] not in {obj.color for obj in case.scene.objects}
        else:
            other = banned["class"]
            assert re.search(rf"(no|without an?) ({other}|{plural(other)})\b", text)
            assert other != shape
        forms["color" in banned] += 1
    assert min(forms.values()) > 40


def test_what_there_is() -> None:
    assert HARD_KINDS == ("many", "chain", "negation")
    with pytest.raises(OptionError, match="kind 'counting' is unknown; accepted: many, chain, negation"):
        sample_hard_case("counting", Random(0))
