"""A preallocated key/value cache in which every row has a position of its own.

B rows, T positions of this call, H key/value heads, S slots, K dimensions of a head.

Slot `s` of a row holds position `s` of that row. Rows of different lengths are padded on the right: what
a padded position writes lies behind the row's end, is never attended to, and is overwritten when the
row gets there. So rows that started at different times can share every step.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SPAN = 32


def allocated_slots(count: int) -> int:
    """`count` slots, filled up to whole spans."""
    return -(-count // _SPAN) * _SPAN


class SpreadBuffer:
    """A buffer whose layers, each `[B, S, H, K]`, lie on several devices; indexed like the one of all."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self._layers = list(layers)

    def __getitem__(self, index: Any) -> Any:
        """Of one layer a tensor; of all (a whole slice comes first) again such a buffer."""
        if isinstance(index, int):
            return self._layers[index]
        layer, *rest = index
        if isinstance(layer, int):
            return self._layers[layer][tuple(rest)]
        assert layer == slice(None), "one layer or all of them"
        return SpreadBuffer([part[tuple(rest)] for part in self._layers])

    def __setitem__(self, index: Any, value: "SpreadBuffer") -> None:
        layer, *rest = index
        assert layer == slice(None), "all layers are written together"
        for part, new in zip(self._layers, value._layers, strict=True):
            part[tuple(rest)] = new

    def clone(self) -> "SpreadBuffer":
        return SpreadBuffer([part.clone() for part in self._layers])


class KVCache:
    """Buffers for all layers, `positions` `[B]` (the next free slot of each row), written in place.

    `filled` is a bound, known on the host, on the slots in use by any row: attention reads only
    that many. It is the caller's to raise (`reserve`), so that no step has to ask the device.
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
        """`widths`: (heads, dimensions) of each buffer of a layer: ((H, K), (H, K)) for keys and values.

        A head's slots lie side by side in memory, so that attention's products read them where they are.
        With `layer_devices` each layer's part lies on a device of its own.
        """
        shapes = [(rows, heads, allocated_slots(slots), dim) for heads, dim in widths]
        self.buffers: tuple[Any, ...]
        if layer_devices is None:
            self.buffers = tuple(
                torch.zeros(layers, *shape, device=device, dtype=dtype).transpose(2, 3) for shape in shapes
            )
        else:
            assert len(layer_devices) == layers
            self.buffers = tuple(
                SpreadBuffer(
                    [torch.zeros(shape, device=d, dtype=dtype).transpose(1, 2) for d in layer_devices]
                )
                for shape in shapes
            )
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.rows = torch.arange(rows, device=device)
        self.arrivals = torch.zeros(rows * widths[0][0], dtype=torch.int32, device=device)
        """Zeros that a kernel counts its programs with, for each row and head."""
        self.slots = slots
        self.filled = 0

    def reserve(self, count: int) -> None:
        """Announce that rows will be written up to slot `count` (exclusive); checked against the size."""
        if count > self.slots:
            raise IndexError(f"cache of {self.slots} slots asked to hold {count}")
        self.filled = max(self.filled, count)

    def on(self, device: torch.device) -> "KVCache":
        """The same cache, for layers that compute on that device."""
        if self.rows.device == device:
            return self
        there = copy.copy(self)
        there.rows = self.rows.to(device)
        return there

    @property
    def span(self) -> int:
        """How many slots attention reads: the filled ones, and what is missing to a multiple of `_SPAN`.

        What is beyond a row's own position weighs nothing; sums of few different lengths are the same sums
        whatever other rows there are, and a step has few different shapes.
        """
        return allocated_slots(self.filled)

    def write(self, layer: int, positions_BT: Tensor, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Store `values` (each `[B, T, H, K]`) at `positions_BT`; return the part in use, `[B, S, H, K]`."""
        filled = []
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer[layer].index_put_((self.rows[:, None], positions_BT), value)
            filled.append(buffer[layer, :, : self.span])
        return tuple(filled)

    @staticmethod
    def row_bytes(slots: int, layers: int, widths: tuple[tuple[int, int], ...], dtype: torch.dtype) -> int:
        """Memory of one row of so many slots over all layers."""
        return allocated_slots(slots) * layers * sum(heads * dim for heads, dim in widths) * dtype.itemsize
