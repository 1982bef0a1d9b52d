"""A process of a tensor-parallel model: every rank but the first, which `placement/main_rank.py` is. It does
what it is told, one message after the other, until the first rank has ended.

N tokens of a pass, B rows, T positions, D decoder width.
"""

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from ..device import inference_on
from ..kernels.batch_invariant import use_batch_invariant_libraries
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..placement.rank_group import RankGroup, Ref, open_store, resolve
from .cuda_graphs import CapturedGraphs, WeightAddresses, graph_capturer
from .kv_pool import KVPool
from .packed_decoder import PackedDecoder, TokenSlots, load_kernels


class Runner:
    """One `PackedDecoder` with its cache and graphs."""

    def __init__(self, decoder: Decoder) -> None:
        kernels = load_kernels(decoder.device, interpreted=decoder.device.type == "cpu")
        assert kernels is not None, "the first rank has kernels"
        WeightAddresses().moved(decoder, decoder=decoder)  # fuses its weights
        self.packed, self.pool = PackedDecoder(decoder, kernels), KVPool(decoder, None)
        self.graphs = CapturedGraphs(graph_capturer(decoder.device))
        self._works: dict[int, Callable[[], object]] = {}

    def run(self, key: int | None, fresh: bool, tokens: int, *form: Any) -> None:
        """A pass over `tokens` tokens; `form` is span, prefill and windows."""
        if key is None:
            self._work(tokens, *form)()
            return
        if fresh or key not in self._works:
            self.graphs.discard(key)
            self._works[key] = self._work(tokens, *form)
        self.graphs.run((key,), self._works[key])

    def _work(self, tokens: int, span: int, prefill: bool, windows: Any) -> Callable[[], object]:
        decoder = self.packed.decoder
        x_ND = torch.zeros(tokens, decoder.config.hidden_size, device=decoder.device, dtype=decoder.dtype)
        positions_N, starts_N = torch.zeros(2, tokens, dtype=torch.long, device=decoder.device)
        slots = TokenSlots(positions_N, starts_N, span, prefill, None, windows)
        return lambda: self.packed.forward(x_ND, slots, self.pool)

    def drop(self) -> None:
        """Drop all graphs."""
        self.graphs.clear()
        self._works.clear()


class Rank:
    """What one process holds, and what it can be told: the methods."""

    def __init__(self, decoder: Decoder, connect: Callable[[], RankGroup]) -> None:
        self.decoder, self._connect = decoder, connect
        self.held: dict[int, Any] = {}

    def connect(self) -> None:
        """Meet the others, and make the first exchange."""
        self.decoder.group = group = self._connect()
        group.sum(torch.ones(8, device=group.device))

    def cache(self, number: int, rows: int, slots: int) -> None:
        """A cache like one of the first rank."""
        config, decoder = self.decoder.config, self.decoder
        cache = config.new_cache(rows, slots, device=decoder.device, dtype=decoder.dtype)
        self.held[number] = cache.buffers

    def write(self, target: Ref, index: Any, value: Any) -> None:
        """`buffer[index] = value`."""
        resolve(self.held, target)[index] = resolve(self.held, value) if isinstance(value, tuple) else value

    def clone(self, number: int, source: Ref) -> None:
        """A copy of a part of a cache."""
        self.held[number] = (resolve(self.held, source).clone(),)

    def forward(self, shape: tuple[int, ...], dtype: torch.dtype, state: Any, from_start: bool) -> None:
        """`Decoder.compute`."""
        x_BTD, cache = torch.empty(shape, dtype=dtype, device=self.decoder.device), None
        shared: list[Tensor] = [x_BTD]
        if state is not None:
            cache = self._view(shape[0], *state)
            shared.insert(0, cache.positions)
        self.decoder.group.share(shared)
        self.decoder.compute(x_BTD, cache, from_start)

    def _view(self, rows: int, refs: tuple[Ref, ...], slots: int, filled: int, decoding: bool) -> KVCache:
        cache = object.__new__(KVCache)
        cache.buffers = tuple(resolve(self.held, ref) for ref in refs)
        cache.positions, cache.rows = torch.zeros(2, rows, dtype=torch.long, device=self.decoder.device)
        cache.rows += torch.arange(rows, device=self.decoder.device)
        cache.slots, cache.filled, cache.decoding = slots, filled, decoding
        return cache

    def runner(self, number: int) -> None:
        """A `PackedDecoder` like one of the first rank."""
        self.held[number] = Runner(self.decoder)

    def reserve(self, number: int, tokens: int) -> None:
        """`PackedDecoder.reserve`."""
        self.held[number].packed.reserve(tokens)

    def resize(self, number: int, slots: int, copied: int) -> None:
        """`KVPool.resize`."""
        self.held[number].pool.resize(slots, copied)

    def zero(self, number: int, start: int, count: int) -> None:
        """`KVPool.zero`."""
        self.held[number].pool.zero(start, count)

    def drop(self, number: int) -> None:
        """Drop a runner's graphs."""
        self.held[number].drop()

    def run_pass(self, number: int, key: int | None, fresh: bool, form: tuple[Any, ...]) -> None:
        """A pass of `PackedDecoder.forward`."""
        self.held[number].run(key, fresh, *form)

    def follow(self, connection: Connection) -> None:
        """Do what is told, until the connection ends."""
        while True:
            (name, *arguments), unused = pickle.loads(connection.recv_bytes())
            for number in unused:
                self.held.pop(number, None)
            getattr(self, name)(*arguments)


def _load(start: dict[str, Any], device: torch.device) -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(start["config"])
    decoder.embed_tokens = None  # type: ignore[assignment]
    start["load"](decoder, start["rank"], device, start["dtype"])
    # What says the device and the dtype; tokens are embedded by the first rank.
    width = start["config"].hidden_size
    decoder.embed_tokens = torch.nn.Embedding(1, width, device=device, dtype=start["dtype"])
    decoder.eval().requires_grad_(False)
    use_batch_invariant_libraries(device)
    return decoder


def _run(connection: Connection) -> None:
    start = connection.recv()
    rank, ranks = start["rank"], start["ranks"]
    device = torch.device(f"cuda:{rank}" if start["device"] == "cuda" else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    with inference_on(device):
        decoder = _load(start, device)
        connection.send(None)
        Rank(decoder, lambda: RankGroup(rank, ranks, device, open_store(ranks, start["port"]))).follow(
            connection
        )


def _end_with(alive: int) -> None:
    """End this process, whatever it waits for, when the first rank has ended or closed `alive`."""
    os.read(alive, 1)
    os._exit(0)


def main() -> None:
    """Run as `python -m ...rank_process CONNECTION ALIVE`: two open file descriptors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first rank too, which decides
    connection, alive = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    try:
        _run(connection)
    except (EOFError, ConnectionError):
        os._exit(0)  # the first rank has ended
    except BaseException as error:
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {error}")
        os._exit(1)


if __name__ == "__main__":
    main()
