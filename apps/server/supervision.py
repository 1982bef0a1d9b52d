"""Whether a scheduler still works: requests that fail in a row, and a thread that died."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ...blocks.engine.background import BackgroundScheduler, SchedulerStopped
from ...blocks.sampling.request import Request, SamplingParams

T = TypeVar("T")
_log = logging.getLogger("bifrons.engine")

ERRORS = 3
"""Requests that fail in a row before a probe finds out whether the scheduler fails, or only they did."""


class SchedulerFailed(SchedulerStopped):
    """The scheduler has failed for good; it answers no request, not even those that it had accepted."""


class SupervisedScheduler(BackgroundScheduler):
    """A scheduler that notices when it can't answer any more, and then ends and refuses all requests.

    After `ERRORS` failed requests in a row, without one that was answered, it runs a probe: a request of its
    own, whose prompt is a single position of zeros. If that fails too, the cause is not in what was asked.
    """

    _failure: BaseException | None = None
    _errors = 0

    @property
    def failure(self) -> BaseException | None:
        """Why no request is answered any more; None while requests are."""
        died = self._thread.ident is not None and not self._thread.is_alive() and not self._closing
        return self._failure or (SchedulerFailed("the engine's thread has died") if died else None)

    @property
    def failed(self) -> bool:
        """Whether there is a `failure`."""
        return self.failure is not None

    def reserve(self, rows: int, client: object = None, priority: int = 0) -> None:
        """Reserve rows, as `BackgroundScheduler.reserve`. Raises `SchedulerFailed` after a failure."""
        self._check_failure()
        super().reserve(rows, client, priority)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, as `BackgroundScheduler.submit`. Raises `SchedulerFailed` after a failure."""
        with self._changed:
            self._check_failure()
            super().submit(requests)

    def _run(self) -> None:
        try:
            super()._run()
        except BaseException as error:
            self._fail(error)
            self.step()

    def step(self) -> None:
        """Run one step, as `BackgroundScheduler.step`; after a failure, end all requests instead."""
        if self._failure is None:
            super().step()
        else:
            self._fail_all(SchedulerFailed(_failed_message(self._failure)))

    def _check_failure(self) -> None:
        if (failure := self.failure) is not None:
            raise SchedulerFailed(_failed_message(failure)) from failure

    def _fail(self, cause: BaseException) -> None:
        _log.critical("the engine has failed; its requests end, and new ones are refused", exc_info=cause)
        with self._changed:  # a request is submitted before, and ended by the next step, or refused
            self._failure = cause

    def _report_end(self, request: Request, reason: str) -> None:
        super()._report_end(request, reason)
        if reason != "cancelled":
            self._errors = self._errors + 1 if reason == "error" else 0
        if self._errors == ERRORS and self._failure is None:
            self._probe(request)

    def _probe(self, failed: Request) -> None:
        """Queue the probe, with the token head of a request that failed."""

        def on_end(reason: str) -> None:
            if probe.error is not None:
                self._fail(probe.error)

        decoder = self.decoder
        try:
            zeros_TD = torch.zeros(1, decoder.config.hidden_size, device=decoder.device, dtype=decoder.dtype)
            sampling = SamplingParams(temperature=0.0)
            probe = Request(failed.head, [zeros_TD], sampling, 0, 1, lambda token: None, on_end, priority=-1)
            self._reserved += probe.rows
            super().submit([probe])
        except BaseException as error:  # nothing can be allocated any more
            self._fail(error)


def contained(function: Callable[..., T], *args: Any) -> T:
    """The result of `function(*args)`; a RuntimeError for what it raises that is no `Exception`.

    An event loop ends with a SystemExit, and no handler of errors sees the `PanicException` of a library in
    Rust, such as Hugging Face's tokenizers.
    """
    try:
        return function(*args)
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _failed_message(failure: BaseException) -> str:
    return f"the engine of this model has failed ({type(failure).__name__}); the server must be restarted"
