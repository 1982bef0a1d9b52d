"""The score of an answer is by the logits that each of its tokens was drawn from."""

from random import Random
from typing import Any

import pytest
import torch
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids, score_tokens
from bifrons.blocks.sampling.request import TokenHead
from bifrons.janus.pipeline import JanusPipeline
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import sample_scene
from bifrons.vl2.pipeline import VL2Pipeline

from .models import SHAPES_JANUS, SHAPES_VL2


@pytest.mark.parametrize(("family", "model"), [(JanusPipeline, SHAPES_JANUS), (VL2Pipeline, SHAPES_VL2)])
def test_an_answer_scores_as_it_was_drawn(family: Any, model: str) -> None:
    pipe, picture = family.from_pretrained(model, "cpu"), to_pil(sample_scene(Random(321_000)))
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
