"""VL2 over real GPUs and the machine's memory, against one GPU."""

import pytest
import torch
from bifrons.vl2.pipeline import VL2Pipeline

GPUS = torch.cuda.device_count()
one_gpu = pytest.mark.skipif(GPUS < 1, reason="needs a GPU")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")

FLOAT32 = {"dtype": "float32"}


@pytest.fixture
def image(parity_picture):
    return parity_picture(1, 50, 40)


@one_gpu
@pytest.mark.parametrize("kind", ["mha", "mla", "noaux"])
def test_vl2_with_layers_on_the_cpu(janus_mini, image, kind):
    folder = janus_mini.parent / f"vl2-mini-{kind}"
    plain = VL2Pipeline.from_pretrained(folder, "cuda:0", **FLOAT32, capture=False)
    given = {"": 0, "vision": "cpu", "language.model.layers": "cpu"}
    offloaded = VL2Pipeline.from_pretrained(folder, device_map=given, **FLOAT32)
    assert plain.ask(image, "What is it?", 8) == offloaded.ask(image, "What is it?", 8)


@two_gpus
@pytest.mark.parametrize("kind", ["mha", "mla", "noaux"])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_vl2_over_two_gpus(janus_mini, image, kind, quantize):
    folder = janus_mini.parent / f"vl2-mini-{kind}"
    plain = VL2Pipeline.from_pretrained(folder, "cuda:0", **FLOAT32, quantize=quantize, capture=False)
    given = {"": 0, "language.model.layers.1": 1, "language.lm_head": 1}
    offloaded = VL2Pipeline.from_pretrained(folder, device_map=given, **FLOAT32, quantize=quantize)
    assert plain.ask(image, "What is it?", 8) == offloaded.ask(image, "What is it?", 8)
