"""What the page suggests: sentences in a model's words, and questions and phrases about a picture."""

from pathlib import Path

import pytest
from bifrons.apps.demo.suggestions import phrase_for, phrase_of, question_about, sentences
from bifrons.blocks.checkpoints.hub import EMBEDDED_FOLDER
from bifrons.blocks.vocabulary import Vocabulary, read_vocabulary, words_of

from ...models import SHAPES_JANUS, SHAPES_VL2


@pytest.mark.parametrize("folder", [Path(SHAPES_JANUS), EMBEDDED_FOLDER / "janus-nano"])
def test_sentences_are_in_words_that_a_model_knows(folder):
    known = read_vocabulary(folder)
    assert known is not None
    suggested = sentences(known)
    assert len(suggested) == 4
    assert words_of(suggested) <= known.painting


@pytest.mark.parametrize("folder", [Path(SHAPES_VL2), EMBEDDED_FOLDER / "vl2-nano"])
def test_the_phrase_to_find_is_one_that_a_model_knows(folder):
    known = read_vocabulary(folder)
    assert known is not None
    assert words_of([phrase_for(known)]) <= known.reading


def test_other_models_get_sentences_of_all_words():
    strange = Vocabulary(("house",), ("red",), 1, frozenset({"house"}), frozenset(), {})
    assert "a red fox asleep in fresh snow" in sentences(None)
    assert sentences(strange) == sentences(None)
    assert phrase_for(None) == phrase_for(strange) == "the lighthouse"


@pytest.mark.parametrize(
    ("sentence", "phrase", "question"),
    [
        ("a photo of a red star and a blue circle", "the red star", "What color is the star?"),
        ("three green hearts", "the green hearts", "How many hearts are there?"),
        ("a yellow star above a purple square", "the yellow star", "What is above the square?"),
        ("a red elephant to the left of a grey sofa", "the red elephant", "What is left of the sofa?"),
        ("an orange", "the orange", "Is there an orange?"),
        ("two orange oranges and a dog", "the orange oranges", "How many oranges are there?"),
        ("a pink teddy bear", "the pink teddy bear", "What color is the teddy bear?"),
        ("", "", "What does the picture show?"),
    ],
)
def test_what_is_asked_and_sought_in_a_picture(sentence, phrase, question):
    assert (phrase_of(sentence), question_about(sentence)) == (phrase, question)
