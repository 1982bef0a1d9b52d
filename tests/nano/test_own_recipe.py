"""What of the model's own pictures is kept to learn from, and that it is learned from."""

from dataclasses import replace
from random import Random

import pytest
from bifrons.janus.pipeline import JanusPipeline
from bifrons.nano import recipe_own
from bifrons.nano.janus_format import PaintEncoder, write_folder
from bifrons.nano.janus_spec import SIDE
from bifrons.nano.judging import is_right
from bifrons.nano.recipe_own import OWN, add_own, load_own, paint_right
from bifrons.nano.render import to_pil
from bifrons.nano.sentences import KINDS, sample_case
from bifrons.nano.world import Scene, Thing


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_a_sentences_own_scene_is_right_and_one_thing_more_or_less_is_not(kind):
    rng = Random(3)
    for _ in range(12):
        case = sample_case(kind, rng)
        assert is_right(to_pil(case.scene, SIDE), case.metadata), case
        fewer = replace(case.scene, things=case.scene.things[1:])
        assert not is_right(to_pil(fewer, SIDE), case.metadata), case
        beside = sample_case("mixed", rng).scene
        if len(beside.things) > len(case.scene.things):
            assert not is_right(to_pil(beside, SIDE), case.metadata), case


def test_color_relation_and_what_is_left_out_count():
    background = (56, 72, 98)
    left, right = Thing("circle", "red", 0.25, 0.5, 0.3), Thing("square", "green", 0.75, 0.5, 0.3)
    picture = to_pil(Scene((left, right), background), SIDE)
    clauses = [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}]
    assert is_right(picture, {"include": clauses})
    assert not is_right(picture, {"include": [clauses[0], {**clauses[1], "position": ["right of", 0]}]})
    assert is_right(picture, {"include": [{**clauses[0], "color": "green"}, clauses[1]]})
    assert not is_right(picture, {"include": [{**clauses[0], "color": "red"}, clauses[1]]})
    row = {"include": [{"class": "circle", "count": 1}]}
    assert is_right(to_pil(Scene((left,), background), SIDE), row)
    kept_out = to_pil(Scene((replace(left, color="orange"),), background), SIDE)
    assert not is_right(kept_out, row), "orange circles are left out of training"


def test_only_right_pictures_are_kept_each_with_its_own_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_own, "AT_ONCE", 12)
    write_folder(tmp_path)
    pipe = JanusPipeline.from_pretrained("janus-nano", "cpu", "float32")
    found, painted = paint_right(pipe, tmp_path, 0.0, 5, 1)
    assert painted == 12
    assert 4 <= len(found["codes"]) <= 12
    rng, encode = Random(5), PaintEncoder(tmp_path)
    mix = recipe_own.PAINT_MIX
    kinds = rng.choices(list(mix), list(mix.values()), k=12)
    rows = {tuple(encode(row["prompt"])): row for row in (sample_case(k, rng).metadata for k in kinds)}
    pictures = pipe.decode_codes(found["codes"].long())
    for ids, length, picture in zip(found["ids"], found["lengths"], pictures, strict=True):
        assert is_right(picture, rows[tuple(ids[:length].tolist())])
    assert load_own(tmp_path) is None
    count = len(found["codes"])
    assert [add_own(tmp_path, found), add_own(tmp_path, found)] == [count, 2 * count]
    assert [file.name for file in tmp_path.iterdir() if OWN in file.name] == [OWN]
