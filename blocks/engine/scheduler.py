"""Continuous batching: requests that arrive at different times share every step of one decoder.

n rows in use, D decoder width.

A request is one answer or one image. It has one row, or two with guidance (conditional and unconditional),
and a `TokenHead`: how its tokens are embedded and how hidden states become logits. Each step admits what
waits, chooses one token of every request, and runs the decoder once over all rows, on CUDA from a recording.
A request's tokens depend on its own prompt, options and seed only, as they do in the pipelines.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from ..errors import OptionError
from ..model.decoder import Decoder
from ..model.kv_slots import KVSlots, sent
from .cuda_graphs import GraphCapturer, graph_capturer
from .generate import check_context, decode_one, records
from .graphed_steps import GraphedSteps
from .job_choice import choose_all
from .prefill import Prefiller
from .request import Request
from .sampling import TokenHead

_log = logging.getLogger("bifrons.engine")


class QueueFull(Exception):
    """As many rows as may wait are waiting."""


class SchedulerStopped(Exception):
    """The scheduler takes no more requests."""


class Scheduler:
    """A decoder, a cache of `rows` rows of `context` positions, a bounded queue, and the thread in between.

    Rows are promised (`reserve`) before a prompt is prepared, so that what is beyond the queue costs nothing.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        rows: int,
        context: int,
        max_waiting: int,
        capturer: GraphCapturer | None = None,
    ) -> None:
        """`max_waiting`: rows that may wait for others to end. `capturer` records the decoder's steps; None:
        as CUDA graphs where `generation.records`, else not. Raises `OptionError`."""
        if rows < 2 or not 2 <= context <= decoder.config.max_positions or max_waiting < 0:
            raise OptionError(
                f"rows {rows}, context {context}, waiting {max_waiting}; accepted: at least 2 rows, 2 to "
                f"{decoder.config.max_positions} positions, at least 0 waiting"
            )
        self.decoder, self.rows, self.context, self.max_waiting = decoder, rows, context, max_waiting
        self.device = decoder.device
        self._slots = KVSlots(decoder, rows, context)
        self._prefiller = Prefiller(decoder, self._slots)
        if capturer is None and records(decoder):
            capturer = graph_capturer(self.device)
        self._recorded = None if capturer is None else GraphedSteps(decoder, self._slots, capturer)
        self._running: list[Request] = []
        self._queue: deque[Request] = deque()
        self._promised = 0
        self._closing = False
        self._changed = threading.Condition()
        self.steps = 0
        self.tokens = 0
        self._thread = threading.Thread(target=self._run, name="bifrons-engine", daemon=True)
        self._thread.start()

    @property
    def rows_used(self) -> int:
        return len(self._slots.lengths)

    @property
    def rows_promised(self) -> int:
        """Rows of all requests that run, wait or are being prepared."""
        return self._promised

    def reserve(self, rows: int) -> None:
        """Promise rows to requests that will be submitted (or given back by `release`).

        Raises `QueueFull` when they would not even wait, `SchedulerStopped` after `close`.
        """
        with self._changed:
            if self._closing:
                raise SchedulerStopped("the engine is stopping")
            if self._promised + rows > self.rows + self.max_waiting:
                raise QueueFull(f"{self._promised} rows are in use or waiting")
            self._promised += rows

    def release(self, rows: int) -> None:
        """Take a promise back that led to no request."""
        with self._changed:
            self._promised -= rows
            self._changed.notify_all()

    def check(self, prompt: int, new: int) -> None:
        """`PromptError` where a prompt of so many tokens and so many new ones exceed a row."""
        check_context(prompt, new, self.context)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests whose rows are reserved. Raises `PromptError` where one does not fit into a row."""
        for request in requests:
            self.check(max(len(prompt) for prompt in request.prompts_TD), request.max_new_tokens)
        with self._changed:
            self._queue.extend(requests)
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> bool:
        """Take no more, finish what was promised, end the thread; False if it did not end in time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # Kernels are launched on the thread's own device, whatever the tensors'.
        device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with torch.no_grad(), device:
            while (admitted := self._next_jobs()) is not None:
                try:
                    self._turn(admitted)
                except Exception:  # of whatever kind: the requests must be told, and the next ones served
                    _log.exception("a step failed; %d requests end with it", len(self._running))
                    self._slots.clear()
                    failed, self._running = [*self._running, *admitted], []
                    for request in failed:
                        self._tell_end(request, "error")
        self._prefiller.close()

    def _next_jobs(self) -> list[Request] | None:
        """Wait for something to do; the requests to begin now, in the order they came. None: the end."""
        with self._changed:
            while not self._queue and not self._running:
                if self._closing and self._promised == 0:
                    return None
                self._changed.wait()
            admitted = [request for request in self._queue if request.cancelled]
            self._queue = deque(request for request in self._queue if not request.cancelled)
            free = self._slots.free + sum(request.rows for request in self._running if request.cancelled)
            while self._queue and self._queue[0].rows <= free:
                request = self._queue.popleft()
                admitted.append(request)
                free -= request.rows
            return admitted

    def _turn(self, admitted: list[Request]) -> None:
        for request in [request for request in self._running if request.cancelled]:
            self._end(request, "cancelled")
        begun = [request for request in admitted if not request.cancelled]
        for request in admitted:
            if request not in begun:
                self._tell_end(request, "cancelled")
        self._prefill(begun)
        if not self._running:
            return
        tokens = self._choose()
        if self._running:
            self._advance(tokens)

    def _prefill(self, requests: list[Request]) -> None:
        if requests and self._recorded is not None:
            self._recorded.begin()
        places = iter(self._prefiller.add([prompt for request in requests for prompt in request.prompts_TD]))
        for request in requests:
            request.places = [next(places) for _ in range(request.rows)]
            request.prompts_TD = ()  # the embeddings are needed no more
            self._running.append(request)

    def _by_head(self) -> dict[TokenHead, list[Request]]:
        groups: dict[TokenHead, list[Request]] = {}
        for request in self._running:
            groups.setdefault(request.head, []).append(request)
        return groups

    def _choose(self) -> dict[Request, int]:
        """One token of every request; reports it, and returns those of the requests that go on."""
        kernels = None if self._recorded is None else self._recorded.decoding.kernels
        going = {}
        for request, choice in choose_all(self._by_head(), self._slots.hidden_RD, kernels):
            request.step += 1
            self.tokens += 1
            if choice.token == request.eos_id or request.on_token(choice):
                self._end(request, "stop")
            elif request.step == request.max_new_tokens:
                self._end(request, "length")
            else:
                going[request] = choice.token
        return going

    def _advance(self, tokens: dict[Request, int]) -> None:
        """Feed the tokens back: one decoder step over all rows in use."""
        hidden = self._slots.hidden_RD
        x_nD = hidden.new_empty(self.rows_used, hidden.shape[1])
        for head, requests in self._by_head().items():
            # A row's twin gets the same input, which is looked up once.
            rows = [(place, i) for i, request in enumerate(requests) for place in request.places]
            chosen, places, owners = sent(
                self.device,
                [tokens[request] for request in requests],
                [place for place, _ in rows],
                [i for _, i in rows],
            )
            x_nD[places] = head.embed(chosen)[owners]
        if self._recorded is None:
            hidden[: self.rows_used] = decode_one(self.decoder, x_nD, self._slots.active())
        else:
            self._recorded.run(x_nD)
        self._slots.advance()
        self.steps += 1

    def _end(self, request: Request, reason: str) -> None:
        self._running.remove(request)
        while request.places:
            # The highest first, so that a request's second row can't move into its first one's place.
            request.places.sort()
            place = request.places.pop()
            moved = self._slots.drop(place)
            for other in self._running:
                other.places = [place if p == moved else p for p in other.places]
        self._tell_end(request, reason)

    def _tell_end(self, request: Request, reason: str) -> None:
        if request.ended:
            return
        request.ended = True
        self.release(request.rows)
        try:
            request.on_end(reason)
        except Exception:  # a listener that is gone must not take the other requests with it
            _log.exception("a request's listener failed")
