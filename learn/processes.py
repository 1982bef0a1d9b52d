"""Several processes of one training run on this machine: how they are started and ended."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..blocks.errors import ResourceError, check_integer

GRACE = 5.0
"""Seconds that a process gets to end itself, before it is ended."""
LOST = 75
"""Exit status of a process that was `launch`ed and lost the connection to another, which has failed."""
_LAUNCHER = "BIFRONS_LAUNCHER"
"""Variable with the process that `launch`ed this one."""
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", _LAUNCHER)
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class LostConnectionError(ResourceError):
    """Another process is gone."""


class ProcessError(ResourceError):
    """A process that was `launch`ed failed: its number from 0, and its exit status, negative for a signal."""

    def __init__(self, message: str, number: int, status: int) -> None:
        super().__init__(message)
        self.number, self.status = number, status


def is_launched() -> bool:
    """Whether this process is one of several that were started together."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def has_launcher() -> bool:
    """Whether `launch` started this process, and says how it ends."""
    return _LAUNCHER in os.environ


def alone() -> dict[str, str]:
    """The environment of a process that is none of several."""
    return {name: value for name, value in os.environ.items() if name not in _PLACE}


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `python ARGUMENTS` on this machine in several processes, and wait for them.

    Raises `ProcessError` once one of them failed, which has said why; the others are ended, as all are by
    Ctrl-C.
    """
    from torch.distributed import TCPStore

    check_integer("processes", processes, 1, 1024)
    meeting = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store above is the one in which they meet
        "TORCHELASTIC_RESTART_COUNT": "0",
        _LAUNCHER: str(os.getpid()),
    }
    children: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(processes):
            place = {"RANK": str(number), "LOCAL_RANK": str(number)}
            children.append(subprocess.Popen([sys.executable, *arguments], env=shared | place))
        while any([child.poll() is None for child in children]) and not _failed(children):
            time.sleep(0.1)
    except KeyboardInterrupt:
        _wait(children)  # a terminal has told them, too
        _end(children)
        raise
    except BaseException:
        _end(children)
        raise
    failed = _failed(children)
    _end(children)
    if failed:
        number, status = failed
        ended = f"was killed by signal {-status}" if status < 0 else "failed; it says why above"
        ended = "lost the connection to another" if status == LOST else ended
        message = f"process {number} of {processes} {ended}, and the others were ended"
        raise ProcessError(message, number, status)


def _failed(children: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Number and status of a process that failed: of several, one that was killed, and not for the others'
    sake."""
    found = [(child.returncode, number) for number, child in enumerate(children) if child.returncode]
    status, number = min(found, default=(0, 0))
    return (number, status) if found else None


def _wait(children: Sequence[subprocess.Popen[bytes]], seconds: float = GRACE) -> None:
    """Wait until all have ended, at most so long."""
    last = time.monotonic() + seconds
    while any([child.poll() is None for child in children]) and time.monotonic() < last:
        time.sleep(0.05)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    _wait(children, 2 * GRACE)
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def ends_at_signals() -> Iterator[None]:
    """Within it, Ctrl-C and other signals with a handler end the process even where Python doesn't get to the
    handler, since native code waits for another process; and it ends with the one that `launch`ed it."""
    if threading.current_thread() is not threading.main_thread():  # only there handlers may be set
        yield
        return
    handled = threading.Event()
    handlers = {kind: signal.getsignal(kind) for kind in _ENDING if callable(signal.getsignal(kind))}

    def handle(number: int, frame: Any) -> None:
        if not (handled.is_set() and has_launcher()):  # which tells it what a terminal has told, too
            handled.set()
            handlers[signal.Signals(number)](number, frame)  # type: ignore[operator]

    listener, teller = socket.socketpair()
    teller.setblocking(False)
    before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
    for kind in handlers:
        signal.signal(kind, handle)
    threading.Thread(target=_watch, args=(listener, handled), daemon=True).start()
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        signal.set_wakeup_fd(before)
        teller.close()


def _watch(listener: socket.socket, handled: threading.Event) -> None:
    """End the process if a signal isn't handled in time, or its launcher is gone."""
    launcher, number = os.environ.get(_LAUNCHER), 0
    while number not in _ENDING:
        if select.select([listener], [], [], 1.0)[0]:
            received = listener.recv(1)
            if not received:
                listener.close()
                return
            number = received[0]
        elif launcher is not None and launcher != str(os.getppid()):
            os._exit(1)
    if not handled.wait(GRACE):
        if launcher is None:
            print(f"ended by signal {number} while it waited for another process", file=sys.stderr)
            sys.stderr.flush()
        os._exit(128 + number)
