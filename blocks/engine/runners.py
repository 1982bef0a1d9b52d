"""The choice of a runner, which computes the steps of a scheduler's requests."""

from ..graphs.cuda_graphs import GraphCapturer, graph_capturer, uses_cuda_graphs
from ..graphs.packed_decoder import load_kernels
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..placement.memory_budget import rows_that_fit
from .graph_runner import GraphRunner
from .plain_runner import PlainRunner

MAX_ROWS = 256
"""Rows that a `GraphRunner` decodes together unless it is told otherwise."""
_SLOT_UNIT = 32  # slots by which free memory is counted


def make_runner(
    decoder: Decoder, rows: int | None, context: int, capturer: GraphCapturer | None
) -> GraphRunner | PlainRunner:
    """The runner for a decoder, with as much of the wished cache as fits in memory.

    With `rows` None the cache grows with the requests.
    """
    slots = None
    if rows is not None:
        config = decoder.config
        unit = KVCache.row_bytes(_SLOT_UNIT, config.num_layers, config.cache_widths, decoder.dtype)
        slots = min(rows * context, rows_that_fit(unit, decoder.device, decoder.layout) * _SLOT_UNIT)
    if capturer is not None or uses_cuda_graphs(decoder):
        kernels = load_kernels(decoder.device, interpreted=capturer is not None)
        if kernels is not None:
            return GraphRunner(
                decoder, rows or MAX_ROWS, slots, kernels, capturer or graph_capturer(decoder.device)
            )
    if rows is not None and slots is not None:
        rows = max(2, min(rows, slots // context))
    return PlainRunner(decoder, rows, context)
