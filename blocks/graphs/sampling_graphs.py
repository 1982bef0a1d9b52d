"""The sampling half of captured steps: from hidden states to the next inputs of the decoder.

R rows, N requests of a group, D decoder width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ..device import ints_on_device, upload
from ..logit_bias import MAX_BIASES
from ..model.decoder import Decoder
from ..sampling.request import MAX_LOGPROBS, Request, SamplingMode, SamplingTensors, TokenHead, Tokens
from ..sampling.sampling import IN_PROMPT, sample, sampled_tokens, sampling_tensors, token_logprobs
from ..token_masks import stack_masks
from .adapter_slots import NO_SLOT
from .graph_prefill import Row, is_drafted, span_of
from .packed_decoder import Ahead, TokenSlots


@dataclass
class RowBuffers:
    """The static tensors of all rows. The last row belongs to no request: what pads a group to its bucket
    reads and writes there."""

    hidden_RD: Tensor
    x_RD: Tensor
    """The decoder's next inputs."""
    positions_R: Tensor
    starts_R: Tensor
    """The first slot of each row's range in the cache."""
    in_use_R: Tensor
    """1 for rows in use, which advance by one position per step, else 0."""
    adapters_R: Tensor
    """The slots of the rows' adapters, -1 for none (`adapter_slots.py`)."""
    vocabulary: int
    """Number of text tokens."""
    ahead: Ahead | None = None
    """The layer that drafts, if there is one, with its cache in the rows' ranges."""
    seen_RV: Tensor | None = None
    """How often tokens were generated, for penalties (see `penalize`), by a request's first row."""

    @classmethod
    def allocate(cls, decoder: Decoder, rows: int, ahead: Ahead | None) -> "RowBuffers":
        """Buffers for so many rows, all unused, and the spare one."""
        config, device = decoder.config, decoder.device
        hidden_RD, x_RD = torch.zeros(2, rows + 1, config.hidden_size, device=device, dtype=decoder.dtype)
        states = torch.zeros(4, rows + 1, dtype=torch.long, device=device)
        return cls(hidden_RD, x_RD, *states, vocabulary=config.vocab_size, ahead=ahead)

    @property
    def spare(self) -> int:
        """The row that belongs to no request."""
        return len(self.hidden_RD) - 1

    def set_state(self, *states: Tensor) -> None:
        """Overwrite the rows' positions, starts, use and adapters."""
        targets = (self.positions_R, self.starts_R, self.in_use_R, self.adapters_R)
        for target_R, state_R in zip(targets, states, strict=True):
            target_R.copy_(state_R)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Move the hidden states and seen tokens of rows to other rows."""
        self.hidden_RD[targets] = self.hidden_RD[sources]
        if self.seen_RV is not None:
            self.seen_RV[targets] = self.seen_RV[sources]

    def allocate_seen(self) -> Tensor:
        """`seen_RV`, allocated the first time."""
        if self.seen_RV is None:
            self.seen_RV = self.hidden_RD.new_zeros(len(self.hidden_RD), self.vocabulary, dtype=torch.int32)
        return self.seen_RV

    def mark_seen(self, request: Request) -> None:
        """Mark the tokens of a request's prompt, and no others, as seen."""
        seen_V = self.allocate_seen()[request.row_ids[0]]
        seen_V.zero_()
        if request.seen_ids is not None:
            seen_V[upload(request.seen_ids, seen_V.device)] = IN_PROMPT


def place_rows(active: list[Row], buffers: RowBuffers) -> None:
    """Move the last rows in use to where rows were removed, and put new rows in place."""
    count = sum(not row.removed for row in active)
    holes = [index for index in range(count) if active[index].removed]
    lasts = [index for index in range(count, len(active)) if not active[index].removed]
    targets, sources = [], []
    for hole, last in zip(holes, lasts, strict=True):
        active[hole] = active[last]
        if active[hole].hidden_D is None:  # a new row is not in the buffers yet
            targets.append(hole)
            sources.append(last)
    del active[count:]
    new = [index for index, row in enumerate(active) if row.hidden_D is not None]
    rest = [0] * (len(buffers.hidden_RD) - count)
    lengths, starts = [row.length for row in active] + rest, [row.start for row in active] + rest
    adapters = [row.adapter for row in active] + [NO_SLOT] * len(rest)
    lists = (lengths, starts, [1] * count + rest, adapters, targets, sources, new)
    *states, targets_M, sources_M, new_M = ints_on_device(buffers.hidden_RD.device, *lists)
    buffers.set_state(*states)
    if targets:
        buffers.move(sources_M, targets_M)
    if new:
        hidden = [row.hidden_D for row in active if row.hidden_D is not None]
        buffers.hidden_RD[new_M] = torch.stack(hidden)


