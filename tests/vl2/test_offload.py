"""VL2 with offloaded weights, and over two (fake) GPUs, against VL2 on one device."""

import pytest
import torch
from bifrons.blocks.checkpoints.quantize import replace_with_quantized
from bifrons.blocks.placement.layout import units
from bifrons.vl2.config import read_config
from bifrons.vl2.model import VL2Model
from bifrons.vl2.pipeline import VL2Pipeline

GPU = torch.device("cuda", 0)


@pytest.fixture
def image(parity_picture):
    return parity_picture(1, 50, 40)


@pytest.mark.parametrize("kind", ["mha", "mla", "noaux"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4", "fp8"])
def test_vl2_answers_the_same(load_offloaded, janus_mini, image, kind, quantize, offloaded_units):
    folder = janus_mini.parent / f"vl2-mini-{kind}"
    plain = VL2Pipeline.from_pretrained(folder, "cpu", quantize=quantize)
    offloaded = load_offloaded(VL2Pipeline, folder, quantize=quantize)
    assert plain.ask(image, "What is it?", 8) == offloaded.ask(image, "What is it?", 8)
    messages = plain.question_messages(image, "What is it?")
    assert torch.equal(plain.next_logits(messages), offloaded.next_logits(messages))
    assert offloaded_units(offloaded.model) == set(units(offloaded.model))
    assert not offloaded.model.image_newline.is_meta


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("variant", ["mha", "mla", "noaux"])
def test_nothing_is_computed_across_devices(
    fake_gpus, spread_over_two_gpus, check_decoder_over_two_gpus, janus_mini, variant, kind
):
    with torch.device("meta"):
        model = VL2Model(read_config(janus_mini.parent / f"vl2-mini-{variant}"))
    if kind is not None:
        replace_with_quantized(model, kind)
    with fake_gpus, torch.no_grad():
        spread_over_two_gpus(model)
        check_decoder_over_two_gpus(model)
        side = model.config.vision.image_size
        pixels = torch.empty(2, 3, side, side, device=GPU)
        assert model.embed_images(pixels, [(1, 1)])[0].device == GPU
