"""The decoder steps of an engine by recordings: one for each bucket of rows in use.

n rows in use, D decoder width.
"""

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.kv_slots import KVSlots
from .cuda_graphs import GraphCapturer
from .graph_generation import bucket
from .recordings import CapturedGraphs, Decoding, Weights


class GraphedSteps:
    """`generate.decode_one` over a scheduler's rows: `begin` where requests begin, then `run` for each step.

    Rows are filled up to a bucket with free ones, which are computed and never looked at (`KVSlots.park`).
    The capturer is the engine's own: recordings of one capturer share memory and are not to run at the same
    time, and buffers run theirs on other threads.
    """

    def __init__(self, decoder: Decoder, slots: KVSlots, capturer: GraphCapturer) -> None:
        self.decoder, self.slots, self.capturer = decoder, slots, capturer
        self.decoding = Decoding(decoder, slots.cache.slots)
        self._recordings, self._weights = CapturedGraphs(capturer), Weights()
        self._x_RD = torch.zeros_like(slots.hidden_RD)

    def begin(self) -> None:
        """Drop recordings that no longer hold."""
        if self._weights.moved(self.decoder, decoder=self.decoder):
            self._recordings.clear()

    def run(self, x_nD: Tensor) -> None:
        """Run one position of every row in use; hidden states go into the slots' own."""
        slots, used = self.slots, len(self.slots.lengths)
        rows = min(bucket(used), slots.rows)
        span = self.decoding.span(max(slots.lengths) + 1)
        slots.park(rows)
        x_RD, hidden_RD = self._x_RD[:rows], slots.hidden_RD[:rows]
        x_RD[:used] = x_nD

        def work() -> None:
            self.decoding.step(self.decoder, x_RD, slots.view(0, rows, 0), span, hidden_RD)

        self._recordings.run(self.decoder, (rows, span), work)
        slots.cache.positions[:used] += 1
