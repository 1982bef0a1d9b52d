"""Steps over windows by CUDA graphs, for requests of which some have drafts: one graph draws, checks and
drafts for a group of requests, one decodes the windows of all.

The host reads the tokens of a step while the decoder runs, and before the next step is launched.
B rows of a request, N requests, W tokens of a window, M tokens of a pass, D decoder width.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..sampling.request import Request, SampledToken, Tokens
from ..sampling.sampling import sampled_tokens
from .cuda_graphs import CapturedGraphs, bucket, checks_windows
from .graph_prefill import span_of
from .kv_pool import KVPool
from .packed_decoder import PackedDecoder, TokenSlots, joined
from .sampling_graphs import RowBuffers, recorded_event, wait_for
from .window_choice import WindowChoice
from .window_group import WindowGroup

MAX_TOKENS = 512
"""Most tokens of a pass over windows."""


_Read = tuple[WindowGroup, list[Request | None], list[Tensor]]
"""A group, who had its places, and what was copied to the host: see `WindowGroup.read`."""


class WindowSteps:
    """Groups of requests, and the graphs of their steps, which are kept in `graphs`."""

    def __init__(
        self, packed: PackedDecoder, pool: KVPool, graphs: CapturedGraphs, buffers: RowBuffers
    ) -> None:
        self.packed, self.pool, self.graphs, self.buffers = packed, pool, graphs, buffers
        self.choice = WindowChoice(MAX_TOKENS)
        self.enabled = True
        self.active = False
        """Whether the last step was one over windows."""
        self._groups: dict[object, list[WindowGroup]] = {}
        self._group_of: dict[Request, WindowGroup] = {}
        self._tokens: dict[Request, list[int]] = {}

    def wanted(self, requests: Sequence[Request]) -> bool:
        """Whether the next step of these requests should be one over windows."""
        wide = self.enabled and any(width > 1 for width in self.choice.widths(requests).values())
        return wide and checks_windows(self.packed.decoder)

    def fits(self, requests: Sequence[Request]) -> bool:
        """Whether every request is in a group of the window that is chosen for it."""
        widths, group_of = self.choice.widths(requests), self._group_of
        return all(one in group_of and group_of[one].width == widths[one] for one in requests)

    def note(self, tokens: Tokens) -> None:
        """Remember the tokens of a step that was not over windows."""
        self._remember(tokens)
        self.choice.record({request: (1, 1) for request, _ in tokens}, time.perf_counter())

    def _remember(self, tokens: Tokens) -> None:
        for request, sampled in tokens:
            if request.head.drafts is not None and request.speculate:
                self._tokens.setdefault(request, []).append(sampled.token)

    def remove(self, request: Request) -> None:
        """Free the place of a request that ended."""
        self._tokens.pop(request, None)
        self.choice.remove(request)
        if (group := self._group_of.pop(request, None)) is not None:
            group.leave(request, runs_on=False)

    def clear(self) -> None:
        """Take all requests out of their groups; their hidden states are then in the row buffers."""
        for request, group in self._group_of.items():
            group.leave(request, runs_on=True)
        self._group_of.clear()
        self.active = False

    def place(self, requests: Sequence[Request]) -> None:
        """Put each request into a group of its head, mode and window, after rows were moved or windows chosen
        anew. The hidden states of those in no group yet are in the row buffers."""
        widths = self.choice.widths(requests)
        wanted: dict[object, list[Request]] = {}
        for request in requests:
            wanted.setdefault((request.head, request.mode, widths[request]), []).append(request)
        chosen: dict[object, WindowGroup] = {}
        for key, members in wanted.items():
            groups = self._groups.setdefault(key, [])
            used = next((group for group in groups if group.is_used), None)
            places = bucket(len(members))
            if used is not None and places <= len(used.members) <= 2 * places:
                places = len(used.members)
            fitting = next((group for group in groups if len(group.members) == places), None)
            chosen[key] = fitting or self._new(key, places)
        for request, group in list(self._group_of.items()):
            if group is not chosen.get((request.head, request.mode, widths[request])):
                group.leave(request, runs_on=True)
                del self._group_of[request]
        for key, members in wanted.items():
            for request in members:
                if request not in self._group_of:
                    chosen[key].join(request, self._tokens.get(request, []))
                    self._group_of[request] = chosen[key]
        for group in chosen.values():
            group.place()
        self.active = True

    def _new(self, key: object, places: int) -> WindowGroup:
        head, mode, width = key  # type: ignore[misc]
        context = self.packed.decoder.config.max_positions
        group = WindowGroup(head, mode, self.buffers, places, width, context)
        self._groups[key].append(group)
        return group

    def step(self) -> Callable[[], Tokens]:
        """Launch a step of all requests in groups. Returns a function that waits for the tokens, which must
        be called before the next step."""
        groups = sorted(set(self._group_of.values()), key=lambda group: (group.width, id(group)))
        kernel = self.packed.kernels.sampling
        for group in groups:
            group.load_masks()
            count = len(group.members)
            key = ("windows", group.head, group.mode, group.width, count, group.span)
            self.graphs.run(key, lambda g=group, n=count: g.work(n, kernel), group.changed)
        reads: list[_Read] = [(group, list(group.members), group.read()) for group in groups]
        event = recorded_event(self.buffers.hidden_RD.device)
        if not self._all_end(reads, event):
            self._decode(groups)
        for group in groups:
            group.mark_sampled()

        def read() -> Tokens:
            wait_for(event, self.packed.decoder)
            return self._deliver(reads)

        return read

    def _all_end(self, reads: list[_Read], event: torch.cuda.Event | None) -> bool:
        """Whether no request needs more tokens; waits only if that may be."""
        missing = [
            (request.max_new_tokens - request.step, group.width, counts_N, place)
            for group, members, (_, counts_N, *_) in reads
            for place, request in enumerate(members)
            if request is not None
        ]
        if any(count > width for count, width, _, _ in missing):
            return False
        if event is not None:
            event.synchronize()
        return all(count <= int(counts_N[place]) for count, _, counts_N, place in missing)

    def _decode(self, groups: Sequence[WindowGroup]) -> None:
        windows: list[tuple[int, int]] = []
        for group in groups:
            count = group.x_BNWD.shape[0] * len(group.members)
            if windows and windows[-1][1] == group.width:
                count += windows.pop()[0]
            windows.append((count, group.width))
        span = span_of(max(request.positions for request in self._group_of))
        key = ("window pass", span, *((one.head, one.mode, one.width, len(one.members)) for one in groups))
        hidden = [group.hidden_BNWD for group in groups]

        def work() -> None:
            self._pass(groups, tuple(windows), span)

        tokens = sum(count * width for count, width in windows)
        pass_ = (tokens, span, False, tuple(windows))
        self.graphs.run(key, work, [self.buffers.positions_R, *hidden], pass_)

    def _pass(self, groups: Sequence[WindowGroup], windows: tuple[tuple[int, int], ...], span: int) -> None:
        """Decode the windows of all groups."""
        positions, starts = zip(*(group.slots() for group in groups), strict=True)
        slots = TokenSlots(joined(positions), joined(starts), span, windows=windows)
        x_TD = joined([group.x_BNWD.flatten(0, 2) for group in groups])
        if len(groups) == 1:
            self.packed.forward(x_TD, slots, self.pool, groups[0].hidden_BNWD.flatten(0, 2))
        else:
            hidden_TD = self.packed.forward(x_TD, slots, self.pool)
            parts = hidden_TD.split([group.x_BNWD.shape[:3].numel() for group in groups])
            for group, part in zip(groups, parts, strict=True):
                group.hidden_BNWD.copy_(part.view_as(group.hidden_BNWD))
        self.buffers.positions_R.add_(self.buffers.in_use_R)

    def _deliver(self, parts: list[_Read]) -> Tokens:
        delivered: Tokens = []
        held_by: dict[Request, tuple[int, int]] = {}
        for group, members, (tokens_NW, counts_N, *logprobs) in parts:
            for place, (request, row, held) in enumerate(
                zip(members, tokens_NW.tolist(), counts_N.tolist(), strict=True)
            ):
                if request is None:
                    continue
                count = min(held, request.max_new_tokens - request.step)
                first = place * group.width
                own = slice(first, first + count)
                pair = (logprobs[0][own], logprobs[1][own]) if logprobs else None
                sampled: list[SampledToken] = sampled_tokens([request] * count, row[:count], pair)
                delivered += [(request, one) for one in sampled]
                request.step += count
                held_by[request] = held, group.width
        self._remember(delivered)
        self.choice.record(held_by, time.perf_counter())
        return delivered
