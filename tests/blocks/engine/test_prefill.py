"""Prompts that begin alike share what they begin with, and have the same bits as when computed alone."""

from pathlib import Path

import pytest
import torch
from bifrons.blocks.engine.prefill import (
    BLOCK,
    MIN_SHARED,
    Prefiller,
    common_prefix,
    decode_one,
    fingerprints,
    idle_cores,
    prefill,
)
from bifrons.blocks.model.kv_slots import KVSlots
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline

DATA = Path(__file__).parent.parent.parent / "data"
MODELS = ["janus-mini", "vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"]
CONTEXT, ROWS = 128, 6


@pytest.fixture(params=MODELS)
def decoder(request):
    family = JanusPipeline if request.param.startswith("janus") else VL2Pipeline
    return family.from_pretrained(DATA / request.param, "cpu").model.decoder


@pytest.fixture
def prefiller(decoder):
    slots = KVSlots(decoder, ROWS, CONTEXT)
    prefiller = Prefiller(decoder, slots)
    yield prefiller
    prefiller.close()


def prompts(decoder, *lengths: int, alike: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = decoder.config.hidden_size
    first = torch.randn(alike, width, generator=generator)
    return [torch.cat((first, torch.randn(n - alike, width, generator=generator))) for n in lengths]


@torch.no_grad()
def alone(decoder, prompt: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Hidden states of the last position, and of those of some more inputs, `[1 + len(inputs), D]`."""
    slots = len(prompt) + len(inputs)
    cache = decoder.config.new_cache(1, slots, device=torch.device("cpu"), dtype=torch.float32)
    states = [prefill(decoder, [prompt], cache)]
    return torch.cat(states + [decode_one(decoder, x[None], cache) for x in inputs])


@torch.no_grad()
def added(prefiller: Prefiller, some: list[torch.Tensor], inputs: torch.Tensor) -> list[torch.Tensor]:
    """What `alone` gives, of prompts that are added together; their rows are given back."""
    places = prefiller.add(some)
    slots = prefiller.slots
    assert sorted(places) == list(range(len(some)))
    assert slots.cache.positions[places].tolist() == [len(prompt) for prompt in some]
    states = [slots.hidden_RD[places].clone()]
    for x in inputs:
        found = decode_one(prefiller.decoder, x.expand(len(some), -1), slots.active())
        slots.advance()
        states.append(found[places])
    while slots.lengths:
        slots.drop(0)
    return list(torch.stack(states, dim=1))


@pytest.mark.usefixtures("measured_processor")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("alike", [MIN_SHARED, 23, 40])
def test_shared_beginnings_change_no_bit(prefiller, decoder, alike, threads):
    prefiller.threads = threads
    some = prompts(decoder, 45, 44, 60, 110, 47, alike=alike)
    some.append(some[2])  # once more, as the choices of one request are
    inputs = torch.randn(5, decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
    wanted = [alone(decoder, prompt, inputs) for prompt in some]
    for chosen in ([0], [1], [3, 2], [5, 0, 4, 2, 1, 3], [4, 3], [0, 1, 2, 3, 4, 5]):
        for i, found in zip(chosen, added(prefiller, [some[i] for i in chosen], inputs), strict=True):
            assert torch.equal(found, wanted[i]), (chosen, i)
    assert prefiller.copied > 13 * (alike - alike % BLOCK)


def test_what_is_copied_is_what_is_alike(prefiller, decoder):
    a, b, c = prompts(decoder, 40, 60, 50, alike=MIN_SHARED + 3)
    nothing = torch.zeros(0, decoder.config.hidden_size)
    added(prefiller, [a], nothing)
    assert prefiller.copied == 0
    added(prefiller, [b], nothing)
    assert prefiller.copied == MIN_SHARED
    added(prefiller, [b], nothing)  # the same again: all but the last block
    assert prefiller.copied == MIN_SHARED + 56
    added(prefiller, [torch.cat((a[:8], c[8:]))], nothing)
    added(prefiller, [torch.cat((a[:8], a[20:]))], nothing)
    assert prefiller.copied == MIN_SHARED + 56 + MIN_SHARED  # eight positions alike are too few


def test_rows_are_not_padded_beyond_the_cache(prefiller, decoder):
    long, other = prompts(decoder, CONTEXT, 40, alike=20)
    nothing = torch.zeros(0, decoder.config.hidden_size)
    added(prefiller, [long], nothing)
    ends_otherwise = torch.cat((long[:120], other[:8]))
    found = added(prefiller, [ends_otherwise, other[20:34]], nothing)
    torch.testing.assert_close(found[0], alone(decoder, ends_otherwise, nothing))
    torch.testing.assert_close(found[1], alone(decoder, other[20:34], nothing))
    assert prefiller.copied == 120


@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_failure_nothing_is_taken_for_held(prefiller, decoder, monkeypatch, threads):
    prefiller.threads = threads
    some = prompts(decoder, 80, 90, 100, 100, alike=20)
    nothing = torch.zeros(0, decoder.config.hidden_size)
    added(prefiller, some, nothing)

    def explode(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("bifrons.blocks.engine.prefill.prefill", explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        prefiller.add(some)
    monkeypatch.undo()
    prefiller.slots.clear()
    before = prefiller.copied
    added(prefiller, some[:1], nothing)
    assert prefiller.copied == before


def test_beginnings_trade_places(decoder):
    slots = KVSlots(decoder, ROWS, CONTEXT)
    for buffer in slots.cache.buffers:
        buffer.copy_(torch.arange(float(ROWS))[None, :, None, None, None].expand_as(buffer))
    slots.copy([(1, 0, 10), (0, 1, 20), (4, 2, 5), (3, 3, 30)])
    for buffer in slots.cache.buffers:
        held = buffer[-1, :, :, 0, 0]
        assert [held[row, 0].item() for row in range(ROWS)] == [1, 0, 4, 3, 4, 5]
        assert [held[row, 15].item() for row in range(ROWS)] == [0, 0, 2, 3, 4, 5]


def test_fingerprints_tell_where_prompts_part():
    a = torch.randn(22, 6)
    b = a.clone()
    b[13, 5] += 1e-6
    assert len(fingerprints(a)) == 5
    assert common_prefix(fingerprints(a), fingerprints(a[:17])) == 16
    assert common_prefix(fingerprints(a), fingerprints(b)) == 12
    assert common_prefix(fingerprints(a), fingerprints(b[1:])) == 0
    assert fingerprints(a[:3]) == []


def test_idle_cores_are_those_of_the_processor():
    assert idle_cores(torch.device("meta")) == 1
    assert idle_cores(torch.device("cpu")) >= 1
