"""Steps in plain PyTorch: the definition, on every device and for decoders spread over several.

n rows in use, D decoder width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby

import torch
from torch import Tensor

from ..device import ints_on_device
from ..drafts import RequestDrafts, seen_before, window_on_cpu
from ..graphs.cuda_graphs import checks_windows
from ..model.decoder import Decoder
from ..model.kv_slots import KVSlots
from ..sampling.request import Request, SampledToken, SamplingMode, TokenHead, Tokens, group_by_mode
from ..sampling.sampling import IN_PROMPT, draw, sample, sampled_tokens, sampling_tensors, token_logprobs
from ..token_masks import stack_masks
from .prefill import PREFILL_CHUNK, Prefiller, decode


@dataclass(eq=False)
class _State:
    """A running request: its prompts' lengths, the hidden states `[W, D]` of each row from which the next
    tokens are drawn, and the drafts that led to all of these but the first."""

    lengths: list[int]
    hidden_WD: list[Tensor]
    drafts: RequestDrafts
    seen_V: Tensor | None = None


class Batch:
    """A kv cache of fixed size, and the requests that have rows in it."""

    def __init__(self, decoder: Decoder, rows: int, context: int, prefill_chunk: int | None) -> None:
        self.decoder, self._chunk = decoder, prefill_chunk
        self.slots = KVSlots(decoder, rows, context)
        self.prefiller = Prefiller(decoder, self.slots)
        self.reserved = 0
        self._states: dict[Request, _State] = {}
        self._bytes = sum(weight.numel() * weight.itemsize for weight in decoder.parameters())

    def prefill(self, requests: Sequence[Request]) -> None:
        """Compute the prompts of requests with one decoder, which then have rows."""
        prompts = [prompt for request in requests for prompt in request.prompts_TD]
        chunks = [request.prefill_chunk for request in requests if request.prefill_chunk is not None]
        try:
            row_ids = iter(self.prefiller.add(prompts, min(chunks, default=self._chunk), requests[0].decoder))
        except BaseException:
            self.slots.truncate(sum(request.rows for request in self._states))
            raise
        for request in requests:
            request.row_ids = [next(row_ids) for _ in range(request.rows)]
            drafts = RequestDrafts(request.head.drafts, request.speculate)
            hidden_1D = [self.slots.hidden_RD[row : row + 1].clone() for row in request.row_ids]
            self._states[request] = _State([len(prompt) for prompt in request.prompts_TD], hidden_1D, drafts)

    def remove(self, request: Request) -> None:
        """Free the rows of a request."""
        self.reserved -= request.rows
        if self._states.pop(request, None) is None:
            return
        while request.row_ids:
            # The higher row first: dropping a row moves the last one, which may be this request's other row.
            request.row_ids.sort()
            row = request.row_ids.pop()
            if request.overflowed:
                self.slots.clear(row, row + 1)
            moved = self.slots.drop(row)
            for other in self._states:
                other.row_ids = [row if other_row == moved else other_row for other_row in other.row_ids]
        if request.overflowed:
            self.slots.clear(len(self.slots.lengths), self.slots.rows)  # rows may have been moved from there

    def step(self, requests: Sequence[Request]) -> dict[Request, list[SampledToken]]:
        """Sample tokens of each request, then decode the last of them, and drafts, where more are needed."""
        rows = sum(request.rows for request in requests)
        most = window_on_cpu(rows, self._bytes) if checks_windows(self.decoder) else 1
        sampled: dict[Request, list[SampledToken]] = {}
        inputs: dict[Request, tuple[list[int], Tensor]] = {}
        for (head, mode), members in group_by_mode(requests).items():
            drawn = self._sample(head, mode, members, most)
            sampled |= {request: tokens for request, (tokens, _) in drawn.items()}
            next_ids = [[max(0, tokens[-1].token), *drafts] for tokens, drafts in drawn.values()]
            (ids_M,) = ints_on_device(self.decoder.device, list(chain.from_iterable(next_ids)))
            parts = head.embed(ids_M).split([len(ids) for ids in next_ids])
            for request, ids, x_WD in zip(members, next_ids, parts, strict=True):
                inputs[request] = ids[1:], x_WD
        if any(one.step + len(tokens) < one.max_new_tokens for one, tokens in sampled.items()):
            self._decode(inputs, {one: one.step + len(tokens) - 1 for one, tokens in sampled.items()})
        for request, tokens in sampled.items():
            request.step += len(tokens)
            seen_V = self._states[request].seen_V
            if seen_V is not None:
                for one in tokens:
                    seen_V[one.token] += 1
        return sampled

    def _sample(
        self, head: TokenHead, mode: SamplingMode, requests: list[Request], most: int
    ) -> dict[Request, tuple[list[SampledToken], list[int]]]:
        """The next tokens of each request, and drafts of those after them."""
        states = [self._states[request] for request in requests]
        hidden = [state.hidden_WD[row] for row in range(1 + mode.guided) for state in states]
        logits = head.logits(torch.cat(hidden))
        device, widths = logits.device, [1 + len(state.drafts.tokens) for state in states]
        draws = [one for one, width in zip(requests, widths, strict=True) for _ in range(width)]
        steps = [one.step + i for one, width in zip(requests, widths, strict=True) for i in range(width)]
        params = sampling_tensors(draws, device)
        seeds_N, steps_N = ints_on_device(device, [one.seed for one in draws], steps)
        seen_NV = self._seen_tokens(requests, logits.shape[-1], device) if mode.penalized else None
        both = zip([one.matcher for one in requests], states, strict=True)
        masks = [mask for matcher, state in both if matcher for mask in matcher.masks(state.drafts.tokens)]
        masks_NW = stack_masks(masks, device) if mode.constrained else None
        tokens_N, logits_NV = sample(logits, mode, params, seeds_N, steps_N, seen_NV, masks_NW)
        logprobs = token_logprobs(logits, tokens_N.clamp(min=0), mode, params) if mode.logprobs else None
        ids = tokens_N.tolist()
        sampled = sampled_tokens(draws, ids, logprobs)
        results, start = {}, 0
        for request, state, width in zip(requests, states, widths, strict=True):
            part, start = slice(start, start + width), start + width
            held = state.drafts.held(ids[part])
            own = {"temperature_N": params.temperature[part][:1], "seeds_N": seeds_N[part][:1]}
            redraw = partial(draw, mode=mode, **own)
            drawn = tokens_N[part], logits_NV[part], steps_N[part]
            hidden_WD = None if mode.guided else state.hidden_WD[0]
            drafts = state.drafts.after(drawn, held, redraw, request, most, hidden_WD)
            results[request] = sampled[part][:held], drafts
        return results

    def _seen_tokens(self, requests: list[Request], vocabulary: int, device: torch.device) -> Tensor:
        rows = []
        for request in requests:
            state = self._states[request]
            if state.seen_V is None:
                state.seen_V = torch.zeros(vocabulary, dtype=torch.int32, device=device)
                if request.seen_ids is not None:
                    state.seen_V[request.seen_ids.to(device)] = IN_PROMPT
            rows.append(seen_before(state.seen_V, state.drafts.tokens))
        return torch.cat(rows)

    def _decode(self, inputs: dict[Request, tuple[list[int], Tensor]], offsets: dict[Request, int]) -> None:
        """Decode each request's inputs `[W, D]`, the last of them drafts, so far after its prompts; adjacent
        rows of one decoder with as many inputs together."""
        rows = sorted((row, i, request) for request in inputs for i, row in enumerate(request.row_ids))
        hidden: dict[tuple[Request, int], Tensor] = {}

        def run(item: tuple[int, tuple[int, int, Request]]) -> tuple[int, int, Decoder]:
            index, (row, _, request) = item
            return row - index, len(inputs[request][1]), request.decoder or self.decoder

        for (_, width, decoder), group in groupby(enumerate(rows), run):
            members = [member for _, member in group]
            starts = [self._states[request].lengths[i] + offsets[request] for _, i, request in members]
            first, stop = members[0][0], members[-1][0] + 1
            view = self.slots.view(first, stop, max(starts))
            view.positions.copy_(ints_on_device(view.positions.device, starts)[0])
            x_rWD = torch.stack([inputs[request][1] for _, _, request in members])
            hidden_rWD = decode(decoder, x_rWD, view)
            self.slots.lengths[first:stop] = [start + width for start in starts]
            hidden |= {(request, i): hidden_rWD[row - first] for row, i, request in members}
        for request, (drafts, _) in inputs.items():
            state = self._states[request]
            state.hidden_WD = [hidden[request, i] for i in range(request.rows)]
            state.drafts.tokens = drafts


class PlainRunner:
    """Runs requests in one cache of `rows` rows of `context` positions, allocated at once. With `rows` None,
    requests that are admitted together get a cache of their own, which is freed with the last of them."""

    def __init__(self, decoder: Decoder, rows: int | None, context: int) -> None:
        self.decoder = decoder
        self.rows = rows
        self.batches: list[Batch] = []
        if rows is not None:
            self.batches.append(Batch(decoder, rows, context, PREFILL_CHUNK))
        self._batch_of: dict[Request, Batch] = {}
        self._sampled: dict[Request, list[SampledToken]] = {}
        """Tokens of a step that failed for other requests."""

    lag = 0
    """Steps that may be launched before their tokens are read."""

    @property
    def rows_used(self) -> int:
        """Rows of admitted requests."""
        return sum(batch.reserved for batch in self.batches)

    @property
    def cache_bytes(self) -> int:
        """Memory that later requests can reuse."""
        return 0

    @property
    def positions_copied(self) -> int:
        """Prompt positions that were copied from other rows instead of computed."""
        return sum(batch.prefiller.copied for batch in self.batches)

    def admit(self, requests: Sequence[Request]) -> list[Request]:
        """Reserve rows for as many of the requests, in order, as there is room for; returns these."""
        if self.rows is None and requests:
            rows, context = sum(one.rows for one in requests), max(one.positions for one in requests)
            self.batches.append(Batch(self.decoder, rows, context, None))
        admitted = []
        for request in requests:
            batch = self.batches[-1]
            if batch.reserved + request.rows > batch.slots.rows:
                break
            batch.reserved += request.rows
            self._batch_of[request] = batch
            admitted.append(request)
        return admitted

    def prefill(self, requests: Sequence[Request], tokens: int) -> list[Request]:
        """Compute whole prompts of about `tokens` positions, at least one; returns the requests done."""
        done: list[Request] = []
        for request in requests:
            first = done[0] if done else request
            if (self._batch_of[request], request.decoder) != (self._batch_of[first], first.decoder):
                break
            tokens -= sum(len(prompt) for prompt in request.prompts_TD)
            if done and tokens < 0:
                break
            done.append(request)
        self._batch_of[done[0]].prefill(done)
        return done

    def step(self, requests: Sequence[Request]) -> Callable[[], Tokens]:
        """The next tokens of each request; returns a function that delivers them."""
        pending = [request for request in requests if request not in self._sampled]
        for batch in self.batches:
            if members := [request for request in pending if self._batch_of[request] is batch]:
                self._sampled.update(batch.step(members))
        tokens = [(request, token) for request in requests for token in self._sampled.pop(request)]
        return lambda: tokens

    def remove(self, request: Request) -> None:
        """Free the rows of a request."""
        batch = self._batch_of.pop(request)
        self._sampled.pop(request, None)
        batch.remove(request)
        if self.rows is None and not batch.reserved:
            batch.prefiller.close()
            self.batches.remove(batch)

    def warm_up(self, heads: Sequence[tuple[TokenHead, SamplingMode]], progress: object = None) -> None:
        """Nothing is compiled or captured here."""

    def close(self) -> None:
        """Stop the threads that prefill."""
        for batch in self.batches:
            batch.prefiller.close()
