"""The scheduler gives every request what the pipeline gives it alone, whatever else runs."""

import threading
import time
from dataclasses import replace

import pytest
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids
from bifrons.blocks.engine.request import Request, SampledToken, SamplingParams, TokenHead
from bifrons.blocks.engine.scheduler import QueueFull, Scheduler, SchedulerStopped
from bifrons.blocks.errors import PromptError
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image


@pytest.fixture(scope="module")
def pipe(janus_mini) -> JanusPipeline:
    return JanusPipeline.from_pretrained(janus_mini, device="cpu")


@pytest.fixture
def scheduler(pipe):
    scheduler = Scheduler(pipe.model.decoder, rows=6, context=256, max_waiting=40)
    yield scheduler
    assert scheduler.close(10)


class Collected:
    """A request's tokens, its end, and a hook for what should happen at a step."""

    def __init__(self, at=None, do=None) -> None:
        self.choices: list[SampledToken] = []
        self.reason = None
        self.ended = threading.Event()
        self.at, self.do = at, do

    def on_token(self, choice: SampledToken) -> bool | None:
        self.choices.append(choice)
        return self.do() if self.do and len(self.choices) == self.at else None

    def on_end(self, reason: str) -> None:
        assert self.reason is None
        self.reason = reason
        self.ended.set()

    @property
    def tokens(self) -> list[int]:
        assert self.ended.wait(30)
        return [choice.token for choice in self.choices]


class Maker:
    """Jobs of one pipeline; `expected` is what the pipeline gives for them."""

    def __init__(self, pipe: JanusPipeline) -> None:
        self.pipe, model = pipe, pipe.model
        self.text = TokenHead(model.embed_text, model.text_logits)
        self.image = TokenHead(model.embed_codes, model.image_logits)

    def prompt(self, words: str, pictures=()):
        return self.pipe.prompts([self.pipe.question_messages(list(pictures), words)], 1)[0]

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


def test_mixed_jobs_that_come_at_different_times_get_what_they_get_alone(scheduler, maker):
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
    wanted = [maker.expected_chat(*chat) for chat in chats]
    wanted += [maker.expected_codes(*paint) for paint in paints]
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
    assert got == wanted
    assert [out.reason for out in outs[4:]] == ["length"] * 4
    assert scheduler.rows_promised == scheduler.rows_used == 0


def test_a_full_house_shares_steps(scheduler, maker):
    outs = [Collected() for _ in range(12)]
    prompt = maker.prompt("Hello")
    scheduler.reserve(12)
    scheduler.submit([maker.chat(prompt, SamplingParams(1.0), i, 20, out) for i, out in enumerate(outs)])
    assert all(len(out.tokens) == 20 for out in outs)
    # Twelve answers through six rows: two rounds of 19 decoder steps (the first token needs none).
    assert scheduler.steps <= 2 * 20


def test_a_cancelled_job_frees_its_rows_within_a_step_and_the_rest_go_on(scheduler, maker):
    prompt, sampling = maker.prompt("Hello"), SamplingParams(1.0)
    wanted = maker.expected_chat(prompt, sampling, 9, 40)
    gone = Collected(at=3, do=lambda: cancelled.cancel())
    used = []
    seen = Collected(at=5, do=lambda: used.append(scheduler.rows_used))
    kept = Collected()
    cancelled = maker.paint("a red circle", sampling, 5, 5.0, gone)
    requests = [
        cancelled,
        maker.chat(prompt, sampling, 8, 40, seen),
        maker.chat(prompt, sampling, 9, 40, kept),
    ]
    scheduler.reserve(4)
    scheduler.submit(requests)
    eos = maker.pipe.tokenizer.eos_id
    tokens = kept.tokens
    assert tokens[: tokens.index(eos) if eos in tokens else None] == wanted
    assert gone.reason == "cancelled"
    assert len(gone.tokens) == 3
    assert len(seen.tokens) == 40
    assert used == [2]


def test_log_probabilities_are_those_of_scoring(scheduler, maker):
    out = Collected()
    prompt = maker.prompt("Hello")
    scheduler.reserve(1)
    scheduler.submit([maker.chat(prompt, SamplingParams(0.0), 0, 1, out, logprobs=3)])
    assert out.ended.wait(30)
    messages = maker.pipe.question_messages([], "Hello")
    scores = maker.pipe.next_logits(messages).log_softmax(-1)
    choice = out.choices[0]
    assert choice.logprob == pytest.approx(scores[choice.token].item(), abs=1e-4)
    assert [token for token, _ in choice.top] == scores.topk(3).indices.tolist()
    assert choice.top[0][0] == choice.token


def test_the_queue_is_bounded_and_what_does_not_fit_is_refused(scheduler, maker):
    scheduler.reserve(46)
    with pytest.raises(QueueFull):
        scheduler.reserve(1)
    scheduler.release(46)
    with pytest.raises(PromptError, match="context holds 256"):
        scheduler.submit([maker.chat(maker.prompt("Hello"), SamplingParams(0.0), 0, 255, Collected())])


def test_closing_finishes_what_was_promised_and_refuses_the_rest(pipe, maker):
    scheduler = Scheduler(pipe.model.decoder, rows=2, context=256, max_waiting=40)
    outs = [Collected() for _ in range(4)]
    scheduler.reserve(4)
    scheduler.submit([maker.chat(maker.prompt("Hello"), SamplingParams(1.0), 1, 30, out) for out in outs])
    assert scheduler.close(30)
    assert [(out.reason, len(out.tokens)) for out in outs] == [("length", 30)] * 4
    with pytest.raises(SchedulerStopped):
        scheduler.reserve(1)


def test_a_failing_step_tells_its_jobs_and_the_engine_lives_on(scheduler, maker):
    def explode(hidden):
        raise RuntimeError("out of memory")

    bad, good = Collected(), Collected()
    prompt = maker.prompt("Hello")
    broken = maker.chat(prompt, SamplingParams(0.0), 0, 3, bad)
    broken.head = TokenHead(maker.text.embed, explode)
    scheduler.reserve(1)
    scheduler.submit([broken])
    assert bad.tokens == []
    assert bad.reason == "error"
    scheduler.reserve(1)
    scheduler.submit([maker.chat(prompt, SamplingParams(0.0), 0, 3, good)])
    assert len(good.tokens) == 3
