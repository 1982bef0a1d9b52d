"""A preallocated key/value cache in which every row has its own position.

B rows, T positions of this call, H key/value heads, S slots, K dimensions of a head.

Slot `s` of a row holds position `s` of that row. Rows of different lengths are padded on the right: a padding
position writes beyond the end of its row, where nothing attends until the row itself overwrites the slot. So
rows that started at different times can share every step.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import zeros

_MULTIPLE = 32  # slots are allocated and attended to in multiples of this


def allocated_slots(count: int) -> int:
    """The number of slots allocated for `count`: rounded up to a multiple of 32."""
    return -(-count // _MULTIPLE) * _MULTIPLE


class MultiDeviceBuffer:
    """A cache buffer whose layers, each `[B, S, H, K]`, are on several devices; indexed like one tensor of
    all layers."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self._layers = list(layers)

    def __getitem__(self, index: Any) -> Any:
        """One layer's tensor, or, where the first index is `:`, another buffer of all layers."""
        if isinstance(index, int):
            return self._layers[index]
        layer, *rest = index
        if isinstance(layer, int):
            return self._layers[layer][tuple(rest)]
        assert layer == slice(None), "one layer or all of them"
        return MultiDeviceBuffer([part[tuple(rest)] for part in self._layers])

    def __setitem__(self, index: Any, value: "MultiDeviceBuffer") -> None:
        layer, *rest = index
        assert layer == slice(None), "all layers are written together"
        for part, new in zip(self._layers, value._layers, strict=True):
            part[tuple(rest)] = new

    def clone(self) -> "MultiDeviceBuffer":
        """A copy of every layer, on the same devices."""
        return MultiDeviceBuffer([part.clone() for part in self._layers])


class KVCache:
    """Keys and values (or latents) of all layers, and `positions` `[B]`, the next free slot of each row.

    `filled` is the host's upper bound on the slots in use by any row; attention reads only that many. The
    caller raises it with `reserve`, so that no step synchronizes with the device.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        slots: int,
        widths: tuple[tuple[int, int], ...],
        *,
        device: torch.device,
        dtype: torch.dtype,
        layer_devices: Sequence[torch.device] | None = None,
    ) -> None:
        """`widths` is (heads, dimensions) of each buffer of a layer: ((H, K), (H, K)) for keys and values.

        The slots of a head are contiguous in memory, so attention reads them without a copy.
        `layer_devices` gives the device of each layer's part; by default all are on `device`.
        """
        shapes = [(rows, heads, allocated_slots(slots), dim) for heads, dim in widths]
        self.buffers: tuple[Any, ...]
        if layer_devices is None:
            self.buffers = tuple(zeros((layers, *shape), device, dtype).transpose(2, 3) for shape in shapes)
        else:
            assert len(layer_devices) == layers
            self.buffers = tuple(
                MultiDeviceBuffer([zeros(shape, d, dtype).transpose(1, 2) for d in layer_devices])
                for shape in shapes
            )
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.rows = torch.arange(rows, device=device)
        self.slots = slots
        self.filled = 0
        self.decoding = False
        """Whether the positions to come are generated tokens: each gets the bits that it gets alone."""

    def reserve(self, count: int) -> None:
        """Announce that slots below `count` will be written. Raises `IndexError` beyond the cache's size."""
        if count > self.slots:
            raise IndexError(f"cache of {self.slots} slots asked to hold {count}")
        self.filled = max(self.filled, count)

    def on(self, device: torch.device) -> "KVCache":
        """This cache, sharing its buffers, for layers that compute on another device."""
        if self.rows.device == device:
            return self
        cache = copy.copy(self)
        cache.rows = self.rows.to(device)
        return cache

    @property
    def span(self) -> int:
        """Number of slots that attention reads: `filled`, rounded up to a multiple of 32.

        Slots beyond a row's own position get no weight. Rounding keeps the number of different shapes small,
        and a row's sums independent of the rows beside it.
        """
        return allocated_slots(self.filled)

    def write(self, layer: int, positions_BT: Tensor, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Store `values`, each `[B, T, H, K]`; returns what attention reads, each `[B, S, H, K]`."""
        slots = []
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer[layer].index_put_((self.rows[:, None], positions_BT), value)
            slots.append(buffer[layer, :, : self.span])
        return tuple(slots)

    @staticmethod
    def row_bytes(slots: int, layers: int, widths: tuple[tuple[int, int], ...], dtype: torch.dtype) -> int:
        """Bytes of one row with this many slots, over all layers."""
        return allocated_slots(slots) * layers * sum(heads * dim for heads, dim in widths) * dtype.itemsize
