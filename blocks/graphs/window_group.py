"""The sampling half of captured steps over windows: draws, counts those that hold, and makes the next drafts
(see drafts.py), all on the device.

B rows of a request (2 with guidance), N requests of a group, W tokens of a window, k = W - 1 drafts, M = N W
draws, D decoder width, V vocabulary, R rows.
"""

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ..device import upload
from ..drafts import Drafter, Drawn, LayerDraftKind, count_held
from ..sampling.request import Request, SamplingMode, SamplingTensors, TokenHead
from ..sampling.sampling import guided_logits, sample, token_logprobs
from ..token_masks import stack_masks
from .packed_decoder import TokenSlots
from .sampling_graphs import RowBuffers, SamplingGroup, draw_by_kernel, start_copies

_NO_DRAFT = -2
"""Equals no token, not even -1, which stands for logits that are not finite."""


class WindowGroup(SamplingGroup):
    """Requests with equal heads, modes and windows, each in a place of its own. Places without a request are
    computed like others, from the cache's scratch slots, and ignored."""

    def __init__(
        self, head: TokenHead, mode: SamplingMode, rows: RowBuffers, places: int, width: int, context: int
    ) -> None:
        super().__init__(head, mode, rows, places, width)
        self.width, self.context = width, context
        device, dim = self.rows_N.device, rows.hidden_RD.shape[1]
        self.members: list[Request | None] = [None] * places
        self._limits_N, self.counts_N = torch.zeros(2, places, dtype=torch.long, device=device)
        self.tokens_NW = torch.zeros(places, width, dtype=torch.long, device=device)
        self.drafts_Nk = torch.full((places, width - 1), _NO_DRAFT, device=device)
        shape = (1 + mode.guided, places, width, dim)
        self.x_BNWD, self.hidden_BNWD = rows.hidden_RD.new_zeros(2, *shape)
        self._drafter: Drafter | None = None
        # Of each draw, and of each token of a pass:
        self._draw_params = SamplingTensors(*(part.repeat_interleave(width, 0) for part in self.params))
        self._seeds_M, self._offsets_M = torch.zeros(2, places * width, dtype=torch.long, device=device)
        self._offsets_M.copy_(torch.arange(width, device=device).repeat(places))
        tokens = self.x_BNWD.shape[:3].numel()
        self._rows_T, self._starts_T, self._limits_T = torch.zeros(3, tokens, dtype=torch.long, device=device)

    @property
    def is_used(self) -> bool:
        """Whether a request has a place."""
        return any(request is not None for request in self.members)

    def join(self, request: Request, tokens: Sequence[int]) -> None:
        """Give a request, whose hidden states are in the row buffers, a place. `tokens` were drawn before."""
        place = self.members.index(None)
        self.members[place] = request
        self.hidden_BNWD[:, place, 0] = self.rows.hidden_RD[request.row_ids]
        self.drafts_Nk[place] = _NO_DRAFT
        if self.width > 1:
            drafts = request.head.drafts
            assert drafts is not None
            if self._drafter is None and isinstance(drafts, LayerDraftKind) and self._has_ahead:
                self._drafter = drafts.layer_drafter()
            if self._drafter is None:
                vocabulary = self.head.logits(self.hidden_BNWD[:1, 0, 0]).shape[-1]
                places = len(self.members), vocabulary, self.context
                self._drafter = drafts.drafter(*places, self.rows_N.device)
            self._drafter.start(place, request.seen_ids, tokens)

    @property
    def _has_ahead(self) -> bool:
        return self.rows.ahead is not None and not self.mode.guided

    def leave(self, request: Request, runs_on: bool) -> None:
        """Free a request's place. If it runs on, its hidden states go to the row buffers."""
        place = self.members.index(request)
        self.members[place] = None
        if runs_on:
            self.rows.hidden_RD[request.row_ids] = self.hidden_BNWD[:, place, 0]

    def place(self) -> None:
        """Bring the static tensors up to date after requests joined, left, or were moved to other rows."""
        self.requests = [request for request in self.members if request is not None]
        self.set_span()
        places = [place for place, request in enumerate(self.members) if request is not None]
        index_M = upload(torch.tensor(places, dtype=torch.long), self.rows_N.device)
        for rows in (self.rows_N, self.uncond_N):
            rows.fill_(self.rows.spare)
        self._limits_N.zero_()
        self.steps_N.zero_()
        limits_M = torch.tensor([request.positions for request in self.requests], dtype=torch.long)
        states = [*self.states(self.requests), (self._limits_N, upload(limits_M, self.rows_N.device))]
        for target, source in states:
            target[index_M] = source
        draws = zip((*self._draw_params, self._seeds_M), (*self.params, self.seeds_N), strict=True)
        for target, source in draws:
            target.copy_(source.repeat_interleave(self.width, 0))
        rows_P = torch.cat((self.rows_N, self.uncond_N)[: len(self.x_BNWD)])
        limits_P = self._limits_N.repeat(len(self.x_BNWD))
        parts = (
            (self._rows_T, rows_P),
            (self._starts_T, self.rows.starts_R[rows_P]),
            (self._limits_T, limits_P),
        )
        for target, source in parts:
            target.copy_(source.repeat_interleave(self.width))

    def slots(self) -> tuple[Tensor, Tensor]:
        """Positions and starts of the tokens of a pass; those of the scratch slots for what is beyond a
        request's range."""
        offsets_T = self._offsets_M.repeat(len(self.x_BNWD))
        positions_T = self.rows.positions_R[self._rows_T] + offsets_T
        inside_T = positions_T < self._limits_T
        return positions_T * inside_T, self._starts_T * inside_T

    def load_masks(self) -> None:
        if self.masks_NW is not None:
            for place, request in enumerate(self.members):
                if request is not None and request.matcher is not None:
                    masks = stack_masks([request.matcher.mask_W], self.masks_NW.device)
                    self.masks_NW[place] = masks[0]

    @property
    def changed(self) -> list[Tensor]:
        """What `work` reads and writes."""
        return [self.steps_N, self.drafts_Nk, self.rows.positions_R]

    def work(self, count: int, kernel: ModuleType) -> None:
        """Draw a window of tokens of each request, and embed the last that holds and drafts after it."""
        assert count == len(self.members)
        width, mode, rows, params = self.width, self.mode, self.rows, self._draw_params
        logits = self.head.logits(self.hidden_BNWD.flatten(0, 2))
        steps_M = (self.steps_N[:, None] + self._offsets_M.view(count, width)).flatten()
        tokens_M, logits_MV = self._draw(kernel, logits, steps_M)
        self.tokens_NW.copy_(tokens_M.view(count, width))
        if mode.logprobs:
            logprobs, top_ids = token_logprobs(logits, tokens_M.clamp(min=0), mode, params)
            self.logprobs_NK[:, : logprobs.shape[1]] = logprobs
            self.top_ids_NK[:, : top_ids.shape[1]] = top_ids
        self.counts_N.copy_(count_held(self.tokens_NW, self.drafts_Nk))
        run_ahead = self._run_ahead if self.span and self._has_ahead else None
        hidden_NWD = self.hidden_BNWD[0]
        if run_ahead is not None and self._drafter is None:
            run_ahead(self.tokens_NW, hidden_NWD, torch.zeros_like(self.counts_N))
        if self._drafter is not None:
            redraw = partial(self._redraw, kernel)
            logits_NWV = logits_MV.view(count, width, -1)
            places = self.steps_N.clone(), self.counts_N
            drawn = Drawn(self.tokens_NW, logits_NWV, *places, redraw, hidden_NWD, run_ahead)
            self._drafter.record(drawn)
            drafts_Nk = self._drafter.propose(drawn, width - 1)
            self.drafts_Nk.copy_(drafts_Nk.masked_fill(drafts_Nk < 0, _NO_DRAFT))
        last_N1 = self.tokens_NW.gather(1, self.counts_N[:, None] - 1)
        next_NW = torch.cat((last_N1, self.drafts_Nk), dim=1).clamp(min=0)
        self.x_BNWD.copy_(self.head.embed(next_NW.flatten()).view(1, count, width, -1))
        in_use_N = rows.in_use_R[self.rows_N]
        self.steps_N.add_(self.counts_N * in_use_N)
        for rows_N in (self.rows_N, self.uncond_N)[: 1 + mode.guided]:
            rows.positions_R.index_add_(0, rows_N, (self.counts_N - 1) * in_use_N)

    def _draw(self, kernel: ModuleType, logits: Tensor, steps_M: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[N W]`, and the logits `[N W, V]` that they were drawn from."""
        mode, params, seeds_M = self.mode, self._draw_params, self._seeds_M
        if mode.draws_raw_logits:
            guidance = params.guidance if mode.guided else None
            temperature = None if mode.greedy else params.temperature
            tokens_M = kernel.draw(logits, seeds_M, steps_M, guidance, temperature)
            return tokens_M, guided_logits(logits, mode, params) if self._drafter is not None else logits
        race = partial(draw_by_kernel, kernel)
        return sample(logits, mode, params, seeds_M, steps_M, self._seen(), self.masks_NW, race)

    def _seen(self) -> Tensor | None:
        """How often each token was seen before each draw, `[N W, V]`, if the drafts before it are right."""
        if not self.mode.penalized or self.rows.seen_RV is None:
            return None
        seen_NWV = self.rows.seen_RV[self.rows_N][:, None].repeat(1, self.width, 1)
        added_NkV = torch.zeros_like(seen_NWV[:, 1:])
        real_Nk1 = (self.drafts_Nk >= 0).to(added_NkV.dtype)[..., None]
        added_NkV.scatter_(2, self.drafts_Nk.clamp(min=0)[..., None], real_Nk1)
        seen_NWV[:, 1:] += added_NkV.cumsum(1, dtype=added_NkV.dtype)
        return seen_NWV.flatten(0, 1)

    def _redraw(self, kernel: ModuleType, logits_NkV: Tensor, steps_Nk: Tensor) -> Tensor:
        count = steps_Nk.shape[1]
        temperature_M, seeds_M = (
            part.repeat_interleave(count) for part in (self.params.temperature, self.seeds_N)
        )
        logits_MV, steps_M = logits_NkV.flatten(0, 1), steps_Nk.flatten()
        tokens_M = draw_by_kernel(kernel, logits_MV, self.mode, temperature_M, seeds_M, steps_M)
        return tokens_M.view_as(steps_Nk)

    def _run_ahead(self, tokens_NT: Tensor, hidden_NTD: Tensor, offsets_N: Tensor) -> Tensor:
        """See `Drawn`. What is beyond a request's range goes to the scratch slots."""
        assert self.rows.ahead is not None
        count, width = tokens_NT.shape
        first_N1 = (self.rows.positions_R[self.rows_N] - 1 + offsets_N)[:, None]
        positions_NT = first_N1 + torch.arange(width, device=first_N1.device)
        inside_NT = (positions_NT >= 0) & (positions_NT < self._limits_N[:, None])
        starts_NT = self.rows.starts_R[self.rows_N][:, None] * inside_NT
        places = (positions_NT * inside_NT).flatten(), starts_NT.flatten()
        slots = TokenSlots(*places, self.span, windows=((count, width),))
        x_MD = self.head.embed(tokens_NT.clamp(min=0).flatten())
        return self.rows.ahead(x_MD, hidden_NTD.flatten(0, 1), slots).view_as(hidden_NTD)

    def mark_sampled(self) -> None:
        if self.mode.penalized and self.rows.seen_RV is not None:
            held_NW = torch.arange(self.width, device=self.rows_N.device) < self.counts_N[:, None]
            rows_M = self.rows_N.repeat_interleave(self.width)
            tokens_M, seen_RV = self.tokens_NW.clamp(min=0).flatten(), self.rows.seen_RV
            seen_RV.index_put_((rows_M, tokens_M), held_NW.flatten().to(seen_RV.dtype), accumulate=True)

    def read(self) -> list[Tensor]:
        """Start copying tokens and counts of all places, and log-probabilities if they are wanted."""
        parts = [self.tokens_NW, self.counts_N]
        if self.mode.logprobs:
            parts += [self.logprobs_NK, self.top_ids_NK]
        return start_copies(parts)
