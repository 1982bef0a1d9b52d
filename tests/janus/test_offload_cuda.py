"""Janus over real GPUs and the machine's memory, against one GPU."""

import pytest
import torch
from bifrons.janus.pipeline import JanusPipeline

from ..models import SHAPES_JANUS

GPUS = torch.cuda.device_count()
one_gpu = pytest.mark.skipif(GPUS < 1, reason="needs a GPU")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")

FLOAT32 = {"dtype": "float32"}


def assert_same_results(plain: JanusPipeline, offloaded: JanusPipeline, image) -> None:
    codes = [pipe.generate("a red star", 2, seed=3, output_type="codes") for pipe in (plain, offloaded)]
    assert torch.equal(*codes)
    assert torch.equal(plain.encode_image(image), offloaded.encode_image(image))
    images = [pipe.decode_codes(codes[0])[0].tobytes() for pipe in (plain, offloaded)]
    assert images[0] == images[1]
    assert plain.ask(image, "What color is the star?", 8) == offloaded.ask(
        image, "What color is the star?", 8
    )
    messages = plain.question_messages(image, "How many?")
    torch.testing.assert_close(plain.next_logits(messages), offloaded.next_logits(messages))


@pytest.fixture
def image(parity_picture):
    return parity_picture(1, 50, 40)


@one_gpu
@pytest.mark.parametrize("quantize", [None, "int8", "int4", "fp8"])
def test_weights_that_rest_on_the_cpu(image, quantize):
    plain = JanusPipeline.from_pretrained(SHAPES_JANUS, "cuda:0", **FLOAT32, quantize=quantize, capture=False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    limits = {0: "24MB", "cpu": "1GiB"}
    offloaded = JanusPipeline.from_pretrained(
        SHAPES_JANUS, device_map="auto", max_memory=limits, **FLOAT32, quantize=quantize
    )
    assert torch.cuda.max_memory_allocated() - before < 32e6
    layout = offloaded.model.decoder.layout
    assert layout is not None
    assert layout.moved > 0
    assert offloaded.device == torch.device("cuda", 0)
    assert any(weight.is_meta for weight in offloaded.model.parameters())
    assert any(weight.is_cuda for weight in offloaded.model.parameters())
    assert_same_results(plain, offloaded, image)


@one_gpu
def test_auto_with_room_is_one_device_with_captured_steps():
    pipe = JanusPipeline.from_pretrained(SHAPES_JANUS, device_map="auto", capture=True)
    assert pipe.model.decoder.layout is None
    assert pipe.device == torch.device("cuda", 0)


@two_gpus
@pytest.mark.parametrize(
    "given",
    [
        "balanced",
        {"": 0, "language_model.model.layers": 1},
        {"": 1, "vision_model": "cpu", "gen_head": 0},
    ],
)
def test_janus_over_two_gpus(image, given):
    plain = JanusPipeline.from_pretrained(SHAPES_JANUS, "cuda:0", **FLOAT32, capture=False)
    offloaded = JanusPipeline.from_pretrained(SHAPES_JANUS, device_map=given, **FLOAT32)
    assert offloaded.model.decoder.layout is not None
    assert_same_results(plain, offloaded, image)
