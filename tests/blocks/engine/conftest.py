"""Requests of a small model, what they deliver, and the tokens that they should: those of a plain loop."""

# pyright: reportCallIssue=false

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs import graph_prefill
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.sampling.request import Request, SampledToken, SamplingParams, TokenHead
from bifrons.blocks.sampling.sampling import IN_PROMPT, sample, sampling_tensors
from torch import Tensor


@torch.no_grad()
def reference_tokens(decoder: Decoder, request: Request) -> list[int]:
    """A request's tokens, up to its end token: the prompt whole, then one position after the other."""
    caches = [decoder.new_cache(1, request.positions) for _ in request.prompts_TD]
    inputs, tokens = list(request.prompts_TD), []
    seen_NV = torch.zeros(1, decoder.config.vocab_size, dtype=torch.int32, device=decoder.device)
    if request.seen_ids is not None:
        seen_NV[0, request.seen_ids] = IN_PROMPT
    params, mode = sampling_tensors([request], decoder.device), request.sampling.mode
    for step in range(request.max_new_tokens):
        hidden = []
        for x_TD, cache in zip(inputs, caches, strict=True):
            cache.reserve(cache.filled + len(x_TD))
            cache.decoding = step > 0
            hidden.append(decoder(x_TD[None], cache)[0, -1])
            cache.positions += len(x_TD)
        logits = request.head.logits(torch.stack(hidden))
        seed_N, step_N = torch.tensor([[request.seed], [step]], device=decoder.device)
        token_N, _ = sample(logits, mode, params, seed_N, step_N, seen_NV if mode.penalized else None)
        if token_N.item() == request.eos_id:
            break
        tokens.append(int(token_N.item()))
        if mode.penalized:
            seen_NV[0, token_N] += 1
        inputs = [request.head.embed(token_N)] * len(caches)
    return tokens


class Collector:
    """A request's tokens and its finish reason; calls `do` with token number `at`."""

    def __init__(self, at: int = 0, do: Callable[[], Any] = lambda: None) -> None:
        self.sampled: list[SampledToken] = []
        self.reason: str | None = None
        self.at, self.do = at, do

    def on_token(self, sampled: SampledToken) -> bool | None:
        assert self.reason is None
        self.sampled.append(sampled)
        return self.do() if len(self.sampled) == self.at else None

    def on_end(self, reason: str) -> None:
        assert self.reason is None, "a request ends once"
        self.reason = reason

    @property
    def tokens(self) -> list[int]:
        return [sampled.token for sampled in self.sampled]


class RequestMaker:
    """Requests of one model: answers, and images if it has an image head."""

    def __init__(self, model: Any) -> None:
        self.model, self.decoder = model, model.decoder
        self.text_head = TokenHead(model.embed_text, model.text_logits)

    def ids(self, length: int, seed: int = 0) -> Tensor:
        ids = torch.randint(9, 550, (length,), generator=torch.Generator().manual_seed(seed))
        return ids.to(self.decoder.device)

    def prompt(self, length: int, seed: int = 0) -> Tensor:
        return self.model.embed_text(self.ids(length, seed))

    def answer(self, length: int, sampling: SamplingParams, seed: int, new: int, **more: Any) -> Request:
        return self.request(self.text_head, [self.prompt(length, seed)], sampling, seed, new, **more)

    def image(self, length: int, sampling: SamplingParams, seed: int, new: int, **more: Any) -> Request:
        """With guidance, the unconditional prompt is shorter than the conditional one."""
        head = TokenHead(self.model.embed_codes, self.model.image_logits)
        prompts = [self.prompt(length, seed), self.prompt(max(1, length // 2), seed + 1)][: sampling.rows]
        return self.request(head, prompts, sampling, seed, new, **more)

    def request(self, *args: Any, out: Collector | None = None, **more: Any) -> Request:
        """A request that delivers to `out`."""
        out = out or Collector()
        return Request(*args, out.on_token, out.on_end, **more)

    def mixed(self, new: int) -> list[Request]:
        """Every way of sampling, after prompts of several lengths; up to `new` tokens each."""
        penalized = SamplingParams(0.8, repetition_penalty=1.7)
        requests = [
            self.answer(11, SamplingParams(0.0), 1, new),
            self.answer(33, SamplingParams(1.0), 2, new - 1, logprobs=3),
            self.answer(5, SamplingParams(0.7, 0, 0.9), 3, new),
            self.answer(8, penalized, 4, new, seen_ids=self.ids(8, 4)),
            self.answer(8, SamplingParams(1.3, 12), 5, 1),
        ]
        if hasattr(self.model, "embed_codes"):
            requests += [
                self.image(9, SamplingParams(1.0, guidance_scale=5.0), 6, new),
                self.image(20, SamplingParams(1.0, 0, 0.95), 7, new - 1),
                self.image(4, SamplingParams(0.9, 50, guidance_scale=2.5), 8, new),
            ]
        return requests

    def alone(self, requests: Sequence[Request]) -> list[list[int]]:
        """The tokens that requests, which have not run yet, should get."""
        return [reference_tokens(request.decoder or self.decoder, request) for request in requests]

    @staticmethod
    def outs(requests: Sequence[Request]) -> list[Collector]:
        """What the requests deliver to."""
        return [request.on_token.__self__ for request in requests]  # type: ignore[attr-defined]

    def run(self, scheduler: Scheduler, requests: Sequence[Request]) -> list[list[int]]:
        """Submit requests and step until all have ended; returns their tokens."""
        scheduler.submit(requests)
        self.finish(scheduler)
        return [out.tokens for out in self.outs(requests)]

    @staticmethod
    def finish(scheduler: Scheduler) -> None:
        """Step until all requests have ended."""
        for _ in range(2000):
            if not scheduler.has_work:
                break
            scheduler.step()
        assert not scheduler.has_work
        assert scheduler.rows_used == 0


@pytest.fixture(scope="session")
def requests_of() -> type[RequestMaker]:
    """`requests_of(model)` makes the model's requests and runs them."""
    return RequestMaker


@pytest.fixture(scope="module")
def maker(small_model, requests_of) -> RequestMaker:
    """Requests of a dense model."""
    return requests_of(small_model("dense"))


@pytest.fixture
def scheduler(maker: RequestMaker) -> Scheduler:
    """A scheduler of few rows, whose steps a test runs itself."""
    return Scheduler(maker.decoder, rows=6, context=64)


@pytest.fixture(scope="session")
def collector() -> type[Collector]:
    """What a request delivers to, with a callback for one token."""
    return Collector


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, where every program takes time, attention is over short spans."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(graph_prefill, "_MIN_SPAN", 64)
