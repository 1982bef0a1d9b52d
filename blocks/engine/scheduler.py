"""Continuous batching: jobs that arrive at different times share every step of one decoder.

n rows in use, D decoder width.

A job is one answer or one picture. It has one row, or two with guidance (conditional and unconditional), and
a `Voice` that says how its tokens are embedded and how hidden states become logits. Each turn of the engine
admits what waits, chooses one token of every job, and runs the decoder once over all rows, on CUDA from a
recording. A job's tokens depend on its own prompt, options and seed only, as they do in the pipelines.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from ..errors import OptionError
from ..model.decoder import Decoder
from ..model.kv_slots import Slots, sent
from .cuda_graphs import Recorder, recorder_for
from .generate import check_context, decode_one, records
from .graphed_steps import RecordedSteps
from .job_choice import choose_all
from .prefill import Prefiller
from .request import Job
from .sampling import Voice

_log = logging.getLogger("bifrons.engine")


class EngineFull(Exception):
    """As many rows as may wait are waiting."""


class EngineStopped(Exception):
    """The engine takes no more jobs."""


class Engine:
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
        recorder: Recorder | None = None,
    ) -> None:
        """`max_waiting`: rows that may wait for others to end. `recorder` records the decoder's steps; None:
        as CUDA graphs where `generation.records`, else not. Raises `OptionError`."""
        if rows < 2 or not 2 <= context <= decoder.config.max_positions or max_waiting < 0:
            raise OptionError(
                f"rows {rows}, context {context}, waiting {max_waiting}; accepted: at least 2 rows, 2 to "
                f"{decoder.config.max_positions} positions, at least 0 waiting"
            )
        self.decoder, self.rows, self.context, self.max_waiting = decoder, rows, context, max_waiting
        self.device = decoder.device
        self._slots = Slots(decoder, rows, context)
        self._prefiller = Prefiller(decoder, self._slots)
        if recorder is None and records(decoder):
            recorder = recorder_for(self.device)
        self._recorded = None if recorder is None else RecordedSteps(decoder, self._slots, recorder)
        self._running: list[Job] = []
        self._queue: deque[Job] = deque()
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
        """Rows of all jobs that run, wait or are being prepared."""
        return self._promised

    def reserve(self, rows: int) -> None:
        """Promise rows to jobs that will be submitted (or given back by `release`).

        Raises `EngineFull` when they would not even wait, `EngineStopped` after `close`.
        """
        with self._changed:
            if self._closing:
                raise EngineStopped("the engine is stopping")
            if self._promised + rows > self.rows + self.max_waiting:
                raise EngineFull(f"{self._promised} rows are in use or waiting")
            self._promised += rows

    def release(self, rows: int) -> None:
        """Take a promise back that led to no job."""
        with self._changed:
            self._promised -= rows
            self._changed.notify_all()

    def check(self, prompt: int, new: int) -> None:
        """`PromptError` where a prompt of so many tokens and so many new ones exceed a row."""
        check_context(prompt, new, self.context)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs whose rows are reserved. Raises `PromptError` where one does not fit into a row."""
        for job in jobs:
            self.check(max(len(prompt) for prompt in job.prompts_TD), job.max_new_tokens)
        with self._changed:
            self._queue.extend(jobs)
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
                except Exception:  # of whatever kind: the jobs must be told, and the next ones served
                    _log.exception("a step failed; %d jobs end with it", len(self._running))
                    self._slots.clear()
                    failed, self._running = [*self._running, *admitted], []
                    for job in failed:
                        self._tell_end(job, "error")
        self._prefiller.close()

    def _next_jobs(self) -> list[Job] | None:
        """Wait for something to do; the jobs to begin now, in the order they came. None: the end."""
        with self._changed:
            while not self._queue and not self._running:
                if self._closing and self._promised == 0:
                    return None
                self._changed.wait()
            admitted = [job for job in self._queue if job.cancelled]
            self._queue = deque(job for job in self._queue if not job.cancelled)
            free = self._slots.free + sum(job.rows for job in self._running if job.cancelled)
            while self._queue and self._queue[0].rows <= free:
                job = self._queue.popleft()
                admitted.append(job)
                free -= job.rows
            return admitted

    def _turn(self, admitted: list[Job]) -> None:
        for job in [job for job in self._running if job.cancelled]:
            self._end(job, "cancelled")
        begun = [job for job in admitted if not job.cancelled]
        for job in admitted:
            if job not in begun:
                self._tell_end(job, "cancelled")
        self._prefill(begun)
        if not self._running:
            return
        tokens = self._choose()
        if self._running:
            self._advance(tokens)

    def _prefill(self, jobs: list[Job]) -> None:
        if jobs and self._recorded is not None:
            self._recorded.begin()
        places = iter(self._prefiller.add([prompt for job in jobs for prompt in job.prompts_TD]))
        for job in jobs:
            job.places = [next(places) for _ in range(job.rows)]
            job.prompts_TD = ()  # the embeddings are needed no more
            self._running.append(job)

    def _by_voice(self) -> dict[Voice, list[Job]]:
        groups: dict[Voice, list[Job]] = {}
        for job in self._running:
            groups.setdefault(job.voice, []).append(job)
        return groups

    def _choose(self) -> dict[Job, int]:
        """One token of every job; tells them, ends what is at its end, and returns those of the others."""
        kernels = None if self._recorded is None else self._recorded.decoding.kernels
        going = {}
        for job, choice in choose_all(self._by_voice(), self._slots.hidden_RD, kernels):
            job.step += 1
            self.tokens += 1
            if choice.token == job.eos_id or job.on_token(choice):
                self._end(job, "stop")
            elif job.step == job.max_new_tokens:
                self._end(job, "length")
            else:
                going[job] = choice.token
        return going

    def _advance(self, tokens: dict[Job, int]) -> None:
        """Feed the tokens back: one decoder step over all rows in use."""
        hidden = self._slots.hidden_RD
        x_nD = hidden.new_empty(self.rows_used, hidden.shape[1])
        for voice, jobs in self._by_voice().items():
            # A row's twin gets the same input, which is looked up once.
            rows = [(place, i) for i, job in enumerate(jobs) for place in job.places]
            chosen, places, owners = sent(
                self.device,
                [tokens[job] for job in jobs],
                [place for place, _ in rows],
                [i for _, i in rows],
            )
            x_nD[places] = voice.embed(chosen)[owners]
        if self._recorded is None:
            hidden[: self.rows_used] = decode_one(self.decoder, x_nD, self._slots.active())
        else:
            self._recorded.run(x_nD)
        self._slots.advance()
        self.steps += 1

    def _end(self, job: Job, reason: str) -> None:
        self._running.remove(job)
        while job.places:
            # The highest first, so that a job's second row can't be what moves into its first one's place.
            job.places.sort()
            place = job.places.pop()
            moved = self._slots.drop(place)
            for other in self._running:
                other.places = [place if p == moved else p for p in other.places]
        self._tell_end(job, reason)

    def _tell_end(self, job: Job, reason: str) -> None:
        if job.ended:
            return
        job.ended = True
        self.release(job.rows)
        try:
            job.on_end(reason)
        except Exception:  # a listener that is gone must not take the other jobs with it
            _log.exception("a job's listener failed")
