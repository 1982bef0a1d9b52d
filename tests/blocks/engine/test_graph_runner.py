"""The runner of captured steps gives every request its tokens of the plain loop. On the CPU, Triton's
interpreter runs the kernels, and a replay runs the captured work again."""

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.engine import scheduler
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs import cuda_graphs, graph_prefill, kv_pool
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, Work
from bifrons.blocks.graphs.graph_runner import GraphRunner
from bifrons.blocks.sampling.request import Request, SamplingParams, TokenHead

pytestmark = [
    pytest.mark.usefixtures("few_programs"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_graph_runner_cuda.py"),
]
MODELS = ["dense-tiny", "experts-tiny", "latent-tiny"]


@pytest.fixture
def dense(small_model, requests_of) -> Any:
    return requests_of(small_model("dense-tiny"))


def captured_scheduler(maker: Any, capturer: GraphCapturer, **sizes: int) -> Scheduler:
    scheduler = Scheduler(maker.decoder, capturer=capturer, **sizes)
    assert isinstance(scheduler.runner, GraphRunner)
    return scheduler


@pytest.mark.parametrize("name", MODELS)
def test_requests_get_the_tokens_that_they_get_alone(
    name: str, small_model, requests_of, warm_up_capturer: type[GraphCapturer]
) -> None:
    maker = requests_of(small_model(name))
    expected = maker.alone(maker.mixed(3))
    assert maker.run(captured_scheduler(maker, warm_up_capturer()), maker.mixed(3)) == expected


def test_requests_that_arrive_and_leave_keep_their_tokens(
    dense: Any, warm_up_capturer: type[GraphCapturer]
) -> None:
    """Rows move to other places; their ranges of the pool are used again."""
    requests = dense.mixed(5)
    expected, outs = dense.alone(requests), dense.outs(requests)
    scheduler = captured_scheduler(dense, warm_up_capturer(), rows=6, context=48)
    for index, request in enumerate(requests):
        scheduler.submit([request])
        scheduler.step()
        if index == 3:
            requests[0].cancel()
    dense.finish(scheduler)
    assert outs[0].reason == "cancelled"
    assert 0 < len(outs[0].tokens) < 5
    assert outs[0].tokens == expected[0][: len(outs[0].tokens)]
    assert [out.tokens for out in outs[1:]] == expected[1:]
    assert scheduler.runner._pool.is_unused


def test_requests_that_replace_others_in_full_buffers_get_their_own_tokens(
    dense: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """All rows are in use; some end together, and as many begin before the others' next step."""
    lengths = (3, 6, 3, 6, 4, 4, 5, 3)
    requests = [dense.answer(5 + i, SamplingParams(1.0), i, new) for i, new in enumerate(lengths)]
    expected = dense.alone(requests)
    assert dense.run(captured_scheduler(dense, GraphCapturer(), rows=4, context=32), requests) == expected
    assert not caplog.records  # nothing failed and was repeated


def test_a_pool_that_grows_keeps_what_running_requests_wrote(
    dense: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_pool, "_MULTIPLE", 32)
    first = [dense.answer(30, SamplingParams(1.0), seed, 6) for seed in (1, 2)]
    late = [dense.answer(50, SamplingParams(1.0), seed, 3) for seed in (3, 4)]
    expected = dense.alone([*first, *late])
    scheduler = captured_scheduler(dense, GraphCapturer())
    scheduler.submit(first)
    for _ in range(3):
        scheduler.step()
    before = scheduler.runner.cache_bytes
    dense.run(scheduler, late)
    assert scheduler.runner.cache_bytes > before
    assert [out.tokens for out in dense.outs([*first, *late])] == expected


@pytest.mark.parametrize(("tokens", "graphed"), [(48, 1024), (4096, 64)])
def test_long_prompts_are_computed_in_parts(
    dense: Any, tokens: int, graphed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so many tokens at once, and of no more than a request asks for; with graphs up to some size."""
    monkeypatch.setattr(graph_prefill, "MAX_GRAPHED_TOKENS", graphed)
    monkeypatch.setattr(scheduler, "_PREFILL_TOKENS", tokens)
    requests = [
        dense.answer(70, SamplingParams(0.0), 1, 2, prefill_chunk=24),
        dense.answer(101, SamplingParams(0.0), 2, 2),
    ]
    expected = dense.alone(requests)
    assert dense.run(captured_scheduler(dense, GraphCapturer()), requests) == expected


def test_changing_numbers_of_requests_capture_nothing_new(dense: Any) -> None:
    capturer = GraphCapturer()
    scheduler = captured_scheduler(dense, capturer, rows=4, context=64)

    def answers(count: int, round_: int) -> list[Request]:
        sampling = SamplingParams(0.5 + round_)
        return [dense.answer(3 + round_, sampling, 10 * round_ + seed, 2) for seed in range(count)]

    for count in (1, 2, 4):
        dense.run(scheduler, answers(count, 0))
    made = capturer.made
    for round_, count in enumerate((3, 1, 2), start=1):
        requests = answers(count, round_)
        expected = dense.alone(requests)
        assert dense.run(scheduler, requests) == expected
    assert capturer.made == made


def test_warm_up_captures_what_requests_use(dense: Any, warm_up_capturer: type[GraphCapturer]) -> None:
    capturer, progress = warm_up_capturer(), []
    scheduler = captured_scheduler(dense, capturer, rows=2, context=64)
    samplings = [SamplingParams(1.0), SamplingParams(0.0, repetition_penalty=5.0)]
    heads = [(dense.text_head, sampling) for sampling in samplings]
    scheduler.warm_up(heads, lambda done, total: progress.append((done, total)))
    made = capturer.made
    assert progress == [(done, made) for done in range(1, made + 1)]
    requests = [dense.answer(9, sampling, 1, 5) for sampling in samplings]
    expected = dense.alone(requests)
    assert dense.run(scheduler, requests) == expected
    assert capturer.made == made


def test_moved_weights_are_captured_anew(dense: Any) -> None:
    capturer, weight = GraphCapturer(), dense.decoder.norm.weight
    scheduler = captured_scheduler(dense, capturer)
    for times in (1, 2):
        requests = [dense.answer(9, SamplingParams(0.0), 1, 3)]
        expected = dense.alone(requests)
        assert dense.run(scheduler, requests) == expected
        assert capturer.made == 3 * times  # the prompt, the sampling, the decoder
        weight.data = -weight.data


@pytest.mark.parametrize("failures", [1, 9])
def test_weights_that_cannot_be_fused_leave_no_rows_behind(
    dense: Any, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse(decoder: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(cuda_graphs, "fuse_weights", fuse)
    requests = [dense.answer(9, SamplingParams(1.0), seed, 2) for seed in (1, 2)]
    expected = [[], []] if failures > 1 else dense.alone(requests)
    scheduler = captured_scheduler(dense, GraphCapturer(), rows=2, context=32)
    assert dense.run(scheduler, requests) == expected
    assert scheduler.runner._pool.is_unused


@pytest.mark.parametrize("number", range(3))
def test_a_capture_that_fails_changes_no_token(dense: Any, number: int, warm_up_capturer: Any) -> None:
    """Of a prompt, of the sampling or of the decoder: each request is computed alone instead."""

    class FailingCapturer(warm_up_capturer):
        def __call__(self, work: Work) -> Work:
            if self.made == number:
                self.made += 1
                work()
                raise RuntimeError("out of memory")
            return super().__call__(work)

    penalized = SamplingParams(0.9, repetition_penalty=3.0)
    requests = [dense.answer(9 + seed, penalized, seed, 4) for seed in range(3)]
    expected = dense.alone(requests)
    assert dense.run(captured_scheduler(dense, FailingCapturer()), requests) == expected


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # by the interpreter's NumPy
def test_a_request_whose_logits_are_not_numbers_ends_alone(dense: Any) -> None:
    for sampling in (SamplingParams(0.0), SamplingParams(1.0), SamplingParams(1.0, 5)):
        broken, good = dense.answer(6, sampling, 1, 2), dense.answer(6, sampling, 2, 2)
        expected = dense.alone([good])
        broken.prompts_TD[0][-1] = torch.nan
        _, tokens = dense.run(captured_scheduler(dense, GraphCapturer()), [broken, good])
        assert tokens == expected[0]
        assert "not numbers" in str(broken.error)


def test_a_failing_head_ends_its_requests_alone(dense: Any, collector: Any) -> None:
    def explode(hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    out = collector()
    head = TokenHead(dense.model.embed_text, explode)
    broken = dense.request(head, [dense.prompt(5)], SamplingParams(0.0), 3, 6, out=out)
    penalized = SamplingParams(0.9, repetition_penalty=3.0)
    good = [dense.answer(9, penalized, 1, 4), dense.image(9, SamplingParams(guidance_scale=2.0), 2, 4)]
    expected = dense.alone(good)
    scheduler = captured_scheduler(dense, GraphCapturer())
    assert dense.run(scheduler, [good[0], broken, good[1]]) == [expected[0], [], expected[1]]
    assert out.reason == "error"


def test_log_probabilities_are_those_of_the_eager_runner(dense: Any, collector: Any) -> None:
    found = []
    for capturer in (None, GraphCapturer()):
        outs = [collector(), collector()]
        requests = [
            dense.answer(9, SamplingParams(1.0), seed, 3, logprobs=count, out=out)
            for seed, count, out in zip((1, 2), (4, 0), outs, strict=True)
        ]
        dense.run(Scheduler(dense.decoder, capturer=capturer), requests)
        found.append([sampled for out in outs for sampled in out.sampled])
    for eager, captured in zip(*found, strict=True):
        assert captured.token == eager.token
        assert captured.logprob == pytest.approx(eager.logprob, abs=1e-4)
        assert [token for token, _ in captured.top] == [token for token, _ in eager.top]
    assert [len(sampled.top) for sampled in found[1]] == [4] * 3 + [0] * 3


@pytest.mark.parametrize(
    ("capturer", "counts"), [(None, [1, 2, 3, 4]), (GraphCapturer(), [0, 1, 2, 4])], ids=["eager", "captured"]
)
def test_tokens_are_delivered_as_they_are_made(
    dense: Any, capturer: GraphCapturer | None, counts: list[int]
) -> None:
    """Those of captured steps while the next step runs."""
    scheduler, request = (
        Scheduler(dense.decoder, capturer=capturer),
        dense.answer(9, SamplingParams(1.0), 1, 4),
    )
    scheduler.submit([request])
    found = []
    for _ in counts:
        scheduler.step()
        found.append(len(dense.outs([request])[0].tokens))
    assert found == counts


def test_works_in_and_after_inference_mode(dense: Any) -> None:
    """In the same memory."""
    scheduler = captured_scheduler(dense, GraphCapturer())
    expected = dense.alone([dense.answer(9, SamplingParams(1.0), 1, 3)])
    with torch.inference_mode():
        assert dense.run(scheduler, [dense.answer(9, SamplingParams(1.0), 1, 3)]) == expected
    version = scheduler.runner._pool.version
    assert dense.run(scheduler, [dense.answer(9, SamplingParams(1.0), 1, 3)]) == expected
    assert scheduler.runner._pool.version == version
