"""Latent attention: the two forms are equal, and so are cached steps, chunks and the whole sequence."""

import pytest
import torch
from bifrons.blocks.engine.prefill import decode, prefill
from bifrons.blocks.model.context import DecoderConfig, LatentConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.layers import deinterleave, rotary_table, rotate
from bifrons.blocks.model.mla import LatentAttention
from bifrons.blocks.model.moe import MoEConfig


def make_config(q_rank: int | None = None) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        max_positions=128,
        latent=LatentConfig(kv_rank=16, q_rank=q_rank, nope_dim=12, rope_dim=8, value_dim=10),
        moe=MoEConfig(8, 2, 16, num_shared=1, first_dense=1),
    )


def test_rotation_after_deinterleaving_rotates_interleaved_pairs():
    x, positions = torch.randn(1, 1, 5, 8), torch.arange(5)[None]
    rotated = rotate(deinterleave(x), rotary_table(positions, 8, 10000.0))[0, 0]
    pairs = torch.view_as_complex(x[0, 0].reshape(5, 4, 2).contiguous())
    angles = torch.arange(5.0)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotated, torch.cat((expected.real, expected.imag), -1))


def test_absorbed_equals_expanded():
    torch.manual_seed(0)
    attention = LatentAttention(make_config(), 0).double()
    q_nope, q_rope = torch.randn(2, 4, 7, 12).double(), torch.randn(2, 4, 7, 8).double()
    slots = torch.randn(2, 9, 24).double()
    mask = torch.ones(2, 1, 7, 9, dtype=torch.bool).tril(2)
    absorbed = attention.absorbed(q_nope, q_rope, slots, mask)
    torch.testing.assert_close(absorbed, attention.expanded(q_nope, q_rope, slots, mask))


@pytest.mark.parametrize("q_rank", [None, 20])
@pytest.mark.parametrize("chunk", [None, 1, 7, 40])
def test_cached_steps_and_chunks_equal_the_whole_sequence(q_rank: int | None, chunk: int | None):
    torch.manual_seed(0)
    config = make_config(q_rank)
    decoder = Decoder(config).double().eval()
    assert config.latent is not None
    assert config.latent.absorbs(7)
    assert not config.latent.absorbs(40)
    rows = [torch.randn(length, 32).double() for length in (45, 3, 20)]
    cache = config.new_cache(3, 50, device=torch.device("cpu"), dtype=torch.float64)
    assert [tuple(buffer.shape) for buffer in cache.buffers] == [(2, 3, 64, 1, 16 + 8)]  # whole spans
    with torch.no_grad():
        steps = [prefill(decoder, rows, cache, chunk)]
        new = torch.randn(3, 3, 32).double()
        steps += [decode(decoder, new[:, t][:, None], cache)[:, 0] for t in range(3)]
        for row, prompt in enumerate(rows):
            whole = decoder(torch.cat((prompt, new[row]))[None])[0, len(prompt) - 1 :]
            # The rotary tables are float32 by design, and so are the gate and the norms' statistics.
            torch.testing.assert_close(torch.stack([s[row] for s in steps]), whole, rtol=1e-5, atol=1e-5)
