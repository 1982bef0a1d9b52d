"""CapturedGraphs that are kept, and what voids them; a decoder step on static tensors, which buffers and the
engine record.

R rows, D decoder width, S cache slots, K dimensions of a head.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model.decoder import Decoder
from ..model.kv_cache import KVCache, allocated_slots
from ..model.layers import rotary_table
from .cuda_graphs import GraphCapturer, Work, graph_capture_lock
from .decode_step import decode_fast, host_free, load_kernels, reads_positions
from .fused_weights import join_weights

SPAN = 128
"""Steps that must know how many slots are read are recorded for multiples of so many."""
_RECORDINGS = 48


class Weights:
    """CapturedGraphs hold where weights were: they are void once a model was moved or given others."""

    def __init__(self) -> None:
        self._places: list[int] = []

    def moved(self, *modules: nn.Module, decoder: Decoder | None = None) -> bool:
        """Whether anything that the modules compute with lies elsewhere than at the last call. The weights of
        a `decoder` among them are joined then."""
        if _places(modules) == self._places:
            return False
        if decoder is not None:
            with graph_capture_lock:
                join_weights(decoder)
        self._places = _places(modules)
        return True


def _places(modules: Sequence[nn.Module]) -> list[int]:
    """Where all parameters and buffers lie. (`parameters()` spells out their names: for a vision tower that
    takes 0.9 ms, on the way to every first token, and this 0.3.)"""
    places: list[int] = []
    left: list[nn.Module | None] = list(modules)
    while left:
        module = left.pop()
        if module is not None:
            for kept in (module._parameters, module._buffers):
                places += [tensor.data_ptr() for tensor in kept.values() if tensor is not None]
            left += module._modules.values()
    return places


class CapturedGraphs:
    """Work on a decoder by recordings, each made when it is first needed; those used last are kept."""

    def __init__(self, capturer: GraphCapturer) -> None:
        self._record = capturer
        self._kept: OrderedDict[object, Work] = OrderedDict()

    def run(self, decoder: Decoder, key: object, work: Work, changed: Sequence[Tensor] = ()) -> None:
        """Run work of this key. Recording may run it too: what it has `changed` is put back before the
        recording is first run, which does again what else it did."""
        replay = self._kept.get(key)
        if replay is None:
            if len(self._kept) >= _RECORDINGS:
                self._kept.popitem(last=False)
            before = [tensor.clone() for tensor in changed]
            with graph_capture_lock, host_free(decoder):
                replay = self._kept[key] = self._record(work)
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        self._kept.move_to_end(key)
        replay()

    def clear(self) -> None:
        self._kept.clear()


class Decoding:
    """One position of every row of a cache of so many slots, in a form that can be recorded."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        device, config = decoder.device, decoder.config
        self.slots, self.kernels = slots, load_kernels(device)
        self.by_position = self.kernels is not None and reads_positions(decoder)
        places = torch.arange(slots, device=device)
        cos, sin = rotary_table(places[None], config.rotary_dim, config.rope_theta)
        self.rotary = (cos[0], sin[0])

    def span(self, filled: int) -> int:
        """Of a step that must know how many slots are read: that many, for so many filled ones. Else 0."""
        return 0 if self.by_position else min(-(-filled // SPAN) * SPAN, allocated_slots(self.slots))

    def step(self, decoder: Decoder, x_RD: Tensor, cache: KVCache, span: int, out_RD: Tensor) -> None:
        """Run the decoder at `cache.positions`, which stay; hidden states go into `out`."""
        cache.filled = min(span, self.slots)
        if self.kernels is None:
            out_RD.copy_(decoder(x_RD[:, None], cache)[:, 0])
        else:
            decode_fast(self.kernels, decoder, x_RD, cache, self.rotary, out_RD)
