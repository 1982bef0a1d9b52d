"""What the embedded models can do, on small samples: far beyond chance. See `eval/nano`."""

import pytest
from bifrons.apps.demo.history import load_examples
from bifrons.apps.demo.suggestions import phrase_of, question_about
from bifrons.eval.nano.janus import score_answers
from bifrons.eval.nano.vl2 import score_examples, score_pairs, score_queries
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline

SEED = 321_000


@pytest.fixture(scope="module")
def painter() -> JanusPipeline:
    return JanusPipeline.from_pretrained("janus-nano", "cpu")


@pytest.fixture(scope="module")
def finder() -> VL2Pipeline:
    return VL2Pipeline.from_pretrained("vl2-nano", "cpu")


def share(table: dict[str, tuple[int, int]]) -> float:
    return sum(right for right, _ in table.values()) / sum(asked for _, asked in table.values())


def test_janus_nano_answers(painter) -> None:
    assert share(score_answers(painter, 60, SEED, "train")) >= 0.9


def test_vl2_nano_answers(finder) -> None:
    assert share(score_answers(finder, 60, SEED, "train")) >= 0.9


def test_vl2_nano_finds_what_is_there_and_tells_what_is_not(finder) -> None:
    table, (met, wanted) = score_queries(finder, 45, SEED, "train")
    assert met / wanted >= 0.9
    right, asked = table["absent"]
    assert right / asked >= 0.9


def test_vl2_nano_compares_two_pictures(finder) -> None:
    assert share(score_pairs(finder, 40, SEED, "train")) >= 0.8


def test_vl2_nano_finds_things_like_a_framed_one(finder) -> None:
    _, (met, wanted) = score_examples(finder, 20, SEED)
    assert met / wanted >= 0.8


def test_what_the_page_offers_is_known_and_found(painter, finder) -> None:
    examples = load_examples()
    assert painter.unknown_words([entry["prompt"] for entry in examples], "painting") is None
    for entry in examples:
        phrase, question = phrase_of(entry["prompt"]), question_about(entry["prompt"])
        assert finder.unknown_words([phrase, question], "reading") is None
        assert finder.locate(entry["file"], phrase), phrase
