"""Prompts with a common prefix share its computation, and give the same bits as when prefilled alone."""

import pytest
import torch
from bifrons.blocks.engine.prefill import (
    BLOCK_SIZE,
    MIN_SHARED,
    Prefiller,
    common_prefix_length,
    decode,
    hash_blocks,
    prefill,
)
from bifrons.blocks.model import decoder as blocks_decoder
from bifrons.blocks.model.kv_slots import KVSlots

MODELS = ["dense", "experts", "latent", "latent-noaux"]
CONTEXT, ROWS = 128, 6


@pytest.fixture(params=MODELS)
def decoder(request, small_model):
    return small_model(request.param).decoder


@pytest.fixture
def prefiller(decoder):
    slots = KVSlots(decoder, ROWS, CONTEXT)
    prefiller = Prefiller(decoder, slots)
    yield prefiller
    prefiller.close()


def prompts(decoder, *lengths: int, shared: int) -> list[torch.Tensor]:
    """Random prompts of these lengths, the first `shared` positions the same in all."""
    generator = torch.Generator().manual_seed(0)
    width = decoder.config.hidden_size
    prefix = torch.randn(shared, width, generator=generator)
    return [torch.cat((prefix, torch.randn(n - shared, width, generator=generator))) for n in lengths]


@torch.no_grad()
def alone(decoder, prompt: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Hidden states of the prompt's last position and of inputs decoded after it, `[1 + len(inputs), D]`."""
    slots = len(prompt) + len(inputs)
    cache = decoder.config.new_cache(1, slots, device=torch.device("cpu"), dtype=torch.float32)
    states = [prefill(decoder, [prompt], cache)]
    return torch.cat(states + [decode(decoder, x[None][:, None], cache)[:, 0] for x in inputs])


@torch.no_grad()
def added(prefiller: Prefiller, new: list[torch.Tensor], inputs: torch.Tensor) -> list[torch.Tensor]:
    """The hidden states that `alone` returns, for prompts added together; frees their rows afterwards."""
    rows = prefiller.add(new)
    slots = prefiller.slots
    assert sorted(rows) == list(range(len(new)))
    assert slots.cache.positions[rows].tolist() == [len(prompt) for prompt in new]
    states = [slots.hidden_RD[rows].clone()]
    for x in inputs:
        view = slots.view(0, len(new), max(slots.lengths))
        hidden = decode(prefiller.decoder, x.expand(len(new), -1)[:, None], view)[:, 0]
        slots.lengths[:] = [length + 1 for length in slots.lengths]
        states.append(hidden[rows])
    while slots.lengths:
        slots.drop(0)
    return list(torch.stack(states, dim=1))


@pytest.mark.usefixtures("measured_processor")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shared", [MIN_SHARED, 23, 40])
def test_sharing_a_prefix_changes_no_bit(prefiller, decoder, shared, threads):
    prefiller.threads = threads
    batch = prompts(decoder, 45, 44, 60, 110, 47, shared=shared)
    batch.append(batch[2])  # twice, as the choices of one request are
    inputs = torch.randn(5, decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
    expected = [alone(decoder, prompt, inputs) for prompt in batch]
    for chosen in ([0], [1], [3, 2], [5, 0, 4, 2, 1, 3], [4, 3], [0, 1, 2, 3, 4, 5]):
        for i, hidden in zip(chosen, added(prefiller, [batch[i] for i in chosen], inputs), strict=True):
            assert torch.equal(hidden, expected[i]), (chosen, i)
    assert prefiller.copied > 13 * (shared - shared % BLOCK_SIZE)


def test_the_common_prefix_is_copied(prefiller, decoder):
    a, b, c = prompts(decoder, 40, 60, 50, shared=MIN_SHARED + 3)
    no_inputs = torch.zeros(0, decoder.config.hidden_size)
    added(prefiller, [a], no_inputs)
    assert prefiller.copied == 0
    added(prefiller, [b], no_inputs)
    assert prefiller.copied == MIN_SHARED
    added(prefiller, [b], no_inputs)  # the same again: all but the last block
    assert prefiller.copied == MIN_SHARED + 56
    added(prefiller, [torch.cat((a[:8], c[8:]))], no_inputs)
    added(prefiller, [torch.cat((a[:8], a[20:]))], no_inputs)
    assert prefiller.copied == MIN_SHARED + 56 + MIN_SHARED  # a common prefix of eight positions is too short


def test_rows_are_not_padded_beyond_the_cache(prefiller, decoder):
    long, other = prompts(decoder, CONTEXT, 40, shared=20)
    no_inputs = torch.zeros(0, decoder.config.hidden_size)
    added(prefiller, [long], no_inputs)
    other_end = torch.cat((long[:120], other[:8]))
    hidden = added(prefiller, [other_end, other[20:34]], no_inputs)
    torch.testing.assert_close(hidden[0], alone(decoder, other_end, no_inputs))
    torch.testing.assert_close(hidden[1], alone(decoder, other[20:34], no_inputs))
    assert prefiller.copied == 120


@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_failure_no_prefix_is_reused(prefiller, decoder, monkeypatch, threads):
    prefiller.threads = threads
    batch = prompts(decoder, 80, 90, 100, 100, shared=20)
    no_inputs = torch.zeros(0, decoder.config.hidden_size)
    added(prefiller, batch, no_inputs)

    def explode(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("bifrons.blocks.engine.prefill.prefill", explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        prefiller.add(batch)
    monkeypatch.undo()
    prefiller.slots.truncate(0)
    before = prefiller.copied
    added(prefiller, batch[:1], no_inputs)
    assert prefiller.copied == before


@torch.no_grad()
def test_the_first_positions_are_causal_without_a_mask(decoder, monkeypatch):
    """Equal to attention with a mask over the cache, which batch invariance is switched off to compare."""
    monkeypatch.setattr(blocks_decoder, "is_batch_invariant", lambda x: False)
    x_BTD = torch.stack(prompts(decoder, 40, 40, shared=0))
    for length in (40, 1):
        caches = [decoder.new_cache(2, 64) for _ in range(2)]
        for cache in caches:
            cache.reserve(60)
        masked = decoder(x_BTD[:, :length], caches[0])
        causal = decoder(x_BTD[:, :length], caches[1], from_start=True)
        torch.testing.assert_close(causal, masked, rtol=1e-4, atol=1e-5)
        for one, other in zip(caches[0].buffers, caches[1].buffers, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_copies_between_rows_may_swap_prefixes(decoder):
    slots = KVSlots(decoder, ROWS, CONTEXT)
    for buffer in slots.cache.buffers:
        buffer.copy_(torch.arange(float(ROWS))[None, :, None, None, None].expand_as(buffer))
    slots.copy([(1, 0, 10), (0, 1, 20), (4, 2, 5), (3, 3, 30)])
    for buffer in slots.cache.buffers:
        held = buffer[-1, :, :, 0, 0]
        assert [held[row, 0].item() for row in range(ROWS)] == [1, 0, 4, 3, 4, 5]
        assert [held[row, 15].item() for row in range(ROWS)] == [0, 0, 2, 3, 4, 5]


def test_block_hashes_find_the_common_prefix():
    a = torch.randn(22, 6)
    b = a.clone()
    b[13, 5] += 1e-6
    assert len(hash_blocks(a)) == 5
    assert common_prefix_length(hash_blocks(a), hash_blocks(a[:17])) == 16
    assert common_prefix_length(hash_blocks(a), hash_blocks(b)) == 12
    assert common_prefix_length(hash_blocks(a), hash_blocks(b[1:])) == 0
    assert hash_blocks(a[:3]) == []
