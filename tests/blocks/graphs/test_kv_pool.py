"""Ranges of the pool never overlap, merge when they are returned, and keep their contents as it grows."""

from typing import Any

import pytest
import torch
from bifrons.blocks.graphs import kv_pool
from bifrons.blocks.graphs.kv_pool import SCRATCH, KVPool, range_length
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(params=["dense", "latent"])
def decoder(request: pytest.FixtureRequest, small_model) -> Any:
    return small_model(request.param).decoder


@pytest.fixture(scope="module")
def dense(small_model) -> Any:
    return small_model("dense-tiny").decoder


def test_buffers_have_the_shapes_of_the_decoders_cache(decoder: Any) -> None:
    pool, config = KVPool(decoder, 64), decoder.config
    shapes = [(config.num_layers, heads, SCRATCH + 64, dim) for heads, dim in config.cache_widths]
    assert [tuple(buffer.shape) for buffer in pool.buffers] == shapes
    assert all(buffer.dtype == decoder.dtype and not buffer.any() for buffer in pool.buffers)
    assert pool.bytes == sum(buffer.numel() * 4 for buffer in pool.buffers)


def test_ranges_are_aligned_apart_and_outside_the_scratch_slots(dense: Any) -> None:
    pool = KVPool(dense, 96)
    assert [pool.take(count) for count in (1, 17, 40)] == [SCRATCH, SCRATCH + 16, SCRATCH + 48]
    assert pool.take(1) is None
    assert range_length(40) == 48


def test_neighbouring_free_ranges_become_one(dense: Any) -> None:
    pool = KVPool(dense, 96)
    first, second, third = (pool.take(32) for _ in range(3))
    pool.give(first, 32)
    pool.give(third, 32)
    assert pool.take(64) is None
    pool.give(second, 32)
    assert pool.is_unused
    assert pool.take(96) == SCRATCH


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 70)), max_size=40))
def test_ranges_in_use_never_overlap(dense: Any, calls: list[tuple[bool, int]]) -> None:
    pool, taken = KVPool(dense, 160), []
    for takes, number in calls:
        if takes and (start := pool.take(number)) is not None:
            taken.append((start, number))
        elif taken and not takes:
            pool.give(*taken.pop(number % len(taken)))
        slots = [slot for start, count in taken for slot in range(start, start + range_length(count))]
        assert len(set(slots)) == len(slots)
        assert all(SCRATCH <= slot < pool.slots for slot in slots)
    for start, count in taken:
        pool.give(start, count)
    assert pool.is_unused
    assert pool.take(160) == SCRATCH


def test_a_pool_of_fixed_size_does_not_grow(dense: Any) -> None:
    pool = KVPool(dense, 32)
    version = pool.version
    assert not pool.grow(16)
    assert (pool.slots, pool.version) == (SCRATCH + 32, version)


def test_growing_keeps_the_contents_of_ranges_in_use(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_pool, "_MULTIPLE", 64)
    pool = KVPool(decoder, None)
    assert pool.is_unused
    assert pool.take(1) is None
    assert pool.grow(20)
    start, version = pool.take(40), pool.version
    for number, buffer in enumerate(pool.buffers, start=1):
        buffer[:, :, start : start + 40] = number
    assert pool.grow(70)
    assert pool.version != version
    for number, buffer in enumerate(pool.buffers, start=1):
        assert (buffer[:, :, start : start + 40] == number).all()
        assert not buffer[:, :, start + 48 :].any()
    assert pool.take(70) == start + 48  # with what was free already
    assert not pool.is_unused


def test_an_unused_pool_is_freed_before_it_grows(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = KVPool(dense, None)
    pool.grow(10)
    free = []
    monkeypatch.setattr(kv_pool, "free_bytes", lambda device: free.append(0) or 0)
    assert pool.grow(5000)
    assert not free  # nothing is copied: whether both fit does not matter
    start = pool.take(5000)
    assert not pool.grow(5000)  # both would not fit
    assert free
    pool.give(start, 5000)
    assert pool.is_unused


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
def test_a_pool_does_not_grow_beyond_memory(small_model) -> None:
    pool = KVPool(small_model("dense-tiny", "cuda").decoder, None)
    assert not pool.grow(1 << 40)
    assert pool.is_unused
    assert pool.grow(100)
    assert pool.take(100) == SCRATCH
