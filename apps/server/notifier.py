"""From a scheduler's thread to the event loop: waiting tasks are woken together, not once for each token.

A scheduler's step takes a few milliseconds and gives each request a token. If every token woke the event
loop, the two threads would pass the interpreter lock (GIL) to each other many times in a step.
"""

import asyncio
from collections import deque
from typing import Any

_GATHER_SECONDS = 0.0005
"""From the first output to the wake-up. The other requests get their tokens of the same step meanwhile."""
_MAX_PAUSE = 0.05


class Notifier:
    """Wakes the tasks that wait for `OutputSignal`s on the event loop that was running when it was made.

    After a wake-up it pauses for as long as the woken tasks took: the event loop then leaves at least half of
    the time to the schedulers, and what accumulates for a client meanwhile is sent in one piece.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._set: deque[OutputSignal] = deque()
        self._scheduled = False
        self._pause = 0.0

    def notify(self, signal: "OutputSignal") -> None:
        """Wake the task that waits for a signal, soon; may be called from any thread."""
        self._set.append(signal)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon_threadsafe(self._schedule)

    def _schedule(self) -> None:
        self.loop.call_later(_GATHER_SECONDS + self._pause, self._wake)

    def _wake(self) -> None:
        started = self.loop.time()
        self._scheduled = False  # before the signals are taken: one that is set from now on wakes again
        while self._set:
            self._set.popleft().wake()
        self.loop.call_soon(self._woken, started)  # runs after the tasks that were woken

    def _woken(self, started: float) -> None:
        self._pause = min(self.loop.time() - started, _MAX_PAUSE)


class OutputSignal:
    """Says that there is new output for one HTTP request, whose task waits for it."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._is_set = False
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the task soon; may be called from any thread. Nearly free if it is already set."""
        if not self._is_set:
            self._is_set = True
            self._notifier.notify(self)

    def wake(self) -> None:
        """Wake the task now; called on the event loop. What is set from now on wakes it again."""
        self._is_set = False
        self._event.set()

    async def wait(self) -> None:
        """Wait until the signal is set, or was since the last wait."""
        await self._event.wait()
        self._event.clear()


class OutputQueue:
    """Outputs of the generation requests behind one HTTP request, in order; a scheduler's thread fills it."""

    def __init__(self, signal: OutputSignal) -> None:
        self._signal = signal
        self._outputs: deque[Any] = deque()

    def put(self, output: Any) -> None:
        """Append an output; may be called from any thread."""
        self._outputs.append(output)
        self._signal.set()

    async def get(self) -> Any:
        """The next output."""
        while not self._outputs:
            await self._signal.wait()
        return self._outputs.popleft()
