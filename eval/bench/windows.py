"""What a step costs that checks several tokens, and what a picture or an answer would then take.

R rows, W tokens of a window, N = R W tokens of a pass, D decoder width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...blocks.device import ints_on_device
from ...blocks.drafts import Drawn
from ...blocks.engine.prefill import decode
from ...blocks.graphs.cuda_graphs import CudaGraphCapturer, uses_cuda_graphs
from ...blocks.graphs.fused_weights import fuse_weights
from ...blocks.graphs.kv_pool import SCRATCH, KVPool, range_length
from ...blocks.graphs.packed_decoder import Kernels, PackedDecoder, TokenSlots, load_kernels
from ...blocks.model.decoder import Decoder
from ...janus.model import JanusModel
from ...text.ahead import AheadDrafts
from ...text.model import TextModel
from .measure import Bench, duration_text

WIDTHS = (4, 8, 16)
"""Tokens of a window."""
GAINS = (1.5, 2.0, 2.5, 3.0)
"""Tokens a step for which the time of a picture is given."""
TEXT_WIDTHS = (2, 3, 5)
HELD = (0.6, 0.85)
"""Shares of drafts of texts that hold after right ones; DeepSeek-V3's report has 0.85 to 0.9 for its layer's
(sec. 5.4.3)."""
_PASSES = 4  # of a run


def bench_windows(
    bench: Bench, model: JanusModel, batch: int, filled: int, step: float, repeats: int
) -> None:
    """Measure passes over windows of codes, after `filled` positions: decoder and head, not the draws.

    `step` is the time in seconds of a step of `batch` pictures without drafts. A note gives the time of all
    of a picture's steps if each gave so many tokens.
    """

    def seconds(width: int) -> list[float]:
        run = window_pass(model.decoder, model.image_logits, 2 * batch, width, filled)
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


def bench_drafts(bench: Bench, model: TextModel, rows: int, filled: int, step: float, repeats: int) -> None:
    """Measure drafts of texts: a draft by the layer for multi-token prediction, where it makes them, and
    passes that check drafts. `step` is the time in seconds of a step without drafts; notes give the tokens of
    a step, and how many times as fast answers are, if so many drafts hold after right ones.
    """
    draft = 0.0
    if model.ahead is not None and (run := draft_pass(model, rows, filled)) is not None:
        times = bench.time(run, repeats=repeats, warmup=2)
        draft = min(times)
        note = f"x {draft / step:.2f} of a step: one layer and the head"
        bench.add(
            "bifrons",
            "a draft by the prediction layer",
            times,
            items=rows,
            unit=" tokens/s",
            limit=None,
            note=note,
        )
    for width in TEXT_WIDTHS:
        run = window_pass(model.decoder, model.text_logits, rows, width, filled)
        times = bench.time(run, repeats=repeats, warmup=2)
        whole = min(times) + (width - 1) * draft
        gains = [(1 - held**width) / (1 - held) for held in HELD]
        parts = (f"{gain:.2f} tokens, x {gain * step / whole:.2f}" for gain in gains)
        shares = ", ".join(f"{held:.0%}" for held in HELD)
        note = f"x {min(times) / step:.2f} of a step; with the drafts, if {shares} hold: {'; '.join(parts)}"
        bench.add(
            "bifrons",
            f"checking {width - 1} draft{'s' if width > 2 else ''}",
            times,
            items=rows * width,
            unit=" tokens/s",
            limit=None,
            note=note,
        )


def draft_pass(model: TextModel, rows: int, filled: int) -> Callable[[], object] | None:
    """A draft of each request, whose layer has `filled` positions in its cache; captured where steps are.
    None where the layer makes no drafts."""
    decoder, width = model.decoder, model.decoder.config.hidden_size
    kernels = _kernels(decoder)
    if kernels is not None:
        packed, slots, pool = _packed(decoder, kernels, rows, 1, filled)
        next_RD, hidden_RD = torch.randn(2, rows, width, device=decoder.device).to(decoder.dtype)
        return CudaGraphCapturer(decoder.device)(
            lambda: model.text_logits(packed.forward_ahead(next_RD, hidden_RD, slots, pool))
        )
    if decoder.device.type != "cpu":
        return None
    drafter = AheadDrafts(model).drafter(1, decoder.config.vocab_size, filled + 2, decoder.device)
    hidden_11D = torch.randn(1, 1, width, device=decoder.device).to(decoder.dtype)
    one = torch.ones(1, dtype=torch.long, device=decoder.device)

    def redraw(logits_NkV: Tensor, steps_Nk: Tensor) -> Tensor:
        return logits_NkV.argmax(-1)

    drawn = Drawn(one[None], hidden_11D, one * filled, one, redraw, hidden_11D)

    def run() -> None:
        for _ in range(rows):
            drafter.record(drawn)
            drafter.propose(drawn, 1)

    return run


def window_pass(
    decoder: Decoder, logits: Callable[[Tensor], Tensor], rows: int, width: int, filled: int
) -> Callable[[], object]:
    """A pass over `width` random tokens of each row, to logits; captured where steps are."""
    x_RWD = torch.randn(rows, width, decoder.config.hidden_size, device=decoder.device).to(decoder.dtype)
    kernels = _kernels(decoder)
    if kernels is None:
        cache = decoder.new_cache(rows, filled + width)

        def run() -> None:
            cache.positions.fill_(filled)
            cache.filled = filled
            logits(decode(decoder, x_RWD, cache).flatten(0, 1))

        return run
    packed, slots, pool = _packed(decoder, kernels, rows, width, filled)
    return CudaGraphCapturer(decoder.device)(lambda: logits(packed.forward(x_RWD.flatten(0, 1), slots, pool)))


def _kernels(decoder: Decoder) -> Kernels | None:
    """The kernels of captured steps, where there are such."""
    return load_kernels(decoder.device) if uses_cuda_graphs(decoder) else None


def _packed(
    decoder: Decoder, kernels: Kernels, rows: int, width: int, filled: int
) -> tuple[PackedDecoder, TokenSlots, KVPool]:
    """What a pass over windows of `width` tokens of each row needs, after `filled` positions."""
    fuse_weights(decoder)
    packed, span = PackedDecoder(decoder, kernels), range_length(filled + width)
    packed.reserve(rows * width)
    pool = KVPool(decoder, rows * span)
    positions = [filled + index for index in range(width)] * rows
    starts = [SCRATCH + row * span for row in range(rows) for _ in range(width)]
    positions_N, starts_N = ints_on_device(decoder.device, positions, starts)
    return packed, TokenSlots(positions_N, starts_N, span, windows=((rows, width),)), pool
