"""What the embedded models can do, on small samples: far beyond chance. See `eval/nano`."""

import pytest
from bifrons.apps.demo.history import load_examples
from bifrons.apps.demo.suggestions import phrase_of, question_about
from bifrons.eval.nano import janus, vl2
from bifrons.eval.nano.scores import Counts, figures
from bifrons.janus.pipeline import JanusPipeline
from bifrons.nano.recipes.janus_spec import UNASKED
from bifrons.nano.world.asking import KINDS
from bifrons.nano.world.things_detector import load_detector
from bifrons.vl2.pipeline import VL2Pipeline

SEED = 321_000


@pytest.fixture(scope="module")
def painter() -> JanusPipeline:
    return JanusPipeline.from_pretrained("janus-nano", "cpu")


@pytest.fixture(scope="module")
def finder() -> VL2Pipeline:
    return VL2Pipeline.from_pretrained("vl2-nano", "cpu")


def share(counts: Counts) -> float:
    return figures(counts, pooled=True)["overall"]["score"]


def test_janus_nano_paints_what_it_was_asked_for(painter) -> None:
    prompts = janus.sentences(("colors", "single_object", "two_object"), 1, SEED, "train")
    judge = janus.Painter(painter, load_detector(), 3, {})
    assert share(judge.score(prompts, 1, SEED)[0]) >= 0.6


def test_janus_nano_answers(painter) -> None:
    kinds = [kind for kind in KINDS if kind not in UNASKED]
    cases = janus.questions(20, SEED, "train", kinds, janus.SIDE)
    assert share(janus.score_questions(painter, cases, 20)) >= 0.8


def test_vl2_nano_answers_and_reads(finder) -> None:
    cases = janus.questions(20, SEED, "train")
    assert share(janus.score_questions(finder, cases, 20)) >= 0.8
    assert share(vl2.score_words(finder, 6, SEED, 6)) >= 0.8


def test_vl2_nano_finds_what_is_there_and_tells_what_is_not(finder) -> None:
    exact, boxes = vl2.score_phrases(finder, vl2.phrases(20, SEED, "train"), 20)
    assert share(boxes) >= 0.8
    right, asked = exact[vl2.NEGATIVES].sum(0)
    assert right / asked >= 0.8


def test_vl2_nano_compares_two_pictures(finder) -> None:
    assert share(vl2.score_comparisons(finder, vl2.comparisons(12, SEED, "train"), 10)) >= 0.75
    assert share(vl2.score_like(finder, 6, SEED, 6)) >= 0.6


def test_what_the_page_offers_is_known_and_found(painter, finder) -> None:
    examples = load_examples()
    assert painter.unknown_words([entry["prompt"] for entry in examples], "painting") is None
    for entry in examples:
        phrase, question = phrase_of(entry["prompt"]), question_about(entry["prompt"])
        assert finder.unknown_words([phrase, question], "reading") is None
        assert finder.locate(entry["file"], phrase), phrase
