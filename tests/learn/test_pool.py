"""A pool gives examples while others are made, replaces the oldest, and says what went wrong in a worker."""

import time

import numpy as np
import pytest
from bifrons.learn.pool import ExamplePool


def shard(seed: int) -> dict[str, np.ndarray]:
    """Three examples that hold their shard's seed."""
    return {"seed": np.full((3, 2), seed), "number": np.arange(3)}


def some(seed: int) -> dict[str, np.ndarray]:
    if seed == 4:
        raise ValueError("no shard 4")
    return shard(seed)


def test_new_examples_replace_the_oldest():
    pool = ExamplePool(shard, first=11, capacity=7, seed=5, workers=1, device="cpu")
    assert pool.made == 12
    assert pool.tensors["seed"][:, 0].tolist() == [7, 7, 8, 8, 8, 6, 7]
    drawn = pool.draw(200)
    assert drawn["seed"].shape == (200, 2)
    assert set(drawn["number"].tolist()) == {0, 1, 2}


def test_nothing_is_drawn_that_is_not_there_yet():
    pool = ExamplePool(shard, first=3, capacity=100, seed=5, workers=1, device="cpu")
    assert (pool.draw(200)["seed"] == 5).all()


def test_examples_are_made_while_others_are_drawn_until_a_worker_fails():
    pool = ExamplePool(some, first=3, capacity=1000, seed=0, workers=2, device="cpu")
    try:
        until = time.monotonic() + 60
        with pytest.raises(ValueError, match="no shard 4"):  # noqa: PT012
            while time.monotonic() < until:
                pool.refresh()
                time.sleep(0.01)
        assert pool.tensors["seed"][:12:3, 0].tolist() == [0, 1, 2, 3]
        assert pool.made == 12
    finally:
        pool.close()
