"""Drafts: guesses of a request's next tokens, all of which one pass of the decoder checks.

A token is drawn from its logits and noise that depends on the request's seed and the token's step alone. So a
pass over a window of tokens, the last one and the drafts after it, gives as many draws. Those up to the first
that differs from the draft at its step are what single steps would have drawn: same logits, same noise.
Drafts decide how many tokens a pass gives, never which.

N requests, W draws of a pass, k drafts, V vocabulary, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import OptionError
from .speculate import MAX_WINDOW, Speculate

_WINDOWS_ON_CPU = ((2, 16), (6, 8))
"""Most draws of a pass by `auto`, by the rows of the pass; one beside more rows."""
_COST_ON_CPU = 1.4
"""Passes without drafts that take as long as one with them."""
_MAX_BYTES = 1 << 28
"""Weights for which this holds; larger ones keep a CPU busy with each token."""
Redraw = Callable[[Tensor, Tensor], Tensor]


class Drawn(NamedTuple):
    """What a pass drew for N requests: draw w of request n is that of step `steps_N[n] + w`, from the logits
    `[n, w]` after guidance and filters. The first `counts_N` of them hold. `redraw` maps logits `[N, k, V]`
    and steps `[N, k]` to the tokens that the requests would draw from these logits at those steps.
    `hidden_NWD` are the hidden states of the logits, of requests without guidance, if the pass gives them.

    `run_ahead` runs the layer `Decoder.ahead` with the engine's cache: from tokens `[N, T]`, the hidden
    states `[N, T, D]` before them, and how many tokens after draw 0 they begin, `[N]`, to the hidden states
    that predict the tokens after them, `[N, T, D]`."""

    tokens_NW: Tensor
    logits_NWV: Tensor
    steps_N: Tensor
    counts_N: Tensor
    redraw: Redraw
    hidden_NWD: Tensor | None = None
    run_ahead: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


class Drafter(Protocol):
    """Makes the drafts of N requests. Calling a method again, after a pass that failed, changes nothing."""

    def start(self, index: int, prompt_ids: Tensor | None, tokens: Sequence[int] = ()) -> None:
        """Begin request number `index`, whose prompt has these tokens, if they are known, and of which
        `tokens` were drawn already."""
        ...

    def record(self, drawn: Drawn) -> None:
        """Remember what a pass drew."""
        ...

    def propose(self, drawn: Drawn, count: int) -> Tensor:
        """After `record`, drafts int64 `[N, k]` of the `count` steps after the draws that hold; -1 where
        there is none."""
        ...


class DraftKind(Protocol):
    """A way to make drafts, which belongs to a `TokenHead`; compared by value."""

    def drafter(self, requests: int, vocabulary: int, tokens: int, device: torch.device) -> Drafter:
        """A drafter for so many requests of up to `tokens` tokens, prompts included."""
        ...


@runtime_checkable
class LayerDraftKind(DraftKind, Protocol):
    """Drafts by `Decoder.ahead`, whose cache of the prompt and of all draws an engine may keep."""

    def layer_drafter(self) -> Drafter:
        """A drafter for draws with `run_ahead`."""
        ...


def check_drafts(speculate: Speculate, exact: bool, device: torch.device, dtype: torch.dtype) -> None:
    """Raise `OptionError` if drafts are asked for where they are not `exact`, but might change tokens."""
    if speculate not in ("auto", False) and not exact:
        raise OptionError(
            f"speculate is {speculate}, but a step checks one token with {dtype} on {device}; accepted: "
            "'auto' or False; and more where drafts change no token: on an NVIDIA GPU from Ampere on that "
            "holds the whole decoder, and with float32 on a CPU with up to 4 threads (OMP_NUM_THREADS=4)"
        )


def count_held(tokens_NW: Tensor, drafts_Nk: Tensor) -> Tensor:
    """How many of each request's draws hold, int64 `[N]`: those up to the first that differs from the draft
    at its step. `drafts_Nk` are the drafts of the steps of all draws but the last."""
    return 1 + (tokens_NW[:, :-1] == drafts_Nk).long().cumprod(1).sum(1)


def seen_before(seen_V: Tensor, drafts: Sequence[int]) -> Tensor:
    """How often each token was seen before each draw of a pass, `[W, V]`; `seen_V` is the count before it."""
    seen_WV = seen_V.repeat(1 + len(drafts), 1)
    for index, draft in enumerate(drafts, start=1):
        seen_WV[index:, draft] += 1
    return seen_WV


@dataclass(frozen=True)
class JacobiDrafts:
    """Drafts of an image's codes: the draws of the last pass, whose contexts were guesses (Song et al. 2021,
    "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving", alg. 1; Teng et al. 2024,
    "Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding").
    For a step that was not drawn yet, the draw from the logits of the code above, `row_length` steps before.
    """

    row_length: int

    def drafter(self, requests: int, vocabulary: int, tokens: int, device: torch.device) -> Drafter:
        """A drafter; the logits of the last `MAX_WINDOW` steps are kept."""
        return _JacobiDrafter(self.row_length, torch.zeros(requests, MAX_WINDOW, vocabulary, device=device))


class _JacobiDrafter:
    def __init__(self, row_length: int, recent_NRV: Tensor) -> None:
        self.row_length, self.recent_NRV = min(row_length, MAX_WINDOW), recent_NRV

    def start(self, index: int, prompt_ids: Tensor | None, tokens: Sequence[int] = ()) -> None:
        """Nothing of the request before is read."""

    def record(self, drawn: Drawn) -> None:
        offsets_W = torch.arange(drawn.tokens_NW.shape[1], device=drawn.steps_N.device)
        steps_NW = drawn.steps_N[:, None] + offsets_W
        requests_N1 = torch.arange(len(steps_NW), device=steps_NW.device)[:, None]
        self.recent_NRV[requests_N1, steps_NW % MAX_WINDOW] = drawn.logits_NWV.float()

    def propose(self, drawn: Drawn, count: int) -> Tensor:
        (requests, width), device = drawn.tokens_NW.shape, drawn.tokens_NW.device
        requests_N1 = torch.arange(requests, device=device)[:, None]
        end_N1 = drawn.steps_N[:, None] + width
        steps_Nk = (drawn.steps_N + drawn.counts_N)[:, None] + torch.arange(count, device=device)
        again_Nk = drawn.tokens_NW.gather(1, (steps_Nk - drawn.steps_N[:, None]).clamp(max=width - 1))
        new = count
        if device.type == "cpu":  # all but the last few were drawn by every request
            new = min(count, max(0, int((steps_Nk[:, -1:] + 1 - end_N1).max())))
        if not new:
            return again_Nk
        new_Nk = steps_Nk[:, count - new :]
        above_Nk = new_Nk - self.row_length
        sources_Nk = torch.where(above_Nk < 0, end_N1 - 1, above_Nk.clamp(max=end_N1 - 1))
        fresh_Nk = drawn.redraw(self.recent_NRV[requests_N1, sources_Nk % MAX_WINDOW], new_Nk)
        fresh_Nk = torch.where(new_Nk < end_N1, again_Nk[:, count - new :], fresh_Nk)
        return torch.cat((again_Nk[:, : count - new], fresh_Nk), dim=1)


@dataclass(frozen=True)
class LookupDrafts:
    """Drafts of a text: what followed the last place, in prompt and answer, of its last three or two tokens
    (Saxena 2023, "Prompt Lookup Decoding")."""

    def drafter(self, requests: int, vocabulary: int, tokens: int, device: torch.device) -> Drafter:
        """A drafter that remembers all tokens."""
        history_NT = torch.zeros(requests, tokens + MAX_WINDOW, dtype=torch.long, device=device)
        return _LookupDrafter(history_NT)


class _LookupDrafter:
    def __init__(self, history_NT: Tensor) -> None:
        self.history_NT, self.prompts_N = history_NT, torch.zeros_like(history_NT[:, 0])

    def start(self, index: int, prompt_ids: Tensor | None, tokens: Sequence[int] = ()) -> None:
        ids = self.prompts_N[:0] if prompt_ids is None else prompt_ids.to(self.history_NT.device)
        known = torch.cat((ids, ids.new_tensor(tokens)))
        self.history_NT[index] = 0
        self.history_NT[index, : len(known)] = known
        self.prompts_N[index] = len(ids)

    def record(self, drawn: Drawn) -> None:
        offsets_W = torch.arange(drawn.tokens_NW.shape[1], device=self.history_NT.device)
        places_NW = (self.prompts_N + drawn.steps_N)[:, None] + offsets_W
        self.history_NT.scatter_(1, places_NW, drawn.tokens_NW)

    def propose(self, drawn: Drawn, count: int) -> Tensor:
        history_NT, size = self.history_NT, self.history_NT.shape[1]
        last_N1 = (self.prompts_N + drawn.steps_N + drawn.counts_N)[:, None] - 1
        places_T = torch.arange(size, device=history_NT.device)
        same_NT, score_NT = places_T < last_N1, places_T.repeat(len(history_NT), 1)
        for back in range(3):
            wanted_N1 = history_NT.gather(1, (last_N1 - back).clamp(min=0))
            same_NT = same_NT & (history_NT.roll(back, 1) == wanted_N1) & (places_T >= back)
            score_NT += size * same_NT  # the longest match, of these the last
        score_N1, best_N1 = score_NT.max(1, keepdim=True)
        offsets_k = torch.arange(count, device=history_NT.device)
        followers_Nk = best_N1 + 1 + offsets_k % (last_N1 - best_N1).clamp(min=1)
        return history_NT.gather(1, followers_Nk.clamp(max=size - 1)).masked_fill(score_N1 < 2 * size, -1)


class Pace:
    """Picks the window of a request whose `speculate` is `auto`, by the tokens that passes gave."""

    _START, _WEIGHT = 2.5, 0.1
    _SHORTEST, _LONGEST = 8, 64  # passes of a rest, which doubles as long as drafts don't pay

    def __init__(self, cost: float) -> None:
        """`cost` is that of a pass with drafts, in passes without: fewer tokens don't pay for it."""
        self._cost, self._tokens = cost, max(self._START, cost + 0.5)
        self._left, self._rest = 0, self._SHORTEST

    def window(self, most: int) -> int:
        """The window of the next pass, up to `most`: four times the tokens that are expected; 1 for a while
        after drafts did not pay."""
        if self._left:
            self._left -= 1
            return 1
        return min(most, 1 << (max(2, round(4 * self._tokens)) - 1).bit_length())

    def record(self, tokens: float) -> None:
        """Note the number of tokens that a pass with drafts gave."""
        self._tokens += self._WEIGHT * (tokens - self._tokens)
        if self._tokens < self._cost:
            self._tokens, self._left = self._cost + 0.25, self._rest
            self._rest = min(2 * self._rest, self._LONGEST)
        elif self._tokens > self._cost + 0.5:
            self._rest = self._SHORTEST


