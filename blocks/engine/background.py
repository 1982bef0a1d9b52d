"""A scheduler with a bounded queue and a thread of its own, for servers."""

import logging
import threading
from collections import Counter
from contextlib import suppress

from ..errors import OptionError
from ..graphs.cuda_graphs import GraphCapturer
from ..model.decoder import Decoder
from ..sampling.request import Request
from .scheduler import Scheduler

_log = logging.getLogger("bifrons.engine")


class QueueFull(Exception):
    """The queue holds as many rows as are allowed to wait."""


class SchedulerStopped(Exception):
    """The scheduler accepts no more requests."""


class BackgroundScheduler(Scheduler):
    """Runs steps in a thread, from `start` to `close`.

    Callers `reserve` rows before they prepare a prompt, so that a request that is turned away costs nothing.
    """

    rows: int

    def __init__(
        self,
        decoder: Decoder,
        *,
        rows: int,
        context: int,
        max_waiting: int,
        capturer: GraphCapturer | None = None,
        sharing: int = 1,
    ) -> None:
        """`max_waiting` is the number of rows that may wait for others to finish; for the other arguments see
        `Scheduler`. Raises `OptionError`."""
        if max_waiting < 0:
            raise OptionError(f"waiting is {max_waiting}; accepted: at least 0 rows")
        super().__init__(decoder, rows=rows, context=context, capturer=capturer, sharing=sharing)
        self.max_waiting = max_waiting
        self._reserved = 0
        self._shares: Counter[tuple[object, int]] = Counter()
        self._closing = self._cancelling = False
        self._thread = threading.Thread(target=self._run, name="bifrons-engine", daemon=True)

    @property
    def rows_promised(self) -> int:
        """Rows of all requests that run, wait or are being prepared."""
        return self._reserved

    def reserve(self, rows: int, client: object = None, priority: int = 0) -> None:
        """Reserve rows for requests to `submit`; `release` gives unused ones back.

        Beyond `max_waiting` a quarter of the queue is still open to each client and priority, up to as much
        again in all, so that none fills it for the others. Raises `QueueFull` if the queue has no room,
        `SchedulerStopped` after `close`.
        """
        with self._changed:
            if self._closing:
                raise SchedulerStopped("the engine is stopping")
            limit, promised = self.rows + self.max_waiting, self._reserved + rows
            own = self._shares[client, priority] + rows
            if promised > limit and (own > max(2, limit // 4) or promised > 2 * limit):
                raise QueueFull(f"{self._reserved} rows are in use or waiting")
            self._reserved += rows
            self._shares[client, priority] = own

    def release(self, rows: int, client: object = None, priority: int = 0) -> None:
        """Give back reserved rows for which no request was submitted."""
        with self._changed:
            self._reserved -= rows
            self._shares[client, priority] -= rows
            self._shares = +self._shares  # those above zero
            self._changed.notify_all()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more requests, finish those there are, and end the thread.

        Returns False if the thread did not end within `timeout` seconds.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is None:
            self.runner.close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def cancel_all(self) -> None:
        """Accept no more requests, and end those that wait or run before the next step."""
        with self._changed:
            self._closing = self._cancelling = True
            self._changed.notify_all()

    def _admit(self) -> None:
        with self._changed:
            held: Counter[object] = Counter()
            for request in (*self._prefilling, *self._running):
                held[request.client] += request.rows
            turns = []
            for request in self._waiting:
                turns.append((request.priority, held[request.client]))
                held[request.client] += request.rows
            order = sorted(range(len(turns)), key=turns.__getitem__)
            self._waiting = [self._waiting[index] for index in order]
        super()._admit()

    def _end_cancelled(self) -> None:
        for request in self._requests() if self._cancelling else ():
            request.cancel()
        super()._end_cancelled()

    def _run(self) -> None:
        done = False
        while not done:
            try:
                with self._changed:
                    self._changed.wait_for(lambda: self.has_work or (self._closing and self._reserved == 0))
                    done = not self.has_work
                self.step()
            except BaseException as error:  # whatever it is, clients must not wait for ever
                _log.exception("a step failed; all requests end with it")
                self._fail_all(error)
        self.runner.close()

    def _fail_all(self, error: BaseException) -> None:
        """End all requests with an error."""
        for request in self._requests():
            with suppress(BaseException):  # it ends all the same
                self._finish(request, "error", error)
        self._launched.clear()

    def _report_end(self, request: Request, reason: str) -> None:
        self.release(request.rows, request.client, request.priority)
        super()._report_end(request, reason)
