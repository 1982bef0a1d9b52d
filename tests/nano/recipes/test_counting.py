"""The counting recipe: its answers are true, and its files are what training and evaluation read."""

import json
import re

from bifrons.learn.prompts import read_prompts
from bifrons.learn.rows import ReadRow, read_rows
from bifrons.nano.recipes.counting import FILES, FORM, MOST, counting_cases, write_questions
from bifrons.nano.world.catalog import things
from bifrons.nano.world.names import plural
from bifrons.nano.world.wording import NUMBER_WORDS

WORDS = {plural(name): name for name in things()}


def test_answers_are_those_of_the_scene() -> None:
    cases = list(counting_cases(60, 5))
    for case in cases:
        pattern = r"more (.*) than (.*) are" if "more" in case.question else r"many (.*) and (.*) are"
        names = [WORDS[word] for word in re.findall(pattern, case.question)[0]]
        counts = [sum(one.thing == name for one in case.picture.seen) for name in names]
        assert max(counts) <= MOST
        assert [NUMBER_WORDS[count] for count in counts] == case.thought.split()
        total = counts[0] - counts[1] if "more" in case.question else sum(counts)
        assert case.answer == NUMBER_WORDS[total]
        assert re.fullmatch(FORM, case.reply)
    assert len({case.answer for case in cases}) == 7
    again = list(counting_cases(3, 5))
    assert [(case.question, case.picture.seen) for case in again] == [
        (case.question, case.picture.seen) for case in cases[:3]
    ]


def test_files_are_what_training_and_evaluation_read(tmp_path) -> None:
    write_questions(tmp_path, 3, 4, 5, seed=2)
    rows, faults = read_rows(tmp_path / FILES["thoughts"])
    assert (len(rows), faults) == (3, [])
    assert all(isinstance(row, ReadRow) and len(row.messages) == 2 for row in rows)
    for name, count in (("questions", 4), ("test", 5)):
        prompts, faults = read_prompts(tmp_path / FILES[name])
        assert (len(prompts), faults) == (count, [])
        assert all(prompt["answer"] in NUMBER_WORDS for _, prompt in prompts)
    texts = [(tmp_path / name).read_text() for name in FILES.values()]
    read = [[json.loads(line) for line in text.splitlines()] for text in texts]
    asked = [{row["messages"][0]["content"][0]["image"] for row in rows} for rows in read]
    assert not asked[1] & asked[2]
    write_questions(tmp_path / "again", 3, 4, 5, seed=2)
    assert [(tmp_path / "again" / name).read_text() for name in FILES.values()] == texts