def window_on_cpu(rows: int, weight_bytes: int) -> int:
    """Most draws of a pass for a request whose `speculate` is `auto`, beside so many rows in all."""
    if weight_bytes > _MAX_BYTES:
        return 1
    return next((most for limit, most in _WINDOWS_ON_CPU if rows <= limit), 1)


class DraftedRequest(Protocol):
    """What is read of a request (`blocks.sampling.request`)."""

    max_new_tokens: int
    step: int
    seen_ids: Tensor | None

    @property
    def positions(self) -> int: ...


class RequestDrafts:
    """The drafts of one request, of which the host knows all tokens."""

    def __init__(self, kind: DraftKind | None, speculate: Speculate) -> None:
        self._kind, self._speculate, self._pace = kind, speculate, Pace(_COST_ON_CPU)
        self._drafter: Drafter | None = None
        self.tokens: list[int] = []
        """The drafts of the pass that is under way."""

    def held(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that the pass drew hold."""
        pairs = enumerate(zip(self.tokens, tokens, strict=False), start=1)
        return next((count for count, (draft, token) in pairs if draft != token), len(tokens))

    def after(
        self,
        drawn: tuple[Tensor, Tensor, Tensor],
        held: int,
        redraw: Callable[..., Tensor],
        request: DraftedRequest,
        most: int,
        hidden_WD: Tensor | None = None,
    ) -> list[int]:
        """Drafts for the pass after the one that drew tokens `[W]` from logits `[W, V]` at steps `[W]`, of
        which the first `held` hold. `redraw` maps other logits `[k, V]` and `steps_N` to tokens; `most` is
        the most draws that `auto` may take; `hidden_WD` are the hidden states of the logits."""
        if self.tokens:
            self._pace.record(held)
        tokens_W, logits_WV, steps_W = drawn
        most = most if self._speculate == "auto" else int(self._speculate)
        if self._kind is None or most < 2 or tokens_W[held - 1] < 0:
            return []
        if self._drafter is None:
            self._drafter = self._kind.drafter(1, logits_WV.shape[1], request.positions, logits_WV.device)
            self._drafter.start(0, request.seen_ids)

        def redraw_1k(logits_1kV: Tensor, steps_1k: Tensor) -> Tensor:
            return redraw(logits_1kV[0], steps_N=steps_1k[0])[None]

        counts_1 = steps_W[:1] * 0 + held
        hidden_1WD = None if hidden_WD is None else hidden_WD[None]
        all_drawn = Drawn(tokens_W[None], logits_WV[None], steps_W[:1], counts_1, redraw_1k, hidden_1WD)
        self._drafter.record(all_drawn)
        window = self._pace.window(most) if self._speculate == "auto" else most
        count = min(window, request.max_new_tokens - request.step - held) - 1
        if count < 1:
            return []
        drafts: list[int] = self._drafter.propose(all_drawn, count)[0].tolist()
        return drafts[: drafts.index(-1)] if -1 in drafts else drafts
