"""Answers of DeepSeek-VL2 by captured graphs against the plain loop; on the CPU a replay runs the captured
work again."""

import pytest
import torch
from bifrons.blocks.engine import generate
from bifrons.blocks.engine.graph_generation import graph_pool_of
from bifrons.vl2.pipeline import VL2Pipeline
from PIL import Image

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")


@pytest.mark.parametrize("name", ["vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def test_answers_are_those_of_the_plain_loop(
    name: str, request: pytest.FixtureRequest, warm_up_capturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.config.rootpath / "tests" / "data" / name
    pipe = VL2Pipeline.from_pretrained(folder, "cpu", progress=False)
    image = Image.new("RGB", (80, 60), (200, 30, 30))
    questions = ((image, "What is this?"), ([], "And what colour has it?"))
    conversations = [pipe.question_messages(*question) for question in questions]
    settings = [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.9, "seed": 3},
        {"temperature": 0.0, "repetition_penalty": 1.5, "prefill_chunk": 16},
    ]
    expected = [pipe.chat_batch(conversations, 20, **options) for options in settings]
    graph_pool_of(pipe.model.decoder).capturer = warm_up_capturer()
    monkeypatch.setattr(generate, "captures", lambda decoder, head: True)
    assert [pipe.chat_batch(conversations, 20, **options) for options in settings] == expected
    assert "".join(pipe.ask(image, "What is this?", 20, stream=True)).strip() == expected[0][0]
    assert graph_pool_of(pipe.model.decoder).capturer.made > 3


@on_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def test_experts_and_latent_attention_are_captured(
    name: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    folder = request.config.rootpath / "tests" / "data" / name
    pipe = VL2Pipeline.from_pretrained(folder, "cuda", dtype, progress=False)
    image = Image.new("RGB", (80, 60), (200, 30, 30))
    conversations = [pipe.question_messages(image, "What?"), pipe.question_messages([], "Why not?")]
    answers = pipe.chat_batch(conversations, 20)
    assert graph_pool_of(pipe.model.decoder).capturer.made
    pipe.model.decoder.capture = False
    expected = pipe.chat_batch(conversations, 20)
    if dtype == "float32":
        assert answers == expected
