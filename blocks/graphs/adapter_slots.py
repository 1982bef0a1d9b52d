"""Adapters beside a decoder's weights, in captured steps: the factors of several, stacked, so that rows of
different adapters and of none run in one pass.

Every adapter has a slot, into which it is copied before its first request. Graphs read the slots, so that
adapters come and go without new captures. For an adapter that needs more room (a slot, a higher rank or
other layers) the stacks are replaced by larger ones, and graphs are captured anew.

S slots, P layers with the same input, R rank, I inputs, O outputs of all these layers.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..model.decoder import Attention, Block, Decoder
from ..model.layers import FeedForward
from ..placement.adapted import LowRankLinear, weight_shape
from ..sampling.request import TokenHead

NO_SLOT = -1
"""The slot of rows without an adapter."""


def layer_groups(decoder: Decoder) -> Iterator[tuple[nn.Module, ...]]:
    """The linear layers of a decoder, those with the same input together."""
    for block in decoder.layers:
        block = cast(Block, block)
        attention, mlp = block.self_attn, block.mlp
        if isinstance(attention, Attention):
            yield attention.q_proj, attention.k_proj, attention.v_proj
        else:
            yield attention.first_proj, attention.kv_a_proj_with_mqa
            if attention.latent.q_rank is not None:
                yield (attention.q_b_proj,)
        yield (attention.o_proj,)
        if isinstance(mlp, FeedForward):
            yield mlp.gate_proj, mlp.up_proj
            yield (mlp.down_proj,)


Factors = dict[int, tuple[Tensor, Tensor]]
"""The factors A `[R, I]` and B `[O, R]` of an adapter for the layers of a group, by their places in it."""


class Stack:
    """The factors of the adapters of a group of layers."""

    def __init__(self, slots: int, rank: int, widths: Sequence[int], inputs: int, like: Tensor) -> None:
        self.widths = widths
        self.a_SPRI = like.new_zeros(slots, len(widths), rank, inputs)
        self.b_SOR = like.new_zeros(slots, sum(widths), rank)

    def copy(self, other: "Stack") -> None:
        """Take over the slots of a smaller stack."""
        slots, _, rank, _ = other.a_SPRI.shape
        self.a_SPRI[:slots, :, :rank] = other.a_SPRI
        self.b_SOR[:slots, :, :rank] = other.b_SOR

    def load(self, slot: int, factors: Factors) -> None:
        """Overwrite a slot."""
        a_PRI, b_OR = self.a_SPRI[slot].zero_(), self.b_SOR[slot].zero_()
        b_parts = b_OR.split(list(self.widths))
        for place, (a, b) in factors.items():
            a_PRI[place, : len(a)] = a
            b_parts[place][:, : len(a)] = b


class AdapterSlots:
    """The adapters of a decoder that its runner has loaded."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.slots = self.rank = 0
        self.version = 0
        """Counts the stacks' replacements, after which captured graphs are invalid."""
        self._groups = list(layer_groups(decoder))
        self._stacks: dict[nn.Module, Stack] = {}
        self._slot_of: dict[int, int] = {}

    def reserve(self) -> None:
        """Make room for the adapters in use, and one more."""
        for adapted in list(self.decoder.variants.values()):
            self.slot_of(adapted)

    def stack_of(self, layer: nn.Module) -> Stack | None:
        """The stack of the group whose first layer this is; None if no adapter has changed any of it."""
        return self._stacks.get(layer)

    def release(self, running: Collection[int | None]) -> set[int]:
        """Free the slots of adapters that are neither in use nor in `running`; returns their numbers."""
        freed = {one for one in self._slot_of if one not in self.decoder.variants and one not in running}
        for number in freed:
            del self._slot_of[number]
        return freed

    @torch.no_grad()
    def slot_of(self, decoder: Decoder | None) -> int:
        """The slot of a decoder with adapters over this one, into which they are loaded the first time.

        Raises `OptionError` for what `fits_graphs` doesn't accept.
        """
        number = adapter_number(decoder)
        if decoder is None or number is None:
            return NO_SLOT
        if decoder.capture is False:
            raise OptionError(
                "the adapter changes weights that captured steps have no room for (experts, norms or "
                "kv_b_proj); accepted: a model that was opened with it, or without CUDA graphs"
            )
        if number not in self._slot_of:
            factors = self._factors(decoder)
            self._grow(factors)
            free = set(range(self.slots)) - set(self._slot_of.values())
            slot = self._slot_of[number] = min(free)
            for first, stack in self._stacks.items():
                stack.load(slot, factors.get(first, {}))
        return self._slot_of[number]

    def _factors(self, decoder: Decoder) -> dict[nn.Module, Factors]:
        """A decoder's factors, by the first layer of each group."""
        places = {layer: (group[0], place) for group in self._groups for place, layer in enumerate(group)}
        found: dict[nn.Module, Factors] = {}
        for module in decoder.modules():
            if isinstance(module, LowRankLinear):
                first, place = places[module.base]
                found.setdefault(first, {})[place] = module.a.weight, module.b.weight
        return found

    def _grow(self, factors: Mapping[nn.Module, Factors]) -> None:
        """Replace the stacks by larger ones if they have no room for another adapter with these factors."""
        ranks = [len(a) for places in factors.values() for a, _ in places.values()]
        rank, count = max((self.rank, *ranks)), len(self._slot_of) + 1
        missing = [group for group in self._groups if group[0] in factors.keys() - self._stacks.keys()]
        if count <= self.slots and rank <= self.rank and not missing:
            return
        larger = rank > self.rank or count > self.slots
        if count > self.slots:
            self.slots = 1 << count.bit_length()  # more than are in use, so that one can be replaced
        self.rank = rank
        like = self.decoder.embed_tokens.weight
        for group in self._groups:
            old = self._stacks.get(group[0])
            if group in missing or (old is not None and larger):
                shapes = [weight_shape(layer) for layer in group]
                widths = [outputs for outputs, _ in shapes]
                stack = Stack(self.slots, rank, widths, shapes[0][1], like)
                if old is not None:
                    stack.copy(old)
                self._stacks[group[0]] = stack
        self.version += 1


def adapter_number(decoder: Decoder | None) -> int | None:
    """The number of a decoder's adapters; None if it has none."""
    return decoder.adapters[-1] if decoder is not None and decoder.adapters else None


def head_number(head: TokenHead) -> int | None:
    """The number of the adapters of the model whose head it is."""
    decoder = getattr(getattr(head.logits, "__self__", None), "decoder", None)
    return adapter_number(decoder) if isinstance(decoder, Decoder) else None