def sample_by_kernel(
    kernel: ModuleType,
    logits: Tensor,
    mode: SamplingMode,
    params: SamplingTensors,
    seeds_N: Tensor,
    steps_N: Tensor,
    seen_NV: Tensor | None,
    masks_NW: Tensor | None,
) -> Tensor:
    """`sample` by `kernels.sampling_triton`, which applies guidance and draws in two launches."""
    if mode.draws_raw_logits:
        guidance = params.guidance if mode.guided else None
        temperature = None if mode.greedy else params.temperature
        return kernel.draw(logits, seeds_N, steps_N, guidance, temperature)
    race = partial(draw_by_kernel, kernel)
    return sample(logits, mode, params, seeds_N, steps_N, seen_NV, masks_NW, race)[0]


def draw_by_kernel(
    kernel: ModuleType,
    logits_NV: Tensor,
    mode: SamplingMode,
    temperature_N: Tensor,
    seeds_N: Tensor,
    steps_N: Tensor,
) -> Tensor:
    """`draw` by the kernel."""
    temperature = None if mode.greedy else temperature_N
    return kernel.draw(logits_NV, seeds_N, steps_N, None, temperature, some_dropped=True)


class SamplingGroup:
    """Requests with equal heads and modes, and the static tensors that their captured sampling reads.

    `rows_N` and `uncond_N` are the rows of each request, the latter with guidance only.
    """

    def __init__(
        self, head: TokenHead, mode: SamplingMode, rows: RowBuffers, size: int | None = None, width: int = 1
    ) -> None:
        """For up to `size` requests (None: as many as there are rows), with `width` draws of each."""
        self.head, self.mode, self.rows = head, mode, rows
        size, device = rows.spare if size is None else size, rows.hidden_RD.device
        self.requests: list[Request] = []
        self.span = 0
        """With `RowBuffers.ahead`: the bound of positions if any request is drafted by it, else 0."""
        self.rows_N, self.uncond_N, self.seeds_N, self.steps_N, self.tokens_N = torch.zeros(
            5, size, dtype=torch.long, device=device
        )
        self.rows_N.fill_(rows.spare)
        self.uncond_N.fill_(rows.spare)
        self.num_biases = MAX_BIASES if mode.biased else 0
        numbers, integers = torch.ones(7, size, device=device), torch.zeros_like(self.rows_N)
        biases = torch.zeros(size, self.num_biases, device=device)
        parts = (*numbers[:4], integers, *numbers[4:], biases, biases.long())
        self.params = SamplingTensors._make(parts)
        alternatives = MAX_LOGPROBS if mode.logprobs else 0
        if mode.penalized:
            rows.allocate_seen()
        self.masks_NW = None
        if mode.constrained:
            words = -(-rows.vocabulary // 32)
            self.masks_NW = torch.full((size, words), -1, dtype=torch.int32, device=device)
        draws = size * width
        self.logprobs_NK = torch.zeros(draws, 1 + alternatives, device=device)
        self.top_ids_NK = torch.zeros(draws, alternatives, dtype=torch.long, device=device)

    def assign(self, requests: Sequence[Request]) -> None:
        """Make these the group's requests."""
        self.requests, count = list(requests), len(requests)
        self.set_span()
        for target, source in self.states(requests):
            target[:count] = source
        self.rows_N[count:] = self.rows.spare
        self.uncond_N[count:] = self.rows.spare

    def set_span(self) -> None:
        """Set `span` for the group's requests."""
        drafted = self.rows.ahead is not None and any(is_drafted(request) for request in self.requests)
        self.span = span_of(max(request.positions for request in self.requests)) if drafted else 0

    def states(self, requests: Sequence[Request]) -> list[tuple[Tensor, Tensor]]:
        """Static tensors, and what stands there for these requests."""
        device = self.rows_N.device
        columns = [
            [request.row_ids[0] for request in requests],
            [request.row_ids[-1] for request in requests],
            [request.seed for request in requests],
            [request.step for request in requests],
        ]
        integers = upload(torch.tensor(columns), device)
        targets = (self.rows_N, self.uncond_N, self.seeds_N, self.steps_N, *self.params)
        sources = (*integers, *sampling_tensors(requests, device, self.num_biases))
        return list(zip(targets, sources, strict=True))

    def load_masks(self) -> None:
        """Bring the masks of requests with a matcher to the device, before each step."""
        if self.masks_NW is not None:
            masks = [request.matcher.mask_W for request in self.requests if request.matcher is not None]
            self.masks_NW[: len(masks)] = stack_masks(masks, self.masks_NW.device)

    def work(self, count: int, kernel: ModuleType) -> None:
        """Sample the first `count` requests' tokens and embed them as the decoder's next inputs."""
        rows, mode = self.rows, self.mode
        rows_N, uncond_N, steps_N = self.rows_N[:count], self.uncond_N[:count], self.steps_N[:count]
        logits = self.head.logits(rows.hidden_RD[torch.cat((rows_N, uncond_N)) if mode.guided else rows_N])
        params = SamplingTensors(*(tensor[:count] for tensor in self.params))
        seen_NV = rows.seen_RV[rows_N] if mode.penalized and rows.seen_RV is not None else None
        masks_NW = None if self.masks_NW is None else self.masks_NW[:count]
        tokens_N = sample_by_kernel(
            kernel, logits, mode, params, self.seeds_N[:count], steps_N, seen_NV, masks_NW
        )
        self.tokens_N[:count] = tokens_N
        if mode.logprobs:
            logprobs, top_ids = token_logprobs(logits, tokens_N.clamp(min=0), mode, params)
            self.logprobs_NK[:count, : logprobs.shape[1]] = logprobs
            self.top_ids_NK[:count, : top_ids.shape[1]] = top_ids
        x_ND = self.head.embed(tokens_N.clamp(min=0))
        if self.span and rows.ahead is not None:
            places_N = (rows.positions_R[rows_N] - 1).clamp(min=0), rows.starts_R[rows_N]
            rows.ahead(x_ND, rows.hidden_RD[rows_N], TokenSlots(*places_N, self.span))
        rows.x_RD.index_copy_(0, rows_N, x_ND)
        if mode.guided:
            rows.x_RD.index_copy_(0, uncond_N, x_ND)
        steps_N += 1

    def mark_sampled(self) -> None:
        """Count the requests' tokens as seen; apart from `work`, as a step that failed is repeated."""
        count = len(self.requests)
        if self.mode.penalized and self.rows.seen_RV is not None:
            self.rows.seen_RV[self.rows_N[:count], self.tokens_N[:count].clamp(min=0)] += 1

    def read(self) -> list[Tensor]:
        """Start copying the requests' tokens, and log-probabilities if they are wanted, to the host."""
        parts = [self.tokens_N]
        if self.mode.logprobs:
            parts += [self.logprobs_NK, self.top_ids_NK]
        return start_copies([part[: len(self.requests)] for part in parts])


def start_copies(parts: Sequence[Tensor]) -> list[Tensor]:
    """Start copying tensors to the host."""
    copies = []
    for part in parts:
        copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
        copies.append(copy.copy_(part, non_blocking=True))
    return copies


def recorded_event(device: torch.device) -> torch.cuda.Event | None:
    """An event after what was launched so far; None where nothing is launched."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def wait_for(event: torch.cuda.Event | None, decoder: Decoder) -> None:
    """Wait for an event. Raises `ResourceError` if a rank of a tensor-parallel model has ended: then what was
    computed before the event is wrong."""
    if event is not None:
        event.synchronize()
    if decoder.group is not None:
        decoder.group.check()


def reader(
    parts: list[tuple[list[Request], list[Tensor]]], decoder: Decoder, note: Callable[[Tokens], None]
) -> Callable[[], Tokens]:
    """A function that waits for what groups `read`, notes the tokens and returns them."""
    event = recorded_event(decoder.device)

    def read() -> Tokens:
        wait_for(event, decoder)
        delivered: Tokens = []
        for requests, (tokens, *logprobs) in parts:
            pair = (logprobs[0], logprobs[1]) if logprobs else None
            delivered += zip(requests, sampled_tokens(requests, tokens.tolist(), pair), strict=True)
        note(delivered)
        return delivered

    return read
