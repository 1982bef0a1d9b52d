"""Weights that are NaN, and activations that overflow float16, end in errors that name what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons import BifronsError, JanusPipeline
from PIL import Image

PICTURE = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def pipe(janus_mini: Path) -> JanusPipeline:
    return JanusPipeline.from_pretrained(janus_mini, device="cpu", progress=False)


def spoil(module: Any, value: float = torch.nan) -> None:
    """Set one number of each of a module's weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.view(-1)[0] = value


MESSAGES = [{"role": "user", "content": "What is it?"}]
CALLS: dict[str, tuple[str, Callable[[JanusPipeline], Any]]] = {
    "ask": ("language_model.lm_head", lambda pipe: pipe.ask(None, "What is it?", 3)),
    "ask, drawn": ("language_model.lm_head", lambda pipe: pipe.ask(None, "What?", 3, 1.0, 0.9, seed=1)),
    "stream": ("language_model.model.norm", lambda pipe: list(pipe.ask(None, "What?", 3, stream=True))),
    "choices": ("language_model.lm_head", lambda pipe: pipe.ask(None, "What?", 3, logit_bias={5: 1.0})),
    "picture": ("vision_model", lambda pipe: pipe.ask(PICTURE, "What is it?", 3)),
    "next_logits": ("language_model.lm_head", lambda pipe: pipe.next_logits(MESSAGES)),
    "score_text": ("language_model.lm_head", lambda pipe: pipe.score_text(MESSAGES, "red")),
    "generate": ("gen_head", lambda pipe: pipe.generate("a dog", seed=1, output_type="codes")),
    "next_image_logits": ("gen_head", lambda pipe: pipe.next_image_logits("a dog")),
    "score_image": ("gen_head", lambda pipe: pipe.score_image("a dog", [1] * 36)),
    "decode_codes": ("gen_vision_model.decoder", lambda pipe: pipe.decode_codes([1] * 36)),
    "encode_image": ("gen_vision_model.encoder", lambda pipe: pipe.encode_image(PICTURE)),
}


@pytest.mark.parametrize(("module", "call"), CALLS.values(), ids=CALLS)
def test_damaged_weights_end_in_an_error(pipe: JanusPipeline, module: str, call: Any) -> None:
    spoil(pipe.model.get_submodule(module))
    with pytest.raises(BifronsError, match=r"not numbers.*infinite.*weights"):
        call(pipe)


def test_an_overflow_of_float16_names_the_dtypes_to_try(janus_mini: Path) -> None:
    pipe = JanusPipeline.from_pretrained(janus_mini, device="cpu", dtype="float16", progress=False)
    with torch.no_grad():
        pipe.model.language_model.lm_head.weight.mul_(1e9)
    for call in (CALLS["ask"][1], CALLS["next_logits"][1], CALLS["score_text"][1]):
        with pytest.raises(BifronsError, match=r"overflow in float16.*bfloat16, or float32"):
            call(pipe)
