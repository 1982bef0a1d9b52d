"""Steps in plain PyTorch: the definition, on every device and for decoders spread over several.

n rows in use, D decoder width.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.kv_slots import KVSlots, ints_on_device, select_rows
from ..sampling.request import Request, SampledToken, SamplingMode, TokenHead, Tokens, group_by_mode
from ..sampling.sampling import IN_PROMPT, sample, sampled_tokens, sampling_tensors, token_logprobs
from ..token_masks import stack_masks
from .prefill import PREFILL_CHUNK, Prefiller, decode_one


class Batch:
    """A kv cache of fixed size, and the requests that have rows in it."""

    def __init__(self, decoder: Decoder, rows: int, context: int, prefill_chunk: int | None) -> None:
        self.decoder, self._chunk = decoder, prefill_chunk
        self.slots = KVSlots(decoder, rows, context)
        self.prefiller = Prefiller(decoder, self.slots)
        self.reserved = 0
        self.requests: list[Request] = []
        self._seen: dict[Request, Tensor] = {}

    def prefill(self, requests: Sequence[Request]) -> None:
        """Compute the prompts of requests with one decoder, which then have rows."""
        prompts = [prompt for request in requests for prompt in request.prompts_TD]
        chunks = [request.prefill_chunk for request in requests if request.prefill_chunk is not None]
        try:
            row_ids = iter(self.prefiller.add(prompts, min(chunks, default=self._chunk), requests[0].decoder))
        except BaseException:
            self.slots.truncate(sum(request.rows for request in self.requests))
            raise
        for request in requests:
            request.row_ids = [next(row_ids) for _ in range(request.rows)]
            self.requests.append(request)

    def remove(self, request: Request) -> None:
        """Free the rows of a request."""
        self.reserved -= request.rows
        self._seen.pop(request, None)
        if request not in self.requests:
            return
        self.requests.remove(request)
        while request.row_ids:
            # The higher row first: dropping a row moves the last one, which may be this request's other row.
            request.row_ids.sort()
            row = request.row_ids.pop()
            if request.overflowed:
                self.slots.clear(row, row + 1)
            moved = self.slots.drop(row)
            for other in self.requests:
                other.row_ids = [row if other_row == moved else other_row for other_row in other.row_ids]
        if request.overflowed:
            self.slots.clear(len(self.slots.lengths), self.slots.rows)  # rows may have been moved from there

    def step(self, requests: Sequence[Request]) -> Tokens:
        """Sample a token of each request, then decode one position of those that need another."""
        sampled: Tokens = []
        inputs: list[tuple[list[Request], Tensor]] = []
        for (head, mode), members in group_by_mode(requests).items():
            tokens_N, results = self._sample(head, mode, members)
            sampled += zip(members, results, strict=True)
            inputs.append((members, head.embed(tokens_N.clamp(min=0))))
        if any(request.step + 1 < request.max_new_tokens for request in requests):
            self._decode(requests, inputs)
        for request, result in sampled:
            request.step += 1
            if request in self._seen:
                self._seen[request][result.token] += 1
        return sampled

    def _sample(
        self, head: TokenHead, mode: SamplingMode, requests: list[Request]
    ) -> tuple[Tensor, list[SampledToken]]:
        rows = [request.row_ids[0] for request in requests]
        if mode.guided:
            rows += [request.row_ids[1] for request in requests]
        logits = head.logits(select_rows(self.slots.hidden_RD, rows))
        params = sampling_tensors(requests, logits.device)
        seeds_N, steps_N = ints_on_device(
            logits.device, [request.seed for request in requests], [request.step for request in requests]
        )
        seen_NV = self._seen_tokens(requests, logits.shape[-1], logits.device) if mode.penalized else None
        masks_NW = stack_masks([one.matcher for one in requests], logits.device) if mode.constrained else None
        tokens_N = sample(logits, mode, params, seeds_N, steps_N, seen_NV, masks_NW)
        logprobs = token_logprobs(logits, tokens_N.clamp(min=0), mode, params) if mode.logprobs else None
        return tokens_N, sampled_tokens(requests, tokens_N.tolist(), logprobs)

    def _seen_tokens(self, requests: list[Request], vocabulary: int, device: torch.device) -> Tensor:
        for request in requests:
            if request not in self._seen:
                self._seen[request] = torch.zeros(vocabulary, dtype=torch.int32, device=device)
                if request.seen_ids is not None:
                    self._seen[request][request.seen_ids.to(device)] = IN_PROMPT
        return torch.stack([self._seen[request] for request in requests])

    def _decode(self, requests: Sequence[Request], inputs: list[tuple[list[Request], Tensor]]) -> None:
        hidden_RD = self.slots.hidden_RD
        x_RD = torch.zeros_like(hidden_RD)
        for members, x_ND in inputs:
            # Both rows of a guided request get the same input, which is embedded once.
            rows = [(row, i) for i, request in enumerate(members) for row in request.row_ids]
            row_ids, owners = ints_on_device(hidden_RD.device, [row for row, _ in rows], [i for _, i in rows])
            x_RD[row_ids] = x_ND[owners]
        alone = len(requests) < len(self.requests)
        decoders = {row: one.decoder or self.decoder for one in requests for row in one.row_ids}
        for (decoder, _), group in groupby(sorted(decoders), lambda row: (decoders[row], alone and row)):
            rows = list(group)
            start, stop = rows[0], rows[-1] + 1
            view = self.slots.view(start, stop, max(self.slots.lengths[start:stop]))
            hidden_RD[start:stop] = decode_one(decoder, x_RD[start:stop], view)
            self.slots.advance(start, stop)


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
        self._sampled: dict[Request, SampledToken] = {}
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
        """One token of each request; returns a function that delivers the tokens."""
        pending = [request for request in requests if request not in self._sampled]
        for batch in self.batches:
            if members := [request for request in pending if self._batch_of[request] is batch]:
                self._sampled.update(batch.step(members))
        tokens = [(request, self._sampled.pop(request)) for request in requests]
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
