"""Models spread over real GPUs and the machine's memory, against one GPU."""

import pytest
import torch
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline

GPUS = torch.cuda.device_count()
one_gpu = pytest.mark.skipif(GPUS < 1, reason="needs a GPU")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")

FLOAT32 = {"dtype": "float32"}


def same_work(plain: JanusPipeline, away: JanusPipeline, picture) -> None:
    painted = [pipe.generate("a red star", 2, seed=3, output_type="codes") for pipe in (plain, away)]
    assert torch.equal(*painted)
    assert torch.equal(plain.encode_image(picture), away.encode_image(picture))
    pictures = [pipe.decode_codes(painted[0])[0].tobytes() for pipe in (plain, away)]
    assert pictures[0] == pictures[1]
    assert plain.ask(picture, "What color is the star?", 8) == away.ask(picture, "What color is the star?", 8)
    messages = plain.question_messages(picture, "How many?")
    torch.testing.assert_close(plain.next_logits(messages), away.next_logits(messages))


@pytest.fixture
def picture(parity_picture):
    return parity_picture(1, 50, 40)


@one_gpu
@pytest.mark.parametrize("quantize", [None, "int8", "int4", "fp8"])
def test_weights_that_rest_on_the_cpu(picture, quantize):
    plain = JanusPipeline.from_pretrained("janus-nano", "cuda:0", **FLOAT32, quantize=quantize, capture=False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    limits = {0: "24MB", "cpu": "1GiB"}
    away = JanusPipeline.from_pretrained(
        "janus-nano", device_map="auto", max_memory=limits, **FLOAT32, quantize=quantize
    )
    assert torch.cuda.max_memory_allocated() - before < 32e6
    layout = away.model.decoder.layout
    assert layout is not None
    assert layout.moved > 0
    assert away.device == torch.device("cuda", 0)
    assert any(weight.is_meta for weight in away.model.parameters())
    assert any(weight.is_cuda for weight in away.model.parameters())
    same_work(plain, away, picture)


@one_gpu
@pytest.mark.parametrize("kind", ["mha", "mla", "noaux"])
def test_vl2_with_layers_on_the_cpu(janus_mini, picture, kind):
    folder = janus_mini.parent / f"vl2-mini-{kind}"
    plain = VL2Pipeline.from_pretrained(folder, "cuda:0", **FLOAT32, capture=False)
    given = {"": 0, "vision": "cpu", "language.model.layers": "cpu"}
    away = VL2Pipeline.from_pretrained(folder, device_map=given, **FLOAT32)
    assert plain.ask(picture, "What is it?", 8) == away.ask(picture, "What is it?", 8)


@one_gpu
def test_auto_with_room_is_one_device_with_captured_steps():
    pipe = JanusPipeline.from_pretrained("janus-nano", device_map="auto", capture=True)
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
def test_janus_over_two_gpus(picture, given):
    plain = JanusPipeline.from_pretrained("janus-nano", "cuda:0", **FLOAT32, capture=False)
    away = JanusPipeline.from_pretrained("janus-nano", device_map=given, **FLOAT32)
    assert away.model.decoder.layout is not None
    same_work(plain, away, picture)


@two_gpus
@pytest.mark.parametrize("kind", ["mha", "mla", "noaux"])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_vl2_over_two_gpus(janus_mini, picture, kind, quantize):
    folder = janus_mini.parent / f"vl2-mini-{kind}"
    plain = VL2Pipeline.from_pretrained(folder, "cuda:0", **FLOAT32, quantize=quantize, capture=False)
    given = {"": 0, "language.model.layers.1": 1, "language.lm_head": 1}
    away = VL2Pipeline.from_pretrained(folder, device_map=given, **FLOAT32, quantize=quantize)
    assert plain.ask(picture, "What is it?", 8) == away.ask(picture, "What is it?", 8)
