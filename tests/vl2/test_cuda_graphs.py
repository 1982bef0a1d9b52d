"""Answers of DeepSeek-VL2 by captured steps on CUDA: those of the eager runner, and the same in any batch."""

from pathlib import Path

import pytest
import torch
from bifrons.blocks.engine.generate import scheduler_of
from bifrons.blocks.graphs.graph_runner import GraphRunner
from bifrons.vl2.pipeline import VL2Pipeline
from PIL import Image

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    {"temperature": 0.0, "repetition_penalty": 1.5, "prefill_chunk": 16},
]
RED = Image.new("RGB", (80, 60), (200, 30, 30))


@pytest.fixture(params=["vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.config.rootpath / "tests" / "data" / request.param


def load(folder: Path, dtype: str, **options: bool) -> tuple[VL2Pipeline, list]:
    pipe = VL2Pipeline.from_pretrained(folder, "cuda", dtype, progress=False, **options)
    questions = ((RED, "What is this?"), ([], "And what colour has it?"), ([], "Why?"))
    return pipe, [pipe.question_messages(*question) for question in questions]


def test_float32_answers_are_those_of_the_eager_runner(folder: Path) -> None:
    answers = []
    for options in ({}, {"capture": False}):
        pipe, conversations = load(folder, "float32", **options)
        answers.append([pipe.chat_batch(conversations, 20, **settings) for settings in SETTINGS])
        assert isinstance(scheduler_of(pipe.model.decoder).runner, GraphRunner) == (not options)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_answer_is_the_same_in_any_batch(folder: Path, settings: dict[str, float]) -> None:
    pipe, conversations = load(folder, "bfloat16")
    together = pipe.chat_batch(conversations, 20, **settings)
    assert [pipe.chat_batch([one], 20, **settings)[0] for one in conversations] == together
    stream = pipe.ask(RED, "What is this?", 20, stream=True, **settings)
    assert "".join(stream).strip() == together[0].strip()
