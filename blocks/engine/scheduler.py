"""Continuous batching: requests that arrive at different times share every step.

A request is one answer or one image. It takes one row of the cache, or two with guidance (conditional and
unconditional). A step admits waiting requests for which there is room, computes some of their prompts, and
one token of every running request. There is no preemption: an admitted request keeps its rows until it
finishes. Its tokens depend only on its own prompt, parameters and seed.

Pipelines call `step` themselves, in turn (`generate.py`); a server has a thread for it (`background.py`).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch

from ..device import inference_on
from ..drafts import check_drafts
from ..errors import OptionError, reraise_exit
from ..graphs.cuda_graphs import GraphCapturer, checks_windows, uses_cuda_graphs
from ..logit_bias import check_logit_bias
from ..model.decoder import Decoder
from ..sampling.request import Request, SampledToken, SamplingParams, TokenHead, Tokens, check_context
from .prefill import embed_requests
from .runners import make_runner

_log = logging.getLogger("bifrons.engine")
_Work = Callable[[list[Request]], list[Request]]

# Prompt positions of a step (bounds the memory of activations), and of one beside requests that wait for it.
_PREFILL_TOKENS, _PREFILL_TOKENS_BESIDE = 4096, 1024
_LONG_JOBS_START = 8  # beside running requests, every so many steps: together they delay these less


class Scheduler:
    """Queues requests and runs them, step by step."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        rows: int | None = None,
        context: int | None = None,
        capturer: GraphCapturer | None = None,
        sharing: int = 1,
    ) -> None:
        """With `rows`, the cache is allocated at once: as many rows of `context` positions as fit in one of
        `sharing` shares of the memory, up to `rows`; without, it grows with the requests. `capturer` captures
        steps; None means CUDA graphs where `uses_cuda_graphs`. Raises `OptionError`."""
        limit = decoder.config.max_positions
        context = limit if context is None else context
        if (rows is not None and rows < 2) or not 2 <= context <= limit:
            accepted = f"at least 2 rows, 2 to {limit} positions"
            raise OptionError(f"rows {rows}, context {context}; accepted: {accepted}")
        self.decoder, self.context = decoder, context
        self.runner = make_runner(decoder, rows, context, capturer, sharing)
        self._made_for = _form(decoder)
        self.rows = self.runner.rows
        """Rows that run together; None is any number."""
        self._waiting: list[Request] = []
        self._prefilling: list[Request] = []
        self._running: list[Request] = []
        self._launched: deque[tuple[list[Request], Callable[[], Tokens]]] = deque()
        self._changed = threading.Condition()
        self._stepping = threading.Lock()
        self._stepping_thread: int | None = None
        self._ended_turns = 0
        self.steps = self.passes = self.tokens = 0  # passes: the sum of the steps of each request

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of a decoder gets a scheduler of its own

    @property
    def is_current(self) -> bool:
        """Whether the decoder is where it was, in the same dtype, and captured as it was."""
        return self._made_for == _form(self.decoder)

    @property
    def rows_used(self) -> int:
        """Rows of running requests."""
        return self.runner.rows_used

    def check(self, prompt: int, new: int) -> None:
        """Raise `PromptError` if this many prompt and new tokens exceed a row."""
        check_context(prompt, new, self.context)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. Raises `PromptError` if one does not fit into a row, and `OptionError` if it has
        a bias for a token that there is not, or asks for drafts where they might change tokens."""
        exact = checks_windows(self.decoder)
        for request in requests:
            self.check(request.prompt_tokens, request.max_new_tokens)
            check_logit_bias(request.sampling.logit_bias, self.decoder.config.vocab_size)
            check_drafts(request.speculate, exact, self.decoder.device, self.decoder.dtype)
        with self._changed:
            self._waiting = sorted([*self._waiting, *requests], key=lambda request: request.priority)
            self._changed.notify_all()

    def cancel(self, requests: Sequence[Request]) -> None:
        """End those of the submitted requests that have not ended, and free their rows; within a step (from a
        callback) the next step does so."""
        for request in requests:
            request.cancel()
        while self._stepping_thread != threading.get_ident() and not all(one.ended for one in requests):
            self._in_turn(self._end_cancelled)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._waiting or self._prefilling or self._running or self._launched)

    def warm_up(
        self,
        heads: Sequence[tuple[TokenHead, SamplingParams]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compile kernels and capture the usual graphs, for requests with these heads and parameters.

        `progress(done, total)` is called after each. Does nothing where nothing is captured.
        """
        with self._stepping, inference_on(self.decoder.device):
            self.runner.warm_up([(head, params.mode) for head, params in heads], progress)

    def step(self) -> None:
        """Run one step for all requests; if another thread is running one, wait until it has ended."""
        self._in_turn(self._step)

    def _in_turn(self, work: Callable[[], None]) -> None:
        """Do work that no other thread does now; if one does, wait until it has ended instead."""
        ended = self._ended_turns
        if not self._stepping.acquire(blocking=False):
            with self._changed:
                self._changed.wait_for(lambda: self._ended_turns != ended, timeout=1.0)
            return
        try:
            self._stepping_thread = threading.get_ident()
            with inference_on(self.decoder.device, self.decoder):
                work()
        finally:
            self._stepping_thread = None
            self._stepping.release()
            with self._changed:
                self._ended_turns += 1
                self._changed.notify_all()

    def _step(self) -> None:
        self._end_cancelled()
        self._admit()
        if self._prefilling:
            self._prefill()
        if self._running:
            self._launch()
        # What a matcher allows next depends on the token before.
        free = self._running and all(request.matcher is None for request in self._running)
        while len(self._launched) > (self.runner.lag if free else 0):
            self._deliver()

    def _requests(self) -> list[Request]:
        """All requests that have not ended; those whose last tokens are on the way may occur twice."""
        launched = [request for requests, _ in self._launched for request in requests]
        return [*self._waiting, *self._prefilling, *self._running, *launched]

    def _end_cancelled(self) -> None:
        for request in self._requests():
            if request.cancelled:
                self._finish(request, "cancelled")

    def _admit(self) -> None:
        """Start waiting requests for which there is room."""
        with self._changed:
            rows, candidates = self.rows_used, []
            for request in self._waiting:
                rows += request.rows
                later = request.priority > 0 and self._running and self.steps % _LONG_JOBS_START
                if later or (self.rows is not None and rows > self.row_limit(request.priority)):
                    break
                candidates.append(request)
        admitted = self._isolated(self.runner.admit, candidates)
        if candidates and not (admitted or self._prefilling or self._running):
            size = f"{candidates[0].rows} x {candidates[0].positions} positions"
            accepted = "fewer new tokens, a shorter prompt, or more free memory"
            error = OptionError(f"the cache has no room for {size}; accepted: {accepted}")
            self._finish(candidates[0], "error", error)
        with self._changed:
            self._waiting = [request for request in self._waiting if request not in admitted]
        self._prefilling += admitted

    def row_limit(self, priority: int) -> int:
        """The rows in use up to which requests may start; long jobs leave priority 0 an eighth, or one."""
        rows = self.rows or 0
        return rows if priority == 0 or rows <= 2 else rows - max(1, rows // 8)

    def _prefill(self) -> None:
        tokens = _PREFILL_TOKENS_BESIDE if self._running else _PREFILL_TOKENS
        self._embed(tokens)
        embedded = [request for request in self._prefilling if request.prompts_TD]
        done = self._isolated(lambda requests: self.runner.prefill(requests, tokens), embedded)
        for request in done:
            self._prefilling.remove(request)
            request.prompts_TD = ()  # the embeddings are no longer needed
        self._running += done

    def _embed(self, tokens: int) -> None:
        """Embed the prompts of the first requests, of about as many tokens as are to be computed."""
        chosen: list[Request] = []
        for request in self._prefilling:
            if request.embed is not None and not request.prompts_TD:
                chosen.append(request)
            tokens -= request.prompt_tokens
            if tokens <= 0:
                break
        for embed in dict.fromkeys(request.embed for request in chosen):
            self._isolated(embed_requests, [request for request in chosen if request.embed == embed])

    def _isolated(self, work: _Work, requests: list[Request]) -> list[Request]:
        """The result of the work, or if it fails, of the work for each alone; those that fail alone end."""
        if not requests:
            return []
        try:
            return work(requests)
        except BaseException as error:
            reraise_exit(error)
            if len(requests) == 1:
                _log.exception("a request failed")
                self._finish(requests[0], "error", error)
                return []
            _log.warning("%d requests failed together; each is tried alone", len(requests), exc_info=error)
        return [one for request in requests for one in self._isolated(work, [request])]

    def _launch(self) -> None:
        self._isolated(self._launch_step, list(self._running))
        self.steps += 1
        for request in [one for one in self._running if one.step == one.max_new_tokens]:
            self._free(request)  # its last tokens are still to be delivered

    def _launch_step(self, requests: list[Request]) -> list[Request]:
        self._launched.append((list(requests), self.runner.step(requests)))
        return requests

    def _deliver(self) -> None:
        """Wait for the tokens of the oldest step and hand them to their requests."""
        requests, read = self._launched.popleft()
        try:
            tokens = read()
        except BaseException as error:  # the device failed
            reraise_exit(error)
            _log.exception("a step failed; %d requests end with it", len(requests))
            for request in requests:
                self._finish(request, "error", error)
            tokens = []
        for request in {request for request, _ in tokens if not request.ended}:
            request.passes += 1
            self.passes += 1
        for request, sampled in tokens:
            if not request.ended:
                self._hand_over(request, sampled)

    def _hand_over(self, request: Request, sampled: SampledToken) -> None:
        request.delivered += 1
        self.tokens += 1
        try:
            stops = request.deliver(sampled, self.decoder.dtype)
        except BaseException as error:
            reraise_exit(error)
            if not isinstance(error, OptionError):  # an output format too complex: the client is told
                _log.exception("a token could not be delivered")
            self._finish(request, "error", error)
        else:
            if stops or request.delivered == request.max_new_tokens:
                self._finish(request, "stop" if stops else "length")

    def _free(self, request: Request) -> None:
        """Take a request out of the queue or the cache."""
        with self._changed:
            self._waiting = [one for one in self._waiting if one is not request]
        for requests in (self._prefilling, self._running):
            if request in requests:
                requests.remove(request)
                self.runner.remove(request)

    def _finish(self, request: Request, reason: str, error: BaseException | None = None) -> None:
        if request.ended:
            return
        request.ended, request.error = True, error
        try:
            self._free(request)
        finally:
            self._report_end(request, reason)

    def _report_end(self, request: Request, reason: str) -> None:
        try:
            request.on_end(reason)
        except BaseException as error:  # a failing callback must not end the other requests
            reraise_exit(error)
            _log.exception("a request's on_end callback failed")


def _form(decoder: Decoder) -> tuple[torch.device, torch.dtype, bool]:
    return decoder.device, decoder.dtype, uses_cuda_graphs(decoder)
