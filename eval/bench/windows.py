"""What a step costs that checks several tokens, and what a picture would then take.

R rows, W tokens of a window, N = R W tokens of a pass, D decoder width.
"""

from collections.abc import Callable

import torch

from ...blocks.device import ints_on_device
from ...blocks.engine.prefill import decode
from ...blocks.graphs.cuda_graphs import CudaGraphCapturer, uses_cuda_graphs
from ...blocks.graphs.fused_weights import fuse_weights
from ...blocks.graphs.kv_pool import SCRATCH, KVPool, range_length
from ...blocks.graphs.packed_decoder import PackedDecoder, TokenSlots, load_kernels
from ...janus.model import JanusModel
from .measure import Bench, duration_text

WIDTHS = (4, 8, 16)
"""Tokens of a window."""
GAINS = (1.5, 2.0, 2.5, 3.0)
"""Tokens a step for which the time of a picture is given."""
_PASSES = 4  # of a run


def bench_windows(
    bench: Bench, model: JanusModel, batch: int, filled: int, step: float, repeats: int
) -> None:
    """Measure passes over windows of codes, after `filled` positions: decoder and head, not the draws.

    `step` is the time in seconds of a step of `batch` pictures without drafts. A note gives the time of all
    of a picture's steps if each gave so many tokens.
    """

    def seconds(width: int) -> list[float]:
        run = window_pass(model, 2 * batch, width, filled)
        times = bench.time(lambda: [run() for _ in range(_PASSES)], repeats=repeats, warmup=2)
        return [one / _PASSES for one in times]

    plain = min(seconds(1))
    for width in WIDTHS:
        times = seconds(width)
        cost = min(times) / plain
        pictures = (duration_text(model.config.num_codes * step * cost / gain) for gain in GAINS)
        gains = ", ".join(f"{gain:g}" for gain in GAINS)
        note = f"x {cost:.2f} of one token's; all steps at {gains} tokens a step: {', '.join(pictures)}"
        work = f"painting, a window of {width} codes, {2 * batch} rows"
        bench.add("bifrons", work, times, items=batch * width, unit=" tokens/s", limit=None, note=note)


def window_pass(model: JanusModel, rows: int, width: int, filled: int) -> Callable[[], object]:
    """A pass over `width` random tokens of each row, to logits; captured where steps are."""
    decoder = model.decoder
    x_RWD = torch.randn(rows, width, decoder.config.hidden_size, device=decoder.device).to(decoder.dtype)
    kernels = load_kernels(decoder.device) if uses_cuda_graphs(decoder) else None
    if kernels is None:
        cache = decoder.new_cache(rows, filled + width)

        def run() -> None:
            cache.positions.fill_(filled)
            cache.filled = filled
            model.image_logits(decode(decoder, x_RWD, cache).flatten(0, 1))

        return run
    fuse_weights(decoder)
    packed, span = PackedDecoder(decoder, kernels), range_length(filled + width)
    packed.reserve(rows * width)
    pool = KVPool(decoder, rows * span)
    positions = [filled + index for index in range(width)] * rows
    starts = [SCRATCH + row * span for row in range(rows) for _ in range(width)]
    positions_N, starts_N = ints_on_device(decoder.device, positions, starts)
    slots = TokenSlots(positions_N, starts_N, span, windows=((rows, width),))
    return CudaGraphCapturer(decoder.device)(
        lambda: model.image_logits(packed.forward(x_RWD.flatten(0, 1), slots, pool))
    )
