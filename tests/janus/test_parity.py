"""Every figure that the reference implementation gives on the small parity checkpoint (float32, CPU)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons import JanusPipeline
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 2e-4
"""Of the tensor's largest magnitude: what a faithful float32 implementation meets."""


@pytest.fixture(scope="module")
def pipe(janus_mini: Path) -> JanusPipeline:
    return JanusPipeline.from_pretrained(janus_mini, device="cpu", progress=False)


@pytest.fixture(scope="module")
def figures(janus_mini: Path) -> dict[str, Any]:
    return json.loads((janus_mini / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tensors(janus_mini: Path) -> dict[str, Tensor]:
    return load_file(janus_mini / "figures.safetensors")


@pytest.fixture(scope="module")
def conversations(figures, parity_picture) -> list[list[dict[str, Any]]]:
    pictures = [parity_picture(i, w, h) for i, (w, h) in enumerate(figures["pictures"])]
    return [
        [{**m, "images": [pictures[int(i)] for i in m["images"]]} if "images" in m else m for m in messages]
        for messages in figures["conversations"]
    ]


def close(found: Tensor, expected: Tensor) -> None:
    error = (found.reshape(-1) - expected.reshape(-1)).abs().max() / expected.abs().max()
    assert error < TOLERANCE


CASES = ("und.single0", "und.single1", "und.two_pictures")


def test_vision_tower_and_aligner(pipe, tensors) -> None:
    pixels = tensors["pixels.0"].reshape(-1, 3, 96, 96)
    with torch.no_grad():
        close(pipe.model.vision_model(pixels), tensors["vision.0"])
        close(pipe.model.embed_images(pixels), tensors["aligned.0"])


@pytest.mark.parametrize("index", range(3))
def test_next_token_logits(pipe, tensors, conversations, index) -> None:
    close(pipe.next_logits(conversations[index]), tensors[f"{CASES[index]}.logits"])
    close(pipe.next_logits(conversations[index]), tensors["und.padded_batch.logits"][index])


@pytest.mark.parametrize("index", range(3))
def test_greedy_answers_alone(pipe, figures, conversations, index) -> None:
    expected = figures["cases"][f"{CASES[index]}.greedy_ids"]
    assert pipe.chat(conversations[index], max_new_tokens=len(expected)) == answer(pipe, expected)


def test_greedy_answers_in_one_batch(pipe, figures, conversations) -> None:
    expected = [figures["cases"][f"{case}.greedy_ids"] for case in CASES]
    found = pipe.chat_batch(conversations, max_new_tokens=len(expected[0]))
    assert found == [answer(pipe, ids) for ids in expected]


def answer(pipe: JanusPipeline, ids: list[int]) -> str:
    eos = pipe.tokenizer.eos_id
    return pipe.tokenizer.decode(ids[: ids.index(eos)] if eos in ids else ids).strip()


@pytest.mark.parametrize("prompt", range(2))
@pytest.mark.parametrize("scale", [1, 5])
def test_painting(pipe, figures, tensors, prompt, scale) -> None:
    text, name = figures["gen_prompts"][prompt]["text"], f"gen.{prompt}.cfg{scale}"
    close(pipe.next_image_logits(text, guidance_scale=float(scale)), tensors[f"{name}.first_logits"])
    codes = pipe.generate(text, guidance_scale=float(scale), temperature=0, output_type="codes")
    assert codes.tolist() == [figures["cases"][f"{name}.greedy_image_ids"]]


def test_image_tokenizer(pipe, figures, tensors, parity_picture) -> None:
    with torch.no_grad():
        close(pipe.model.gen_vision_model.decode(tensors["vq.codes"].long(), (6, 6)), tensors["vq.decoded"])
    for index in range(2):
        picture = parity_picture(index, *figures["pictures"][index])
        assert pipe.encode_image(picture).tolist() == tensors["vq.encoded"][index].tolist()


def test_scores_are_the_log_probabilities_of_the_logits(pipe, figures, conversations) -> None:
    """The first score of an answer is `next_logits`', of a picture `next_image_logits`'."""
    ids = pipe.tokenizer.encode("three red", bos=False)
    scores = pipe.score_text(conversations[1], "three red")
    assert scores.shape == (len(ids),)
    expected = pipe.next_logits(conversations[1]).log_softmax(-1)[ids[0]]
    torch.testing.assert_close(scores[0], expected, atol=1e-4, rtol=1e-4)
    text = figures["gen_prompts"][0]["text"]
    codes = pipe.generate(text, guidance_scale=1.0, temperature=0, output_type="codes")[0]
    scores = pipe.score_image(text, codes)
    assert scores.shape == codes.shape
    expected = pipe.next_image_logits(text, guidance_scale=1.0).log_softmax(-1)[codes[0]]
    torch.testing.assert_close(scores[0], expected, atol=1e-4, rtol=1e-4)
    wrong = codes.clone()
    wrong[5] = (wrong[5] + 1) % 512
    changed = pipe.score_image(text, wrong)
    torch.testing.assert_close(changed[:5], scores[:5], atol=1e-4, rtol=1e-4)
    assert changed[5] < scores[5]  # the greedy code is the likeliest
