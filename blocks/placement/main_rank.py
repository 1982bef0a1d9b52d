"""The first rank of a tensor-parallel model: starts the others, tells them what to compute, and notices when
one ends. For their side see `graphs/rank_process.py`.

B rows, T positions, D decoder width.
"""

import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ResourceError
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from .rank_group import MirroredBuffer, RankGroup, open_store
from .tensor_parallel import Load

_PACKAGE, _ROOT = __name__.partition(".")[0], Path(__file__).parents[2]
_GRACE = 5.0  # seconds for the others to end, and for the cause of an error to be known


class _Process:
    """Another rank's process: it is told what to do by `connection`, and ends when `alive` is closed."""

    def __init__(self, rank: int) -> None:
        here, there = socket.socketpair()
        watched, self.alive = os.pipe()
        path = os.pathsep.join([str(_ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        module = f"{_PACKAGE}.blocks.graphs.rank_process"
        arguments = [sys.executable, "-P", "-m", module, str(there.fileno()), str(watched)]
        descriptors = (there.fileno(), watched)
        environment = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            arguments, env=environment, pass_fds=descriptors, stdin=subprocess.DEVNULL
        )
        there.close()
        os.close(watched)
        self.connection = Connection(here.detach())
        self.ready = threading.Event()
        self.error: str | None = None


class MainRank:
    """The other ranks of one model, and the exchanges with them. Starting returns before they are ready."""

    def __init__(self, decoder: Decoder, ranks: int, device: torch.device, dtype: torch.dtype, load: Load):
        """`load` fills their decoders; it is pickled. `decoder` has the config of one rank."""
        self.ranks, self.device = ranks, device
        self.failure: str | None = None
        self.lock = threading.RLock()
        """Held while something is told and launched: both have one order on all ranks."""
        self._numbers: Iterator[int] = count()
        self._unused: deque[int] = deque()
        self._closed, self._failing, self._ended = False, threading.Lock(), threading.Event()
        self._group: RankGroup | None = None
        self._meeting = open_store(ranks)
        self._processes = [_Process(rank) for rank in range(1, ranks)]
        weakref.finalize(decoder, self.close)
        config = replace(decoder.config, vocab_size=1)  # embeddings are the first rank's
        for rank, process in enumerate(self._processes, start=1):
            place = {"rank": rank, "ranks": ranks, "port": self._meeting.port, "device": device.type}
            with suppress(OSError):  # it has ended already
                process.connection.send({**place, "config": config, "dtype": dtype, "load": load})
            follow = threading.Thread(target=self._follow, args=(rank, process), daemon=True)
            follow.start()

    def _follow(self, rank: int, process: _Process) -> None:
        """Read what a process says until it ends."""
        with suppress(EOFError, OSError):
            while True:
                process.error = process.connection.recv()  # None: it is ready
                if process.error is None:
                    process.ready.set()
        status = process.process.wait()
        cause = f": {process.error}" if process.error else ""
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self.fail(f"rank {rank} of {self.ranks} {how}{cause}")
        process.ready.set()

    def connect(self) -> None:
        """Wait until all have loaded their weights, and make the first exchange. Raises `ResourceError`."""
        for process in self._processes:
            process.ready.wait()
        self.check()
        with self.announced():
            self.tell("connect")
            self._group = RankGroup(0, self.ranks, self.device, self._meeting)
            ones = torch.ones(8, device=self.device)
            assert self.sum(ones)[0].item() == self.ranks, "the exchange between GPUs gave a wrong sum"

    @property
    def group(self) -> RankGroup:
        """The exchanges, once there are."""
        assert self._group is not None, "not connected yet"
        return self._group

    def sum(self, x: Tensor) -> Tensor:
        """See `RankGroup.sum`."""
        return self.group.sum(x)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """See `RankGroup.share`."""
        self.group.share(tensors)

    def tell(self, *message: Any) -> None:
        """Tell all others what to do next. Raises `ResourceError` where one has ended."""
        with self.lock:
            self.check()
            unused = [self._unused.popleft() for _ in range(len(self._unused))]
            data = pickle.dumps((message, unused))
            for process in self._processes:
                try:
                    process.connection.send_bytes(data)
                except OSError as error:
                    self._wait_for_cause(error)
                    self.check()

    @contextmanager
    def announced(self, *message: Any) -> Iterator[None]:
        """Tell the others, then compute with them. If that fails, they can't go on either: all end."""
        with self.lock:
            self.check()
            try:
                if message:
                    self.tell(*message)
                yield
            except BaseException as error:
                if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                    self._wait_for_cause(error)
                    raise self._error() from error
                self.fail(f"the first rank was stopped while it computed: {error!r}")
                raise

    def _wait_for_cause(self, error: BaseException) -> None:
        """Fail for the sake of an error, which another rank's end may have caused."""
        self._ended.wait(_GRACE)
        self.fail(f"the ranks lost the connection: {error}")

    def fail(self, text: str) -> None:
        """End all other ranks, and what this one waits for."""
        with self._failing:
            if self._closed or self.failure is not None:
                return
            self.failure = text
        self._ended.set()
        for process in self._processes:
            process.process.kill()
        if self._group is not None:
            self._group.abort()

    def _error(self) -> ResourceError:
        return ResourceError(f"{self.failure}; a model with tensor_parallel needs all: load it again")

    def check(self) -> None:
        """Raise `ResourceError` if a rank has ended."""
        if self.failure is not None:
            raise self._error()

    def close(self) -> None:
        """End the other ranks, when the model is no longer used."""
        if self._closed:
            return
        self._closed = True
        for process in self._processes:
            os.close(process.alive)
        if self._group is not None:
            self._group.abort()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.process.wait(_GRACE)
            process.process.kill()
            process.process.wait()

    # Passes of `Decoder.forward`, and its caches.

    def forward(self, decoder: Decoder, x_BTD: Tensor, cache: KVCache | None, from_start: bool) -> Tensor:
        """`Decoder.compute` on all ranks."""
        shape, dtype = tuple(x_BTD.shape), x_BTD.dtype
        state = None
        if cache is not None:
            refs = tuple(buffer.ref for buffer in cache.buffers)
            state = refs, cache.slots, cache.filled, cache.decoding
        with self.announced("forward", shape, dtype, state, from_start):
            self.share([x_BTD] if cache is None else [cache.positions, x_BTD])
            return decoder.compute(x_BTD, cache, from_start)

    def mirrored(self, cache: KVCache) -> KVCache:
        """The cache, with one of the same size on every other rank."""
        number = self.new_number()
        self.tell("cache", number, len(cache.positions), cache.slots)
        owner = _Owner(self, number)
        cache.buffers = tuple(
            MirroredBuffer(buffer, (number, index, ()), owner) for index, buffer in enumerate(cache.buffers)
        )
        return cache

    # Passes of `PackedDecoder.forward`.

    def runner(self) -> "RemoteRunner":
        """A `PackedDecoder` with a cache and graphs on every other rank."""
        return RemoteRunner(self, self.new_number())

    def new_number(self) -> int:
        """A number for what the others keep."""
        return next(self._numbers)

    def free_with(self, holder: object, number: int) -> None:
        """What others keep by this number is freed with `holder`."""
        weakref.finalize(holder, self._unused.append, number).atexit = False


class _Owner:
    """What the parts of a mirrored cache share: with the last of them the others' caches are freed."""

    def __init__(self, main: MainRank, number: int) -> None:
        self.main = main
        main.free_with(self, number)

    def tell(self, *message: Any) -> None:
        self.main.tell(*message)

    def clone(self, part: MirroredBuffer) -> MirroredBuffer:
        """A copy, on all ranks."""
        number = self.main.new_number()
        self.main.tell("clone", number, part.ref)
        return MirroredBuffer(part.tensor.clone(), (number, 0, ()), _Owner(self.main, number))


class RemoteRunner:
    """What the other ranks keep for one `PackedDecoder`: a cache, and graphs by the numbers of their keys."""

    def __init__(self, main: MainRank, number: int) -> None:
        self.main, self.number = main, number
        main.free_with(self, number)
        self._keys: dict[object, int] = {}
        main.tell("runner", number)

    def reserve(self, tokens: int) -> None:
        """`PackedDecoder.reserve`."""
        self.main.tell("reserve", self.number, tokens)

    def resize(self, slots: int, copied: int) -> None:
        """`KVPool.resize`."""
        self.main.tell("resize", self.number, slots, copied)

    def zero(self, start: int, count: int) -> None:
        """`KVPool.zero`."""
        self.main.tell("zero", self.number, start, count)

    def drop_graphs(self) -> None:
        """Graphs are captured anew."""
        self._keys.clear()
        self.main.tell("drop", self.number)

    def passes(self, pass_: tuple[Any, ...], key: object = None, fresh: bool = False) -> Any:
        """The context of a pass over `(tokens, span, prefill, windows)` on all ranks: by the graph of a key,
        which is captured now if it is `fresh`; without a key by none."""
        number = None if key is None else self._keys.setdefault(key, len(self._keys))
        return self.main.announced("run_pass", self.number, number, fresh, pass_)
