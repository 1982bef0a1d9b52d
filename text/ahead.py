"""Drafts by DeepSeek-V3's layer for multi-token prediction: `TextModel.ahead`.

N requests, W draws of a pass, k drafts, T positions, D decoder width. The layer's input at position i is the
model's hidden state there and the embedding of token i + 1; its output predicts token i + 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..blocks.drafts import Drafter, Drawn, LookupDrafts
from ..blocks.model.kv_cache import KVCache
from ..blocks.speculate import MAX_WINDOW

if TYPE_CHECKING:
    from .model import AheadLayer, TextModel


@dataclass(frozen=True, eq=False)
class AheadDrafts:
    """Drafts of a text by the `ahead` layer of its model, which each also goes on from its own output.

    Captured steps on a GPU keep the layer's cache beside the decoder's. Where they can't, as with tensor
    parallel, drafts are what followed the same words before, as with models without the layer.
    """

    model: "TextModel"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AheadDrafts) and other.model is self.model

    def __hash__(self) -> int:
        return id(self.model)

    def drafter(self, requests: int, vocabulary: int, tokens: int, device: torch.device) -> Drafter:
        """A drafter with a cache of its own on a CPU; elsewhere one without the layer."""
        if device.type != "cpu":
            return LookupDrafts().drafter(requests, vocabulary, tokens, device)
        return AheadDrafter(self.model, requests, tokens)

    def layer_drafter(self) -> Drafter:
        """A drafter for engines that keep the layer's cache."""
        return PooledAheadDrafter(self.model)


class PooledAheadDrafter:
    """Runs the layer with the cache of an engine, which holds the prompt and all draws already."""

    def __init__(self, model: "TextModel") -> None:
        self.model = model

    def start(self, index: int, prompt_ids: Tensor | None, tokens: Sequence[int] = ()) -> None:
        """Nothing of the request before is read."""

    def record(self, drawn: Drawn) -> None:
        """Run the layer over all draws; those that don't hold are overwritten by the next ones."""
        assert drawn.run_ahead is not None
        assert drawn.hidden_NWD is not None
        out_NWD = drawn.run_ahead(drawn.tokens_NW, drawn.hidden_NWD, torch.zeros_like(drawn.counts_N))
        last_N1D = (drawn.counts_N - 1)[:, None, None].expand(-1, 1, out_NWD.shape[-1])
        self._last_ND = out_NWD.gather(1, last_N1D)[:, 0]

    def propose(self, drawn: Drawn, count: int) -> Tensor:
        """Drafts int64 `[N, k]`."""
        assert drawn.run_ahead is not None
        hidden_ND, drafts = self._last_ND, []
        for number in range(count):
            logits_N1V = self.model.text_logits(hidden_ND)[:, None]
            steps_N1 = (drawn.steps_N + drawn.counts_N + number)[:, None]
            drafts.append(drawn.redraw(logits_N1V, steps_N1))
            if number < count - 1:
                hidden_N1D, offsets_N = hidden_ND[:, None], drawn.counts_N + number
                hidden_ND = drawn.run_ahead(drafts[-1], hidden_N1D, offsets_N)[:, 0]
        return torch.cat(drafts, dim=1)


class AheadDrafter:
    """Keeps the layer's cache of each request."""

    def __init__(self, model: "TextModel", requests: int, tokens: int) -> None:
        self.model, self.ahead = model, cast("AheadLayer", model.ahead)
        decoder = model.decoder
        config, place = (
            replace(decoder.config, num_layers=1),
            {"device": decoder.device, "dtype": decoder.dtype},
        )
        self.caches = [config.new_cache(1, tokens + MAX_WINDOW, **place) for _ in range(requests)]
        self.prompts = [1] * requests
        """Tokens of the prompts; an unknown one counts as a single token."""
        self._last: list[Tensor | None] = [None] * requests
        """The layer's output at the last token that holds, `[D]`."""

    def start(self, index: int, prompt_ids: Tensor | None, tokens: Sequence[int] = ()) -> None:
        """Begin a request; the model's hidden states of the prompt are computed once more."""
        self._last[index] = None
        count = 0 if prompt_ids is None else len(prompt_ids)
        self.prompts[index] = max(1, count)
        if prompt_ids is not None and count > 1:
            x_TD = self.model.embed_text(prompt_ids.to(self.model.decoder.device))
            self._run(self.caches[index], x_TD[1:], self.model.decoder(x_TD[None])[0, :-1], 0)

    def record(self, drawn: Drawn) -> None:
        """Run the layer over the draws that hold."""
        if drawn.hidden_NWD is None:
            return
        for index, (step, count) in enumerate(
            zip(drawn.steps_N.tolist(), drawn.counts_N.tolist(), strict=True)
        ):
            x_TD = self.model.embed_text(drawn.tokens_NW[index, :count].clamp(min=0))
            hidden_TD = drawn.hidden_NWD[index, :count]
            first = self.prompts[index] - 1 + step
            self._last[index] = self._run(self.caches[index], x_TD, hidden_TD, first)[-1]

    def propose(self, drawn: Drawn, count: int) -> Tensor:
        """Drafts int64 `[N, k]`; -1 where the hidden states are not known."""
        steps_N = drawn.steps_N + drawn.counts_N
        known = [hidden for hidden in self._last if hidden is not None]
        drafts = torch.full((len(steps_N), count), -1, dtype=torch.long, device=steps_N.device)
        if len(known) < len(self._last):
            return drafts
        hidden_ND = torch.stack(known)
        for number in range(count):
            logits_N1V = self.model.text_logits(hidden_ND)[:, None]
            drafts[:, number] = drawn.redraw(logits_N1V, (steps_N + number)[:, None])[:, 0]
            if number == count - 1:
                break
            x_ND = self.model.embed_text(drafts[:, number].clamp(min=0))
            places = [
                prompt - 1 + step + number
                for prompt, step in zip(self.prompts, steps_N.tolist(), strict=True)
            ]
            hidden_ND = torch.stack(
                [
                    self._run(cache, x_ND[i : i + 1], hidden_ND[i : i + 1], place)[-1]
                    for i, (cache, place) in enumerate(zip(self.caches, places, strict=True))
                ]
            )
        return drafts

    def _run(self, cache: KVCache, next_TD: Tensor, hidden_TD: Tensor, first: int) -> Tensor:
        """The layer's outputs `[T, D]` at the positions from `first` on, which it stores."""
        length, decoder = len(next_TD), self.model.decoder
        cache.positions.fill_(first)
        cache.filled = first
        cache.reserve(first + length)
        x_1TD = self.ahead.joined(next_TD[None], hidden_TD[None])
        context = decoder.forward_context(1, length, x_1TD.device, cache)
        return self.ahead.norm(self.ahead.block(x_1TD, context))[0]
