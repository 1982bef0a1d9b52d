"""Janus with offloaded weights, and over two (fake) GPUs, against Janus on one device."""

import threading

import pytest
import torch
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids
from bifrons.blocks.checkpoints.quantize import replace_with_quantized
from bifrons.blocks.engine.background import BackgroundScheduler
from bifrons.blocks.engine.plain_runner import PlainRunner
from bifrons.blocks.engine.prefill import prefill
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs.cuda_graphs import uses_cuda_graphs
from bifrons.blocks.placement.layout import CPU, units
from bifrons.blocks.sampling.request import Request, SamplingParams, TokenHead
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel
from bifrons.janus.pipeline import JanusPipeline

from ..models import SHAPES_JANUS

GPU = torch.device("cuda", 0)


@pytest.fixture
def image(parity_picture):
    return parity_picture(1, 50, 40)


def test_a_trained_model_paints_and_answers_the_same(load_offloaded, image, offloaded_units):
    plain = JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu")
    offloaded = load_offloaded(JanusPipeline, SHAPES_JANUS, stays=["language_model.model.layers.0"])
    names = set(units(offloaded.model)) - {"language_model.model.layers.0"}
    assert offloaded_units(offloaded.model) == names
    codes_of_both = [pipe.generate("a red star", seed=3, output_type="codes") for pipe in (plain, offloaded)]
    assert torch.equal(*codes_of_both)
    assert (
        plain.decode_codes(codes_of_both[0])[0].tobytes()
        == offloaded.decode_codes(codes_of_both[0])[0].tobytes()
    )
    question = "What color is the star?"
    assert plain.ask(image, question, 8) == offloaded.ask(image, question, 8)
    assert offloaded_units(offloaded.model) == names


@pytest.mark.parametrize("quantize", [None, "int8", "int4", "fp8"])
def test_janus_does_all_its_work_the_same(load_offloaded, janus_mini, image, quantize, offloaded_units):
    plain = JanusPipeline.from_pretrained(janus_mini, "cpu", quantize=quantize)
    offloaded = load_offloaded(JanusPipeline, janus_mini, quantize=quantize)
    messages = plain.question_messages(image, "What is it?")
    codes = plain.encode_image(image)

    def work(pipe: JanusPipeline) -> list:
        return [
            pipe.encode_image(image),
            pipe.generate(["a star", "two hearts"], 2, seed=1, output_type="codes"),
            pipe.next_logits(messages),
            pipe.next_logits(messages, prefill_chunk=7),
            pipe.next_image_logits("a star"),
            pipe.score_text(messages, "a star"),
            pipe.score_image("a star", codes),
        ]

    assert all(torch.equal(a, b) for a, b in zip(work(plain), work(offloaded), strict=True))
    streams = ["".join(pipe.ask(image, "What?", 6, stream=True)) for pipe in (plain, offloaded)]
    assert streams[0] == streams[1]
    assert (offloaded.device, offloaded.dtype) == (CPU, torch.float32)
    assert offloaded_units(offloaded.model) == set(units(offloaded.model))


def test_weights_leave_after_a_failure_too(load_offloaded, janus_mini, offloaded_units):
    offloaded = load_offloaded(JanusPipeline, janus_mini)
    with pytest.raises(AttributeError):
        offloaded.model.decoder.layers[0](torch.zeros(1, 2, 3), None)
    assert offloaded_units(offloaded.model) == set(units(offloaded.model))


def test_captured_steps_are_off(load_offloaded, janus_mini):
    offloaded = load_offloaded(JanusPipeline, janus_mini, capture=True)  # which `choose_placement` refuses
    assert not uses_cuda_graphs(offloaded.model.decoder)
    assert isinstance(Scheduler(offloaded.model.decoder).runner, PlainRunner)


def test_the_engine_serves_a_spread_model(load_offloaded, janus_mini):
    offloaded = load_offloaded(JanusPipeline, janus_mini)
    text = TokenHead(offloaded.model.embed_text, offloaded.model.text_logits)
    questions = [offloaded.question_messages([], words) for words in ("Hello?", "What is it like?", "Why?")]
    prompts = offloaded.prompts(questions, 1)
    scheduler = BackgroundScheduler(offloaded.model.decoder, rows=2, context=128, max_waiting=9)
    scheduler.start()
    heard: list[list[int]] = [[] for _ in prompts]
    ends = [threading.Event() for _ in prompts]
    try:
        scheduler.reserve(len(prompts))
        requests = [
            Request(
                text,
                [prompt.embeddings_TD],
                SamplingParams(1.0),
                5,
                6,
                lambda choice, i=i: heard[i].append(choice.token),
                lambda reason, i=i: ends[i].set(),
            )
            for i, prompt in enumerate(prompts)
        ]
        scheduler.submit(requests)
        for _ in range(20):  # beside it, as a server prepares prompts
            offloaded.model.embed_text(torch.arange(9))
        assert all(end.wait(30) for end in ends)
    finally:
        assert scheduler.close(10)
    plain = JanusPipeline.from_pretrained(janus_mini, "cpu")
    for prompt, tokens in zip(prompts, heard, strict=True):
        assert tokens == generate_ids(plain.model, [prompt], TextGenerationOptions(6, 1.0), [5], -1)[0]


@pytest.fixture
def on_meta(janus_mini) -> JanusModel:
    with torch.device("meta"):
        return JanusModel(read_config(janus_mini)[0])


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
def test_nothing_is_computed_across_devices(
    fake_gpus, spread_over_two_gpus, check_decoder_over_two_gpus, on_meta, kind
):
    model = on_meta
    if kind is not None:
        replace_with_quantized(model, kind)
    with fake_gpus, torch.no_grad():
        spread_over_two_gpus(model)
        hidden = check_decoder_over_two_gpus(model)
        side = model.config.vision.image_size
        pixels = torch.empty(2, 3, side, side, device=GPU)
        assert model.embed_images(pixels).device == GPU
        codes = model.gen_vision_model.encode(pixels)
        assert codes.device == GPU
        assert model.gen_vision_model.decode(codes, model.config.grid).device == GPU
        assert model.image_logits(hidden).device == model.embed_codes(codes).device == GPU


def test_the_fake_gpus_would_notice(fake_gpus, spread_over_two_gpus, on_meta):
    with fake_gpus, torch.no_grad():
        spread_over_two_gpus(on_meta)
        decoder = on_meta.decoder
        rows = [on_meta.embed_text(torch.arange(4, device=GPU))]
        cache = decoder.config.new_cache(1, 9, device=GPU, dtype=torch.float32)  # not with its layers
        with pytest.raises(RuntimeError, match="device"):
            prefill(decoder, rows, cache)
