"""The scheduler gives every request the tokens that the pipeline gives it alone, whatever else runs."""

import threading
import time
from dataclasses import replace

import pytest
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids
from bifrons.blocks.engine.background import BackgroundScheduler
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs import graph_prefill
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer
from bifrons.blocks.sampling.request import Request, SampledToken, SamplingParams, TokenHead
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image


@pytest.fixture(scope="module")
def pipe(janus_mini) -> JanusPipeline:
    return JanusPipeline.from_pretrained(janus_mini, device="cpu")


@pytest.fixture
def scheduler(pipe):
    scheduler = BackgroundScheduler(pipe.model.decoder, rows=6, context=256, max_waiting=40)
    scheduler.start()
    yield scheduler
    assert scheduler.close(10)


class Collected:
    """A request's tokens and its finish reason."""

    def __init__(self) -> None:
        self.choices: list[SampledToken] = []
        self.reason = None
        self.ended = threading.Event()

    def on_token(self, choice: SampledToken) -> None:
        self.choices.append(choice)

    def on_end(self, reason: str) -> None:
        assert self.reason is None
        self.reason = reason
        self.ended.set()

    @property
    def tokens(self) -> list[int]:
        assert self.ended.wait(30)
        return [choice.token for choice in self.choices]


class Maker:
    """Requests of one pipeline; `expected_chat` and `expected_codes` are the pipeline's own results."""

    def __init__(self, pipe: JanusPipeline) -> None:
        self.pipe, model = pipe, pipe.model
        self.text = TokenHead(model.embed_text, model.text_logits)
        self.image = TokenHead(model.embed_codes, model.image_logits)

    def prompt(self, words: str, images=()):
        return self.pipe.prompts([self.pipe.question_messages(list(images), words)], 1)[0]

    def chat(self, prompt, sampling, seed, new, out, **more) -> Request:
        return Request(
            self.text, [prompt.embeddings_TD], sampling, seed, new, out.on_token, out.on_end, **more
        )

    def paint(self, words, sampling, seed, scale, out) -> Request:
        pair = self.pipe.processor.generation_ids(words)[: 1 if scale == 1.0 else 2]
        prompts = [self.pipe.model.embed_text(ids).detach() for ids in pair]
        total = self.pipe.model.config.num_codes
        sampling = replace(sampling, guidance_scale=None if scale == 1.0 else scale)
        return Request(self.image, prompts, sampling, seed, total, out.on_token, out.on_end)

    def expected_chat(self, prompt, sampling, seed, new) -> list[int]:
        options = TextGenerationOptions(new, sampling.temperature, sampling.top_p)
        return generate_ids(self.pipe.model, [prompt], options, [seed], self.pipe.tokenizer.eos_id)[0]

    def expected_codes(self, words, sampling, seed, scale) -> list[int]:
        codes = self.pipe.generate(
            words, 1, seed, scale, sampling.temperature, sampling.top_k, sampling.top_p, output_type="codes"
        )
        return codes[0].tolist()


@pytest.fixture
def maker(pipe) -> Maker:
    return Maker(pipe)


def test_mixed_requests_at_different_times_get_the_pipelines_tokens(scheduler, maker):
    red = Image.new("RGB", (40, 30), (200, 30, 30))
    chats = [
        (maker.prompt("What is it?", [red]), SamplingParams(0.0), 1, 30),
        (maker.prompt("Hello"), SamplingParams(1.0), 2, 40),
        (maker.prompt("A question of another length than the others?"), SamplingParams(0.7, 0, 0.9), 3, 25),
        (maker.prompt("Hello"), SamplingParams(1.0), 4, 7),
    ]
    paints = [
        ("a red circle", SamplingParams(1.0), 5, 5.0),
        ("two blue squares on a green table", SamplingParams(1.0, 0, 0.95), 6, 1.0),
        ("x", SamplingParams(0.9, 50), 7, 2.5),
        ("a red circle", SamplingParams(1.0), 8, 5.0),
    ]
    expected = [maker.expected_chat(*chat) for chat in chats]
    expected += [maker.expected_codes(*paint) for paint in paints]
    outs = [Collected() for _ in range(8)]
    eos = maker.pipe.tokenizer.eos_id
    requests = [maker.chat(*chat, out, eos_id=eos) for chat, out in zip(chats, outs[:4], strict=True)]
    requests += [maker.paint(*paint, out) for paint, out in zip(paints, outs[4:], strict=True)]
    for index in (4, 0, 5, 1, 6, 2, 7, 3):
        request = requests[index]
        before = scheduler.steps
        scheduler.reserve(request.rows)
        scheduler.submit([request])
        deadline = time.monotonic() + 5
        while scheduler.steps < before + 3 and scheduler.rows_promised and time.monotonic() < deadline:
            time.sleep(0.001)
    got = [[token for token in out.tokens if token != eos or out in outs[4:]] for out in outs]
    assert got == expected
    assert [out.reason for out in outs[4:]] == ["length"] * 4
    assert scheduler.rows_promised == scheduler.rows_used == 0


def test_weights_of_the_image_tokenizer_may_move_without_new_captures(pipe, monkeypatch):
    """As the first image that is decoded on CUDA moves them."""
    monkeypatch.setattr(graph_prefill, "_MIN_SPAN", 64)  # in Triton's interpreter every program takes time
    model, capturer, made = pipe.model, GraphCapturer(), []
    scheduler = Scheduler(model.decoder, capturer=capturer)
    head = TokenHead(model.embed_codes, model.image_logits)
    assert model.language_model in head.modules
    assert model.gen_head in head.modules
    for _ in range(2):
        prompt = model.embed_text(pipe.processor.generation_ids("a red circle", None)[0])
        collected = Collected()
        scheduler.submit(
            [Request(head, [prompt], SamplingParams(0.0), 1, 2, collected.on_token, collected.on_end)]
        )
        while scheduler.has_work:
            scheduler.step()
        assert len(collected.tokens) == 2
        made.append(capturer.made)
        for weight in model.gen_vision_model.parameters():
            weight.data = weight.data.clone()
    assert made[0] == made[1] > 0
