"""The recipe that teaches a mushroom: its pictures, and how they are judged."""

from pathlib import Path
from random import Random

import pytest
from bifrons.eval.nano.new_thing import find_mushrooms
from bifrons.eval.read.metrics import iou
from bifrons.learn.rows import PaintRow, read_rows
from bifrons.nano.recipes.new_thing import KINDS, PROMPTS, THING, mushroom_cases, write_pictures
from bifrons.nano.world.catalog import things
from bifrons.nano.world.sampling import sample_example


@pytest.fixture(scope="module")
def cases():
    return mushroom_cases(len(KINDS), 3)


def test_mushrooms_are_found_and_nothing_else(cases):
    for case in cases:
        shown = [one for one in case.picture.seen if one.thing == THING]
        found = find_mushrooms(case.picture.image())
        assert len(found) == len(shown)
        for one in found:
            assert max(iou(one.box, true.box) for true in shown if true.color == one.color) > 0.8
    assert not find_mushrooms(sample_example("many", Random(4)).picture.image())


def test_sentences_are_fresh_and_rows_name_mushrooms(cases):
    taught = {case.prompt for case in mushroom_cases(200, 1)}
    others = mushroom_cases(200, 3, fresh=True)
    assert not taught & {case.prompt for case in others}
    assert {case.kind for case in others} == {*KINDS}
    for case in cases:
        assert any(clause["class"] == THING for clause in case.row["include"])
        assert THING in case.prompt
    assert THING not in things()


def test_files_are_what_training_reads(tmp_path: Path):
    write_pictures(tmp_path, 4, 1)
    rows, faults = read_rows(tmp_path / "pictures")
    assert (len(rows), faults) == (4, [])
    assert all(isinstance(row, PaintRow) for row in rows)
    assert len((tmp_path / PROMPTS).read_text().splitlines()) == 4
