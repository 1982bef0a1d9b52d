"""Continuous batching: requests that arrive at different times share every decoder step.

n rows in use, D decoder width.

A request is one answer or one image. It takes one row of the KV cache, or two with guidance (conditional and
unconditional). Every step admits the waiting requests that fit, prefills them, samples one token of every
running request, and runs the decoder once over all rows in use; on CUDA as a graph. There is no preemption:
an admitted request keeps its rows until it finishes. Its tokens depend only on its own prompt, parameters and
seed, as in the pipelines.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from ..errors import OptionError
from ..graphs.cuda_graphs import GraphCapturer, graph_capturer, uses_cuda_graphs
from ..model.decoder import Decoder
from ..model.kv_slots import KVSlots, ints_on_device
from .graph_buffers import GraphedSteps
from .prefill import Prefiller, decode_one
from .request import Request, TokenHead, check_context
from .sampling import sample_requests

_log = logging.getLogger("bifrons.engine")


class QueueFull(Exception):
    """The queue holds as many rows as are allowed to wait."""


class SchedulerStopped(Exception):
    """The scheduler accepts no more requests."""


class Scheduler:
    """A decoder, a KV cache of `rows` rows of `context` positions, a bounded queue, and the thread that runs
    the steps.

    Callers `reserve` rows before they prepare a prompt, so that a request that is turned away costs nothing.
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
        """`max_waiting` is the number of rows that may wait for others to finish. `capturer` captures the
        decoder's steps; None means CUDA graphs where `uses_cuda_graphs`, else eager steps. Raises
        `OptionError`."""
        if rows < 2 or not 2 <= context <= decoder.config.max_positions or max_waiting < 0:
            raise OptionError(
                f"rows {rows}, context {context}, waiting {max_waiting}; accepted: at least 2 rows, 2 to "
                f"{decoder.config.max_positions} positions, at least 0 waiting"
            )
        self.decoder, self.rows, self.context, self.max_waiting = decoder, rows, context, max_waiting
        self.device = decoder.device
        self._slots = KVSlots(decoder, rows, context)
        self._prefiller = Prefiller(decoder, self._slots)
        if capturer is None and uses_cuda_graphs(decoder):
            capturer = graph_capturer(self.device)
        self.graphed = None if capturer is None else GraphedSteps(decoder, self._slots, capturer)
        self._running: list[Request] = []
        self._queue: deque[Request] = deque()
        self._reserved = 0
        self._closing = False
        self._changed = threading.Condition()
        self.steps = 0
        self.tokens = 0
        self._thread = threading.Thread(target=self._run, name="bifrons-engine", daemon=True)
        self._thread.start()

    @property
    def rows_used(self) -> int:
        """Rows of running requests."""
        return len(self._slots.lengths)

    @property
    def rows_promised(self) -> int:
        """Rows of all requests that run, wait or are being prepared."""
        return self._reserved

    @property
    def positions_copied(self) -> int:
        """Prompt positions that were copied from other rows instead of computed."""
        return self._prefiller.copied

    def reserve(self, rows: int) -> None:
        """Reserve rows for requests to `submit`; `release` gives unused ones back.

        Raises `QueueFull` if the queue has no room for them, `SchedulerStopped` after `close`.
        """
        with self._changed:
            if self._closing:
                raise SchedulerStopped("the engine is stopping")
            if self._reserved + rows > self.rows + self.max_waiting:
                raise QueueFull(f"{self._reserved} rows are in use or waiting")
            self._reserved += rows

    def release(self, rows: int) -> None:
        """Give back reserved rows for which no request was submitted."""
        with self._changed:
            self._reserved -= rows
            self._changed.notify_all()

    def check(self, prompt: int, new: int) -> None:
        """Raise `PromptError` if this many prompt and new tokens exceed a row."""
        check_context(prompt, new, self.context)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests whose rows are reserved. Raises `PromptError` if one does not fit into a row."""
        for request in requests:
            self.check(max(len(prompt) for prompt in request.prompts_TD), request.max_new_tokens)
        with self._changed:
            self._queue.extend(requests)
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more requests, finish those that hold rows, and end the thread.

        Returns False if the thread did not end within `timeout` seconds.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # Triton launches kernels on the thread's current device, wherever the tensors are.
        device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with torch.no_grad(), device:
            while (admitted := self._admit()) is not None:
                try:
                    self._step(admitted)
                except Exception:  # of any kind: end these requests with an error and serve the next ones
                    _log.exception("a step failed; %d requests end with it", len(self._running))
                    self._slots.clear()
                    failed, self._running = [*self._running, *admitted], []
                    for request in failed:
                        self._report_end(request, "error")
        self._prefiller.close()

    def _admit(self) -> list[Request] | None:
        """Wait for work; returns the requests to start now, in order of arrival, or None once closed."""
        with self._changed:
            while not self._queue and not self._running:
                if self._closing and self._reserved == 0:
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

    def _step(self, admitted: list[Request]) -> None:
        for request in [request for request in self._running if request.cancelled]:
            self._finish(request, "cancelled")
        starting = [request for request in admitted if not request.cancelled]
        for request in admitted:
            if request not in starting:
                self._report_end(request, "cancelled")
        self._prefill(starting)
        if not self._running:
            return
        tokens = self._sample()
        if self._running:
            self._decode(tokens)

    def _prefill(self, requests: list[Request]) -> None:
        if requests and self.graphed is not None:
            self.graphed.begin()
        row_ids = iter(self._prefiller.add([prompt for request in requests for prompt in request.prompts_TD]))
        for request in requests:
            request.row_ids = [next(row_ids) for _ in range(request.rows)]
            request.prompts_TD = ()  # the embeddings are no longer needed
            self._running.append(request)

    def _by_head(self) -> dict[TokenHead, list[Request]]:
        groups: dict[TokenHead, list[Request]] = {}
        for request in self._running:
            groups.setdefault(request.head, []).append(request)
        return groups

    def _sample(self) -> dict[Request, int]:
        """Sample and deliver one token of every request; returns the tokens of unfinished requests."""
        kernel = None if self.graphed is None else self.graphed.decoding.sampling_kernel
        unfinished = {}
        for request, sampled in sample_requests(self._by_head(), self._slots.hidden_RD, kernel):
            request.step += 1
            self.tokens += 1
            if sampled.token == request.eos_id or request.on_token(sampled):
                self._finish(request, "stop")
            elif request.step == request.max_new_tokens:
                self._finish(request, "length")
            else:
                unfinished[request] = sampled.token
        return unfinished

    def _decode(self, tokens: dict[Request, int]) -> None:
        """Embed the tokens and run one decoder step over all rows in use."""
        hidden = self._slots.hidden_RD
        x_nD = hidden.new_empty(self.rows_used, hidden.shape[1])
        for head, requests in self._by_head().items():
            # Both rows of a guided request get the same input, which is embedded once.
            rows = [(row, i) for i, request in enumerate(requests) for row in request.row_ids]
            token_ids, row_ids, owners = ints_on_device(
                self.device,
                [tokens[request] for request in requests],
                [row for row, _ in rows],
                [i for _, i in rows],
            )
            x_nD[row_ids] = head.embed(token_ids)[owners]
        if self.graphed is None:
            hidden[: self.rows_used] = decode_one(self.decoder, x_nD, self._slots.active())
        else:
            self.graphed.run(x_nD)
        self._slots.advance()
        self.steps += 1

    def _finish(self, request: Request, reason: str) -> None:
        self._running.remove(request)
        while request.row_ids:
            # The higher row first: dropping a row moves the last one, which may be this request's other row.
            request.row_ids.sort()
            row = request.row_ids.pop()
            moved = self._slots.drop(row)
            for other in self._running:
                other.row_ids = [row if other_row == moved else other_row for other_row in other.row_ids]
        self._report_end(request, reason)

    def _report_end(self, request: Request, reason: str) -> None:
        if request.ended:
            return
        request.ended = True
        self.release(request.rows)
        try:
            request.on_end(reason)
        except Exception:  # a failing callback must not end the other requests
            _log.exception("a request's on_end callback failed")
