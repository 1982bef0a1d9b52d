"""Where the weights of a Janus model go: device maps are checked before anything is loaded."""

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.blocks.placement import auto_device_map, device_map, memory_budget
from bifrons.blocks.placement.device_map import LoadOptions, choose_placement, parse_device_map, unit_bytes
from bifrons.blocks.placement.layout import CPU, DevicePlacement, longest_prefix, units
from bifrons.blocks.placement.memory_estimate import model_bytes
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel
from bifrons.janus.pipeline import JanusPipeline

GPU = [torch.device("cuda", number) for number in range(3)]


@pytest.fixture(scope="module")
def janus(janus_mini) -> JanusModel:
    with torch.device("meta"):
        return JanusModel(read_config(janus_mini)[0])


@pytest.fixture
def three_gpus(monkeypatch):
    """Three GPUs as far as names go, each with 1000 bytes free, and a machine with a million."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    for module in (auto_device_map, device_map, memory_budget):
        monkeypatch.setattr(module, "free_bytes", lambda device: 1000 if device.type == "cuda" else 10**6)


def test_units_cover_all_that_has_weights(janus):
    names = units(janus)
    assert names[-1] == "gen_vision_model"
    assert "language_model.model.layers.0" in names
    assert all(longest_prefix(name, dict.fromkeys(names)) for name, _ in janus.named_parameters())
    sizes = unit_bytes(janus, torch.bfloat16, "int8", lambda name: False)
    assert sum(sizes.values()) == model_bytes(janus, torch.bfloat16, "int8", lambda name: False)


def test_a_part_that_is_absent_has_no_place(janus_mini):
    with torch.device("meta"):
        model = JanusModel(read_config(janus_mini)[0], "read")
    assert not [name for name in units(model) if name.startswith("gen_")]


def test_maps_of_modules(janus, three_gpus):
    inside = "language_model.model"
    given = {"": 0, f"{inside}.layers": "cuda:1", f"{inside}.layers.0": "2", "vision_model": "cpu"}
    placement = parse_device_map(janus, given)
    assert placement.main == GPU[0]
    assert placement.device_of(f"{inside}.layers.0.mlp.up_proj.weight") == GPU[2]
    assert placement.device_of(f"{inside}.layers.1") == GPU[1]
    assert placement.device_of(f"{inside}.norm.weight") == GPU[0]
    assert placement.offloaded == {"vision_model"}
    assert placement.execution_device("vision_model") == GPU[0]
    assert set(str(placement).split(" and ")) == {"cuda:0", "cuda:1", "cuda:2", "cpu"}
    assert parse_device_map(janus, {"": "cpu"}) == DevicePlacement(CPU, dict.fromkeys(units(janus), CPU))
    first = parse_device_map(janus, {"": "cpu", f"{inside}.layers.1": 1})
    assert first.main == GPU[1]
    assert f"{inside}.embed_tokens" in first.offloaded


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"": 0, "towel": "cpu"}, r"names 'towel'; accepted: '' for everything, aligner.*layers"),
        ({"": 0, "language_model.model.layers.0.mlp": 0}, "names 'language_model.model.layers.0.mlp'"),
        ({"": "disk"}, r"is 'disk', but weights are not offloaded to files; accepted: cpu, 0, 1, 2"),
        ({"": 3}, r"the device of '' is 3.*this machine has 3 CUDA GPUs; accepted: cpu, 0, 1, 2"),
        ({"": "gpu"}, "the device of '' is 'gpu'"),
        ({"": "meta"}, "holds no numbers"),
        ({"": None}, "is None; accepted: cpu"),
        ({"": True}, "is True; accepted: cpu"),
        ({"language_model": 0}, r"has no place for gen_aligner.*accepted: a map that covers all"),
    ],
)
def test_maps_that_are_refused(janus, three_gpus, given, words):
    with pytest.raises(OptionError, match=words):
        parse_device_map(janus, given)


def pick(model, **options):
    return choose_placement("m", model, LoadOptions(**options), None)


def test_options_that_do_not_go_together(janus, three_gpus, monkeypatch):
    for how, words in (
        ({"max_memory": {"cpu": 5}}, "max_memory has no device_map"),
        ({"device_map": "auto", "device": "cpu"}, "device is 'cpu' and there is a device_map too"),
        ({"device_map": {"": "cpu"}, "max_memory": {"cpu": 5}}, "a device_map of modules"),
        ({"device_map": "sequential"}, "device_map is 'sequential'; accepted: auto, balanced, or modules"),
        ({"device_map": 0}, "device_map is 0; accepted: auto"),
        ({"device_map": {"": "cpu"}, "capture": True}, "accepted with CUDA alone"),
    ):
        with pytest.raises(OptionError, match=words):
            pick(janus, **how)
    with pytest.raises(OptionError, match=r"m as bfloat16 would take .* of cuda:0, where 1 kB are free"):
        pick(janus, device_map={"": 0})
    monkeypatch.setattr(device_map, "free_bytes", lambda device: 10**12)
    with pytest.raises(OptionError, match="capture is True, but the model is spread over cuda:0 and cpu"):
        pick(janus, device_map={"": 0, "vision_model": "cpu"}, capture=True)
    placement, dtype = pick(janus, device_map={"": 1}, capture=True)
    assert (placement.uses_several_devices, placement.main, dtype) == (False, GPU[1], torch.bfloat16)


def test_auto_goes_by_what_is_free(janus, three_gpus, monkeypatch):
    total = model_bytes(janus, torch.bfloat16, None, lambda name: False)
    for module in (auto_device_map, device_map):
        monkeypatch.setattr(module, "free_bytes", lambda d: total * 6 // 5 if d.type == "cuda" else 10**9)
    placement, dtype = pick(janus, device_map="auto")  # 0.8 of the first do not do
    assert dtype == torch.bfloat16
    assert placement.uses_several_devices
    assert {home.type for home in placement.devices.values()} == {"cuda"}
    placement, _ = pick(janus, device_map="auto", max_memory={0: total - 1, "cpu": "1GB"})
    assert placement.main == GPU[0]
    assert "gen_vision_model" in placement.offloaded


def test_the_refusal_without_a_map_names_it(janus, monkeypatch):
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: 1000)
    with pytest.raises(OptionError, match=r'what fits .*, or device_map="auto" \(--device-map auto\)'):
        pick(janus, device="cpu")


def test_auto_on_the_cpu_is_the_plain_model(janus_mini):
    pipe = JanusPipeline.from_pretrained(janus_mini, device_map="auto", max_memory={"cpu": "1GiB"})
    assert pipe.model.decoder.layout is None
    assert pipe.device == CPU
    with pytest.raises(OptionError, match=r"janus-mini as float32 needs .* may take 1 kB on cpu"):
        JanusPipeline.from_pretrained(janus_mini, device_map="auto", max_memory={"cpu": 1000})
