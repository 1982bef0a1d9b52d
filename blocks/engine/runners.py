"""The choice of a runner, which computes the steps of a scheduler's requests."""

from ..graphs.cuda_graphs import GraphCapturer, graph_capturer, uses_cuda_graphs
from ..graphs.graph_runner import GraphRunner
from ..graphs.kv_pool import range_length
from ..graphs.packed_decoder import PackedDecoder, load_kernels
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..placement.memory_budget import rows_that_fit
from .plain_runner import PlainRunner

MAX_ROWS = 256
"""Rows that a `GraphRunner` decodes together unless it is told otherwise."""


def make_runner(
    decoder: Decoder, rows: int | None, context: int, capturer: GraphCapturer | None, sharing: int = 1
) -> GraphRunner | PlainRunner:
    """The runner for a decoder, with as much of the wished cache as fits in one of `sharing` equal shares of
    the free memory.

    With `rows` None the cache grows with the requests.
    """
    packed, graphs = None, capturer is not None or uses_cuda_graphs(decoder)
    if graphs and (kernels := load_kernels(decoder.device, interpreted=capturer is not None)):
        packed = PackedDecoder(decoder, kernels)
        packed.adapters.reserve()  # before the memory that is left is divided
    whole_rows = None  # those for which the whole context fits
    if rows is not None:
        config, ahead = decoder.config, len(decoder.ahead)
        size = KVCache.row_bytes(context, config.num_layers + ahead, config.cache_widths, decoder.dtype)
        whole_rows = max(2, min(rows, rows_that_fit(sharing * size, decoder.device, decoder.layout)))
    if packed is None:
        return PlainRunner(decoder, whole_rows, context)
    slots = whole_rows and whole_rows * range_length(context)
    return GraphRunner(packed, rows or MAX_ROWS, slots, capturer or graph_capturer(decoder.device))
