"""Passes over packed tokens with multi-head attention, against the plain decoder; in Triton's interpreter
where there is no GPU."""

# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.engine.prefill import decode, prefill
from bifrons.blocks.graphs.fused_weights import fuse_weights
from bifrons.blocks.graphs.kv_pool import SCRATCH, KVPool
from bifrons.blocks.graphs.packed_decoder import PackedDecoder, TokenSlots, import_kernels, load_kernels
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.model.context import DecoderConfig
from bifrons.blocks.model.decoder import Decoder
from torch import Tensor, nn

from ...models import quantize_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPAN, BLOCK = 64, 32
SIZES = {"vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "max_positions": 256}
CONFIGS = {
    "multi-head": DecoderConfig(**SIZES, num_heads=4, num_kv_heads=4, head_dim=8),
    "grouped-query": DecoderConfig(**SIZES, num_heads=6, num_kv_heads=2, head_dim=16),
}


def made_decoder(name: str, kind: str | None = None) -> Decoder:
    torch.manual_seed(0)
    whole = nn.Module()
    whole.decoder = Decoder(CONFIGS[name]).requires_grad_(False).eval().to(DEVICE)
    if kind is not None:
        quantize_model(whole, kind)
    return whole.decoder


@torch.no_grad()
def plain_states(decoder: Decoder, prompts: Sequence[Tensor], news: Tensor) -> Tensor:
    """The last hidden states of prompts, then those of inputs `[step, row, D]` decoded after them."""
    cache = decoder.new_cache(len(prompts), SPAN)
    first = prefill(decoder, prompts, cache)
    return torch.stack([first, *(decode(decoder, new[:, None], cache)[:, 0] for new in news)])


class Packed:
    """Sequences in a pool, and passes over them."""

    def __init__(self, decoder: Decoder, rows: int) -> None:
        self.packed, self.pool = PackedDecoder(decoder, import_kernels()), KVPool(decoder, rows * SPAN)
        self.packed.reserve(rows)
        # In another order than that of the rows.
        self.starts = [SCRATCH + SPAN * ((row + 1) % rows) for row in range(rows)]
        self.lengths = [0] * rows

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """The next positions of every sequence; returns the last hidden states."""
        pieces, positions, starts, last = [], [], [], []
        for row, x_TD in enumerate(prompts):
            padding = -len(x_TD) % BLOCK
            pieces += [x_TD, x_TD.new_zeros(padding, x_TD.shape[1])]
            last.append(len(positions) + len(x_TD) - 1)
            positions += [*range(self.lengths[row], self.lengths[row] + len(x_TD)), *[0] * padding]
            starts += [self.starts[row]] * len(x_TD) + [0] * padding
            self.lengths[row] += len(x_TD)
        slots = TokenSlots(*torch.tensor([positions, starts], device=DEVICE), SPAN, prefill=True)
        return self.packed.forward(torch.cat(pieces), slots, self.pool)[last]

    @torch.no_grad()
    def decode(self, x_ND: Tensor, rows: Sequence[int]) -> Tensor:
        """One position of these rows."""
        places = [[self.lengths[row] for row in rows], [self.starts[row] for row in rows]]
        for row in rows:
            self.lengths[row] += 1
        slots = TokenSlots(*torch.tensor(places, device=DEVICE), SPAN)
        return self.packed.forward(x_ND, slots, self.pool)


def random_inputs() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randn(length, 32, generator=generator).to(DEVICE) for length in (5, 37, 1)]
    return prompts, torch.randn(2, 3, 32, generator=generator).to(DEVICE)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_passes_are_those_of_the_plain_decoder(name: str) -> None:
    decoder = made_decoder(name)
    prompts, news = random_inputs()
    expected = plain_states(decoder, prompts, news)
    fuse_weights(decoder)
    packed = Packed(decoder, 3)
    assert_close(packed.prefill(prompts), expected[0])
    assert_close(packed.decode(news[0], [0, 1, 2]), expected[1])
    assert_close(packed.decode(news[1, 1:], [1, 2]), expected[2, 1:])
    assert_close(packed.decode(news[1, :1], [0]), expected[2, :1])
    assert not packed.packed._arrivals.any()


def test_prompts_in_parts_are_those_of_the_plain_decoder() -> None:
    decoder = made_decoder("multi-head")
    (_, prompt, _), news = random_inputs()
    expected = plain_states(decoder, [prompt], news[:, :1])
    packed = Packed(decoder, 1)
    for part in prompt.split(16):
        last = packed.prefill([part])
    assert_close(last, expected[0])
    assert_close(packed.decode(news[0, :1], [0]), expected[1])


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_quantized_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cuda" and kind == "fp8" and not dispatch.supports_float8(DEVICE):
        pytest.skip("its kernels want Ada")
    decoder = made_decoder("multi-head", kind)
    prompts, news = random_inputs()
    expected = plain_states(decoder, prompts[:1], news[:, :1])
    fuse_weights(decoder)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    monkeypatch.setattr(dispatch, "supports_float8", lambda device: True)
    packed = Packed(decoder, 1)
    assert_close(packed.prefill(prompts[:1]), expected[0])
    assert_close(packed.decode(news[0, :1], [0]), expected[1])


def test_the_result_may_be_written_to_a_given_tensor() -> None:
    decoder, (prompts, _) = made_decoder("multi-head"), random_inputs()
    packed = Packed(decoder, 1)
    places = torch.tensor([[0], [SCRATCH]], device=DEVICE)
    with torch.no_grad():
        expected = packed.packed.forward(prompts[2], TokenSlots(*places, SPAN), packed.pool)
        out = torch.empty_like(expected)
        assert packed.packed.forward(prompts[2], TokenSlots(*places, SPAN), packed.pool, out) is out
    assert torch.equal(out, expected)


def test_kernels_are_for_cuda_or_the_interpreter() -> None:
    assert load_kernels(torch.device("cpu")) is None
    assert load_kernels(torch.device("cpu"), interpreted=True) == import_kernels()
