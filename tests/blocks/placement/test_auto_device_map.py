"""Placements inferred from sizes and free memory alone, and the memory that a caller allows."""

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.blocks.placement.auto_device_map import infer_placement, parse_max_memory
from bifrons.blocks.placement.layout import CPU, DevicePlacement

GPU = [torch.device("cuda", number) for number in range(3)]
LAYERS = {f"model.layers.{number}": 100 for number in range(10)}
SIZES = {"model.embed": 50, **LAYERS, "head": 50, "tower": 200}


@pytest.fixture
def three_gpus(monkeypatch):
    """Three GPUs as far as names go."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def used(placement: DevicePlacement, sizes=SIZES) -> dict[str, int]:
    found: dict[str, int] = {}
    for unit, home in placement.devices.items():
        found[str(home)] = found.get(str(home), 0) + sizes[unit]
    return found


def test_what_fits_on_the_first_device_stays_together():
    assert not infer_placement("m", SIZES, {GPU[0]: 1300, GPU[1]: 9999, CPU: 9999}).uses_several_devices
    assert not infer_placement("m", SIZES, {CPU: 1300}).uses_several_devices


def test_gpus_are_filled_in_order_before_anything_lodges():
    placement = infer_placement("m", SIZES, {GPU[0]: 800, GPU[1]: 600, CPU: 9999})
    assert placement.main == GPU[0]
    assert not placement.offloaded
    assert used(placement) == {"cuda:0": 750, "cuda:1": 550}
    assert placement.device_of("model.layers.3.mlp.weight") == GPU[0] != placement.device_of("model.layers.8")
    without = infer_placement("m", SIZES, {GPU[0]: 800, GPU[1]: 600})  # what must not lodge may yet fit
    assert without == placement


def test_balanced_gives_gpus_about_as_much():
    memory = {GPU[0]: 2000, GPU[1]: 2000, GPU[2]: 2000, CPU: 9999}
    shares = used(infer_placement("m", SIZES, memory, balanced=True))
    assert set(shares) == {"cuda:0", "cuda:1", "cuda:2"}
    assert max(shares.values()) <= 600
    assert not infer_placement("m", SIZES, memory).uses_several_devices


def test_the_rest_lodges_and_room_is_left_for_it():
    placement = infer_placement("m", SIZES, {GPU[0]: 700, CPU: 1000})
    assert placement.main == GPU[0]
    assert "tower" in placement.offloaded  # which works once a picture, so it comes last
    assert "model.embed" not in placement.offloaded
    assert placement.peak_bytes(SIZES)[GPU[0]] <= 700
    assert placement.peak_bytes(SIZES)[CPU] == sum(SIZES[name] for name in placement.offloaded)
    assert {placement.execution_device(name) for name in SIZES} == {GPU[0]}


def test_a_gpu_with_room_for_the_largest_module_alone_computes_everything():
    placement = infer_placement("m", SIZES, {GPU[0]: 200, CPU: 9999})
    assert placement.main == GPU[0]
    assert placement.offloaded == frozenset(SIZES)


@pytest.mark.parametrize(
    "memory",
    [{CPU: 1299}, {GPU[0]: 199, CPU: 9999}, {GPU[0]: 500, CPU: 500}, {GPU[0]: 500, GPU[1]: 500}],
)
def test_what_does_not_fit_is_refused_with_the_sizes(memory):
    with pytest.raises(OptionError, match=r"m needs 1.3 kB for its weights.* on (cuda:0|cpu)"):
        infer_placement("m", SIZES, memory)


def test_memory_that_is_allowed(three_gpus):
    assert parse_max_memory({"cpu": "1GiB", 1: "2MB", "0": 77}) == {
        GPU[0]: 77,
        GPU[1]: 2 * 10**6,
        CPU: 2**30,
    }
    assert list(parse_max_memory({"cpu": 5, 1: 5, 0: 0})) == [GPU[1], CPU]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({0: "much"}, "max_memory for cuda:0 is 'much'; accepted: bytes, or a size such as 20GiB"),
        ({0: 1.5}, "is 1.5; accepted"),
        ({0: True}, "is True; accepted"),
        ({0: -1}, "is -1; accepted: bytes"),
        ({7: "1GB"}, "a device of max_memory is 7"),
        ({"disk": "1GB"}, "not offloaded to files"),
        ({0: 5, "cuda:0": 5}, "names cuda:0 twice"),
        ({"cpu": 0}, "allows nothing"),
        (5, "max_memory is 5; accepted: such as"),
    ],
)
def test_memory_that_is_refused(three_gpus, given, words):
    with pytest.raises(OptionError, match=words):
        parse_max_memory(given)
