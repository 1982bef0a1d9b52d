"""DeepSeek-VL2 against the reference's figures, alone, in batches, in chunks."""

import pytest
import torch
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids, next_token_logits
from bifrons.blocks.engine.prefill import prefill
from torch import Tensor

TOLERANCE = 2e-4


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def test_conversations_become_the_references_ids_and_tiles(case):
    for number, messages in enumerate(case.conversations):
        prepared = case.pipe.processor.chat_inputs(messages)
        assert prepared.ids.tolist() == case.figures["input_ids"][number]
        assert torch.equal(prepared.image_mask, prepared.ids == case.pipe.processor.image_id)
        # The reference writes (0, 0) for a conversation without pictures.
        assert [list(grid) for grid in prepared.grids or [(0, 0)]] == case.figures["tiles"][number]
        assert list(prepared.num_image_tokens) == case.figures["num_image_tokens"][number]
        if prepared.grids:
            assert torch.allclose(prepared.pixels, case.tensors[f"pixels.{number}"], rtol=0, atol=1e-6)


def test_tower_and_projector(case):
    pixels = case.tensors["pixels.0"]
    with torch.no_grad():
        assert close(case.pipe.model.vision(pixels), case.tensors["vision.0"])
        assert close(case.pipe.model.embed_tiles(pixels).flatten(1, 2), case.tensors["projected.0"])


@pytest.mark.parametrize("chunk", [None, 50, 100])
def test_next_logits(case, chunk: int | None):
    """50 positions take the absorbed form of latent attention, 100 the expanded one over a filled cache."""
    for number, messages in enumerate(case.conversations):
        found = case.pipe.next_logits(messages, prefill_chunk=chunk)
        assert close(found, case.tensors[f"und.{number}.logits"][0])


@pytest.mark.parametrize("chunk", [None, 64])
def test_a_mixed_batch_answers_as_each_alone(case, chunk: int | None):
    prompts = case.pipe.prompts(case.conversations, 12)
    options = TextGenerationOptions(12, prefill_chunk=chunk)
    found = generate_ids(case.pipe.model, prompts, options, [0] * 5, -1)
    assert found == [case.figures["cases"][f"und.{number}.greedy_ids"] for number in range(5)]


def test_a_row_of_a_batch_has_the_logits_it_has_alone(case):
    model = case.pipe.model
    prompts = case.pipe.prompts(case.conversations, 0)
    longest = max(map(len, prompts))
    cache = model.decoder.config.new_cache(5, longest, device=case.pipe.device, dtype=torch.float32)
    with torch.no_grad():
        together = model.text_logits(prefill(model.decoder, [p.embeddings_TD for p in prompts], cache))
    for prompt, found in zip(prompts, together, strict=True):
        assert close(found, next_token_logits(model, prompt))


def test_tiles_in_several_chunks_are_the_same(case, monkeypatch):
    prepared = case.pipe.processor.chat_inputs(case.conversations[2])
    with torch.no_grad():
        whole = case.pipe.model.embed_images(prepared.pixels, prepared.grids)
        monkeypatch.setattr("bifrons.vl2.model.IMAGES_AT_ONCE", 2)
        pieces = case.pipe.model.embed_images(prepared.pixels, prepared.grids)
    assert all(close(a, b) for a, b in zip(pieces, whole, strict=True))
