"""What the embedded models can do, on small samples: far beyond chance. See `eval/nano`."""

from random import Random

import pytest
import torch
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids, score_tokens
from bifrons.blocks.sampling.request import TokenHead
from bifrons.eval.nano.janus import score_answers
from bifrons.eval.nano.vl2 import score_examples, score_pairs, score_queries
from bifrons.janus.pipeline import JanusPipeline
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import sample_scene
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


@pytest.mark.parametrize("family", ["painter", "finder"])
def test_an_answer_scores_as_it_was_drawn(family, request) -> None:
    """By the logits that each of its tokens was drawn from: janus-nano begins answers with a space."""
    pipe, picture = request.getfixturevalue(family), to_pil(sample_scene(Random(SEED)))
    messages = pipe.question_messages(picture, "Describe the picture.")
    answer = pipe.ask(picture, "Describe the picture.", 24)
    (prompt,) = pipe.prompts([messages], 24)
    eos, vocabulary = pipe.tokenizer.eos_id, pipe.tokenizer.vocabulary
    (ids,) = generate_ids(pipe.model, [prompt], TextGenerationOptions(24), [0], eos, vocabulary)
    assert len(ids) > 2
    head = TokenHead(pipe.model.embed_text, pipe.model.text_logits)
    expected = score_tokens(pipe.model.decoder, head, prompt.embeddings_TD, torch.tensor(ids))
    torch.testing.assert_close(pipe.score_text(messages, answer), expected)
    torch.testing.assert_close(pipe.score_text(messages, pipe.tokenizer.decode(ids, False)), expected)


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
