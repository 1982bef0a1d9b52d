"""Steps by CUDA graphs: one graph samples the tokens of a group of requests, one decodes all rows.

N tokens of a pass, R rows, D decoder width. The host launches a step without knowing the tokens of the one
before: everything that a step reads is on the device. Rows in use come first and are padded to a bucket;
padding is computed from the cache's scratch slots and ignored.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import nn

from ..device import ints_on_device, release_cached_memory, synchronize
from ..sampling.request import Request, SamplingMode, TokenHead, Tokens, group_by_mode
from .adapter_slots import adapter_number, head_number
from .cuda_graphs import CapturedGraphs, GraphCapturer, WeightAddresses, bucket
from .graph_prefill import MAX_GRAPHED_TOKENS, GraphPrefill, Row, is_adapted, span_of
from .kv_pool import KVPool, range_length
from .packed_decoder import PackedDecoder, TokenSlots
from .sampling_graphs import RowBuffers, SamplingGroup, place_rows, reader
from .window_steps import WindowSteps

_log = logging.getLogger("bifrons.engine")
_WARM_UP_SLOTS = 4096


class GraphRunner:
    """Runs up to `rows` rows. The cache has room for `slots` positions; with None it grows as needed."""

    def __init__(self, packed: PackedDecoder, rows: int, slots: int | None, capturer: GraphCapturer) -> None:
        self.packed, self.rows, self.decoder = packed, rows, packed.decoder
        self.kernels, self.adapters, decoder = packed.kernels, packed.adapters, packed.decoder
        self.packed.reserve(rows + 1)
        self._pool = KVPool(decoder, slots, packed.remote)
        self._versions = self._sizes
        self._graphs, self._addresses = CapturedGraphs(capturer, packed.remote), WeightAddresses()
        self._heads: dict[tuple[nn.Module, ...], WeightAddresses] = {}
        self._prefill = GraphPrefill(self.packed, self._pool, self._graphs)
        self.buffers = RowBuffers.allocate(decoder, rows, packed.ahead_over(self._pool))
        self._rows_of: dict[Request, list[Row]] = {}
        self._active: list[Row] = []
        """The rows that steps decode, in the order of the buffers."""
        self._ready: list[Request] = []
        self._groups: dict[tuple[TokenHead, SamplingMode], SamplingGroup] = {}
        self._current: list[SamplingGroup] = []
        self._changed = False
        self._windows = WindowSteps(self.packed, self._pool, self._graphs, self.buffers)

    @property
    def lag(self) -> int:
        """Steps that may be launched before their tokens are read."""
        return 0 if self._windows.active else 1

    @property
    def rows_used(self) -> int:
        """Rows of admitted requests."""
        return sum(request.rows for request in self._rows_of)

    @property
    def cache_bytes(self) -> int:
        """Memory that later requests can reuse."""
        return self._pool.bytes

    positions_copied = 0
    """Prompt positions that were copied from other rows: none."""

    def admit(self, requests: Sequence[Request]) -> list[Request]:
        """Reserve rows for as many of the requests, in order, as there is room for; returns these."""
        self._release_adapters()
        self._drop_graphs_if(self._weights_moved(one.head for one in requests))  # first: fusing may fail
        admitted: list[Request] = []
        for request in requests:
            if self.rows_used + request.rows > self.rows or not self._take(request, requests):
                break
            admitted.append(request)
        self._drop_graphs_if(self._sizes != self._versions)
        return admitted

    @property
    def _sizes(self) -> tuple[int, int]:
        return self._pool.version, self.adapters.version

    def _weights_moved(self, heads: Iterable[TokenHead]) -> bool:
        """Whether weights of the decoder, or of heads that were there before, have moved."""
        moved = self._addresses.moved(self.decoder, decoder=self.decoder)
        for modules in {tuple(head.modules) for head in heads}:
            known = modules in self._heads
            moved = (self._heads.setdefault(modules, WeightAddresses()).moved(*modules) and known) or moved
        return moved

    def _drop_graphs_if(self, stale: bool) -> None:
        if stale:
            self._graphs.clear()
            release_cached_memory(self.decoder.device)
            self._versions = self._sizes

    def _release_adapters(self) -> None:
        """Free what belongs to adapters that are no longer in use."""
        freed = self.adapters.release({adapter_number(request.decoder) for request in self._rows_of})
        for head in {head for head, _ in self._groups if head_number(head) in freed}:
            self._groups = {key: group for key, group in self._groups.items() if key[0] != head}
            self._heads.pop(tuple(head.modules), None)
            self._graphs.discard(head)

    def _take(self, request: Request, waiting: Sequence[Request]) -> bool:
        """Take ranges of the cache for a request; it may grow, by what all waiting requests need."""
        slots, rows, adapter = request.positions, [], self.adapters.slot_of(request.decoder)
        while len(rows) < request.rows:
            if (start := self._pool.take(slots)) is not None:
                rows.append(Row(start, slots, adapter))
                continue
            missing = [one for one in waiting if one not in self._rows_of]
            if not self._pool.grow(sum(one.rows * range_length(one.positions) for one in missing)):
                for row in rows:
                    self._pool.give(row.start, row.slots)
                return False
        self._rows_of[request] = rows
        return True

    def remove(self, request: Request) -> None:
        """Free the rows of a request."""
        for row in self._rows_of.pop(request):
            self._pool.give(row.start, row.slots, clear=request.overflowed)
            row.removed = True
        if request in self._ready:
            self._ready.remove(request)
        self._windows.remove(request)
        self._changed = True

    def prefill(self, requests: Sequence[Request], tokens: int) -> list[Request]:
        """Compute up to about `tokens` positions of the requests' prompts, in order; returns the requests
        whose prompts are done."""
        self._prefill.run(self._prefill.plan(requests, self._rows_of, tokens))
        done = [request for request in requests if self._is_prefilled(request)]
        for request in done:
            self._active += self._rows_of[request]
        self._ready += done
        self._changed = self._changed or bool(done)
        return done

    def _is_prefilled(self, request: Request) -> bool:
        rows = self._rows_of[request]
        return all(row.length == len(prompt) for row, prompt in zip(rows, request.prompts_TD, strict=True))

    def step(self, requests: Sequence[Request]) -> Callable[[], Tokens]:
        """Launch a step: the next tokens of each request. Returns a function that waits for the tokens."""
        alone = len(requests) < len(self._ready)
        if not (alone or is_adapted(self._active)) and self._windows.wanted(self._ready):
            try:
                return self._step_windows()
            except Exception:
                _log.warning("a step over windows failed; from here on, each checks one token", exc_info=True)
                self._windows.enabled = False
        if self._windows.active:
            self._windows.clear()
            self._changed = True
        if self._changed:
            self._refresh()
        groups = self._sample_alone(requests) if alone else self._sample()
        reads = [(group.requests, group.read()) for group in groups]
        read = reader(reads, self.decoder, self._windows.note)
        if any(request.step + 1 < request.max_new_tokens for request in requests):
            self._decode_alone(requests) if alone else self._decode()
        for group in groups:
            group.mark_sampled()
        for request in requests:
            request.step += 1
            for row in self._rows_of[request]:
                row.length += 1
        self._changed = self._changed or alone
        return read

    def _step_windows(self) -> Callable[[], Tokens]:
        if self._changed or not self._windows.fits(self._ready):
            self._refresh_rows()
            self._windows.place(self._ready)
            self._changed = False
        deliver = self._windows.step()

        def read() -> Tokens:
            tokens = deliver()
            for request, _ in tokens:
                for row in self._rows_of.get(request, ()):
                    row.length += 1
            return tokens

        return read

    def _sample(self) -> list[SamplingGroup]:
        for group in self._current:
            group.load_masks()
            self._sampling_graph(group, min(bucket(len(group.requests)), self.rows))
        return self._current

    def _sampling_graph(self, group: SamplingGroup, count: int) -> None:
        key, kernel = (group.head, group.mode, count, group.span), self.kernels.sampling
        self._graphs.run(key, lambda: group.work(count, kernel), [group.steps_N])

    def _sample_alone(self, requests: Sequence[Request]) -> list[SamplingGroup]:
        """`_sample` for some of the requests, without graphs."""
        groups = []
        for (head, mode), members in group_by_mode(requests).items():
            groups.append(SamplingGroup(head, mode, self.buffers))
            groups[-1].assign(members)
            groups[-1].load_masks()
            groups[-1].work(len(members), self.kernels.sampling)
        return groups

    def _decode(self) -> None:
        """Launch the decoder over all rows in use."""
        rows = min(bucket(len(self._active)), self.rows)
        self._decode_graph(rows, span_of(max(row.slots for row in self._active)), is_adapted(self._active))

    def _decode_graph(self, rows: int, span: int, adapted: bool) -> None:
        buffers, pool = self.buffers, self._pool
        positions_R, hidden_RD = buffers.positions_R[:rows], buffers.hidden_RD[:rows]
        adapters_N = buffers.adapters_R[:rows] if adapted else None
        slots = TokenSlots(positions_R, buffers.starts_R[:rows], span, False, adapters_N)

        def work() -> None:
            self.packed.forward(buffers.x_RD[:rows], slots, pool, hidden_RD)
            positions_R.add_(buffers.in_use_R[:rows])

        key, pass_ = ("decode", rows, span, adapted), (rows, span, False, ())
        self._graphs.run(key, work, [positions_R, hidden_RD], pass_)

    def _decode_alone(self, requests: Sequence[Request]) -> None:
        """`_decode` for some of the requests, without graphs."""
        buffers, rows = self.buffers, [row for request in requests for row in self._rows_of[request]]
        row_ids = [row_id for request in requests for row_id in request.row_ids]
        (index_N,) = ints_on_device(self.decoder.device, row_ids)
        span = span_of(max(row.slots for row in rows))
        adapters_N = buffers.adapters_R[index_N] if is_adapted(rows) else None
        slots = TokenSlots(buffers.positions_R[index_N], buffers.starts_R[index_N], span, False, adapters_N)
        buffers.hidden_RD[index_N] = self.packed.forward_here(buffers.x_RD[index_N], slots, self._pool)
        buffers.positions_R[index_N] += 1

    def _refresh(self) -> None:
        """Bring the buffers and groups up to date after requests were added or removed."""
        self._refresh_rows()
        self._current = []
        for (head, mode), members in group_by_mode(self._ready).items():
            group = self._group(head, mode)
            group.assign(members)
            self._current.append(group)
        self._changed = False

    def _refresh_rows(self) -> None:
        place_rows(self._active, self.buffers)
        for request in self._ready:
            request.row_ids = [self._active.index(row) for row in self._rows_of[request]]
        self._mark_seen()
        for row in self._active:
            row.hidden_D = None

    def _group(self, head: TokenHead, mode: SamplingMode) -> SamplingGroup:
        if (head, mode) not in self._groups:
            self._groups[head, mode] = SamplingGroup(head, mode, self.buffers)
        return self._groups[head, mode]

    def _mark_seen(self) -> None:
        """Mark the prompts of new requests with a repetition penalty."""
        for request in self._ready:
            if request.mode.penalized and self._active[request.row_ids[0]].hidden_D is not None:
                self.buffers.mark_seen(request)

    def warm_up(
        self,
        heads: Sequence[tuple[TokenHead, SamplingMode]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Capture the graphs of all buckets, for requests with these heads and modes; `progress(done, total)`
        is called after each."""
        self._pool.grow(_WARM_UP_SLOTS)
        self._drop_graphs_if(self._weights_moved(head for head, _ in heads) or self._sizes != self._versions)
        span, block = span_of(1), self._prefill.block
        rows = [count for count in range(1, self.rows + 1) if count in (bucket(count), self.rows)]
        kinds = (False, True) if self.adapters.slots else (False,)
        sizes = [count * block for count in rows if count * block <= MAX_GRAPHED_TOKENS]
        work: list[Callable[[], object]] = [
            partial(self._prefill.run_graph, size, span, adapted) for size in sizes for adapted in kinds
        ]
        work += [partial(self._decode_graph, count, span, adapted) for count in rows for adapted in kinds]
        for head, mode in heads:
            limit = self.rows // (2 if mode.guided else 1)
            group = self._group(head, mode)
            work += [partial(self._sampling_graph, group, count) for count in rows if count <= limit]
        for done, run in enumerate(work, start=1):
            run()
            if progress is not None:
                progress(done, len(work))
        synchronize(self.decoder.device)

    def close(self) -> None:
        """There is nothing to stop."""
